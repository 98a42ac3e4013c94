"""Black-box attributions: for anything that predicts. numpy only, so that it runs in the inference process too.

Owns which rows are predicted, in batches, and what their outputs say. It calls no model: `black_box_requests` yields batches and is sent
their outputs, so that its caller bounds, interleaves and cancels. `black_box_attributions` is the plain loop around it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

import numpy as np

from aiaas_magics.core.errors import DataMismatch, InvalidSpec
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.explain import coalitions, players, row_plans
from aiaas_magics.explain.attributions import Arrays, Attributions, OnProgress, Predict, bytes_per_row, no_progress
from aiaas_magics.explain.players import Game
from aiaas_magics.explain.prediction_batches import PredictBatch, PredictionBatches

T = TypeVar("T")
Requests = Generator[PredictBatch, np.ndarray, Attributions]


def black_box_attributions(
    predict: Predict,
    inputs: Arrays,
    background: Arrays | None,
    settings: ExplainSettings,
    on_progress: OnProgress = no_progress,
    *,
    labels: np.ndarray | None = None,
) -> Attributions:
    """What the parts of each row contribute to its output, from predictions alone.

    A row's attributions do not depend on the other rows of the call, to float rounding of the predictions: n workers give what one gives.

    Args:
        predict: takes a list of arrays, one per input, and returns the output to explain, of shape (rows, ...).
        inputs: rows to explain, one array of shape (rows, *input shape) per input.
        background: rows that hidden parts take their values from, same shapes. Text inputs need none: hidden words are left out.
        settings: the method and its bounds.
        on_progress: called after each batch; what it raises ends the explanation.
        labels: true outputs (rows,), for `permutation` only: importance is then the growth of the loss instead of the change of the output.

    Raises:
        DataMismatch: rows, background and labels that do not fit together.
        InvalidSpec: a method of another family, or a target that the output does not have.
    """
    requests = black_box_requests(inputs, background, settings, labels=labels)
    attributions = answered(requests, predict, on_progress)
    on_progress(attributions.rows, attributions.rows)
    return attributions


def answered(requests: Generator[PredictBatch, np.ndarray, T], predict: Predict, on_progress: OnProgress = no_progress) -> T:
    """The result of a generator of batches whose outputs `predict` gives."""
    try:
        batch = next(requests)
        while True:
            outputs = predict(batch.inputs)
            on_progress(batch.explained, batch.rows)
            batch = requests.send(outputs)
    except StopIteration as end:
        result: T = end.value
        return result


def planned_evaluations(inputs: Arrays, background: Arrays | None, settings: ExplainSettings) -> int:
    """Most rows that `black_box_attributions` will predict, known before it starts; a bound for whoever must refuse."""
    rows = len(inputs[0])
    stand_ins = _stand_ins(inputs, background, settings)
    fills = len(stand_ins[0]) if stand_ins else 1
    numeric = players.players_of(inputs, patch=settings.patch).count
    total = 0
    for row in range(rows):
        count = numeric + sum(len(players.words_of(np.asarray(array[row]).item())) for array in inputs if players.is_text(array))
        total += row_plans.coalition_count(count, settings) * fills
    return rows + fills + total


def black_box_requests(
    inputs: Arrays, background: Arrays | None, settings: ExplainSettings, *, labels: np.ndarray | None = None
) -> Requests:
    """The batches of `black_box_attributions`: yields each, is sent its outputs, and returns the attributions.

    Closing the generator between two batches cancels the explanation and leaves nothing behind.
    """
    info = settings.method_info
    if info.family != "black_box":
        raise InvalidSpec(
            f"{info.title} needs the model itself. Use method='kernel_shap' or 'occlusion' where only predictions are to be had."
        )
    inputs = [np.asarray(array) for array in inputs]
    check_rows(inputs)
    stand_ins = _stand_ins(inputs, background, settings)
    games = players.games_of(players.players_of(inputs, patch=settings.patch), inputs, stand_ins)
    batches = PredictionBatches(len(games), settings.rows_per_batch(bytes_per_row(inputs)))
    outputs = yield from batches.predicted(inputs)
    targets = targets_of(outputs, settings.target, labels)
    explained = outputs[np.arange(len(games)), targets]
    bases = np.full(len(games), np.nan)
    if info.completes:  # everything hidden is the same for all rows
        hidden = yield from batches.predicted(games[0].masked(np.zeros((1, len(games[0].active)), dtype=bool), slice(None)))
        bases = hidden.mean(axis=0)[targets]
    labels_by_row = row_plans.labels_of(labels, explained, columns=outputs.shape[1])
    plans = (
        row_plans.plan_row(
            game, settings, target=int(targets[row]), base=float(bases[row]), output=float(explained[row]), label=labels_by_row[row]
        )
        for row, game in enumerate(games)
    )
    contributions = yield from batches.solved(plans)
    rows = [game.contributions(active) for game, active in zip(games, contributions, strict=True)]
    return Attributions(
        method=info.name,
        values=tuple(players.padded(parts) for parts in zip(*(values for values, _ in rows), strict=True)),
        base=bases.astype(np.float32),
        outputs=explained.astype(np.float32),
        targets=targets,
        evaluations=batches.evaluations,
        columns=outputs.shape[1],
        tokens=tuple(words for _, words in rows) if any(words is not None for words in games[0].words) else (),
        notes=_notes(games, settings),
    )


def _stand_ins(inputs: Arrays, background: Arrays | None, settings: ExplainSettings) -> list[np.ndarray] | None:
    """What hidden players take their values from: a sample of the background, or one row for occlusion."""
    if settings.resolved_method == "occlusion":
        if background is not None:
            players.check_background(inputs, background)
        return players.typical_row(background, inputs)
    most = settings.background_rows
    if settings.resolved_method == "permutation":
        most = settings.samples or coalitions.DRAWS
    return players.thinned(background, most)


def check_rows(inputs: Arrays) -> None:
    """Refuse no rows, and inputs of different lengths."""
    if not len(inputs) or not len(inputs[0]):
        raise DataMismatch("There are no rows to explain. Give at least one, as in x_test[:20].")
    if len({len(array) for array in inputs}) > 1:
        raise DataMismatch(f"The inputs have {', '.join(str(len(array)) for array in inputs)} rows. Give each the same number.")


def targets_of(outputs: np.ndarray, target: int | None, labels: np.ndarray | None = None) -> np.ndarray:
    """The column that is explained, int64 (rows,): the target, or with labels of classes the row's own, or else the largest."""
    rows, columns = outputs.shape
    if target is not None and target >= columns:
        raise InvalidSpec(
            f"target={target}: the output has {columns} column{'s' if columns > 1 else ''}. Use a target from 0 to {columns - 1}."
        )
    if labels is not None and len(labels) != rows:
        raise DataMismatch(f"There are {rows} rows and {len(labels)} labels. Give one label per row.")
    if target is not None:
        return np.full(rows, target, dtype=np.int64)
    if labels is not None and columns > 1:
        flat = np.asarray(labels).reshape(rows, -1)
        classes = (flat.argmax(axis=1) if flat.shape[1] > 1 else flat[:, 0]).astype(np.int64)
        if classes.min() < 0 or classes.max() >= columns:
            raise DataMismatch(
                f"Labels go from {classes.min()} to {classes.max()} and the output has {columns} columns. Give classes from 0."
            )
        return np.asarray(classes)
    return np.asarray(outputs.argmax(axis=1), dtype=np.int64)


def _notes(games: Sequence[Game], settings: ExplainSettings) -> tuple[str, ...]:
    if settings.resolved_method != "kernel_shap":
        return ()
    counts = [len(game.active) for game in games]
    samples = [settings.samples or coalitions.default_samples(count) for count in counts]
    if all(count < 31 and 2**count - 2 <= most for count, most in zip(counts, samples, strict=True)):
        return ("Every coalition was evaluated: the Shapley values are exact for this background.",)
    return (f"The Shapley values are estimated from {max(samples):,} coalitions per row.",)
