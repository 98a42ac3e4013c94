"""Model card: what is known of a model, as sections of sentences and tables, and its Markdown.

Owns the values, joining a newer card with an older one, and the Markdown with its YAML head, in the form of Hugging Face's model
cards (Mitchell et al. 2019; https://huggingface.co/docs/hub/model-cards). What goes into the sections belongs to `client.card`,
the HTML of an endpoint's page to the serving side.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec import structs

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.plain_text import visible
from aiaas_magics.core.value import Value

MOST_BYTES: Final = 256 * 1024  # guess: a card of all sections has about 20 kB
CHARACTERS: Final = 20_000  # guess: of one cell or sentence; the rest is cut
LICENSE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,60}", re.ASCII)


class CardTable(Value, frozen=True, kw_only=True):
    """A table; every row has as many cells as `header`."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


class CardSection(Value, frozen=True, kw_only=True):
    """One section. `fill` is what to do while it is empty: a command, or the question that only a person can answer."""

    key: str
    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[CardTable, ...] = ()
    fill: str = ""

    @property
    def is_empty(self) -> bool:
        return not self.sentences and not self.tables


class CardMetric(Value, frozen=True, kw_only=True):
    """A measured number for the card's head. `data` says on what it was measured."""

    name: str
    value: float
    data: str


class ModelCard(Value, frozen=True, kw_only=True):
    """A model's card.

    Attributes:
        name: the model's or the endpoint's name.
        library: the library of the model, such as "keras"; "" if it is not known.
        task: Hugging Face's id of the task, such as "tabular-classification"; "other" if it is not known.
        license: its SPDX id in lower case; "" while nobody has said.
        tags: words for the card's head.
        metrics: measured numbers for the card's head.
        sections: in the order in which they are shown.
        at_s: when the card was made, unix time in seconds.
    """

    name: str
    library: str = ""
    task: str = "other"
    license: str = ""
    tags: tuple[str, ...] = ()
    metrics: tuple[CardMetric, ...] = ()
    sections: tuple[CardSection, ...] = ()
    at_s: float = 0.0

    def __post_init__(self) -> None:
        if self.license and not LICENSE.fullmatch(self.license):
            raise InvalidSpec(f"{self.license[:80]!r} is no license id. Use one such as apache-2.0, mit or other.")

    def section(self, key: str) -> CardSection | None:
        """The section with this key; None if the card has none."""
        return next((section for section in self.sections if section.key == key), None)

    def joined(self, older: ModelCard | None) -> ModelCard:
        """This card with what only the older one knows: sections that are empty here, numbers, the license."""
        if older is None:
            return self
        before = {section.key: section for section in older.sections}
        sections = [before.get(own.key, own) if own.is_empty else own for own in self.sections]
        own_keys = {section.key for section in self.sections}
        names = {(metric.name, metric.data) for metric in self.metrics}
        return structs.replace(
            self,
            library=self.library or older.library,
            task=older.task if self.task == "other" else self.task,
            license=self.license or older.license,
            tags=tuple(dict.fromkeys((*self.tags, *older.tags))),
            metrics=(*self.metrics, *(metric for metric in older.metrics if (metric.name, metric.data) not in names)),
            sections=(*sections, *(section for section in older.sections if section.key not in own_keys)),
        )

    def to_markdown(self) -> str:
        """The card as Markdown with a YAML head, as `README.md` of a Hugging Face repository has it."""
        return f"---\n{front_matter(self)}---\n\n{self.to_body()}"

    def to_body(self) -> str:
        """The card as Markdown without its head. Names are escaped: nothing in them is Markdown or HTML."""
        return "\n".join((f"# Model card: {escaped(self.name)}", "", *_lines(self.sections))).rstrip() + "\n"

    def save(self, path: str) -> None:
        """Write the Markdown into a file.

        Args:
            path: the file. One that is there is replaced.
        """
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.to_markdown())


# --------------------------------------------------------------------------- Markdown


def _lines(sections: Iterable[CardSection]) -> Iterator[str]:
    for section in sections:
        yield from (f"## {escaped(section.title)}", "")
        if section.is_empty:
            yield from (f"*Not filled in.* {with_code(section.fill)}".rstrip(), "")
            continue
        for sentence in section.sentences:
            yield f"- {escaped(sentence)}"
        if section.sentences:
            yield ""
        for table in section.tables:
            yield from _table(table)


def _table(table: CardTable) -> Iterator[str]:
    if table.caption:
        yield from (f"**{escaped(table.caption)}**", "")
    yield f"| {' | '.join(map(escaped, table.header))} |"
    yield f"|{' --- |' * len(table.header)}"
    for row in table.rows:
        yield f"| {' | '.join(map(escaped, row))} |"
    yield ""


def escaped(text: str) -> str:
    """`text` on one line, so that neither Markdown nor HTML nor a formula begins in it.

    >>> escaped("a|b <script> *c* `d` $e$")
    'a\\\\|b &lt;script&gt; \\\\*c\\\\* \\\\`d\\\\` \\\\$e\\\\$'
    """
    line = " ".join(visible(text[:CHARACTERS]).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", line)


def with_code(text: str) -> str:
    """`text` escaped, but for code between backticks, which stays code.

    >>> with_code("Run `%aiaas_bench a_b` for a_b.")
    'Run `%aiaas_bench a_b` for a\\\\_b.'
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escaped(text)
    code = [" ".join(visible(part).split()).replace("|", "\\|").replace("<", "&lt;") if "<" in part else part for part in parts]
    pieces = [f"`{code[place]}`" if place % 2 else _spaced(part) for place, part in enumerate(parts)]
    return "".join(pieces)


def _spaced(text: str) -> str:
    """`escaped`, keeping a space at either end."""
    return f"{' ' if text[:1].isspace() else ''}{escaped(text)}{' ' if text[-1:].isspace() and text.strip() else ''}"


# --------------------------------------------------------------------------- YAML


def front_matter(card: ModelCard) -> str:
    """The card's head. Strings are written as JSON, which YAML reads, so no name can end one."""
    lines: list[str] = []
    if card.license:
        lines.append(f"license: {_text(card.license)}")
    if card.library:
        lines.append(f"library_name: {_text(card.library)}")
    lines += _list("tags", [_text(tag) for tag in ("aiaas_magics", *card.tags)])
    metrics = [metric for metric in card.metrics if math.isfinite(metric.value)]
    if metrics:
        lines += _list("metrics", [_text(name) for name in dict.fromkeys(metric.name for metric in metrics)])
        lines += _model_index(card, metrics)
    return "\n".join(lines) + "\n"


def _model_index(card: ModelCard, metrics: Sequence[CardMetric]) -> list[str]:
    """Results as the Hub's `model-index` has them: each data set once, with its metrics."""
    lines = ["model-index:", f"- name: {_text(card.name)}", "  results:"]
    for data in dict.fromkeys(metric.data for metric in metrics):
        lines += ["  - task:", f"      type: {_text(card.task)}"]
        lines += ["    dataset:", f"      name: {_text(data)}", f"      type: {_text(data)}", "    metrics:"]
        for metric in metrics:
            if metric.data == data:
                lines += [f"    - type: {_text(metric.name)}", f"      value: {metric.value!r}", f"      name: {_text(metric.name)}"]
    return lines


def _list(key: str, items: Sequence[str]) -> list[str]:
    return [f"{key}:", *(f"- {item}" for item in items)]


def _text(value: str) -> str:
    return json.dumps(" ".join(visible(value).split()))
