"""A fit as the backend carries it out, in this process: what comes of it is to be what plain `fit` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiaas_magics.backend.training.run import run
from aiaas_magics.backend.training.tensorflow import tensorflow_engine
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.events import AnyEvent
from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.fitcall.fit_call import FitCall, apply_result, pack, read_result, unpack, write_result
from tests.backend.training.tensorflow.test_rank_datasets import kernel


class Channel(list[AnyEvent]):
    """Keeps what a worker says."""

    send = list.append


def fit(
    folder: Path,
    model: Any,
    *,
    fused: str = "auto",
    seed: int = 5,
    said: Channel | None = None,
    between: Callable[[], None] = lambda: None,
    **arguments: Any,
) -> Any:
    """`model.fit(**arguments)` by pack, a worker's loop and its result; returns the `History`.

    Args:
        between: called after packing, to make of this process what a worker's is.
    """
    packed = pack(FitCall(model, arguments), execution=Execution(fused=fused))
    between()
    call = unpack(packed.payload, packed.arrays)
    command = WorkerCommand(
        job="test",
        attempt=1,
        rank=0,
        ranks=1,
        attempt_dir=str(folder),
        job_dir=str(folder),
        payload="",
        arrays=(),
        seed=seed,
        execution=Execution(fused=fused),
    )
    with kernel([(stream, folder / "feed" / stream.name) for stream in packed.streams]):
        history = run(tensorflow_engine.ENGINE, command, call, Channel() if said is None else said)  # type: ignore[arg-type]
    write_result(folder / "result.safetensors", call, history)
    return apply_result(read_result((folder / "result.safetensors").read_bytes()), packed)
