"""Job files: what an ended job leaves in its folder, and which of that stays.

Owns listing callbacks' files, clearing the folder, and the checkpoints that another job may go on from.
The names in the folder belong to `folders.job_folder`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from aiaas_magics.backend.folders import checkpoint_folder
from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.backend.folders.small_files import NotPlainFile, open_plain
from aiaas_magics.backend.server.storage.state_folder import StateFolder
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.spec import CheckpointView, TensorSpec

KEPT_JOBS: Final = 8  # guess: who wants to go on from a job that ended badly does so soon
FILES_SHOWN: Final = 10_000  # guess: more files than that are no result that a kernel wants back


def files_of(folder: Path) -> tuple[str, ...]:
    """Relative paths of the plain files below `folder`, at most `FILES_SHOWN`.

    Links of either kind are neither listed nor followed, and names that are no text are left out: they cannot travel.
    """
    shown: list[str] = []
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not os.path.islink(os.path.join(root, name)))
        for name in sorted(names):
            path = Path(root, name)
            with contextlib.suppress(OSError, NotPlainFile, UnicodeEncodeError):
                path.relative_to(folder).as_posix().encode()
                open_plain(path).close()
                shown.append(path.relative_to(folder).as_posix())
            if len(shown) == FILES_SHOWN:
                return tuple(shown)
    return tuple(shown)


def clear_job(folder: JobFolder, *, resumable: bool) -> None:
    """Remove what a job that is over needs no more: everything but the files of its callbacks, and its last checkpoint if `resumable`."""
    shutil.rmtree(folder.feeds, ignore_errors=True)
    shutil.rmtree(folder.explained, ignore_errors=True)
    if resumable:
        checkpoint_folder.keep_newest(folder.checkpoints)
    else:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    # Folders that were made for callbacks and got no file: from the innermost out.
    empty = sorted((path for path in folder.files.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
    for path in (*empty, folder.checkpoints, folder.files, folder.path):
        try:
            path.rmdir()
        except OSError:  # there are files in it, or it never was
            continue
    if not folder.files.exists():
        folder.opened.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.path.rmdir()


def kept_checkpoint(state: StateFolder, job: str) -> tuple[TrainingPosition, Path]:
    """The last checkpoint of a job that has ended.

    Raises:
        InvalidSpec: it left none.
    """
    newest = checkpoint_folder.newest_whole(state.job(job).checkpoints)
    if newest is None:
        raise InvalidSpec(
            f"Job {job} left no checkpoint to resume from: it ended before its first one, or {KEPT_JOBS} jobs have failed since. "
            "Leave --resume out to train from the beginning."
        )
    return newest


def checkpoint_view(state: StateFolder, job: str) -> CheckpointView:
    """Raises `InvalidSpec` when the job left none."""
    place, path = kept_checkpoint(state, job)
    try:
        saved_variables = checkpoint_folder.state_in(path)["variables"]
        variables = tuple(msgspec.convert(saved_variables, list[TensorSpec]))
    except (OSError, NotPlainFile, ValueError, TypeError, LookupError, RecursionError, msgspec.ValidationError) as error:
        raise InvalidSpec(f"Could not read the checkpoint of job {job}. Leave --resume out to train from the beginning.") from error
    return CheckpointView(job=job, epoch=place.epoch, step=place.step, variables=variables)


def forget_checkpoints(state: StateFolder, ended: Sequence[str], *, needed: Collection[str]) -> None:
    """Of the jobs that have `ended`, oldest first, only the newest few keep a checkpoint, besides those that are `needed`."""
    having = [job for job in ended if state.job(job).checkpoints.is_dir()]
    for job in having[:-KEPT_JOBS]:
        if job not in needed:
            clear_job(state.job(job), resumable=False)
