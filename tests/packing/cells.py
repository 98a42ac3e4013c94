# ruff: noqa: E501 - the cells are text
"""Cells with models of every kind that must travel: each defines `model`, compiled, and `arguments` of its fit."""

from __future__ import annotations

CELLS: dict[str, str] = {}

CELLS["the article's Sequential"] = """
model = keras.Sequential([layers.Input((6,)), layers.Dense(64, activation='relu'), layers.Dense(32, activation='relu'), layers.Dense(1, activation='sigmoid')])
model.compile(optimizer='adam', loss='binary_crossentropy', metrics=['accuracy'])
"""

CELLS["a Sequential that is not built"] = """
model = keras.Sequential([layers.Dense(8, activation='relu'), layers.BatchNormalization(), layers.Dense(1)])
model.compile(optimizer=keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True), loss='mse', metrics=['mae'])
"""

CELLS["several inputs and outputs by name, with an embedding and masks"] = """
a, b = keras.Input((6,), name='a'), keras.Input((5,), dtype='int32', name='b')
e = layers.LSTM(4)(layers.Embedding(10, 5, mask_zero=True)(b))
c = layers.BatchNormalization()(layers.Concatenate()([a, e]))
model = keras.Model({'a': a, 'b': b}, {'o1': layers.Dense(1, name='o1')(c), 'o2': layers.Dense(3, activation='softmax', name='o2')(c)})
model.compile(keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(1e-3, 10, .9)),
              {'o1': 'mse', 'o2': 'sparse_categorical_crossentropy'}, metrics={'o1': ['mae'], 'o2': ['accuracy']}, loss_weights={'o1': 0.3, 'o2': 1.0})
arguments.update(x={'a': x, 'b': rows.integers(0, 10, (70, 5)).astype('int32')}, y={'o1': y, 'o2': rows.integers(0, 3, 70)})
"""

CELLS["a list of inputs, shared layers and a model inside a model"] = """
tower = keras.Sequential([layers.Dense(4, activation='tanh'), layers.Dense(4)], name='tower')
left, right = keras.Input((6,)), keras.Input((6,))
merged = layers.Subtract()([tower(left), tower(right)])
model = keras.Model([left, right], layers.Dense(1)(ops.abs(merged) * 2.0 + 1.0))
model.compile('rmsprop', 'mse')
arguments.update(x=[x, x[::-1].copy()])
"""

CELLS["a subclassed model without get_config, with closures and a lambda"] = """
factor = 3.0
def scaled(v): return ops.relu(v) * factor
class Net(keras.Model):
    def __init__(self, width, activation, names):
        super().__init__()
        self.first = layers.Dense(width, activation=activation)
        self.blocks = [layers.Dense(width) for _ in range(2)]
        self.heads = {name: layers.Dense(1) for name in names}
        self.drop = layers.Dropout(0.5)
        self.scale = self.add_weight(shape=(), initializer='ones')
    def call(self, v, training=False):
        v = self.first(v)
        for block in self.blocks:
            v = block(v)
        return sum(head(self.drop(v, training=training)) for head in self.heads.values()) * self.scale
model = Net(8, lambda v: scaled(v), ['p', 'q'])
model.compile('adam', lambda t, p: ops.mean((t - p) ** 2) * factor, metrics=[keras.metrics.MeanAbsoluteError()])
"""

