"""Drift words: an endpoint's drift and its recording in words, for the table and as the figure's text twin.

Owns the sentences and cells; the numbers belong to `core.drift`, the drawing to `drift_figure`.
"""

from __future__ import annotations

import time
from typing import Final

from aiaas_magics.core.drift.drift_values import LARGE, SOME, DriftReport, DriftVerdict, FeatureDrift
from aiaas_magics.plots import text_twins

HEADER: Final = ("feature", "side", "PSI", "by chance", "test", "p", "missing", "verdict")
SHOWN: Final = 20
RECORDED: Final = "Inputs and outputs are kept on the backend, without headers and tokens. endpoint.recorded() fetches them as a DataFrame."
NOT_RECORDED: Final = "Nothing is recorded from now on. What is there stays until its age; %aiaas_record {name} --forget removes it."


def moment(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def drift_title(report: DriftReport) -> str:
    return f"Drift of endpoint {report.endpoint}, version {report.version}"


def drift_line(report: DriftReport) -> str:
    """The result in a sentence.

    >>> drift_line(DriftReport(endpoint="churn", version=1, rows_then=0, rows_now=0))
    'Nothing is recorded of version 1.'
    """
    if not report.rows_now:
        return f"Nothing is recorded of version {report.version}."
    if not report.origin:
        return f"{_rows(report.rows_now)} recorded, and version {report.version} came without a reference."
    if not report.features:
        return f"{_rows(report.rows_now)} recorded, and no column of theirs is in the reference."
    shifted = report.shifted
    if shifted:
        names = ", ".join(f"{feature.name} (PSI {feature.psi:.2f})" for feature in shifted[:3])
        more = f" and {len(shifted) - 3} more" if len(shifted) > 3 else ""
        return f"{len(shifted)} of {len(report.features)} features shifted: {names}{more}."
    if report.verdict is DriftVerdict.TOO_FEW:
        return f"Too few rows to say: chance alone reaches a PSI of {max(feature.noise for feature in report.features):.2f}."
    few = sum(feature.verdict is DriftVerdict.TOO_FEW for feature in report.features)
    return f"No feature has a PSI of {SOME:g} or more." + (f" {few} have too few rows to say." if few else "")


def drift_notes(report: DriftReport) -> list[str]:
    notes = [drift_line(report)]
    if not report.rows_now:
        return [*notes, f"Record some: %aiaas_record {report.endpoint} 1%."]
    if not report.origin:
        return [*notes, f"Give rows to compare with: %aiaas_record {report.endpoint} 1% --reference x_train."]
    notes.append(
        f"{_rows(report.rows_now)} recorded from {moment(report.since_s)} to {moment(report.until_s)}, against {_rows(report.rows_then)} "
        f"of {report.origin}."
    )
    hidden = len(report.features) - SHOWN
    notes += [f"{hidden:,} features with a smaller PSI are not shown; endpoint.drift().to_frame() has them all."] if hidden > 0 else []
    notes.append(
        f"PSI: below {SOME:g} stable, from {LARGE:g} a large shift. By chance: what 99 of 100 samples of this size stay below without "
        f"a shift. p is for one feature alone: with {len(report.features)}, look below {0.01 / max(1, len(report.features)):.2g}."
    )
    return notes


def drift_rows(report: DriftReport) -> list[tuple[str, ...]]:
    """The cells of the features with the largest PSI, under `HEADER`."""
    return [_row(feature) for feature in report.features[:SHOWN]]


def _row(feature: FeatureDrift) -> tuple[str, ...]:
    missing = "" if not (feature.missing_then or feature.missing_now) else f"{feature.missing_then:.1%} → {feature.missing_now:.1%}"
    return (
        feature.name,
        feature.side,
        f"{feature.psi:.3f}",
        f"{feature.noise:.3f}",
        f"{'KS' if feature.test == 'KS' else 'χ²'} {feature.statistic:.3g}",
        f"{feature.p:.2g}" if feature.p >= 1e-4 else "< 0.0001",
        missing,
        str(feature.verdict),
    )


def drift_text(report: DriftReport) -> str:
    """`drift_figure` in words."""
    rows = drift_rows(report)
    parts = [drift_title(report), *([text_twins.table(HEADER, rows)] if rows else [])]
    if report.features:
        worst = report.features[0]
        shares = ", ".join(f"{name} {then:.0%} → {now:.0%}" for name, then, now in zip(worst.bins, worst.then, worst.now, strict=True))
        parts.append(f"{worst.name}, then and now: {shares}")
    return "\n".join((*parts, *drift_notes(report)))


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
