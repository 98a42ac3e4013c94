import os
import sys
import time

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from engine import Engine
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=64)
class Article:
    def __init__(self, folder):
        self.engine = Engine(folder)

    async def __call__(self, request: Request):
        return {"predictions": self.engine((await request.json())["instances"])}


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.path.dirname(__file__)}})
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Article.bind(sys.argv[2]), route_prefix="/predict")
while True:
    time.sleep(60)
