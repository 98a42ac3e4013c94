"""The launcher with the real libraries: warm, and untouched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from aiaas_magics.backend.workers.local.local_attempt import stop_ranks
from aiaas_magics.backend.workers.local.local_pool import LocalPool
from aiaas_magics.core.engines import HOME
from tests.backend.workers.local.test_local_pool import attempt, until
from tests.conftest import processes_of

pytestmark = pytest.mark.process


@pytest.mark.slow
async def test_workers_fork_from_one_thread_that_has_imported_everything(tmp_path: Path) -> None:
    options = (
        "--entry",
        "aiaas_magics.testing.scripted_worker:main",
        "--preload",
        ",".join((*HOME.preload, "aiaas_magics.testing.scripted_worker")),
    )
    pool = LocalPool(tmp_path, launcher_options=options)
    folder, commands = attempt(tmp_path, {"do": "wait", "seconds": 600}, ranks=2)
    await pool.start_ranks(folder, commands)
    (launcher,) = [process for process in processes_of(tmp_path / "launcher") if "launcher" in " ".join(process.cmdline())][:1]

    assert launcher.num_threads() == 1
    worker = folder.process(1)
    assert worker is not None
    assert any("tensorflow" in mapped.path for mapped in psutil.Process(worker.pid).memory_maps())

    await stop_ranks(folder, ranks=2)
    await pool.close()
    await until(lambda: not processes_of(tmp_path), "something was left")


@pytest.mark.slow
def test_a_launcher_that_has_touched_a_device_does_not_fork() -> None:
    probe = (
        "import tensorflow as tf\n"
        "from aiaas_magics.backend.training.tensorflow.tensorflow_engine import ENGINE\n"
        "ENGINE.assert_fork_safe()\n"
        "tf.constant(1.0)\n"
        "print('touched', flush=True)\n"
        "ENGINE.assert_fork_safe()\n"
    )

    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=False)

    assert told.stdout == "touched\n"  # the first call found nothing
    assert told.returncode == 1
    assert told.stderr.strip().endswith("workers cannot fork from here")
