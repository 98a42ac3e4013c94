"""Command line of the inference process: `python -m aiaas_magics.backend.serving --state DIR`.

Owns parsing it, and handing it to `inference_process`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
from typing import Final

from aiaas_magics.backend.net.event_loop import fast_loop
from aiaas_magics.backend.serving.http.inference_app import BODY_BYTES, JSON_BYTES
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.process import inference_process
from aiaas_magics.backend.serving.process.inference_process import STOCK, InferenceOptions, ServedProtocols
from aiaas_magics.core.errors import AiaasError
from aiaas_magics.core.plain_text import log_to

# A large body of JSON is a million lists and no cycle: with the interpreter's own 700, looking for cycles takes as long as reading.
COMPUTE_VARIABLE: Final = "AIAAS_COMPUTE_S"
JSON_VARIABLE: Final = "AIAAS_JSON_BYTES"  # the server that starts this process hands its environment on
GARBAGE_AFTER: Final = 100_000  # objects more than before; measured: as quick as never


def main(arguments: list[str] | None = None, protocols: ServedProtocols = STOCK) -> int:
    """0 after an orderly end, 2 when it did not start. `protocols` are what the process speaks."""
    parser = argparse.ArgumentParser(
        prog="python -m aiaas_magics.backend.serving", description="Serve models that are loaded over a control socket."
    )
    parser.add_argument("--state", required=True, help="the server's state folder; files go into its subfolder 'serving'")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond loopback only with TLS")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 is that of last time, or any")
    parser.add_argument("--grpc-port", type=int, default=0, help="the same for gRPC")
    parser.add_argument("--tls-cert", default="", help="PEM file with the certificate")
    parser.add_argument("--tls-key", default="", help="PEM file with its key")
    parser.add_argument("--body-bytes", type=int, default=BODY_BYTES, help="the largest body that is taken")
    parser.add_argument(
        "--json-bytes",
        type=int,
        default=os.environ.get(JSON_VARIABLE, JSON_BYTES),
        help=f"the largest JSON of a prediction that is taken; also by {JSON_VARIABLE} in the server's environment",
    )
    parser.add_argument(
        "--compute-s",
        type=float,
        default=os.environ.get(COMPUTE_VARIABLE, Limits().compute_s),
        help=f"the longest time that a model computes a batch, in seconds; also by {COMPUTE_VARIABLE} in the server's environment",
    )
    parser.add_argument("--parent", type=int, default=0, help="process that starts this one, which ends if that is gone too early")
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="origin whose pages may ask; repeatable")
    parser.add_argument(
        "--trusted-key",
        dest="trusted_keys",
        action="append",
        default=[],
        metavar="KEY",
        help="public key that signs deployments; repeatable",
    )
    parser.add_argument("--no-fast-path", dest="fast_path", action="store_false", help="answer every request through ASGI, for tests")
    parsed = vars(parser.parse_args(arguments))
    os.umask(0o077)
    gc.set_threshold(GARBAGE_AFTER)
    log_to(sys.stderr, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        options = InferenceOptions(**parsed | {"cors": tuple(parsed["cors"]), "trusted_keys": tuple(parsed["trusted_keys"])})
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            runner.run(inference_process.run(options, protocols))
    except AiaasError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
