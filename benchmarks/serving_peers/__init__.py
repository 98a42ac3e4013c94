"""Servers that one would use instead, each as its documentation shows it, with the same ONNX file and one thread a session.

Each module is run by the interpreter of its own environment: `python MODULE.py PORT FOLDER`, and answers `POST` with the outputs
of `FOLDER/article.onnx` for `{"instances": [[...]]}` (MLServer: a request of the Open Inference Protocol). `serving` starts them.
"""
