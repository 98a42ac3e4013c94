"""Our attributions beside those of other people's libraries, unmodified, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.conformance.environments import HERE, python_of

ROUNDING = 1e-5
# Both take hundreds of steps of a plain sum along the path, which we compare with 64 points of a quadrature.
QUADRATURE = 0.01
# xplique enlarges its map by cubic interpolation, we by linear; tf-keras-vis is compared before it is enlarged.
INTERPOLATION = 0.1
ALLOWED = {
    "xplique": {
        "saliency": ROUNDING,
        "gradient_input": ROUNDING,
        "integrated_gradients": QUADRATURE,
        "gradcam": INTERPOLATION,
        "occlusion": ROUNDING,
    },
    "tf_keras_vis": {"gradcam": ROUNDING, "saliency": ROUNDING},
    "saliency": {"integrated_gradients": QUADRATURE, "saliency": ROUNDING},
}


@pytest.mark.parametrize("library", ALLOWED)
def test_attributions_are_those_of(library: str) -> None:
    python = python_of("explanation_references", beside_main=True)
    script = HERE / "clients" / "explanation_references.py"
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3"}

    done = subprocess.run([str(python), str(script), library], capture_output=True, text=True, timeout=280, env=environment)

    assert done.returncode == 0, done.stderr[-4000:]
    apart = json.loads(done.stdout.splitlines()[-1])[library]
    assert apart.keys() == ALLOWED[library].keys()
    assert {method: value for method, value in apart.items() if not value <= ALLOWED[library][method]} == {}
