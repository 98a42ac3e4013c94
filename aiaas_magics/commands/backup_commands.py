"""Backup commands: `aiaas backup` and `aiaas restore`.

Owns their options and lines. What belongs in a backup and how it comes back belong to `backend.server.backup`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from aiaas_magics.commands.command_base import one_line_errors, state_option
from aiaas_magics.core import settings
from aiaas_magics.core.errors import StoreNotWritable

if TYPE_CHECKING:
    from aiaas_magics.backend.server.backup.backup_file import BackupManifest

STANDARD: str = "-"


@click.command()
@click.argument("file")
@state_option
@click.option("--with-tokens", is_flag=True, help="The tokens too. Whoever has the backup may then use the server.")
@click.option("--skip-damaged", is_flag=True, help="Leave out arrays and models that are missing or damaged on the disk, and name them.")
@one_line_errors
def backup(file: str, state: Path | None, with_tokens: bool, skip_damaged: bool) -> None:
    """Write what the server keeps to FILE (0600): jobs, results, endpoints, checkpoints, the audit log. `-` is standard output.

    The server may run meanwhile. The file holds data and code of all users, unencrypted: pipe it through a program that encrypts.
    """
    from aiaas_magics.backend.server.backup import state_backup

    folder = state or settings.local_state()
    if file == STANDARD:
        manifest = state_backup.back_up(
            folder, sys.stdout.buffer, scratch=Path(tempfile.gettempdir()), with_tokens=with_tokens, skip_damaged=skip_damaged
        )
        sys.stdout.buffer.flush()
    else:
        manifest = state_backup.back_up_into(folder, Path(file), with_tokens=with_tokens, skip_damaged=skip_damaged)
    click.echo(_summary(manifest), err=True)
    for sha in manifest.damaged:
        click.echo(f"Left out, missing or damaged on the disk: {sha}", err=True)


@click.command()
@click.argument("file")
@click.option(
    "--into", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="An empty folder, or a new one."
)
@one_line_errors
def restore(file: str, into: Path) -> None:
    """Make FOLDER a server's folder with what the backup FILE holds. `-` is standard input.

    Then run `aiaas serve --state FOLDER`. Restore your own backups only: jobs hold code, which the server's workers run.
    """
    from aiaas_magics.backend.server.backup.state_restore import restore

    with _source(file) as stream:
        restored = restore(stream, into)
    click.echo(
        f"Restored {restored.jobs} jobs and {len(restored.endpoints)} endpoints into {into}: {_summary(restored.manifest)}", err=True
    )
    if restored.requeued:
        click.echo(f"These jobs were running, and go on or end when the server starts: {', '.join(restored.requeued)}.", err=True)
    if not restored.manifest.has_tokens:
        click.echo("The backup has no tokens, so the server makes new ones.", err=True)
    click.echo(f"Start it with: aiaas serve --state {into}", err=True)


def _source(file: str) -> BinaryIO:
    if file == STANDARD:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    try:
        return open(file, "rb")
    except OSError as error:
        raise StoreNotWritable(file, error.strerror or str(error)) from error


def _summary(manifest: BackupManifest) -> str:
    from aiaas_magics.backend.server.storage.quota import megabytes

    size = megabytes(sum(file.size for file in manifest.files))
    tokens = "with tokens" if manifest.has_tokens else "without tokens"
    return f"{len(manifest.files)} files, {size}, {tokens}; the audit log ends at {manifest.audit_head}"
