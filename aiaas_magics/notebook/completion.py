"""Tab completion of a magic's options and their values.

Owns the matcher. Options and choices come from the parsers in `options`, values from the
kernel's namespace and from what this kernel has seen of jobs and endpoints: the matcher
runs on every Tab, also while the kernel is busy, so it sends no request and imports nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from IPython.core.completer import SimpleCompletion, context_matcher

MAGIC_LINE: Final = re.compile(r"^\s*(?:[\w, ]+=\s*)?(%{1,2})(aiaas_\w+)[ \t](.*)$")
MOST: Final = 200

Names = Callable[[str], list[str]]


def make_matcher(shell: Any, parsers: Mapping[str, argparse.ArgumentParser], names_seen: Names) -> Any:
    """A matcher for `shell.Completer.custom_matchers`.

    Args:
        parsers: by the magic's name.
        names_seen: the names of a kind ("job", "endpoint", "backend") that this kernel has seen.
    """

    @context_matcher(priority=10, identifier="aiaas_magics.options")  # type: ignore[untyped-decorator]
    def matcher(context: Any) -> dict[str, Any]:
        texts, fragment = completions(line_of(context), parsers, lambda kind: values(kind, shell, names_seen))
        shown = [SimpleCompletion(text=text, type="param") for text in texts[:MOST]]
        return {"completions": shown, "suppress": bool(shown), "matched_fragment": fragment, "ordered": True}

    return matcher


def line_of(context: Any) -> str:
    """The line up to the cursor."""
    lines = context.full_text.splitlines() or [""]
    line = lines[context.cursor_line] if context.cursor_line < len(lines) else ""
    return str(line[: context.cursor_position])


def completions(line: str, parsers: Mapping[str, argparse.ArgumentParser], named: Names) -> tuple[list[str], str]:
    """What may follow at the end of `line`, and the part of it that is being completed."""
    match = MAGIC_LINE.match(line)
    if not match or match[2] not in parsers:
        return [], ""
    parser = parsers[match[2]]
    words = re.split(r"[ \t]+", match[3])
    typed, before = words[-1], words[:-1]
    if "=" in typed and typed.startswith("--"):
        flag, value = typed.split("=", 1)
        return _values_of(_option(parser, flag), value, named), value
    if before and (option := _option(parser, before[-1])) is not None and option.nargs != 0:
        return _values_of(option, typed, named), typed
    if typed.startswith("-"):
        used = {word.split("=", 1)[0] for word in before}
        flags = [action.option_strings[-1] for action in parser._actions if action.option_strings and not used & set(action.option_strings)]
        return sorted(flag for flag in flags if flag.startswith(typed)), typed
    positional = next((action for action in parser._actions if not action.option_strings), None)
    positionals = _positionals_before(parser, before)
    return (_values_of(positional, typed, named) if positional and not positionals else []), typed


def values(kind: str, shell: Any, names_seen: Names) -> list[str]:
    """Names of a kind, from this kernel alone."""
    if kind == "workers":
        return ["1", "2", "1,2", "max"]
    if kind == "model":
        return _variables(shell, is_model)
    if kind == "explainable":
        return [*_variables(shell, is_model), *names_seen("endpoint")]
    if kind == "array":
        return _variables(shell, is_array)
    return names_seen(kind)


def is_model(value: Any) -> bool:
    """A Keras model, told by its class' ancestry: Keras is not imported here."""
    return any(kind.__name__ == "Model" and kind.__module__.startswith("keras.") for kind in type(value).__mro__)


def is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return True
    return type(value).__module__.split(".")[0] in {"pandas", "tensorflow"} and hasattr(value, "shape")


def _variables(shell: Any, is_suitable: Callable[[Any], bool]) -> list[str]:
    hidden = getattr(shell, "user_ns_hidden", {})
    return sorted(
        name for name, value in list(shell.user_ns.items()) if not name.startswith("_") and name not in hidden and is_suitable(value)
    )


def _option(parser: argparse.ArgumentParser, flag: str) -> argparse.Action | None:
    return next((action for action in parser._actions if flag in action.option_strings), None)


def _values_of(action: argparse.Action | None, typed: str, named: Names) -> list[str]:
    if action is None:
        return []
    if action.choices:
        offered = [str(choice) for choice in action.choices]
    else:
        kind = getattr(action, "aiaas_values", "")
        offered = named(kind) if kind else []
    return [text for text in offered if text.startswith(typed)]


def _positionals_before(parser: argparse.ArgumentParser, words: list[str]) -> bool:
    """Whether one of the words before is a positional already."""
    skip = False
    for word in words:
        if skip or not word:
            skip = False
            continue
        if word.startswith("-"):
            option = _option(parser, word)
            skip = option is not None and option.nargs != 0
            continue
        return True
    return False
