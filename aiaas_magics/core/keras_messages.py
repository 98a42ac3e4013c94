"""Keras messages: what Keras and TensorFlow say of an error, without the stack that they wrap around it.

Owns finding the sentence that tells what went wrong, and the lines of code that a step's graph remembers.
Which of these lines are the user's belongs to `error_report`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

GRAPH: Final = "Graph execution error:"
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_CALLING: Final = re.compile(
    r"\AException encountered when calling (?P<what>[\w.]+\(\))\.?\s*(?P<said>.*?)\s*(?:Arguments received by .*)?\Z", re.DOTALL
)
_LINE: Final = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$')
_PLACE: Final = re.compile(r"\[\[\{\{node (?P<node>[^}]+)\}\}.*?\]\]", re.DOTALL)
_NODE: Final = re.compile(r"^Detected at node (?P<node>\S+)")
# A graph that was loaded has no lines of code; TensorFlow says so in their place.
_NOISE: Final = re.compile(r"\[\[.*?\]\]|\[Op:[^\]]+\]|\{\{function_node [^}]*\}\}|<stack traces unavailable>")
_ROOTS: Final = re.compile(r"\d+ root error\(s\) found\.\s*\(0\)\s*(?:[A-Z_]+:)?(?P<said>.*?)\(1\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """Where an operation was made."""

    file: str
    line: int
    function: str


def message_of(error: BaseException) -> str:
    """The message of `error`: what was found, and in which operation or layer; without stacks, colours and dumps of arguments."""
    message = _COLOUR.sub("", str(error)).strip()
    if message.startswith(GRAPH):
        return _of_graph(message)
    if place := _PLACE.search(message):  # a graph that was loaded, or a `tf.function` called by itself
        return f"{' '.join(_NOISE.sub('', message[: place.start()]).split())} (at the operation {place['node']})"
    wrapped = _CALLING.match(message)
    return f"{wrapped['said']} (in {wrapped['what']})" if wrapped and wrapped["said"] else message


def _of_graph(message: str) -> str:
    """What stands behind the stack of the operation, and its name; of several root errors the first."""
    lines = message[len(GRAPH) :].splitlines()
    nodes = [match["node"] for line in lines if (match := _NODE.match(line.strip()))]
    behind = max((place for place, line in enumerate(lines) if _LINE.match(line)), default=-1) + 1
    behind_stack = _NOISE.sub("", "\n".join(line for line in lines[behind:] if not _NODE.match(line.strip())))
    roots = _ROOTS.search(behind_stack)
    text = " ".join((roots["said"] if roots else behind_stack).split()) or message
    return f"{text} (at the operation {nodes[0]})" if nodes else text


def lines_of(error: BaseException) -> Iterator[Line]:
    """Of an error in a step that TensorFlow compiled: the lines that made the operation, outermost first. Others have none."""
    message = str(error)
    if not message.startswith(GRAPH):
        return
    first = False
    for text in message.splitlines():
        if _NODE.match(text.strip()):
            if first:
                return
            first = True
        elif match := _LINE.match(text):
            yield Line(match["file"], int(match["line"]), match["function"].strip())
