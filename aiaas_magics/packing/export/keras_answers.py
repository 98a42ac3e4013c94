"""Keras answers: the model's own answers to sample rows, and the model as a function of named tensors.

Owns calling a live model by its interface, the names of its outputs, and whether its answers can be compared at all: the same from
call to call, and for a row whatever the rows beside it. Which rows belongs to `samples`, writing the function to `export_formats`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.core.agreement import compare, largest_of
from aiaas_magics.core.agreement import spread as spread_of
from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.precision import MOST_SPREAD, Precision
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.packing.export import sample_bytes
from aiaas_magics.packing.export.export_formats import CannotServe, replayed
from aiaas_magics.packing.export.samples import Interface, original_names, unique_names
from aiaas_magics.packing.live.model_state import ModelState


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasAnswers:
    """What Keras answers to each of several sets of sample rows."""

    arrays: tuple[Mapping[str, np.ndarray], ...]  # by output name
    structure: Any  # an answer as the model's call gives it
    spread: float  # how far answers to a row differ with other rows beside it, as a part of the largest
    moved: tuple[str, ...]  # state that a call changes

    def structured(self, answers: Mapping[str, np.ndarray]) -> Any:
        """Answers by name in the structure of the model's own."""
        import keras

        return keras.tree.pack_sequence_as(self.structure, [answers[name] for name in self.arrays[0]])


def keras_answers(model: Any, interface: Interface, samples: Sequence[Mapping[str, np.ndarray]], state: ModelState) -> KerasAnswers:
    """Call `model` on each set of rows, also again and on fewer rows.

    Raises:
        DataMismatch: the rows do not go through the model.
        CannotServe: its answers are no rows, or cannot be compared.
    """
    arrays, widest, structure = [], 0.0, None
    for rows in samples:
        structure = call_model(model, interface, rows)
        answers = arrays_of(model, structure)
        check_repeats(model, answers, outputs_of(model, interface, rows), state.moved())
        widest = max(widest, spread_of_rows(model, interface, rows, answers))
        arrays.append(answers)
    return KerasAnswers(arrays=tuple(arrays), structure=structure, spread=widest, moved=state.moved())


def _call(model: Any, interface: Interface, named: Mapping[str, Any]) -> Any:
    inputs = interface.arranged([named[name] for name in interface.names])
    return model(inputs, training=False) if model._call_has_training_arg else model(inputs)


def call_model(model: Any, interface: Interface, rows: Mapping[str, np.ndarray], *, batch: int = 0) -> Any:
    """What Keras answers to the rows, as the model's call gives it; never through `predict`, which may batch and wrap.

    Args:
        batch: where these are fewer rows than the sample has, which the model took: their number.
    """
    import tensorflow as tf

    try:
        return _call(model, interface, {name: tf.constant(sample_bytes.as_text(array)) for name, array in rows.items()})
    except Exception as error:
        reason = " ".join(str(error).split())[:400].rstrip(".")
        if batch:
            raise CannotServe(
                f"Model {model.name!r} cannot be served: it takes the whole sample, and not {batch} row{'s' if batch > 1 else ''} of it. "
                "Requests come with any number of rows: leave the first dimension free in its Input (no batch_size), and in its reshapes. "
                f"Keras says: {reason}."
            ) from error
        raise DataMismatch(
            f"Model {model.name!r} does not take these sample rows. Give typical ones with --sample ARRAY. Keras says: {reason}."
        ) from error


def outputs_of(model: Any, interface: Interface, rows: Mapping[str, np.ndarray], *, batch: int = 0) -> dict[str, np.ndarray]:
    """Keras' own answers on the rows, by output name."""
    return arrays_of(model, call_model(model, interface, rows, batch=batch))


def arrays_of(model: Any, answers: Any) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(tensor.numpy()) for name, tensor in _namedoutputs_of(model, answers).items()}
    single = next((name for name, array in arrays.items() if array.ndim == 0), None)
    if single is not None:
        raise CannotServe(
            f"Model {model.name!r} cannot be served: its output {single!r} is one number for all rows together. "
            "Deploy a model that gives an answer for each row, its first dimension the batch."
        )
    return arrays


