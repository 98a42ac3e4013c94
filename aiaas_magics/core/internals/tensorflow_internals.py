"""Private names of TensorFlow 2.21: their paths, and the attributes of its objects that we read.

Owns the tables. `tests/packing/test_internals.py` holds them against what is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiaas_magics.core.internals import look_up

# Behind a colon stands a name in a module; without one it is the module itself.
PATHS: Final[Mapping[str, str]] = {
    "device_lib": "tensorflow.python.client.device_lib",
    "dataset_ops": "tensorflow.python.data.ops.dataset_ops",
    "structure": "tensorflow.python.data.util.structure",
    "context": "tensorflow.python.eager.context",
    "InterpolateRuntimeError": "tensorflow.python.eager.polymorphic_function.atomic_function:InterpolateRuntimeError",
    "TfFunction": "tensorflow.python.eager.polymorphic_function.polymorphic_function:Function",
    "is_op_determinism_enabled": "tensorflow.python.framework.config:is_op_determinism_enabled",
    "convert_variables_to_constants_v2": "tensorflow.python.framework.convert_to_constants:convert_variables_to_constants_v2",
    "error_interpolation": "tensorflow.python.framework.error_interpolation",
    "op_def_registry": "tensorflow.python.framework.op_def_registry",
    "stateless": "tensorflow.python.ops.gen_stateless_random_ops_v2",
    "random_ops_util": "tensorflow.python.ops.random_ops_util",
    "Algorithm": "tensorflow.python.ops.random_ops_util:Algorithm",
    "nested_structure_coder": "tensorflow.python.saved_model.nested_structure_coder",
    "tf_stack": "tensorflow.python.util.tf_stack",
    "ListWrapper": "tensorflow.python.trackable.data_structures:ListWrapper",
    "_DictWrapper": "tensorflow.python.trackable.data_structures:_DictWrapper",
}

# See `workers.deferred`.
SELDOM_USED: Final = ("tensorflow._api.v2.lite", "tensorflow._api.v2.compat.v1.lite", "tensorflow._api.v2.compat.v2.lite")

# Attributes of TensorFlow's objects that we read, by what has them.
ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "Dataset": ("_batch_size", "_input_dataset", "_variant_tensor"),
    "Function": ("_autograph", "_jit_compile", "_reduce_retracing"),
    "StaticHashTable": ("_default_value",),
    "MutableHashTable": ("_default_value",),
    "Graph": ("_functions",),
    "ResourceTensor": ("_handle_data",),
    "ConcreteFunction": ("_inference_function",),
    "Context": ("_initialized", "_rng", "_seed"),
    "OpError": ("_message",),
    "Trackable": ("_self_unconditional_checkpoint_dependencies", "_self_unconditional_dependency_names"),
    "dataset_ops": ("_VariantDataset",),
}


def __getattr__(name: str) -> Any:
    return look_up("tensorflow", PATHS, name, globals())
