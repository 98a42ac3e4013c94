"""What an export takes of the kernel's memory, for which nobody has reserved any."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aiaas_magics.packing.export import model_export
from tests.support.launchers import ROOT

MOST_BYTES = 1.5e9  # 1.2e9 measured, for 94 MB of weights; 4.8e9 to 6.5e9 with the converter's own copies
STATUS = Path("/proc/self/status")

RESNET = """
import keras, numpy as np
from aiaas_magics.packing.export import model_export
from tests.packing.export.test_export_memory import peak_beyond
model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
rows = np.random.default_rng(0).random((8, 32, 32, 3), dtype="float32")
print("onnx", peak_beyond(lambda: model_export.export(model, rows)))
"""


def figure(name: str) -> int:
    return 1024 * int(next(line for line in STATUS.read_text().splitlines() if line.startswith(name)).split()[1])


def peak_beyond(act: Callable[[], model_export.Servable]) -> int:
    """How many bytes this process grows to while it exports, beyond what it has."""
    Path("/proc/self/clear_refs").write_text("5")  # makes the peak what there is now
    before = figure("VmRSS")
    assert act().format == "onnx"
    return figure("VmHWM") - before


@pytest.mark.skipif(not STATUS.exists(), reason="the peak is read from /proc")
@pytest.mark.nightly
def test_an_export_of_a_deep_network_keeps_few_copies_of_the_weights() -> None:
    root = str(ROOT)
    child = subprocess.run([sys.executable, "-c", RESNET], capture_output=True, text=True, check=True, cwd=root)

    assert int(child.stdout.split()[-1]) < MOST_BYTES
