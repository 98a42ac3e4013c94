"""Testing: stubs that we ship, in place of parts that are slow or absent in a test.

Owns nothing of the product; the product imports nothing from here.
"""

from __future__ import annotations

from aiaas_magics.testing.fake_clock import FakeClock

__all__ = ["FakeClock"]
