"""A fit on the backend leaves the kernel's random state as plain `fit` leaves it."""

from __future__ import annotations

import random
from collections.abc import Callable

from aiaas_magics.client.training.submission import seed_of
from aiaas_magics.core import row_order
from aiaas_magics.packing.fitcall.fit_call import FitCall
from tests.support.packed import Namespace

Cell = Callable[..., Namespace]
SMALL = "model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])\nmodel.compile('sgd', 'mse')"


def test_the_order_of_rows_draws_nothing_from_pythons_generator(cell: Cell) -> None:
    made = cell(SMALL)
    before = random.getstate()

    seed = seed_of(FitCall(made["model"], made["arguments"]), as_in_plain_fit=False)

    assert random.getstate() == before
    assert 0 <= seed < 2**31


def test_a_seeded_notebook_has_the_order_of_plain_fit(cell: Cell) -> None:
    made = cell(SMALL)  # its first cell calls set_random_seed(7)

    assert row_order.kernel_seed_of(seed_of(FitCall(made["model"], made["arguments"]))) == 7


def test_on_jax_a_seeded_notebook_has_one_order_and_each_fit_of_a_model_another(cell: Cell) -> None:
    def seeds() -> list[int]:
        made = cell(SMALL)
        first = seed_of(FitCall(made["model"], made["arguments"]), as_in_plain_fit=False)
        made["model"].optimizer.iterations.assign(10)
        return [first, seed_of(FitCall(made["model"], made["arguments"]), as_in_plain_fit=False)]

    first_run, second_run = seeds(), seeds()

    assert first_run == second_run
    assert len(set(first_run)) == 2
