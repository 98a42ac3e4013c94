"""The host and its process: killed, adopted, restarted; the same port and token; nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from aiaas_magics.backend.serving.process.control import Hello, call_at
from aiaas_magics.backend.serving.process.state_directory import Files
from aiaas_magics.backend.serving.process.supervisor import InferenceHost, Recorded
from aiaas_magics.core.errors import CannotStart, InvalidSpec, NotAuthorised, ProofFailed, StoreNotWritable
from aiaas_magics.core.routing import Routing
from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_models import Made, plus
from tests.backend.serving.support.serving_rig import Answer, Rig, is_gone

pytestmark = pytest.mark.process


def recorded(made: Made, version: int = 1) -> Recorded:
    return Recorded(spec=made.hashed, version=version, artefact=str(made.artefact), samples=str(made.samples))


def until(found: Any, *, seconds: float = 30.0) -> Any:
    """The first true answer of `found`; an `OSError` is no answer."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        try:
            if answer := found():
                return answer
        except OSError:
            pass
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def answered(rig: Rig, name: str) -> Answer | None:
    answer = rig.predict(name, {"instances": [[1.0]]})
    return answer if answer.status == 200 else None


def test_killed_in_the_middle_the_process_is_back_with_its_endpoints_port_and_token(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "one", 1.0), 4)
    rig.load(plus(tmp_path, "two", 2.0, replicas=2), 1)
    before = (rig.host.pid, rig.host.url, rig.host.grpc, rig.host.token)

    os.kill(rig.host.pid, signal.SIGKILL)

    assert until(lambda: answered(rig, "two")).document == {"predictions": [[3.0]]}
    assert until(lambda: answered(rig, "one")).document == {"predictions": [[2.0]]}
    assert {name: [view.version for view in views] for name, views in rig.run(rig.host.status()).items()} == {"one": [4], "two": [1]}
    assert rig.host.pid != before[0]
    assert (rig.host.url, rig.host.grpc, rig.host.token) == before[1:]


def test_killed_again_and_again_it_comes_back(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "one", 1.0))

    for _ in range(3):
        pid = rig.host.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda killed=pid: rig.host.pid != killed and answered(rig, "one"))

    assert rig.run(rig.host.status())["one"][0].state == "AVAILABLE"


def test_an_endpoint_that_was_withdrawn_does_not_answer_before_it_is_loaded_again_whatever_died(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "one", 1.0))
    rig.load(plus(tmp_path, "two", 2.0))
    rig.manage("one", "unload")
    assert {name: [view.shown_state for view in views] for name, views in rig.run(rig.host.status()).items()} == {
        "one": ["WITHDRAWN"],
        "two": ["AVAILABLE"],
    }

    os.kill(rig.host.pid, signal.SIGKILL)

    until(lambda: answered(rig, "two"))
    until(lambda: len(rig.run(rig.host.status())) == 2)
    assert answered(rig, "one") is None
    assert rig.manage("one", "load").status == 200
    assert answered(rig, "one")
    assert not rig.run(rig.host.status())["one"][0].withdrawn
    rig.manage("two", "unload")
    rig.run(rig.host.retire("two"))
    rig.load(plus(tmp_path, "two", 3.0))
    assert answered(rig, "two"), "another endpoint of that name is not withdrawn"


def test_a_retired_endpoint_does_not_come_back(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "one", 1.0))
    rig.load(plus(tmp_path, "two", 2.0))
    rig.run(rig.host.retire("one"))

    os.kill(rig.host.pid, signal.SIGKILL)

    until(lambda: answered(rig, "two"))
    assert list(rig.run(rig.host.status())) == ["two"]


def test_an_api_server_that_is_killed_leaves_the_process_to_the_next_one(tmp_path: Path) -> None:
    made = plus(tmp_path, "one", 1.0)
    first = Rig(tmp_path / "state").__enter__()
    first.load(made, 3)
    pid, url, token = first.host.pid, first.host.url, first.host.token
    first.leave()

    with Rig(tmp_path / "state", recorded=(recorded(made, 3),)) as second:
        assert (second.host.pid, second.host.url, second.host.token) == (pid, url, token)
        assert answered(second, "one")
        assert second.run(second.host.status())["one"][0].version == 3


def test_an_adopted_process_that_dies_is_brought_back_too(tmp_path: Path) -> None:
    made = plus(tmp_path, "one", 1.0)
    first = Rig(tmp_path / "state").__enter__()
    first.load(made)
    pid = first.host.pid
    first.leave()

    with Rig(tmp_path / "state", recorded=(recorded(made),)) as second:
        os.kill(pid, signal.SIGKILL)

        assert until(lambda: second.host.pid != pid and answered(second, "one"))


def test_recorded_deployments_come_back_after_everything_was_stopped(tmp_path: Path) -> None:
    made, next_one = plus(tmp_path, "one", 1.0), plus(tmp_path, "two", 2.0)
    with Rig(tmp_path / "state") as rig:
        url, token = rig.host.url, rig.host.token

    with Rig(tmp_path / "state", recorded=(recorded(made, 7), recorded(next_one, 2))) as rig:
        assert (rig.host.url, rig.host.token) == (url, token)
        assert answered(rig, "one")
        assert answered(rig, "two")
        assert rig.run(rig.host.status())["one"][0].version == 7


