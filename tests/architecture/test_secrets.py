"""What holds a token prints without it: a notebook's outputs are saved and shared."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aiaas_magics.backend.serving.process.control import StopProcess
from aiaas_magics.client.load_test.load_plan import BodyForm
from aiaas_magics.core.accounts import TokenView
from aiaas_magics.core.value import SECRETS

PACKAGE = Path(__file__).parents[2] / "aiaas_magics"
NAMES = SECRETS | {"password", "authorization", "authorizations"}
CANARY = "aiaas_canary-that-nobody-may-see"


def holders() -> Iterator[tuple[str, str]]:
    """Modules and classes with a field of such a name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("aiaas_magics", *path.relative_to(PACKAGE).with_suffix("").parts))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or "Protocol" in ast.unparse(ast.Tuple(elts=node.bases)):
                continue
            fields = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
            if fields & NAMES:
                yield module, node.name


FORM = BodyForm(name="json", path="/", bodies=(b"{}",))
MADE: dict[str, dict[str, object]] = {
    "SignedCall": {"secret": CANARY, "call": StopProcess()},
    "EndpointView": {"name": "m", "url": "http://x", "token": CANARY, "replicas": 1, "versions": (), "inputs": (), "outputs": ()},
    "LoadPlan": {"url": "http://x", "token": CANARY, "forms": (FORM,), "concurrency": (1,), "duration_s": 1.0, "rows": 1},
    "MadeToken": {"token": CANARY, "view": TokenView(id="1", user="ada")},
    "RunningProcess": {"pid": 1, "started": 2, "url": "u", "host": "h", "tls": "", "control": "c", "secret": CANARY, "version": "0"},
}
HOLDERS = sorted(holders())


def test_there_are_some() -> None:
    assert {name for _, name in HOLDERS} >= {"EndpointView", "RunningProcess", "LoadPlan", "Guard", "SignedCall", "Peer", "Facts"}


@pytest.mark.parametrize(("module", "name"), HOLDERS, ids=lambda part: part)
def test_no_repr_shows_a_secret(module: str, name: str) -> None:
    kind = getattr(importlib.import_module(module), name)
    if issubclass(kind, msgspec.Struct):
        value = kind(**MADE[name])
    else:
        assert dataclasses.is_dataclass(kind)
        value = object.__new__(kind)
        for each in dataclasses.fields(kind):
            object.__setattr__(value, each.name, CANARY if each.name in NAMES else "shown")

    texts = [repr(value), str(value), f"{value}", repr([value])]
    if hasattr(value, "__rich_repr__"):
        texts.append(repr(list(value.__rich_repr__())))

    assert not [text for text in texts if CANARY in text]
