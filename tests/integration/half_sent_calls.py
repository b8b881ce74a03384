#!/usr/bin/env python3
"""A caller without a session that sends many large messages, all but the last byte of each.

    half_sent_calls.py SOCKET CALLS MESSAGE_BYTES

Speaks HTTP/2 by itself: a gRPC client finishes what it begins. Ends when nothing more can be sent or the
daemon cuts it off; prints how many bytes the daemon took.
"""

from __future__ import annotations

import select
import socket
import struct
import sys

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
ACK, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4
FRAME_BYTES_MAX = 16384
QUIET_SECONDS = 2.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header_block() -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": "/kavern.v1.Kavern/Match", ":authority": "localhost",
              "content-type": "application/grpc", "te": "trailers"}
    # Each a literal that is not indexed, without Huffman coding.
    return b"".join(bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
                    for name, value in fields.items())


class Caller:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.unsent = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        self.unread = b""
        self.window = self.initial_window = 65535  # of the connection; of a new stream
        self.windows: dict[int, int] = {}
        self.left: dict[int, int] = {}  # stream -> bytes to send, but for the last one
        self.taken = 0

    def begin(self, stream: int, message_bytes: int) -> None:
        start = b"\0" + struct.pack(">I", message_bytes)
        self.unsent += frame(HEADERS, END_HEADERS, stream, header_block()) + frame(DATA, 0, stream, start)
        self.window -= len(start)
        self.windows[stream] = self.initial_window - len(start)
        self.left[stream] = message_bytes - 1

    def fill(self) -> None:
        """Queues what the windows allow."""
        for stream in self.left:
            count = min(self.left[stream], self.windows[stream], self.window, FRAME_BYTES_MAX)
            if count > 0 and len(self.unsent) < 1 << 20:
                self.unsent += frame(DATA, 0, stream, bytes(count))
                self.left[stream] -= count
                self.windows[stream] -= count
                self.window -= count
                self.taken += count

    def turn(self) -> bool:
        """Sends and reads for once; False when nothing moves any more or the daemon hung up."""
        readable, writable, _ = select.select([self.socket], [self.socket] if self.unsent else [], [], QUIET_SECONDS)
        try:
            if writable:
                del self.unsent[:self.socket.send(self.unsent)]
            if readable:
                data = self.socket.recv(1 << 20)
                if not data:
                    return False
                self.unread += data
                self.handle_frames()
        except ConnectionError:
            return False
        return bool(readable or writable)

    def handle_frames(self) -> None:
        while len(self.unread) >= 9:
            end = 9 + int.from_bytes(self.unread[:3], "big")
            if len(self.unread) < end:
                return
            kind, flags = self.unread[3], self.unread[4]
            stream = int.from_bytes(self.unread[5:9], "big")
            self.handle(kind, flags, stream, self.unread[9:end])
            self.unread = self.unread[end:]

    def handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at:at + 6])
                if name == INITIAL_WINDOW_SIZE:
                    self.windows = {s: w + value - self.initial_window for s, w in self.windows.items()}
                    self.initial_window = value
            self.unsent += frame(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self.unsent += frame(PING, ACK, 0, payload)
        elif kind == WINDOW_UPDATE:
            if stream == 0:
                self.window += int.from_bytes(payload, "big")
            elif stream in self.windows:
                self.windows[stream] += int.from_bytes(payload, "big")
        elif kind == RST_STREAM:
            self.left.pop(stream, None)
            self.windows.pop(stream, None)


def main() -> int:
    path, calls, message_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    caller = Caller(path)
    for call in range(calls):
        caller.begin(2 * call + 1, message_bytes)
    while any(caller.left.values()) and caller.turn():
        caller.fill()
    print(caller.taken, flush=True)
    sys.stdin.readline()  # the connection stays until the test has looked
    return 0


if __name__ == "__main__":
    sys.exit(main())
