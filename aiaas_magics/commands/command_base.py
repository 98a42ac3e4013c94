"""Command base: what all commands of the command line share.

Owns the option for the state folder, the one-line errors, and finding the server that a command speaks to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiaas_magics.core.errors import AiaasError
from aiaas_magics.core.plain_text import visible

if TYPE_CHECKING:
    from aiaas_magics.client.backend import Backend

FAILED = 2


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What goes wrong is one sentence on standard error, not a traceback."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except AiaasError as error:
            click.echo(visible(str(error)), err=True)
            sys.exit(FAILED)

    return run


state_option = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="The server's folder (default: this environment's local server).",
)


def backend_of(state: Path | None) -> Backend:
    """The server that runs on this folder, as its own account. Ends the program where none runs."""
    from aiaas_magics.client import local_server
    from aiaas_magics.client.backend import connect

    server = local_server.find_local() if state is None else local_server.find_at(state)
    if server is None:
        click.echo("No server is running here. Start one with `aiaas serve`, or with the first magic in a notebook.")
        sys.exit(1)
    return connect(*server)
