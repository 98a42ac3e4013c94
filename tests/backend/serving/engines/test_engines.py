"""Engines: Keras' own exports served and proved, and artefacts that are not opened."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from aiaas_magics.backend.serving.engines import EngineTooSlow, UnsafeArtefact, tensor_frames
from aiaas_magics.backend.serving.engines.onnx_check import check_onnx
from aiaas_magics.backend.serving.engines.onnx_engine import OnnxEngine
from aiaas_magics.backend.serving.engines.saved_model_engine import SavedModelEngine, unpack
from aiaas_magics.core.errors import InvalidSpec, ProofFailed
from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_models import Made, tensor
from tests.backend.serving.support.serving_rig import Rig, is_gone
from tests.support.launchers import ROOT
from tests.support.waiting import until

# --------------------------------------------------------------------------- the article's model


@pytest.mark.parametrize("format", ["onnx", pytest.param("saved_model", marks=pytest.mark.nightly)])
def test_the_articles_model_is_proved_and_answers_as_keras_did(rig: Rig, exports: Path, article: Made, format: str) -> None:
    artefact = article.artefact if format == "onnx" else exports / "article.zip"
    samples = load_file(article.samples)

    view = rig.load(Made(serving_models.article_spec(format), artefact, article.samples))
    answer = rig.predict("article", {"instances": samples["input/x"].tolist()})

    assert (view.engine, view.state) == (format, "AVAILABLE")
    assert view.proof < 1e-5
    np.testing.assert_allclose(answer.document["predictions"], samples["output/y"], rtol=1e-4, atol=1e-5)


PROBE = """
import os, sys
from pathlib import Path
os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[: int(sys.argv[1])]))
from tests.backend.serving.support import serving_models
from msgspec.structs import replace
from aiaas_magics.backend.serving.models.model_loader import open_and_check
from aiaas_magics.core.host import usable_cores
spec = replace(serving_models.article_spec(), replicas=int(sys.argv[2]))
opened = open_and_check(spec, Path(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]), cores=len(usable_cores()))
told = [engine._session.get_session_options() for engine in opened.engines]
print([(o.intra_op_num_threads, o.get_session_config_entry("session.intra_op.allow_spinning")) for o in told])
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity to set")
@pytest.mark.parametrize(("cores", "replicas", "threads"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (1, 3, 1)])
def test_an_engines_threads_share_the_cores_that_the_process_may_use_and_sleep_between(
    article: Made, tmp_path: Path, cores: int, replicas: int, threads: int
) -> None:
    if cores > len(os.sched_getaffinity(0)):
        pytest.skip("not that many cores here")
    command = [sys.executable, "-c", PROBE, *map(str, (cores, replicas, article.artefact, article.samples, tmp_path))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment)

    assert told.stdout.strip() == str([(threads, "0")] * replicas)


@pytest.mark.slow
def test_a_saved_models_process_that_dies_is_started_anew_and_ends_with_its_endpoint(rig: Rig, exports: Path, article: Made) -> None:
    rig.load(Made(serving_models.article_spec("saved_model"), exports / "article.zip", article.samples))
    row = {"instances": [[0.5] * 100]}
    first = rig.predict("article", row).document
    (child,) = psutil.Process(rig.host.pid).children()

    os.kill(child.pid, signal.SIGKILL)
    during = rig.predict("article", row)
    after = rig.predict("article", row)

    assert during.status == 503
    assert "Try again in a moment" in during.error
    assert after.document == first
    assert rig.predict("article", {"instances": [[0.5] * 99]}).status == 400
    rig.run(rig.host.retire("article"))
    assert psutil.Process(rig.host.pid).children() == []
    assert list((rig.state / "serving" / "scratch").iterdir()) == []


@pytest.mark.slow
def test_a_saved_models_process_ends_when_the_inference_process_is_killed(rig: Rig, exports: Path, article: Made) -> None:
    rig.load(Made(serving_models.article_spec("saved_model"), exports / "article.zip", article.samples))
    (child,) = psutil.Process(rig.host.pid).children()

    rig.run(rig.host.close())
    os.kill(rig.host.pid, signal.SIGKILL)

    os.waitpid(rig.host.pid, 0)
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()


