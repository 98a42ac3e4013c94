"""Command line: `aiaas audit | backup | doctor | key | restore | serve | serve-model | status | storage | stop | token | user`.

Owns options and what is printed: results on standard output, talk on standard error. Users and tokens are in `commands.account_commands`.
Serving belongs to `backend.server`, asking a server to `client.backend`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aiaas_magics.commands.account_commands import token, user
from aiaas_magics.commands.audit_commands import audit
from aiaas_magics.commands.backup_commands import backup, restore
from aiaas_magics.commands.command_base import backend_of, one_line_errors, state_option
from aiaas_magics.commands.doctor_command import doctor
from aiaas_magics.core import log_lines, settings
from aiaas_magics.core.plain_text import log_to

if TYPE_CHECKING:
    from aiaas_magics.client.backend import Backend
    from aiaas_magics.core.spec import StorageView


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="aiaas_magics")
def main() -> None:
    """AI as a service for notebook users: the server behind the magics."""


@main.command()
@click.option("--local", is_flag=True, help="Serve this environment's notebooks; stops when nothing needs it.")
@state_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Anything but loopback needs TLS.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (default: the same as last time, or any).")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="PEM file with the certificate chain.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM file with its key.")
@click.option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    envvar=settings.CORS,
    show_envvar=True,
    help="Origin whose web pages may ask for predictions, such as https://app.example; repeatable. They still need the token.",
)
@click.option(
    "--keep-free",
    envvar=settings.KEEP_FREE,
    show_envvar=True,
    metavar="AMOUNT",
    help="Space to keep free on the state folder's disk, such as 2GB or 10% (default: 1 GB, or 5 % of a small disk). "
    "The server refuses new jobs, uploads and deployments that would use it.",
)
@click.option(
    "--require-signed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PUBKEYS",
    help="File of public keys, one per line. Only deployments that one of them has signed are served, also after a restart.",
)
@click.option(
    "--log-format",
    type=click.Choice(log_lines.FORMATS),
    default="text",
    show_default=True,
    help="Form of the log's lines on standard error: text, or JSON with the id of the request.",
)
@click.option("--pool", default="local", show_default=True, metavar="NAME", help="Pool that runs the workers. `local` is this machine.")
@click.option(
    "--idle-minutes", type=click.FloatRange(min=0), help="Stop after this many minutes without a job, endpoint, kernel or request."
)
@one_line_errors
def serve(
    local: bool,
    state: Path | None,
    host: str,
    port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    cors: tuple[str, ...],
    keep_free: str | None,
    require_signed: Path | None,
    log_format: str,
    pool: str,
    idle_minutes: float | None,
) -> None:
    """Run a server in the foreground, until SIGTERM or Ctrl-C."""
    _forget_tokens()
    from aiaas_magics.backend.net import server_certificate
    from aiaas_magics.backend.server import main as server
    from aiaas_magics.client.serving import signing_keys

    log_lines.log_lines_to(sys.stderr, log_format)
    if local and idle_minutes is None:
        idle_minutes = server.IDLE_MINUTES
    folder = state or (settings.local_state() if local else settings.home() / "server")
    options = server.ServerOptions(
        state=folder,
        local=local,
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        cors=cors,
        keep_free=keep_free or "",
        trusted_keys=() if require_signed is None else signing_keys.read_public(require_signed),
        pool=pool,
        idle_minutes=idle_minutes,
    )

    def on_ready(url: str) -> None:
        click.echo(f"aiaas serves at {url}")
        if tls_cert is not None:
            click.echo(f"Its certificate's SHA-256 fingerprint: {server_certificate.fingerprint(tls_cert)}", err=True)
        shown = "" if local else f" --state {folder}"
        click.echo(f"Its token: aiaas token{shown}. In a notebook: %aiaas_connect {url}", err=True)

    def on_admin_token(token: str) -> None:
        click.echo(f"The token of its admin, shown this once: {token}", err=True)
        click.echo(
            "Connect with it, then add users with `aiaas user add`. `aiaas token` on this machine is the server's own account.", err=True
        )

    server.serve(options, on_ready=on_ready, on_admin_token=on_admin_token)


@main.command("serve-model")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Anything but loopback needs TLS.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port for HTTP (default: the same as last time, or any).")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=0, help="Port for gRPC (default: the same as last time, or any).")
@click.option("--tls-cert", type=click.Path(), default="", help="PEM file with the certificate chain.")
@click.option("--tls-key", type=click.Path(), default="", help="PEM file with its key.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Origin whose web pages may ask for predictions; repeatable.")
@click.option("--behind-proxy", is_flag=True, help="Listen beyond loopback without TLS, as in a container whose port a proxy publishes.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the token and the ports (default: one of this account for each FOLDER).",
)
@one_line_errors
def serve_model(
    folder: Path,
    host: str,
    port: int,
    grpc_port: int,
    tls_cert: str,
    tls_key: str,
    cors: tuple[str, ...],
    behind_proxy: bool,
    state: Path | None,
) -> None:
    """Serve the endpoint in FOLDER, which `%aiaas_export MODEL --for docker` wrote, until SIGTERM or Ctrl-C.

    Its token is AIAAS_ENDPOINT_TOKEN; without that, one is made and its file named. An ONNX model needs no TensorFlow.
    """
    from aiaas_magics.backend.serving.process import standalone
    from aiaas_magics.backend.serving.process.inference_process import InferenceOptions

    log_to(sys.stderr, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    token = standalone.token_in(os.environ)
    place = state or settings.bundle_state(folder)
    settings.make_private(place)
    options = InferenceOptions(
        state=str(place),
        host=host,
        port=port,
        grpc_port=grpc_port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        cors=cors,
        behind_proxy=behind_proxy,
    )

    def on_ready(name: str, running: Any) -> None:
        click.echo(f"aiaas serves {name} at {running.url}/v1/models/{name}:predict and over gRPC at {running.grpc}")
        if not token:
            click.echo(f"Its token is in {place / 'serving' / 'token'}. Set AIAAS_ENDPOINT_TOKEN to choose one.", err=True)

    standalone.serve(folder, options, token=token, on_ready=on_ready)


def _forget_tokens() -> None:
    """Become the same process without the token of another backend: the kernel shows a process' first environment for its whole life."""
    cleaned = settings.without_tokens(os.environ)
    if cleaned == dict(os.environ):
        return
    if hasattr(os, "fork"):  # elsewhere that would be another process
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], cleaned)
    os.environ.clear()
    os.environ.update(cleaned)


