"""What is shown of a backend and of tables in a narrow window."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from aiaas_magics.core.events import Planned
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.routing import Routing
from aiaas_magics.core.spec import About, Device, EndpointView, FitShape, FitSpec, JobState, JobView, Versions, VersionView
from aiaas_magics.core.story import EpochRow, JobStory
from aiaas_magics.notebook import present

VERSIONS = Versions(python="3.11.7", keras="3.15.1", tensorflow="2.21.0", aiaas_magics="0.1.0")
ABOUT = About(
    backend="local",
    protocol=1,
    memory_bytes=1,
    started_s=0.0,
    versions=VERSIONS,
    devices=(Device(kind="cpu", index=0, name="core 0"),),
    hardware="1 core",
)
SHAPE = FitShape(rows=10, global_batch=5, steps_per_epoch=2, initial_epoch=0, epochs=1, parameters=3, model="net")


def job(number: int, state: JobState, reason: str = "") -> JobView:
    spec = FitSpec(name="net", payload="0" * 64, arrays=(), shape=SHAPE, versions=VERSIONS, seed=1)
    return JobView(id=str(number), state=state, reason=reason, spec=spec, created_s=float(number), started_s=1.0, ended_s=2.0)


def test_a_status_has_one_line_a_job_whatever_it_failed_with() -> None:
    views = [job(n, JobState.SUCCEEDED) for n in range(20)]
    views += [job(20, JobState.FAILED, "ValueError: two\n\nlines " + "and more " * 20), job(21, JobState.CANCELLED, "cancelled")]

    plain = present.status_bundle(ABOUT, "http://127.0.0.1:1", views, [], now_s=100.0)["text/plain"]

    failed = next(line for line in plain.splitlines() if line.startswith("20 "))
    assert "ValueError: two lines and more" in failed
    assert failed.rstrip().endswith(" …")
    assert next(line for line in plain.splitlines() if line.startswith("21 ")).count("cancelled") == 1
    assert plain.splitlines()[-1] == "and 2 older jobs"


def test_a_withdrawn_endpoint_shows_as_one() -> None:
    version = VersionView(version=3, state="AVAILABLE", engine="onnx", created_s=1.0, artefact="a", proof=0.0)
    views = [
        EndpointView(name=name, url="u", token="t", replicas=1, versions=(version_of_it,), inputs=(), outputs=(), routing=Routing(live=3))
        for name, version_of_it in (("churn", version), ("beta", replace(version, withdrawn=True)))
    ]

    lines = present.status_bundle(ABOUT, "http://127.0.0.1:1", [], views, now_s=100.0)["text/plain"].splitlines()

    assert "3 (live); withdrawn" in next(line for line in lines if line.startswith("beta"))
    assert "withdrawn" not in next(line for line in lines if line.startswith("churn"))
    assert "u/v1/models/churn:predict" in next(line for line in lines if line.startswith("churn")), "the address that %aiaas_deploy shows"


@pytest.mark.parametrize(
    ("seconds", "asked", "state", "said"),
    [
        (1.0, "auto", JobState.SUCCEEDED, "Ran in 2 steps."),
        (1.0, "graph", JobState.SUCCEEDED, "Ran in 2 steps."),
        (1.0, "xla", JobState.SUCCEEDED, "Plan: tensorflow single, many steps per call (why not)."),
        (61.0, "auto", JobState.SUCCEEDED, "Plan: tensorflow single, many steps per call (why not)."),
        (1.0, "auto", JobState.CANCELLED, ""),
    ],
)
def test_the_plan_is_told_where_a_reader_can_act_on_it(seconds: float, asked: str, state: JobState, said: str) -> None:
    view = job(1, state)
    view = replace(view, spec=replace(view.spec, execution=Execution(fused=asked)))
    plan = Planned(fused="graph", why=("why not",), engine="tensorflow", strategy="single")
    story = JobStory(state=state, plan=plan, rows=(EpochRow(epoch=0, seconds=seconds, rows=10, logs={}),))

    assert present.steps_line(view, story) == said
    assert said in present.job_table(view, story)["text/plain"]


def test_a_number_keeps_its_unit_beside_it_and_a_wide_table_is_pushed_sideways() -> None:
    html = present.table_html(("name", "took"), [("a long name", "1.59 s")])

    assert '<div style="overflow-x:auto"><table>' in html
    assert '<td style="text-align:right;white-space:nowrap">1.59 s</td>' in html
    assert '<td style="text-align:left">a long name</td>' in html