@pytest.mark.slow
def test_a_saved_models_process_that_computes_for_too_long_is_killed(exports: Path, article: Made, tmp_path: Path) -> None:
    spec = serving_models.article_spec("saved_model")
    engine = SavedModelEngine(spec, exports / "article.zip", threads=1, scratch=tmp_path, compute_s=2.0)
    (child,) = [process for process in psutil.Process().children() if "saved_model_child" in " ".join(process.cmdline())]

    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(EngineTooSlow, match="article did not compute this within 2 s, and it was ended"):
        engine.run({"x": np.zeros((1, 100), "float32")})

    assert not child.is_running()
    engine.close()


COMPUTES_FOR_EVER = """
import os, threading
from aiaas_magics.backend.serving.engines.saved_model_child import end_with
parent = os.getpid()
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
threading.Thread(target=end_with, args=(parent,), daemon=True).start()
while True:
    pass
"""


@pytest.mark.process
def test_a_saved_models_process_that_computes_for_ever_ends_with_its_parent() -> None:
    told = subprocess.Popen([sys.executable, "-c", COMPUTES_FOR_EVER], stdout=subprocess.PIPE, text=True)
    assert told.stdout is not None
    with told.stdout:
        computing = int(told.stdout.readline())
    told.wait(20)

    until(lambda: is_gone(computing), "it went on computing", 20.0)


def test_a_saved_model_with_other_numbers_than_keras_is_refused(rig: Rig, exports: Path, article: Made, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    samples = load_file(article.samples)
    samples["output/y"] = samples["output/y"] + np.float32(0.01)
    save_file(samples, tmp_path / "wrong.safetensors")

    with pytest.raises(ProofFailed, match=r"the saved_model engine differs from Keras by 0\.01"):
        rig.load(Made(serving_models.article_spec("saved_model"), exports / "article.zip", tmp_path / "wrong.safetensors"))

    assert psutil.Process(rig.host.pid).children() == []


# --------------------------------------------------------------------------- ONNX files that are not opened


def model_with(*nodes: onnx.NodeProto, constants: tuple[onnx.TensorProto, ...] = (), domains: tuple[str, ...] = ("",)) -> onnx.ModelProto:
    x, y = serving_models.value(tensor("x", "float32", -1, 1)), serving_models.value(tensor("y", "float32", -1, 1))
    graph = helper.make_graph(list(nodes), "t", [x], [y], list(constants))
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(domain, 17 if not domain else 1) for domain in domains], ir_version=9
    )


def external(path: str) -> onnx.TensorProto:
    made = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    made.ClearField("float_data")
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value=path)
    return made


def nested(inner: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)


