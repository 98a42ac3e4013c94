"""The text of cells travels with their code: AutoGraph, `inspect.getsource` and tracebacks work in a worker."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from aiaas_magics.packing.fitcall.fit_call import FitCall, pack, read_result
from aiaas_magics.packing.live import cell_sources
from aiaas_magics.packing.pickling.state_pickle import preamble_of
from tests.support.packed import Namespace, Worker

Cell = Callable[..., Namespace]

AUTOGRAPH = """%%aiaas_train -n 1
hidden_word = 'swordfish'
@tf.function
def double(v):
    if tf.reduce_sum(v) > 0:
        v = v * 2.0
    for _ in tf.range(2):
        v = v + 1.0
    return v
def loss(t, p): return tf.reduce_mean((t - double(p)) ** 2, -1)
class Sources(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        import inspect
        self.text = inspect.getsource(loss)
model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])
model.compile('sgd', loss)
"""


def test_autograph_and_getsource_work_in_a_worker_as_in_the_notebook(cell: Cell, worker: Worker, tmp_path: Path) -> None:
    file = "/tmp/ipykernel_7/123.py"
    made = cell(AUTOGRAPH.replace("%%", "# "), file=file)
    call = FitCall(made["model"], {**made["arguments"], "callbacks": [made["Sources"]()]})
    packed = pack(call)

    result = read_result(worker.train(packed, tmp_path / "job"))

    plain = made["model"].fit(**made["arguments"], verbose=0)
    assert result.callbacks[0]["text"] == inspect.getsource(made["loss"])
    assert abs(result.history["loss"][-1] - plain.history["loss"][-1]) < 1e-5 * abs(plain.history["loss"][-1])


def test_only_statements_with_code_that_travels_are_sent(cell: Cell) -> None:
    made = cell(AUTOGRAPH.replace("%%", "# "), file="/tmp/ipykernel_7/124.py")

    text = preamble_of(pack(FitCall(made["model"], made["arguments"])).payload).sources["/tmp/ipykernel_7/124.py"]

    assert "@tf.function\ndef double(v):" in text
    assert "swordfish" not in text
    assert "class Sources" not in text
    assert text.splitlines()[3] == "def double(v):"  # at its own line


def test_the_text_of_libraries_stays(cell: Cell) -> None:
    made = cell(AUTOGRAPH.replace("%%", "# "), file="/tmp/ipykernel_7/126.py")

    sources = preamble_of(pack(FitCall(made["model"], made["arguments"])).payload).sources

    assert not [file for file in sources if "site-packages" in file]


def test_magics_at_the_margin_and_broken_cells_lose_no_function(cell: Cell) -> None:
    import linecache

    lines = ["%%aiaas_train\n", "!ls\n", "def f(v):\n", "    return v\n", "secret = 1\n"]
    for text in (lines, [*lines, "x = !ls\n"]):
        linecache.cache["/tmp/ipykernel_7/125.py"] = (1, None, text, "/tmp/ipykernel_7/125.py")
        namespace: Namespace = {}
        exec(compile("\n\ndef f(v):\n    return v\n", "/tmp/ipykernel_7/125.py", "exec"), namespace)

        kept = cell_sources.sources_of([namespace["f"].__code__])

        assert kept["/tmp/ipykernel_7/125.py"].strip() == "def f(v):\n    return v"
