"""Connection of the inference server: HTTP/1.1 with limits, whose requests the ASGI app answers, and an orderly end.

Owns what a shutdown does to a connection, and reading on while an answer is streamed. Limits belong to `limited_http`, the fast path
below ASGI to `fast_path`.
"""

from __future__ import annotations

from typing import Final

from aiaas_magics.backend.net.limited_http import LimitedProtocol
from aiaas_magics.backend.serving.http.inference_app import App

LAST_LOOK_S: Final = 0.05  # guess: a request that was sent before the end is read by then


class InferenceConnection(LimitedProtocol):
    """A connection of the inference process."""

    app: App

    _ending = False  # a shutdown came

    def _begin(self) -> None:
        self._begin_asgi()
        if self._ending:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Answer what came or has begun to come, and close with the last answer; with nothing of that, in a moment."""
        self._ending = True
        if self._has_begun():
            return  # it is the last one
        if self._is_free():
            self._end_when_idle()
        else:
            self.cycle.keep_alive = False

    def _end_when_idle(self) -> None:
        self.loop.call_later(LAST_LOOK_S, self._close_if_idle)

    def _has_begun(self) -> bool:
        """Whether a request is being read that is nobody's yet."""
        return not self._between and self._in_head

    def _is_unused(self) -> bool:
        """Whether no request is being read or answered."""
        return self._is_free() and not self._has_begun()

    def _close_if_idle(self) -> None:
        if self._is_unused():
            self.transport.close()

    def _may_read(self) -> bool:
        # Behind an answer that is streamed nothing else would say that its reader has left.
        return super()._may_read() or (not self._is_over and not self.pipeline and self._is_streaming())

    def _is_streaming(self) -> bool:
        cycle = self.cycle
        return bool(cycle is not None and cycle.response_started and not cycle.response_complete and not cycle.more_body)

    @property
    def _unread_s(self) -> float:
        return self.app.body_s
