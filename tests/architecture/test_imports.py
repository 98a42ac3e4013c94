"""The arrows of the design, read off the code: who may import whom, and where a library lives."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "aiaas_magics"
# room -> rooms it may import from, itself and `core` aside
ARROWS: dict[str, set[str]] = {
    "__init__": {"client", "notebook"},
    "__main__": {"cli"},
    "cli": {"client", "backend.server", "backend.net"},
    "core": set(),
    "notebook": {"client", "packing", "plots"},
    "client": {"packing", "plots"},
    "packing": set(),
    "plots": set(),
    "backend.net": set(),
    "backend.folders": set(),
    "backend.jobs": set(),
    "backend.server": {"backend.workers", "backend.jobs", "backend.serving", "backend.net", "backend.folders"},
    "backend.workers": {"backend.training", "backend.jobs", "backend.folders", "packing"},
    "backend.training": {"backend.folders", "packing"},
    "backend.serving": {"backend.net", "backend.folders"},
    "testing": {"backend.server", "backend.workers", "backend.jobs", "backend.serving", "backend.training", "backend.folders", "client"},
}

# The same one floor down, in `backend.training`: its folders, `run` (which puts together), and the files beside it ("base").
TRAINING_ARROWS: dict[str, set[str]] = {
    "comm": set(),
    "base": {"comm"},
    "checkpoint": {"base", "comm"},
    "autotune": {"base", "comm"},
    "tensorflow.parallel": {"base", "comm"},
    "tensorflow": {"base", "comm", "autotune", "tensorflow.parallel"},
    "jax": {"base", "comm", "autotune"},
    "run": {"base", "comm", "autotune", "checkpoint"},
}

# The same one floor down in `packing`, imports for types and inside functions among them.
PACKING_ARROWS: dict[str, set[str]] = {
    "live": set(),  # what is asked of live objects
    "pickling": {"live"},
    "data": {"pickling", "live"},
    "checks": {"data", "pickling", "live"},
    "portable": {"checks", "data", "pickling", "live"},
    "export": {"checks", "data", "pickling", "live"},
    "fitcall": {"portable", "export", "checks", "data", "pickling", "live"},
}

# The same one floor down, in `backend.serving`; imports for types only and lazy ones count too. What stands further down may import
# from what stands above it, never the other way round.
SERVING_ARROWS: dict[str, set[str]] = {
    "engines": set(),
    "models": {"engines"},
    "protocols": {"models"},
    "protocols.tfserving": {"protocols", "models", "engines"},
    "protocols.open_inference": {"protocols", "protocols.tfserving", "models", "engines"},
    "protocols.discovery": {"protocols", "protocols.tfserving", "protocols.open_inference", "models"},
    "http": {"protocols", "protocols.tfserving", "protocols.open_inference", "protocols.discovery", "models", "engines"},
    "http.fast_path": {"http", "protocols", "protocols.open_inference", "models"},
    "grpc": {"http", "protocols", "protocols.tfserving", "protocols.open_inference", "models"},
    "process": {"grpc", "http", "http.fast_path", "protocols", "models", "engines"},
    "__main__": {"process", "http", "models"},
}

# library -> the only places that may import it
HOMES: dict[str, tuple[str, ...]] = {
    "IPython": ("notebook/",),
    "ipywidgets": ("notebook/",),
    "anywidget": ("notebook/",),
    "matplotlib": ("plots/", "backend/training/matplotlib_backend.py"),
    "httpx": ("client/transport.py",),
    "httpcore": ("client/connections.py",),
    "keras": (
        "notebook/capture.py",
        "packing/",
        "backend/training/",
        "backend/workers/local/launcher.py",
        "backend/workers/worker_main.py",
    ),
    "tensorflow": (
        "notebook/capture.py",
        "packing/",
        "backend/training/",
        "backend/workers/local/launcher.py",
        "backend/workers/worker_main.py",
        "backend/serving/engines/saved_model_child.py",
    ),
    "cloudpickle": ("packing/",),
    "pickle": ("packing/",),
    "jax": ("backend/training/jax/",),
    # In the kernel too: what fewer bits change is measured with the engine that will serve, before anything is sent.
    "onnxruntime": ("backend/serving/engines/onnx_engine.py", "packing/export/onnx_session.py"),
    "grpc": ("backend/serving/grpc/",),
    "google": ("backend/serving/grpc/",),
    "opentelemetry": ("backend/serving/http/tracing.py",),
    "ray": ("backend/workers/ray/",),
    "sqlalchemy": ("backend/server/",),
    "starlette": ("backend/server/",),
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path


def room_of(parts: list[str]) -> str:
    """The room a dotted path below the package lies in: `backend.server.store` lies in `backend.server`."""
    if parts[:1] == ["backend"]:
        return ".".join(parts[:2])
    return parts[0] if parts else "__init__"


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Four tests walk all modules."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path, *, counts_types: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute names that a module imports at run time, wherever in the file; typing-only blocks aside, unless these count."""
    tree = parsed(path)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if not counts_types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def test_every_import_points_along_the_arrows() -> None:
    wrong = []
    for name, path in modules():
        here = room_of(name.removesuffix(".py").split("/"))
        assert here in ARROWS or here == "backend.__init__", f"{name} lies in a room without arrows"
        allowed = {here, "core", *ARROWS.get(here, set())}
        for target, line in imported(path):
            if not target.startswith("aiaas_magics."):
                continue
            there = room_of(target.split(".")[1:])
            if there not in allowed and there in ARROWS:
                wrong.append(f"{name}:{line} imports {target}")

    assert wrong == []


