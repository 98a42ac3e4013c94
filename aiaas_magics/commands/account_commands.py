"""Account commands: `aiaas user` and `aiaas token`.

Owns their options and lines. They speak to the running server, as its own account, so that what they change holds from the next
request on and nobody else writes the records.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from aiaas_magics.commands.command_base import FAILED, backend_of, one_line_errors, state_option
from aiaas_magics.core import settings
from aiaas_magics.core.accounts import Quotas, Role, TokenView
from aiaas_magics.core.errors import InvalidSpec

ROLES: Final = click.Choice([role.value for role in Role])
TIME: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)", re.ASCII)
SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?B?)", re.ASCII | re.IGNORECASE)
UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def seconds_of(text: str) -> float:
    """
    >>> seconds_of("90s"), seconds_of("12h"), seconds_of("30d")
    (90.0, 43200.0, 2592000.0)
    """
    match = TIME.fullmatch(text)
    if match is None:
        raise InvalidSpec(f"{text[:40]!r} is not a time. Use one like 90s, 30m, 12h or 30d.")
    return float(match[1]) * SECONDS[match[2]]


def bytes_of(text: str) -> int:
    """
    >>> bytes_of("20GB"), bytes_of("0")
    (20000000000, 0)
    """
    match = SIZE.fullmatch(text)
    if match is None:
        raise InvalidSpec(f"{text[:40]!r} is not a size. Use one like 500MB or 20GB.")
    return int(float(match[1]) * UNITS[match[2].upper().removesuffix("B")])


# --------------------------------------------------------------------------- users


@click.group()
def user() -> None:
    """Manage the users of the server on this machine."""


@user.command("add")
@click.argument("name")
@click.option("--role", type=ROLES, default=Role.USER.value, show_default=True, help="What the user may do.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Group that the user is in; repeatable.")
@state_option
@one_line_errors
def add_user(name: str, role: str, groups: tuple[str, ...], state: Path | None) -> None:
    """Add a user and print the first token, which is shown this once."""
    with backend_of(state) as backend:
        backend.accounts.add_user(name, role=role, groups=groups)
        new = backend.accounts.make_token(name, label="first token")
    click.echo(f"Added {name} with the role {role}. The token, shown this once, follows.", err=True)
    click.echo(new.token)


@user.command("list")
@state_option
@one_line_errors
def list_users(state: Path | None) -> None:
    """List the users: name, role, groups, quotas."""
    with backend_of(state) as backend:
        users = backend.accounts.users()
    for view in users:
        click.echo("\t".join((view.name, view.role, ",".join(view.groups) or "-", _quotas(view.quotas))))
    if not users:
        click.echo("There are no users. Add one with `aiaas user add NAME`.", err=True)


def _quotas(quotas: Quotas) -> str:
    limits = [f"{name}={value:,.15g}" for name in quotas.__struct_fields__ if (value := getattr(quotas, name))]
    return " ".join(limits) or "no quotas"


@user.command("remove")
@click.argument("name")
@state_option
@one_line_errors
def remove_user(name: str, state: Path | None) -> None:
    """Remove a user. The tokens open nothing from now on; jobs and endpoints stay, for admins."""
    with backend_of(state) as backend:
        backend.accounts.remove_user(name)
    click.echo(f"Removed {name}. The name is not given again.")


@user.command("role")
@click.argument("name")
@click.argument("role", type=ROLES)
@state_option
@one_line_errors
def change_role(name: str, role: str, state: Path | None) -> None:
    """Give a user another role, from the next request on."""
    with backend_of(state) as backend:
        view = backend.accounts.change_user(name, role=role)
    click.echo(f"{view.name} has the role {view.role}.")


@user.command("groups")
@click.argument("name")
@click.argument("groups", nargs=-1)
@state_option
@one_line_errors
def change_groups(name: str, groups: tuple[str, ...], state: Path | None) -> None:
    """Put a user into these groups and no others."""
    with backend_of(state) as backend:
        view = backend.accounts.change_user(name, groups=groups)
    click.echo(f"{view.name} is in {', '.join(view.groups) or 'no group'}.")


@user.command("quota")
@click.argument("name")
@click.option("--devices", type=click.IntRange(min=0), help="Devices held by running jobs.")
@click.option("--running-jobs", type=click.IntRange(min=0), help="Jobs that run at once.")
@click.option("--waiting-jobs", type=click.IntRange(min=0), help="Jobs that wait.")
@click.option("--storage", metavar="SIZE", help="Data that was uploaded and is kept, such as 20GB.")
@click.option("--endpoints", type=click.IntRange(min=0), help="Live endpoints.")
@click.option("--requests-per-s", type=click.FloatRange(min=0), help="Requests to the API per second.")
@state_option
@one_line_errors
def change_quota(name: str, storage: str | None, state: Path | None, **limits: Any) -> None:
    """Change quotas of a user. 0 is no limit; those that are not named stay."""
    changes = {limit: value for limit, value in limits.items() if value is not None}
    if storage is not None:
        changes["storage_bytes"] = bytes_of(storage)
    with backend_of(state) as backend:
        before = {view.name: view for view in backend.accounts.users()}.get(name)
        old = {limit: getattr(before.quotas, limit) for limit in before.quotas.__struct_fields__} if before is not None else {}
        view = backend.accounts.change_user(name, quotas=Quotas(**{**old, **changes}))
    click.echo(f"{view.name}: {_quotas(view.quotas)}.")


# --------------------------------------------------------------------------- tokens


@click.group(invoke_without_command=True)
@state_option
@click.pass_context
def token(context: click.Context, state: Path | None) -> None:
    """Print the token of the server's own account, and nothing else on standard output; or manage the tokens of users."""
    if context.invoked_subcommand is not None:
        return
    file = (state or settings.local_state()) / "token"
    try:
        click.echo(file.read_text(encoding="ascii").strip())
    except OSError:
        click.echo(f"There is no token in {file.parent}. Start a server there first, with `aiaas serve`.", err=True)
        sys.exit(FAILED)


