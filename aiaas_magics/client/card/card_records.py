"""Card records: what this process has seen of a model or an endpoint, for its model card.

Owns remembering: the last training and study of each live model, the last load test of each endpoint, and sections that others
add (explanations, attacks). Models are remembered as long as they live. What a card says of it belongs to `card_sections`.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiaas_magics.core.model_card import CardSection
from aiaas_magics.core.scaling.load_report import LoadReport
from aiaas_magics.core.spec import JobView
from aiaas_magics.core.story import JobStory

if TYPE_CHECKING:
    from aiaas_magics.packing.fitcall.manifest import Manifest
    from aiaas_magics.plots.text_twins import StudyReport

MOST_ENDPOINTS: Final = 100  # guess: more than a notebook deploys


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTraining:
    """One training that a model's weights come from.

    Args:
        view: the job.
        story: its log.
        manifest: the names of the arrays whose hashes the job's spec has.
        hardware: the backend's, in one line.
        steps: updates that the model's optimizer had made then; more of them mean that it was trained on.
    """

    view: JobView
    story: JobStory
    manifest: Manifest | None = None
    hardware: str = ""
    steps: int = 0


@dataclass(slots=True, kw_only=True)
class CardRecord:
    """What is known of one model or endpoint. `sections` are made already, by their keys."""

    training: ModelTraining | None = None
    study: StudyReport | None = None
    bench: LoadReport | None = None
    sections: dict[str, CardSection] = field(default_factory=dict)


_models: Final[weakref.WeakKeyDictionary[Any, CardRecord]] = weakref.WeakKeyDictionary()
_endpoints: Final[OrderedDict[tuple[str, str], CardRecord]] = OrderedDict()  # by backend's address and name


def of_model(model: Any) -> CardRecord:
    """The record of a live model; a new one, if it was not seen. What cannot be referred to weakly has no memory."""
    try:
        return _models.setdefault(model, CardRecord())
    except TypeError:  # a path, an ONNX model
        return CardRecord()


def of_endpoint(url: str, name: str) -> CardRecord:
    """The record of an endpoint.

    Args:
        url: the address of its backend.
        name: the endpoint's name.
    """
    key = (url, name)
    record = _endpoints.setdefault(key, CardRecord())
    _endpoints.move_to_end(key)
    while len(_endpoints) > MOST_ENDPOINTS:
        _endpoints.popitem(last=False)
    return record


def forget_endpoint(url: str, name: str) -> None:
    """A new version begins: what was measured of the version before is not said of it."""
    _endpoints.pop((url, name), None)
