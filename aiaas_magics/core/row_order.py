"""Row order: what kernel and workers must agree on, that is whose order a seed means, a rank's rows, and an epoch's steps.

Owns this arithmetic. Making the orders belongs to `submission`.
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


def rows_of(rank: int, *, rows: int, ranks: int) -> range:
    """Positions within one global batch that belong to `rank`: rows that follow one another.

    Every row belongs to exactly one rank, and no two ranks differ by more than one row. A batch with
    fewer rows than ranks belongs to every rank as a whole. Dealt out in turn instead, pairs that stand in
    turn in the data (positive, negative, ...) would give each rank one class alone.

    >>> list(rows_of(1, rows=5, ranks=2))
    [3, 4]
    """
    if rows < ranks:
        return range(rows)
    smallest, more = divmod(rows, ranks)
    first = rank * smallest + min(rank, more)
    return range(first, first + smallest + (rank < more))


def whole_executions(steps: int, execution: int) -> int:
    """`steps` rounded up to whole executions of so many steps, as Keras does with an epoch: where it has data left, it trains on them.

    >>> whole_executions(5, 3)
    6
    """
    return -(-steps // execution) * execution
