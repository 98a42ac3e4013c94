"""A package by name, because a library on the path brings a `tests` of its own (keras2onnx with tf2onnx)."""
