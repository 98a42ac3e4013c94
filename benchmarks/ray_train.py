"""Ray Train's way to a first step, run in an environment that has Ray: prints seconds from `fit()` of a trainer to the first step, warm.

Two workers, each with a plain Keras `fit` of one step of the article's model: `TensorflowTrainer` cannot take Keras 3, so this
is the bare `DataParallelTrainer`, which exchanges nothing. Ray is up before, and one whole run has gone through.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPEATS = 3


def loop(config: dict[str, Any]) -> None:
    from ray import train

    from benchmarks import models

    model = models.article()
    x, y = models.data(model, 640)
    model.fit(x[:32], y[:32], epochs=1, verbose=0)
    if train.get_context().get_world_rank() == 0:
        Path(config["told"]).write_text(json.dumps(time.time()))
    train.report({"done": 1})


def main() -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    with tempfile.TemporaryDirectory(prefix="aiaas-ray-") as folder:
        root = str(Path(__file__).parent.parent)
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])), "TF_CPP_MIN_LOG_LEVEL": "3"}
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder, runtime_env={"env_vars": paths})
        took = []
        for turn in range(1 + REPEATS):
            told = Path(folder) / f"first-{turn}"
            trainer = DataParallelTrainer(
                loop,
                train_loop_config={"told": str(told)},
                scaling_config=ScalingConfig(num_workers=2),
                run_config=RunConfig(name=f"turn-{turn}", storage_path=folder),
            )
            began = time.time()
            trainer.fit()
            took.append(json.loads(told.read_text()) - began)
        ray.shutdown()
    print(json.dumps(took[1:]))


if __name__ == "__main__":
    sys.exit(main())
