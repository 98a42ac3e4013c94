"""A batch in parts gives the update of the whole batch; a precision that was asked for is Keras' own, on any number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.checks.exactness import announcements
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.backend.training.fit_cases import CASES, OwnStep, data, dense
from tests.backend.training.test_equivalence import assert_like_plain_fit

PRECISE = ("mixed_bfloat16", "mixed_float16")
IN_PARTS = {1: ("adam",), 2: ("masks, tail smaller than n", "custom train_step")}
PARTS = {1: 4, 2: 3}  # on 2 ranks the last batch has 2 or 3 rows each: one part is empty on one of them
HALF = 2e-2  # of how far the weights went: a bfloat16 has 8 bits, and ranks round the sums of fewer rows
STEPS = 15


class Writes(keras.callbacks.Callback):
    """Leaves how many updates were made in this rank's folder."""

    def on_train_end(self, logs: Any = None) -> None:
        from pathlib import Path

        Path("updates").write_text(str(int(self.model.optimizer.iterations)))


def regression(policy: str) -> dict[str, Any]:
    given = data(callbacks=lambda: [Writes()])()
    scale = 300 if policy == "mixed_float16" else 1  # scaled gradients of float16 overflow at first
    return given | {"y": (scale * given["x"].sum(axis=1)).astype("float32")}


def half(policy: str = "float32") -> Any:
    keras.utils.set_random_seed(11)
    inner = layers.Dense(16, activation="tanh", dtype=policy)
    model = keras.Sequential([layers.Input((6,)), inner, layers.Dense(1, dtype="float32")])
    optimizer: Any = keras.optimizers.SGD(0.02, momentum=0.9)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse")
    return model


@dataclass(frozen=True)
class Done:
    sent: ranks.Sent
    folder: Path


@pytest.fixture(scope="module")
def done(cases: LauncherClient, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Done]:
    """Everything of this module, trained: one process for one rank, two for two."""
    found = {}
    for n in (1, 2):
        base = tmp_path_factory.mktemp(f"ranks-{n}")
        files: list[list[Path]] = [[] for _ in range(n)]
        for name in (*IN_PARTS[n], *PRECISE):
            model, given = (half(), regression(name)) if name in PRECISE else (CASES[name].model(), CASES[name].arguments())
            execution = Execution(precision=name) if name in PRECISE else Execution(accumulate=PARTS[n])
            sent = ranks.send(base / name, model, workers=n, execution=execution, **given)
            for rank, path in enumerate(ranks.commands(sent, base / name, ranks=n, execution=execution)):
                files[rank].append(path)
            found[n, name] = Done(sent, base / name)
        ranks.carry_out(cases, files, base)
    return found


@pytest.mark.parametrize(("name", "n"), [(name, n) for n, names in IN_PARTS.items() for name in names])
def test_a_batch_in_parts_is_one_update_of_the_whole_batch(done: dict[tuple[int, str], Done], name: str, n: int) -> None:
    assert_like_plain_fit(CASES[name], done[n, name].sent, done[n, name].folder)


@pytest.mark.parametrize("policy", PRECISE)
def test_precision_is_what_keras_computes_with_that_policy(done: dict[tuple[int, str], Done], policy: str) -> None:
    plain = half(policy)
    plain.fit(**regression(policy) | {"callbacks": []}, verbose=0)
    model = done[1, policy].sent.packed.model
    optimizer = getattr(plain.optimizer, "inner_optimizer", plain.optimizer)

    history = fit_call.apply_result(ranks.result_in(done[1, policy].folder), done[1, policy].sent.packed)

    ours, theirs = ([v.numpy() for v in (*m.variables, *o.variables)] for m, o in ((model, model.optimizer), (plain, optimizer)))
    assert max(ranks.gaps(ours, theirs)) <= 1e-5
    np.testing.assert_allclose(history.history["loss"], plain.history.history["loss"], rtol=1e-5)
    assert {v.dtype for v in model.weights} == {"float32"}
    assert model.dtype_policy.name == "float32", "the model in the kernel computes as before"


def test_two_workers_go_where_one_goes_in_half_precision(done: dict[tuple[int, str], Done]) -> None:
    start = half().get_weights()
    one, two = (ranks.result_in(done[n, "mixed_bfloat16"].folder) for n in (1, 2))

    for place, before in zip(one.roles["weights"], start, strict=True):
        moved = np.linalg.norm(one.variables[place] - before)
        assert np.linalg.norm(two.variables[place] - one.variables[place]) <= HALF * moved


def test_all_workers_leave_out_the_same_steps_when_a_scaled_loss_overflows(done: dict[tuple[int, str], Done]) -> None:
    shared = done[2, IN_PARTS[2][0]].folder  # where a process works is its first command's to say

    updates = [int((shared / path).read_text()) for path in ("files/updates", "attempt-1/files-1/updates")]

    assert updates[0] == updates[1]
    assert 0 < updates[0] < STEPS, "no step overflowed: this says nothing"


def test_a_batch_with_fewer_rows_than_parts_is_refused() -> None:
    call = fit_call.FitCall(dense("sgd")(), data()())

    with pytest.raises(InvalidSpec, match=r"12 rows is 12 rows, fewer than parts. Use --accumulate 12"):
        fit_call.pack(call, execution=Execution(accumulate=13))
    with pytest.raises(InvalidSpec, match="a worker's part of a batch of 12 rows is 4 rows"):
        fit_call.pack(call, workers=3, execution=Execution(accumulate=5))


def test_a_model_with_two_optimizers_is_not_computed_in_parts() -> None:
    model = OwnStep()
    model.compile(optimizer="adam")
    model.other = keras.optimizers.SGD()

    with pytest.raises(InvalidSpec, match=r"further optimizers \(other\)"):
        fit_call.pack(fit_call.FitCall(model, data()()), execution=Execution(accumulate=2))


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidSpec, match="Use one of float32, mixed_bfloat16, mixed_float16"):
        Execution(precision="float8")


@pytest.mark.parametrize(
    ("execution", "word"),
    [
        (Execution(precision="mixed_bfloat16"), "compute in bfloat16"),
        (Execution(precision="mixed_float16"), "gradients overflow is left out"),
        (Execution(accumulate=2), "each of a batch's 2 parts"),
    ],
)
def test_what_changes_with_one_worker_is_announced(execution: Execution, word: str) -> None:
    model = keras.Sequential([layers.Input((6,)), layers.BatchNormalization(synchronized=True), layers.Dense(1)])
    model.compile("sgd", "mse")

    [said] = announcements(model, {}, 1, execution)

    assert word in said
