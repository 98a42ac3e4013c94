"""Explanation run: one rank of one attempt, from the unpacked explain call to the attributions of its rows.

Owns the order of things: take a block of rows that nobody has, explain it, keep it, say how far this rank is; rank 0 joins all blocks.
How a row is explained belongs to `explain`, the files to `explained_folder`. Ranks exchange nothing: each row is explained by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.backend.folders.explained_folder import ExplainedFolder, RowBlocks
from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.backend.training.event_channel import EventChannel
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.errors import AiaasBug, DataMismatch
from aiaas_magics.core.events import Compiled, Phase, PhaseEntered, RowsExplained
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.explain.attribution_bytes import ExplainResult, read_explain_result, write_explain_result
from aiaas_magics.explain.attributions import Arrays, Attributions, OnProgress, join_attributions
from aiaas_magics.explain.black_box import black_box_attributions
from aiaas_magics.explain.faithfulness import measure_faithfulness
from aiaas_magics.explain.gradient import GradientExplainer
from aiaas_magics.explain.model_predict import predict_of

COMPILING_ROWS: Final = (1, 2)  # of batches: the second other number of rows compiles what takes any
TELL_S: Final = 0.25  # a view is redrawn at most four times a second
LOOK_S: Final = 0.02
SILENT_S: Final = 3600.0  # guess: no block takes longer; a rank that is lost ends the attempt long before


def explain_rows(command: WorkerCommand, call: Unpacked, channel: EventChannel) -> None:
    """Explain blocks of rows until there is none that nobody has.

    Raises:
        DataMismatch: the model does not take the rows, or the method cannot explain it.
    """
    blocks, folder = blocks_of(call), folder_of(command)
    inputs, background = arrays_of(call, "rows"), background_of(call)
    settings = settings_of(command)
    if command.rank == 0:
        channel.send(PhaseEntered(phase=Phase.COMPILING))
    before = sum(len(range(blocks.rows)[blocks.slice_of(number)]) for number in blocks.numbers if folder.has(number))
    explain = explainer_of(call.model, settings, inputs, background, channel)
    if command.rank == 0:
        channel.send(PhaseEntered(phase=Phase.EXPLAINING))
    progress = RankProgress(channel, rows=blocks.rows, rows_before=before)
    for number in folder.claims(blocks, attempt=command.attempt):
        rows = [array[blocks.slice_of(number)] for array in inputs]
        done = explain(rows, progress.within_block)
        folder.keep(number, write_explain_result(ExplainResult(attributions=done)))
        progress.block_done(done)
    progress.tell()


def explainer_of(
    model: Any, settings: ExplainSettings, inputs: list[np.ndarray], background: list[np.ndarray] | None, channel: EventChannel
) -> Callable[[Arrays, OnProgress], Attributions]:
    """Explains rows of `model`, block after block. What predicts is compiled before the first, and says how long that took."""
    match settings.method_info.family:
        case "gradient":
            return GradientExplainer(model, background, settings).explain
        case "black_box":
            predict = predict_of(model, settings.output)
            began_s = time.monotonic()
            for rows in COMPILING_ROWS:
                predict([np.repeat(array[:1], rows, axis=0) for array in inputs])
            channel.send(Compiled(seconds=time.monotonic() - began_s))
            return lambda rows, on_progress: black_box_attributions(predict, rows, background, settings, on_progress)
        case _:
            from aiaas_magics.explain.shap_adapter import shap_attributions

            return lambda rows, on_progress: shap_attributions(model, rows, background, settings, on_progress)


def settings_of(command: WorkerCommand) -> ExplainSettings:
    if command.explain is None:
        raise AiaasBug(f"job {command.job} has nothing to explain")
    return command.explain


def blocks_of(call: Unpacked) -> RowBlocks:
    return RowBlocks(rows=len(arrays_of(call, "rows")[0]), size=int(call.arguments["block_rows"]))


def folder_of(command: WorkerCommand) -> ExplainedFolder:
    return ExplainedFolder(JobFolder(Path(command.job_dir)).explained).made()


def arrays_of(call: Unpacked, name: str) -> list[np.ndarray]:
    """One array per input of the model."""
    return list(call.arguments[name])


def background_of(call: Unpacked) -> list[np.ndarray] | None:
    return None if call.arguments["background"] is None else arrays_of(call, "background")


class RankProgress:
    """How far one rank is; it says so at most four times per second."""

    def __init__(self, channel: EventChannel, *, rows: int, rows_before: int) -> None:
        self._channel, self._of, self._before = channel, rows, rows_before
        self._began_s, self._told_s = time.monotonic(), 0.0
        self._rows = self._in_block = self._evaluations = 0
        self._seconds = 0.0

    def within_block(self, explained: int, _rows: int) -> None:
        """As `attributions.OnProgress`."""
        self._in_block = explained
        if time.monotonic() - self._told_s >= TELL_S:
            self.tell()

    def block_done(self, done: Attributions) -> None:
        self._rows, self._in_block = self._rows + done.rows, 0
        self._evaluations += done.evaluations
        self._seconds = time.monotonic() - self._began_s

    def tell(self) -> None:
        now_s = time.monotonic()
        self._told_s = now_s
        self._channel.send(
            RowsExplained(
                rows=self._rows + self._in_block,
                of=self._of,
                seconds=now_s - self._began_s if self._in_block else self._seconds,
                evaluations=self._evaluations,
                rows_before=self._before,
            )
        )


def joined_bytes(command: WorkerCommand, call: Unpacked) -> bytes:
    """The attributions of all rows with their faithfulness, once every rank has kept its blocks. For rank 0.

    A rank that is lost ends the whole attempt from outside, so the wait needs no other end than a long one.

    Raises:
        AiaasBug: nobody kept a block for an hour.
    """
    blocks, folder = blocks_of(call), folder_of(command)
    missing, changed_s = list(blocks.numbers), time.monotonic()
    while missing:
        still_missing = [number for number in missing if not folder.has(number)]
        if len(still_missing) < len(missing):
            missing, changed_s = still_missing, time.monotonic()
        elif time.monotonic() - changed_s > SILENT_S:
            raise AiaasBug(f"block {missing[0]} of {len(blocks.numbers)} was not explained within {SILENT_S:g} s")
        else:
            time.sleep(LOOK_S)
    parts = [read_explain_result(folder.block(number).read_bytes()).attributions for number in blocks.numbers]
    whole = join_attributions(parts)
    if whole.rows != blocks.rows:
        raise DataMismatch(f"{whole.rows} of {blocks.rows} rows were explained. Run the explanation again.")
    inputs = arrays_of(call, "rows")
    settings = settings_of(command)
    faithfulness = measure_faithfulness(predict_of(call.model, settings.output), inputs, background_of(call), whole, settings)
    facts: Mapping[str, Any] = call.arguments["facts"]
    return write_explain_result(ExplainResult(attributions=whole, inputs=tuple(inputs), facts=facts, faithfulness=faithfulness))
