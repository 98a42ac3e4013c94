"""A language model of KerasHub leaves as a Hugging Face folder that its reader computes as Keras does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from aiaas_magics.packing.formats import huggingface_folder, model_files
from aiaas_magics.packing.formats.export_source import CannotExport

hub = pytest.importorskip("keras_hub")
pytestmark = pytest.mark.nightly


def gemma() -> Any:
    backbone = hub.models.GemmaBackbone(
        vocabulary_size=40, num_layers=2, num_query_heads=2, num_key_value_heads=1, hidden_dim=16, intermediate_dim=32, head_dim=8
    )
    return hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None, name="gemma")


def test_a_language_model_is_read_from_the_folder_with_the_same_logits(tmp_path: Path) -> None:
    exported = model_files.export_model(gemma(), "huggingface", out=tmp_path)

    config = json.loads((exported.path / "config.json").read_text())
    assert exported.path == tmp_path / "gemma_huggingface"
    assert (config["model_type"], config["vocab_size"], config["num_hidden_layers"]) == ("gemma", 40, 2)
    assert (exported.path / "model.safetensors").is_file()
    assert exported.runtime.split()[0] == huggingface_folder.reader()
    assert (exported.rows, exported.differences[0].output) == (huggingface_folder.ROWS, "logits")
    assert exported.relative < 1e-4


@pytest.mark.skipif(importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None, reason="no transformers")
def test_transformers_is_the_reader_where_it_is_installed() -> None:
    assert huggingface_folder.reader() == "transformers"


def test_a_family_that_kerashub_does_not_export_is_named(tmp_path: Path) -> None:
    backbone = hub.models.OPTBackbone(
        vocabulary_size=40, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=16, dropout=0.0
    )
    model = hub.models.OPTCausalLM(backbone=backbone, preprocessor=None, name="opt")

    with pytest.raises(CannotExport) as refusal:
        model_files.export_model(model, "huggingface", out=tmp_path)

    assert str(refusal.value) == (
        "Model 'opt' cannot be written as a Hugging Face folder: KerasHub has no exporter for OPTBackbone. "
        "Try --to keras or --to saved_model, which hold any model."
    )
    assert list(tmp_path.iterdir()) == []
