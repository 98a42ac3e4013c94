"""Explanation settings: which method explains a model's outputs, with how much work.

Owns the table of methods and the value that a user's options become; it goes over the wire. What a method computes belongs to `explain`.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from aiaas_magics.core.errors import InvalidSpec, UnknownName
from aiaas_magics.core.value import Value

AUTO: Final = "auto"
Family = Literal["black_box", "gradient", "shap"]
BATCH_BYTES: Final = 16 * 2**20  # of inputs; guess: a model's own activations are several times that
MOST_BATCH_ROWS: Final = 8192  # guess: more rows make a call no cheaper per row
MAX_SAMPLES: Final = 1_000_000  # guess: nobody waits for more per row
MAX_STEPS: Final = 4096  # guess


class MethodInfo(Value, frozen=True, kw_only=True):
    """What is known of a method before it runs.

    Args:
        name: what `--method` takes.
        title: how tables and figures call it.
        family: "black_box" needs predictions only, "gradient" a Keras model on TensorFlow or JAX, "shap" the library of that name.
        completes: whether the attributions of a row sum to its output minus the base value.
        signed: whether the sign says in which direction an entry moves the output.
    """

    name: str
    title: str
    family: Family
    completes: bool = False
    signed: bool = True


METHODS: Final = {
    info.name: info
    for info in (
        MethodInfo(name="kernel_shap", title="Kernel SHAP", family="black_box", completes=True),
        MethodInfo(name="permutation_shap", title="permutation SHAP", family="black_box", completes=True),
        MethodInfo(name="occlusion", title="occlusion", family="black_box"),
        MethodInfo(name="permutation", title="permutation importance", family="black_box", signed=False),
        MethodInfo(name="saliency", title="saliency", family="gradient", signed=False),
        MethodInfo(name="gradient_input", title="gradient x input", family="gradient"),
        MethodInfo(name="integrated_gradients", title="integrated gradients", family="gradient", completes=True),
        MethodInfo(name="smoothgrad", title="SmoothGrad", family="gradient", signed=False),
        MethodInfo(name="gradcam", title="Grad-CAM", family="gradient", signed=False),
        MethodInfo(name="shap_deep", title="Deep SHAP (shap)", family="shap", completes=True),
        MethodInfo(name="shap_gradient", title="expected gradients (shap)", family="shap", completes=True),
        MethodInfo(name="shap_kernel", title="Kernel SHAP (shap)", family="shap", completes=True),
        MethodInfo(name="shap_permutation", title="permutation SHAP (shap)", family="shap", completes=True),
        MethodInfo(name="shap_partition", title="Partition SHAP (shap)", family="shap", completes=True),
    )
}
# Words that users type for a family: each is one of its methods.
ALIASES: Final = {"gradients": "integrated_gradients", "shap": "kernel_shap", "grad_cam": "gradcam", "smooth_grad": "smoothgrad"}
METHOD_CHOICES: Final = (AUTO, *METHODS, *ALIASES)


class ExplainSettings(Value, frozen=True, kw_only=True):
    """How rows are explained. The defaults leave the method to `auto` and the amount of work to the method.

    Args:
        method: one of `METHOD_CHOICES`; an alias stands for its method.
        samples: evaluated coalitions per row (Kernel SHAP), orders (permutation SHAP), noisy copies (SmoothGrad) or background draws per
            column (permutation importance); 0 is the method's default.
        steps: points on the path of integrated gradients.
        noise: standard deviation of SmoothGrad's noise, as a part of each row's range.
        output: the name of the output to explain, for models with several; "" is the first.
        target: the class (column of the flattened output) to explain; None is each row's largest.
        seed: makes random draws repeatable. Each row draws from its own generator, made of the seed and the row's own bytes.
        batch_rows: most rows per prediction; 0 takes as many as `BATCH_BYTES` hold, at most `MOST_BATCH_ROWS`.
        background_rows: most background rows that are used; more are thinned out evenly.
        patch: edge of the squares that an image is masked in, or length of the windows of a series; 0 gives about 64 and 16 of them.
        layer: the layer that Grad-CAM looks at; "" is the last convolution.

    Raises:
        UnknownName: no method has that name.
        InvalidSpec: a number that is out of bounds.

    >>> ExplainSettings(method="gradients").method_info.title
    'integrated gradients'
    """

    method: str = AUTO
    samples: int = 0
    steps: int = 32
    noise: float = 0.15
    output: str = ""
    target: int | None = None
    seed: int = 0
    batch_rows: int = 0
    background_rows: int = 100
    patch: int = 0
    layer: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHOD_CHOICES:
            raise UnknownName("method of explanation", self.method, METHOD_CHOICES)
        bounds: dict[str, tuple[float, float]] = {
            "samples": (0, MAX_SAMPLES),
            "steps": (1, MAX_STEPS),
            "noise": (0.0, 10.0),
            "seed": (0, 2**63 - 1),
            "batch_rows": (0, 2**20),
            "background_rows": (1, 100_000),
            "patch": (0, 2**16),
            "target": (0, 2**31 - 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidSpec(f"{name}={value} is out of bounds. Use {name} from {low:g} to {high:g}, or leave it out.")

    @property
    def resolved_method(self) -> str:
        """The method's own name where an alias was given; "auto" stays."""
        return ALIASES.get(self.method, self.method)

    @property
    def method_info(self) -> MethodInfo:
        """What is known of the method; raises `InvalidSpec` while it is "auto"."""
        if self.method == AUTO:
            raise InvalidSpec("method='auto' was not resolved. Call explain.method_choice.choose_method first, or name a method.")
        return METHODS[self.resolved_method]

    def rows_per_batch(self, row_bytes: int) -> int:
        """Most rows per prediction.

        Args:
            row_bytes: the size of one row of all inputs.
        """
        return self.batch_rows or max(1, min(MOST_BATCH_ROWS, BATCH_BYTES // max(row_bytes, 1)))

    def with_method(self, method: str) -> ExplainSettings:
        """The same settings for another method.

        Args:
            method: one of `METHOD_CHOICES`.
        """
        return msgspec.structs.replace(self, method=method)
