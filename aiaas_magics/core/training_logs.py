"""Training logs: losses and metrics by name, in the form in which they travel.

Owns the form only, which JSON can carry; the events that hold them are `spec`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

# JSON has no word for NaN and the infinities, and a loss may be one of them: they travel as text.
Logs = dict[str, float | str]


def logs_of(values: Mapping[str, object]) -> Logs:
    """`values` as they may travel; what is not a number (a user's string, an array) is left out."""
    logs: Logs = {}
    for name, value in values.items():
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        logs[name] = number if math.isfinite(number) else str(number)
    return logs


def numbers(logs: Logs) -> dict[str, float]:
    """`logs` as they were before `logs_of`."""
    return {name: float(value) for name, value in logs.items()}
