"""Card deployment: the model card that travels with a deployment.

Owns what goes along at the deploy, and completing it with what only the backend could say. Making cards belongs to `card_making`.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from msgspec import structs

from aiaas_magics.client.card import card_making, card_records
from aiaas_magics.client.card.card_making import CardHolder
from aiaas_magics.core.errors import AiaasError
from aiaas_magics.core.model_card import ModelCard

ANSWERS: Final = ("use", "limits", "license")  # sections that only a person can fill


def card_of(model: Any, name: str) -> ModelCard:
    """What is known of `model` before it is served."""
    return card_making.card_of_model(model, name=name, shown=name)


def complete(endpoint: CardHolder, model: Any) -> None:
    """Add engine, parity, precision and signature of the version that was just deployed.

    The model is served by now, so a card that cannot be kept is no error: the one that went along stays.
    """
    card_records.forget_endpoint(endpoint.backend_url, endpoint.name)  # what was measured was measured of the version before
    view = endpoint.last_view
    newest = max(view.versions, key=lambda version: version.version, default=None)
    if newest is None:
        return
    stored = card_of(model, endpoint.name)
    with contextlib.suppress(AiaasError):
        before = max((view.version for view in view.versions if view.version != newest.version), default=0)
        stored = stored.joined(answers_of(endpoint.card(before))) if before else stored
    card = card_making.card_of_endpoint(view, newest, stored=stored, change=endpoint.change, notes=endpoint.notes)
    with contextlib.suppress(AiaasError):
        endpoint.keep_card(card, newest.version)


def answers_of(card: ModelCard) -> ModelCard:
    """What a person has said of the version before, which holds for the next one until somebody says otherwise."""
    return structs.replace(card, tags=(), metrics=(), sections=tuple(section for section in card.sections if section.key in ANSWERS))
