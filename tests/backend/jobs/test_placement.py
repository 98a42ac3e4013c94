"""Who gets which devices, and who waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.backend.jobs.placement import DeviceRequest, Slots, check, place, slots_for, why_waiting
from aiaas_magics.core.errors import NotEnoughDevices

asks = st.lists(
    st.builds(lambda workers, share, alone: (workers, share, alone), st.one_of(st.none(), st.integers(1, 9)), st.booleans(), st.booleans()),
    max_size=8,
).map(lambda found: [DeviceRequest(job=str(i), workers=w, oversubscribe=s, alone=a) for i, (w, s, a) in enumerate(found)])


def placeable(found: list[DeviceRequest], devices: int) -> list[DeviceRequest]:
    return [ask for ask in found if ask.workers is None or ask.workers <= devices or ask.oversubscribe]


@given(asks, st.integers(1, 6))
def test_no_device_is_given_twice(found: list[DeviceRequest], devices: int) -> None:
    placed = place(placeable(found, devices), devices=devices, busy={})

    taken = [device for _, slots in placed for device in slots.held]
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(range(devices))


@given(asks, st.integers(1, 6))
def test_nobody_overtakes(found: list[DeviceRequest], devices: int) -> None:
    waiting = placeable(found, devices)

    placed = place(waiting, devices=devices, busy={})

    assert [ask for ask, _ in placed] == waiting[: len(placed)]
    assert placed or not waiting  # an idle machine serves the first


@given(asks, st.integers(1, 6))
def test_everybody_is_served_in_the_end(found: list[DeviceRequest], devices: int) -> None:
    waiting, served = placeable(found, devices), 0
    while waiting:
        placed = place(waiting, devices=devices, busy={})
        served += len(placed)
        waiting = waiting[len(placed) :]

    assert served == len(placeable(found, devices))


@given(st.integers(1, 6), st.integers(1, 20))
def test_each_rank_has_a_device_and_sharing_is_even(devices: int, workers: int) -> None:
    slots = slots_for(DeviceRequest(job="1", workers=workers, oversubscribe=True), devices=devices, busy=frozenset())

    assert slots is not None
    loads = [sum(device in slot for slot in slots.ranks) for device in range(devices)]
    assert len(slots.ranks) == workers
    assert max(loads) - min(loads) <= 1


def test_one_worker_with_everything_takes_every_core() -> None:
    assert slots_for(DeviceRequest(job="1", workers=None), devices=3, busy=frozenset()) == Slots(frozenset({0, 1, 2}), ((0, 1, 2),))


def test_with_gpus_everything_is_one_worker_a_gpu() -> None:
    slots = slots_for(DeviceRequest(job="1", workers=None), devices=2, busy=frozenset(), one_each=True)

    assert slots == Slots(frozenset({0, 1}), ((0,), (1,)))


@pytest.mark.parametrize(("workers", "devices"), [(2, (0, 1)), (5, (0, 1, 2, 0, 1)), (None, (0, 1, 2))])
def test_a_strategy_of_one_process_gives_it_every_device_of_the_job(workers: int | None, devices: tuple[int, ...]) -> None:
    ask = DeviceRequest(job="1", workers=workers, oversubscribe=True, together=True)

    assert slots_for(ask, devices=3, busy=frozenset(), one_each=True) == Slots(frozenset(devices), (devices,))


def test_a_measured_job_has_the_machine_to_itself_and_runs_on_its_share() -> None:
    ask = DeviceRequest(job="1", workers=1, alone=True)

    assert slots_for(ask, devices=2, busy=frozenset()) == Slots(frozenset({0, 1}), ((0,),))
    assert slots_for(ask, devices=2, busy=frozenset({1})) is None


def test_two_small_jobs_run_beside_each_other_and_a_third_waits() -> None:
    waiting = [DeviceRequest(job=job, workers=1) for job in "123"]

    placed = place(waiting, devices=2, busy={})

    assert [(ask.job, slots.ranks) for ask, slots in placed] == [("1", ((0,),)), ("2", ((1,),))]


def test_more_workers_than_devices_are_refused_unless_they_may_share() -> None:
    with pytest.raises(NotEnoughDevices, match="box has 2 devices, fewer than the 3 workers requested"):
        check(DeviceRequest(job="", workers=3), devices=2, backend="box")

    check(DeviceRequest(job="", workers=3, oversubscribe=True), devices=2, backend="box")
    check(DeviceRequest(job="", workers=None), devices=2, backend="box")


def test_a_waiting_job_says_for_what_and_behind_whom() -> None:
    ask = DeviceRequest(job="9", workers=2)

    text = why_waiting(ask, devices=2, busy={"7": frozenset({0, 1})}, before=["8"], noun="core")

    assert text == "waiting for 2 cores; job 7 holds devices, and job 8 came first"
