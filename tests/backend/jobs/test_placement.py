"""Who gets which devices, and who waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.backend.jobs.placement import DeviceRequest, Slots, UserTurn, check, place, slots_for, why_quota, why_waiting
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


# --------------------------------------------------------------------------- several users


def jobs_of(owner: str, count: int, *, first: int = 0, workers: int = 1, memory_share: float = 0.0) -> list[DeviceRequest]:
    return [DeviceRequest(job=str(first + n), workers=workers, owner=owner, memory_share=memory_share) for n in range(count)]


def played(waiting: list[DeviceRequest], late: DeviceRequest, *, devices: int, arrives: int) -> list[str]:
    """The jobs in the order in which they start. Each takes one tick; `late` comes in the tick `arrives`."""
    turns: dict[str, UserTurn] = {}
    order: list[str] = []
    last_start_s: dict[str, float] = {}
    for tick in range(1000):
        if tick == arrives:
            waiting = [*waiting, late]
        turns = {owner: UserTurn(last_start_s=began_s) for owner, began_s in last_start_s.items()}
        placed = place(waiting, devices=devices, busy={}, turns=turns, now_s=float(tick))
        started = [ask for ask, _ in placed]
        order += [f"{tick}:{ask.job}" for ask in started]
        for number, ask in enumerate(started):
            last_start_s[ask.owner] = tick + 1e-6 * number
        waiting = [ask for ask in waiting if ask not in started]
        if not waiting and tick >= arrives:
            break
    return order


@given(st.integers(1, 6), st.integers(0, 20), st.integers(1, 6))
def test_with_100_jobs_of_one_user_waiting_anothers_starts_within_one_jobs_time(devices: int, arrives: int, workers: int) -> None:
    late = DeviceRequest(job="late", workers=min(workers, devices), owner="ben")

    order = played(jobs_of("ada", 100), late, devices=devices, arrives=arrives)

    soonest = arrives if arrives else 1  # of two who had nothing yet, the one who came first goes first
    assert {f"{tick}:late" for tick in (arrives, soonest)} & set(order), "each job takes one tick"


def test_two_users_with_many_jobs_take_turns() -> None:
    waiting = [*jobs_of("ada", 4), *jobs_of("ben", 4, first=10)]

    order = played(waiting, DeviceRequest(job="late", workers=1, owner="ada"), devices=1, arrives=0)

    assert [start.partition(":")[2] for start in order] == ["0", "10", "1", "11", "2", "12", "3", "13", "late"]


@given(asks, st.integers(1, 6))
def test_one_user_alone_is_served_in_order_whatever_the_name(found: list[DeviceRequest], devices: int) -> None:
    waiting = placeable(found, devices)
    owned = [replace(ask, owner="ada") for ask in waiting]

    assert [ask.job for ask, _ in place(owned, devices=devices, busy={})] == [
        ask.job for ask, _ in place(waiting, devices=devices, busy={})
    ]


users = st.lists(st.tuples(st.sampled_from(["ada", "ben", "cem"]), st.integers(1, 3), st.floats(0, 0.5)), min_size=1, max_size=12)


@given(users, st.integers(3, 8))
def test_no_user_gets_a_job_while_another_with_less_waits_for_devices_that_are_free(
    found: list[tuple[str, int, float]], devices: int
) -> None:
    waiting = [DeviceRequest(job=str(n), workers=w, owner=user, memory_share=m) for n, (user, w, m) in enumerate(found)]

    placed = place(waiting, devices=devices, busy={})

    turns: dict[str, UserTurn] = {}
    for number, (ask, slots) in enumerate(placed):
        others = {other.owner for other in waiting if all(other is not done for done, _ in placed[:number])}
        share = turns.get(ask.owner, UserTurn()).dominant_share(devices)
        assert all(share <= turns.get(other, UserTurn()).dominant_share(devices) for other in others)
        turns[ask.owner] = turns.get(ask.owner, UserTurn()).having(ask, slots, 0.0)
    for owner in turns:
        assert [ask.job for ask, _ in placed if ask.owner == owner] == [ask.job for ask in waiting if ask.owner == owner][
            : turns[owner].jobs
        ]


def test_memory_counts_where_a_user_holds_more_of_it_than_of_the_devices() -> None:
    waiting = [*jobs_of("ada", 2, memory_share=0.5), *jobs_of("ben", 3, first=10)]

    placed = place(waiting, devices=4, busy={})

    assert [ask.job for ask, _ in placed] == ["0", "10", "11", "1"]


def test_a_user_at_a_quota_makes_nobody_else_wait() -> None:
    turns = {"ada": UserTurn(devices=2, jobs=2, most_devices=2), "ben": UserTurn(devices=2, jobs=2)}
    waiting = [*jobs_of("ada", 2), *jobs_of("ben", 1, first=10)]

    placed = place(waiting, devices=5, busy={"7": frozenset({0, 1}), "8": frozenset({2, 3})}, turns=turns)

    assert [ask.job for ask, _ in placed] == ["10"]
    assert why_quota(turns["ada"]) == "waiting for your own jobs: your quota is 2 devices"


def test_a_user_reads_of_another_only_that_there_is_one() -> None:
    text = why_waiting(
        DeviceRequest(job="9", workers=1, owner="ada"),
        devices=1,
        busy={"7": frozenset({0})},
        before=["8", "6"],
        noun="core",
        owners={"7": "ben", "8": "ben", "6": "ada", "9": "ada"},
    )

    assert text == "waiting for 1 core; another user's jobs hold devices, and job 6 and another user's jobs came first"
