"""Serving beside what one would use instead: the same exported model, one core for the server, another for the load generator.

Each round measures every server in turn, on a connection that stays open, with a checked token where it is ours. Two floors
stand beside them: a protocol in Python that parses the same body and computes nothing, and the bare engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from aiaas_magics.core.recording import RecordingCounts
from aiaas_magics.core.spec import RecordingChange
from benchmarks.environments import python_of
from benchmarks.peers import free_ports
from benchmarks.report import Sample, compared, ratio, save

ROUNDS = 3
SECONDS = 2.0
PEERS = Path(__file__).parent / "serving_peers"
REQUIREMENTS: Mapping[str, tuple[list[str], bool]] = {
    "fastapi_keras": (["fastapi==0.121.*", "uvicorn[standard]"], True),
    "fastapi_onnx": (["fastapi==0.121.*", "uvicorn[standard]"], True),
    "litserve_onnx": (["litserve==0.2.19", "onnxruntime", "numpy"], False),
    "bentoml_onnx": (["bentoml>=1.4.20,<1.4.40", "onnxruntime", "numpy"], False),
    "ray_serve_onnx": (["ray[serve]==2.60.0", "onnxruntime", "numpy"], False),
    "mlserver_onnx": (["mlserver==1.7.1", "onnxruntime", "numpy"], False),
    "mosec_onnx": (["mosec==0.9.8", "onnxruntime", "numpy"], False),
}
NAMES = {
    "fastapi_keras": "FastAPI + model.predict",
    "fastapi_onnx": "FastAPI + ONNX Runtime",
    "litserve_onnx": "LitServe",
    "bentoml_onnx": "BentoML",
    "ray_serve_onnx": "Ray Serve",
    "mlserver_onnx": "MLServer",
    "mosec_onnx": "mosec",
    "floor": "a no-op protocol",
}

EXPORT = """
import sys, keras, numpy as np
from safetensors.numpy import save_file
from benchmarks import models
keras.utils.set_random_seed(0)
for name in ("article", "cnn"):
    model = models.ALL[name]()
    model.inputs[0].name
    x = models.data(model, 64)[0]
    y = model.predict(x, verbose=0)
    model.export(f"{sys.argv[1]}/{name}.onnx", format="onnx", verbose=False)
    model.save(f"{sys.argv[1]}/{name}.keras")
    save_file({"input/x": x, "output/y": np.asarray(y)}, f"{sys.argv[1]}/{name}.safetensors")
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to send what."""

    url: str
    token: str
    body: Path
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: how to ask it, and how to start it where it does not run yet."""

    target: Target
    command: list[str] | None = None
    log: Path = Path(os.devnull)


@dataclass
class Measured:
    """What rounds found of one target."""

    rate: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)  # of the load generator's core

    def add(self, found: Mapping[str, Any]) -> None:
        self.rate.append(found["rate"])
        self.p50_us.append(found["p50_us"])
        self.p99_us.append(found["p99_us"])
        self.busy.append(found["generator_busy"])

    def sample(self, what: str) -> Sample:
        return Sample(tuple(getattr(self, what)))


