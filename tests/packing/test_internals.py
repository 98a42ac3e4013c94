"""Every private name that we use is where `internals` says, in the versions that are installed.

`make nightly` runs this file with another Keras too (`tests/nightly/keras_nightly.py`), so each name is a test of its own: what a release
has moved is a line of the summary.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from aiaas_magics.core import internals
from aiaas_magics.core.errors import PrivateNameGone
from aiaas_magics.core.internals import jax_internals as jax_names
from aiaas_magics.core.internals import keras_internals as keras_names
from aiaas_magics.core.internals import tensorflow_internals as tensorflow_names

MODULES = {"keras": keras_names, "tensorflow": tensorflow_names, "jax": jax_names}


@pytest.mark.parametrize(("framework", "name"), [(framework, name) for framework, module in MODULES.items() for name in module.PATHS])
def test_a_private_name_is_where_it_is_looked_for(framework: str, name: str) -> None:
    if framework == "jax" or ".jax." in keras_names.PATHS.get(name, ""):
        pytest.importorskip("jax")

    found = getattr(MODULES[framework], name)

    assert isinstance(found, ModuleType) == (":" not in MODULES[framework].PATHS[name])


# --------------------------------------------------------------------------- attributes


def models() -> dict[str, Any]:
    """Objects of Keras that have what we read of such objects."""
    layers = keras.layers
    graph = keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.BatchNormalization(), layers.Dense(1)])
    graph.compile("adam", "mse", metrics=["mae"])
    graph.build((None, 2))
    embedding = layers.Embedding(3, 2)
    embedding.build((None, 1))
    functional = keras.Model(graph.inputs, graph.outputs)
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(graph.trainable_variables)
    x = np.zeros((4, 2), np.float32)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        distributed = keras.optimizers.SGD()
    return {
        "Layer": graph.layers[0],
        "Dense": graph.layers[0],
        "Embedding": embedding,
        "BatchNormalization": graph.layers[1],
        "Model": graph,
        "Functional": functional,
        "Sequential": graph,
        "KerasTensor": graph.outputs[0],
        "Variable": graph.trainable_variables[0],
        "Optimizer": [optimizer, distributed],
        "LossScaleOptimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
        "MeanMetricWrapper": keras.metrics.MeanMetricWrapper(lambda y, p: p),
        "Callback": keras.callbacks.Callback(),
        "MonitorCallback": keras.callbacks.EarlyStopping(),
        "SeedGenerator": keras.random.SeedGenerator(1),
        "EpochIterator": keras_names.EpochIterator(x, batch_size=2),
        "ArrayDataAdapter": keras_names.ArrayDataAdapter(x, batch_size=2),
        "PyDatasetAdapter": keras_names.data_adapters.py_dataset_adapter.PyDatasetAdapter,
        "DynamicBackend": keras_names.DynamicBackend(),
        "JAXTrainer": keras_names.JAXTrainer,
    }


def seeded_context() -> Any:
    """As `tf.random.set_seed` leaves it."""
    context = tensorflow_names.context.context()
    before = context._seed
    context._set_global_seed(1)
    context._set_global_seed(before)
    return context


def parts() -> dict[str, Any]:
    """The same of TensorFlow."""
    table = tf.lookup.KeyValueTensorInitializer(["a"], [1], tf.string, tf.int64)

    @tf.function
    def function(x: tf.Tensor) -> tf.Tensor:
        return x

    return {
        "Dataset": tf.data.Dataset.from_tensor_slices([1, 2]).batch(2),
        "Function": function,
        "StaticHashTable": tf.lookup.StaticHashTable(table, 0),
        "MutableHashTable": tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0),
        "Graph": function.get_concrete_function(tf.TensorSpec((), tf.float32)).graph,
        "ResourceTensor": tf.Variable(1.0).handle,
        "ConcreteFunction": function.get_concrete_function(tf.TensorSpec((), tf.float32)),
        "Context": seeded_context(),
        "OpError": tf.errors.InvalidArgumentError(None, None, ""),
        "Trackable": keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]),
        "dataset_ops": tensorflow_names.dataset_ops,
    }


@pytest.fixture(scope="module")
def owners() -> Mapping[str, Any]:
    return {**models(), **parts()}


TABLES = {**keras_names.ATTRIBUTES, **tensorflow_names.ATTRIBUTES}


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in TABLES.items() for name in names])
def test_an_object_has_the_private_attribute_that_is_read(owners: Mapping[str, Any], owner: str, name: str) -> None:
    objects = owners[owner] if isinstance(owners[owner], list) else [owners[owner]]

    assert any(hasattr(one, name) for one in objects), f"{owner} has no {name}"


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in keras_names.PASSING.items() for name in names])
def test_a_module_writes_what_is_there_only_while_it_runs(module: str, name: str) -> None:
    if ".jax." in module:
        pytest.importorskip("jax")

    assert name in inspect.getsource(importlib.import_module(module)), f"{module} has no {name}"


# --------------------------------------------------------------------------- a name that is gone


@pytest.mark.parametrize("path", ["keras.src.trainers.epoch_iterator:Gone", "keras.src.gone:EpochIterator", "keras.src.gone"])
def test_a_name_that_is_gone_is_said_with_the_versions_that_have_it(path: str) -> None:
    with pytest.raises(PrivateNameGone) as gone:
        internals.find("keras", path)

    assert str(gone.value).startswith(
        f"keras {keras.__version__} has no {path.replace(':', '.')}, which aiaas_magics builds on. Install 'keras"
    )


def test_a_library_that_a_private_module_needs_is_said_by_its_own_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A framework may have the module and not what that imports: JAX, say."""
    (tmp_path / "needs_other.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        internals.find("keras", "needs_other")


def test_a_name_that_is_in_no_table_is_said_to_be_missing_there() -> None:
    with pytest.raises(ImportError):
        exec("from aiaas_magics.core.internals.keras_internals import Nobody")
    with pytest.raises(AttributeError, match="no private name 'Nobody' of keras"):
        getattr(keras_names, "Nobody")  # noqa: B009
