"""What a job's seed says of the order of rows: an order of ours, or that of plain `fit` under a seed of the kernel's.

Owns the form of it. Making the orders belongs to `backend.training`.
"""

from __future__ import annotations


def as_in_plain_fit(kernel_seed: int) -> int:
    """The job's seed, below 0, for the order that plain `fit` has after `tf.random.set_seed(kernel_seed)`."""
    return ~kernel_seed


def kernel_seed_of(seed: int) -> int | None:
    """The kernel's seed where rows come as in plain `fit`, else None.

    >>> kernel_seed_of(as_in_plain_fit(7)), kernel_seed_of(7)
    (7, None)
    """
    return ~seed if seed < 0 else None


def described(seed: int) -> str:
    """For a caption."""
    kernel_seed = kernel_seed_of(seed)
    return f"seed {seed}" if kernel_seed is None else f"rows in the order of plain fit with seed {kernel_seed}"
