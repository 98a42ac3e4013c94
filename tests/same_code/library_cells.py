"""Cells with models and searches of installed libraries: KerasHub, KerasTuner, Keras' own wrappers for scikit-learn.

`tests/same_code/test_as_plain.py` runs each plainly and under the magic. Models are tiny and made by their constructors:
presets would have to be downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from tests.same_code.cells import Sample

HUB: Final = """
import keras_hub
from keras_hub import models as hub
texts, labels = np.array(["a good film", "the bad film", "bad bad the a", "good"] * 6), np.array([1, 0, 0, 1] * 6)
vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "the"]
small = dict(vocabulary_size=12, num_layers=1, hidden_dim=8, intermediate_dim=8)
def sgd(): return keras.optimizers.SGD(0.1)
"""
BERT: Final = """
tokenizer = hub.BertTokenizer(vocabulary=vocabulary)
backbone = hub.BertBackbone(num_heads=2, max_sequence_length=6, dropout=0.0, **small)
"""
GPT2: Final = """
bytes_of = {"a": 0, "b": 1, "Ġ": 2, "c": 3, "Ġa": 4, "Ġb": 5, "<|endoftext|>": 6}
tokenizer = hub.GPT2Tokenizer(vocabulary=bytes_of, merges=["Ġ a", "Ġ b"])
backbone = hub.GPT2Backbone(num_heads=2, max_sequence_length=8, dropout=0.0, **small)
causal = hub.GPT2CausalLM(backbone=backbone, preprocessor=hub.GPT2CausalLMPreprocessor(tokenizer, sequence_length=5))
words = np.array(["a b a b", "b a b", "c a b a", "a b c"] * 4)
"""
TOKENS: Final = """
rows = np.random.default_rng(0)
tokens = {"token_ids": rows.integers(1, 12, (16, 6)), "padding_mask": np.ones((16, 6), int)}
targets = rows.integers(1, 12, (16, 6))
def compiled(model):
    model.compile(sgd(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), weighted_metrics=["accuracy"]); return model
"""

ON_ONE: Final[Mapping[str, Sample]] = {
    "a BERT classifier of texts": Sample(
        needs=("keras_hub", "tensorflow_text"),
        before=HUB + BERT,
        cell="""
