"""Web pages: plain HTML made from values, with nothing from elsewhere and no script.

Owns the markup, the style and the headers that forbid everything else. What stands on a page
belongs to `discovery_routes`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from aiaas_magics.backend.serving.protocols import Headers, Response
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_json
from aiaas_magics.core.model_card import CardSection, ModelCard
from aiaas_magics.core.recording import RecordingCounts
from aiaas_magics.core.snippets import TOKEN
from aiaas_magics.core.spec import TensorSpec, VersionView
from aiaas_magics.core.value import Value

STYLE: Final = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}"
    "table{border-collapse:collapse;margin:.5rem 0}th,td{text-align:left;padding:.2rem 1rem .2rem 0;border-bottom:1px solid #ccc}"
    "pre{background:#f3f3f3;padding:.75rem;overflow-x:auto}caption{text-align:left;font-weight:bold}"
    "@media (prefers-color-scheme:dark){body{color:#eee;background:#161616}pre{background:#262626}th,td{border-color:#444}a{color:#8ab4f8}}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS: Final[Headers] = (
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'".encode(),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"vary", b"accept"),
)


class ExampleCall(Value, frozen=True, kw_only=True):
    """An example call, to be pasted."""

    client: str
    text: str


class Counted(Value, frozen=True, kw_only=True):
    """What the version that answers has done since it was loaded; times are from the whole request to its answer, in this process."""

    requests: int
    rows: int
    failed: int
    refused: int
    batches: int
    p50_ms: float
    p99_ms: float
    p999_ms: float


class EndpointPage(Value, frozen=True, kw_only=True):
    """An endpoint, for people and programs. `live` is the version that answers, if one does."""

    name: str
    url: str
    model: str
    live: int | None
    versions: tuple[VersionView, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calls: tuple[ExampleCall, ...]
    figures: Counted
    recording: RecordingCounts | None = None  # None: nothing is recorded
    card: ModelCard | None = None


def home(url: str, names: Sequence[str]) -> Response:
    items = "".join(f'<li><a href="/endpoints/{escape(name)}">{escape(name)}</a></li>' for name in names)
    placeholder = "<p>Nothing is deployed here yet. In a notebook: <code>%aiaas_deploy MODEL --name NAME</code></p>"
    return _page("Endpoints", f"<ul>{items}</ul>" if names else placeholder, _how_to_fetch(f"{url}/"))


def endpoint(page: EndpointPage) -> Response:
    name = escape(page.name)
    state = f"Version {page.live} answers" if page.live is not None else "No version answers yet"
    return _page(
        page.name,
        f"<p>{state}, at <code>{escape(page.url)}/v1/models/{name}:predict</code> (TensorFlow Serving) and "
        f"<code>{escape(page.url)}/v2/models/{name}/infer</code> (Open Inference Protocol v2). "
        'All there is: <a href="/openapi.json">openapi.json</a>.</p>',
        "" if page.recording is None else f"<p><strong>Requests are recorded</strong>: {escape(recording_words(page.recording))}</p>",
        _tensors("Inputs", page.inputs),
        _tensors("Outputs", page.outputs),
        "<h2>Calling it</h2>",
        *(f"<h3>{escape(call.client)}</h3><pre>{escape(call.text)}</pre>" for call in page.calls),
        f"<p>The token is <code>endpoint.token</code> in the notebook; put it into <code>{TOKEN}</code>.</p>",
        _table("Since it was loaded", ("what", "how much"), _lines(page.figures)),
        _table(
            "Versions",
            ("version", "state", "engine", "weights", "largest difference in the proof", "measured before it went live", "signed by"),
            (
                (str(v.version), v.state, v.engine, str(v.precision), f"{v.proof:.3g}", v.precision.change, v.signer or "nobody")
                for v in page.versions
            ),
        ),
        _card(page),
        _how_to_fetch(f"{page.url}/endpoints/{page.name}"),
    )


def recording_words(counts: RecordingCounts) -> str:
    return (
        f"inputs and outputs of {counts.policy}, without headers and tokens. Now there are {counts}. "
        "Whoever runs the backend can read them; %aiaas_record NAME off ends it."
    )


def _lines(counted: Counted) -> Iterable[Sequence[str]]:
    yield "requests answered", f"{counted.requests:,}"
    yield "rows in them", f"{counted.rows:,}"
    yield "batches that they ran in", f"{counted.batches:,}"
    yield "requests that did not fit or failed", f"{counted.failed:,}"
    yield "requests refused while the queue was full", f"{counted.refused:,}"
    yield "half of them within", f"{counted.p50_ms:.3g} ms"
    yield "99 of 100 within", f"{counted.p99_ms:.3g} ms"
    yield "999 of 1000 within", f"{counted.p999_ms:.3g} ms"


def _tensors(caption: str, tensors: Iterable[TensorSpec]) -> str:
    return _table(caption, ("name", "type", "shape, rows first"), ((t.name, t.dtype, tfserving_json.dims(t.shape)) for t in tensors))


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def card(card: ModelCard, version: int) -> Response:
    """A card alone, as a page."""
    return _page(f"Model card: {card.name}", f"<p>Version {version}</p>", sections(card.sections))


def _card(page: EndpointPage) -> str:
    name = escape(page.name)
    if page.card is None:
        return f"<h2>Model card</h2><p>None yet. In a notebook: <code>%aiaas_card {name}</code></p>"
    link = f'<p>As Markdown: <a href="/endpoints/{name}/card">/endpoints/{name}/card</a></p>'
    return f"<h2>Model card</h2>{link}{sections(page.card.sections)}"


def sections(parts: Iterable[CardSection]) -> str:
    """The sections of a card, with everything in them escaped."""
    return "".join(map(_section, parts))


def _section(section: CardSection) -> str:
    if section.is_empty:
        return f"<h3>{escape(section.title)}</h3><p>Not filled in. {escape(section.fill.replace('`', ''))}</p>"
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in section.sentences)
    tables = "".join(_table(table.caption, table.header, table.rows) for table in section.tables)
    return f"<h3>{escape(section.title)}</h3>{f'<ul>{items}</ul>' if items else ''}{tables}"


def _how_to_fetch(url: str) -> str:
    command = f'curl -sS -H "Authorization: Bearer ${TOKEN}" -H "Accept: text/html" {url} -o page.html'
    return f"<h2>This page</h2><p>A browser does not send the token. Fetch the page, then open it:</p><pre>{escape(command)}</pre>"


def _page(title: str, *parts: str) -> Response:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · aiaas_magics</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body><main><h1>{escape(title)}</h1>{''.join(parts)}</main></body></html>"
    )
    return Response(200, text.encode(), HEADERS, b"text/html; charset=utf-8")
