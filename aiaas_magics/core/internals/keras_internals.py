"""Private names of Keras 3.15: their paths, and the attributes of its objects that we read, replace or leave out.

Owns the tables. `tests/packing/test_internals.py` holds them against what is installed, `make nightly` against keras-nightly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiaas_magics.core.internals import look_up

# Behind a colon stands a name in a module; without one it is the module itself. A bar: of the releases before and after.
# Keras 3.16 calls the trainers of all backends `Trainer`.
PATHS: Final[Mapping[str, str]] = {
    "backend": "keras.src.backend",
    "global_state": "keras.src.backend.common.global_state",
    "get_keras_mask": "keras.src.backend.common.masking:get_keras_mask",
    "set_keras_mask": "keras.src.backend.common.masking:set_keras_mask",
    "backend_config": "keras.src.backend.config",
    "jax_trainer": "keras.src.backend.jax.trainer",
    "JAXTrainer": "keras.src.backend.jax.trainer:JAXTrainer|Trainer",
    "TFOptimizer": "keras.src.backend.tensorflow.optimizer:TFOptimizer",
    "tf_trainer": "keras.src.backend.tensorflow.trainer",
    "TensorFlowTrainer": "keras.src.backend.tensorflow.trainer:TensorFlowTrainer|Trainer",
    "MonitorCallback": "keras.src.callbacks.monitor_callback:MonitorCallback",
    "CallbackList": "keras.src.callbacks.callback_list:CallbackList",
    "ExportArchive": "keras.src.export.saved_model:ExportArchive",
    "patch_tf2onnx": "keras.src.export.tf2onnx_lib:patch_tf2onnx",
    "loss_module": "keras.src.losses.loss",
    "reduction_metrics": "keras.src.metrics.reduction_metrics",
    "Functional": "keras.src.models.functional:Functional",
    "inject_functional_model_class": "keras.src.models.model:inject_functional_model_class",
    "Function": "keras.src.ops.function:Function",
    "make_node_key": "keras.src.ops.function:make_node_key",
    "Node": "keras.src.ops.node:Node",
    "Operation": "keras.src.ops.operation:Operation",
    "BaseOptimizer": "keras.src.optimizers.base_optimizer:BaseOptimizer",
    "LossScaleOptimizer": "keras.src.optimizers.loss_scale_optimizer:LossScaleOptimizer",
    "GLOBAL_SEED_GENERATOR": "keras.src.random.seed_generator:GLOBAL_SEED_GENERATOR",
    "global_seed_generator": "keras.src.random.seed_generator:global_seed_generator",
    "KerasSaveable": "keras.src.saving.keras_saveable:KerasSaveable",
    "GLOBAL_CUSTOM_NAMES": "keras.src.saving.object_registration:GLOBAL_CUSTOM_NAMES",
    "GLOBAL_CUSTOM_OBJECTS": "keras.src.saving.object_registration:GLOBAL_CUSTOM_OBJECTS",
    "data_adapters": "keras.src.trainers.data_adapters",
    "ArrayDataAdapter": "keras.src.trainers.data_adapters.array_data_adapter:ArrayDataAdapter",
    "array_slicing": "keras.src.trainers.data_adapters.array_slicing",
    "DataAdapter": "keras.src.trainers.data_adapters.data_adapter:DataAdapter",
    "data_adapter_utils": "keras.src.trainers.data_adapters.data_adapter_utils",
    "make_class_weight_map_fn": "keras.src.trainers.data_adapters.tf_dataset_adapter:make_class_weight_map_fn",
    "EpochIterator": "keras.src.trainers.epoch_iterator:EpochIterator",
    "tree": "keras.src.tree",
    "weight_memory_size": "keras.src.utils.summary_utils:weight_memory_size",
    "DynamicBackend": "keras.src.utils.backend_utils:DynamicBackend",
    "python_utils": "keras.src.utils.python_utils",
    "GLOBAL_RANDOM_SEED": "keras.src.utils.rng_utils:GLOBAL_RANDOM_SEED",
    "filter_traceback": "keras.src.utils.traceback_utils:filter_traceback",
    "to_snake_case": "keras.src.utils.naming:to_snake_case",
    "TrackedDict": "keras.src.utils.tracking:TrackedDict",
    "TrackedList": "keras.src.utils.tracking:TrackedList",
    "TrackedOrderedDict": "keras.src.utils.tracking:TrackedOrderedDict",
    "TrackedSet": "keras.src.utils.tracking:TrackedSet",
    "Tracker": "keras.src.utils.tracking:Tracker",
}

TENSORFLOW_BACKEND: Final = "keras.src.backend.tensorflow"  # Keras' own code for TensorFlow lies below it
CONVOLUTIONS: Final = "keras.src.layers.convolutional."  # so begin the modules of its layers that convolve
SELDOM_USED: Final = ("keras.src.wrappers", "keras.src.visualization")  # see `workers.deferred`

# Attributes of Keras' objects that we read, replace or leave out, by the class that has them.
ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "Layer": (
        "_call_has_training_arg",
        "_flatten_layers",
        "_loss_ids",
        "_losses",
        "_losses_override",
        "_non_trainable_variables",
        "_seed_generators",
        "_trainable",
        "_trainable_variables",
    ),
    "Dense": ("_kernel",),
    "Embedding": ("_embeddings",),
    "BatchNormalization": ("_moments", "_reduction_axes"),
    "Model": (
        "_compile_config",
        "_compile_loss",
        "_compile_metrics",
        "_compute_loss",
        "_get_metrics_result_or_logs",
        "_loss_tracker",
        "_make_function",
        "_post_build",
        "_symbolic_build",
    ),
    "Functional": ("_inputs", "_inputs_struct", "_nodes", "_operations", "_outputs_struct"),
    "Sequential": ("_functional",),
    "KerasTensor": ("_keras_history",),
    "Variable": ("_deferred_initialize", "_value"),
    "Optimizer": (
        "_apply_weight_decay",
        "_backend_increment_gradient_accumulators",
        "_backend_update_step",
        "_distribution_strategy",
        "_exclude_from_weight_decay",
        "_exclude_from_weight_decay_cache",
        "_exclude_from_weight_decay_pattern",
        "_overwrite_model_variables_with_average_value",
        "_trainable_variables",
        "_var_key",
    ),
    "LossScaleOptimizer": ("_common_apply", "_tf_apply"),
    "MeanMetricWrapper": ("_fn", "_fn_kwargs"),
    "Callback": ("_model",),
    "MonitorCallback": ("_set_monitor_op",),
    "SeedGenerator": ("_initial_seed",),
    "EpochIterator": ("_current_iterator", "_enumerate_iterator", "_interrupted_warning", "_steps_seen"),
    "ArrayDataAdapter": ("_batch_size", "_inputs", "_num_samples"),
    "PyDatasetAdapter": ("_get_iterator",),
    "DynamicBackend": ("_backend",),
    "JAXTrainer": ("_get_state_sharding_spec", "_make_function", "_update_metrics_variables"),
}
# Attributes and arguments that are there only while something runs, by the module that writes them.
PASSING: Final[Mapping[str, tuple[str, ...]]] = {
    "keras.src.backend.tensorflow.trainer": (
        "_distribute_strategy",
        "_eval_epoch_iterator",
        "_maybe_symbolic_build",
        "_use_cached_eval_dataset",
    ),
    "keras.src.backend.jax.trainer": ("_eval_epoch_iterator", "_jax_state", "_use_cached_eval_dataset"),
    "keras.src.callbacks.tensorboard": (
        "_batch_trace_context",
        "_prev_summary_state",
        "_previous_epoch_iterations",
        "_summary_module",
        "_writers",
    ),
}


def __getattr__(name: str) -> Any:
    return look_up("keras", PATHS, name, globals())
