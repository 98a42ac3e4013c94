"""A protocol that streams, for tests: "chat completions" whose words are numbers, over SSE and gRPC.

Each chunk is one run of the model on the number before: `{"model": "plus", "start": 0, "count": 3}` with a model that adds 1 gives
1, 2, 3. Run as a program it is an inference process that speaks this protocol beside the stock ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from aiaas_magics.backend.serving import __main__ as program
from aiaas_magics.backend.serving import protocols
from aiaas_magics.backend.serving.http.rest_protocols import REST_PROTOCOLS, routes_of
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.process.inference_process import ServedProtocols
from aiaas_magics.backend.serving.protocols import BadValue, Headers, Request, Response, Run, StreamCall, error
from aiaas_magics.backend.serving.protocols.operations import JSON_TYPE, Missed, Operation, OperationRoute, PathTable
from aiaas_magics.core import wire

NAME: Final = "chat"
TITLE: Final = "Chat"
ABOUT: Final = "A protocol that streams, for tests"
JOURNAL: Final = "AIAAS_TEST_JOURNAL"  # a file that gets a line for each chunk that was made, and for each stream that was closed


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    start: float = 0.0
    count: int = 3
    pause_s: float = 0.0
    padding: int = 0  # characters in each chunk
    timeout_s: float = math.inf
    fails_at: int = -1  # the chunk in whose place the protocol raises
    stream: bool = True
    cuts: bool = False  # whether a fault cuts the connection, instead of being said in the stream


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """A `StreamCall`. Its chunks are events, or whole messages for gRPC."""

    chat: Chat
    version: Version
    over_grpc: bool = False
    headers: Headers = ()
    content_type: bytes = b"text/event-stream"

    @property
    def rows(self) -> int:
        return self.chat.count

    @property
    def timeout_s(self) -> float:
        return self.chat.timeout_s

    async def chunks(self, run: Run) -> AsyncGenerator[bytes, None]:
        chat = self.chat
        name, x = self.version.spec.inputs[0].name, np.array([[chat.start]], "float32")
        try:
            for index in range(chat.count):
                if index == chat.fails_at:
                    raise BadValue("No more words", 400)
                x = np.asarray((await run({name: x}, 1))[self.version.spec.outputs[0].name])
                document = orjson.dumps({"version": self.version.number, "word": float(x[0, 0]), "padding": "x" * chat.padding})
                journal(f"made {index}")
                yield document if self.over_grpc else b"data: %b\n\n" % document
                await asyncio.sleep(chat.pause_s)
            if not self.over_grpc:
                yield b"data: [DONE]\n\n"
        finally:
            journal("closed")

    def closing_chunk(self, refusal: Response) -> bytes | None:
        return None if self.chat.cuts else b"event: error\ndata: %b\n\n" % refusal.body


def journal(line: str) -> None:
    with open(os.environ[JOURNAL], "a", encoding="ascii") as file:
        file.write(f"{line}\n")


def parse(body: bytes) -> Chat:
    try:
        return wire.decode(body, Chat)
    except wire.Malformed as fault:
        raise BadValue(f"Not a chat: {fault}") from fault


def locate(route: OperationRoute, request: Request) -> OperationRoute:
    return replace(route, name=parse(request.body).model)


def read_stream(_route: OperationRoute, request: Request, version: Version) -> StreamCall | None:
    chat = parse(request.body)
    if chat.count < 1:
        raise BadValue("count is at least 1")
    return ChatCall(chat=chat, version=version) if chat.stream else None


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeCall:
    """One step, in one piece."""

    tensors: Mapping[str, np.ndarray]
    rows: int = 1
    timeout_s: float = math.inf

    def response(self, outputs: Mapping[str, np.ndarray]) -> Response:
        (output,) = outputs.values()
        return Response(200, orjson.dumps({"word": float(output[0, 0])}))


def read(_route: protocols.InferenceRoute, request: Request, version: Version) -> WholeCall:
    return WholeCall(tensors={version.spec.inputs[0].name: np.array([[parse(request.body).start]], "float32")})


def look(_registry: Registry, _route: protocols.InferenceRoute, _request: Request) -> Response:
    return Response(200, b"{}")


def not_found(_route: protocols.InferenceRoute) -> Response:
    return error(404, "No such model.")


not_ready = not_found


def unknown_label(label: str) -> Response:
    return error(404, f"No label {label}.")


def no_route(method: str, _path: str, missed: Missed) -> Response | None:
    return error(405, f"{method} is not taken. Chat takes {missed.allowed[0]}.") if missed.allowed else None


PATHS: Final = PathTable(
    (
        # Beside the paths of TensorFlow Serving, as OpenAI has it.
        Operation(
            "POST",
            "/v1/chat/completions",
            "chat",
            "Words, one after the other",
            infers=True,
            body="Chat",
            gives=("text/event-stream", JSON_TYPE),
            read_stream=read_stream,
            locate=locate,
        ),
        Operation("GET", "/v1/chat", "chats", "That there is chat"),
    )
)


def grpc_methods() -> dict[str, Any]:
    """A method that answers one message with many: `StringValue`s of JSON."""
    from google.protobuf.wrappers_pb2 import StringValue

    from aiaas_magics.backend.serving.grpc.methods import InferStream, MessageRoute

    def route(message: Any) -> MessageRoute:
        return MessageRoute(message=message, name=parse(message.value.encode()).model)

    def stream(asked: MessageRoute, version: Version) -> StreamCall:
        chat = msgspec.structs.replace(parse(asked.message.value.encode()), timeout_s=asked.timeout_s)
        return ChatCall(chat=chat, version=version, over_grpc=True)

    return {"/test.Chat/Complete": InferStream(takes=StringValue, rest=sys.modules[__name__], route=route, stream=stream)}  # type: ignore[arg-type]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        here = sys.modules["tests.backend.serving.support.chat_protocol"] = sys.modules[__name__]
        sys.exit(program.main(protocols=ServedProtocols(routes=routes_of((*REST_PROTOCOLS, here)), grpc_methods=grpc_methods)))  # type: ignore[list-item]
