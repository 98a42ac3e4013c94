"""Log lines: the id of the request that a line belongs to, and lines as JSON for programs that collect logs.

Owns the form. What a line of text looks like belongs to `plain_text`.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, TextIO

from aiaas_magics.core import plain_text
from aiaas_magics.core.plain_text import visible

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JSON: Final = "json"
FORMATS: Final = ("text", JSON)
# Set for the task that answers a request, and so for all that this task does.
REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message, and where there are any, request and error (a traceback)."""

    def format(self, record: logging.LogRecord) -> str:
        members = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": visible(record.getMessage()),
        }
        if request := REQUEST_ID.get():
            members["request"] = request
        if record.exc_info:
            members["error"] = visible(self.formatException(record.exc_info))
        return json.dumps(members)


class _TextFormatter(plain_text.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        line, request = super().formatMessage(record), REQUEST_ID.get()
        return f"{line} (request {request})" if request else line


def log_lines_to(stream: TextIO, form: str) -> None:
    """Log from INFO up to `stream`, as "text" or "json"."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == JSON else _TextFormatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