def test_what_the_records_do_not_know_is_retired_when_the_process_is_adopted(tmp_path: Path) -> None:
    first = Rig(tmp_path / "state").__enter__()
    first.load(plus(tmp_path, "forgotten", 1.0))
    first.leave()

    with Rig(tmp_path / "state") as second:
        assert second.run(second.host.status()) == {}


def test_a_host_that_is_stopped_before_it_found_the_process_ends_it_all_the_same(tmp_path: Path) -> None:
    first = Rig(tmp_path / "state").__enter__()
    pid = first.host.pid
    first.leave()

    async def start_and_stop() -> None:
        host = InferenceHost()
        starting = asyncio.create_task(host.start(tmp_path / "state"))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await host.stop()

    asyncio.run(start_and_stop())

    assert is_gone(pid)


def test_a_version_that_was_never_recorded_gives_way_to_the_one_that_was(tmp_path: Path) -> None:
    """The API server was killed between the flip and its record: nobody was told of version 2."""
    kept = plus(tmp_path, "one", 1.0)
    first = Rig(tmp_path / "state").__enter__()
    first.load(kept, 1)
    first.load(plus(tmp_path, "one", 5.0), 2)
    first.leave()

    with Rig(tmp_path / "state", recorded=(recorded(kept, 1),)) as second:
        assert second.predict("one", {"instances": [[1.0]]}).document == {"predictions": [[2.0]]}
        assert second.load(plus(tmp_path, "one", 5.0), 2).version == 2


def test_what_is_recorded_and_still_loaded_goes_on_without_being_loaded_again(tmp_path: Path) -> None:
    kept, never = plus(tmp_path, "one", 1.0), plus(tmp_path, "one", 5.0)
    first = Rig(tmp_path / "state").__enter__()
    loaded_s = first.load(kept, 1).created_s
    first.deploy(never, 2, Routing(live=2, previous=1))
    first.leave()

    with Rig(tmp_path / "state", recorded=(recorded(kept, 1),)) as second:
        assert second.predict("one", {"instances": [[1.0]]}).document == {"predictions": [[2.0]]}
        views = {view.version: view for view in second.run(second.host.status())["one"]}
        assert (views[1].created_s, views[2].state) == (loaded_s, "END")


def test_a_process_that_dies_over_a_load_comes_back_without_it(rig: Rig, tmp_path: Path, article: Made, exports: Path) -> None:
    rig.load(plus(tmp_path, "one", 1.0))
    pid, killing = rig.host.pid, threading.Timer(0.7, lambda: os.kill(pid, signal.SIGKILL))
    killing.start()

    with pytest.raises(CannotStart, match="it ended during load"):
        rig.load(Made(serving_models.article_spec("saved_model"), exports / "article.zip", article.samples))

    killing.join()
    assert until(lambda: rig.host.pid != pid and answered(rig, "one"))
    assert list(rig.run(rig.host.status())) == ["one"]


def test_a_deployment_that_cannot_come_back_is_named_and_keeps_no_other_from_it(tmp_path: Path) -> None:
    gone, well = plus(tmp_path, "gone", 1.0), plus(tmp_path, "well", 2.0)
    gone.artefact.unlink()

    with Rig(tmp_path / "state", recorded=(recorded(gone), recorded(well))) as rig:
        assert answered(rig, "well")
        assert list(rig.host.faults) == ["gone"]
        assert "is not on this host" in rig.host.faults["gone"]


def test_a_port_that_was_taken_meanwhile_costs_the_old_token_its_worth(tmp_path: Path) -> None:
    with Rig(tmp_path / "state") as rig:
        address, token = rig.address, rig.host.token

    with socket.create_server(address), Rig(tmp_path / "state") as rig:
        assert rig.address != address
        assert rig.host.token != token
        address, token = rig.host.grpc, rig.host.token

    name, _, port = address.partition(":")
    with socket.create_server((name, int(port))), Rig(tmp_path / "state") as rig:
        assert rig.host.grpc != address
        assert rig.host.token != token


def test_whatever_is_written_is_for_the_owner_only(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "one", 1.0))

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (rig.state / "serving").iterdir()}

    assert stat.S_IMODE((rig.state / "serving").stat().st_mode) == 0o700
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
    assert {"token", "port", "process.json", "log.txt", "control.sock"} <= modes.keys()


def test_the_control_socket_wants_its_secret(rig: Rig) -> None:
    running = Files(rig.state).running()
    assert running is not None

    with pytest.raises(NotAuthorised):
        rig.run(call_at(running.control, "wrong", Hello(), answer_s=5))
    with pytest.raises(NotAuthorised):
        rig.run(call_at(running.control, rig.host.token, Hello(), answer_s=5))


def test_a_state_folder_whose_path_is_too_long_for_a_socket_works_as_well(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)

    with Rig(deep) as rig:
        rig.load(plus(tmp_path, "one", 1.0))

        assert answered(rig, "one")
        running = Files(deep).running()
        assert running is not None
        assert running.control.startswith("tcp:")


