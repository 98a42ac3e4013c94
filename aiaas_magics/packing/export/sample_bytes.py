"""Sample bytes: sample rows and their answers in the form in which they travel to the parity check.

Samples are safetensors with `input/<name>` and `output/<name>`, rows first; rows of another size follow as `1/input/<name>`,
`1/output/<name>` and so on. A string tensor travels as UTF-8 in `uint8`, padded with zeros along one more dimension;
`length/input/<name>` says how many bytes are its own. `background/<name>` are rows for explanations, any number of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def as_safetensors(inputs: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[Mapping[str, np.ndarray]]) -> bytes:
    """Sets of rows and the answers to each, as many sets as there are sizes of the free dimensions."""
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}
    for number, (rows, answers) in enumerate(zip(inputs, outputs, strict=True)):
        place = f"{number}/" if number else ""
        tensors |= {f"{place}input/{name}": array for name, array in rows.items()}
        tensors |= {f"{place}output/{name}": array for name, array in answers.items()}
    lengths = {f"length/{name}": _lengths(array) for name, array in tensors.items() if array.dtype.kind in "OSU"}
    return bytes(save({name: np.ascontiguousarray(_padded(array)) for name, array in (tensors | lengths).items()}))


def with_background(samples: bytes, background: Mapping[str, np.ndarray]) -> bytes:
    """`samples`, as `as_safetensors` made them, with rows that explanations hide parts of a row behind, by input name."""
    from safetensors.numpy import load, save

    rows = {f"background/{name}": array for name, array in background.items()}
    lengths = {f"length/{name}": _lengths(array) for name, array in rows.items() if array.dtype.kind in "OSU"}
    arrays = {name: np.ascontiguousarray(_padded(array)) for name, array in (rows | lengths).items()}
    return bytes(save({**load(samples), **arrays}))


def as_text(array: np.ndarray) -> np.ndarray:
    return array.astype(object) if array.dtype.kind in "SU" else array


def _encoded(texts: np.ndarray) -> list[bytes]:
    return [text if isinstance(text, bytes) else str(text).encode() for text in texts.ravel()]


def _lengths(texts: np.ndarray) -> np.ndarray:
    return np.array([len(text) for text in _encoded(texts)], np.int64).reshape(texts.shape)


def _padded(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "OSU":
        return array
    texts = _encoded(array)
    width = max(1, *map(len, texts))
    return np.frombuffer(b"".join(text.ljust(width, b"\0") for text in texts), np.uint8).reshape(*array.shape, width)


def from_safetensors(data: bytes) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """What `as_safetensors` wrote: inputs and outputs of each set, texts as bytes."""
    from safetensors.numpy import load

    tensors = load(data)
    numbers = sorted({int(key.partition("/")[0]) for key in tensors if key.partition("/")[0].isdecimal()})
    return [(_side(tensors, f"{place}input/"), _side(tensors, f"{place}output/")) for place in ("", *(f"{number}/" for number in numbers))]


def _side(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(prefix): _unpadded(array, tensors.get(f"length/{key}")) for key, array in tensors.items() if key.startswith(prefix)
    }


def _unpadded(array: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    if lengths is None:
        return array
    padded = [bytes(row) for row in array.reshape(-1, array.shape[-1])]
    texts = np.empty(len(padded), dtype=object)
    texts[:] = [text[:length] for text, length in zip(padded, lengths.ravel().tolist(), strict=True)]
    return texts.reshape(lengths.shape)
