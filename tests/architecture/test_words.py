"""The words of the package: a name belongs to one thing, and it is a noun or a verb."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from tests.architecture.words import PACKAGE, bound_names, names_of_package, share_forbidden

# A few participles are words of the field (`left` of a figure, `written` bytes); that few are left to judgement.
MOST_FORBIDDEN: Final = 0.005
ENTRANCES: Final = ("__init__", "__main__")  # a package's; every package may have them


def modules_by_name() -> Iterator[tuple[str, str]]:
    for path in PACKAGE.rglob("*.py"):
        if path.stem not in ENTRANCES:
            yield path.stem, path.relative_to(PACKAGE).as_posix()


def classes_by_name() -> Iterator[tuple[str, str]]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield node.name, f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"


def repeated(named: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for name, place in named:
        places[name].append(place)
    return {name: sorted(where) for name, where in places.items() if len(where) > 1}


def test_a_module_has_a_name_of_its_own() -> None:
    assert repeated(modules_by_name()) == {}


def test_a_class_has_a_name_of_its_own() -> None:
    assert repeated(classes_by_name()) == {}


def test_names_are_nouns_or_verbs() -> None:
    """`python -m tests.architecture.words` lists those that are not, by file."""
    share = share_forbidden(names_of_package())

    assert share <= MOST_FORBIDDEN, f"{share:.4f} of all names are bare participles or pronouns; at most {MOST_FORBIDDEN} may be"


def test_the_count_sees_each_way_to_bind_a_name_once_per_scope() -> None:
    source = """
class Told:
    said: int = 0

    def given(self, asked, *those, mine=1, **theirs):
        self._kept = found = asked
        found = [one for one in those]
        with open(found) as held:
            for known in held: pass
        try: pass
        except OSError as seen: pass
        if (left := found): pass
        match found:
            case [made, *others]: pass
        return lambda ours: ours
"""

    names = [bound.name for bound in bound_names(source, "m.py") if bound.is_forbidden]

    methods_own = ["asked", "found", "held", "known", "left", "made", "mine", "one", "others", "ours", "seen", "theirs", "those"]
    assert sorted(names) == sorted(["Told", "said", "given", "_kept", *methods_own])