def test_sigterm_ends_it_with_code_0_after_the_last_answer(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "one", 1.0))
    pid = rig.host.pid
    rig.run(rig.host.close())

    os.kill(pid, signal.SIGTERM)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "Traceback" not in (rig.state / "serving" / "log.txt").read_text()


def test_the_process_imports_no_training_library(rig: Rig, article: Made) -> None:
    rig.load(article)

    mapped = {Path(region.path).as_posix() for region in psutil.Process(rig.host.pid).memory_maps() if region.path.startswith("/")}

    assert [path for path in mapped if "/onnxruntime/" in path], "the engine's own library is mapped: the test looks at the right place"
    assert [path for path in mapped if "/tensorflow/" in path or "/jaxlib/" in path or "/matplotlib/" in path] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host", "0.0.0.0"], "Add --tls-cert and --tls-key"),
        (["--host", "gpu-box"], "Add --tls-cert and --tls-key"),
        (["--tls-cert", "x.pem"], "Use both --tls-cert and --tls-key"),
        (["--port", "1"], "cannot be listened on"),
    ],
)
def test_an_unsafe_start_is_refused_in_one_sentence(tmp_path: Path, arguments: list[str], text: str) -> None:
    if arguments == ["--port", "1"]:
        taken = socket.create_server(("127.0.0.1", 0))
        arguments = ["--port", str(taken.getsockname()[1])]

    command = [sys.executable, "-m", "aiaas_magics.backend.serving", "--state", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    if arguments[0] == "--port":
        taken.close()
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_start_that_is_broken_off_leaves_no_process(tmp_path: Path) -> None:
    async def break_off() -> None:
        starting = asyncio.create_task(InferenceHost().start(tmp_path / "state"))
        while {child.pid for child in psutil.Process().children()} <= before:  # noqa: ASYNC110 - only the system knows
            await asyncio.sleep(0.005)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting

    before = {child.pid for child in psutil.Process().children()}
    asyncio.run(break_off())

    assert {child.pid for child in psutil.Process().children()} <= before


def test_a_process_whose_folder_is_gone_ends_by_itself(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "state").__enter__()
    pid = rig.host.pid
    rig.leave()

    shutil.rmtree(tmp_path / "state")

    until(lambda: is_gone(pid))
    os.waitpid(pid, 0)


def test_a_second_process_in_the_same_folder_is_refused(rig: Rig) -> None:
    command = [sys.executable, "-m", "aiaas_magics.backend.serving", "--state", str(rig.state)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "another one lives in the same folder" in done.stderr


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file stands where the folder should be")

    with pytest.raises(StoreNotWritable), Rig(tmp_path / "state"):
        pass


def test_errors_cross_the_socket_as_the_class_they_were(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(ProofFailed) as proof:
        rig.load(plus(tmp_path, "one", 1.0, expects=3.0))
    with pytest.raises(InvalidSpec):
        rig.load(Made(serving_models.spec_of("one", [], [], format="pickle"), tmp_path, tmp_path))

    assert proof.value.largest == pytest.approx(2.0)
    assert proof.value.name == "one"


def test_behind_tls_the_same_answers_come(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    with Rig(tmp_path / "state", tls=(str(cert), str(key))) as rig:
        rig.load(plus(tmp_path, "one", 1.0))
        command = ["curl", "-sS", "--cacert", str(cert), "-H", f"Authorization: Bearer {rig.host.token}", "-d", '{"instances": [[1.0]]}']

        done = subprocess.run([*command, f"{rig.host.url}/v1/models/one:predict"], check=True, capture_output=True, timeout=30)

        assert rig.host.url.startswith("https://127.0.0.1:")
        assert done.stdout == b'{"predictions":[[2.0]]}'
        head = b"POST /v1/models/one:predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n" % rig.host.token.encode()
        short = head + b'Content-Length: 22\r\n\r\n{"instances": [[1.0]]}'
        chunked = head + b'Transfer-Encoding: chunked\r\n\r\n16\r\n{"instances": [[2.0]]}\r\n0\r\n\r\n'
        context = ssl.create_default_context(cafile=str(cert))
        with context.wrap_socket(socket.create_connection(rig.address, timeout=30), server_hostname="localhost") as wrapped:
            wrapped.sendall(short + chunked + short + b"nonsense\r\n\r\n")
            got = b"".join(iter(lambda: wrapped.recv(65536), b""))
        assert re.findall(rb"HTTP/1.1 (\d+)|predictions\":(.*?)}", got) == [
            (b"200", b""), (b"", b"[[2.0]]"), (b"200", b""), (b"", b"[[3.0]]"), (b"200", b""), (b"", b"[[2.0]]"), (b"400", b""),
        ], "the same class reads here, pipelined and both ways"  # fmt: skip
        with grpc.secure_channel(rig.host.grpc, grpc.ssl_channel_credentials(cert.read_bytes())) as channel:
            ask = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert ask(b"", metadata=(("authorization", f"Bearer {rig.host.token}"),), timeout=30) == b"\x08\x01"
