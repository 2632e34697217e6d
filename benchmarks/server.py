"""A server without limits that answers at once: what is left to measure is the client.

    python -m benchmarks.server PORT_FILE

It reads just enough HTTP/1.1 to know where a request ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import cast

from benchmarks.sending import run_in_loop

BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "fast-1",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "an answer"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 43, "completion_tokens": 30, "total_tokens": 73},
    }
).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)
) + BODY


class Connection(asyncio.Protocol):
    """Answers each request that has come whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (head_end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:head_end].lower()
            _, _, length = head.partition(b"\r\ncontent-length:")
            end = head_end + 4 + int(length.partition(b"\r\n")[0] or 0)
            if len(self.buffer) < end:
                return
            self.buffer = self.buffer[end:]
            self.transport.write(ANSWER)


async def serve(port_file: Path) -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
    part = port_file.with_suffix(".part")
    part.write_text(str(listener.sockets[0].getsockname()[1]))
    part.replace(port_file)
    await listener.serve_forever()


if __name__ == "__main__":
    run_in_loop(serve(Path(sys.argv[1])))
