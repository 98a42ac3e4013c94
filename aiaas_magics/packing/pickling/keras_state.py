"""Keras state: what of a Keras object travels, and what is made anew where it arrives.

Owns the knowledge of Keras' and TensorFlow's inner state: which attributes belong to one
process (compiled functions, strategies, losses of the last call), and which are keyed by
object ids and must be built again. Turning objects into bytes belongs to `state_pickle`.

An object's state is its `__dict__`, so neither `get_config` nor recorded constructor
arguments are needed: what the constructor made of its arguments is what travels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, Final

State = dict[str, Any]

# Made again by the first `fit` of the copy; compiled functions belong to one process.
RESET: Final[Mapping[str, Callable[[], Any]]] = {
    "train_function": lambda: None,
    "test_function": lambda: None,
    "predict_function": lambda: None,
    "_distribute_strategy": lambda: None,
    # Filled by a call and cleared by the next one; after `fit` they hold symbolic tensors of its graph.
    "_losses": list,
    "_losses_override": list,
    "_loss_ids": set,
}
DROPPED: Final = frozenset({"_eval_epoch_iterator", "history", "_distribution_strategy"})


def is_keras_object(obj: Any) -> bool:
    """Whether `obj` travels as an empty shell first and its state afterwards.

    Layers and nodes of a graph point at one another; with their state inside one another,
    a model of a few hundred layers would exceed the recursion limit.
    """
    from keras import KerasTensor

    from aiaas_magics.core.internals.keras_internals import KerasSaveable, Node

    return isinstance(obj, (KerasSaveable, KerasTensor, Node)) and not isinstance(obj, type)


def is_functional(obj: Any) -> bool:
    """Whether Keras has made `obj` of a graph, perhaps through a subclass of `keras.Model`."""
    from aiaas_magics.core.internals.keras_internals import Functional

    return isinstance(obj, Functional)


def shell(cls: type, functional: bool = False) -> Any:
    """An instance of `cls` without state; the user's `__new__` and `__init__` do not run.

    `keras.Model.__init__` puts `Functional` into the bases of a subclass when a first object is made of inputs and outputs.
    A class of an installed package that is imported here has made none.
    """
    from keras import Layer

    from aiaas_magics.core.internals.keras_internals import Functional, inject_functional_model_class

    if functional and not issubclass(cls, Functional):
        inject_functional_model_class(cls)
    # Layer.__new__ wraps `build` and `quantize` of the instance; the wrappers hold the instance.
    return Layer.__new__(cls) if issubclass(cls, Layer) else object.__new__(cls)


def state_of(obj: Any) -> State:
    """What of `obj` travels. The live object is left as it is."""
    from keras import Layer, Optimizer

    cls = type(obj)
    if getattr(cls, "__getstate__", None) is not getattr(object, "__getstate__", None) and not _is_library(cls.__getstate__):
        own = obj.__getstate__()
        state: State = dict(own) if isinstance(own, dict) else {"__own_state__": own}
    else:
        state = dict(obj.__dict__)
    for name in DROPPED & state.keys():
        del state[name]
    for name in RESET.keys() & state.keys():
        state[name] = RESET[name]()
    if isinstance(obj, Layer):
        _drop_wrappers(state)
    if "_nodes" in state and "_operations" in state:
        state["_nodes"] = _node_places(state)
    if isinstance(obj, Optimizer):
        _name_slots_by_variable(obj, state)
    return state


def put_state(obj: Any, state: State) -> None:
    """The other half of `state_of`; ids are made right later, by `settle`."""
    own = getattr(type(obj), "__setstate__", None)
    if own is not None and not _is_library(own):
        own(obj, state.get("__own_state__", state))
        return
    obj.__dict__.update(state)


def settle(obj: Any) -> None:
    """Build again what is keyed by ids, when every object of the graph has its state."""
    import tensorflow as tf
    from keras import Optimizer

    from aiaas_magics.core.internals.keras_internals import Function, TensorFlowTrainer, Tracker, make_node_key

    if isinstance(obj, Tracker):
        obj.stored_ids = {name: {id(value) for value in store} for name, (_, store) in obj.config.items()}
    if isinstance(obj, Function):
        obj.__dict__["_nodes"] = {make_node_key(operation, index) for operation, index in obj.__dict__["_nodes"]}
    if isinstance(obj, TensorFlowTrainer) and tf.distribute.has_strategy():
        obj.__dict__["_distribute_strategy"] = tf.distribute.get_strategy()
    if isinstance(obj, Optimizer):
        obj.__dict__["_distribution_strategy"] = tf.distribute.get_strategy()
        for name, value in list(obj.__dict__.items()):
            if isinstance(value, _Slots):
                obj.__dict__[name] = {obj._var_key(variable): slot for variable, slot in value.pairs}


class _Slots:
    """A dict that an optimizer keeps by variable key, with the variables themselves in place of the keys."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs


def _name_slots_by_variable(optimizer: Any, state: State) -> None:
    keys = {optimizer._var_key(variable): variable for variable in getattr(optimizer, "_trainable_variables", ())}
    for name, value in state.items():
        if isinstance(value, dict) and value and keys.keys() >= set(value):
            state[name] = _Slots([(keys[key], slot) for key, slot in value.items()])


def _node_places(state: State) -> list[tuple[Any, int]]:
    """`Function._nodes` holds strings of the form "<id of the operation>_ib-<index>"; here in an order that no id has a part in."""
    places = {str(id(operation)): place for place, operation in enumerate(state["_operations"])}
    nodes = []
    for key in state["_nodes"]:
        owner, _, index = key.rpartition("_ib-")
        if owner in places:
            nodes.append((places[owner], int(index)))
    return [(state["_operations"][place], index) for place, index in sorted(nodes)]


def _drop_wrappers(state: State) -> None:
    """`Layer.__new__` puts them back; a `build` that the user has set on the instance stays."""
    from keras import Layer

    own_codes = [code for code in Layer.__new__.__code__.co_consts if isinstance(code, CodeType)]
    for name in ("build", "quantize"):
        if getattr(state.get(name), "__code__", None) in own_codes:
            del state[name]


def _is_library(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).partition(".")[0] in {"keras", "tensorflow"} or not hasattr(function, "__code__")
