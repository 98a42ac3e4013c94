"""What cannot be exact on several workers, said before the run.

Owns the sentences. The mathematics itself belongs to the training side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def announcements(model: Any, arguments: Mapping[str, Any], workers: int) -> tuple[str, ...]:
    """One sentence for each part of this fit that differs from training on one worker."""
    return ()