def branch(*nodes: onnx.NodeProto, constants: tuple[onnx.TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "b", [], [serving_models.value(tensor("y", "float32", -1, 1))], list(constants))


ADD = helper.make_node("Add", ["x", "w"], ["y"])
ODD = helper.make_node("Odd", ["x"], ["y"], domain="com.example")
UNSAFE = {
    "a tensor of the graph in another file": model_with(ADD, constants=(external("../../etc/passwd"),)),
    "a tensor of the graph beside it": model_with(ADD, constants=(external("weights.bin"),)),
    "a tensor of a branch": model_with(nested(branch(ADD, constants=(external("w.bin"),)))),
    "a tensor of an attribute": model_with(helper.make_node("Constant", [], ["y"], value=external("w.bin"))),
    "an operator of another domain": model_with(ODD, domains=("", "com.example")),
    "an operator of another domain in a branch": model_with(nested(branch(ODD)), domains=("", "com.example")),
    "an operator of the runtime's own domain": model_with(helper.make_node("FusedGemm", ["x"], ["y"], domain="com.microsoft")),
}


@pytest.mark.parametrize("what", UNSAFE)
def test_a_file_that_reaches_out_of_itself_is_not_opened(what: str) -> None:
    with pytest.raises(UnsafeArtefact, match=r"lives in another file|which is not ONNX's own"):
        check_onnx(UNSAFE[what].SerializeToString())


def test_a_function_in_the_file_with_a_foreign_domain_is_not_opened() -> None:
    model = model_with(helper.make_node("Mine", ["x"], ["y"], domain="mine"), domains=("", "mine"))
    model.functions.append(
        helper.make_function("mine", "Mine", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [helper.make_opsetid("", 17)])
    )

    with pytest.raises(UnsafeArtefact, match="'mine'"):
        check_onnx(model.SerializeToString())


def test_graphs_inside_graphs_without_end_are_not_opened() -> None:
    inner = branch(ADD)
    for _ in range(20):
        inner = branch(helper.make_node("Loop", ["x", "x"], ["y"], body=inner))

    with pytest.raises(UnsafeArtefact, match="nested too deeply"):
        check_onnx(model_with(nested(inner)).SerializeToString())


@pytest.mark.parametrize("cut", [0, 1, 10, 100])
def test_a_truncated_file_is_not_opened(article: Made, cut: int) -> None:
    with pytest.raises(UnsafeArtefact):
        check_onnx(article.artefact.read_bytes()[:cut])


def test_what_keras_exports_passes(article: Made, tmp_path: Path) -> None:
    check_onnx(article.artefact.read_bytes())
    for made in (serving_models.plus(tmp_path, "a", 1.0), serving_models.lookup(tmp_path, "b"), serving_models.sums(tmp_path, "c")):
        check_onnx(made.artefact.read_bytes())


def test_an_unsafe_file_is_refused_by_the_server_and_its_target_never_read(rig: Rig, tmp_path: Path) -> None:
    made = serving_models.plus(tmp_path, "live", 1.0)
    made.artefact.write_bytes(UNSAFE["a tensor of the graph in another file"].SerializeToString())

    with pytest.raises(InvalidSpec, match="live was not loaded: a tensor of it lives in another file"):
        rig.load(made)


# --------------------------------------------------------------------------- SavedModels that are not loaded


@pytest.mark.slow
def test_a_saved_model_that_reaches_beyond_itself_is_not_loaded_and_what_keras_exports_is(rig: Rig, tmp_path: Path) -> None:
    script = Path(serving_models.__file__).with_name("saved_models.py")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    verdicts: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    refusal = verdicts.pop("refusal")

    assert refusal == "indices[0,0] = 9 is not in [0, 4) (at the operation GatherV2)"
    assert [what for what, why in verdicts.items() if not why] == ["adds", "looks up", "a vocabulary", "a vocabulary in a file"]
    assert verdicts["writes a file"] == "it uses WriteFile, not among the operators that only compute"
    assert verdicts["saves a tensor"] == "it uses SaveV2, not among the operators that only compute"
    assert verdicts["reads the host's vocabulary"] == "it uses GenerateVocabRemapping, not among the operators that only compute"
    assert verdicts["an operator that is not known here"] == "it uses FIFOQueueV2, QueueSizeV2, not among the operators that only compute"
    assert verdicts["reads a table that the caller names"] == "a table in it is read from a file that is none of its own"
    assert "leads elsewhere" in verdicts["an asset elsewhere"]

    spec = serving_models.spec_of("live", [tensor("x", "float32", -1, 1)], [tensor("y", "float32", -1, 1)], format="saved_model")
    with pytest.raises(InvalidSpec, match="live was not loaded: it uses WriteFile"):
        rig.load(Made(spec, tmp_path / "writes.zip", tmp_path / "writes.safetensors"))
    assert not (tmp_path / "written").exists()


# --------------------------------------------------------------------------- zips that are not unpacked


def a_zip(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target.encode()


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ((("../evil", b"x"),), "leads elsewhere"),
        ((("/evil", b"x"),), "leads elsewhere"),
        ((("a/../../evil", b"x"),), "leads elsewhere"),
        ((("C:\\evil", b"x"),), "leads elsewhere"),
        ((link("saved_model.pb", "/etc/passwd"),), "no regular file"),
        ((("saved_model.pb", b"\0" * 50_000_000),), "would unpack to"),
        ((("readme.txt", b"x"),), "no saved_model.pb"),
        ((("saved_model.pb", b"x"), ("saved_model.pb/y", b"x")), "no zip of a SavedModel"),
    ],
)
def test_a_zip_that_would_do_harm_is_not_unpacked(tmp_path: Path, members: tuple[tuple[str, bytes], ...], text: str) -> None:
    target = tmp_path / "box" / "model"

    with pytest.raises(UnsafeArtefact, match=text):
        unpack(a_zip(tmp_path / "a.zip", *members), target)

    assert not list(tmp_path.rglob("evil"))


def test_a_zip_that_lies_about_its_sizes_is_cut_there_and_not_unpacked(tmp_path: Path) -> None:
    size = 50_000_000
    path = a_zip(tmp_path / "a.zip", ("saved_model.pb", b"\0" * size))
    lie = path.read_bytes().replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(lie)

    with pytest.raises(UnsafeArtefact, match="no zip"):
        unpack(path, tmp_path / "model")

    assert sum(file.stat().st_size for file in (tmp_path / "model").rglob("*")) <= 1000


