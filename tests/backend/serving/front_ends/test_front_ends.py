"""Several front ends on one port: what they decide together, and real processes that are changed, stopped and killed under load."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aiaas_magics.backend.serving.front_ends.two_phase import Kind, Outcome, after_committing, after_preparing
from aiaas_magics.backend.serving.grpc.open_inference_schema import inference
from aiaas_magics.backend.serving.process import control
from aiaas_magics.backend.serving.process.state_directory import Files
from aiaas_magics.core import settings
from aiaas_magics.core.errors import CannotStart, InvalidSpec, ProofFailed
from aiaas_magics.core.routing import Rollout, Routing, Scaling, deployed
from tests.backend.serving.support.serving_models import plus
from tests.backend.serving.support.serving_rig import Answer, Rig, is_gone

ONE = {"instances": [[0.0]]}
AGREED, LOST, SILENT = Outcome(Kind.AGREED), Outcome(Kind.LOST), Outcome(Kind.SILENT)
REFUSED = Outcome(Kind.REFUSED, InvalidSpec("no"))


# --------------------------------------------------------------------------- what follows from their answers


def test_a_change_goes_on_where_all_agree() -> None:
    decision = after_preparing({1: AGREED, 2: AGREED})

    assert (decision.refused, decision.prepared, decision.ended) == (None, {1, 2}, set())


def test_one_that_refuses_keeps_all_from_going_on_with_its_own_reason() -> None:
    decision = after_preparing({1: AGREED, 2: REFUSED, 3: LOST}, lost=CannotStart("x", "y", "z"))

    assert decision.refused is REFUSED.fault
    assert decision.prepared == {1}, "where it is to be undone"


def test_one_that_is_silent_is_ended_and_keeps_nobody_from_going_on() -> None:
    decision = after_preparing({1: AGREED, 2: SILENT, 3: LOST})

    assert (decision.refused, decision.prepared, decision.ended) == (None, {1}, {2})


def test_one_that_is_lost_over_a_load_keeps_all_from_going_on() -> None:
    lost = CannotStart("A front end", "it ended", "log.txt")

    assert after_preparing({1: AGREED, 2: LOST}, lost=lost).refused is lost


def test_once_it_holds_whoever_does_not_acknowledge_is_ended() -> None:
    decision = after_committing({1: AGREED, 2: SILENT, 3: REFUSED, 4: LOST})

    assert (decision.prepared, decision.ended) == ({1}, {2, 3})


@pytest.mark.process
@pytest.mark.parametrize("number", [0, 65])
def test_a_number_of_front_ends_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "aiaas_magics", "serve", "--state", str(tmp_path), "--front-ends", str(number)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "between 1 and 64 are possible. Use 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_a_socket_cannot_be_inherited_several_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "os", SimpleNamespace(name="nt"))

    control.check_front_ends(1)
    with pytest.raises(InvalidSpec, match="Leave --front-ends out"):
        control.check_front_ends(2)


# --------------------------------------------------------------------------- real processes


def until(found: Any, *, seconds: float = 40.0) -> Any:
    """The first true answer of `found`; an `OSError` is no answer."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError):
            if answer := found():
                return answer
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def pids(rig: Rig) -> list[int]:
    """The front ends that answer, the first of them first."""
    return [told.pid for told in rig.run(rig.host.collect()) if told.pid]


def answered(rig: Rig, name: str) -> dict[int, int]:
    """How many requests each front end has answered, by its pid; 0 stands for those that are gone."""
    told = rig.run(rig.host.collect())
    return {one.pid: sum(of.counts.requests for of in one.counted if of.name == name) for one in told}


@contextlib.contextmanager
def several(state: Path, number: int, **options: Any) -> Iterator[Rig]:
    """A rig whose front ends all answer; no process of them is left."""
    with Rig(state, front_ends=number, **options) as rig:
        until(lambda: len(pids(rig)) == number)
        yield rig
        living = [rig.host.pid, *(child.pid for child in psutil.Process(rig.host.pid).children(recursive=True))]
    assert [pid for pid in living if not is_gone(pid)] == []