def load(target: Target, connections: int) -> dict[str, Any]:
    core = sorted(os.sched_getaffinity(0))[-1]
    sent = [str(core), target.url, target.token, str(target.body), str(connections), str(SECONDS), *target.headers]
    done = subprocess.run([sys.executable, "-m", "benchmarks.load", *sent], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{target.url}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    if found["wrong"]:
        raise SystemExit(f"{target.url} answered: {found['first_wrong']}")
    return found


def in_turns(subjects: Mapping[str, Subject | Bare], *connections: int) -> dict[str, list[Measured]]:
    """Each subject in turn, started for its turn only: what idles beside it would be measured too."""
    found = {name: [Measured() for _ in connections] for name in subjects}
    for _ in range(ROUNDS):
        for name, subject in subjects.items():
            if isinstance(subject, Bare):
                for measured in found[name]:
                    measured.rate.append(subject.rate())
                continue
            with contextlib.nullcontext() if subject.command is None else running(subject):
                for count, measured in zip(connections, found[name], strict=True):
                    measured.add(load(subject.target, count))
    return found


# --------------------------------------------------------------------------- servers


@contextlib.contextmanager
def on_server_core() -> Iterator[None]:
    """What is started inside runs on the first core only."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


@contextlib.contextmanager
def running(subject: Subject) -> Iterator[None]:
    """A peer's processes, from when it answers."""
    assert subject.command is not None
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with on_server_core(), subject.log.open("wb") as output:
        process = subprocess.Popen(subject.command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not (ready := answers(subject.target)) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.2)
        if not ready:
            raise SystemExit(f"{subject.command[1]} did not start:\n{subject.log.read_text()[-3000:]}")
        yield
    finally:
        if process.poll() is None:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def answers(target: Target) -> bool:
    request = urllib.request.Request(target.url, target.body.read_bytes(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bool(answer.status == 200)
    except OSError:  # nobody there, or not ready
        return False


class Ours:
    """An inference process of ours on the server's core, in a `with`."""

    def __init__(self, folder: Path) -> None:
        from aiaas_magics.backend.serving.process.supervisor import InferenceHost

        self._folder, self._host = folder, InferenceHost()
        self._loop = asyncio.new_event_loop()
        self._state = tempfile.TemporaryDirectory(prefix="aiaas-bench-")

    def __enter__(self) -> Ours:
        with on_server_core():
            self._loop.run_until_complete(self._host.start(Path(self._state.name)))
        self.deploy("article", (100,), (1,))
        self.deploy("cnn", (28, 28, 1), (10,))
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._host.stop())
        self._loop.close()
        self._state.cleanup()

    def deploy(self, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], version: int = 1) -> float:
        """Seconds until the version answers."""
        from aiaas_magics.core.integrity import file_hash
        from aiaas_magics.core.routing import Routing
        from aiaas_magics.core.spec import DeploySpec, TensorSpec

        spec = DeploySpec(
            name=name,
            artefact=file_hash(self._folder / f"{name}.onnx"),
            format="onnx",
            samples=file_hash(self._folder / f"{name}.safetensors"),
            inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, *inputs)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, *outputs)),),
        )
        began = time.perf_counter()
        self._loop.run_until_complete(self._host.load(spec, version, self._folder / f"{name}.onnx", self._folder / f"{name}.safetensors"))
        self._loop.run_until_complete(self._host.route(name, Routing(live=version)))
        return time.perf_counter() - began

    def record(self, name: str, change: RecordingChange) -> None:
        self._loop.run_until_complete(self._host.record(name, change))

    def recorded_counts(self, name: str) -> RecordingCounts:
        return self._loop.run_until_complete(self._host.recorded_counts(name))

    def target(self, path: str, body: Path, *headers: str) -> Target:
        return Target(url=self._host.url + path, token=self._host.token, body=body, headers=headers)

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._host.pid)


# --------------------------------------------------------------------------- what is measured


