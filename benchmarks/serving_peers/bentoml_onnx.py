"""Run through `bentoml serve`: the module is imported there, so the folder comes by the environment."""

import os
import sys

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    os.environ |= {"PEER_FOLDER": sys.argv[2], "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": here}
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_onnx:Article", "--working-dir", here]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", sys.argv[1]])

import bentoml
from engine import Engine


@bentoml.service(workers=1, traffic={"timeout": 30})
class Article:
    def __init__(self):
        self.engine = Engine(os.environ["PEER_FOLDER"])

    @bentoml.api
    def predict(self, instances: list[list[float]]) -> dict:
        return {"predictions": self.engine(instances)}
