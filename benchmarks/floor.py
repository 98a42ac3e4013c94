"""The floor of serving in Python: a protocol that parses HTTP and the same body, and answers without computing: `PORT [json|binary]`.

JSON rows are parsed and the answer is a number; of a binary body the tensor is made. No guard, no routes, no limits, no order.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import numpy as np
import orjson

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\ncontent-type: application/json\r\n\r\n" + b'{"predictions":[[0]]}'


class Floor(asyncio.Protocol):
    binary = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        if not body:  # somebody asks whether we are there
            self._transport.write(ANSWER)
        elif self.binary:
            end = body.index(b"}]}") + 3
            asked = orjson.loads(body[:end])
            tensor = np.frombuffer(body, np.float32, offset=end).reshape(asked["inputs"][0]["shape"])
            answer = tensor[:, :1].tobytes()
            head = orjson.dumps({"outputs": [{"name": "y", "parameters": {"binary_data_size": len(answer)}}]})
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(head) + len(answer)) + head + answer)
        else:
            np.array(orjson.loads(body)["instances"], np.float32)
            self._transport.write(ANSWER)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    Floor.binary = sys.argv[2:] == ["binary"]
    uvloop.run(main(int(sys.argv[1])))
