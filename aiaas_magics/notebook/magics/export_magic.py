"""%aiaas_export: writes a model or what an endpoint serves as a file for other programs, or as a folder that a server starts from.

Owns its options and its request. Writing and comparing belong to `packing.formats`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from aiaas_magics.core import errors
from aiaas_magics.core.export_names import MODEL_FORMATS, SERVERS
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.namespace import model_of, named
from aiaas_magics.notebook.option_values import endpoint_name, model_format, variables
from aiaas_magics.notebook.options import option
from aiaas_magics.notebook.views import live

if TYPE_CHECKING:
    from aiaas_magics.client.serving.endpoint import Endpoint
    from aiaas_magics.packing.formats.model_files import ExportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportLine:
    model: str | None
    to: str | None
    server: str | None
    out: str | None
    name: str | None
    sample: tuple[str, ...] | None
    storage: str
    help: bool

    def __post_init__(self) -> None:
        if self.help:
            return
        if self.model is None:
            raise UsageError("Which model? Name a variable, a file or an endpoint: %aiaas_export model --to onnx.")
        if (self.to is None) == (self.server is None):
            raise UsageError(
                f"In which form? Give one of --to ({', '.join(MODEL_FORMATS)}) and --for ({', '.join(SERVERS)}); --for chooses the format."
            )
        if self.storage and self.server != "kserve":
            raise UsageError("--storage is where KServe finds the model. Use it with --for kserve.")


class ExportMagic(Family):
    """Files of models."""

    @magic(
        ExportLine,
        option("model", nargs="?", metavar="MODEL", values="model", help="Variable or file that holds the model, or name of an endpoint."),
        option(
            "--to",
            type=model_format,
            choices=MODEL_FORMATS,
            metavar="FORMAT",
            help="Format of the file: onnx, saved_model, keras, tflite (LiteRT), openvino (IR), huggingface (language models of KerasHub).",
        ),
        option(
            "--for",
            dest="server",
            choices=SERVERS,
            metavar="SERVER",
            help="A folder that a server starts from instead: triton, kserve, tfserving, or docker (one endpoint without a notebook).",
        ),
        option("--out", metavar="DIR", help="Folder to write into, or the file itself (default: the working directory)."),
        option("--name", type=endpoint_name, metavar="NAME", help="Name of the file or folder (default: the variable's name)."),
        option(
            "--sample",
            type=variables,
            metavar="ROWS",
            values="array",
            help="Variable with typical rows to compare on (default: rows of the last fit). Name two, short,long, to leave a size free.",
        ),
        option("--storage", default="", metavar="URI", help="Where KServe will find the model: s3://, gs:// or pvc://CLAIM/PATH."),
        needs=("names",),
    )
    def aiaas_export(self, request: ExportLine, *, names: dict[str, Any]) -> Any:
        """Write a model as a file for other programs, or as a folder that a server starts from.

        The file is computed on sample rows by the program that will read it, and compared with Keras.
        A file that answers otherwise is removed. Returns an ExportedModel with the differences.

            %aiaas_export model --to onnx
            %aiaas_export churn --to openvino --out models
            %aiaas_export model --for triton --name churn --sample x_test
        """
        scope = {**self.shell.user_ns, **names}
        assert request.model is not None  # of ExportLine
        with live.SlowLine(self.shell, f"Exporting {request.model}") as line:
            endpoint = self._endpoint_named(request.model, scope)
            if endpoint is not None:
                return _save(endpoint, request, line.tell)
            return _export(model_of(request.model, scope), request, scope, line.tell)

    def _endpoint_named(self, text: str, scope: dict[str, Any]) -> Endpoint | None:
        """The endpoint that is meant; None where a variable or a file of that name is. A name that nothing has is left to `model_of`."""
        if type(scope.get(text)).__name__ == "Endpoint":
            value: Endpoint = scope[text]
            return value
        if text in scope or "/" in text:
            return None
        try:
            return self.session.backend.endpoint(text)
        except errors.UnknownName:
            return None


def _save(endpoint: Endpoint, request: ExportLine, on_step: Callable[[str], None]) -> ExportedModel:
    from aiaas_magics.client.serving import endpoint_export

    if request.sample is not None:
        raise UsageError("An endpoint is compared on the rows that it was deployed with. Leave --sample out.")
    return endpoint_export.save(
        endpoint, request.out, format=request.to or request.server, name=request.name, storage=request.storage, on_step=on_step
    )


def _export(model: Any, request: ExportLine, scope: dict[str, Any], on_step: Callable[[str], None]) -> ExportedModel:
    from aiaas_magics.client.serving.deployment import default_name
    from aiaas_magics.packing.export import foreign_models
    from aiaas_magics.packing.formats import model_files, serving_folders

    assert request.model is not None  # of ExportLine
    own = request.model if request.model.isidentifier() else foreign_models.name_of(model)
    name = request.name or default_name(own)
    sample, *other_samples = [named(array, scope, lambda _: True, "array") for array in request.sample or ()] or [None]
    if request.server is not None:
        return serving_folders.export_folder(
            model,
            request.server,
            name=name,
            out=request.out,
            sample=sample,
            other_samples=other_samples,
            storage=request.storage,
            on_step=on_step,
        )
    assert request.to is not None  # of ExportLine
    return model_files.export_model(
        model, request.to, out=request.out, name=name, sample=sample, other_samples=other_samples, on_step=on_step
    )
