"""Tasks of KerasHub are deployed as their `predict` is called: with texts and images, the preprocessor before the model.

Backbones are tiny and made by their constructors: presets would have to be downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aiaas_magics
from aiaas_magics.client import transport

hub = pytest.importorskip("keras_hub")
pytestmark = pytest.mark.nightly

TEXTS = np.array(["a good film", "the bad film", "bad bad the a", "good"] * 2, dtype=object)
SMALL = {"vocabulary_size": 12, "num_layers": 1, "hidden_dim": 8, "intermediate_dim": 8}


def bert() -> Any:
    tokenizer = hub.models.BertTokenizer(vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "the"])
    backbone = hub.models.BertBackbone(num_heads=2, max_sequence_length=6, dropout=0.0, **SMALL)
    preprocessor = hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=6)
    return hub.models.BertTextClassifier(backbone=backbone, num_classes=2, preprocessor=preprocessor, dropout=0.0)


def vit() -> Any:
    backbone = hub.models.ViTBackbone(image_shape=(16, 16, 3), patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
    converter = hub.layers.ViTImageConverter(image_size=(16, 16), scale=1 / 255.0)
    preprocessor = hub.models.ViTImageClassifierPreprocessor(image_converter=converter)
    return hub.models.ViTImageClassifier(backbone=backbone, num_classes=2, preprocessor=preprocessor)


def test_texts_of_a_classifier_are_mapped_in_the_kernel_that_has_deployed_it(home: Path) -> None:
    pytest.importorskip("tensorflow_text")
    model = bert()
    own = model.predict(TEXTS, verbose=0)

    with aiaas_magics.connect() as backend:
        endpoint = backend.deploy(model, name="bert", sample=list(TEXTS))
        answers, of_a_list, again = endpoint.predict(TEXTS), endpoint.predict(list(TEXTS)), backend.endpoint("bert").predict(TEXTS)
        prepared = {name: np.asarray(tensor) for name, tensor in model.preprocessor(TEXTS).items()}
        of_tokens = endpoint.predict(prepared)
        endpoint.stop()

    for found in (answers, of_a_list, again, of_tokens):
        np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-5)
    (note,) = [note for note in endpoint.notes if "preprocessor" in note]
    assert "FastWordpieceTokenizeWithOffsets" in note
    assert "token_ids int32 [rows, any]" in note


def test_an_image_goes_into_the_endpoint_of_a_classifier_as_it_is(home: Path) -> None:
    model = vit()
    images = np.random.default_rng(0).uniform(0, 255, (4, 20, 20, 3)).astype("float32")

    with aiaas_magics.connect() as backend:
        endpoint = backend.deploy(model, name="vit", sample=images)
        answers = endpoint.predict(images)
        over_http = transport.Transport(endpoint.url, token=endpoint.token).exchange(
            "POST", "/v1/models/vit:predict", content=json.dumps({"instances": images.tolist()}).encode()
        )
        endpoint.stop()

    own = model.predict(images, verbose=0)
    np.testing.assert_allclose(answers, own, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(json.loads(over_http)["predictions"], own, rtol=1e-4, atol=1e-5)


def test_a_language_model_says_that_it_does_not_generate(home: Path) -> None:
    pytest.importorskip("tensorflow_text")
    from aiaas_magics.packing.export import model_export

    numbers = {"a": 0, "b": 1, "Ġ": 2, "c": 3, "Ġa": 4, "Ġb": 5, "<|endoftext|>": 6}
    tokenizer = hub.models.GPT2Tokenizer(vocabulary=numbers, merges=["Ġ a", "Ġ b"])
    backbone = hub.models.GPT2Backbone(num_heads=2, max_sequence_length=8, dropout=0.0, **SMALL)
    preprocessor = hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=5)
    model = hub.models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)

    exported = model_export.export(model, ["a b a b", "b a b", "c a b a"])

    assert exported.notes[-1].endswith("generate() is not served.")
    assert exported.preprocess(["a b"])["token_ids"].shape == (1, 5)
