"""Parity check: compares an engine with Keras' own answers on the samples that came with the model.

Of a model in fewer bits the samples hold the answers of that form, as the kernel computed and judged them; how near the engine
must come travels in the spec (`Precision`) and is bounded there.

Owns replaying and comparing. Where the samples come from belongs to the kernel's side
(`model_export`); what happens to a model that fails belongs to `model_loader`.

Samples are a safetensors file with `input/<name>` and `output/<name>`, rows first; where dimensions are free, rows of another size
follow as `1/input/<name>`, `1/output/<name>` and so on, and the check is made for each. A string
tensor, which safetensors does not know, travels as UTF-8 in `uint8`, padded with zeros along
one more dimension at the end; `length/input/<name>` says how many bytes are its own. `background/<name>` are rows for explanations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as read_safetensors

from aiaas_magics.backend.serving.engines import Engine, EngineLost, EngineRefused, EngineTooSlow, Tensors
from aiaas_magics.core.agreement import compare, largest_of
from aiaas_magics.core.errors import InvalidSpec, ProofFailed
from aiaas_magics.core.spec import DeploySpec, TensorSpec


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows of one size with the answers to them, and those of other sizes."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    other_sizes: tuple[Samples, ...] = ()

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, slots=True)
class ParityResult:
    """What the replay found. `batchable`: every output has one row for each row of the inputs."""

    largest: float
    batchable: bool


def read_samples(path: Path, spec: DeploySpec) -> Samples:
    """The samples in the file, checked against the interface.

    Raises:
        InvalidSpec: a tensor is missing, or the file is no safetensors.
    """
    arrays = _arrays_in(path, spec)
    numbers = sorted({int(key.partition("/")[0]) for key in arrays if key.partition("/")[0].isdecimal()})
    other_sizes = tuple(_of_one_size(arrays, f"{number}/", spec) for number in numbers)
    return replace(_of_one_size(arrays, "", spec), other_sizes=other_sizes)


def read_background(path: Path, spec: DeploySpec) -> dict[str, np.ndarray]:
    """The rows by input name that explanations hide parts of a row behind: the background in the file, or the sample rows without one.

    Raises:
        InvalidSpec: as `read_samples`.
    """
    arrays = _arrays_in(path, spec)
    side = "background" if any(key.startswith("background/") for key in arrays) else "input"
    return {tensor.name: _sample(arrays, side, tensor, spec) for tensor in spec.inputs}


def _arrays_in(path: Path, spec: DeploySpec) -> dict[str, np.ndarray]:
    try:
        arrays: dict[str, np.ndarray] = read_safetensors(path.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidSpec(f"The samples of {spec.name} cannot be read ({error}). Run the cell again to export it anew.") from error
    return arrays


def _of_one_size(arrays: Mapping[str, np.ndarray], place: str, spec: DeploySpec) -> Samples:
    samples = Samples(
        inputs={tensor.name: _sample(arrays, f"{place}input", tensor, spec) for tensor in spec.inputs},
        outputs={tensor.name: _sample(arrays, f"{place}output", tensor, spec) for tensor in spec.outputs},
    )
    if not samples.inputs or len({len(array) for array in samples.inputs.values()}) != 1 or samples.rows < 1:
        raise InvalidSpec(f"The samples of {spec.name} have no rows, or not equally many. Give typical rows with --sample ARRAY.")
    return samples


def _sample(arrays: Mapping[str, np.ndarray], side: str, tensor: TensorSpec, spec: DeploySpec) -> np.ndarray:
    array = arrays.get(f"{side}/{tensor.name}")
    if array is None or array.ndim == 0:
        raise InvalidSpec(f"The samples of {spec.name} hold no {side} {tensor.name!r}. Run the cell again to export it anew.")
    if tensor.dtype != "string":
        if array.ndim != len(tensor.shape) or any(
            want not in (-1, got) for want, got in zip(tensor.shape[1:], array.shape[1:], strict=True)
        ):
            raise InvalidSpec(
                f"The samples of {spec.name} have the shape {array.shape} for the {side} {tensor.name!r} of shape {tensor.shape}. "
                "Run the cell again to export it anew."
            )
        return array
    padded = [bytes(row) for row in array.reshape(-1, array.shape[-1]).astype(np.uint8)]
    lengths = arrays.get(f"length/{side}/{tensor.name}")
    if lengths is None:  # samples that were stored before lengths were
        texts = [text.rstrip(b"\0") for text in padded]
    elif lengths.shape == array.shape[:-1]:
        texts = [text[:length] for text, length in zip(padded, lengths.ravel().tolist(), strict=True)]
    else:
        raise InvalidSpec(f"The samples of {spec.name} hold other lengths than texts. Run the cell again to export it anew.")
    strings = np.empty(len(texts), dtype=object)
    strings[:] = texts
    return strings.reshape(array.shape[:-1])


def check_parity(engine: Engine, samples: Samples, spec: DeploySpec) -> ParityResult:
    """Replay the samples one row, three rows and all rows at a time, those of each size.

    Raises:
        ProofFailed: with the largest difference.
    """
    results = [_check_one_size(engine, part, spec) for part in (samples, *samples.other_sizes)]
    free = all(tensor.shape and tensor.shape[0] == -1 for tensor in spec.inputs)
    return ParityResult(max(result.largest for result in results), free and all(result.batchable for result in results))


def _check_one_size(engine: Engine, samples: Samples, spec: DeploySpec) -> ParityResult:
    largest, batchable = 0.0, True
    sizes = {name: 0.0 if array.dtype.kind in "OSU" else largest_of(array) for name, array in samples.outputs.items()}
    for rows in dict.fromkeys((1, 3, samples.rows)):
        # Fewer samples than three: a row may come twice, what matters is the size.
        row_numbers = np.arange(rows) % samples.rows
        inputs = {name: np.ascontiguousarray(array[row_numbers]) for name, array in samples.inputs.items()}
        outputs = _run(engine, inputs, spec)
        for name, expected in samples.outputs.items():
            per_row = len(expected) == samples.rows
            batchable = batchable and per_row
            if per_row or rows == samples.rows:
                part, where = expected[row_numbers] if per_row else expected, f"{name}, {rows} rows"
                largest = max(largest, _compare(outputs[name], part, spec, engine, where, largest=sizes[name]))
    return ParityResult(largest, batchable)


def _run(engine: Engine, inputs: Tensors, spec: DeploySpec) -> dict[str, np.ndarray]:
    try:
        return engine.run(inputs)
    except (EngineRefused, EngineLost, EngineTooSlow) as error:
        raise ProofFailed(spec.name, engine.kind, None, f"it did not compute the samples: {error}", spec.origin) from error


def _compare(outputs: np.ndarray, expected: np.ndarray, spec: DeploySpec, engine: Engine, where: str, *, largest: float) -> float:
    """The largest absolute difference, if it is small enough."""
    if outputs.shape != expected.shape:
        raise ProofFailed(spec.name, engine.kind, None, f"output {where}: shape {outputs.shape} instead of {expected.shape}", spec.origin)
    if outputs.dtype.kind in "OSU" or expected.dtype.kind in "OSU":
        same = [_bytes(value) for value in outputs.ravel()] == [_bytes(value) for value in expected.ravel()]
        if not same:
            raise ProofFailed(spec.name, engine.kind, None, f"output {where}: other texts", spec.origin)
        return 0.0
    agreement = compare(outputs, expected, spec.precision, largest=largest)
    if not agreement:
        by = agreement.largest if np.isfinite(agreement.largest) else None
        raise ProofFailed(spec.name, engine.kind, by, f"output {where}, row {agreement.row}", spec.origin)
    return agreement.largest


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