@token.command("make")
@click.argument("name")
@click.option("--label", default="", help="What the token is for.")
@click.option(
    "--endpoint", "endpoints", multiple=True, metavar="NAME", help="Endpoint that it asks for predictions, and nothing else; repeatable."
)
@click.option("--rate", type=click.FloatRange(min=0), default=0.0, metavar="N", help="Most predictions per second, with --endpoint.")
@click.option("--expires", metavar="TIME", help="Time until it expires, such as 12h or 30d (default: it does not).")
@state_option
@one_line_errors
def make_token(name: str, label: str, endpoints: tuple[str, ...], rate: float, expires: str | None, state: Path | None) -> None:
    """Make a token of a user and print it, this once."""
    lives_s = seconds_of(expires) if expires else 0.0
    with backend_of(state) as backend:
        new = backend.accounts.make_token(name, label=label, endpoints=endpoints, requests_per_s=rate, lives_s=lives_s)
    click.echo(f"Made token {new.view.id} of {name}. It is shown this once.", err=True)
    click.echo(new.token)


@token.command("list")
@click.option("--user", "name", metavar="NAME", help="Only those of this user.")
@state_option
@one_line_errors
def list_tokens(name: str | None, state: Path | None) -> None:
    """List tokens: id, user, state, last use, what they open, label."""
    with backend_of(state) as backend:
        views = [view for view in backend.accounts.tokens() if name in (None, view.user)]
    for view in views:
        used = "never used" if view.used_s is None else f"used {_date(view.used_s)}"
        opens = ",".join(view.endpoints) or "API"
        click.echo("\t".join((view.id, view.user, _validity(view), used, opens, view.label or "-")))
    if not views:
        click.echo("There are no tokens. Make one with `aiaas token make USER`.", err=True)


def _validity(view: TokenView) -> str:
    if view.revoked_s is not None:
        return f"revoked {_date(view.revoked_s)}"
    if view.expires_s is None:
        return "valid"
    return f"{'expires' if view.is_valid(time.time()) else 'expired'} {_date(view.expires_s)}"


def _date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))


@token.command("revoke")
@click.argument("token_id")
@state_option
@one_line_errors
def revoke_token(token_id: str, state: Path | None) -> None:
    """Revoke a token, by its id."""
    with backend_of(state) as backend:
        view = backend.accounts.revoke_token(token_id)
    click.echo(f"Token {view.id} of {view.user} is revoked.")


@token.command("rotate")
@click.argument("token_id")
@state_option
@one_line_errors
def rotate_token(token_id: str, state: Path | None) -> None:
    """Make a new token in the place of one, which goes on for an hour, and print it, this once."""
    with backend_of(state) as backend:
        new = backend.accounts.rotate_token(token_id)
    click.echo(f"Made token {new.view.id} of {new.view.user}. Token {token_id} goes on for an hour.", err=True)
    click.echo(new.token)