def output_names(model: Any, answers: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The outputs' names, and for each the name in Keras where that is another."""
    import keras

    from aiaas_magics.core.internals.keras_internals import to_snake_case

    count = len(keras.tree.flatten(answers))
    if isinstance(answers, Mapping):
        own: list[Any] = ["_".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(answers)]
    else:
        own = list(getattr(model, "output_names", None) or [])
    if len(own) != count:
        own = ["output"] * count
    automatic = frozenset({"output", *(to_snake_case(type(layer).__name__) for layer in model._flatten_layers())})
    automatic = frozenset() if isinstance(answers, Mapping) else automatic
    return unique_names(own, "output", automatic), original_names(own, "output", automatic)


def _namedoutputs_of(model: Any, answers: Any) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    flat = keras.tree.flatten(answers)
    if any(leaf is None for leaf in flat):
        raise CannotServe(f"Model {model.name!r} cannot be served: None is among its outputs. Let call return tensors only.")
    names, _ = output_names(model, answers)
    # numpy has no bfloat16, and neither have the clients.
    plain = [tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tf.convert_to_tensor(tensor) for tensor in flat]
    return dict(zip(names, plain, strict=True))


def function_of(model: Any, interface: Interface) -> Any:
    """A `tf.function` with the interface's names for its arguments and outputs."""
    import tensorflow as tf

    specs = [
        tf.TensorSpec(shape, dtype, name=name)
        for name, shape, dtype in zip(interface.names, interface.shapes, interface.dtypes, strict=True)
    ]

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = _namedoutputs_of(model, _call(model, interface, dict(zip(interface.names, tensors, strict=True))))
        return {name: tf.identity(tensor, name=name) for name, tensor in outputs.items()}

    return serve


def check_repeats(model: Any, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], moved: Sequence[str]) -> None:
    """Raises `CannotServe` where two calls with the same rows differ: no engine could be compared with Keras then."""
    for name, array in first.items():
        if array.shape != second[name].shape or not _agrees(second[name], array, Precision(), largest=_largest(array)):
            cause = f"a call changes {', '.join(moved[:4])}" if moved else "it draws random numbers in each call"
            raise CannotServe(
                f"Model {model.name!r} answers the same rows differently from call to call (output {name!r}), since {cause}. "
                "Deploy a model without that part, whose answers depend on its inputs alone."
            )


def spread_of_rows(model: Any, interface: Interface, rows: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray]) -> float:
    """How far Keras' own answers to a row differ with other rows beside it, as a part of the largest answer.

    Raises:
        CannotServe: by more than rounding: requests of others, which run together, would change an answer.
    """
    count, widest = len(next(iter(rows.values()))), 0.0
    for number in replayed(count):
        if number == count:
            continue
        places = np.arange(number) % count
        answers = outputs_of(model, interface, {name: array[places] for name, array in rows.items()}, batch=number)
        for name, expected in whole.items():
            if len(expected) != count:
                continue
            part, answer = expected[places], answers[name]
            if answer.shape != part.shape:
                apart = math.inf
            elif part.dtype.kind in "OSU":
                apart = 0.0 if (answer == part).all() else math.inf
            else:
                apart = spread_of(answer, part, largest=_largest(expected))
            if apart > MOST_SPREAD:
                raise CannotServe(
                    f"Model {model.name!r} cannot be served: what it answers to a row depends on the rows beside it (output {name!r}, "
                    f"{number} of the {count} sample rows alone). Requests come with any number of rows. "
                    "Deploy the part of the model whose answers to a row depend on that row alone."
                )
            widest = max(widest, apart)
    return widest


def _largest(array: np.ndarray) -> float:
    return 0.0 if array.dtype.kind in "OSU" else largest_of(array)


def _agrees(answers: np.ndarray, expected: np.ndarray, allowed: Precision, *, largest: float) -> bool:
    if expected.dtype.kind in "OSU":
        return bool((answers == expected).all())
    return bool(compare(answers, expected, allowed, largest=largest))


def output_specs(model: Any, function: Any, answers: KerasAnswers) -> tuple[TensorSpec, ...]:
    """The outputs as the backend knows them, in the sizes of the traced function."""
    originals = output_names(model, answers.structure)[1]
    structured = function.get_concrete_function().structured_outputs
    specs = []
    for (name, array), original in zip(answers.arrays[0].items(), originals, strict=True):
        shape = structured[name].shape
        dims = [-1] * array.ndim if shape.rank is None else [-1 if n is None else int(n) for n in shape]
        dtype = "string" if array.dtype.kind in "OSU" else array.dtype.name
        specs.append(TensorSpec(name=name, dtype=dtype, shape=tuple(dims), original=original))
    return tuple(specs)
