"""Stubs that we ship: what stands in for a part that is slow, or not there, in somebody's tests.

Owns nothing of the product; the product imports nothing from here.
"""

from __future__ import annotations

from aiaas_magics.testing.fake_clock import FakeClock

__all__ = ["FakeClock"]
