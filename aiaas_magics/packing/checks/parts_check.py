"""Parts check: whether the parts of a batch compute what the batch computes, tried in the kernel on its first rows.

Owns running the model's own step on the batch and on its parts, leaving everything as it was, and the sentences about
what differs. Which models need it is `row_rules`, the arithmetic `parts_numbers`; corrections of stock losses are
those of the workers (`reductions`).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from aiaas_magics.packing.checks import parts_numbers, portability, row_rules
from aiaas_magics.packing.checks.parts_numbers import BatchPart, Differences, Effects
from aiaas_magics.packing.checks.reference_answers import HALF_TOLERANCE, TOLERANCE
from aiaas_magics.packing.data import batch_shapes, batch_sources, fit_data
from aiaas_magics.packing.live import model_state, probing
from aiaas_magics.packing.live.model_variables import tensorflow_variable

ROWS: Final = 64  # guess: enough for parts with several rows each
WORK: Final = 1e10  # multiplications of all passes: about a second at 10 to 20 billion a second and core (guess)
PASSES: Final = 3 * 3  # the whole, its parts, the whole once more; a backward pass is about two forward
NOISE: Final = 3.0  # guess: a difference of other random numbers is of the size of another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a batch falls into parts."""

    workers: int
    parts: int
    strategy: str

    def __str__(self) -> str:
        if self.workers == 1:
            return f"in {self.parts} parts"
        kind = "devices" if self.strategy == "mirrored" else "workers"
        return f"on {self.workers} {kind}" + (f" with {self.parts} parts each" if self.parts > 1 else "")


def notes(model: Any, arguments: Mapping[str, Any], cut: Cut) -> tuple[str, ...]:
    """One sentence for each thing that differs between a batch and its parts; none, and no work, where rules say that nothing does."""
    if cut.workers * cut.parts == 1 or arguments.get("x") is None:
        return ()
    losses = row_rules.unproved_losses(_losses(model))
    own = row_rules.unproved_layers(model)
    if not losses and not own and not row_rules.has_unproved_operations(model):
        return ()
    subject = _subject(model, losses, own)
    if isinstance(arguments["x"], batch_sources.BatchSource):
        return (f"{subject} was not compared on a batch's parts, since x yields batches: exact where no row depends on another.",)
    rows = _affordable_rows(model, arguments)
    if rows < cut.workers * cut.parts:
        enough = min(batch_shapes.shape_rows(arguments), batch_shapes.training_rows(arguments)) >= cut.workers * cut.parts
        return (f"{subject} was not compared on a batch's parts, for its size: exact where no row depends on another.",) if enough else ()
    if not all(layer.built for layer in model._flatten_layers(include_self=True)):
        return (f"{subject} was not compared on a batch's parts, since the model is not built: exact where no row depends on another.",)
    try:
        trial = _Trial(model, arguments, rows, [*own, *([model] if model not in own else [])])
        differences = trial.differences(cut)
    except Exception as error:  # noqa: BLE001 - border: the user's own code runs, and may raise anything
        why = type(error).__name__
        return (f"{subject} could not be compared on a batch's parts ({why}): exact where no row depends on another.",)
    return tuple(_sentences(model, arguments, cut, losses, trial, differences))


def _losses(model: Any) -> list[Any]:
    from keras import tree

    return [leaf for leaf in tree.flatten(getattr(model, "loss", None)) if leaf is not None]


def _subject(model: Any, losses: Sequence[str], own: Sequence[Any]) -> str:
    if losses:
        return f"The loss {' and '.join(losses[:3])}"
    names = [str(layer.name) for layer in own if layer is not model]
    return f"The layer {', '.join(names[:3])}" if names else f"The model {model.name}"