TRAINING = "aiaas_magics.backend.training."


def training_room(module: str) -> str:
    """`aiaas_magics.backend.training.tensorflow.parallel.hooks` lies in `tensorflow.parallel`, a file beside the folders in `base`."""
    below = module.removeprefix(TRAINING)
    return next((room for room in sorted(TRAINING_ARROWS, key=len, reverse=True) if f"{below}.".startswith(f"{room}.")), "base")


def training_imports() -> dict[str, dict[str, int]]:
    """What each module of training imports of the others, with the line: lazy and type-only imports too."""
    dotted = {f"aiaas_magics.{name.removesuffix('.py').replace('/', '.')}": path for name, path in modules()}
    inside = {module: path for module, path in dotted.items() if module.startswith(TRAINING) and not module.endswith("__init__")}
    edges: dict[str, dict[str, int]] = {}
    for module, path in inside.items():
        edges[module] = {}
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = (f"{node.module}.{alias.name}" for alias in node.names)
                targets = (full if full in inside else node.module for full in named)
                edges[module] |= {target: node.lineno for target in targets if target in inside}
    return edges


def test_training_has_arrows_of_its_own_and_no_cycle() -> None:
    edges = training_imports()
    assert {training_room(module) for module in edges} == TRAINING_ARROWS.keys(), "each room has a module"

    wrong = [
        f"{module}:{line} imports {target}"
        for module, targets in edges.items()
        for target, line in targets.items()
        if training_room(target) not in {training_room(module), *TRAINING_ARROWS[training_room(module)]}
    ]
    leaves = dict(edges)
    while free := [module for module, targets in leaves.items() if not targets.keys() & leaves.keys()]:
        for module in free:
            del leaves[module]

    assert wrong == []
    assert sorted(leaves) == [], "a cycle, or what imports one"


def every_import(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names that a module imports, for types too, wherever in the file."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)


def test_every_import_inside_packing_points_along_its_arrows() -> None:
    wrong = []
    for name, path in modules():
        side, _, rest = name.partition("/")
        if side != "packing" or "/" not in rest:
            continue
        here = rest.partition("/")[0]
        assert here in PACKING_ARROWS, f"{name} lies in a room without arrows"
        for target, line in every_import(path):
            parts = target.split(".")
            if parts[:2] == ["aiaas_magics", "packing"] and parts[2] not in {here, *PACKING_ARROWS[here]}:
                wrong.append(f"{name}:{line} imports {target}")


SERVING = "aiaas_magics.backend.serving."


def serving_room_of(parts: list[str]) -> str:
    """The innermost room of `SERVING_ARROWS` that a dotted path below `backend.serving` lies in."""
    inner = ".".join(parts[:2])
    return inner if inner in SERVING_ARROWS else parts[0]


def test_every_import_within_serving_points_along_its_arrows() -> None:
    wrong = []
    for name, path in modules():
        parts = name.removesuffix(".py").removesuffix("/__init__").split("/")[2:]
        if not name.startswith("backend/serving/") or not parts or parts == ["__init__"]:
            continue
        here = serving_room_of(parts)
        assert here in SERVING_ARROWS, f"{name} lies in a room without arrows"
        allowed = {here, *SERVING_ARROWS[here]}
        wrong += [
            f"{name}:{line} imports {target}"
            for target, line in imported(path, counts_types=True)
            if target.startswith(SERVING) and serving_room_of(target.removeprefix(SERVING).split(".")) not in allowed
        ]

    assert wrong == []


def test_no_module_of_packing_is_reached_from_itself() -> None:
    """Imports for types and inside functions count."""
    known = {f"aiaas_magics.{name.removesuffix('.py').replace('/', '.')}" for name, _ in modules() if name.startswith("packing/")}
    edges = {
        f"aiaas_magics.{name.removesuffix('.py').replace('/', '.')}": {
            module for target, _ in every_import(path) for module in (target, target.rpartition(".")[0]) if module in known
        }
        for name, path in modules()
        if name.startswith("packing/")
    }
    while leaves := [module for module, targets in edges.items() if not targets & edges.keys()]:
        for module in leaves:
            del edges[module]

    assert {module: sorted(targets & edges.keys()) for module, targets in edges.items()} == {}


def test_the_arrows_within_serving_have_no_cycle() -> None:
    rooms = list(SERVING_ARROWS)

    assert [room for place, room in enumerate(rooms) if SERVING_ARROWS[room] - {*rooms[:place]}] == []


def test_a_library_has_one_home() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name, path in modules()
        for target, line in imported(path)
        for library, homes in HOMES.items()
        if target.split(".")[0] == library and not name.startswith(homes)
    ]

    assert wrong == []


