"""Hugging Face folder: a language model of KerasHub as `config.json`, safetensors and tokenizer files.

Owns asking KerasHub's own exporter, and computing logits with the reader: transformers where it is installed, KerasHub's reader of such
folders where it is not. It is the only home of `transformers` and `torch`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.packing.export.onnx_session import Form, Named
from aiaas_magics.packing.formats.export_source import ExportSource, NotExpressible

TOKENS: Final = 8  # of each made-up row: enough that every position's logits depend on others
ROWS: Final = 3
LOGITS: Final = "logits"


def write(source: ExportSource, path: Path) -> tuple[str, ...]:
    """Write the folder.

    Raises:
        NotExpressible: it is no language model of KerasHub, or of a family that KerasHub does not export.
    """
    if not callable(getattr(source.model, "export_to_transformers", None)):
        raise NotExpressible("KerasHub writes language models (CausalLM) and their backbones in this form, and nothing else is written so")
    try:
        source.model.export_to_transformers(str(path))
    except ValueError as error:
        if "not implemented" in str(error):
            family = type(getattr(source.model, "backbone", source.model)).__name__
            raise NotExpressible(f"KerasHub has no exporter for {family}") from error
        raise
    return ()


def is_language_model(model: Any) -> bool:
    return callable(getattr(model, "export_to_transformers", None)) and getattr(model, "backbone", None) is not None


def token_rows(model: Any) -> dict[str, np.ndarray]:
    """Made-up rows: token ids of the whole vocabulary, no padding."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, model.backbone.vocabulary_size, (ROWS, TOKENS)).astype("int32")
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}


def reader() -> str:
    """The distribution that reads the folder here."""
    return "transformers" if find_spec("transformers") and find_spec("torch") else "keras-hub"


def open_folder(source: ExportSource, path: Path) -> Form:
    """The folder as a function from token ids to logits, computed by its reader."""
    return _by_transformers(path) if reader() == "transformers" else _by_keras_hub(source.model, path)


def _by_transformers(path: Path) -> Form:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32).eval()

    def computed(rows: Named) -> dict[str, np.ndarray]:
        with torch.no_grad():
            ids = torch.from_numpy(rows["token_ids"].astype("int64"))
            mask = torch.from_numpy(rows["padding_mask"].astype("int64"))
            return {LOGITS: model(input_ids=ids, attention_mask=mask).logits.numpy()}

    return computed


def _by_keras_hub(model: Any, path: Path) -> Form:
    """KerasHub reads the backbone by its own converter of such folders: its exporters do not write the name of the task, which it wants.

    The head of a language model is the backbone's embedding, or a part of the backbone.
    """
    backbone = type(model.backbone).from_preset(str(path), dtype=model.backbone.dtype_policy)
    again = type(model)(backbone=backbone, preprocessor=None)
    return lambda rows: {LOGITS: logits_of(again, rows)}


def logits_of(model: Any, rows: Named) -> np.ndarray:
    """What the language model answers to token ids, as float32 of shape (rows, tokens, vocabulary)."""
    import keras

    answers = model({name: keras.ops.convert_to_tensor(array) for name, array in rows.items()}, training=False)
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(answers, "float32")))