def _affordable_rows(model: Any, arguments: Mapping[str, Any]) -> int:
    """Rows of the first batch that a trial of this model takes about a second for."""
    leaves = [array for _, array in fit_data.leaves(arguments["x"], "x")]
    places = max((math.prod(array.shape[1:-1]) for array in leaves), default=1)
    a_row = 0
    for layer in model._flatten_layers(include_self=True):
        shape = probing.attribute(probing.attribute(layer, "output"), "shape")
        inside = [n or 1 for n in shape[1:-1]] if isinstance(shape, tuple) and len(shape) > 2 else None
        factor = (places if inside is None and layer is not model else 1) if inside is None else math.prod(inside)
        a_row += factor * sum(math.prod(variable.shape) for variable in layer._trainable_variables)
    affordable = int(WORK / (PASSES * max(1, a_row)))
    return min(ROWS, affordable, batch_shapes.shape_rows(arguments), batch_shapes.training_rows(arguments))


# --------------------------------------------------------------------------- running


@dataclass(slots=True)
class _Record:
    """What a step did, while it runs."""

    share: float = 1.0
    outputs: list[tuple[str, Any]] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    gradients: list[Any] = field(default_factory=list)
    denominators: list[float] = field(default_factory=list)  # in the order in which losses are reduced
    totals: list[float] | None = None  # those of the whole batch


