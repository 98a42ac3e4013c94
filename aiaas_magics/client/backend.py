"""Backend: a connection to a backend, for a notebook or a script.

Owns which backend that is and what can be asked of it. HTTP belongs to `transport`,
starting the local server to `local_server`, each noun (job, study, endpoint) to its file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from aiaas_magics.client import certificates, local_server, stored_tokens
from aiaas_magics.client.account_calls import AccountCalls
from aiaas_magics.client.explain.explain_job import job_of
from aiaas_magics.client.serving import signing_keys
from aiaas_magics.client.serving.deployment import deploy
from aiaas_magics.client.serving.endpoint import Endpoint
from aiaas_magics.client.training.job import Job
from aiaas_magics.client.transport import Transport
from aiaas_magics.client.trust_calls import TrustCalls
from aiaas_magics.client.uploads import BlobSender
from aiaas_magics.core import server_proof, settings, wire
from aiaas_magics.core.accounts import WhoAmI
from aiaas_magics.core.errors import InvalidSpec, UnknownName, VersionSkew
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.process_id import ProcessId
from aiaas_magics.core.recording import RecordingPolicy
from aiaas_magics.core.routing import Rollout
from aiaas_magics.core.spec import About, EndpointView, Freed, JobView, StorageView

if TYPE_CHECKING:
    from aiaas_magics.client.training.planning import FitPlan
    from aiaas_magics.client.training.study import Study
    from aiaas_magics.packing.export.accuracy_impact import PrecisionChange

LOCAL: Final = "local"


class Backend(TrustCalls):
    """A connection to a backend: the local server, or one at a URL. `connect` makes it.

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
        self._preprocessors: dict[str, Callable[[Any], Any]] = {}  # by endpoint: preprocessors of models that were deployed here
        self._about = transport.get("/v1/about", About)
        if self._about.protocol != wire.PROTOCOL:
            raise VersionSkew("aiaas_magics' protocol", str(wire.PROTOCOL), str(self._about.protocol))
        dropbox = self._about.dropbox
        is_ours = dropbox is not None and state is not None and Path(dropbox).resolve().is_relative_to(state.resolve())
        self.blobs = BlobSender(transport, dropbox=dropbox if is_ours else None)
        if dropbox and server_proof.is_needed(transport.url):  # on this machine, for as long as somebody needs it
            kernel = ProcessId.of(os.getpid())
            transport.post("/v1/kernels", kernel, type(None), key=f"kernel-{kernel.pid}")

    @property
    def url(self) -> str:
        """The base address of the backend's API, without a trailing slash."""
        return self.transport.url

    @property
    def name(self) -> str:
        """The backend's own name: "local", or its host name."""
        return self._about.backend

    def __repr__(self) -> str:
        return f"<Backend {self.name} at {self.url}: {self._about.hardware}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Jobs and endpoints go on."""
        self.transport.close()

    def about(self) -> About:
        """Ask the backend for its versions, devices, hardware and memory (bytes)."""
        self._about = self.transport.get("/v1/about", About)
        return self._about

    def whoami(self) -> WhoAmI:
        """Ask as whom the backend knows you: your name, role, groups and quotas. An empty name is the server's own account."""
        return self.transport.get("/v1/whoami", WhoAmI)

    @property
    def accounts(self) -> AccountCalls:
        """Users, tokens and shared endpoints, for whoever may administer them."""
        return AccountCalls(self.transport)

    def jobs(self) -> list[JobView]:
        """List every job that the backend remembers, oldest first. On a server with users these are your own."""
        return self.transport.get("/v1/jobs", list[JobView])

    def job(self, job: str) -> Job:
        """Get a job of the backend, also one that another kernel submitted.

        Args:
            job: the job's id.

        Raises:
            UnknownName: the backend has no such job.
        """
        views = {view.id: view for view in self.jobs()}
        if job not in views:
            raise UnknownName("job", job, tuple(views))
        return job_of(self.transport, views[job])

    def endpoints(self) -> list[EndpointView]:
        """List every endpoint of the backend."""
        return self.transport.get("/v1/endpoints", list[EndpointView])

    def endpoint(self, name: str) -> Endpoint:
        """Get an endpoint of the backend, also one that another kernel deployed.

        Args:
            name: the endpoint's name.

        Raises:
            UnknownName: the backend has no such endpoint.
        """
        views = {view.name: view for view in self.endpoints()}
        if name not in views:
            # A user's own "churn" is served as "USER.churn".
            own = [view.name for view in views.values() if view.owner and view.name == f"{view.owner}.{name}"]
            if len(own) != 1:
                raise UnknownName("endpoint", name, tuple(views))
            name = own[0]
        return Endpoint(self.transport, views[name], preprocess=self._preprocessors.get(name))

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
        """Submit `model.fit(x, y, **fit_arguments)` to run on `workers` workers. Returns at once.

        Args:
            model: a compiled Keras model. It keeps its weights until you take the result.
            x: what `fit` takes as `x`: arrays of shape `(rows, ...)` and any dtype that the model accepts, or a
                `tf.data` dataset, a `PyDataset` or a generator of batches.
            y: what `fit` takes as `y`: targets of shape `(rows, ...)`; leave it out if `x` yields them.
            workers: the number of workers; None is one worker with every core or GPU.
            name: the job's name; None is the model's name.
            seed: the seed of the row order, from 0 to 2**31 - 1; None takes it from Python's random state, without
                changing that.
            oversubscribe: allow more workers than devices. They share the devices.
            retries: how many more attempts lost workers may cost. Each resumes from the last checkpoint.
            resume: the id of a failed or cancelled job. The new job resumes from its last checkpoint with the same
                row order, on any number of workers. The history then has the epochs of both.
            execution: the engine, strategy and other choices; None leaves them to the plan.
            environment: names of environment variables to send besides those set in this process; None sends none at
                all.
            fit_arguments: the other arguments of Keras' `fit`, such as `epochs` and `batch_size` (rows in a global
                batch).

        Returns:
            The job. `job.result()` waits, puts the trained state into `model` and returns Keras' `History`.

        Raises:
            UsageError: something cannot be sent or does not fit together. Nothing was sent.
            NotEnoughDevices: more workers than devices, without `oversubscribe`.
        """
        from aiaas_magics.client.training.submission import TrainOptions, prepare, submit
        from aiaas_magics.packing.fitcall.fit_call import FitCall

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
        """Plan a fit, and measure a few steps of every way that `execution` leaves open. `model` is not trained.

        The data is sent, and short jobs run on the backend.

        Args:
            model: as in `train`.
            x: as in `train`.
            y: as in `train`.
            workers: as in `train`.
            oversubscribe: as in `train`.
            execution: what is fixed already; every field left at its default is open.
            environment: as in `train`.
            fit_arguments: as in `train`.

        Returns:
            The plan: what would be sent (bytes), the chosen way, and each candidate with its seconds per step,
            compile seconds and memory bytes, or with the reason that rules it out.

        Raises:
            UsageError: something cannot be sent or does not fit together.
            NotEnoughDevices: more workers than devices, without `oversubscribe`.
        """
        from aiaas_magics.client.training import planning
        from aiaas_magics.client.training.submission import TrainOptions
        from aiaas_magics.packing.fitcall.fit_call import FitCall

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
        """Measure the same fit on several numbers of workers. `model` keeps its weights.

        Args:
            model: as in `train`.
            x: arrays of shape `(rows, ...)`; a study needs arrays.
            y: arrays of shape `(rows, ...)`.
            workers: at least two different numbers of workers.
            weak: `batch_size` is the rows per worker, so n workers take global batches n times as large.
            name: the study's name; None is the model's name.
            seed: as in `train`.
            oversubscribe: as in `train`.
            execution: as in `train`.
            environment: as in `train`.
            fit_arguments: as in `train`.

        Raises:
            InvalidSpec: fewer than two numbers of workers, or too few rows for the largest batch of a weak study.
            UsageError: something cannot be sent or does not fit together.
            NotEnoughDevices: more workers than devices, without `oversubscribe`.
        """
        from aiaas_magics.client.training import study
        from aiaas_magics.client.training.submission import TrainOptions
        from aiaas_magics.packing.fitcall.fit_call import FitCall

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
        other_samples: Sequence[Any] = (),
        max_delay_us: int = 0,
        rollout: Rollout | None = None,
        background: Any = None,
        precision: str = "",
        validation_data: Any = None,
        max_change: float | None = None,
        sign: str | Path | None = None,
        require_signed: str | Path | None = None,
        tell: Callable[[PrecisionChange], None] | None = None,
        recording: str | RecordingPolicy | None = None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> Endpoint:
        """Export `model`, compare the export with Keras on sample rows, and serve it.

        Args:
            model: a trained Keras model, a task of KerasHub with its preprocessor, a model of onnx or scikit-learn, or the
                path of a .keras, .h5 or .onnx file or of a SavedModel's folder. What is no Keras model is compared with
                what the serving engine computes here.
            name: the endpoint's name; None makes one from the model's name. A live endpoint gets its next version.
            replicas: how many requests the model can compute at once: a number from 1 to 64, "auto", or "auto:1-4"
                for as many as the load needs between these.
            sample: typical rows, in the form that `predict` takes, of shape `(rows, ...)`; None uses validation data
                or rows of the last fit.
            other_samples: rows that differ from `sample` in the size of a dimension, such as the time steps of a subclassed
                model. The endpoint takes any size there, and each of these is compared.
            max_delay_us: how long the first request of a batch may wait for others, in microseconds.
            rollout: how the next version of a live endpoint takes over; None is at once.
            background: rows of the training data, as `predict` takes them, that explanations hide parts of a row behind; up
                to 100 of them travel with the model. None uses the sample rows.
            precision: "float16", "int8" or "int4" for weights in fewer bits (ONNX only); "" leaves them as they are.
            validation_data: `(x_val, y_val)` or `x_val`, as arrays of shape `(rows, ...)`. Both forms of the model
                are compared on them, by its own metrics, or by its answers without `y_val`. They are not sent. None
                uses the rows of `sample`.
            max_change: how much the first metric may change, or which share of the answers (0 to 1); None is 0.01, or
                0.1 without validation data.
            sign: the file of an Ed25519 private key, as `aiaas key` or `ssh-keygen -t ed25519` makes it. The signature covers
                the endpoint's name, the hashes of the model and its samples, the interface and the time.
            require_signed: a file of public keys, one per line. This version and the next ones of the endpoint are only
                served if one of these keys signed them, also after a restart.
            tell: called with the measured change before anything is sent. It is `endpoint.change` afterwards.
            recording: which share of requests and answers to keep, such as "1%" or "1%,256MB,7d"; see `Endpoint.record`. The
                distribution of `sample`, or of rows of the last fit, is kept for `Endpoint.drift`. None leaves it as the
                endpoint has it; a new one records nothing.
            on_step: called with a few words before each step, because exporting a large model takes minutes.

        Raises:
            InvalidName: the name is not allowed. Nothing was exported.
            UsageError: the options do not fit together, or the model cannot be exported.
            ChangedTooMuch: fewer bits change the answers by more than `max_change`. Nothing was sent.
            ProofFailed: the serving engine's answers differ from Keras'. A live version stays live.
            SignatureRefused: the backend or the endpoint demands a signature of another key.
        """
        options: dict[str, Any] = {"replicas": replicas, "max_delay_us": max_delay_us, "rollout": rollout}
        options |= {"sample": sample, "other_samples": other_samples, "background": background, "recording": recording, "on_step": on_step}
        if precision:
            from aiaas_magics.packing.export.export_request import QuantizationOptions

            quantization_options = QuantizationOptions(precision=precision, validation_data=validation_data, max_change=max_change)
            options |= {"quantization_options": quantization_options, "tell": tell}
        elif validation_data is not None or max_change is not None:
            raise InvalidSpec("Validation data and max_change need a precision. Add precision='int8', say, or leave them out.")
        if sign is not None:
            options["sign"] = Path(sign).expanduser()
        if require_signed is not None:
            options["trusted_keys"] = signing_keys.read_public(Path(require_signed).expanduser())
        endpoint = deploy(self.transport, self.blobs, model, name=name, **options)
        self._preprocessors.pop(endpoint.name, None)
        if endpoint.preprocess is not None:
            self._preprocessors[endpoint.name] = endpoint.preprocess
        return endpoint

    def storage(self) -> StorageView:
        """Ask what the backend's state folder holds, in bytes, and how full its disk is."""
        return self.transport.get("/v1/storage", StorageView)

    def free_storage(self) -> Freed:
        """Remove what nothing needs. Unfinished jobs, live endpoints and jobs that can be resumed keep theirs.

        Returns:
            What was freed, in bytes.
        """
        return self.transport.post("/v1/storage/free", None, Freed)

    def stop(self) -> None:
        """Stop the backend itself, with its jobs and endpoints."""
        self.transport.post("/v1/stop", None, type(None))


