"""The magics: one method each, which parses, calls the client and presents.

Owns loading, unloading and the border where our errors become what IPython shows. The
options belong to `arguments`, what becomes of a `fit` to `cell_fits`, outputs to `present`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, output_can_be_silenced
from IPython.core.magic_arguments import magic_arguments
from traitlets import Unicode

from aiaas_magics.core import errors
from aiaas_magics.core.printout import counted
from aiaas_magics.core.scaling.endpoint_samples import EndpointWatch, Sample
from aiaas_magics.notebook import arguments, cell_runner, completion, present, tracebacks
from aiaas_magics.notebook.arguments import (
    BenchRequest,
    ConnectRequest,
    DeployRequest,
    JobRequest,
    MonitorRequest,
    NameRequest,
    PlainRequest,
    ScaleRequest,
    StorageRequest,
    TrainRequest,
)
from aiaas_magics.notebook.cell_fits import CellFits, EndOfCell, with_note
from aiaas_magics.notebook.namespace import model_of, named
from aiaas_magics.notebook.session import Session
from aiaas_magics.notebook.views import live

R = TypeVar("R")

# What the client's objects look like as the last expression of a cell; the client itself knows no IPython.
DISPLAYS: Final[dict[tuple[str, str], Callable[[Any], present.Bundle]]] = {
    ("aiaas_magics.client.training.job", "Job"): present.job_bundle,
    ("aiaas_magics.client.training.study", "Study"): present.study_table,
    ("aiaas_magics.client.training.planning", "FitPlan"): present.plan_table,
    ("aiaas_magics.client.serving.endpoint", "Endpoint"): present.endpoint_bundle,
}
LOADED: Final[dict[int, tuple[Any, Any]]] = {}  # by id of the shell: its magics and its matcher


def border(request: type[R]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Parse the line into `request`, answer -h, and turn our errors into what IPython shows.

    Typing mistakes become IPython's own `UsageError`, exactly that class: one line, no
    traceback, and Run All stops. Everything else of ours is shown as one block (`tracebacks.show_blocks`).
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def magic(self: AiaasMagics, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> Any:
            decorated = getattr(type(self), method.__name__)
            asked = arguments.read(decorated, line, request)
            if asked.help:  # type: ignore[attr-defined]
                print(decorated.__doc__)
                return None
            given = {"line": line, "cell": cell} if request is TrainRequest else {}
            try:
                return method(self, asked, **given, **({"names": local_ns or {}} if request is DeployRequest else {}))
            except errors.UsageError as error:
                if tracebacks.cell_frames(error.__traceback__, self.shell):
                    raise
                raise UsageError(str(error)) from None
            except KeyboardInterrupt as error:
                if hasattr(error, "_render_traceback_"):
                    raise
                raise tracebacks.Interrupted(f"Interrupted %{method.__name__}.") from None

        magic.needs_local_scope = True  # type: ignore[attr-defined]
        return magic

    return decorate


@magics_class
class AiaasMagics(Magics):  # type: ignore[misc]
    """Train, serve and measure Keras models on a backend, from the cell that defines them."""

    ui = Unicode("", help="How progress is shown: auto, widget, html, text or none; empty means AIAAS_UI or auto.").tag(config=True)

    def __init__(self, shell: Any, **kwargs: Any) -> None:
        super().__init__(shell, **kwargs)
        self.session = Session()

    def _ui(self, asked: str | None) -> str:
        return live.choose(self.shell, asked or self.ui or None)

    def _put(self, name: str | None, value: Any) -> None:
        if name is not None:
            self.shell.user_ns[name] = value

    # ---- training

    @line_cell_magic
    @output_can_be_silenced
    @magic_arguments()
    @arguments.train_options
    @border(TrainRequest)
    def aiaas_train(self, request: TrainRequest, *, line: str, cell: str | None) -> Any:
        """Run every fit of this cell on the backend.

        The cell runs in the kernel. Worker processes of the backend train every Keras model that it fits. History,
        weights and optimizer state come back as if `fit` had run here.

            %%aiaas_train --workers 2
            model.fit(x, y, epochs=10, batch_size=256)

        Several numbers (--workers 1,2) make a study: measured speedup beside the ideal.
        An interrupt cancels the job.
        """
        if cell is None or not cell.strip():
            raise UsageError("%%aiaas_train needs code below it. Write %%aiaas_train as the first line of the cell that calls fit.")
        body = cell_runner.compile_body(self.shell, "aiaas_train", line, cell)
        fits = CellFits(self.shell, self.session, request, ui=self._ui(request.ui), put=functools.partial(self._put, request.out))
        try:
            with fits.capturing() as in_kernel:
                value = cell_runner.run_body(self.shell, body)
        except EndOfCell:
            return None
        except (errors.AiaasError, tracebacks.Interrupted, UsageError):
            raise
        except (Exception, KeyboardInterrupt) as error:  # border: the user's cell ran in here and may raise anything
            tracebacks.attach_local(error, self.shell, body.file)
            raise
        if in_kernel:
            print(in_kernel.sentence())
        elif fits.count == 0:
            raise UsageError("No fit was called in this cell, so the backend trained nothing. Put model.fit(...) below %%aiaas_train.")
        return value

    # ---- jobs

    @line_magic
    @magic_arguments()
    @arguments.attach_options
    @border(JobRequest)
    def aiaas_attach(self, request: JobRequest) -> None:
        """Show a job's whole history and follow it live. An interrupt leaves the job running.

        For a job of another kernel, `job.apply_to(model)` gives its weights (-o assigns the Job to a variable).
        """
        job = self.session.find_job(request.job)
        self._put(request.out, job)
        self._follow(job, self._ui(request.ui))

    @line_magic
    @magic_arguments()
    @arguments.wait_options
    @border(JobRequest)
    def aiaas_wait(self, request: JobRequest) -> None:
        """Wait for a job. If this kernel submitted it, its model gets the trained weights.

        Raises the error of a job that failed.
        """
        job = self.session.find_job(request.job)
        self._put(request.out, job)
        ours = job is self.session.find_own(job.id)
        try:
            if ours:
                job.result(request.timeout)
            else:
                job.wait(request.timeout)
        except KeyboardInterrupt:
            raise tracebacks.Interrupted(f"Stopped waiting; job {job.id} goes on. %aiaas_cancel {job.id} stops it.") from None
        finally:
            self.session.settle(job)
        if not ours and job.state != "succeeded":
            raise job.failure()
        print(f"Job {job.id} {job.state}." + (" The model has its weights." if ours else " job.apply_to(model) gives its weights."))

    @line_magic
    @magic_arguments()
    @arguments.cancel_options
    @border(JobRequest)
    def aiaas_cancel(self, request: JobRequest) -> None:
        """Stop a job. The model in the kernel stays as it is."""
        job = self.session.find_job(request.job)
        over = job.view().state.final
        state = job.cancel()
        self.session.settle(job)
        print(f"Job {job.id} had ended before: {state}." if over else f"Job {job.id} {state}.")

    @line_magic
    @magic_arguments()
    @arguments.logs_options
    @border(JobRequest)
    def aiaas_logs(self, request: JobRequest) -> None:
        """Print what the job's workers printed. Lines begin with the worker's rank if there are several."""
        job = self.session.find_job(request.job)
        lines = job.logs().splitlines()
        if len(lines) > request.lines:
            print(f"({len(lines) - request.lines} earlier lines; --lines shows more)")
        print("\n".join(lines[-request.lines :]) or f"The workers of job {job.id} have printed nothing.")

    def _follow(self, job: Any, ui: str) -> None:
        view = job.view()
        hint = "" if view.state.final else f"Interrupt the kernel (■) to leave; %aiaas_cancel {job.id} stops the job."
        with live.LiveView(ui, title=present.job_title(view), hint=hint) as shown:
            try:
                measuring = view.spec.measure is not None
                story = job.follow(lambda told: shown.tell(told, measuring=measuring))
            except KeyboardInterrupt:
                raise tracebacks.Interrupted(f"Left job {job.id}, which goes on. %aiaas_attach {job.id} shows it again.") from None
            hardware = self.session.backend.about().hardware
            story = with_note(story, counted(job.printout, job.id))
            shown.freeze(present.job_bundles(job.view(), story, hardware, figures=shown.shows_figures))

    # ---- serving

    @line_magic
    @magic_arguments()
    @arguments.deploy_options
    @border(DeployRequest)
    def aiaas_deploy(self, request: DeployRequest, *, names: dict[str, Any]) -> Any:
        """Serve a trained model over HTTP.

        The model is exported here and compared with Keras on sample rows before it goes live.
        A live endpoint gets its next version. Returns an Endpoint.

            %aiaas_deploy model --name churn --replicas 2
            %aiaas_deploy better --name churn --canary 10%
            %aiaas_deploy model --name churn --precision int8 --validate x_val,y_val
        """
        if request.model is None:
            raise UsageError("Which model? Name the variable that holds it: %aiaas_deploy model --name churn.")
        from aiaas_magics.client.serving.endpoint import default_name

        scope = {**self.shell.user_ns, **names}
        model = model_of(request.model, scope)
        sample = None if request.sample is None else named(request.sample, scope, lambda _: True, "array")
        validation = tuple(named(name, scope, lambda _: True, "array") for name in request.validate or ())
        with live.SlowLine(self.shell, f"Deploying {request.model}") as line:
            endpoint = self.session.backend.deploy(
                model,
                name=request.name or (default_name(request.model) if request.model.isidentifier() else None),
                replicas=str(request.replicas),
                sample=sample,
                max_delay_us=request.max_delay_us,
                rollout=request.rollout,
                precision=request.precision,
                validation_data=validation or None,
                max_change=request.max_change,
                on_step=line.tell,
                tell=lambda change: live.show(self.shell, [present.change_table(change)]),
            )
        self.session.saw_endpoint(endpoint)
        self._put(request.out, endpoint)
        return endpoint

    @line_magic
    @magic_arguments()
    @arguments.bench_options
    @border(BenchRequest)
    def aiaas_bench(self, request: BenchRequest) -> None:
        """Measure an endpoint's latency and throughput, by number of connections and by offered rate, as JSON and as bytes.

        The load comes from a separate process, so that the kernel does not slow it down.

            %aiaas_bench churn --concurrency 1,2,4,8 --duration 2
        """
        if request.name is None:
            raise UsageError("Which endpoint? Name it: %aiaas_bench churn. %aiaas_status lists them.")
        endpoint = self.session.backend.endpoint(request.name)
        with live.ChangingLine(self.shell, f"Measuring {request.name}") as line:
            report = endpoint.bench(
                concurrency=request.concurrency,
                duration_s=request.duration,
                rows=request.rows,
                rates=request.rates,
                forms=request.forms,
                on_step=line.tell,
            )
            self._put(request.out, report)
            line.freeze(present.load_bundles(report, figures=live.shows_pictures(self.shell)))

    @line_magic
    @magic_arguments()
    @arguments.monitor_options
    @border(MonitorRequest)
    def aiaas_monitor(self, request: MonitorRequest) -> None:
        """Watch an endpoint live: rate, latency, batches, versions and errors. An interrupt ends it.

        %aiaas_monitor churn --seconds 60
        """
        if request.name is None:
            raise UsageError("Which endpoint? Name it: %aiaas_monitor churn. %aiaas_status lists them.")
        endpoint = self.session.backend.endpoint(request.name)
        seen: list[Sample | None] = []
        ended = ""
        with live.ChangingLine(self.shell, f"Watching {request.name}") as line:
            try:
                for _, sample in zip(
                    range(max(1, round(request.seconds / request.every))), endpoint.watch(every_s=request.every), strict=False
                ):
                    seen.append(sample)
                    line.show(present.looking_bundle(request.name, seen))
            except KeyboardInterrupt:
                ended = "Ended by an interrupt."
            except errors.UnknownName:
                ended = "The endpoint was taken down meanwhile."
            samples = tuple(sample for sample in seen if sample is not None)
            watched = EndpointWatch(endpoint=request.name, samples=samples, unanswered=len(seen) - len(samples), ended=ended)
            self._put(request.out, watched)
            line.freeze(present.watched_bundles(watched, figures=live.shows_pictures(self.shell)))

    @line_magic
    @magic_arguments()
    @arguments.promote_options
    @border(NameRequest)
    def aiaas_promote(self, request: NameRequest) -> None:
        """Make an endpoint's canary its live version, from the next request on.

        %aiaas_promote churn
        """
        if request.name is None:
            raise UsageError("Which endpoint? Name it: %aiaas_promote churn. %aiaas_status lists them.")
        print(present.routing_text(self.session.backend.endpoint(request.name).promote()))

    @line_magic
    @magic_arguments()
    @arguments.rollback_options
    @border(NameRequest)
    def aiaas_rollback(self, request: NameRequest) -> None:
        """Remove an endpoint's canary, or go back to the version before if there is no canary.

        %aiaas_rollback churn
        """
        if request.name is None:
            raise UsageError("Which endpoint? Name it: %aiaas_rollback churn. %aiaas_status lists them.")
        print(present.routing_text(self.session.backend.endpoint(request.name).rollback()))

    @line_magic
    @magic_arguments()
    @arguments.scale_options
    @border(ScaleRequest)
    def aiaas_scale(self, request: ScaleRequest) -> None:
        """Change an endpoint's number of replicas, without an interruption.

        With auto:1-4 the number follows the load, within these bounds.

        %aiaas_scale churn 2
        """
        if request.name is None or request.replicas is None:
            raise UsageError("Which endpoint, and how many replicas? Name both: %aiaas_scale churn 2. %aiaas_status lists the endpoints.")
        endpoint = self.session.backend.endpoint(request.name).scale(str(request.replicas))
        print(f"Replicas of each version of {endpoint.name}: {request.replicas}.")

    @line_magic
    @magic_arguments()
    @arguments.stop_options
    @border(NameRequest)
    def aiaas_stop(self, request: NameRequest) -> None:
        """Take an endpoint down, with all its versions."""
        if request.name is None:
            raise UsageError("Which endpoint? Name it: %aiaas_stop churn. %aiaas_status lists them.")
        self.session.backend.endpoint(request.name).stop()
        print(f"Endpoint {request.name} is down.")

    # ---- the backend

    @line_magic
    @magic_arguments()
    @arguments.status_options
    @border(PlainRequest)
    def aiaas_status(self, request: PlainRequest) -> None:
        """Show the backend, its jobs and its endpoints."""
        backend = self.session.backend
        about, jobs, endpoints = backend.about(), backend.jobs(), backend.endpoints()
        self.session.saw_jobs(jobs)
        self.session.saw_endpoints(endpoints)
        live.show(self.shell, [present.status_bundle(about, backend.url, jobs, endpoints)])

    @line_magic
    @magic_arguments()
    @arguments.storage_options
    @border(StorageRequest)
    def aiaas_storage(self, request: StorageRequest) -> None:
        """Show what the backend's state folder holds, and how much of it nothing needs.

        %aiaas_storage --free
        """
        backend = self.session.backend
        freed = backend.free_storage() if request.free else None
        live.show(self.shell, [present.storage_bundle(backend.storage(), freed)])

    @line_magic
    @magic_arguments()
    @arguments.connect_options
    @border(ConnectRequest)
    def aiaas_connect(self, request: ConnectRequest) -> None:
        """Connect to a backend: local, or a server's address.

        The token comes from AIAAS_TOKEN, or a prompt. It is never an argument, because cells are saved.
        """
        backend = self.session.connect(request.url, fingerprint=request.fingerprint or "")
        about = backend.about()
        print(f"Connected to {about.backend} at {backend.url}: {about.hardware}, {len(about.devices)} devices.")

    @line_magic
    @magic_arguments()
    @arguments.shutdown_options
    @border(PlainRequest)
    def aiaas_shutdown(self, request: PlainRequest) -> None:
        """Stop this machine's server, with its jobs and endpoints. The next magic starts it again."""
        backend = self.session.backend
        if backend.about().backend != "local":
            raise UsageError(f"{backend.name} at {backend.url} is not this machine's own server. Stop it where it runs, with aiaas stop.")
        backend.stop()
        self.session.close()
        print("The local server has ended.")