class _Trial:
    """Steps of a model on rows of its data. Between and after them it is as before."""

    def __init__(self, model: Any, arguments: Mapping[str, Any], rows: int, watched: Sequence[Any]) -> None:
        self._model, self._rows = model, rows
        self._watched = watched
        self._batch = _first_rows(arguments, rows)
        halves = any(getattr(layer, "compute_dtype", "") in ("float16", "bfloat16") for layer in model._flatten_layers())
        self._tolerance = HALF_TOLERANCE if halves else TOLERANCE
        self._record = _Record()
        self._thread = threading.get_ident()
        self.names: tuple[str, ...] = ()  # of the variables of `Differences.state`
        self.averaged: tuple[bool, ...] = ()

    def differences(self, cut: Cut) -> Differences:
        with _restored(self._model) as snapshot, self._hooked():
            self._variables = self._state_variables(snapshot)
            whole = self._step(np.arange(self._rows), _Record())
            totals, after = list(self._record.denominators), snapshot.seeds()
            parts: list[tuple[BatchPart, Effects]] = []
            for part in parts_numbers.deal(self._rows, cut.workers, cut.parts):
                if not parts or parts[-1][0].rank != part.rank:
                    snapshot.put_back()
                parts.append((part, self._step(part.positions, _Record(share=len(part.positions) / self._rows, totals=totals))))
            differences = self._compare(whole, parts)
            if not differences:
                return differences
            snapshot.put_back()
            snapshot.go_on(after)
            again = self._step(np.arange(self._rows), _Record())
        # The same rows with other random numbers: what they explain is announced elsewhere.
        noise = self._compare(whole, [(BatchPart(0, np.arange(self._rows)), again)])
        return differences.without(noise, NOISE)

    def _compare(self, whole: Effects, parts: Sequence[tuple[BatchPart, Effects]]) -> Differences:
        sizes = sum(len(part.positions) / self._rows * parts_numbers.gradient_norm(effects) for part, effects in parts)
        together = parts_numbers.combined(parts, self.averaged)
        return parts_numbers.compare(whole, together, sizes=sizes, tolerance=self._tolerance)

    def _state_variables(self, snapshot: _Snapshot) -> list[Any]:
        pairs = snapshot.state()
        self.names = tuple(path for path, _ in pairs)
        float_of_keras = {id(tensorflow_variable(v)) for v in self._model.non_trainable_variables if "float" in str(v.dtype)}
        self.averaged = tuple(id(variable) in float_of_keras for _, variable in pairs)
        return [variable for _, variable in pairs]

    def _step(self, positions: Any, record: _Record) -> Effects:
        """One step of the model on these rows, of which the optimizer makes nothing."""
        import keras
        import tensorflow as tf

        self._record = record
        x, y, weight = (
            keras.tree.map_structure(lambda leaf: tf.gather(leaf, positions), part, none_is_leaf=False) if part is not None else None
            for part in self._batch
        )
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model.train_step(keras.utils.pack_x_y_sample_weight(x, y, weight))
        return Effects(
            outputs=tuple((name, _flat(value)) for name, value in record.outputs if _rows_of(value) == len(positions)),
            loss=float(sum(float(np.sum(_flat(loss))) for loss in record.losses)) if record.losses else None,
            gradients=tuple(None if grad is None else _flat(tf.convert_to_tensor(grad)) for grad in record.gradients),
            state=tuple(np.asarray(variable.numpy()).astype(np.float64) for variable in self._variables),
        )

    # ------------------------------------------------------------------ hooks

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        from aiaas_magics.core.internals.keras_internals import loss_module

        model, stack = self._model, contextlib.ExitStack()
        with stack:
            for layer in model._flatten_layers(include_self=True):
                frozen = _is_frozen(layer)
                if frozen or any(layer is watched for watched in self._watched):
                    stack.enter_context(_replaced(layer, "call", self._call(layer, layer.call, frozen=frozen)))
            stack.enter_context(_replaced(model, "compute_loss", self._loss(model.compute_loss)))
            if row_rules.is_stock(type(model).compute_metrics):
                stack.enter_context(_replaced(model, "compute_metrics", lambda *args, **more: {}))
            for cls in _optimizers():
                stack.enter_context(_replaced(cls, "apply", self._apply(cls.__dict__["apply"])))
            stack.enter_context(_replaced(loss_module, "reduce_weighted_values", self._reduce(loss_module.reduce_weighted_values)))
            yield

    def _call(self, layer: Any, stock: Callable[..., Any], *, frozen: bool) -> Callable[..., Any]:
        import keras

        def call(*args: Any, **more: Any) -> Any:
            outputs = stock(*args, **{**more, "training": False} if frozen else more)
            if not frozen:
                self._record.outputs += [(str(layer.name), leaf) for leaf in keras.tree.flatten(outputs)]
            return outputs

        return call

    def _loss(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        def compute_loss(*args: Any, **more: Any) -> Any:
            loss = stock(*args, **more)
            self._record.losses.append(loss)
            return loss

        return compute_loss

    def _apply(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """The optimizer's `apply` of this thread takes down the gradients, and changes nothing."""

        def apply(optimizer: Any, grads: Any, trainable_variables: Any = None) -> Any:
            if threading.get_ident() != self._thread:
                return stock(optimizer, grads, trainable_variables)
            self._record.gradients += list(grads)
            return None

        return apply

    def _reduce(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """Keras' reduction with the correction that workers make: the sum of `share * loss` over parts is the batch's loss."""

        def reduce_weighted_values(
            values: Any, sample_weight: Any = None, mask: Any = None, reduction: Any = "sum_over_batch_size", dtype: Any = None
        ) -> Any:
            loss = stock(values, sample_weight=sample_weight, mask=mask, reduction=reduction, dtype=dtype)
            if threading.get_ident() != self._thread or len(values.shape) == 0:
                return loss
            record = self._record
            if reduction in (None, "none", "sum"):
                return loss / record.share
            denominator = _denominator(sample_weight, mask, reduction)
            if denominator is None:
                return loss
            record.denominators.append(denominator)
            if record.totals is None or len(record.totals) < len(record.denominators):
                return loss
            total = record.totals[len(record.denominators) - 1] * record.share
            return loss * (denominator / total if total else 0.0)

        return reduce_weighted_values


def _denominator(sample_weight: Any, mask: Any, reduction: str) -> float | None:
    """What a loss is divided by, where it is not the number of rows."""
    from aiaas_magics.core.internals.keras_internals import loss_module

    if reduction == "mean_with_sample_weight":
        if sample_weight is None and mask is None:
            return None
        return float(np.sum(np.asarray(loss_module.apply_mask(sample_weight, mask, dtype="float32", reduction=reduction))))
    return None if mask is None else float(np.sum(np.asarray(mask).astype(np.float64)))


def _first_rows(arguments: Mapping[str, Any], rows: int) -> tuple[Any, Any, Any]:
    import keras
    import tensorflow as tf

    from aiaas_magics.core.internals.keras_internals import data_adapter_utils

    def cut(array: np.ndarray) -> np.ndarray:
        first = np.array(array[:rows])
        return first.astype(keras.config.floatx()) if first.dtype.kind == "f" else first

    x, y, weight = (fit_data.map_leaves(cut, arguments.get(part)) for part in fit_data.PARTS)
    if arguments.get("class_weight") is not None:
        weight = data_adapter_utils.class_weight_to_sample_weights(y, arguments["class_weight"])
    tensors = fit_data.with_texts_as_tensors({"x": x, "y": y, "sample_weight": weight})
    parts = (
        keras.tree.map_structure(tf.convert_to_tensor, tensors[part]) if tensors[part] is not None else None for part in fit_data.PARTS
    )
    x, y, weight = parts
    return x, y, weight


def _is_frozen(layer: Any) -> bool:
    """Stock layers that draw or normalize by the batch run as in `predict`: announcements of their own speak of them."""
    import keras

    if isinstance(layer, keras.Model) or not row_rules.is_stock(type(layer)) or "training" not in inspect.signature(layer.call).parameters:
        return False
    inner = list(layer._flatten_layers(include_self=True))
    if not all(row_rules.is_stock(type(part)) for part in inner):
        return False
    return any(isinstance(part, keras.layers.BatchNormalization) or part._seed_generators for part in inner)


def _optimizers() -> list[Any]:
    """Every class of optimizers that defines `apply`."""
    from aiaas_magics.core.internals.keras_internals import BaseOptimizer

    def below(cls: Any) -> Iterator[Any]:
        yield cls
        for child in cls.__subclasses__():
            yield from below(child)

    return [cls for cls in dict.fromkeys(below(BaseOptimizer)) if "apply" in cls.__dict__]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside; an instance is set past its own `__setattr__`, since Keras tracks what it is given."""
    plain = not hasattr(type(owner), "__mro__") or isinstance(owner, type) or inspect.ismodule(owner)
    missing = name not in vars(owner)
    before = vars(owner).get(name)
    put, drop = (setattr, delattr) if plain else (object.__setattr__, object.__delattr__)
    put(owner, name, value)
    try:
        yield
    finally:
        if missing:
            drop(owner, name)
        else:
            put(owner, name, before)


# --------------------------------------------------------------------------- everything as before


class _Snapshot:
    """A model's state beside weights, metrics and optimizer: whatever a step could assign."""

    def __init__(self, model: Any, state: model_state.ModelState) -> None:
        metrics = [variable for metric in model.metrics for variable in metric.variables]
        optimizers = [value for value in (model.optimizer, *vars(model).values()) if hasattr(value, "apply_gradients")]
        self._state, counted = state, {id(tensorflow_variable(v)) for v in metrics}
        further = [*model.variables, *metrics, *(variable for optimizer in optimizers for variable in optimizer.variables)]
        variables = {id(variable): variable for variable in map(tensorflow_variable, further)}
        self._values = [(variable, np.array(variable.numpy())) for variable in variables.values()]
        seeds = {id(tensorflow_variable(generator.state)) for generator in model_state.seed_generators(model)}
        self._seeds = [variable for _, variable in state.variables() if id(variable) in seeds]
        trained = [(str(variable.path), tensorflow_variable(variable)) for variable in model.trainable_variables]
        of_steps = [] if row_rules.is_stock(type(model).train_step) else trained
        self._pairs = [
            (path, variable)
            for path, variable in (*state.variables(), *of_steps)
            if id(variable) not in seeds | counted and variable.dtype.name != "string"
        ]

    def state(self) -> list[tuple[str, Any]]:
        """What a step may leave behind for the next one, by name."""
        return self._pairs

    def seeds(self) -> list[np.ndarray]:
        return [np.array(variable.numpy()) for variable in self._seeds]

    def go_on(self, seeds: Sequence[np.ndarray]) -> None:
        for variable, value in zip(self._seeds, seeds, strict=True):
            variable.assign(value)

    def put_back(self) -> None:
        self._state.put_back()
        for variable, value in self._values:
            variable.assign(value)


@contextlib.contextmanager
def _restored(model: Any) -> Iterator[_Snapshot]:
    """Every variable in reach, plain attributes, and the random numbers of Python, numpy, Keras and TensorFlow are as before."""
    from aiaas_magics.core.internals.keras_internals import GLOBAL_SEED_GENERATOR, global_state
    from aiaas_magics.core.internals.tensorflow_internals import context

    general = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    eager = context.context()
    random_state = probing.ask(lambda: eager._rng.getstate(), None)
    with model_state.restored_after(model) as state:
        snapshot = _Snapshot(model, state)
        losses = {layer: list(layer._losses) for layer in model._flatten_layers(include_self=True)}
        try:
            yield snapshot
        finally:
            snapshot.put_back()
            for layer, added in losses.items():
                layer._losses[:] = added
            global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, general)
            if random_state is not None and eager._rng.getstate() != random_state:
                eager._rng.setstate(random_state)
                eager.clear_kernel_cache()  # an operation of a seed that was drawn here would go on with its numbers


def _flat(value: Any) -> np.ndarray:
    return np.asarray(value).astype(np.float64)


def _rows_of(value: Any) -> int | None:
    shape = probing.attribute(value, "shape")
    dtype = str(probing.attribute(probing.attribute(value, "dtype"), "name", ""))
    return int(shape[0]) if shape is not None and len(shape) and ("float" in dtype or "int" in dtype) else None


# --------------------------------------------------------------------------- the sentences


def _sentences(
    model: Any, arguments: Mapping[str, Any], cut: Cut, losses: Sequence[str], trial: _Trial, differences: Differences
) -> Iterator[str]:
    if differences.outputs or differences.gradient or differences.loss:
        subject, remedy = _joining(model, losses, differences)
        yield f"{subject} the rows of a batch: {cut} {_measured(differences)}. {_moves(model, arguments, cut, remedy)}"
    sizes = {name: (size, mean) for name, size, mean in zip(trial.names, differences.state, trial.averaged, strict=True) if size}
    if sizes:
        name, (size, mean) = max(sizes.items(), key=lambda item: item[1][0])
        more = f" (and {len(sizes) - 1} more)" if len(sizes) > 1 else ""
        fate = "its values are averaged over workers" if mean else "each worker has its own, and worker 0's comes back"
        fate_text = f"; {fate}" if cut.workers > 1 and cut.strategy != "mirrored" else ""
        yield (
            f"The variable {name}{more} keeps what the rows of a batch leave in it: {cut} it differs by {size:.2g} of its norm after one "
            f"batch{fate_text}. {_moves(model, arguments, cut)}"
        )


def _joining(model: Any, losses: Sequence[str], differences: Differences) -> tuple[str, str]:
    if differences.layer:
        where = f"The call of {type(model).__name__}" if differences.layer == model.name else f"The layer {differences.layer}"
        return f"{where} joins", "a layer that computes each row by itself"
    if losses:
        return f"The loss {' or '.join(losses[:3])} joins", "a loss per row"
    return f"A loss of {type(model).__name__} joins", "a loss per row"


def _measured(differences: Differences) -> str:
    if differences.gradient:
        return f"a batch's gradient differs by {differences.gradient:.2g} of its norm"
    if differences.outputs:
        return f"its outputs differ by {differences.outputs:.2g} of their norm"
    return f"the loss that is shown differs by {differences.loss:.2g} of its size"


def _moves(model: Any, arguments: Mapping[str, Any], cut: Cut, remedy: str = "") -> str:
    """What makes it exact: JAX only where it can train this model, as far as its own code tells."""
    if cut.workers == 1:
        return "Leave --accumulate out" + (f", or use {remedy}." if remedy else ".")
    parts = [part for part in (*model._flatten_layers(include_self=True), *_losses(model)) if not isinstance(part, str)]
    code = [part if inspect.isfunction(part) else type(part) for part in parts]
    why_not_jax = portability.why_not(model, arguments, [part for part in code if not row_rules.is_stock(part)])
    moves = ["--strategy spmd (exact there)"] if cut.parts == 1 and why_not_jax is None else []
    moves += ["-n 1" if cut.parts == 1 else "-n 1 without --accumulate", *([remedy] if remedy else [])]
    return f"Use {', '.join(moves[:-1])}{', or ' if len(moves) > 2 else ' or ' if len(moves) == 2 else ''}{moves[-1]}."
