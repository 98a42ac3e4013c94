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
    "__init__": {"client", "notebook", "explain", "packing"},
    "__main__": {"cli"},
    "cli": {"commands", "client", "backend.server", "backend.serving", "backend.net"},
    "commands": {"client", "doctor", "backend.server", "backend.folders"},
    "doctor": {"client", "backend.server"},
    "core": set(),
    "notebook": {"client", "packing", "plots", "explain", "attacks"},
    "client": {"packing", "plots", "explain"},
    "packing": set(),
    "attacks": {"plots"},
    "plots": set(),
    "explain": {"plots"},
    "backend.net": set(),
    "backend.folders": set(),
    "backend.jobs": set(),
    "backend.server": {"backend.workers", "backend.jobs", "backend.serving", "backend.net", "backend.folders"},
    "backend.workers": {"backend.training", "backend.jobs", "backend.folders", "packing"},
    "backend.training": {"backend.folders", "packing", "explain"},
    "backend.serving": {"backend.net", "backend.folders", "explain"},
    "testing": {"backend.server", "backend.workers", "backend.jobs", "backend.serving", "backend.training", "backend.folders", "client"},
}

# The same one floor down: imports for types only and lazy ones count too. What stands further down in a table may import from what
# stands above it, never the other way round. "base" are the files beside the folders.
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

PACKING_ARROWS: dict[str, set[str]] = {
    "live": set(),  # what is asked of live objects
    "pickling": {"live"},
    "data": {"pickling", "live"},
    "checks": {"data", "pickling", "live"},
    "portable": {"checks", "data", "pickling", "live"},
    "export": {"checks", "data", "pickling", "live"},
    "formats": {"export", "live"},  # files for other programs
    "fitcall": {"portable", "export", "checks", "data", "pickling", "live"},
}

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

INNER_ARROWS = {"backend.training": TRAINING_ARROWS, "packing": PACKING_ARROWS, "backend.serving": SERVING_ARROWS}

# library -> the only places that may import it
HOMES: dict[str, tuple[str, ...]] = {
    "IPython": ("notebook/",),
    "ipywidgets": ("notebook/",),
    "anywidget": ("notebook/",),
    "matplotlib": ("plots/", "backend/training/matplotlib_backend.py"),
    "httpx": ("client/transport.py",),
    "keyring": ("client/stored_tokens.py",),
    "httpcore": ("client/connections.py",),
    "keras": (
        "notebook/capture.py",
        "attacks/",
        "packing/",
        "explain/",
        "backend/training/",
        "backend/workers/local/launcher.py",
        "backend/workers/worker_main.py",
    ),
    "tensorflow": (
        "notebook/capture.py",
        "attacks/attack_gradients.py",
        "packing/",
        "explain/",
        "backend/training/",
        "backend/workers/local/launcher.py",
        "backend/workers/worker_main.py",
        "backend/serving/engines/saved_model_child.py",
    ),
    "cloudpickle": ("packing/",),
    "pickle": ("packing/",),
    "jax": ("backend/training/jax/", "explain/jax_gradients.py", "attacks/attack_gradients.py"),
    "shap": ("explain/shap_adapter.py",),
    "art": ("attacks/art_attack.py",),
    # In the kernel too: what fewer bits change is measured with the engine that will serve, before anything is sent.
    "onnxruntime": ("backend/serving/engines/onnx_engine.py", "packing/export/onnx_session.py"),
    # Runtimes of exported files, each only where its format is written and compared.
    "ai_edge_litert": ("packing/formats/litert_file.py",),
    "openvino": ("packing/formats/openvino_ir.py",),
    "transformers": ("packing/formats/huggingface_folder.py",),
    "torch": ("packing/formats/huggingface_folder.py",),
    "keras_hub": ("packing/formats/huggingface_folder.py",),
    "grpc": ("backend/serving/grpc/",),
    "google": ("backend/serving/grpc/",),
    "cryptography": ("core/integrity.py",),
    "mlflow": ("client/training/mlflow_process.py",),
    "packaging": ("doctor/package_checks.py",),
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


def inner_room(parts: list[str], arrows: dict[str, set[str]]) -> str:
    """The innermost room of `arrows` that a dotted path lies in, whose parts below the outer room these are."""
    rooms = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
    return next((room for room in rooms if room in arrows), "base")


@pytest.mark.parametrize("outer", INNER_ARROWS)
def test_every_import_within_a_room_points_along_its_arrows(outer: str) -> None:
    arrows, prefix = INNER_ARROWS[outer], f"aiaas_magics.{outer}."
    rooms, wrong = set(), []
    for name, path in modules():
        module = f"aiaas_magics.{name.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")
        if not module.startswith(prefix):
            continue
        here = inner_room(module.removeprefix(prefix).split("."), arrows)
        assert here in arrows, f"{name} lies in a room without arrows"
        rooms.add(here)
        wrong += [
            f"{name}:{line} imports {target}"
            for target, line in imported(path, counts_types=True)
            if target.startswith(prefix) and inner_room(target.removeprefix(prefix).split("."), arrows) not in {here, *arrows[here]}
        ]

    assert wrong == []
    assert rooms == arrows.keys(), "each room has a module"


@pytest.mark.parametrize("outer", INNER_ARROWS)
def test_the_arrows_within_a_room_have_no_cycle(outer: str) -> None:
    arrows = INNER_ARROWS[outer]
    rooms = list(arrows)

    assert [room for place, room in enumerate(rooms) if arrows[room] - {*rooms[:place]}] == []


def test_who_may_do_what_rests_on_the_records_alone() -> None:
    """Within the server: users, tokens and spaces know nothing of jobs, routes or the conductor, which ask them."""
    folder, prefix = "backend/server/identity/", "aiaas_magics.backend.server."
    allowed = (f"{prefix}identity.", f"{prefix}storage.account_records", f"{prefix}storage.records", f"{prefix}storage.blob_store")
    wrong = [
        f"{name}:{line} imports {target}"
        for name, path in modules()
        if name.startswith(folder)
        for target, line in imported(path, counts_types=True)
        if target.startswith(prefix) and not target.startswith(allowed)
    ]

    assert wrong == []
    assert any(name.startswith(folder) for name, _ in modules())


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
        targets = {target.removeprefix("aiaas_magics.") for target, _ in imported(path, counts_types=True)}
        edges[here] = {target if target in dotted else target.rpartition(".")[0] for target in targets} & dotted.keys() - {here}
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


LEARNING = {"tensorflow", "jax", "keras", "shap", "sklearn", "scipy"}


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
        *((f"aiaas_magics.explain.{name}", {*LEARNING, "matplotlib", "IPython", "pandas"}) for name in ("black_box", "explain_model")),
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
