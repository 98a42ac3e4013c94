"""The root of all errors of the project, and the two that stand at it.

Owns the classes and their sentences.
"""

from __future__ import annotations


class AiaasError(Exception):
    """The root: whatever this package raises on purpose."""


class JobCancelled(AiaasError):
    """The job ended because the user asked for it."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job

    def __str__(self) -> str:
        return f"Job {self.job} was cancelled; the model in the kernel is unchanged. Run the cell again to start over."


class AiaasBug(AiaasError):
    """Something that must not happen, with what is needed to find out why."""

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.args))}. This is a bug in aiaas_magics: please report it with this text."