# --------------------------------------------------------------------------- loading


def load(ip: Any) -> None:
    """Register the magics, their completion and the displays of our objects. Opens no connection."""
    if id(ip) in LOADED:
        return
    ip.register_magics(AiaasMagics)
    magics = ip.magics_manager.registry["AiaasMagics"]
    matcher = completion.make_matcher(ip, parsers(), magics.session.known)
    ip.Completer.custom_matchers.append(matcher)
    ip.input_transformers_cleanup.insert(0, with_body)
    for (module, name), show in DISPLAYS.items():
        ip.display_formatter.mimebundle_formatter.for_type_by_name(module, name, show)
    png = ip.display_formatter.formatters["image/png"]
    if ("matplotlib.figure", "Figure") not in png.deferred_printers and "matplotlib.figure" not in sys.modules:
        # `study.plot()` as the last expression: without pyplot nobody else tells IPython how to show a Figure.
        png.for_type_by_name("matplotlib.figure", "Figure", present.figure_png)
    tracebacks.show_blocks(ip)
    LOADED[id(ip)] = (magics, matcher)


def with_body(lines: list[str]) -> list[str]:
    """A cell of the %%aiaas_train line alone gets an empty line: IPython would refuse it and advise %aiaas_train, which is no help."""
    alone = len(lines) == 1 and re.match(r"%%aiaas_train(\s|$)", lines[0])
    return [lines[0].rstrip("\n") + "\n", "\n"] if alone else lines


def unload(ip: Any) -> None:
    """Take away what `load` brought."""
    magics, matcher = LOADED.pop(id(ip), (None, None))
    if magics is None:
        return
    ip.Completer.custom_matchers[:] = [known for known in ip.Completer.custom_matchers if known is not matcher]
    ip.input_transformers_cleanup[:] = [transform for transform in ip.input_transformers_cleanup if transform is not with_body]
    for kind, names in magics.magics.items():
        for name in names:
            ip.magics_manager.magics[kind].pop(name, None)
    ip.magics_manager.registry.pop("AiaasMagics", None)
    if magics in ip.configurables:
        ip.configurables.remove(magics)
    for module, name in DISPLAYS:
        ip.display_formatter.mimebundle_formatter.pop(f"{module}.{name}", None)
    tracebacks.stop_showing_blocks()
    magics.session.close()


def parsers() -> dict[str, Any]:
    """Every magic's parser by the magic's name."""
    found = {name: getattr(method, "parser", None) for name, method in vars(AiaasMagics).items() if name.startswith("aiaas_")}
    return {name: parser for name, parser in found.items() if parser is not None}
