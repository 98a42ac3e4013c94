"""Explain: why a model says so, and how far that can be trusted.

Owns the methods (`black_box` needs predictions and numpy only, `gradient` a Keras model on TensorFlow or JAX, `shap_adapter` the library),
the measurement of faithfulness and `Explanation`. `explain_model` is the entry for users. Where it runs (a job's workers, the inference
process) belongs to `backend`; drawing belongs to `plots`.
"""
