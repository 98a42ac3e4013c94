"""Audit commands: `aiaas audit` shows the audit log, `aiaas audit verify` checks it.

Owns their options and lines. They read the files themselves, whether a server runs or not; the chain belongs to `backend.server.audit`.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from aiaas_magics.commands.command_base import FAILED, one_line_errors, state_option
from aiaas_magics.core import settings
from aiaas_magics.core.errors import InvalidSpec, StoreNotWritable
from aiaas_magics.core.plain_text import visible


@click.group(invoke_without_command=True)
@state_option
@click.option("--tail", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="How many of the newest entries.")
@click.option("--json", "as_json", is_flag=True, help="Print each entry as a line of JSON, as it is kept.")
@click.pass_context
@one_line_errors
def audit(context: click.Context, state: Path | None, tail: int, as_json: bool) -> None:
    """Show who changed what on the server, and who was refused."""
    if context.invoked_subcommand is not None:
        return
    newest = deque((line for _, _, line in _lines(state)), maxlen=tail)
    if as_json:
        for line in newest:
            click.echo(visible(line.decode("ascii", errors="replace").rstrip("\n")))
        return
    from rich.console import Console

    Console(highlight=False).print(_audit_table(newest))


@audit.command()
@state_option
@click.option(
    "--anchor",
    metavar="NUMBER:HASH",
    help="A head that an earlier run printed and that you kept elsewhere. The log must contain it, or go on right behind it.",
)
@click.pass_context
@one_line_errors
def verify(context: click.Context, state: Path | None, anchor: str | None) -> None:
    """Check the chain of the audit log, and name the first entry that was altered, removed or put elsewhere.

    Prints the head: keep it elsewhere, and pass it as --anchor later. Only that shows that the end was cut off, or that everything was
    written anew. Ends with 1 when the chain is broken.
    """
    from aiaas_magics.backend.server.audit.audit_chain import AuditHead, checked

    state = state or (context.parent.params["state"] if context.parent is not None else None)
    report = checked(_lines(state), anchor=None if anchor is None else AuditHead.parse(anchor))
    broken = report.broken
    if broken is None:
        click.echo(f"{report.entries} entries fit together. Head: {report.head}")
        if anchor is None:
            click.echo("That its end is complete only an anchor shows: keep this head elsewhere, and pass it as --anchor later.", err=True)
        return
    entry = "Entry" if broken.seq is None else f"Entry {broken.seq}"
    place = f" ({broken.file}, line {broken.line})" if broken.file else ""
    click.echo(f"{entry}{place} is where the chain breaks: {broken.why}. The {report.entries} before it fit together.")
    sys.exit(1)


def _lines(state: Path | None) -> Iterator[tuple[str, int, bytes]]:
    from aiaas_magics.backend.folders.small_files import NotPlainFile
    from aiaas_magics.backend.server.audit.audit_log import files_of, lines_of

    folder = (state or settings.local_state()) / "audit"
    if not files_of(folder):
        click.echo(f"There is no audit log in {folder}. Start a server there first, with `aiaas serve`.", err=True)
        sys.exit(FAILED)
    try:
        yield from lines_of(folder)
    except NotPlainFile as error:
        raise InvalidSpec(f"A file in {folder} {error}. Check who put it there.") from error
    except OSError as error:
        raise StoreNotWritable(str(folder), error.strerror or str(error)) from error


def _audit_table(lines: Iterable[bytes]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from aiaas_magics.backend.server.audit.audit_chain import entry_in

    table = Table("entry", "time (UTC)", "who", "from", "action", "on", "outcome", "request")
    for line in lines:
        members = entry_in(line.rstrip(b"\n"))
        if members is None:
            table.add_row("?", "", "", "", "an altered entry: run `aiaas audit verify`", "", "", "")
            continue
        time = datetime.fromtimestamp(members["at_s"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        objects = ", ".join(f"{kind} {name[:40]}" for kind, name in members["on"].items())
        outcome = " ".join(filter(None, (members["outcome"], str(members["status"] or ""))))
        action = members["action"] + (f" ({members['count']} times)" if members["count"] > 1 else "")
        row = (str(members["seq"]), time, members["who"], members["address"], action, objects, outcome, members["request"])
        table.add_row(*(escape(visible(cell)) for cell in row))
    return table