def one_row(ours: Ours, folder: Path) -> list[dict[str, object]]:
    row = np.random.default_rng(0).random((1, 100)).round(6).tolist()
    body, v2 = folder / "row.json", folder / "row-v2.json"
    body.write_text(json.dumps({"instances": row}))
    v2.write_text(json.dumps({"inputs": [{"name": "x", "shape": [1, 100], "datatype": "FP32", "data": row[0]}]}))
    subjects: dict[str, Subject | Bare] = {"ours": Subject(target=ours.target("/v1/models/article:predict", body))}
    for name, (requirements, sees_ours) in REQUIREMENTS.items():
        python, port = python_of(name.partition("_onnx")[0], requirements, sees_ours=sees_ours), free_port()
        path = {"mlserver_onnx": "/v2/models/article/infer", "mosec_onnx": "/inference"}.get(name, "/predict")
        sent = v2 if name == "mlserver_onnx" else body
        target = Target(url=f"http://127.0.0.1:{port}{path}", token="", body=sent, headers=("Content-Type: application/json",))
        command = [str(python), str(PEERS / f"{name}.py"), str(port), str(folder)]
        subjects[name] = Subject(target=target, command=command, log=folder / f"{name}.log")
    subjects["floor"] = floor(folder, body)
    subjects["bare"] = Bare(folder=folder, model="article", rows=16)
    found = in_turns(subjects, 16, 1)
    many, one = ({name: measured[place] for name, measured in found.items()} for place in (0, 1))
    rows: list[dict[str, object]] = []
    goals = {"mosec_onnx": 3.0, "fastapi_onnx": 10.0, "floor": 0.6}
    peers = [name for name in subjects if name not in ("ours", "bare")]
    what = "article's model, one JSON row, 16 connections: requests/s"
    for name in peers:
        times = ratio(many["ours"].sample("rate"), many[name].sample("rate"))
        rows.append(compared(what, NAMES[name], times, goal=goals.get(name, 1.0), higher_is_better=True))
    bound = in_a_row(many["floor"].sample("rate"), many["bare"].sample("rate"))
    rows.append(compared(what, BOUND, ratio(many["ours"].sample("rate"), bound), higher_is_better=True))
    rows.append(compared("same, p99", "mosec", ratio(many["ours"].sample("p99_us"), many["mosec_onnx"].sample("p99_us")), goal=1.0))
    for name in peers:
        share = ratio(one["ours"].sample("p50_us"), one[name].sample("p50_us"))
        rows.append(compared("same, one connection: p50", NAMES[name], share, goal=1.6 if name == "floor" else 1.0))
    busy = str(many["ours"].sample("busy"))
    rows.append({"what": "CPU share of the load generator (of one core), ours at 16 connections", "busy": busy})
    return rows


def floor(folder: Path, body: Path, *kind: str) -> Subject:
    port = free_port()
    target = Target(url=f"http://127.0.0.1:{port}/", token="", body=body)
    return Subject(target=target, command=[sys.executable, "-m", "benchmarks.floor", str(port), *kind], log=folder / "floor.log")


def binary_rows(ours: Ours, folder: Path) -> list[dict[str, object]]:
    x = np.random.default_rng(0).random((64, 100), dtype=np.float32)
    text = folder / "rows.json"
    text.write_text(json.dumps({"instances": x.round(6).tolist()}))
    subjects = {
        "binary": Subject(target=binary_target(ours, "article", folder / "rows.bin", x)),
        "json": Subject(target=ours.target("/v1/models/article:predict", text)),
        "floor": binary_floor(folder, folder / "rows.floor", x),
        "bare": Bare(folder=folder, model="article", rows=64),
    }
    found = {name: measured.sample("rate") for name, (measured,) in in_turns(subjects, 16).items()}
    what = "64 x 100 numbers as a binary tensor, 16 connections: requests/s"
    return [
        compared(what, "the same as JSON", ratio(found["binary"], found["json"]), goal=3.0, higher_is_better=True),
        compared(what, "a no-op protocol", ratio(found["binary"], found["floor"]), goal=0.6, higher_is_better=True),
        compared(what, BOUND, ratio(found["binary"], in_a_row(found["floor"], found["bare"], rows=64)), higher_is_better=True),
    ]


def images(ours: Ours, folder: Path) -> list[dict[str, object]]:
    x = np.random.default_rng(0).random((1, 28, 28, 1), dtype=np.float32)
    subjects = {
        "binary": Subject(target=binary_target(ours, "cnn", folder / "image.bin", x)),
        "floor": binary_floor(folder, folder / "image.floor", x),
        "bare": Bare(folder=folder, model="cnn", rows=16),
    }
    found = {name: measured.sample("rate") for name, (measured,) in in_turns(subjects, 16).items()}
    what = "CNN 28x28, binary, 16 connections: rows/s"
    return [
        compared(what, "the bare engine, 16 rows at a time", ratio(found["binary"], found["bare"]), goal=0.9, higher_is_better=True),
        compared(what, BOUND, ratio(found["binary"], in_a_row(found["floor"], found["bare"])), higher_is_better=True),
    ]


