"""Private names of the frameworks: where they are in the versions that we support.

Owns finding them, one module a framework, so that a release that moves one is a change there and nowhere else. What is done
with them belongs to whoever imports them: `from aiaas_magics.core.internals.keras_internals import EpochIterator`.

Nothing is imported before a name is asked for. A name that is gone is said with the versions that have it.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from aiaas_magics.core.errors import PrivateNameGone


def find(framework: str, path: str) -> Any:
    """What `path` names: a module, or with a colon something in it; of names with a bar between them the first that is there.

    Raises:
        PrivateNameGone: the version that is installed has no such thing.
    """
    module, _, name = path.partition(":")
    try:
        container = importlib.import_module(module)
        names = name.split("|")
        return (
            getattr(container, next((candidate for candidate in names if hasattr(container, candidate)), names[0])) if name else container
        )
    except (ModuleNotFoundError, AttributeError) as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and not module.startswith(str(missing)):
            raise  # something that it imports is not installed
        raise PrivateNameGone(framework, installed(framework), path, supported(framework)) from error


def look_up(framework: str, paths: Mapping[str, str], name: str, into: dict[str, Any]) -> Any:
    """A module's `__getattr__`: what `name` stands for in `paths`, kept in the module's own names `into`."""
    if name not in paths:
        raise AttributeError(f"There is no private name {name!r} of {framework} in aiaas_magics.core.internals. Add its path there.")
    into[name] = value = find(framework, paths[name])
    return value


def installed(framework: str) -> str:
    """The version that runs, or else the one that would."""
    running = getattr(sys.modules.get(framework), "__version__", None)
    if running is not None:
        return str(running)
    for distribution in (framework, f"{framework}-cpu", f"{framework}-nightly"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "of an unknown version"


def supported(framework: str) -> str:
    """What to install, as the package's own metadata has it.

    >>> supported("tensorflow").startswith("tensorflow")
    True
    """
    try:
        requirements = metadata.requires("aiaas_magics") or []
    except metadata.PackageNotFoundError:
        requirements = []
    lines = [line.partition(";")[0].strip() for line in requirements]
    return next((line for line in lines if re.match(rf"{framework}\b(?!\[)", line)), framework)
