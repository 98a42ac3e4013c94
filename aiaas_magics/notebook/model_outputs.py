"""Model outputs: MIME bundles of an exported model, of a job's record and of a job that was trained again.

Owns these static outputs. Tables are `present`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiaas_magics.core.row_order import described
from aiaas_magics.core.training_record import TrainingRecord
from aiaas_magics.notebook import present

if TYPE_CHECKING:
    from aiaas_magics.client.training.reproduction import Reproduction
    from aiaas_magics.packing.formats.model_files import ExportedModel


def reproduction_bundle(reproduction: Reproduction) -> present.Bundle:
    """A job that was trained again: how far each layer is apart, and what of the environment has changed."""
    rows = [
        (layer.layer, f"{layer.values:,}", f"{layer.differing:,}", f"{layer.largest:.2g}", f"{layer.relative:.1g}")
        for layer in reproduction.layers
    ]
    header = ("layer", "numbers", "with other bits", "largest difference", "of the largest value")
    _, *notes = str(reproduction).splitlines()
    return present.table_bundle(header, rows, caption=reproduction.sentence, notes=notes)


def record_bundle(record: TrainingRecord) -> present.Bundle:
    """What a job was trained from."""
    where, versions = record.where, record.where.backend_versions
    data = [f"{part.name} {part.dtype} {list(part.shape)}, SHA-256 {part.sha256[:16]}" for part in record.data]
    seeds = [f"{name} {state}" for name, state in record.random_states.items() if state]
    rows = [
        ("model", f"{record.model}, {record.parameters:,} parameters"),
        ("data", "; ".join(data) or "read in batches"),
        ("row order", described(record.row_seed)),
        ("random states", "; ".join(seeds)),
        ("kernel", f"Python {where.python}, {where.platform}, {where.kernel_processor}, {len(where.packages)} packages"),
        ("backend", f"{where.backend}: {where.hardware}, Keras {versions.keras}, TensorFlow {versions.tensorflow}"),
        ("code", record.code or "not known: submitted from a script"),
    ]
    return present.table_bundle(("what", "value"), rows, caption="What the job was trained from")


def exported_bundle(exported: ExportedModel) -> present.Bundle:
    """A written model: its outputs and how far each is from the model's own answers."""
    rows = [(difference.output, f"{difference.largest:.2g}", f"{difference.relative:.1g}") for difference in exported.differences]
    header = ("output", "largest difference", "of the largest answer")
    return present.table_bundle(header, rows, caption=exported.sentence, notes=exported.notes)