BOUND = "a no-op protocol, then the bare engine"


def in_a_row(floor: Sample, bare: Sample, *, rows: int = 1) -> Sample:
    """Requests a second of a core that first does what the floor does, then computes: no server of one core answers more."""
    return Sample(tuple(1 / (1 / requests + rows / computed) for requests, computed in zip(floor.values, bare.values, strict=True)))


def binary_target(ours: Ours, model: str, body: Path, x: Any) -> Target:
    head = binary_body(body, "x", x)
    return ours.target(f"/v2/models/{model}/infer", body, f"Inference-Header-Content-Length: {head}")


def binary_floor(folder: Path, body: Path, x: Any) -> Subject:
    body.write_bytes(json.dumps({"inputs": [{"name": "x", "shape": list(x.shape)}]}).encode() + x.tobytes())
    return floor(folder, body, "binary")


@dataclass(frozen=True, kw_only=True)
class Bare:
    """The engine alone, `rows` at a time."""

    folder: Path
    model: str
    rows: int

    def rate(self) -> float:
        """Rows a second on the server's core."""
        command = [sys.executable, "-c", BARE, str(self.folder / f"{self.model}.onnx"), str(self.rows)]
        with on_server_core():
            return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


BARE = """
import sys, time, numpy as np, onnxruntime
path, rows = sys.argv[1], int(sys.argv[2])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
x = {given.name: np.random.default_rng(0).random((rows, *given.shape[1:]), dtype=np.float32)}
for _ in range(20): session.run(None, x)
began, runs = time.perf_counter(), 0
while time.perf_counter() - began < 2: session.run(None, x); runs += 1
print(runs * rows / (time.perf_counter() - began))
"""


def swaps(ours: Ours, folder: Path) -> list[dict[str, object]]:
    """Twenty new versions under load, which must not notice; and a load that fails."""
    target = ours.target("/v1/models/article:predict", folder / "row.json")
    quiet = load(target, 4)
    core = sorted(os.sched_getaffinity(0))[-1]
    command = [sys.executable, "-m", "benchmarks.load", str(core), target.url, target.token, str(target.body), "4", "10"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    took = []
    for version in range(2, 22):
        time.sleep(0.4)
        took.append(ours.deploy("article", (100,), (1,), version))
    with contextlib.suppress(Exception):
        ours.deploy("article", (99,), (1,), 22)
    found = json.loads(process.communicate()[0])
    return [
        {
            "what": "20 new versions and one failed load during requests on 4 connections",
            "failed requests": found["wrong"],
            "requests": round(found["rate"] * 10),
            "p99 vs idle endpoint": f"{found['p99_us'] / quiet['p99_us']:.3g}",
            "s/version": str(Sample(tuple(took))),
        }
    ]


def binary_body(path: Path, name: str, x: Any) -> int:
    """Write a request of the Open Inference Protocol with a binary tensor; the length of its JSON."""
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head += b" " * (-len(head) % 16)
    path.write_bytes(head + x.tobytes())
    return len(head)


def free_port() -> int:
    return free_ports(1)[0]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="aiaas-serving-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run([sys.executable, "-c", EXPORT, name], check=True, capture_output=True, env=environment)
        ours = stack.enter_context(Ours(folder))
        rows = [*one_row(ours, folder), *binary_rows(ours, folder), *images(ours, folder), *swaps(ours, folder)]
        rows.append(
            {
                "what": "resident memory of the inference process with both models",
                "MB": round(ours.process.memory_info().rss / 1e6),
                "goal": 150,
            }
        )
    save("serving", rows)


if __name__ == "__main__":
    main()
