"""Namespace: finds the variables and files that a magic's line names.

Owns the search and the sentence for a name that is not found. Words are read by `options`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aiaas_magics.core.errors import UsageError
from aiaas_magics.notebook import completion

FILES: Final = (".keras", ".h5", ".hdf5", ".onnx", ".tflite", ".xml")
# Libraries whose objects are served, or told how they can be.
LIBRARIES: Final = frozenset({"sklearn", "xgboost", "lightgbm", "onnx", "onnxruntime", "torch", "tf_keras", "tensorflow", "keras"})


def model_of(text: str, scope: dict[str, Any]) -> Any:
    """What is to be deployed: the value of a variable, or the path of a file or folder.

    Raises:
        UsageError: it is neither.
    """
    value = scope.get(text)
    if text not in scope and (text.endswith(FILES) or "/" in text or Path(text).is_dir()):
        value = text
    if isinstance(value, (str, Path)):
        path = Path(value).expanduser()
        if not path.exists():
            raise UsageError(
                f"There is no file or folder {str(value)!r} here ({Path.cwd()}). Name a variable or a file that holds a model."
            )
        return path
    return named(text, scope, is_servable, "Keras model", offered=completion.is_model)


def is_servable(value: Any) -> bool:
    """Whether `value` is a model of a library that is known here; told by its class' ancestry, without importing any."""
    if completion.is_model(value):
        return True
    return bool({str(cls.__module__).partition(".")[0] for cls in type(value).__mro__} & LIBRARIES) and not completion.is_array(value)


def named(
    name: str, scope: dict[str, Any], is_suitable: Callable[[Any], bool], kind: str, *, offered: Callable[[Any], bool] | None = None
) -> Any:
    """The value of the variable `name`.

    Args:
        offered: which variables a refusal names; those that are wanted, if left out.

    Raises:
        UsageError: it is not defined, or not of that kind; with the names that are.
    """
    if not name.isidentifier():
        raise UsageError(f"{name!r} is not the name of a variable. Assign the value to a variable first, and give its name.")
    if name not in scope:
        close = difflib.get_close_matches(name, [variable for variable in scope if not variable.startswith("_")], n=1)
        hint = f"Did you mean {close[0]}?" if close else "Run the cell that defines it first."
        raise UsageError(f"Variable {name!r} is not defined. {hint}")
    if not is_suitable(scope[name]):
        fitting = sorted(variable for variable, value in scope.items() if not variable.startswith("_") and (offered or is_suitable)(value))
        hint = f"Use one of: {', '.join(fitting[:8])}." if fitting else f"There is no {kind} in this notebook yet."
        raise UsageError(f"{name!r} is of type {type(scope[name]).__name__}, not a {kind}. {hint}")
    return scope[name]
