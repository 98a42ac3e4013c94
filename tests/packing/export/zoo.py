"""Small models of every kind that Keras has layers and operations for, to be deployed one by one.

Owns the table: what goes in, and an expression for what is computed. `L` is `keras.layers`, `ops` is `keras.ops`, `x` the input
(for several, a list). A bare layer is applied to `x`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS = 12


@dataclass(frozen=True)
class Kind:
    """What a model is given: shapes and types of its inputs without the rows, and a generator of rows."""

    inputs: tuple[tuple[tuple[int | None, ...], str], ...]
    rows: Callable[[np.random.Generator], list[Any]]


def _floats(*shape: int) -> Kind:
    return Kind(((shape, "float32"),), lambda draw: [draw.normal(size=(ROWS, *shape)).astype("float32")])


def _texts(*choices: str) -> Kind:
    return Kind((((1,), "string"),), lambda draw: [draw.choice(np.array(choices, dtype=object), (ROWS, 1))])


KINDS: Mapping[str, Kind] = {
    "vector": _floats(8),
    "positive": Kind((((8,), "float32"),), lambda draw: [draw.uniform(0.1, 2.0, (ROWS, 8)).astype("float32")]),
    "unit": Kind((((8,), "float32"),), lambda draw: [draw.uniform(-0.9, 0.9, (ROWS, 8)).astype("float32")]),
    "series": _floats(6, 4),
    "masked series": Kind((((6, 4), "float32"),), lambda draw: [_cut(draw.normal(size=(ROWS, 6, 4)).astype("float32"))]),
    "any length": Kind((((None, 4), "float32"),), lambda draw: [draw.normal(size=(ROWS, 6, 4)).astype("float32")]),
    "image": _floats(8, 8, 3),
    "any image": Kind((((None, None, 3), "float32"),), lambda draw: [draw.normal(size=(ROWS, 8, 8, 3)).astype("float32")]),
    "pixels": Kind((((8, 8, 3), "float32"),), lambda draw: [draw.integers(0, 256, (ROWS, 8, 8, 3)).astype("float32")]),
    "bytes": Kind((((8, 8, 3), "uint8"),), lambda draw: [draw.integers(0, 256, (ROWS, 8, 8, 3)).astype("uint8")]),
    "volume": _floats(4, 4, 4, 2),
    "frames": _floats(3, 6, 6, 2),
    "matrix": Kind(
        (((4, 4), "float32"),), lambda draw: [draw.normal(size=(ROWS, 4, 4)).astype("float32") + 4 * np.eye(4, dtype="float32")]
    ),
    "indices": Kind((((7,), "int32"),), lambda draw: [draw.integers(0, 20, (ROWS, 7)).astype("int32")]),
    "padded indices": Kind((((7,), "int32"),), lambda draw: [_cut(draw.integers(1, 20, (ROWS, 7)).astype("int32"))]),
    "whole": Kind((((7,), "int64"),), lambda draw: [draw.integers(0, 20, (ROWS, 7)).astype("int64")]),
    "truths": Kind((((6,), "bool"),), lambda draw: [draw.integers(0, 2, (ROWS, 6)).astype("bool")]),
    "double": Kind((((8,), "float64"),), lambda draw: [draw.normal(size=(ROWS, 8))]),
    "words": _texts("red", "blue", "grün", "other"),
    "sentences": _texts("a good film", "a bad film, a long film", "unheard of", ""),
    "two vectors": Kind(
        (((8,), "float32"), ((8,), "float32")), lambda draw: [draw.normal(size=(ROWS, 8)).astype("float32") for _ in range(2)]
    ),
    "two series": Kind(
        (((6, 4), "float32"), ((6, 4), "float32")), lambda draw: [draw.normal(size=(ROWS, 6, 4)).astype("float32") for _ in range(2)]
    ),
    "two indices": Kind(
        (((1,), "int32"), ((1,), "int32")), lambda draw: [draw.integers(0, 10, (ROWS, 1)).astype("int32") for _ in range(2)]
    ),
}


def _cut(values: np.ndarray) -> np.ndarray:
    """Rows of different lengths, filled with zeros."""
    lengths = np.arange(ROWS) % values.shape[1] + 1
    keep = np.arange(values.shape[1]) < lengths[:, None]
    return values * keep.reshape(keep.shape + (1,) * (values.ndim - 2)).astype(values.dtype)


# Keras itself cannot make a graph of these, whatever it is for: its `predict` compiles none either.
NOT_IN_A_GRAPH = frozenset({"ops.isin(ops.cast(x, 'int32'), [0, 1])", "L.UpSampling2D(interpolation='bilinear')(x)", "ops.gcd(x, 6)"})
TEXTS = frozenset({"words", "sentences"})  # are served as a SavedModel
# ONNX, or ONNX Runtime on a CPU, has no operator for them, or computes something else.
NOT_IN_ONNX = frozenset(
    {
        "L.Conv3D(2, 2, groups=2)",
        "L.Dense(4, 'gelu', dtype='float64')",
        "L.HashedCrossing(5)((x[0], x[1]))",
        "L.HashedCrossing(5, output_mode='one_hot')((x[0], x[1]))",
        "L.Hashing(10)",
        "L.Hashing(10, output_mode='one_hot')(x[:, :1])",
        "L.IntegerLookup(vocabulary=[3, 5, 7], output_mode='count')",
        "L.IntegerLookup(vocabulary=[3, 5, 7], output_mode='multi_hot')",
        "L.Resizing(4, 4)(x)",  # of bytes, which it rounds
        "L.Resizing(4, 4, antialias=True)",
        "L.Resizing(5, 7, interpolation='bicubic')",
        "L.UpSampling2D(2, interpolation='lanczos3')",
        "ops.associative_scan(lambda a, b: a + b, x, axis=1)",
        "ops.bitwise_and(x, np.int32(3))",
        "ops.cholesky(ops.matmul(x, ops.transpose(x, (0, 2, 1))))",
        "ops.cross(x[0][..., :3], x[1][..., :3])",
        "ops.cross(x[0][:, :3], x[1][:, :3])",
        "ops.cumprod(x, axis=-1)",
        "ops.eigh(x + ops.transpose(x, (0, 2, 1)))[0]",
        "ops.erfinv(x)",
        "ops.fft((x, x))[0]",
        "ops.image.affine_transform(x, np.tile(np.array([1, 0, 1, 0, 1, 1, 0, 0], 'float32'), (1, 1)))",
        "ops.image.rgb_to_hsv(x)",
        "ops.in_top_k(x[:, 0], ops.one_hot(x[:, 0], 20), 2)",
        "ops.inv(x)",
        "ops.irfft(ops.rfft(x))",
        "ops.logdet(ops.matmul(x, ops.transpose(x, (0, 2, 1))))",
        "ops.qr(x)[1]",
        "ops.rfft(x)[0]",
        "ops.right_shift(x, 1)",
        "ops.scan(lambda c, v: (c + v, c + v), ops.zeros_like(x[:, 0]), ops.transpose(x, (1, 0, 2)))[0]",
        "ops.solve(x, x)",
        "ops.solve_triangular(x, x, lower=True)",
        "ops.svd(x, compute_uv=False)",
    }
)

ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "sigmoid", "hard_sigmoid", "log_sigmoid", "tanh", "tanh_shrink"),
    *("softplus", "softsign", "softmax", "log_softmax", "silu", "hard_silu", "exponential", "linear", "mish", "glu", "sparse_plus"),
    *("sparse_sigmoid", "soft_shrink", "hard_shrink", "hard_tanh", "squareplus", "sparsemax"),
)
UNARY = {
    "vector": (
        *("abs", "arctan", "arcsinh", "ceil", "cos", "cosh", "erf", "exp", "exp2", "expm1", "floor", "isfinite", "isnan", "logical_not"),
        *(
            "negative",
            "ones_like",
            "relu",
            "round",
            "sigmoid",
            "sign",
            "sin",
            "sinh",
            "square",
            "tan",
            "tanh",
            "trunc",
            "zeros_like",
        ),
        *("isinf", "cbrt", "deg2rad", "rad2deg", "nan_to_num", "signbit", "sinc", "sort", "argsort", "flip", "cumsum", "cumprod", "diff"),
    ),
    "positive": ("log", "log10", "log1p", "log2", "reciprocal", "rsqrt", "sqrt", "logaddexp2"),
    "unit": ("arccos", "arcsin", "arctanh", "erfinv"),
}
REDUCTIONS = (
    *("all", "any", "amax", "amin", "argmax", "argmin", "count_nonzero", "logsumexp", "max", "mean", "median", "min", "nanmax", "nanmean"),
    *("nanmin", "nansum", "norm", "prod", "std", "sum", "var"),
)
BINARY = (
    *("add", "subtract", "multiply", "divide", "divide_no_nan", "floor_divide", "mod", "power_of", "maximum", "minimum", "arctan2"),
    *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_or", "logical_xor", "logaddexp"),
    *("hypot", "heaviside", "fmod_of", "dot_rows", "vdot_rows", "cross_rows", "outer_rows", "kron_rows", "isclose"),
)
SPELLED = {
    "power_of": "ops.power(ops.abs(x[0]) + 0.1, x[1])",
    "fmod_of": "x[0] - ops.trunc(x[0] / (ops.abs(x[1]) + 0.5)) * (ops.abs(x[1]) + 0.5)",
    "dot_rows": "ops.sum(x[0] * x[1], -1, keepdims=True)",
    "vdot_rows": "ops.einsum('bi,bi->b', x[0], x[1])",
    "cross_rows": "ops.cross(x[0][:, :3], x[1][:, :3])",
    "outer_rows": "ops.einsum('bi,bj->bij', x[0], x[1])",
    "kron_rows": "ops.reshape(x[0][:, :, None] * x[1][:, None, :], (-1, 64))",
    "logaddexp2": "ops.logaddexp2(x, x * 2)",
    "nan_to_num": "ops.nan_to_num(ops.log(x))",
    "nanmax": "ops.nanmax(ops.log(x), axis=-1)",
    "nanmean": "ops.nanmean(ops.log(x), axis=-1)",
    "nanmin": "ops.nanmin(ops.log(x), axis=-1)",
    "nansum": "ops.nansum(ops.log(x), axis=-1)",
    "sort": "ops.sort(x, axis=-1)",
    "argsort": "ops.argsort(x, axis=-1)",
    "flip": "ops.flip(x, axis=-1)",
    "cumsum": "ops.cumsum(x, axis=-1)",
    "cumprod": "ops.cumprod(x, axis=-1)",
    "diff": "ops.diff(x, axis=-1)",
    "isclose": "ops.isclose(x[0], x[1], atol=0.5)",
}

LAYERS: Mapping[str, tuple[str, ...]] = {
    "vector": (
        *("L.Dense(4)", "L.Dense(4, use_bias=False)", "L.Dense(4, 'relu')", "L.BatchNormalization()", "L.LayerNormalization()"),
        *("L.LayerNormalization(center=False, scale=False)", "L.RMSNormalization()", "L.UnitNormalization()", "L.Dropout(0.5)"),
        *("L.GaussianNoise(0.1)", "L.GaussianDropout(0.1)", "L.AlphaDropout(0.1)", "L.ActivityRegularization(0.1)", "L.RepeatVector(3)"),
        *("L.Reshape((2, 4))", "L.Reshape((2, -1, 2))", "L.Flatten()", "L.PReLU()", "L.LeakyReLU(0.2)", "L.ELU(0.5)", "L.ReLU(6.0)"),
        *("L.ReLU(negative_slope=0.1, threshold=0.5)", "L.Softmax()", "L.Activation('swish')", "L.Identity()"),
        *("L.SpectralNormalization(L.Dense(4))", "L.EinsumDense('ab,bc->ac', 4)", "L.Rescaling(2.0, offset=-1.0)"),
        *("L.Discretization([-1.0, 0.0, 1.0])", "L.Discretization([-1.0, 0.0, 1.0], output_mode='one_hot')"),
        *("L.Discretization([-1.0, 0.0, 1.0], output_mode='multi_hot')", "L.GroupNormalization(4)"),
        *("L.Dense(4, kernel_initializer='ones', activation=lambda v: v * 2)", "L.Lambda(lambda v: v ** 2)", "L.Dense(1, 'sigmoid')"),
        *("L.Dense(4, kernel_constraint='max_norm')",),
        *("L.Dense(3)(x) + L.Dense(3)(x)", "L.Dense(3)(x) * 0.5 - 1", "L.Concatenate()([L.Dense(2)(x), L.Dense(3)(x)])", "x[:, 2:5]"),
        *(
            "x[:, ::2]",
            "x[..., -1:]",
            "x[:, None, :]",
            "ops.stack([x, x], axis=1)",
            "ops.concatenate([x, x], axis=-1)",
            "ops.split(x, 2, axis=-1)",
        ),
        *(
            "ops.tile(x, (1, 3))",
            "ops.repeat(x, 2, axis=-1)",
            "ops.roll(x, 1, axis=-1)",
            "ops.pad(x, ((0, 0), (1, 2)))",
            "ops.clip(x, -0.5, 0.5)",
        ),
        *(
            "ops.where(x > 0, x, 0.1 * x)",
            "ops.take(x, [0, 3], axis=-1)",
            "ops.top_k(x, 3)[0]",
            "ops.top_k(x, 3)[1]",
            "ops.one_hot(ops.argmax(x, -1), 8)",
        ),
        *("ops.cast(x, 'int32')", "ops.cast(x > 0, 'float32')", "ops.squeeze(x[:, :1], -1)", "ops.swapaxes(x[:, None], 1, 2)"),
        *("ops.expand_dims(x, -1)", "ops.abs(x)", "ops.softmax(x, -1)", "ops.log_softmax(x, -1)"),
        *("ops.normalize(x)", "ops.sign(x)", "ops.quantile(x, 0.5, axis=-1)", "ops.digitize(x, np.array([-1.0, 0.0, 1.0], 'float32'))"),
        "ops.associative_scan(lambda a, b: a + b, x, axis=1)",
        *(
            "ops.fori_loop(0, 3, lambda i, v: v * 0.5, x)",
            "ops.while_loop(lambda i, v: ops.max(i) < 3, lambda i, v: (i + 1, v * 0.5), (ops.zeros((1,), 'int32'), x))[1]",
            "ops.cond(ops.shape(x)[1] > 3, lambda: x, lambda: -x)",
        ),
        *(
            "ops.unstack(x, axis=1)[0]",
            "ops.moveaxis(ops.reshape(x, (-1, 2, 4)), 1, 2)",
            "ops.transpose(ops.reshape(x, (-1, 2, 4)), (0, 2, 1))",
            "ops.tril(ops.reshape(x, (-1, 2, 4)))",
        ),
        *(
            "ops.triu(ops.reshape(x, (-1, 2, 4)))",
            "ops.trace(ops.reshape(x, (-1, 2, 4)), axis1=1, axis2=2)",
            "ops.diagonal(ops.reshape(x, (-1, 2, 4)), axis1=1, axis2=2)",
        ),
        *(
            "ops.logical_and(x > 0, x < 1)",
            "ops.isin(ops.cast(x, 'int32'), [0, 1])",
            "ops.max(x, -1, keepdims=True) - x",
            "ops.average(x, axis=-1)",
        ),
    ),
    "series": (
        *(
            "L.LSTM(3)",
            "L.LSTM(3, return_sequences=True)",
            "L.LSTM(3, go_backwards=True)",
            "L.LSTM(3, unroll=True)",
            "L.LSTM(3, activation='relu')",
        ),
        *("L.LSTM(3, recurrent_dropout=0.1, dropout=0.1)", "L.GRU(3)", "L.GRU(3, return_sequences=True)", "L.GRU(3, reset_after=False)"),
        *(
            "L.GRU(3, go_backwards=True, return_sequences=True)",
            "L.SimpleRNN(3)",
            "L.SimpleRNN(3, return_sequences=True)",
            "L.SimpleRNN(3, activation='relu')",
        ),
        *(
            "L.Bidirectional(L.LSTM(3))",
            "L.Bidirectional(L.LSTM(3, return_sequences=True))",
            "L.Bidirectional(L.GRU(3), merge_mode='sum')",
            "L.Bidirectional(L.SimpleRNN(3), merge_mode='ave')",
        ),
        *(
            "L.RNN(L.LSTMCell(3))",
            "L.RNN(L.GRUCell(3), return_sequences=True)",
            "L.RNN([L.LSTMCell(3), L.GRUCell(2)])",
            "L.RNN(L.StackedRNNCells([L.SimpleRNNCell(3), L.SimpleRNNCell(2)]))",
        ),
        *(
            "L.TimeDistributed(L.Dense(2))",
            "L.TimeDistributed(L.Reshape((2, 2)))",
            "L.Conv1D(5, 3)",
            "L.Conv1D(5, 3, padding='same')",
            "L.Conv1D(5, 3, padding='causal')",
        ),
        *(
            "L.Conv1D(5, 3, strides=2)",
            "L.Conv1D(5, 3, dilation_rate=2)",
            "L.Conv1D(4, 3, groups=2)",
            "L.SeparableConv1D(5, 3)",
            "L.DepthwiseConv1D(3)",
            "L.DepthwiseConv1D(3, depth_multiplier=2)",
        ),
        *(
            "L.Conv1DTranspose(5, 3)",
            "L.Conv1DTranspose(5, 3, strides=2, padding='same')",
            "L.MaxPooling1D(2)",
            "L.MaxPooling1D(3, strides=1, padding='same')",
            "L.AveragePooling1D(2)",
        ),
        *(
            "L.AveragePooling1D(3, strides=2, padding='same')",
            "L.GlobalMaxPooling1D()",
            "L.GlobalAveragePooling1D()",
            "L.GlobalAveragePooling1D(keepdims=True)",
            "L.AdaptiveAveragePooling1D(3)",
        ),
        *(
            "L.UpSampling1D(2)",
            "L.ZeroPadding1D(2)",
            "L.Cropping1D(1)",
            "L.Permute((2, 1))",
            "L.SpatialDropout1D(0.3)",
            "L.LayerNormalization()",
            "L.BatchNormalization()",
        ),
        *(
            "L.GroupNormalization(2)",
            "L.Softmax(axis=1)",
            "L.MultiHeadAttention(2, 3)(x, x)",
            "L.MultiHeadAttention(2, 3, use_bias=False)(x, x)",
            "L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)",
        ),
        *(
            "L.MultiHeadAttention(2, 3, output_shape=5)(x, x)",
            "L.MultiHeadAttention(2, 3, value_dim=5)(x, x)",
            "L.MultiHeadAttention(2, 4, flash_attention=False)(x, x[:, :3])",
            "L.GroupQueryAttention(4, 4, 2)(x, x)",
        ),
        *(
            "L.Attention()([x, x])",
            "L.Attention(use_scale=True, score_mode='concat')([x, x])",
            "L.AdditiveAttention()([x, x])",
            "L.EinsumDense('abc,cd->abd', (None, 5))",
            "L.EinsumDense('abc,cde->abde', (None, 2, 3), bias_axes='de')",
        ),
        *(
            "L.ConvLSTM1D(3, 2)(ops.reshape(x, (-1, 2, 3, 4)))",
            "ops.mean(x, axis=1)",
            "ops.max(x, axis=(1, 2))",
            "ops.matmul(x, ops.transpose(x, (0, 2, 1)))",
            "ops.einsum('bij,bkj->bik', x, x)",
        ),
        *(
            "ops.cumsum(x, axis=1)",
            "ops.softmax(x, axis=1)",
            "ops.dot_product_attention(x[:, :, None], x[:, :, None], x[:, :, None])",
            "ops.image.resize(x[..., None], (3, 4))",
            "ops.rfft(x)[0]",
            "ops.fft((x, x))[0]",
        ),
        *(
            "ops.irfft(ops.rfft(x))",
            "ops.extract_sequences(x[..., 0], 3, 1)",
            "ops.scan(lambda c, v: (c + v, c + v), ops.zeros_like(x[:, 0]), ops.transpose(x, (1, 0, 2)))[0]",
            "ops.map(lambda v: v * 2, x)",
            "ops.vectorized_map(lambda v: v * 2, x)",
        ),
        *(
            "ops.sum(x, 1)",
            "x[:, ::-1]",
            "x[:, -1]",
            "L.LSTM(3, return_state=True)(x)[1]",
            "L.GRU(3, return_state=True)(x)[1]",
            "L.Dense(2)(L.LSTM(3, use_bias=False)(x))",
        ),
        *(
            "L.Add()([x, L.Dense(4)(L.Dense(8, 'gelu')(L.LayerNormalization()(x)))])",
            "L.Conv1D(3, 1)(L.Conv1D(4, 3, data_format='channels_last')(x))",
            "L.Lambda(lambda v: v[:, 1:] - v[:, :-1])",
            "L.ReversibleEmbedding(4, 3)(ops.cast(ops.abs(x[..., 0]), 'int32'))",
        ),
    ),
    "masked series": (
        *(
            "L.LSTM(3)(L.Masking()(x))",
            "L.GRU(3)(L.Masking()(x))",
            "L.SimpleRNN(3)(L.Masking()(x))",
            "L.LSTM(3, return_sequences=True)(L.Masking()(x))",
            "L.Bidirectional(L.LSTM(3))(L.Masking()(x))",
        ),
        *(
            "L.GlobalAveragePooling1D()(L.Masking()(x))",
            "L.TimeDistributed(L.Dense(2))(L.Masking()(x))",
            "L.MultiHeadAttention(2, 3)(L.Masking()(x), L.Masking()(x))",
        ),
    ),
    "any length": (
        *(
            "L.LSTM(3)",
            "L.GRU(3, return_sequences=True)",
            "L.Conv1D(5, 3, padding='same')",
            "L.GlobalMaxPooling1D()",
            "L.MultiHeadAttention(2, 3)(x, x)",
            "L.Dense(2)",
            "L.Bidirectional(L.GRU(3))",
            "ops.mean(x, 1)",
            "L.LayerNormalization()",
        ),
    ),
    "image": (
        *(
            "L.Conv2D(4, 3)",
            "L.Conv2D(4, 3, padding='same')",
            "L.Conv2D(4, 3, strides=2, padding='same')",
            "L.Conv2D(4, (1, 3))",
            "L.Conv2D(4, 3, dilation_rate=2)",
            "L.Conv2D(6, 3, groups=3)",
            "L.Conv2D(3, 3, groups=3, padding='same', strides=2)",
        ),
        *(
            "L.SeparableConv2D(4, 3)",
            "L.DepthwiseConv2D(3)",
            "L.DepthwiseConv2D(3, depth_multiplier=2, padding='same')",
            "L.Conv2DTranspose(4, 3)",
            "L.Conv2DTranspose(4, 3, strides=2, padding='same')",
            "L.Conv2DTranspose(4, 4, strides=2)",
        ),
        *(
            "L.MaxPooling2D()",
            "L.MaxPooling2D(3, 2, padding='same')",
            "L.AveragePooling2D(2)",
            "L.AveragePooling2D(3, 2, padding='same')",
            "L.GlobalMaxPooling2D()",
            "L.GlobalAveragePooling2D()",
            "L.GlobalAveragePooling2D(keepdims=True)",
        ),
        *(
            "L.UpSampling2D()",
            "L.UpSampling2D(interpolation='bilinear')",
            "L.UpSampling2D((2, 3))",
            "L.UpSampling2D(2, interpolation='bicubic')",
            "L.UpSampling2D(2, interpolation='lanczos3')",
            "L.ZeroPadding2D(((1, 2), (0, 1)))",
            "L.Cropping2D(((1, 0), (2, 1)))",
        ),
        *(
            "L.Resizing(4, 4)",
            "L.Resizing(12, 12)",
            "L.Resizing(5, 7, interpolation='nearest')",
            "L.Resizing(5, 7, interpolation='bicubic')",
            "L.Resizing(4, 4, antialias=True)",
            "L.Resizing(4, 6, crop_to_aspect_ratio=True)",
            "L.Resizing(4, 6, pad_to_aspect_ratio=True)",
        ),
        *(
            "L.CenterCrop(4, 4)",
            "L.Rescaling(1 / 255)",
            "L.RandomFlip()",
            "L.RandomRotation(0.1)",
            "L.RandomZoom(0.1)",
            "L.RandomContrast(0.1)",
            "L.RandomBrightness(0.1)",
            "L.RandomTranslation(0.1, 0.1)",
            "L.RandomCrop(6, 6)",
        ),
        *(
            "L.BatchNormalization()",
            "L.BatchNormalization(axis=1)",
            "L.BatchNormalization(scale=False)",
            "L.LayerNormalization(axis=[1, 2, 3])",
            "L.LayerNormalization(axis=1)",
            "L.GroupNormalization(3)",
            "L.SpatialDropout2D(0.2)",
            "L.PReLU(shared_axes=[1, 2])",
            "L.Softmax(axis=[1, 2])",
        ),
        *(
            "L.Permute((3, 1, 2))",
            "L.Flatten()",
            "L.Reshape((4, 4, 12))",
            "L.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0])",
            "L.SpectralNormalization(L.Conv2D(3, 3))",
            "L.ConvLSTM1D(3, 2)",
            "L.TimeDistributed(L.Conv1D(3, 2))",
            "L.MultiHeadAttention(2, 3, attention_axes=(1, 2))(x, x)",
        ),
        *(
            "L.Conv2D(4, 3, activation='gelu')",
            "L.Conv2D(4, 3, activation='silu')",
            "ops.image.resize(x, (4, 4))",
            "ops.image.rgb_to_grayscale(x)",
            "ops.image.rgb_to_hsv(x)",
            "ops.image.pad_images(x, 1, 1, target_height=11, target_width=11)",
            "ops.image.crop_images(x, 1, 1, target_height=4, target_width=4)",
        ),
        *(
            "ops.image.extract_patches(x, 4)",
            "ops.image.affine_transform(x, np.tile(np.array([1, 0, 1, 0, 1, 1, 0, 0], 'float32'), (1, 1)))",
            "ops.image.gaussian_blur(x)",
            "ops.max_pool(x, 2)",
            "ops.average_pool(x, 2, padding='same')",
            "ops.conv(x, np.ones((2, 2, 3, 4), 'float32'))",
            "ops.depthwise_conv(x, np.ones((2, 2, 3, 1), 'float32'))",
        ),
        *(
            "ops.moments(x, axes=[1, 2])[0]",
            "ops.space_to_depth(x, 2)",
            "L.Add()([x, L.Conv2D(3, 3, padding='same')(x)])",
            "L.Multiply()([x, L.Dense(3, 'sigmoid')(L.GlobalAveragePooling2D(keepdims=True)(x))])",
            "L.Concatenate()([L.Conv2D(2, 1)(x), L.MaxPooling2D(1)(x)])",
        ),
        *(
            "L.AdaptiveAveragePooling2D(3)",
            "L.AdaptiveMaxPooling2D(4)",
            "L.Conv2D(4, 3)(L.GaussianNoise(0.1)(x))",
            "L.Solarization()",
            "L.RandomGrayscale()",
            "L.AutoContrast()",
        ),
    ),
    "any image": (
        "L.Conv2D(4, 3, padding='same')",
        "L.GlobalAveragePooling2D()",
        "L.Resizing(4, 4)",
        "L.MaxPooling2D()",
        "L.UpSampling2D()",
        "L.UpSampling2D(interpolation='bilinear')(x)",
        "L.BatchNormalization()",
        "L.Conv2DTranspose(2, 2, strides=2)",
    ),
    "pixels": (
        *(
            "L.Dense(16, 'relu')(L.Flatten()(x))",
            "L.Dense(784)(L.Dense(16, 'relu')(L.Flatten()(x)))",
            "L.Conv2D(1, 3, padding='same')(L.Conv2D(16, 3, padding='same', activation='relu')(x))",
            "L.Rescaling(1 / 127.5, -1)",
            "L.RandomInvert()",
            "L.Dense(100)(L.Dense(256)(L.Dense(512, 'relu')(L.Flatten()(x))))",
        ),
    ),
    "bytes": (
        "L.Rescaling(1 / 255)",
        "L.Conv2D(3, 3)(ops.cast(x, 'float32') / 255)",
        "L.Resizing(4, 4)(x)",
        "L.Flatten()",
        "L.MaxPooling2D()(ops.cast(x, 'float32'))",
    ),
    "volume": (
        *(
            "L.Conv3D(3, 2)",
            "L.Conv3D(3, 2, padding='same', strides=2)",
            "L.Conv3DTranspose(3, 2)",
            "L.MaxPooling3D()",
            "L.AveragePooling3D(2)",
            "L.GlobalMaxPooling3D()",
            "L.GlobalAveragePooling3D()",
            "L.UpSampling3D()",
            "L.ZeroPadding3D(1)",
            "L.Cropping3D(1)",
            "L.SpatialDropout3D(0.1)",
            "L.BatchNormalization()",
            "L.Flatten()",
            "L.Conv3D(2, 2, groups=2)",
            "L.LayerNormalization()",
        ),
    ),
    "frames": (
        "L.ConvLSTM2D(3, 2)",
        "L.ConvLSTM2D(3, 2, return_sequences=True, padding='same')",
        "L.TimeDistributed(L.Conv2D(3, 2))",
        "L.TimeDistributed(L.GlobalAveragePooling2D())",
        "L.LSTM(3)(L.TimeDistributed(L.Flatten())(x))",
        "L.Bidirectional(L.ConvLSTM2D(2, 2))",
    ),
    "matrix": (
        *(
            "ops.inv(x)",
            "ops.det(x)",
            "ops.qr(x)[1]",
            "ops.svd(x, compute_uv=False)",
            "ops.cholesky(ops.matmul(x, ops.transpose(x, (0, 2, 1))))",
            "ops.solve(x, x)",
            "ops.eigh(x + ops.transpose(x, (0, 2, 1)))[0]",
            "ops.logdet(ops.matmul(x, ops.transpose(x, (0, 2, 1))))",
        ),
        *(
            "ops.matmul(x, x)",
            "ops.norm(x, axis=(1, 2))",
            "ops.trace(x, axis1=1, axis2=2)",
            "ops.solve_triangular(x, x, lower=True)",
            "ops.linalg.norm(x, ord='fro', axis=(1, 2))",
        ),
    ),
    "indices": (
        *(
            "L.Embedding(20, 3)",
            "L.Flatten()(L.Embedding(20, 3)(x))",
            "L.GlobalAveragePooling1D()(L.Embedding(20, 3)(x))",
            "L.LSTM(3)(L.Embedding(20, 3)(x))",
            "L.CategoryEncoding(20, output_mode='multi_hot')",
            "L.CategoryEncoding(20, output_mode='count')",
            "L.CategoryEncoding(20, output_mode='one_hot')(x[:, :1])",
        ),
        *(
            "L.Hashing(10)",
            "L.Hashing(10, output_mode='one_hot')(x[:, :1])",
            "L.IntegerLookup(vocabulary=[3, 5, 7])",
            "L.IntegerLookup(vocabulary=[3, 5, 7], output_mode='multi_hot')",
            "L.IntegerLookup(vocabulary=[3, 5, 7], num_oov_indices=2)",
            "ops.one_hot(x, 20)",
            "ops.sum(x, 1)",
            "ops.bincount(x, minlength=20)",
            "ops.multi_hot(x, 20)",
        ),
        *(
            "ops.bitwise_and(x, np.int32(3))",
            "ops.left_shift(x, 1)",
            "ops.mod(x, 3)",
            "ops.floor_divide(x, 3)",
            "ops.cast(x, 'float32') / 3",
            "ops.take(np.arange(40, dtype='float32').reshape(20, 2), x, axis=0)",
            "ops.gcd(x, 6)",
            "ops.sort(x, -1)",
            "ops.in_top_k(x[:, 0], ops.one_hot(x[:, 0], 20), 2)",
        ),
        *(
            "L.MultiHeadAttention(2, 4)(L.Embedding(20, 8)(x), L.Embedding(20, 8)(x))",
            "L.Conv1D(3, 2)(L.Embedding(20, 3)(x))",
            "L.Dense(20)(L.GRU(3, return_sequences=True)(L.Embedding(20, 3)(x)))",
            "L.Dense(2)(L.Flatten()(L.Embedding(20, 3, embeddings_initializer='ones')(x)))",
            "ops.max(x, -1)",
            "ops.argmax(x, -1)",
            "x + 1",
            "ops.abs(-x)",
        ),
    ),
    "padded indices": (
        *(
            "L.LSTM(3)(L.Embedding(20, 3, mask_zero=True)(x))",
            "L.Bidirectional(L.GRU(3))(L.Embedding(20, 3, mask_zero=True)(x))",
            "L.GlobalAveragePooling1D()(L.Embedding(20, 3, mask_zero=True)(x))",
            "L.MultiHeadAttention(2, 4)(L.Embedding(20, 8, mask_zero=True)(x), L.Embedding(20, 8, mask_zero=True)(x))",
            "L.Attention()([L.Embedding(20, 3, mask_zero=True)(x)] * 2)",
            "L.TimeDistributed(L.Dense(2))(L.Embedding(20, 3, mask_zero=True)(x))",
        ),
    ),
    "whole": (
        "L.Embedding(20, 3)",
        "L.CategoryEncoding(20, output_mode='multi_hot')",
        "x * 2",
        "ops.cast(x, 'float32')",
        "L.IntegerLookup(vocabulary=[3, 5, 7], output_mode='count')",
        "ops.sum(x, -1)",
        "ops.right_shift(x, 1)",
    ),
    "truths": (
        "ops.cast(x, 'float32')",
        "ops.logical_not(x)",
        "ops.any(x, -1)",
        "ops.all(x, -1)",
        "ops.where(x, 1.0, -1.0)",
        "ops.logical_xor(x, ops.flip(x, 1))",
    ),
    "double": (
        "L.Dense(4, dtype='float64')",
        "L.LayerNormalization(dtype='float64')",
        "ops.exp(x)",
        "ops.sum(x, -1)",
        "L.Dense(4, 'gelu', dtype='float64')",
    ),
    "words": (
        *(
            "L.StringLookup(vocabulary=['red', 'blue', 'grün'])",
            "L.StringLookup(vocabulary=['red', 'blue', 'grün'], output_mode='one_hot')",
            "L.StringLookup(vocabulary=['red', 'blue', 'grün'], output_mode='multi_hot')",
            "L.Hashing(5)",
            "L.Embedding(5, 2)(L.StringLookup(vocabulary=['red', 'blue', 'grün'])(x))",
            "L.StringLookup(vocabulary=['red', 'blue'], num_oov_indices=3)",
        ),
    ),
    "sentences": (
        *(
            "L.TextVectorization(output_sequence_length=5, vocabulary=['a', 'good', 'film'])",
            "L.TextVectorization(output_mode='multi_hot', vocabulary=['a', 'good', 'film'])",
            "L.TextVectorization(output_mode='count', vocabulary=['a', 'good', 'film'])",
            "L.TextVectorization(ngrams=2, output_sequence_length=5, vocabulary=['a', 'a good', 'film'])",
        ),
        *(
            "L.Flatten()(L.Embedding(9, 2)(L.TextVectorization(output_sequence_length=5, vocabulary=['a', 'good', 'film'])(x)))",
            "L.TextVectorization(split='character', output_sequence_length=5, vocabulary=['a', 'b'])",
        ),
    ),
    "two vectors": (
        *(
            "L.Add()",
            "L.Subtract()",
            "L.Multiply()",
            "L.Average()",
            "L.Maximum()",
            "L.Minimum()",
            "L.Concatenate()",
            "L.Dot(axes=1)",
            "L.Dot(axes=1, normalize=True)",
            "[L.Dense(2)(x[0]), L.Dense(3)(x[1])]",
            "{'sum': x[0] + x[1], 'difference': x[0] - x[1]}",
        ),
    ),
    "two series": (
        "L.Dot(axes=2)",
        "L.Dot(axes=(1, 1))",
        "L.Attention()",
        "L.AdditiveAttention()",
        "L.MultiHeadAttention(2, 3)(x[0], x[1])",
        "L.Concatenate(axis=1)",
        "ops.matmul(x[0], ops.swapaxes(x[1], 1, 2))",
        "ops.cross(x[0][..., :3], x[1][..., :3])",
        "x[0] + x[1]",
    ),
    "two indices": (
        *(
            "L.Dot(axes=2)([L.Embedding(10, 3)(x[0]), L.Embedding(10, 3)(x[1])])",
            "L.HashedCrossing(5)((x[0], x[1]))",
            "L.HashedCrossing(5, output_mode='one_hot')((x[0], x[1]))",
            "L.Dense(1)(L.Flatten()(L.Concatenate()([L.Embedding(10, 3)(x[0]), L.Embedding(10, 3)(x[1])])))",
        ),
    ),
}


def entries() -> Iterator[tuple[str, str]]:
    """Every model: the kind of its input, and its expression."""
    for kind, expressions in LAYERS.items():
        yield from ((kind, expression) for expression in expressions)
    yield from (("vector", f"L.Dense(4, {name!r})") for name in ACTIVATIONS)
    for kind, names in UNARY.items():
        yield from ((kind, SPELLED.get(name, f"ops.{name}(x)")) for name in names)
    yield from (("vector", SPELLED.get(name, f"ops.{name}(x, axis=-1)")) for name in REDUCTIONS)
    yield from (("two vectors", SPELLED.get(name, f"ops.{name}(x[0], x[1])")) for name in BINARY)