def test_a_name_that_comes_twice_is_not_unpacked(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = a_zip(tmp_path / "a.zip", ("saved_model.pb", b"1"), ("saved_model.pb", b"2"))

    with pytest.raises(UnsafeArtefact, match=r"^a name in it comes twice$"):
        unpack(path, tmp_path / "model")


def test_damaged_bytes_in_a_zip_are_said_and_no_path_of_the_host(tmp_path: Path) -> None:
    """Any byte of it, and any two names that cannot both be files."""
    path = a_zip(tmp_path / "a.zip", ("saved_model.pb", bytes(range(256)) * 4), ("assets/words.txt", b"a b c " * 50))
    whole = path.read_bytes()
    texts = []
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            unpack(path, tmp_path / "models" / str(place))
        except UnsafeArtefact as error:
            texts.append(str(error))

    assert sum("CRC" in text for text in texts) > 3
    assert sum("invalid" in text for text in texts) > 3, "of the compression"
    assert not [text for text in texts if str(tmp_path) in text]
    nested = a_zip(tmp_path / "b.zip", ("saved_model.pb", b"x"), ("saved_model.pb/y", b"x"))
    with pytest.raises(UnsafeArtefact) as caught:
        unpack(nested, tmp_path / "nested")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(("opset", "ir", "text"), [(999, 9, "Opset 999 is under development"), (17, 99, "max supported IR version")])
def test_a_file_that_is_too_new_is_refused_with_the_engines_reason(tmp_path: Path, opset: int, ir: int, text: str) -> None:
    made = serving_models.plus(tmp_path, "plus", 1.0)
    model = onnx.load(made.artefact)
    model.opset_import[0].version, model.ir_version = opset, ir
    made.artefact.write_bytes(model.SerializeToString())

    with pytest.raises(UnsafeArtefact) as caught:
        OnnxEngine(made.spec, made.artefact, threads=1)

    assert text in str(caught.value)
    assert "::" not in str(caught.value)
    assert "/onnxruntime" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04" + b"\0" * 40])
def test_what_is_no_zip_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(data)

    with pytest.raises(UnsafeArtefact, match="no zip"):
        unpack(tmp_path / "a.zip", tmp_path / "model")


# --------------------------------------------------------------------------- frames


def test_tensors_come_through_a_socket_as_they_were() -> None:
    strings = np.array([[b"a", b"\xff\x00"], ["ä".encode(), b""]], dtype=object)
    sent = {
        "floats": np.arange(6, dtype="float32").reshape(2, 3)[:, ::2],
        "none": np.zeros((0, 4), "int64"),
        "flags": np.array([True, False]),
        "scalar": np.float64(1.5),
        "strings": strings,
    }
    here, there = socket.socketpair()
    with here, there:
        sender = threading.Thread(target=tensor_frames.send, args=(here, "run"), kwargs={"text": "t", "tensors": sent})
        sender.start()
        say, text, got = tensor_frames.receive(there)
        sender.join(10)

    assert (say, text) == ("run", "t")
    for name, array in sent.items():
        assert got[name].shape == np.asarray(array).shape
        assert got[name].tolist() == np.asarray(array).tolist()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\x02\0\0\0{}",
        b"\x05\0\0\0abc",
        b'\x41\0\0\0{"say":"x","tensors":[{"name":"a","dtype":"object","shape":[1]}]}\n',
        b"",
    ],
)
def test_a_frame_that_lies_is_refused_without_waiting_for_more(data: bytes) -> None:
    here, there = socket.socketpair()
    with there:
        with here:
            here.sendall(data)
        began_s = time.monotonic()

        with pytest.raises(tensor_frames.BrokenFrame):
            tensor_frames.receive(there)

        assert time.monotonic() - began_s < 10


def test_samples_of_another_shape_than_the_interface_are_refused(rig: Rig, article: Made) -> None:
    samples = load_file(article.samples)
    spec = msgspec.structs.replace(article.spec, inputs=(tensor("x", "float32", -1, samples["input/x"].shape[1] - 1),))

    with pytest.raises(InvalidSpec, match=r"for the input 'x' of shape \(-1, \d+\). Run the cell again"):
        rig.load(Made(spec, article.artefact, article.samples))
