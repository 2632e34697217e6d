"""HTTP/1.1 as bytes, and durations as providers write them. It has not heard of limits."""

from __future__ import annotations

from typing import NamedTuple

MILLISECOND = 1_000_000  # nanoseconds


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes


def read_request(buffer: bytearray) -> Request | None:
    """Takes one whole request off the buffer; `None` until it is there; ValueError where it is not HTTP."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    first, *lines = bytes(buffer[:head_end]).split(b"\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    method, target, _ = first.decode("ascii").split(" ")
    start = head_end + 4
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        chunked = read_chunks(buffer, start)
        if chunked is None:
            return None
        body, end = chunked
    else:
        end = start + int(headers.get(b"content-length", b"0"))
        if len(buffer) < end:
            return None
        body = bytes(buffer[start:end])
    del buffer[:end]
    return Request(method, target.partition("?")[0], headers, body)


def read_chunks(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    """A chunked body from `start` (RFC 9112, section 7.1) and where it ends; `None` until all is there."""
    parts: list[bytes] = []
    while True:
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            return None
        size = int(bytes(buffer[start:line_end]).partition(b";")[0], 16)
        if size == 0:
            while (trailer_end := buffer.find(b"\r\n", line_end + 2)) > line_end + 2:
                line_end = trailer_end
            return None if trailer_end < 0 else (b"".join(parts), trailer_end + 2)
        if len(buffer) < line_end + 2 + size + 2:
            return None
        parts.append(bytes(buffer[line_end + 2 : line_end + 2 + size]))
        start = line_end + 2 + size + 2


def go_duration(ns: int) -> str:
    """A duration as Go prints it, rounded up to milliseconds: `17ms`, `3.5s`, `6m0s`, `1h2m3.5s`."""
    ms = -(-ns // MILLISECOND)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{ms // 1000}.{ms % 1000:03d}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else "") + seconds
