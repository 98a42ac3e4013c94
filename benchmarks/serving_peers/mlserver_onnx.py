import asyncio
import sys

import numpy as np
from engine import Engine
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Article(MLModel):
    async def load(self) -> bool:
        self.engine = Engine(sys.argv[2])
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", np.asarray(self.engine(rows)))])


async def main():
    settings = Settings(
        host="127.0.0.1",
        http_port=int(sys.argv[1]),
        grpc_port=int(sys.argv[1]) + 1,
        metrics_port=int(sys.argv[1]) + 2,
        parallel_workers=0,
        debug=False,
    )
    await MLServer(settings).start([ModelSettings(name="article", implementation=Article)])


asyncio.run(main())