def connect(url: str | None = None, token: str | None = None, *, fingerprint: str = "") -> Backend:
    """Connect to a backend. Starts the local server if it is not running.

    Args:
        url: "local", or an address such as "https://gpu-box:8443"; None is `AIAAS_BACKEND`, or "local".
        token: your token for the backend; None is `AIAAS_TOKEN`, or the one that you typed when you connected to it before.
            The local server needs none.
        fingerprint: SHA-256 of the server's certificate in hexadecimal. The certificate is accepted for this address
            from now on, whoever signed it.

    Raises:
        BackendUnreachable: nobody answers at the address.
        NotAuthorised: the token is missing or wrong.
        CannotStart: the local server did not start.
        CertificateRefused: nobody vouches for the certificate.
        CertificateChanged: the certificate is not the accepted one.
        VersionSkew: the two sides speak different protocols.
        InvalidSpec: a fingerprint for the local server.
    """
    url = url or os.environ.get("AIAAS_BACKEND") or LOCAL
    if url == LOCAL:
        if fingerprint:
            raise InvalidSpec("A fingerprint identifies a certificate, and the local server has none. Leave it out.")
        found_url, found_token = local_server.ensure_local()
        local = Transport(found_url, token=found_token, revive=local_server.ensure_local, on_silence=local_server.check_local_goes_on)
        return Backend(local, state=settings.local_state())
    token = token or os.environ.get("AIAAS_TOKEN", "") or stored_tokens.find(url)
    transport = Transport(url, token=token, fingerprint=fingerprint)
    backend = Backend(transport)
    if fingerprint:
        certificates.pin(transport.url, transport.fingerprint)
    return backend
