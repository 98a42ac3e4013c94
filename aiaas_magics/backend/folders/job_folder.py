"""Job folder: what workers and server keep of a job, over all its attempts.

Owns the names in it. A pool's workers find and leave everything there; what an attempt needs besides is the pool's own business.

    files/           rank 0's working directory: what callbacks write
    opened.jsonl     how they opened it: see `workers.opened_files`
    figures/         pictures that the code showed
    checkpoints/     see `checkpoint_folder`
    explained/       rows that were explained: see `explained_folder`
    feed/<name>/     batches that a kernel sends: see `feed_folder`
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aiaas_magics.backend.folders.feed_folder import FeedFolder
from aiaas_magics.backend.folders.small_files import NotPlainFile


@dataclass(frozen=True, slots=True)
class JobFolder:
    path: Path

    @property
    def files(self) -> Path:
        return self.path / "files"

    @property
    def opened(self) -> Path:
        return self.path / "opened.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def explained(self) -> Path:
        return self.path / "explained"

    @property
    def feeds(self) -> Path:
        return self.path / "feed"

    def feed(self, name: str) -> FeedFolder:
        return FeedFolder(self.feeds / name)

    def figure(self, attempt: int, number: int) -> Path:
        return self.figures / f"{attempt}-{number}.png"


def refuse_link(folder: Path) -> None:
    """A job's code can put a link in the place of a folder, and so to whatever this account may read.

    Raises:
        NotPlainFile: it did.
    """
    if folder.is_symlink():
        raise NotPlainFile("is a link")
