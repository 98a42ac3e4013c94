"""What the client scripts share: the task from stdin, and telling on stdout what was seen.

Each script runs in its client's own environment, which has numpy and does not have this package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

TYPES = {"article": {"x": "float32"}, "sums": {"a": "float32", "b": "int32"}, "text": {"x": "object"}}


class Telling:
    """`with Telling() as tell:` prints everything at the end."""

    def __init__(self) -> None:
        task = json.load(sys.stdin)
        self.http, self.grpc, self.token = task["http"], task["grpc"], task["token"]  # the addresses are host:port
        self.bearer = f"Bearer {self.token}"
        self.managing = f"Bearer {task['api_token']}"  # what loads and unloads
        self.messages = task["messages"]
        self.outputs: dict[str, list[str]] = task["outputs"]
        self.inputs = {
            model: {name: np.array(values, TYPES[model][name]) for name, values in inputs.items()}
            for model, inputs in task["inputs"].items()
        }
        for name, array in self.inputs["text"].items():
            self.inputs["text"][name] = np.vectorize(str.encode, otypes=[object])(array)
        self._answers: list[dict[str, Any]] = []
        self._seen: dict[str, Any] = {}

    def __enter__(self) -> Telling:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            json.dump({"answers": self._answers, "seen": self._seen}, sys.stdout, default=_plain)

    def answered(self, call: str, model: str, outputs: dict[str, Any]) -> None:
        self._answers.append({"call": call, "model": model, "outputs": {name: _plain(value) for name, value in outputs.items()}})

    def saw(self, **seen: Any) -> None:
        self._seen.update(seen)

    def refused(self, what: str, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - whatever a client raises is what is to be seen
            self._seen[what] = f"{type(error).__name__}: {error}"
        else:
            self._seen[what] = "answered"

    def compare(self, *modules: Any) -> None:
        """Hold the server's descriptions of messages against those of the client's generated modules."""
        theirs = {name: m for module in modules for name, m in module.DESCRIPTOR.message_types_by_name.items()}
        differing, missing, compared = [], [], 0
        for name, fields in self.messages.items():
            outer, *inner = name.split(".")
            if outer not in theirs:
                continue
            twin = theirs[outer]
            for part in inner:
                twin = twin.nested_types_by_name.get(part) if twin else None
            for field, described in fields.items():
                found = twin.fields_by_name.get(field) if twin else None
                if found is None:
                    missing.append(f"{name}.{field}")
                elif [found.number, found.type, _is_repeated(found)] != described:
                    differing.append(f"{name}.{field}")
                compared += 1
        self._seen.update(differing=differing, missing=missing, compared=compared)


def _is_repeated(field: Any) -> bool:
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return value.decode()
    return value
