"""Grad-CAM: where a convolution saw what speaks for the output (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

Owns the choice of the layer and the heat map. Differentiating belongs to `model_gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import InvalidSpec, UnknownName
from aiaas_magics.explain import layer_taps
from aiaas_magics.explain.attributions import Arrays
from aiaas_magics.explain.model_gradients import GradientPoint, ModelGradients, backend_module
from aiaas_magics.explain.players import is_text

CONVOLUTIONS: Final = ("Conv1D", "Conv2D", "Conv3D", "SeparableConv1D", "SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D")
INSTEAD: Final = "Use method='integrated_gradients' or 'occlusion' instead."


def look_at_layer(gradients: ModelGradients, inputs: Arrays, name: str) -> None:
    """Differentiate at the output of the convolution `name`, or of the last one, nested models included.

    Raises:
        InvalidSpec: several inputs, or no convolution with places left.
        UnknownName: the model has no such layer.
    """
    places = [place for place, array in enumerate(inputs) if not is_text(array) and array.ndim >= 3]
    if len(places) != 1:
        raise InvalidSpec(f"Grad-CAM explains one image or series per row, and this model has {len(places)} such inputs. {INSTEAD}")
    layers = layer_taps.layers_of(gradients.model)
    watched = [layer for layer in layers if (layer.name == name if name else type(layer).__name__ in CONVOLUTIONS)]
    if name and not watched:
        raise UnknownName("layer", name, [layer.name for layer in layers])
    with layer_taps.observed(watched) as calls:
        backend_module().call_once(gradients.model, [array[:1] for array in inputs])
    spatial = [call for call in calls if is_spatial(call.returned, inputs[places[0]].ndim)]
    if not spatial:
        raise InvalidSpec(f"Grad-CAM needs a convolution whose output still has places, and {gradients.model.name!r} has none. {INSTEAD}")
    gradients.differentiate_at([GradientPoint(places[0], spatial[-1])])


def is_spatial(output: Any, rank: int) -> bool:
    """Whether a layer's output has several places along the axes of an input of this rank."""
    shape = tuple(getattr(output, "shape", ()))
    return len(shape) == rank and int(np.prod(shape[1:-1])) > 1


def heat(slopes: Sequence[np.ndarray], activations: Sequence[np.ndarray], inputs: Arrays) -> list[np.ndarray]:
    """What speaks for the output at each entry of the input, 0 and up: (rows, *input shape, 1).

    The channels of the convolution, weighted by their mean gradient, summed, cut at 0, and interpolated to the input's places. Each place's
    heat is divided evenly over its channels.
    """
    (slope,), (activation,) = slopes, activations
    edges = tuple(range(1, slope.ndim - 1))
    weights = slope.mean(axis=edges, keepdims=True)
    coarse = np.maximum((weights * activation).sum(axis=-1), 0.0)
    image = next(array for array in inputs if not is_text(array) and array.ndim == slope.ndim)
    fine = enlarged(coarse, image.shape[1:-1])
    channels = image.shape[-1]
    return [np.repeat(fine[..., None], channels, axis=-1)[..., None] / channels]


def enlarged(coarse: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """Linear interpolation of (rows, *places) to other edges, axis by axis; a coarse place stands for the middle of its cell.

    >>> enlarged(np.array([[0.0, 1.0]]), [4]).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    fine = coarse
    for axis, edge in enumerate(edges, start=1):
        length = fine.shape[axis]
        where = np.clip((np.arange(edge) + 0.5) * length / edge - 0.5, 0, length - 1)
        low = np.floor(where).astype(int)
        share = (where - low).reshape([-1 if other == axis else 1 for other in range(fine.ndim)])
        high = np.minimum(low + 1, length - 1)
        fine = np.take(fine, low, axis=axis) * (1 - share) + np.take(fine, high, axis=axis) * share
    return fine
