"""Whoever lives and does not answer is noticed: a stopped process, a model without end, a drain without end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from aiaas_magics.backend.serving.engines.onnx_check import has_control_flow
from aiaas_magics.backend.serving.engines.onnx_engine import OnnxEngine
from aiaas_magics.backend.serving.models.model_loader import may_be_inline
from aiaas_magics.backend.serving.process import process_health
from tests.backend.serving.support.serving_models import Made, graph, matrix, plus, spec_of, tensor, write
from tests.backend.serving.support.serving_rig import Answer, Rig
from tests.support.waiting import until

pytestmark = pytest.mark.process

COMPUTE_S = 1.0
ENDLESS = {"instances": [[1e15]]}


def loop(folder: Path, name: str) -> Made:
    """`y = x` after as many turns as the largest `x` says."""
    x, y = tensor("x", "float32", -1, 1), tensor("y", "float32", -1, 1)
    free = [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in ("v", "vo")]
    flags = [helper.make_tensor_value_info(each, TensorProto.BOOL, []) for each in ("c", "co")]
    turn = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Identity", ["v"], ["vo"])],
        "body",
        [turn, flags[0], free[0]],
        [flags[1], free[1]],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body),
    ]
    sample = np.ones((4, 1), "float32")
    return write(folder, spec_of(name, [x], [y]), graph(nodes, [x], [y], []), {"input/x": sample, "output/y": sample})


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A process in which a computation may take a second."""
    folder = tmp_path_factory.mktemp("limited")
    with contextlib.ExitStack() as held:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIAAS_COMPUTE_S", str(COMPUTE_S))  # for the process that is started here
            rig = held.enter_context(Rig(folder / "state"))
        rig.load(loop(folder, "loop"))
        rig.load(plus(folder, "plus", 1.0))
        yield rig


# --------------------------------------------------------------------------- a model without end


def test_a_computation_without_end_is_ended_with_a_sentence_and_others_are_answered_meanwhile(limited: Rig) -> None:
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(limited.predict("loop", ENDLESS)))
    began_s = time.monotonic()
    asking.start()
    others = 0
    while asking.is_alive():
        assert limited.predict("plus", {"instances": [[1.0]]}).document == {"predictions": [[2.0]]}
        others += 1

    assert time.monotonic() - began_s > COMPUTE_S
    assert others > 3
    assert answers[0].status == 504
    assert answers[0].error == "loop did not compute this within 1 s, and it was ended. Send fewer rows or smaller inputs."
    assert limited.predict("loop", {"instances": [[3.0]]}).document == {"predictions": [[3.0]]}


def test_an_endless_request_spoils_no_other_of_its_batch(limited: Rig) -> None:
    answers: dict[int, Answer] = {}

    def ask(number: int) -> None:
        answers[number] = limited.predict("loop", ENDLESS if number == 1 else {"instances": [[float(number)]]})

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)

    assert {number: answer.status for number, answer in answers.items()} == {0: 200, 1: 504, 2: 200, 3: 200}


def test_an_endless_request_keeps_nobody_from_deploying_or_retiring(rig: Rig, tmp_path: Path) -> None:
    rig.load(loop(tmp_path, "loop"))
    rig.load(plus(tmp_path, "plus", 1.0))
    asking = threading.Thread(target=lambda: _ask_in_vain(rig), daemon=True)
    asking.start()
    until(lambda: rig.call("GET", "/v2/models/loop/ready").status == 200 and _computes(rig), "it does not compute", 20.0)

    began_s = time.monotonic()
    rig.run(rig.host.retire("loop"))
    rig.load(plus(tmp_path, "plus", 2.0), 2)
    took_s = time.monotonic() - began_s

    assert rig.predict("plus", {"instances": [[1.0]]}).document == {"predictions": [[3.0]]}
    assert rig.predict("loop", ENDLESS).status == 404
    assert took_s < 30, "less than the minute for which the request may compute"
    os.kill(rig.host.pid, signal.SIGKILL)  # which ends the request; the process is brought back
    asking.join(20)


def _ask_in_vain(rig: Rig) -> None:
    with contextlib.suppress(OSError):
        rig.predict("loop", ENDLESS)


def _computes(rig: Rig) -> bool:
    return psutil.Process(rig.host.pid).cpu_percent(0.2) > 10  # an idle one needs less than one; a busy machine may give it little


# --------------------------------------------------------------------------- what runs in the event loop


def test_what_repeats_or_chooses_what_it_computes_never_runs_in_the_event_loop(tmp_path: Path) -> None:
    looping, plain = loop(tmp_path, "loop"), plus(tmp_path, "plus", 1.0)
    free = dataclasses.replace(plain, spec=spec_of("free", [tensor("x", "float32", -1, -1)], [tensor("y", "float32", -1, -1)]))

    assert has_control_flow(looping.artefact.read_bytes())
    assert not may_be_inline(looping.spec, looping.artefact)
    assert may_be_inline(plain.spec, plain.artefact)
    assert not may_be_inline(free.spec, free.artefact), "a row of it may be of any size"


def test_control_flow_in_a_function_or_a_branch_is_found() -> None:
    def nested(op: str) -> onnx.ModelProto:
        branch = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "b", [], [])
        outer = helper.make_graph([helper.make_node("SomeOp", ["x"], ["y"], body=branch)], "g", [], [])
        return helper.make_model(outer)

    assert has_control_flow(nested("Scan").SerializeToString())
    assert has_control_flow(nested("If").SerializeToString())
    assert not has_control_flow(nested("Identity").SerializeToString())
    function = helper.make_function("d", "f", ["x"], ["y"], [helper.make_node("Loop", ["x"], ["y"])], [helper.make_opsetid("", 17)])
    within = helper.make_model(helper.make_graph([], "g", [], []), functions=[function])
    assert has_control_flow(within.SerializeToString())


# --------------------------------------------------------------------------- a process that lives and does not answer


def test_a_stopped_process_is_killed_and_brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_health, "WATCH_S", 0.2)
    monkeypatch.setattr(process_health, "HUNG_S", 2.0)
    with Rig(tmp_path / "state") as rig:
        rig.load(plus(tmp_path, "plus", 1.0))
        pid = rig.host.pid

        os.kill(pid, signal.SIGSTOP)

        until(lambda: rig.host.pid != pid, "nobody noticed", 30.0)
        until(lambda: _is_back(rig), "it did not come back", 30.0)


def _is_back(rig: Rig) -> bool:
    try:
        return rig.predict("plus", {"instances": [[1.0]]}).status == 200
    except OSError:
        return False


def test_a_process_that_answers_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_health, "WATCH_S", 0.01)
    with Rig(tmp_path / "state") as rig:
        pid = rig.host.pid
        time.sleep(1.0)  # a hundred looks
        os.kill(pid, signal.SIGKILL)
        until(lambda: rig.host.pid != pid, "a death was not noticed", 30.0)


# --------------------------------------------------------------------------- memory


def test_what_a_large_request_takes_is_given_back(tmp_path: Path) -> None:
    made = matrix(tmp_path, "matrix", size=256, steps=6)
    engine = OnnxEngine(made.spec, made.artefact, threads=1, compute_s=60.0)
    engine.run({"x": np.ones((2000, 256), "float32")})
    process = psutil.Process()
    before = process.memory_info().rss
    rows = 80_000

    answer = engine.run({"x": np.ones((rows, 256), "float32")})
    del answer

    assert process.memory_info().rss - before < rows * 256 * 4 // 2, "an array of its size would have stayed"
    engine.close()
