"""Value: the base of what client and server exchange.

Owns that a value is frozen, and that its repr shows no secret.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

SECRETS: Final = frozenset({"token", "secret"})  # fields that no repr shows, so that no notebook's output holds one


class _Hidden:
    def __repr__(self) -> str:
        return "<hidden>"


HIDDEN: Final = _Hidden()


class Value(msgspec.Struct, frozen=True):
    """A frozen value; unknown fields from a newer peer are ignored. Its repr shows no secret."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        fields = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, HIDDEN if name in SECRETS and value else value) for name, value in fields]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
