"""AI as a service for notebook users.

    %load_ext aiaas_magics          then  %%aiaas_train, %aiaas_deploy, %aiaas_bench
    aiaas_magics.connect()          the same without IPython
    aiaas_magics.explain_model()    why a model says so

Owns the public names. Importing it brings nothing heavy: no TensorFlow, Keras, IPython or matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aiaas_magics.core import environment

if TYPE_CHECKING:
    from aiaas_magics.client.backend import Backend, connect
    from aiaas_magics.client.serving.endpoint import Endpoint
    from aiaas_magics.client.training.job import Job
    from aiaas_magics.client.training.study import Study
    from aiaas_magics.core.execution import Execution
    from aiaas_magics.core.explain_settings import ExplainSettings
    from aiaas_magics.core.privacy import Privacy
    from aiaas_magics.core.routing import Rollout
    from aiaas_magics.explain.explain_model import explain_model
    from aiaas_magics.explain.explanation import Explanation
    from aiaas_magics.packing.formats.model_files import ExportedModel, export_model
    from aiaas_magics.packing.formats.serving_folders import export_folder

__all__ = [
    "Backend",
    "Endpoint",
    "Execution",
    "ExplainSettings",
    "Explanation",
    "ExportedModel",
    "Job",
    "Privacy",
    "Rollout",
    "Study",
    "__version__",
    "connect",
    "explain_model",
    "export_folder",
    "export_model",
    "load_ipython_extension",
    "unload_ipython_extension",
]

environment.initial()  # where the system does not keep it, it is that of this import

_HOMES = {
    "Backend": "aiaas_magics.client.backend",
    "connect": "aiaas_magics.client.backend",
    "Endpoint": "aiaas_magics.client.serving.endpoint",
    "Execution": "aiaas_magics.core.execution",
    "ExplainSettings": "aiaas_magics.core.explain_settings",
    "Explanation": "aiaas_magics.explain.explanation",
    "explain_model": "aiaas_magics.explain.explain_model",
    "Job": "aiaas_magics.client.training.job",
    "ExportedModel": "aiaas_magics.packing.formats.model_files",
    "Privacy": "aiaas_magics.core.privacy",
    "Rollout": "aiaas_magics.core.routing",
    "Study": "aiaas_magics.client.training.study",
    "export_folder": "aiaas_magics.packing.formats.serving_folders",
    "export_model": "aiaas_magics.packing.formats.model_files",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from aiaas_magics.core.settings import package_version

        return package_version()
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(ip: Any) -> None:
    """Called by `%load_ext aiaas_magics`: registers the magics; opens no connection."""
    import_module("aiaas_magics.notebook.extension").load(ip)


def unload_ipython_extension(ip: Any) -> None:
    """Called by `%unload_ext` and `%reload_ext`: takes away what loading brought."""
    import_module("aiaas_magics.notebook.extension").unload(ip)
