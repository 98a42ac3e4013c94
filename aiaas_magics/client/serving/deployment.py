"""Deployment: a live model becomes an endpoint.

Owns the order: export, send, sign, have it served. Exporting belongs to `model_export`, checking and serving to the backend, calling to
`endpoint`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from aiaas_magics.client.serving import signing_keys
from aiaas_magics.client.serving.deployed_background import samples_of
from aiaas_magics.client.serving.endpoint import Endpoint
from aiaas_magics.client.serving.recorded_endpoint import begin_recording
from aiaas_magics.client.transport import Transport
from aiaas_magics.client.uploads import BlobSender
from aiaas_magics.core import integrity
from aiaas_magics.core import precision as precisions
from aiaas_magics.core.accounts import Role, WhoAmI, qualified
from aiaas_magics.core.recording import RecordingPolicy, policy_of
from aiaas_magics.core.routing import Rollout, scaling_of
from aiaas_magics.core.spec import DeploySpec, EndpointView, checked_name

if TYPE_CHECKING:
    from aiaas_magics.packing.export.accuracy_impact import PrecisionChange
    from aiaas_magics.packing.export.export_request import QuantizationOptions
    from aiaas_magics.packing.export.model_export import Servable


def deploy(
    transport: Transport,
    blobs: BlobSender,
    model: Any,
    *,
    name: str | None = None,
    replicas: int | str = 1,
    sample: Any = None,
    other_samples: Sequence[Any] = (),
    max_delay_us: int = 0,
    rollout: Rollout | None = None,
    background: Any = None,
    quantization_options: QuantizationOptions | None = None,
    sign: Path | None = None,
    trusted_keys: Sequence[str] = (),
    tell: Callable[[PrecisionChange], None] | None = None,
    recording: str | RecordingPolicy | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Endpoint:
    """Export, prove, serve. A name that is live already gets its next version, which comes in as `rollout` says.

    What fewer bits change is told to `tell` and held against its limit before anything is sent. `on_step` gets what
    is done next, in words. `sign` is the file of the private key that signs the deployment.
    """
    from aiaas_magics.client.card import card_deployment
    from aiaas_magics.packing.export import foreign_models, samples

    private_key = b"" if sign is None else signing_keys.read_private(sign)
    name = checked_name("an endpoint", name if name is not None else default_name(foreign_models.name_of(model)))
    scaling = scaling_of(replicas)
    policy = policy_of(recording) if isinstance(recording, str) else recording
    exported = foreign_models.export(model, sample, other_samples=other_samples, quantization_options=quantization_options, on_step=on_step)
    change = exported.change
    if change is not None:
        if tell is not None:
            tell(change)
        change.check()
    on_step(f"sending {len(exported.artefact) / 1e6:,.1f} MB")
    spec = DeploySpec(
        name=name,
        artefact=blobs.send_bytes(exported.artefact),
        format=exported.format,
        samples=blobs.send_bytes(samples_of(name, exported, background)),
        inputs=exported.inputs,
        outputs=exported.outputs,
        replicas=scaling.replicas,
        most_replicas=scaling.most,
        max_delay_us=max_delay_us,
        rollout=rollout or Rollout(),
        precision=precisions.of(change.precision, change.sentence) if change else precisions.for_spread(exported.spread),
        model=foreign_models.name_of(model),
        origin=exported.origin,
        example=exported.example,
        card=card_deployment.card_of(model, name),
        trusted_keys=tuple(trusted_keys),
    )
    if sign is not None:
        spec = replace(spec, name=name_on(transport, name))
        spec = replace(spec, signature=integrity.sign(spec, private_key, str(sign), signed_s=int(time.time())))
    on_step("waiting for the backend, which loads it and compares its answers with Keras'")
    view = transport.post("/v1/endpoints", spec, EndpointView, answer_s=300.0)
    endpoint = Endpoint(transport, view, change, notes_of(exported), exported.preprocess)
    if policy is None and view.recording.is_on:
        policy = view.recording  # the next version is recorded as the one before, and has a reference of its own
    if policy is not None:
        on_step("describing the data for drift")
        rows, columns = (sample, ()) if sample is not None else (samples.fitted_rows(model), samples.fitted_columns(model))
        endpoint.notes = (*endpoint.notes, *begin_recording(endpoint, policy, rows, columns=columns))
    card_deployment.complete(endpoint, model)
    return endpoint


def notes_of(exported: Servable) -> tuple[str, ...]:
    """What an endpoint does not do as the model in the kernel does."""
    notes = []
    if exported.format == "saved_model":
        why = f", since {exported.note}" if exported.note.startswith("texts") else f": {exported.note}" if exported.note else ""
        notes.append(f"Served by TensorFlow, in a process of its own of about 800 MB, and not as ONNX, which is faster{why}.")
    if exported.frozen:
        names = ", ".join(exported.frozen[:4])
        notes.append(f"Each call changes {names} in Keras. The endpoint does not go on with that; its answers do not depend on it.")
    if exported.spread > precisions.FLOAT32_OF_LARGEST:
        notes.append(
            f"Keras' own answers to the same rows differ by {exported.spread:.1g} of the largest, with other rows beside them; "
            "the endpoint was held to twice that."
        )
    return (*notes, *exported.notes)


def default_name(own: str) -> str:
    """A name for an endpoint from a variable's or a model's: "Sequential_1" gives "sequential_1"."""
    cleaned = re.sub(r"[^a-z0-9._-]+", "-", own.lower()).strip("-._")
    return cleaned[:63] or "model"


def name_on(transport: Transport, name: str) -> str:
    """The name under which the backend serves an endpoint of this caller; a signature covers it."""
    caller = transport.get("/v1/whoami", WhoAmI)
    return name if caller.role is Role.ADMIN else qualified(name, caller.user)