preprocessor = hub.BertTextClassifierPreprocessor(tokenizer, sequence_length=6)
m = hub.BertTextClassifier(backbone=backbone, num_classes=2, preprocessor=preprocessor, dropout=0.0)
m.compile(sgd(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
h = m.fit(texts, labels, batch_size=8, epochs=2, validation_data=(texts[:4], labels[:4]), **fit)
""",
        after="answers = m.predict(texts[:3], verbose=0)",
    ),
    "a BERT classifier of what a preprocessor has made": Sample(
        needs=("keras_hub", "tensorflow_text"),
        before=HUB + BERT,
        cell="""
preprocessor = hub.BertTextClassifierPreprocessor(tokenizer, sequence_length=6)
m = hub.BertTextClassifier(backbone=backbone, num_classes=2, preprocessor=None, dropout=0.0)
m.compile(sgd(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
data = tf.data.Dataset.from_tensor_slices((texts, labels)).batch(8).map(preprocessor)
h = m.fit(data, epochs=2, **fit)
""",
    ),
    "GPT-2 on texts": Sample(
        needs=("keras_hub", "tensorflow_text"),
        before=HUB + GPT2,
        cell="""
causal.compile(sgd(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)); h = causal.fit(words, batch_size=8, epochs=2, **fit)
""",
    ),
    "GPT-2 with LoRA": Sample(
        needs=("keras_hub", "tensorflow_text"),
        before=HUB + GPT2,
        cell="""
backbone.enable_lora(2)
causal.compile(sgd(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)); h = causal.fit(words, batch_size=8, epochs=2, **fit)
""",
        after="trained = len(causal.trainable_weights)",
    ),
    "a GPT-2 backbone in a Sequential": Sample(
        needs=("keras_hub",),
        before=HUB + TOKENS,
        cell="""
b = hub.GPT2Backbone(num_heads=2, max_sequence_length=8, dropout=0.0, **small)
m = compiled(keras.Sequential([b, layers.Dense(12)])); h = m.fit(tokens, targets, batch_size=8, **fit)
""",
    ),
    "Llama": Sample(
        needs=("keras_hub",),
        before=HUB + TOKENS,
        cell="""
b = hub.LlamaBackbone(num_query_heads=2, num_key_value_heads=1, **small)
m = compiled(hub.LlamaCausalLM(backbone=b, preprocessor=None)); h = m.fit(tokens, targets, batch_size=8, epochs=2, **fit)
""",
    ),
    "Gemma with LoRA": Sample(
        needs=("keras_hub",),
        before=HUB + TOKENS,
        cell="""
sizes = dict(vocabulary_size=12, num_layers=1, hidden_dim=8, intermediate_dim=16)
b = hub.GemmaBackbone(num_query_heads=2, num_key_value_heads=1, head_dim=4, **sizes); b.enable_lora(2)
m = compiled(hub.GemmaCausalLM(backbone=b, preprocessor=None)); h = m.fit(tokens, targets, batch_size=8, epochs=2, **fit)
""",
    ),
    "a ViT classifier": Sample(
        needs=("keras_hub",),
        before=HUB,
        cell="""
images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
b = hub.ViTBackbone(image_shape=(8, 8, 3), patch_size=(4, 4), num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, dropout_rate=0.0)
m = hub.ViTImageClassifier(backbone=b, num_classes=2, preprocessor=None)
m.compile(sgd(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
h = m.fit(images, labels[:16], batch_size=8, epochs=2, **fit)
""",
    ),
    "KerasTuner": Sample(
        needs=("keras_tuner",),
        before="import keras_tuner",
        cell="""
def build(hp):
    m = keras.Sequential([keras.Input((4,)), layers.Dense(hp.Int("units", 2, 4), "relu"), layers.Dense(1, "sigmoid")])
    m.compile(keras.optimizers.SGD(hp.Choice("rate", [0.1, 0.5])), "binary_crossentropy", metrics=["accuracy"]); return m
tuner = keras_tuner.RandomSearch(build, "val_loss", max_trials=3, seed=3, directory="search", project_name="p", overwrite=True)
tuner.search(x, y, validation_split=0.25, epochs=2, **fit)
best = tuner.get_best_hyperparameters()[0].values; m = tuner.get_best_models()[0]
scores = sorted(trial.score for trial in tuner.oracle.trials.values())
""",
    ),
    "a scikit-learn classifier in a cross-validation": Sample(
        needs=("sklearn",),
        before="from keras.wrappers import SKLearnClassifier\nfrom sklearn.model_selection import cross_val_score",
        cell="""
def build(X, y):
    m = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu"), layers.Dense(y.shape[1] if y.ndim > 1 else 1, "softmax")])
    m.compile("sgd", "categorical_crossentropy"); return m
scores = cross_val_score(SKLearnClassifier(build, fit_kwargs=dict(epochs=2, **fit)), x, y.ravel().astype(int), cv=2)
""",
        # A clone has lost its fit_kwargs, so that Keras shows a bar, in whose place our view stands.
        announced={"^lines:": ""},
    ),
    "a scikit-learn regressor in a pipeline": Sample(
        needs=("sklearn",),
        before=(
            "from keras.wrappers import SKLearnRegressor\nfrom sklearn.pipeline import make_pipeline\n"
            "from sklearn.preprocessing import StandardScaler"
        ),
        cell="""
def build(X, y):
    m = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu"), layers.Dense(1)]); m.compile("sgd", "mse"); return m
p = make_pipeline(StandardScaler(), SKLearnRegressor(build, fit_kwargs=dict(epochs=2, **fit))).fit(x, y.ravel())
answers, score, m = p.predict(x[:4]), p.score(x, y.ravel()), p[-1].model_
""",
    ),
}

# KerasHub's models on two workers as well; a search is a loop of fits, and no other than theirs.
LIBRARY_CELLS: Final[Mapping[str, Sample]] = {
    **ON_ONE,
    **{f"{name}, two workers": replace(sample, options="-n 2") for name, sample in ON_ONE.items() if "keras_hub" in sample.needs},
}
