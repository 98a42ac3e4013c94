"""Container files: Dockerfile, compose file and pinned requirements of one endpoint that is served without a notebook.

Owns the texts, and which installed distributions the serving process needs. The model's own files belong to `serving_folders`.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import aiaas_magics

# What a serving process imports, with the command line; `tests` compares this with a real process.
NEEDED: Final = (
    "click",
    "grpcio",
    "hdrhistogram",
    "httptools",
    "msgspec",
    "numpy",
    "onnx",
    "onnxruntime",
    "orjson",
    "protobuf",
    "psutil",
    "rich",
    "safetensors",
    "starlette",
    "uvicorn",
    "uvloop",
)
OF_SAVED_MODELS: Final = ("tensorflow",)
PORT: Final = 8080
GRPC_PORT: Final = 8081
PACKAGE: Final = "aiaas_magics"  # the folder of our own code
MODEL: Final = "model"  # the bundle


def requirements_text(kind: str) -> str:
    """The distributions that serve a model of this kind, with all that they need, each at the version that is installed here.

    Args:
        kind: "onnx" or "saved_model".
    """
    direct = NEEDED if kind == "onnx" else (*NEEDED, *OF_SAVED_MODELS)
    pins = sorted(f"{distribution}=={metadata.version(distribution)}" for distribution in closure(direct))
    head = "# Written by %aiaas_export: what serves this model, at the versions that it was exported with."
    return "\n".join((head, *pins, ""))


def closure(names: Iterable[str]) -> set[str]:
    """These distributions and what they need in turn, as far as it is installed here; by canonical name."""
    needed: set[str] = set()
    waiting = list(map(canonical, names))
    while waiting:
        name = waiting.pop()
        if name not in needed and (requires := _requires(name)) is not None:
            needed.add(name)
            waiting += requires
    return needed


def _requires(name: str) -> list[str] | None:
    """What a distribution needs without an extra; None where it is not installed."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return None
    return list(_names_in(lines))


def _names_in(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        head, _, marker = line.partition(";")
        if "extra" not in marker and (match := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", head.strip())):
            yield canonical(match[0])


def canonical(name: str) -> str:
    """The name of a distribution as PyPI compares it.

    >>> canonical("ML_dtypes")
    'ml-dtypes'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def dockerfile_text() -> str:
    """The Dockerfile: an account of its own, no shell in the command, the token from the environment."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    probe = (
        "import os, urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:"
        f"{PORT}/v2/health/ready', headers={{'Authorization': 'Bearer ' + os.environ['AIAAS_ENDPOINT_TOKEN']}}), timeout=3)"
    )
    return f"""\
# Written by %aiaas_export: one endpoint, without a notebook.
FROM python:{python}-slim
WORKDIR /srv
COPY requirements.txt .
RUN pip install --no-cache-dir --no-deps -r requirements.txt && useradd --system --uid 10001 serving
COPY {PACKAGE} {PACKAGE}
COPY {MODEL} {MODEL}
ENV AIAAS_HOME=/tmp/aiaas PYTHONDONTWRITEBYTECODE=1
USER serving
EXPOSE {PORT} {GRPC_PORT}
HEALTHCHECK --start-period=30s --interval=10s --timeout=5s CMD ["python", "-c", "{probe}"]
CMD {command_text("0.0.0.0")}
"""


def command_text(host: str) -> str:
    """The command of the container, as Docker's exec form writes it. `--behind-proxy`: the port is published on loopback."""
    words = ["python", "-m", PACKAGE, "serve-model", MODEL, "--host", host, "--port", str(PORT), "--grpc-port", str(GRPC_PORT)]
    return "[" + ", ".join(f'"{word}"' for word in (*words, "--behind-proxy")) + "]"


def compose_text(name: str) -> str:
    """The compose file: published on this machine only, nothing written but to memory, the token asked for."""
    return f"""\
# Written by %aiaas_export. AIAAS_ENDPOINT_TOKEN=... docker compose up --build; then ask http://127.0.0.1:{PORT}/v1/models/{name}:predict
services:
  {re.sub(r"[^a-z0-9_-]", "-", name)}:
    build: .
    environment:
      AIAAS_ENDPOINT_TOKEN: ${{AIAAS_ENDPOINT_TOKEN:?set it to a secret of 16 or more characters}}
    ports:
      - "127.0.0.1:{PORT}:{PORT}"
      - "127.0.0.1:{GRPC_PORT}:{GRPC_PORT}"
    read_only: true
    tmpfs:
      - /tmp
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    restart: unless-stopped
"""


def copy_package(folder: Path) -> None:
    """Copy our own code, the version that made the folder: it is pure Python."""
    own = Path(aiaas_magics.__file__).parent
    shutil.copytree(own, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
