"""Model gradients: the derivative of one output with respect to a model's inputs, or to what its embeddings make of them.

Owns where a model can be differentiated, and calling it in parts. The arithmetic of each library is in `tensorflow_gradients` and
`jax_gradients`; what gradients mean belongs to `gradient`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.explain import layer_taps
from aiaas_magics.explain.attributions import Arrays
from aiaas_magics.explain.layer_taps import LayerCall
from aiaas_magics.explain.model_structure import INSTEAD, Differentiate, choose_output
from aiaas_magics.explain.players import is_text, words_of

LOOK_UPS: Final = ("TextVectorization", "StringLookup", "IntegerLookup")


@dataclass(frozen=True, slots=True, eq=False)
class GradientPoint:
    """Where the model is differentiated: an input, or a call of an embedding that reads it.

    Args:
        source: the place of the input.
        call: the embedding's call; None for the input itself.
        look_up: the layer that made the embedding's ids of texts or values; None without one.
    """

    source: int
    call: LayerCall | None = None
    look_up: Any = None


@dataclass(slots=True, eq=False)
class ModelGradients:
    """A Keras model that can be differentiated at its points.

    Args:
        output: name of the output to explain; "" is the first.
        batch_rows: most rows per call.

    Raises:
        InvalidSpec: a model that cannot be differentiated with respect to one of its inputs, or another backend than TensorFlow and JAX.
    """

    model: Any
    output: str
    batch_rows: int
    points: list[GradientPoint] = field(default_factory=list)
    evaluations: int = 0
    _differentiate: Differentiate | None = None
    _outputs: Callable[[list[np.ndarray]], np.ndarray] | None = None

    def prepare(self, inputs: Arrays) -> None:
        """Find the points, with a few rows that show how inputs reach embeddings."""
        few = [array[:4] for array in inputs]
        library = backend_module()
        self._outputs = library.outputs_of(self.model, self.flat)
        layers = layer_taps.layers_of(self.model)
        embeddings = [layer for layer in layers if _is_embedding(layer)]
        look_ups = [layer for layer in layers if type(layer).__name__ in LOOK_UPS]
        with layer_taps.observed([*embeddings, *look_ups]) as calls:
            choose_output(self.model, library.call_once(self.model, few), self.output)  # an unknown name is said here, outside of any trace
        self.points = points_of(few, calls, embeddings)
        for place, array in enumerate(inputs):
            if not any(point.source == place for point in self.points):
                self.points.append(GradientPoint(place))
                self._check_differentiable(place, array)
        self.differentiate_at(self.points)

    def differentiate_at(self, points: Sequence[GradientPoint]) -> None:
        """Take these points from now on."""
        self.points = list(points)
        taps = [point for point in self.points if point.call is not None]

        def forward(values: list[Any], raw: list[Any], call: Callable[[list[Any]], Any]) -> Any:
            inputs = list(raw)
            for point, value in zip(self.points, values, strict=True):
                if point.call is None:
                    inputs[point.source] = value
            replacing = [(point.call, value) for point, value in zip(self.points, values, strict=True) if point.call is not None]
            with layer_taps.replaced(replacing) if taps else nullcontext():
                return self.flat(call(inputs))

        self._differentiate = backend_module().differentiator(self.model, forward)

    def _check_differentiable(self, place: int, array: np.ndarray) -> None:
        specs = getattr(self.model, "inputs", None) or ()
        dtype = str(specs[place].dtype) if place < len(specs) else "float32"
        if is_text(array) or "int" in dtype or dtype in {"bool", "string"}:
            name = getattr(specs[place], "name", place) if place < len(specs) else place
            raise InvalidSpec(
                f"Input {name!r} has no gradient: it is {'text' if is_text(array) else dtype}, and no embedding reads it. {INSTEAD}"
            )

    def flat(self, outputs: Any) -> Any:
        """The chosen output, as (rows, columns)."""
        import keras

        chosen = choose_output(self.model, outputs, self.output)
        return keras.ops.reshape(chosen, (keras.ops.shape(chosen)[0], -1))

    def nothing_at(self, inputs: Arrays, background: Arrays | None) -> list[np.ndarray]:
        """What stands for "nothing there" at each point, of shape (1, ...): the background's mean, or else zeros and the embedding of id 0.

        Embeddings of texts always start from id 0, which fills up short texts, so that the places behind a text contribute nothing.
        """
        means = (
            None if background is None else [value.mean(axis=0, keepdims=True, dtype=np.float64) for value in self.values_at(background)]
        )
        empty = []
        for place, (point, value) in enumerate(zip(self.points, self.values_at([array[:1] for array in inputs]), strict=True)):
            if means is not None and not (point.call is not None and is_text(inputs[point.source])):
                empty.append(means[place].astype(np.float32))
            elif point.call is None:
                empty.append(np.zeros_like(value))
            else:
                ids = np.zeros_like(_numpy(point.call.received)[:1])
                empty.append(_numpy(point.call.layer(ids)).astype(np.float32).reshape(value.shape))
        return empty

    def outputs(self, inputs: Arrays) -> np.ndarray:
        """float64 (rows, columns)."""
        assert self._outputs is not None
        parts = [self._outputs([array[first : first + self.batch_rows] for array in inputs]) for first in self._firsts(len(inputs[0]))]
        self.evaluations += len(inputs[0])
        return np.concatenate(parts).astype(np.float64)

    def values_at(self, inputs: Arrays) -> list[np.ndarray]:
        """What each point holds for these rows: the input as float32, or the embedding's output."""
        taps = [point.call.layer for point in self.points if point.call is not None]
        if not taps:
            return [inputs[point.source].astype(np.float32) for point in self.points]
        parts: list[list[np.ndarray]] = []
        for first in self._firsts(len(inputs[0])):
            batch = [array[first : first + self.batch_rows] for array in inputs]
            with layer_taps.observed(list({id(layer): layer for layer in taps}.values())) as calls:
                backend_module().call_once(self.model, batch)
            parts.append([_value_at(point, calls, batch) for point in self.points])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def outputs_at(self, values: Sequence[np.ndarray], inputs: Arrays) -> np.ndarray:
        """float64 (rows, columns): outputs where the points hold these values."""
        return self._run(values, inputs, np.zeros(len(values[0]), dtype=np.int64))[0].astype(np.float64)

    def gradients(self, values: Sequence[np.ndarray], inputs: Arrays, targets: np.ndarray) -> list[np.ndarray]:
        """float32 gradients of each row's target, one array per point, in the shape of its values."""
        return self._run(values, inputs, targets)[1]

    def _run(self, values: Sequence[np.ndarray], inputs: Arrays, targets: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        assert self._differentiate is not None
        outputs, parts = [], []
        for first in self._firsts(len(targets)):
            rows = slice(first, first + self.batch_rows)
            answers, slopes = self._differentiate([value[rows] for value in values], [array[rows] for array in inputs], targets[rows])
            outputs.append(answers)
            parts.append(slopes)
        self.evaluations += len(targets)
        return np.concatenate(outputs), [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _firsts(self, rows: int) -> range:
        return range(0, rows, self.batch_rows)


def _is_embedding(layer: Any) -> bool:
    import keras

    return isinstance(layer, keras.layers.Embedding)


def points_of(inputs: Arrays, calls: Sequence[LayerCall], embeddings: Sequence[Any]) -> list[GradientPoint]:
    """A point for each call of an embedding that reads a whole input, directly or through a look-up."""
    embedding_ids = {id(layer) for layer in embeddings}
    sources = [(place, np.asarray(array), None) for place, array in enumerate(inputs) if not is_text(array)]
    texts = [place for place, array in enumerate(inputs) if is_text(array)]
    points = []
    for call in calls:
        if id(call.layer) not in embedding_ids:
            received = _numpy(call.received)
            origins = texts if received.dtype.kind in "OSU" else [place for place, array, _ in sources if same_values(array, received)]
            match = [place for place in origins if received.dtype.kind not in "OSU" or same_texts(inputs[place], received)]
            if match:
                sources.append((match[0], _numpy(call.returned), call.layer))
            continue
        ids = _numpy(call.received)
        source = next(((place, look_up) for place, array, look_up in sources if same_values(array, ids)), None)
        if source is not None:
            points.append(GradientPoint(source[0], call, source[1]))
    return points


def same_values(array: np.ndarray, ids: np.ndarray) -> bool:
    return (
        array.size == ids.size
        and len(array) == len(ids)
        and bool(np.array_equal(array.ravel().astype(np.float64), ids.ravel().astype(np.float64)))
    )


def same_texts(array: np.ndarray, received: np.ndarray) -> bool:
    return [words_of(cell) for cell in np.ravel(array)] == [words_of(cell) for cell in np.ravel(received)]


def _value_at(point: GradientPoint, calls: Sequence[LayerCall], inputs: Arrays) -> np.ndarray:
    if point.call is None:
        return inputs[point.source].astype(np.float32)
    call = next(call for call in calls if call.layer is point.call.layer and call.number == point.call.number)
    return _numpy(call.returned).astype(np.float32)


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.numpy() if hasattr(tensor, "numpy") else tensor)


def backend_module() -> Any:
    """The library that Keras computes with.

    Raises:
        InvalidSpec: neither TensorFlow nor JAX.
    """
    import keras

    match keras.backend.backend():
        case "tensorflow":
            from aiaas_magics.explain import tensorflow_gradients

            return tensorflow_gradients
        case "jax":
            from aiaas_magics.explain import jax_gradients

            return jax_gradients
        case other:
            raise InvalidSpec(f"Gradients are taken on TensorFlow and JAX, and Keras runs on {other}. {INSTEAD}")
