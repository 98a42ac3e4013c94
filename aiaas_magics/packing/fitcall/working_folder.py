"""Working folder of callbacks: the folders beside the notebook, and the files that callbacks append to.

Owns finding both in the kernel. A worker runs in an empty folder of its own, and what is written there comes back by name.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

MOST_FOLDERS: Final = 200  # guess: more are no place that a notebook writes to, and looking must take no time


def folders(beside: Path, *, payload: bytes) -> tuple[str, ...]:
    """Relative names of the folders below `beside` that a packed fit call may write to, the nearest first; neither hidden ones nor links.

    Those whose first part stands in the payload, which has the callbacks' texts and the constants of their code: what else lies
    beside a notebook is nobody's business.
    """
    return tuple(name for name in _below(beside) if name.partition("/")[0].encode(errors="surrogateescape") in payload)


def _below(beside: Path) -> tuple[str, ...]:
    folders_below: list[str] = []
    queue = deque([beside])
    while queue and len(folders_below) < MOST_FOLDERS:
        try:
            with os.scandir(queue.popleft()) as entries:
                inner = sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] not in "._")
        except OSError:  # not ours to read, or gone meanwhile
            continue
        queue.extend(inner)
        folders_below += [path.relative_to(beside).as_posix() for path in inner]
    return tuple(folders_below[:MOST_FOLDERS])


def appended(callbacks: Sequence[Any]) -> frozenset[str]:
    """Relative names of files that callbacks write on to instead of anew."""
    import keras

    logs = (callback.filename for callback in callbacks if isinstance(callback, keras.callbacks.CSVLogger) and callback.append)
    return frozenset(Path(name).as_posix() for name in logs if not os.path.isabs(name))