CELLS["everything the user can define"] = """
class Half(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None): return ops.full(shape, 0.5, dtype=dtype)
class Pull(keras.regularizers.Regularizer):
    def __init__(self, strength): self.strength = strength
    def __call__(self, w): return self.strength * ops.sum(ops.square(w - 1.0))
class Clamp(keras.constraints.Constraint):
    def __call__(self, w): return ops.clip(w, -0.4, 0.4)
class Scale(layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer=Half(), regularizer=Pull(0.01), constraint=Clamp(), name='w')
        self.seen = self.add_weight(shape=(), initializer='zeros', trainable=False, name='seen')
    def call(self, v):
        self.seen.assign_add(1.0)
        self.add_loss(0.001 * ops.sum(v ** 2))
        return v * self.w
class Gap(keras.losses.Loss):
    def __init__(self, power): super().__init__(); self.power = power
    def call(self, t, p): return ops.mean(ops.abs(t - p) ** self.power, axis=-1)
class Hits(keras.metrics.Metric):
    def __init__(self): super().__init__(name='hits'); self.n = self.add_weight(shape=(), initializer='zeros', name='n')
    def update_state(self, t, p, sample_weight=None): self.n.assign_add(ops.sum(ops.cast(ops.abs(ops.reshape(t, (-1, 1)) - p) < 0.5, 'float32')))
    def result(self): return self.n
class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, top): self.top = top
    def __call__(self, step): return self.top * ops.minimum(1.0, (ops.cast(step, 'float32') + 1.0) / 5.0)
class Push(keras.optimizers.Optimizer):
    def build(self, variables):
        if self.built: return
        super().build(variables)
        self.speed = [self.add_variable_from_reference(v, 'speed') for v in variables]
    def update_step(self, gradient, variable, learning_rate):
        s = self.speed[self._get_variable_index(variable)]
        self.assign(s, 0.5 * s - gradient * ops.cast(learning_rate, gradient.dtype))
        self.assign_add(variable, s)
model = keras.Sequential([layers.Dense(4, activity_regularizer='l2'), Scale(), layers.Dense(1)])
model.compile(Push(Ramp(0.01)), Gap(2.0), metrics=[Hits()])
arguments['y'] = y[:, None]
"""

CELLS["a train_step of the user's own, with two optimizers"] = """
class Pair(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(6), keras.Sequential([layers.Dense(4), layers.Dense(1)])
        self.tracker = keras.metrics.Mean(name='gap')
    def compile(self, first, second):
        super().compile()
        self.first, self.second = first, second
    @property
    def metrics(self): return [self.tracker]
    def call(self, v): return self.two(self.one(v))
    def train_step(self, data):
        v, t = data
        with tf.GradientTape(persistent=True) as tape:
            gap = ops.mean((self(v)[:, 0] - t) ** 2)
        self.first.apply_gradients(zip(tape.gradient(gap, self.one.trainable_variables), self.one.trainable_variables))
        self.second.apply_gradients(zip(tape.gradient(gap, self.two.trainable_variables), self.two.trainable_variables))
        self.tracker.update_state(gap)
        return {'gap': self.tracker.result()}
model = Pair()
model.compile(keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.01))
"""

CELLS["a loss that refers to the model itself"] = """
model = keras.Sequential([layers.Input((6,)), layers.Dense(3), layers.Dense(1)])
model.compile('sgd', lambda t, p: ops.mean((t - p) ** 2) + 0.01 * ops.sum(model.layers[0].kernel ** 2))
"""

CELLS["a network of three hundred layers"] = """
first = last = keras.Input((6,))
for _ in range(300):
    last = layers.Add()([last, layers.Lambda(lambda v: v * 0.001)(last)])
model = keras.Model(first, layers.Dense(1)(last))
model.compile('sgd', 'mse')
"""

CELLS["random layers, whose seeds go on"] = """
model = keras.Sequential([layers.Input((6,)), layers.GaussianNoise(0.1), layers.Dense(8), layers.Dropout(0.3, seed=5), layers.Dense(1)])
model.compile('adam', 'mse')
"""

CELLS["recurrent layers in wrappers"] = """
model = keras.Sequential([layers.Reshape((3, 2)), layers.Bidirectional(layers.GRU(3, return_sequences=True, dropout=0.2)), layers.TimeDistributed(layers.Dense(2)), layers.Flatten(), layers.Dense(1)])
model.compile('adam', 'mse')
"""

CELLS["images"] = """
model = keras.Sequential([layers.Rescaling(1 / 255.0), layers.RandomFlip(seed=3), layers.Conv2D(4, 3, activation='relu'), layers.MaxPooling2D(), layers.GlobalAveragePooling2D(), layers.Dense(3, activation='softmax')])
model.compile('adam', 'sparse_categorical_crossentropy', metrics=['accuracy'])
arguments.update(x=rows.integers(0, 255, (70, 8, 8, 3)).astype('uint8'), y=rows.integers(0, 3, 70))
"""

