"""`python -m aiaas_magics.backend.serving --state DIR`: the command line of the inference process.

Owns options, the log's form and the exit code. Serving belongs to `process`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

from aiaas_magics.backend.eventloop import fast_loop
from aiaas_magics.backend.serving.app import BODY_BYTES
from aiaas_magics.backend.serving.process import Options, run
from aiaas_magics.errors import AiaasError


def main(arguments: list[str] | None = None) -> int:
    """0 after an orderly end, 2 when it did not start."""
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
    parser.add_argument("--parent", type=int, default=0, help="process that starts this one, which ends if that is gone too early")
    given = parser.parse_args(arguments)
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        with asyncio.Runner(loop_factory=fast_loop()) as runner:
            runner.run(run(Options(**vars(given))))
    except AiaasError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
