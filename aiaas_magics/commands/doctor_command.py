"""Doctor command: `aiaas doctor`.

Owns its options and what is printed. The checks belong to `doctor`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from aiaas_magics.commands.command_base import one_line_errors, state_option
from aiaas_magics.core import host, settings, wire
from aiaas_magics.core.plain_text import visible


@click.command()
@state_option
@click.option("--workers", type=click.IntRange(1, 1024), help="How many workers a job is to have (default: one per core).")
@click.option("--model-mb", type=click.FloatRange(min=0), default=100.0, show_default=True, help="Size of its model's weights in MB.")
@click.option("--extra", multiple=True, metavar="NAME", help="An extra that must be installed; repeatable.")
@click.option("--port", type=click.IntRange(1, 65535), help="A port that `aiaas serve` is to listen on.")
@click.option("--no-imports", is_flag=True, help="Leave out importing TensorFlow and JAX, which takes seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of findings as JSON.")
@one_line_errors
def doctor(
    state: Path | None, workers: int | None, model_mb: float, extra: tuple[str, ...], port: int | None, no_imports: bool, as_json: bool
) -> None:
    """Check this machine, and say how to fix what would break a job. Ends with 1 if something would.

    With AIAAS_BACKEND set to an address, its clock and certificate too.
    """
    from aiaas_magics.client import local_server
    from aiaas_magics.doctor.examination import Question, examine
    from aiaas_magics.doctor.finding import as_text, would_break_a_job

    folder = state or settings.local_state()
    remote = os.environ.get("AIAAS_BACKEND", "local")
    server = local_server.find_at(folder) if remote == "local" or state is not None else (remote, os.environ.get("AIAAS_TOKEN", ""))
    question = Question(
        state=folder,
        workers=workers or len(host.usable_cores()),
        model_bytes=model_mb * 1e6,
        ports=(0,) if port is None else (port,),
        extras=extra,
        imports=not no_imports,
        server=server,
    )
    findings = list(examine(question))
    click.echo(wire.encode(findings).decode() if as_json else visible(as_text(findings)))
    sys.exit(1 if would_break_a_job(findings) else 0)
