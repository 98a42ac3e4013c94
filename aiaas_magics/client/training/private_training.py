"""Private training: the noise of a fit, and what the fits of a model have spent together.

Owns calibrating before a fit is sent, and the account of each model in this kernel. What may not be trained privately is
`packing.checks.private_checks`, the arithmetic `core.privacy_accountant`.
"""

from __future__ import annotations

import weakref
from typing import Any, Final

import msgspec

from aiaas_magics.core import privacy_accountant
from aiaas_magics.core.engines import ENGINES, HOME
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.privacy import Privacy, PrivacySpent, PrivateSteps, sampling_of
from aiaas_magics.core.spec import FitShape, FitSpec
from aiaas_magics.packing.live.model_variables import steps_made

PREFERRED: Final = "jax"  # computes gradients of single rows quicker than TensorFlow (benchmarks/trust_private.py)
_spent: weakref.WeakKeyDictionary[Any, PrivacySpent] = weakref.WeakKeyDictionary()


def on_engine(execution: Execution, *, installed: dict[str, str], resumed: FitSpec | None = None) -> Execution:
    """`execution` with the engine that private steps take where nobody named one: that of the job that is resumed, or the preferred one."""
    is_open = execution.engine == execution.strategy == "auto" and not execution.precision
    engine = PREFERRED if resumed is None else resumed.execution.runs_on.name
    if is_open and engine in installed and ENGINES[engine] is not HOME:
        return msgspec.structs.replace(execution, engine=engine, may_fall_back=True)
    return execution


def calibrated(execution: Execution, model: Any, shape: FitShape, *, resumed: FitSpec | None = None) -> Execution:
    """`execution` with the noise that its budget asks for, and with what the model has spent before.

    A resumed job keeps its noise, so that all of its steps count alike.

    Raises:
        InvalidSpec: there is no such noise, or the job that is resumed was not private in the same way.
    """
    privacy = execution.private
    if privacy is None:
        if resumed is not None and resumed.execution.private is not None:
            raise InvalidSpec("The job to resume is private, and this fit is not. Add the --private of that job.")
        return execution
    if resumed is not None:
        before = resumed.execution.private
        if before is None:
            raise InvalidSpec(
                "The job to resume was trained without --private, so its steps have no guarantee. Start a new fit with --private."
            )
        same = (before.clip, resumed.shape.rows, resumed.shape.global_batch) == (privacy.clip, shape.rows, shape.global_batch)
        if not same:
            raise InvalidSpec("A private job resumes with the clip, rows and batch_size that it began with. Give fit the same ones.")
        settled = msgspec.structs.replace(privacy, noise=before.noise, earlier=before.earlier)
    else:
        account = spent_by(model)
        settled = msgspec.structs.replace(privacy, earlier=() if account is None else account.fits)
    if not settled.noise:
        noise = privacy_accountant.noise_for(settled.epsilon, settled.delta, sampling=_sampling(shape), steps=shape.steps)
        settled = msgspec.structs.replace(settled, noise=noise)
    return msgspec.structs.replace(execution, private=settled)


def totals(execution: Execution, model: Any, shape: FitShape, *, resumed: bool) -> tuple[str, ...]:
    """What is to be said of the whole of a model's fits before the next one."""
    privacy = execution.private
    if privacy is None:
        return ()
    sentences = [f"The whole fit costs epsilon={guarantee(privacy, shape).epsilon:.4g} at delta={privacy.delta:g}."]
    if privacy.earlier:
        count = len(privacy.earlier)
        sentences = [
            f"This model was trained privately {count} time{'s' if count > 1 else ''} before: with this fit the total is "
            f"epsilon={guarantee(privacy, shape).epsilon:.4g} at delta={privacy.delta:g}, if all had the same rows."
        ]
    elif not resumed and (steps := steps_made(model)):
        sentences.append(f"Not covered by the guarantee: {steps:,} {'step' if steps == 1 else 'steps'} that the optimizer has made before.")
    return tuple(sentences)


def guarantee(privacy: Privacy, shape: FitShape, *, epochs: int | None = None) -> PrivacySpent:
    """What a model has spent after `epochs` epochs of a fit (all of them where left out), with its earlier fits."""
    steps = shape.steps if epochs is None else max(0, epochs - shape.initial_epoch) * shape.steps_per_epoch
    fits = (*privacy.earlier, PrivateSteps(sampling=_sampling(shape), noise=privacy.noise, steps=steps))
    epsilon = privacy_accountant.epsilon_of(fits, privacy.delta)
    return PrivacySpent(epsilon=epsilon, delta=privacy.delta, clip=privacy.clip, fits=fits)


def spent_by(model: Any) -> PrivacySpent | None:
    """The guarantee that `model` has by the private fits of this kernel; None where it had none."""
    return _spent.get(model)


def record(model: Any, spec: FitSpec, *, epochs: int) -> None:
    """Put down that the weights of a job's fit, `epochs` epochs of it, are in `model` now."""
    if spec.execution.private is not None:
        _spent[model] = guarantee(spec.execution.private, spec.shape, epochs=epochs)


def _sampling(shape: FitShape) -> float:
    return sampling_of(shape.rows, min(shape.rows, shape.global_batch))