PRIVATE = ("keras.src", "tensorflow.python", "tensorflow._api", "jax._src")


def test_only_internals_know_where_private_names_are() -> None:
    """A framework's release that moves one is a change in `internals`; words in a text or a docstring are none."""
    wrong = []
    for name, path in modules():
        if name.startswith("core/internals/"):
            continue
        wrong += [
            f"{name}:{line} imports {target}" for target, line in imported(path) if f"{target}.".startswith(tuple(f"{p}." for p in PRIVATE))
        ]
        for node in ast.walk(parsed(path)):
            is_path = isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value
            if is_path and str(node.value).startswith(PRIVATE):
                wrong.append(f"{name}:{node.lineno} names {node.value}")
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(PRIVATE):
                wrong.append(f"{name}:{node.lineno} uses {ast.unparse(node)}")

    assert wrong == []


def test_internals_are_for_the_homes_of_their_library() -> None:
    """They are in the base, where the server could reach them too."""
    homes = {
        name: (*HOMES[name], "core/internals/", "backend/workers/local/deferred_imports.py") for name in ("keras", "tensorflow", "jax")
    }
    wrong = [
        f"{name}:{line} imports {target}"
        for name, path in modules()
        for target, line in imported(path)
        for library, places in homes.items()
        if f"{target}.".startswith(f"aiaas_magics.core.internals.{library}_internals.") and not name.startswith(places)
    ]

    assert wrong == []


def imports_of_modules() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports anywhere: within functions and for types only as well."""
    dotted = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for name, path in modules()}
    edges: dict[str, set[str]] = {}
    for here, path in dotted.items():
        targets: set[str] = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                paths = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
            elif isinstance(node, ast.Import):
                paths = [(alias.name, alias.name) for alias in node.names]
            else:
                continue
            short = [(full.removeprefix("aiaas_magics."), module.removeprefix("aiaas_magics.")) for full, module in paths]
            targets |= {full if full in dotted else module for full, module in short} & dotted.keys()
        edges[here] = targets - {here}
    return edges


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that reach one another."""

    @functools.cache
    def reached(begin: str) -> frozenset[str]:
        seen: set[str] = set()
        waiting = list(edges[begin])
        while waiting:
            if (module := waiting.pop()) not in seen:
                seen.add(module)
                waiting += edges[module]
        return frozenset(seen)

    groups: list[set[str]] = []
    for module in edges:
        if module in reached(module) and not any(module in group for group in groups):
            groups.append({other for other in reached(module) if module in reached(other)})
    return groups


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"g"}, "g": {"f", "a"}}

    assert circles(edges) == [{"a", "b", "c"}, {"f", "g"}]


def test_there_is_no_import_cycle() -> None:
    assert list(circles(imports_of_modules())) == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("aiaas_magics", {"tensorflow", "jax", "keras", "ray", "matplotlib", "IPython", "httpx", "numpy"}),
        ("aiaas_magics.client.backend", {"tensorflow", "jax", "keras", "ray", "matplotlib", "IPython"}),
        ("aiaas_magics.notebook.extension", {"tensorflow", "jax", "keras", "ray", "matplotlib"}),
        (
            "aiaas_magics.backend.server.api.api_app",
            {"tensorflow", "jax", "keras", "ray", "matplotlib", "IPython", "onnxruntime", "cloudpickle"},
        ),
        (
            "aiaas_magics.backend.serving.http.inference_app",
            {"grpc", "google.protobuf", "opentelemetry", "tensorflow", "jax", "keras", "ray", "matplotlib", "IPython", "cloudpickle"},
        ),
        ("aiaas_magics.cli", {"tensorflow", "jax", "keras", "ray", "matplotlib", "IPython"}),
    ],
)
def test_importing_brings_nothing_heavy(module: str, banned: set[str]) -> None:
    probe = f"import sys, {module}; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True, timeout=60)

    assert not banned & set(loaded.stdout.split())


def test_every_module_says_what_it_owns() -> None:
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules()}

    assert [name for name, text in texts.items() if text and not ast.get_docstring(ast.parse(text))] == []


def test_no_module_holds_two_things() -> None:
    """Four hundred lines is where a reader asks whether it is two; the models of our style stay below."""
    long = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules()}

    assert {name: lines for name, lines in long.items() if lines > 500} == {}
