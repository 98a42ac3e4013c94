"""`python -m aiaas_magics` is `aiaas`."""

from __future__ import annotations

from aiaas_magics.cli import main

if __name__ == "__main__":
    main(prog_name="aiaas")