CELLS["an optimizer with everything on"] = """
model = keras.Sequential([layers.Input((6,)), layers.Dense(5), layers.Dense(1)])
model.compile(keras.optimizers.AdamW(0.01, clipnorm=1.0, use_ema=True, gradient_accumulation_steps=2, amsgrad=True), 'mse')
"""

CELLS["mixed precision"] = """
keras.config.set_dtype_policy('mixed_float16')
model = keras.Sequential([layers.Input((6,)), layers.Dense(8, activation='relu'), layers.Dense(1, dtype='float32')])
model.compile('adam', 'mse')
"""

CELLS["bfloat16 variables"] = """
keras.config.set_dtype_policy('bfloat16')
model = keras.Sequential([layers.Input((6,)), layers.Dense(20_000), layers.Dense(1)])
model.compile('sgd', 'mse')
"""

CELLS["float64"] = """
keras.config.set_floatx('float64')
model = keras.Sequential([layers.Input((6,)), layers.Dense(4, activation='tanh'), layers.Dense(1)])
model.compile('adam', 'mse')
arguments.update(x=x.astype('float64'), y=y.astype('float64'))
"""

CELLS["a tf.function, a tf.Variable and a constant of the user's"] = """
offset = tf.constant([0.5])
count = tf.Variable(0.0, trainable=False)
@tf.function
def shifted(v): return v + offset
class Shift(layers.Layer):
    def call(self, v):
        count.assign_add(1.0)
        return shifted(v)
model = keras.Sequential([layers.Dense(3), Shift(), layers.Dense(1)])
model.compile('sgd', 'mse')
"""

CELLS["texts"] = """
words = np.array([['red'], ['green'], ['blue'], ['red']] * 10, dtype=object)
lookup = layers.StringLookup(output_mode='one_hot')
lookup.adapt(words)
model = keras.Sequential([keras.Input((1,), dtype='string'), lookup, layers.Dense(1)])
model.compile('sgd', 'mse')
arguments.update(x=tf.constant(words), y=np.arange(40, dtype='float32'))
"""

CELLS["a model that was fitted before"] = """
model = keras.Sequential([layers.Input((6,)), layers.Dense(4, kernel_regularizer='l2'), layers.Dense(1)])
stopper = keras.callbacks.EarlyStopping(monitor='loss', patience=5)
model.compile('adam', 'mse', metrics=['mae'])
model.fit(x, y, verbose=0, callbacks=[stopper], validation_split=0.2)
model.evaluate(x, y, verbose=0)
model.predict(x, verbose=0)
arguments.update(callbacks=[stopper, keras.callbacks.ReduceLROnPlateau(monitor='loss', patience=0, min_delta=9.0), keras.callbacks.LambdaCallback(on_epoch_end=lambda e, l: None)])
"""

CELLS["weights for samples, and data to validate"] = """
model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])
model.compile('adam', 'mse', weighted_metrics=['mae'])
arguments.update(sample_weight=rows.uniform(size=70), validation_data=(x[:20], y[:20], np.ones(20)), validation_batch_size=7, validation_freq=2)
"""

CELLS["weights for classes, and a split to validate"] = """
model = keras.Sequential([layers.Input((6,)), layers.Dense(2, activation='softmax')])
model.compile('adam', 'sparse_categorical_crossentropy', metrics=['accuracy'])
arguments.update(y=y.astype('int64'), class_weight={0: 1.0, 1: 4.0}, validation_split=0.25, initial_epoch=1, epochs=3)
"""

CELLS["pandas"] = """
import pandas
table = pandas.DataFrame(x, columns=list('abcdef')).astype('float64')
model = keras.Sequential([layers.Dense(3), layers.Dense(1)])
model.compile('adam', 'mse')
arguments.update(x=table, y=pandas.Series(y, index=range(100, 170)), sample_weight=pandas.Series(np.ones(70)))
"""

CELLS["tensors, and steps instead of a batch size"] = """
model = keras.Sequential([layers.Dense(3), layers.Dense(1)])
model.compile('adam', 'mse')
del arguments['batch_size']
arguments.update(x=tf.constant(x), y=tf.constant(y), steps_per_epoch=5)
"""
