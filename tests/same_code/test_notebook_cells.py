"""Cells in a real kernel that plain Keras runs, and what ours says where it differs."""

from __future__ import annotations

import pytest

from tests.notebook.conftest import Kernel

SETUP = """
%load_ext aiaas_magics
import os, threading, time
import numpy as np, keras, tensorflow as tf
from keras import layers
X, Y = np.ones((64, 8), "float32"), np.ones((64, 1), "float32")
def small(name=None):
    m = keras.Sequential([keras.Input((8,)), layers.Dense(1)], name=name); m.compile("sgd", "mse"); return m
class Stop(keras.callbacks.Callback):
    def __init__(self, error):
        super().__init__(); self.error = error
    def on_epoch_end(self, epoch, logs=None): raise self.error
"""


@pytest.fixture(scope="module")
def kernel(notebook: Kernel) -> Kernel:
    cell = notebook.run(SETUP)
    assert cell.ok, cell.error
    return notebook


def test_fits_in_threads_and_train_on_batch_are_no_cell_without_a_fit(kernel: Kernel) -> None:
    threads = kernel.run(
        "%%aiaas_train -n 1\nt = threading.Thread(target=lambda: small('beside').fit(X, Y, verbose=0)); t.start(); t.join()"
    )
    batches = kernel.run("%%aiaas_train -n 1\nsmall('alone').train_on_batch(X, Y)")
    neither = kernel.run("%%aiaas_train -n 1\n1 + 1")

    assert threads.ok, threads.error
    assert "Trained in the kernel: 1 fit of other threads (beside)" in threads.text
    assert batches.ok, batches.error
    assert "1 train_on_batch call (alone)" in batches.text
    assert not neither.ok
    assert "No fit was called in this cell, so the backend trained nothing" in neither.text


def test_except_clauses_of_a_cell_catch_what_workers_raise(kernel: Kernel) -> None:
    cell = kernel.run(
        "%%aiaas_train -n 1 --ui none\n"
        "caught = []\n"
        "for error, kind in ((RuntimeError('enough'), RuntimeError), (KeyboardInterrupt(), KeyboardInterrupt)):\n"
        "    try: small().fit(X, Y, callbacks=[Stop(error)])\n"
        "    except kind as e: caught.append(type(e).__name__)\n"
        "try: small().fit(np.ones((8, 5)), Y[:8])\n"
        "except ValueError as e: caught.append(type(e).__name__)\n"
        "print(caught)"
    )

    assert cell.ok, cell.error
    assert "['RemoteTrainingError', 'RemoteTrainingError', 'DataMismatch']" in cell.text


def test_variables_of_the_notebook_reach_workers_and_a_missing_one_names_the_option(kernel: Kernel) -> None:
    kernel.run("%env MY_RATE=0.25\n%env MY_API_KEY=s3cret")
    cell = kernel.run(
        "%%aiaas_train -n 1 --ui text\n"
        "class Reader(keras.callbacks.Callback):\n"
        "    def on_train_begin(self, logs=None): self.rate = os.environ['MY_RATE']; self.key = os.environ['MY_API_KEY']\n"
        "reader = Reader()\n"
        "small().fit(X, Y, callbacks=[reader])"
    )
    named = kernel.run("%%aiaas_train -n 1 --ui text --env MY_API_KEY\nsmall().fit(X, Y, callbacks=[reader])")

    assert "send the kernel's variable with --env MY_API_KEY" in cell.error
    assert "Not sent, because it may be a secret: MY_API_KEY" in cell.text
    assert named.ok, named.error
    assert "Environment variables sent to the workers: MY_API_KEY, MY_RATE." in named.text
    assert "s3cret" not in named.text
    assert "('0.25', 's3cret')" in kernel.run("print((reader.rate, reader.key))").text


def test_a_tf_function_of_a_cell_with_a_tensor_if_trains(kernel: Kernel) -> None:
    cell = kernel.run(
        "%%aiaas_train -n 1 --ui none\n"
        "@tf.function\n"
        "def double(x):\n"
        "    if tf.reduce_sum(x) > 0: x = x * 2.0\n"
        "    return x\n"
        "m = keras.Sequential([keras.Input((8,)), layers.Dense(1, kernel_initializer='ones')])\n"
        "m.compile('sgd', lambda y, p: tf.reduce_mean((y - double(p)) ** 2, -1))\n"
        "history = m.fit(X, Y, batch_size=64, shuffle=False)\n"
        "print(history.history['loss'])"
    )

    assert cell.ok, cell.error
    assert "[225.0]" in cell.text


def test_a_refusal_beside_an_odd_object_leaves_no_live_view(kernel: Kernel) -> None:
    cell = kernel.run(
        "%%aiaas_train -n 1 --ui html\n"
        "class Loud:\n"
        "    def __getattr__(self, name): raise RuntimeError(name)\n"
        "keeper = keras.callbacks.Callback(); keeper.loud = Loud(); keeper.thing = (n for n in [1])\n"
        "small().fit(X, Y, callbacks=[keeper])"
    )

    assert "CannotTravel" in cell.error
    assert "packing" not in cell.text
    assert "To stop" not in cell.text


def test_a_model_that_a_job_trains_is_not_deployed(kernel: Kernel) -> None:
    kernel.run("%%aiaas_train -n 1 --async -o job --ui none\nm = small()\nm.fit(X, Y, epochs=3)")
    cell = kernel.run("%aiaas_deploy m --name c95 --sample X")
    kernel.run("job.result()")

    assert "deploy on a model that job" in cell.error + cell.text
    assert kernel.run("m.predict(X, verbose=0).shape").ok


def test_code_on_the_line_of_the_magic_is_told_to_go_below_it(kernel: Kernel) -> None:
    with_code = kernel.run("%%aiaas_train -n2 small().fit(X, Y)")
    without = kernel.run("%%aiaas_train -n 2")
    helped = kernel.run("%%aiaas_train -h")

    assert "'small().fit(X,' was not expected here. Code goes on the lines below %%aiaas_train." in with_code.text + with_code.error
    assert "%%aiaas_train needs code below it" in without.text + without.error
    assert "--workers" in helped.text


def test_the_arrow_of_an_error_below_time_stands_at_its_own_line(kernel: Kernel) -> None:
    cell = kernel.run(
        "%%aiaas_train -n 1 --ui none\n%%time\nm = small()\nfirst = 1\nm.fit(X, Y, callbacks=[Stop(RuntimeError('enough'))])\nlast = 2"
    )
    refused = kernel.run("%%aiaas_train -n 1 --ui none\n%%time\nm = small()\nm.fit(np.ones((8, 5)), Y[:8])")

    assert "def on_epoch_end(self, epoch, logs=None): raise self.error" in cell.error
    assert "----> 4 m.fit(np.ones((8, 5)), Y[:8])" in refused.error, refused.error


def test_a_tool_of_the_notebook_on_the_model_is_named_by_its_attribute(kernel: Kernel) -> None:
    cell = kernel.run("%%aiaas_train -n 1 --ui none\nm = small()\nm.extra = get_ipython\nm.fit(X, Y)")

    assert "CannotTravel: model.extra" in cell.error, cell.error
