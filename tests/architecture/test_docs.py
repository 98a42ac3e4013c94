"""The documents are true to the code: generated pages are today's, links lead somewhere, every argument is explained."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).parents[2]
README_WORDS = 700  # what one reads in three minutes before deciding
DOCUMENTS = [*(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MAPS = [ROOT / "ARCHITECTURE.md", ROOT / "docs" / "how-it-works.md", *sorted((ROOT / "docs" / "decisions").glob("*.md"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", generate.PAGES)
def test_a_generated_page_is_what_the_code_says_today(page: str) -> None:
    written = (generate.FOLDER / page).read_text(encoding="utf-8")

    assert written == generate.PAGES[page](), "Run `make docs` and commit what it writes."


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS, "Move details to a page of docs/."


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")

    broken = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http") and not leads_somewhere(document, link)]

    assert broken == []


def leads_somewhere(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", MAPS, ids=name_of)
def test_every_file_that_a_map_names_exists(document: Path) -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", document.read_text(encoding="utf-8"))
    files = [
        f"/{path.relative_to(ROOT)}" for folder in ("aiaas_magics", "tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")
    ]

    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


def public_functions() -> Iterator[tuple[str, object]]:
    for name in generate.public_names():
        value = getattr(generate.aiaas_magics, name)
        if not inspect.isclass(value):
            yield name, value
            continue
        yield name, value
        yield from ((f"{name}.{member}", method) for member, method in generate.public_members(value))


@pytest.mark.parametrize(("name", "value"), list(public_functions()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_public_name_explains_itself_and_each_of_its_arguments(name: str, value: object) -> None:
    text = inspect.cleandoc(vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__ or "")
    sections = dict(re.findall(r"^(Args|Attributes):\n((?:    .*\n?|\n)*)", text, re.MULTILINE))
    explained = set(re.findall(r"^    (\w+): ", "".join(sections.values()), re.MULTILINE))

    assert text
    assert arguments_of(value) - explained == set()


def arguments_of(value: object) -> set[str]:
    """The arguments of a function, and of a class that users make themselves; others are made by a method."""
    if isinstance(value, property) or (inspect.isclass(value) and not hasattr(value, "__struct_fields__")):
        return set()
    return set(inspect.signature(value).parameters) - {"self"}  # type: ignore[arg-type]


@pytest.mark.parametrize("decision", sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")), ids=lambda path: path.stem[:4])
def test_a_decision_has_its_four_parts_and_a_place_in_the_index(decision: Path) -> None:
    text = decision.read_text(encoding="utf-8")
    index = (decision.parent / "README.md").read_text(encoding="utf-8")

    assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Decision", "Rejected", "Cost"]
    assert f"({decision.name})" in index
