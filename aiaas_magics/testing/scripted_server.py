"""Scripted server: the real server with workers that play scripts and an inference process that is none.

    python -m aiaas_magics.testing.scripted_server --state DIR [--local] [--idle-minutes M] [--launcher-idle-s S] [--pool stub]

Owns nothing but the choice of parts.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from aiaas_magics.backend.server.main import ServerOptions, serve
from aiaas_magics.backend.workers.pools import POOLS
from aiaas_magics.core import settings
from aiaas_magics.core.errors import AiaasError
from aiaas_magics.core.plain_text import log_to
from aiaas_magics.testing.stub_inference import StubInference
from aiaas_magics.testing.stub_pool import StubPool

SCRIPTED = ("--entry", "aiaas_magics.testing.scripted_worker:main", "--preload", "aiaas_magics.testing.scripted_worker")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m aiaas_magics.testing.scripted_server")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--idle-minutes", type=float)
    parser.add_argument("--launcher-idle-s", type=float)
    parser.add_argument("--pool", default="local")
    arguments = parser.parse_args()
    log_to(sys.stderr, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = ServerOptions(
        state=arguments.state,
        local=arguments.local,
        pool=arguments.pool,
        pools={**POOLS, "stub": StubPool},
        idle_minutes=arguments.idle_minutes,
        launcher_options=SCRIPTED if arguments.launcher_idle_s is None else (*SCRIPTED, "--idle-s", str(arguments.launcher_idle_s)),
        keep_free=os.environ.get(settings.KEEP_FREE, ""),
        inference=StubInference,
    )
    try:
        serve(options)
    except AiaasError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
