"""Options: how a magic declares what can be typed after it, and the only parser of that.

Owns the `option` decorator, the options that several magics share, and the parser with its sentences. Reading a single
value belongs to `option_values`; each file in `magics/` declares its own options. Parsing, `?` help, completion and the
reference page (`docs/generate.py`) are all made from these declarations.
"""

from __future__ import annotations

import difflib
import re
import shlex
from argparse import ArgumentParser, Namespace
from typing import Any, Final, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic_arguments import ArgDecorator

from aiaas_magics.notebook.option_values import variable

V = TypeVar("V")

UI_CHOICES: Final = ("auto", "widget", "html", "text", "none")


class option(ArgDecorator):  # type: ignore[misc, unused-ignore]
    """`argument` of IPython, with the kind of its values for completion: "model", "array", "job", "endpoint", "workers"."""

    def __init__(self, *flags: str, values: str = "", **kwargs: Any) -> None:
        self.flags, self.values, self.kwargs = flags, values, kwargs

    def add_to_parser(self, parser: ArgumentParser, group: Any) -> None:
        action: Any = (group or parser).add_argument(*self.flags, **self.kwargs)
        action.aiaas_values = self.values


HELP = option("-h", "--help", action="store_true", help="Show this help and do nothing.")
UI = option("--ui", choices=UI_CHOICES, metavar="KIND", help="How to show progress: auto, widget, html, text or none.")
OUT = option("-o", "--out", type=variable, metavar="NAME", help="Also assign the result to this variable.")
JOB = option("job", nargs="?", metavar="JOB", values="job", help="Id or name of the job (default: the last job of this kernel).")
ENDPOINT = option("name", nargs="?", metavar="NAME", values="endpoint", help="Name of the endpoint.")


def read(magic: Any, line: str, as_value: type[V]) -> V:
    """What was typed after `magic`, as a value.

    Raises:
        UsageError: IPython's own, exactly that class, so that one line is shown and Run All stops.
    """
    return as_value(**vars(parse(magic, line)))


def parse(magic: Any, line: str) -> Namespace:
    words = split(line)
    refuse_unresolved(words)
    parser: ArgumentParser = magic.parser
    parser.allow_abbrev = False
    refuse_unknown(parser, words)
    try:
        parsed, rest = parser.parse_known_args(words)
    except UsageError as error:
        raise UsageError(_readable(str(error), parser.prog)) from None
    if rest and "(" in rest[0]:
        raise UsageError(f"{rest[0]!r} was not expected here. Code goes on the lines below %%{parser.prog}.")
    if rest:
        raise UsageError(f"{rest[0]!r} was not expected here. An option takes one word, quoted if it has spaces; see %{parser.prog} -h.")
    return parsed


def split(line: str) -> list[str]:
    """The words of a line; quotes hold a word together and are taken off."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    lexer.escape = ""
    try:
        return list(lexer)
    except ValueError:
        raise UsageError("A quotation mark is not closed. Write 'two words' with the same mark at both ends.") from None


def refuse_unresolved(words: list[str]) -> None:
    """IPython leaves the whole line as it is when one variable in it is unknown, and says nothing."""
    for word in words:
        if match := re.search(r"\{([^{}]*)\}|^\$(\w+)$|=\$(\w+)$", word):
            name = next(filter(None, match.groups()), "")
            raise UsageError(f"Variable {name!r} is not defined. Define it before this cell, or write the value itself.")


def refuse_unknown(parser: ArgumentParser, words: list[str]) -> None:
    flags = [flag for action in parser._actions for flag in action.option_strings]
    for word in words:
        if word == "--":
            return
        flag = word.split("=", 1)[0]
        if not re.match(r"--?[A-Za-z]", flag) or flag in flags:
            continue
        if not flag.startswith("--") and flag[:2] in flags:
            continue  # -n2
        close = difflib.get_close_matches(flag, flags, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else f"%{parser.prog} -h lists the options."
        raise UsageError(f"There is no option {flag}. {hint}")


def _readable(text: str, prog: str) -> str:
    """argparse's message as a sentence with the next move."""
    text = re.sub(r"^argument (\S+): ", r"\1: ", text)
    if text.endswith("expected one argument"):
        return f"{text.split(':')[0]} needs a value; see %{prog} -h."
    if "invalid choice" in text:
        return f"{text.rstrip('.')}."
    return text