def load(rig: Rig, folder: Path, version: int, routing: Routing | None = None) -> None:
    rig.deploy(plus(folder, "live", float(version)), version, routing or Routing(live=version))


def ask_all(rig: Rig, number: int, path: str = "/v1/models/live:predict") -> set[int]:
    """Ask on new connections until each front end has answered some; gives the statuses there were."""
    return {rig.call("POST", path, json.dumps(ONE).encode()).status for _ in range(20 * number)}


class Callers:
    """Threads that predict without a pause, on connections that they keep and on new ones, for as long as the `with` lasts."""

    def __init__(self, rig: Rig, *, keeping: int = 2, anew: int = 1) -> None:
        self._rig, self._stop = rig, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(keeps,)) for keeps in [True] * keeping + [False] * anew]
        self.answers: list[tuple[float, float]] = []  # when sent, and what came
        self.failed: list[tuple[float, object]] = []

    def _ask(self, keeps: bool) -> None:
        headers = {"Authorization": f"Bearer {self._rig.host.token}"}
        address, body = self._rig.address, json.dumps(ONE)
        connection = http.client.HTTPConnection(*address, timeout=30)
        while not self._stop.is_set():
            sent_s = time.monotonic()
            try:
                connection.request("POST", "/v1/models/live:predict", body, headers)
                response = connection.getresponse()
                got = response.read()
                if response.status == 200:
                    self.answers.append((sent_s, json.loads(got)["predictions"][0][0]))
                else:
                    self.failed.append((sent_s, got))
            except (OSError, http.client.HTTPException) as error:
                self.failed.append((sent_s, error))
                connection.close()
            if not keeps:
                connection.close()
        connection.close()

    def since(self, moment_s: float) -> set[float]:
        return {number for sent_s, number in self.answers if sent_s > moment_s}

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.answers) > 20)
        return self

    def more(self, number: int = 60) -> None:
        """Wait for so many more answers."""
        there = len(self.answers)
        until(lambda: len(self.answers) >= there + number)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Three front ends for tests that leave them and their endpoint as they are."""
    with several(tmp_path_factory.mktemp("calm"), 3) as rig:
        load(rig, tmp_path_factory.mktemp("models"), 1)
        yield rig


def test_every_front_end_answers_and_whichever_is_asked_tells_the_figures_of_all(calm: Rig) -> None:
    asked = 0
    while min(answered(calm, "live")[pid] for pid in pids(calm)) < 3:
        assert ask_all(calm, 1) == {200}
        asked += 20
        assert asked < 2000

    for _ in range(12):  # on new connections: now here, now there
        stats = calm.call("GET", "/v2/models/live/stats").document["model_stats"]
        assert [model["inference_count"] for model in stats] == [asked]
        assert calm.call("GET", "/endpoints/live").document["figures"]["requests"] == asked
        assert requests_in(calm.call("GET", "/metrics")) == asked
    assert by_grpc(calm, "ModelStatistics", inference.ModelStatisticsRequest(name="live")).model_stats[0].inference_count == asked


def requests_in(answer: Answer) -> float:
    families = text_string_to_metric_families(answer.body.decode())
    samples = [sample for family in families for sample in family.samples if sample.name == "aiaas_requests_total"]
    return sum(sample.value for sample in samples if sample.labels["outcome"] == "answered")


def by_grpc(rig: Rig, method: str, message: Any) -> Any:
    with grpc.insecure_channel(rig.host.grpc) as channel:
        ask = channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=type(message).SerializeToString,
            response_deserializer=getattr(inference, type(message).__name__.replace("Request", "Response")).FromString,
        )
        token = rig.api_token if method.startswith("RepositoryModel") else rig.host.token
        return ask(message, metadata=(("authorization", f"Bearer {token}"),), timeout=30)


def test_unloaded_at_any_front_end_an_endpoint_answers_at_none_and_loaded_again_at_all(calm: Rig) -> None:
    for _ in range(6):
        assert calm.manage("live", "unload").status == 200
        assert ask_all(calm, 1) == {404}
        assert calm.manage("live", "load").status == 200
        assert ask_all(calm, 1) == {200}

    by_grpc(calm, "RepositoryModelUnload", inference.RepositoryModelUnloadRequest(model_name="live"))
    assert ask_all(calm, 1) == {404}
    by_grpc(calm, "RepositoryModelLoad", inference.RepositoryModelLoadRequest(model_name="live"))
    assert ask_all(calm, 1) == {200}
    assert calm.manage("none", "unload").status == 404


def test_one_that_does_not_answer_is_said_and_its_figures_are_not_left_out(calm: Rig) -> None:
    stopped = pids(calm)[1]
    ask_all(calm, 2)
    before = sum(answered(calm, "live").values())
    connections = [http.client.HTTPConnection(*calm.address, timeout=30) for _ in range(12)]
    for connection in connections:
        predicted(calm, connection)

    os.kill(stopped, signal.SIGSTOP)
    try:
        for connection in connections:
            connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {calm.host.token}"})
        asked = {connection.sock: connection for connection in connections}
        readable, _, _ = select.select(asked, [], [], 20)
        early = [asked[sock].getresponse() for sock in readable]
        said = [(answer.status, answer.read().decode()) for answer in early]
    finally:
        os.kill(stopped, signal.SIGCONT)
    for connection in connections:
        connection.close()

    assert {status for status, _ in said} == {503}
    assert all("did not answer within 2 s. Try again" in body for _, body in said)
    assert requests_in(until(lambda: (got := calm.call("GET", "/metrics")).status == 200 and got)) == before + 12


@pytest.mark.process
def test_nothing_fails_through_twenty_swaps_a_failing_load_and_a_scaling_and_none_gets_the_old_version_after(tmp_path: Path) -> None:
    with several(tmp_path / "state", 2) as rig:
        load(rig, tmp_path, 1)
        since: list[tuple[float, set[float]]] = []  # from when on which version may answer
        routing = Routing(live=1)
        with Callers(rig) as callers:
            for version in range(2, 22):
                routing = deployed(routing, version, Rollout(keep=2 if version % 2 else 1))
                load(rig, tmp_path, version, routing)
                since.append((time.monotonic(), {float(version)}))
                callers.more(6)
            rig.run(rig.host.scale("live", Scaling(replicas=2)))
            with pytest.raises(ProofFailed):
                rig.deploy(plus(tmp_path, "live", 1.0, expects=9.0), 22, deployed(routing, 22, Rollout()))
            callers.more()
        assert [view.state for view in rig.run(rig.host.status())["live"]][:2] == ["END", "AVAILABLE"]
        assert rig.predict("live", ONE, version=22).status == 404
        assert min(answered(rig, "live")[pid] for pid in pids(rig)) > 0, "both have answered"

    assert callers.failed == []
    for (began_s, allowed), (ended_s, after) in pairwise([*since, (float("inf"), set[float]())]):
        # One that was sent before the next change was over may be answered by either side of it.
        assert {number for sent_s, number in callers.answers if began_s < sent_s < ended_s} <= allowed | after


@pytest.mark.process
def test_a_load_that_one_front_end_does_not_survive_leaves_all_as_they_were(tmp_path: Path) -> None:
    with several(tmp_path / "state", 3) as rig:
        load(rig, tmp_path, 1)
        first, lost, other = pids(rig)
        os.kill(lost, signal.SIGSTOP)
        made, faults = plus(tmp_path, "live", 2.0), list[BaseException]()

        def deploy() -> None:
            try:
                rig.deploy(made, 2, Routing(live=2, previous=1))
            except CannotStart as fault:
                faults.append(fault)

        deploying = threading.Thread(target=deploy)
        deploying.start()
        until(lambda: "version 2 is proved" in Files(rig.state).log.read_text())
        os.kill(lost, signal.SIGKILL)
        deploying.join(60)

        assert "it ended while version 2 of live was loaded" in str(faults[0])
        assert ask_all(rig, 2) == {200}
        assert {rig.predict("live", ONE).document["predictions"][0][0] for _ in range(30)} == {1.0}
        until(lambda: len(pids(rig)) == 3)
        assert {first, other} < set(pids(rig))
        load(rig, tmp_path, 3)
        assert {rig.predict("live", ONE).document["predictions"][0][0] for _ in range(30)} == {3.0}


@pytest.mark.nightly
@pytest.mark.process
def test_one_that_is_killed_under_load_comes_back_as_the_others_are_and_no_figure_goes_back(tmp_path: Path) -> None:
    with several(tmp_path / "state", 2) as rig:
        load(rig, tmp_path, 1)
        load(rig, tmp_path, 2, Routing(live=2, previous=1, labels={"stable": 1}))
        rig.load(plus(tmp_path, "gone", 5.0))
        rig.manage("gone", "unload")
        first, killed = pids(rig)
        with Callers(rig) as callers:
            until(lambda: answered(rig, "live")[killed] > 0)
            before = sum(answered(rig, "live").values())
            os.kill(killed, signal.SIGKILL)
            until(lambda: is_gone(killed))
            gone_s = time.monotonic()
            callers.more()
            assert sum(answered(rig, "live").values()) >= before
            until(lambda: len(pids(rig)) == 2)
            back = pids(rig)[1]
            until(lambda: answered(rig, "live")[back] > 0)
        assert pids(rig)[0] == first
        assert back != killed
        # A caller whose connection was cut notices when it asks next; that is once for each connection.
        assert len([sent_s for sent_s, _ in callers.failed if sent_s > gone_s]) <= 3
        assert {number for _, number in callers.answers} == {2.0}
        assert ask_all(rig, 2, "/v1/models/live/labels/stable:predict") == {200}
        assert ask_all(rig, 2, "/v1/models/gone:predict") == {404}
        before = sum(answered(rig, "live").values())
        os.kill(back, signal.SIGKILL)
        until(lambda: pids(rig) == [first])
        assert sum(answered(rig, "live").values()) == before, "what it had counted is not lost with it"


@pytest.mark.process
def test_one_that_is_stopped_during_a_flip_is_replaced_and_answers_nobody_with_the_old_version(tmp_path: Path) -> None:
    with several(tmp_path / "state", 2) as rig:
        load(rig, tmp_path, 1)
        load(rig, tmp_path, 2, Routing(live=1, previous=2))
        stopped = pids(rig)[1]
        # Connections that the stopped one has taken: what is asked on them is asked before the flip, and after.
        held = [http.client.HTTPConnection(*rig.address, timeout=20) for _ in range(10)]
        for connection in held:
            predicted(rig, connection)
        os.kill(stopped, signal.SIGSTOP)

        rig.run(rig.host.route("live", Routing(live=2, previous=1)))

        assert is_gone(stopped)
        found = {predicted(rig, connection) for connection in held}
        assert found == {2.0, None}, "its own connections have ended, and the others get the new version"
        until(lambda: len(pids(rig)) == 2)
        for connection in held:
            connection.close()
        assert {rig.predict("live", ONE).document["predictions"][0][0] for _ in range(40)} == {2.0}
        assert min(answered(rig, "live")[pid] for pid in pids(rig)) > 0


def predicted(rig: Rig, connection: http.client.HTTPConnection) -> float | None:
    """The answer on this connection, None where it has ended."""
    try:
        connection.request("POST", "/v1/models/live:predict", json.dumps(ONE), {"Authorization": f"Bearer {rig.host.token}"})
        response = connection.getresponse()
        return float(json.loads(response.read())["predictions"][0][0]) if response.status == 200 else -1.0
    except (ConnectionError, http.client.HTTPException):
        connection.close()
        connection.auto_open = 0
        return None


@pytest.mark.process
def test_sigterm_ends_all_of_them_after_the_last_answer_and_leaves_no_socket(tmp_path: Path) -> None:
    with several(tmp_path / "state", 2) as rig:
        load(rig, tmp_path, 1)
        living = pids(rig)
        rig.run(rig.host.close())

        os.kill(living[0], signal.SIGTERM)

        assert os.waitstatus_to_exitcode(os.waitpid(living[0], 0)[1]) == 0
        assert all(is_gone(pid) for pid in living)
        assert not Files(rig.state).socket.exists()
        assert Files(rig.state).beside() == []
        assert "Traceback" not in Files(rig.state).log.read_text()
        rig.run(rig.host.start(rig.state))


@pytest.mark.nightly
@pytest.mark.process
def test_one_that_is_stopped_keeps_nobody_from_ending(tmp_path: Path) -> None:
    with several(tmp_path / "state", 2) as rig:
        first, stopped = pids(rig)
        os.kill(stopped, signal.SIGSTOP)

        rig.run(rig.host.stop())

        assert [pid for pid in (first, stopped) if not is_gone(pid)] == []
        assert "killing it" in Files(rig.state).log.read_text()
        rig.run(rig.host.start(rig.state))


@pytest.mark.nightly
@pytest.mark.process
def test_when_the_first_is_killed_the_others_end_a_stopped_one_too_and_all_come_back_on_the_same_port(tmp_path: Path) -> None:
    with several(tmp_path / "state", 3) as rig:
        load(rig, tmp_path, 4)
        first, *others = pids(rig)
        before = (rig.host.url, rig.host.token)
        os.kill(others[0], signal.SIGSTOP)

        os.kill(first, signal.SIGKILL)

        until(lambda: all(is_gone(pid) for pid in others))
        until(lambda: rig.host.pid != first and len(pids(rig)) == 3)
        assert (rig.host.url, rig.host.token) == before
        assert ask_all(rig, 3) == {200}


@pytest.mark.nightly
@pytest.mark.process
def test_behind_tls_all_of_them_answer(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(cafile=str(cert))
    with several(tmp_path / "state", 2, tls=(str(cert), str(key))) as rig:
        load(rig, tmp_path, 1)
        for _ in range(20):
            connection = http.client.HTTPSConnection(*rig.address, timeout=30, context=context)
            assert predicted(rig, connection) == 1.0
            connection.close()
        with socket.create_connection(rig.address) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no handshake: that connection ends, and no other

        assert min(answered(rig, "live")[pid] for pid in pids(rig)) > 0
        assert "Traceback" not in Files(rig.state).log.read_text()


@pytest.mark.nightly
@pytest.mark.process
def test_a_process_with_as_many_front_ends_is_adopted_and_one_with_another_number_replaced(tmp_path: Path) -> None:
    first = Rig(tmp_path / "state", front_ends=2).__enter__()
    pid = first.host.pid
    first.leave()

    with several(tmp_path / "state", 2) as rig:
        assert rig.host.pid == pid
        rig.run(rig.host.close())
        with Rig(tmp_path / "state") as alone:
            assert is_gone(pid)
            assert pids(alone) == [alone.host.pid]
        rig.run(rig.host.start(rig.state))


@pytest.mark.nightly
@pytest.mark.process
def test_a_server_starts_as_many_as_its_environment_says_and_ends_them_all(tmp_path: Path) -> None:
    files = Files(tmp_path)
    command = [sys.executable, "-m", "aiaas_magics", "serve", "--state", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, env=os.environ | {settings.FRONT_ENDS: "2"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as it:
        running, beside = until(lambda: (running := files.running()) and (beside := files.beside()) and (running, beside))
        it.terminate()

    assert running.front_ends == 2
    assert len(beside) == 1
    assert is_gone(running.pid)
    until(lambda: is_gone(beside[0].pid))  # a start that is broken off kills the first, and the others end by themselves


def test_with_one_front_end_there_is_no_other_process(rig: Rig, tmp_path: Path) -> None:
    load(rig, tmp_path, 1)

    assert psutil.Process(rig.host.pid).children(recursive=True) == []
    assert pids(rig) == [rig.host.pid]