@main.command()
@state_option
@one_line_errors
def status(state: Path | None) -> None:
    """Show the server, its jobs and its endpoints."""
    from rich.console import Console
    from rich.markup import escape

    with backend_of(state) as backend:
        console = Console(highlight=False)
        about = backend.about()
        console.print(
            f"[bold]{escape(about.backend)}[/] at {backend.url}: {escape(about.hardware)}; "
            f"aiaas_magics {escape(about.versions.aiaas_magics)}"
        )
        console.print(_jobs_table(backend))
        console.print(_endpoints_table(backend))


def _jobs_table(backend: Backend) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table("job", "name", "state", "workers", "attempt", title="Jobs", title_justify="left")
    for view in backend.jobs()[-20:]:
        state = f"{view.state}" + (f" ({view.reason})" if view.reason else "")
        table.add_row(escape(view.id), escape(view.spec.name), escape(state), str(view.spec.workers or "all"), str(view.attempt))
    return table


def _endpoints_table(backend: Backend) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table("endpoint", "version", "state", "engine", "address", title="Endpoints", title_justify="left")
    for view in backend.endpoints():
        for version in view.versions:
            row = (view.name, str(version.version), version.shown_state, version.engine, view.predict_url)
            table.add_row(*map(escape, row))
    return table


@main.command()
@state_option
@one_line_errors
def stop(state: Path | None) -> None:
    """Stop the server, its workers and its endpoints. Unfinished jobs resume when it starts again."""
    from aiaas_magics.client import local_server

    there_was = local_server.stop_local() if state is None else local_server.stop_at(state)
    click.echo("The server has stopped." if there_was else "No server is running here.")


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@one_line_errors
def key(file: Path) -> None:
    """Make a key pair that signs deployments: FILE (0600, keep it secret) and FILE.pub (for --require-signed)."""
    from aiaas_magics.client.serving import signing_keys

    made = signing_keys.make(file)
    click.echo(made.fingerprint)
    click.echo(f"Private key: {file} (0600). Public key: {made.public}. Sign with %aiaas_deploy MODEL --sign {file}", err=True)


@main.command()
@state_option
@click.option("--free", is_flag=True, help="Remove what nothing needs. Unfinished jobs, live endpoints and what --resume needs stay.")
@click.option(
    "--set-aside-records",
    is_flag=True,
    help="Move the records and job folders of a stopped server into a folder beside them, and start over.",
)
@one_line_errors
def storage(state: Path | None, free: bool, set_aside_records: bool) -> None:
    """Show what the state folder holds, and remove what nothing needs."""
    if set_aside_records:
        from aiaas_magics.backend.server.storage.usage import set_records_aside

        click.echo(
            f"Moved the records to {set_records_aside(state or settings.local_state())}. Delete that folder when you no longer need it."
        )
        return
    from rich.console import Console

    with backend_of(state) as backend:
        if free:
            freed = backend.free_storage()
            click.echo(f"Freed {freed.bytes / 1e6:,.1f} MB: {freed.blobs} arrays and models, the results of {freed.results} jobs.")
        view = backend.storage()
        Console(highlight=False).print(_storage_table(view))
        click.echo(f"{view.free_bytes / 1e9:,.1f} GB are free on its disk; {view.keep_free_bytes / 1e9:,.2g} GB of that is kept free.")


def _storage_table(view: StorageView) -> Any:
    from rich.table import Table

    table = Table("what", "MB", "count", "MB to free", title=view.folder, title_justify="left")
    for part in view.parts:
        table.add_row(part.contents, f"{part.bytes / 1e6:,.1f}", str(part.count or ""), f"{part.freeable_bytes / 1e6:,.1f}")
    return table


main.add_command(audit)
main.add_command(backup)
main.add_command(restore)
main.add_command(doctor)
main.add_command(token)
main.add_command(user)
