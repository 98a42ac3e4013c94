"""Endpoint export: what an endpoint serves as a file or folder for other programs.

Owns fetching it and naming the form. Writing and comparing belong to `packing.formats`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aiaas_magics.core import bundle
from aiaas_magics.core.spec import EndpointView, VersionView

if TYPE_CHECKING:
    from aiaas_magics.packing.formats.export_source import ExportSource
    from aiaas_magics.packing.formats.model_files import ExportedModel


class SavedEndpoint(Protocol):
    """What is asked of an endpoint: its name, its record, and the live version with its bytes and samples."""

    @property
    def name(self) -> str: ...
    def view(self) -> EndpointView: ...
    def artefact(self) -> tuple[VersionView, bytes, bytes]: ...


def save(
    endpoint: SavedEndpoint,
    path: str | Path | None = None,
    *,
    format: str | None = None,
    name: str | None = None,
    storage: str = "",
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportedModel:
    """As `Endpoint.save`; `path` of None is the working directory, and then `format` is needed. `name` of None is the endpoint's."""
    from aiaas_magics.packing.formats import model_files, serving_folders

    if format in serving_folders.FOLDERS:
        source = source_of(endpoint, on_step)
        return serving_folders.export_source_folder(source, format, name=name or endpoint.name, out=path, storage=storage, on_step=on_step)
    kind = model_files.format_of(format) if format is not None else model_files.format_of_path(path or "")
    model_files.check_installed(kind)
    source = source_of(endpoint, on_step)
    at = Path(path).expanduser() if path is not None and format is None and kind.is_folder else None
    if at is not None:
        model_files.check_replaceable(at)
    return model_files.export_source(source, kind, out=path, name=name or endpoint.name, at=at, on_step=on_step)


def source_of(endpoint: SavedEndpoint, on_step: Callable[[str], None] = lambda step: None) -> ExportSource:
    """The live version of an endpoint, with the rows and answers that it was deployed with.

    Raises:
        CannotExport: the server does not say which samples these are.
    """
    from aiaas_magics.packing.formats.export_source import CannotExport, of_artefact

    on_step("fetching it from the backend")
    version, artefact, samples = endpoint.artefact()
    if not samples:
        raise CannotExport(f"The backend of endpoint {endpoint.name!r} is older than exports. Install this version of aiaas_magics there.")
    if version.engine not in bundle.MODELS:
        raise CannotExport(f"Endpoint {endpoint.name!r} is served by {version.engine}, which no file is made of. Export the Keras model.")
    view = endpoint.view()
    return of_artefact(
        artefact,
        version.engine,
        samples,
        inputs=view.inputs,
        outputs=view.outputs,
        allowed=version.precision,
        origin=f"endpoint {endpoint.name}",
        name=endpoint.name,
    )
