"""A backend, as seen from a notebook or a script.

Owns which backend that is and what can be asked of it. HTTP belongs to `transport`,
starting the local server to `embedded`, each noun (job, study, endpoint) to its file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from aiaas_magics import processes, server_proof, settings, wire
from aiaas_magics.client import certificates, embedded
from aiaas_magics.client.blobs import BlobSender
from aiaas_magics.client.endpoint import Endpoint, deploy
from aiaas_magics.client.job import Job
from aiaas_magics.client.transport import Transport
from aiaas_magics.errors import InvalidSpec, UnknownName, VersionSkew
from aiaas_magics.execution import Execution
from aiaas_magics.routing import Rollout
from aiaas_magics.spec import About, EndpointView, Freed, JobView, StorageView

if TYPE_CHECKING:
    from aiaas_magics.client.planning import FitPlan
    from aiaas_magics.client.study import Study
    from aiaas_magics.packing.change import PrecisionChange

LOCAL: Final = "local"


class _Kernel(msgspec.Struct):
    pid: int
    started: int


class Backend:
    """A connection to a backend: the local server, or one at a URL.

    >>> with aiaas_magics.connect() as backend:          # doctest: +SKIP
    ...     job = backend.train(model, x, y, workers=2, epochs=3)
    ...     history = job.result()
    """

    def __init__(self, transport: Transport, *, state: Path | None = None) -> None:
        """`state` is the local server's folder. Only a server of this account, there, may have arrays written into a folder for it.

        Raises:
            VersionSkew: both sides cannot understand each other.
        """
        self.transport = transport
        self._about = transport.get("/v1/about", About)
        if self._about.protocol != wire.PROTOCOL:
            raise VersionSkew("aiaas_magics' protocol", str(wire.PROTOCOL), str(self._about.protocol))
        dropbox = self._about.dropbox
        is_ours = dropbox is not None and state is not None and Path(dropbox).resolve().is_relative_to(state.resolve())
        self.blobs = BlobSender(transport, dropbox=dropbox if is_ours else None)
        if dropbox and server_proof.is_needed(transport.url):  # on this machine, for as long as somebody needs it
            pid = os.getpid()
            transport.post("/v1/kernels", _Kernel(pid, processes.start_mark(pid)), type(None), key=f"kernel-{pid}")

    @property
    def url(self) -> str:
        return self.transport.url

    @property
    def name(self) -> str:
        """What the backend calls itself: "local", or a host."""
        return self._about.backend

    def __repr__(self) -> str:
        return f"<Backend {self.name} at {self.url}: {self._about.hardware}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; jobs and endpoints go on."""
        self.transport.close()

    def about(self) -> About:
        self._about = self.transport.get("/v1/about", About)
        return self._about

    def jobs(self) -> list[JobView]:
        """Every job that the backend remembers, oldest first."""
        return self.transport.get("/v1/jobs", list[JobView])

    def job(self, job: str) -> Job:
        """The job with this id.

        Raises:
            UnknownName: there is none.
        """
        known = {view.id: view for view in self.jobs()}
        if job not in known:
            raise UnknownName("job", job, tuple(known))
        return Job(self.transport, known[job])

    def endpoints(self) -> list[EndpointView]:
        return self.transport.get("/v1/endpoints", list[EndpointView])

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint of this name.

        Raises:
            UnknownName: there is none.
        """
        known = {view.name: view for view in self.endpoints()}
        if name not in known:
            raise UnknownName("endpoint", name, tuple(known))
        return Endpoint(self.transport, known[name])

    def train(
        self,
        model: Any,
        x: Any = None,
        y: Any = None,
        *,
        workers: int | None = None,
        name: str | None = None,
        seed: int | None = None,
        oversubscribe: bool = False,
        retries: int = 3,
        resume: str | None = None,
        execution: Execution | None = None,
        environment: Sequence[str] | None = (),
        **fit_arguments: Any,
    ) -> Job:
        """Hand in `model.fit(x, y, **fit_arguments)` on `workers` workers; returns at once.

        `job.result()` waits, puts the trained state into `model` and gives Keras' `History`.

        Args:
            retries: how many attempts a lost worker may cost beyond the first; each goes on from the last checkpoint.
            resume: a failed or cancelled job; the new one goes on from its last checkpoint, with its order of rows,
                on the same or another number of workers. The history then has the epochs of both.
            environment: environment variables that workers get beside those set in this process; None for none at all.

        Raises:
            UsageError: what cannot travel or does not fit together; nothing was sent then.
            NotEnoughDevices: more workers than devices, without `oversubscribe`.
        """
        from aiaas_magics.client.training import TrainOptions, prepare, submit
        from aiaas_magics.packing.fitcall import FitCall

        options = TrainOptions(
            name=name,
            workers=workers,
            seed=seed,
            oversubscribe=oversubscribe,
            retries=retries,
            resume=resume,
            execution=execution or Execution(),
            environment=None if environment is None else tuple(environment),
        )
        call = FitCall(model=model, arguments={"x": x, "y": y, **fit_arguments})
        return submit(prepare(self, call, options))

    def plan(
        self,
        model: Any,
        x: Any = None,
        y: Any = None,
        *,
        workers: int | None = None,
        oversubscribe: bool = False,
        execution: Execution | None = None,
        environment: Sequence[str] | None = (),
        **fit_arguments: Any,
    ) -> FitPlan:
        """How `train` would carry this fit out, and what every way that `execution` leaves open takes; nothing is trained."""
        from aiaas_magics.client import planning
        from aiaas_magics.client.training import TrainOptions
        from aiaas_magics.packing.fitcall import FitCall

        call = FitCall(model=model, arguments={"x": x, "y": y, **fit_arguments})
        names = None if environment is None else tuple(environment)
        options = TrainOptions(workers=workers, oversubscribe=oversubscribe, execution=execution or Execution(), environment=names)
        return planning.plan(self, call, options)

    def study(
        self,
        model: Any,
        x: Any = None,
        y: Any = None,
        *,
        workers: tuple[int, ...] = (1, 2),
        weak: bool = False,
        name: str | None = None,
        seed: int | None = None,
        oversubscribe: bool = False,
        execution: Execution | None = None,
        environment: Sequence[str] | None = (),
        **fit_arguments: Any,
    ) -> Study:
        """The same fit call on several numbers of workers, measured; `model` keeps its weights.

        With `weak`, `batch_size` is each worker's: n workers take global batches n times as large.
        """
        from aiaas_magics.client import study
        from aiaas_magics.client.training import TrainOptions
        from aiaas_magics.packing.fitcall import FitCall

        call = FitCall(model=model, arguments={"x": x, "y": y, **fit_arguments})
        names = None if environment is None else tuple(environment)
        options = TrainOptions(name=name, seed=seed, oversubscribe=oversubscribe, execution=execution or Execution(), environment=names)
        return study.measure(self, call, points=workers, options=options, weak=weak)

    def deploy(
        self,
        model: Any,
        *,
        name: str | None = None,
        replicas: int | str = 1,
        sample: Any = None,
        max_delay_us: int = 0,
        rollout: Rollout | None = None,
        precision: str = "",
        validation_data: Any = None,
        max_change: float | None = None,
        tell: Callable[[PrecisionChange], None] | None = None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> Endpoint:
        """Export `model`, prove the export equal to Keras on `sample`, and serve it.

        Args:
            model: a Keras model; or a model of onnx or scikit-learn; or the path of a .keras, .h5 or .onnx file or a SavedModel's folder.
                What is no Keras model is proved equal to what the serving engine computes here.
            replicas: executors of the model: a number, "auto" or "auto:1-4", between which the load decides.
            max_delay_us: microseconds that the first request of a batch may be held back for company.
            rollout: how the next version of a live endpoint comes in: at once, or as a canary.
            precision: "float16", "int8" or "int4" for weights in fewer bits (ONNX only); what that changes is measured here first.
            validation_data: (x_val, y_val), or x_val, as arrays: the rows to measure it on. They are sent nowhere. The model's own
                metrics are compared, or without y_val its answers; without either the rows of `sample` have to do.
            max_change: of the first metric, or the share of rows with another answer; 0.01, or 0.1 without validation data.
            tell: called with what was measured, before anything is sent. It is `endpoint.change` afterwards.
            on_step: called with what is done next, in words: the export of a large model takes minutes.

        Raises:
            InvalidName, UsageError: before anything is exported.
            ChangedTooMuch: fewer bits change the answers beyond `max_change`; nothing is sent.
            ProofFailed: the engine's answers differ; a version that was live stays live.
        """
        options: dict[str, Any] = {"replicas": replicas, "sample": sample, "max_delay_us": max_delay_us, "rollout": rollout}
        options["on_step"] = on_step
        if precision:
            from aiaas_magics.packing.change import Reduction

            reduction = Reduction(precision=precision, validation_data=validation_data, max_change=max_change)
            options |= {"reduction": reduction, "tell": tell}
        elif validation_data is not None or max_change is not None:
            raise InvalidSpec("Validation data and max_change belong to fewer bits. Add precision='int8', say, or leave them out.")
        return deploy(self.transport, self.blobs, model, name=name, **options)

    def storage(self) -> StorageView:
        """What the backend's state folder holds, and how much of its disk that is."""
        return self.transport.get("/v1/storage", StorageView)

    def free_storage(self) -> Freed:
        """Remove what nothing needs: no job that is not over, no live endpoint, no job that can be gone on from."""
        return self.transport.post("/v1/storage/free", None, Freed)

    def stop(self) -> None:
        """End the backend itself, with its jobs and endpoints."""
        self.transport.post("/v1/stop", None, type(None))


def connect(url: str | None = None, token: str | None = None, *, fingerprint: str = "") -> Backend:
    """A connection to the backend at `url`; "local" or nothing means this machine's own.

    The local server is started when it is not running. `AIAAS_BACKEND` and `AIAAS_TOKEN`
    stand in for what is not given.

    Args:
        fingerprint: SHA-256 of the server's certificate, which is accepted from now on for this address, whoever signed it.

    Raises:
        BackendUnreachable, NotAuthorised, CannotStart, CertificateRefused, CertificateChanged, InvalidSpec: with the next move in the text.
    """
    url = url or os.environ.get("AIAAS_BACKEND") or LOCAL
    if url == LOCAL:
        if fingerprint:
            raise InvalidSpec("A fingerprint is of a certificate, and the local server has none. Leave it out.")
        found_url, found_token = embedded.ensure_local()
        local = Transport(found_url, token=found_token, revive=embedded.ensure_local, on_silence=embedded.check_local_goes_on)
        return Backend(local, state=settings.local_state())
    transport = Transport(url, token=token or os.environ.get("AIAAS_TOKEN", ""), fingerprint=fingerprint)
    backend = Backend(transport)
    if fingerprint:
        certificates.pin(transport.url, transport.fingerprint)
    return backend
