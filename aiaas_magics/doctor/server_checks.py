"""Server checks: what can be asked of the server that a notebook is connected to: that it answers, its clock, its certificate.

Owns those checks. Nothing is started by them.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from aiaas_magics.client import certificates
from aiaas_magics.client.transport import Transport
from aiaas_magics.core.errors import AiaasError
from aiaas_magics.doctor.finding import Finding, fails, note, ok

SKEW_S: Final = 5.0  # a date of HTTP has whole seconds, and its way takes some; guess
BAD_SKEW_S: Final = 300.0  # certificates and expiring tokens are judged wrongly; guess
DAY_S: Final = 24 * 3600.0
SOON_DAYS: Final = 14


def check_server(url: str, token: str) -> Iterator[Finding]:
    """The findings about the server at `url`."""
    try:
        with Transport(url, token=token) as transport:
            before_s = time.time()
            date = transport.date()
            skew = clock_finding(date, now_s=(before_s + time.time()) / 2)
    except AiaasError as error:
        text, _, move = str(error).partition(". ")
        yield fails("server", text, move or "Check that it runs: aiaas status")
    else:
        yield ok("server", f"{url} answers")
        yield skew
    if url.startswith("https:"):
        yield certificate_at(url)


def clock_finding(date: str, *, now_s: float) -> Finding:
    """The server's clock, as a date of HTTP, against ours."""
    try:
        skew_s = parsedate_to_datetime(date).timestamp() + 0.5 - now_s
    except ValueError:
        return note("clock", "the server does not say what time it is")
    if abs(skew_s) < SKEW_S:
        return ok("clock", "the server's differs by less than 5 s")
    text = f"the server's is {abs(skew_s):,.0f} s {'ahead' if skew_s > 0 else 'behind'}"
    fix = "Set both clocks by NTP (`timedatectl set-ntp true`)."
    return note("clock", text, fix) if abs(skew_s) < BAD_SKEW_S else fails("clock", text, fix)


def certificate_at(url: str) -> Finding:
    fix = "Put a new certificate in its place, and start `aiaas serve` again."
    try:
        until_s = certificates.valid_until_s(url)
    except ssl.SSLCertVerificationError as error:
        return fails("certificate", f"of {url} is not valid: {certificates.WHY.get(error.verify_code, error.verify_message)}", fix)
    except OSError as error:
        return fails("certificate", f"of {url} could not be read ({error})", "Check the address: does it speak TLS?")
    days = (until_s - time.time()) / DAY_S
    until = datetime.fromtimestamp(until_s, UTC).strftime("%Y-%m-%d")
    text = f"of {url} is valid until {until}, for {days:,.0f} more days"
    return note("certificate", text, fix) if days < SOON_DAYS else ok("certificate", text)
