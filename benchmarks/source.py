"""The source behind the proxies: answers every POST after a delay, and counts how many it was working on at once.

Usage: python -m benchmarks.source PORT. The delay is the last segment of the path in milliseconds (`/0`, `/20`), the
size of the answer the one before it (`/a/1500/20`). `GET /peak` says the most calls with a delay at once, and starts
counting anew.
"""

import asyncio
import sys
from typing import cast

import uvloop

END = b"\r\n\r\n"
ANSWER = (
    b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
    b'<r:answer xmlns:r="http://kszbcss.fgov.be/intf/Rehearsal/v1"><status><value>DATA_FOUND</value>'
    b"<code>MSG00000</code></status><person>%s</person></r:answer></s:Body></s:Envelope>"
)
"""One that says that all is well: else a proxy that reads answers takes them for technical faults, and stops bulk."""

now = peak = 0
answers: dict[int, bytes] = {}


def answer_of(size: int) -> bytes:
    """Return an answer whose body has `size` bytes: a SOAP message, where there is room for one."""
    if size not in answers:
        room = size - len(ANSWER) + 2
        body = ANSWER % (b"x" * room) if room >= 0 else b"x" * size
        answers[size] = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    return answers[size]


class Source(asyncio.Protocol):
    """One connection, kept alive; requests one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)
        self.head = b""
        self.missing = 0

    def data_received(self, data: bytes) -> None:
        """Answer when the body is complete."""
        if self.missing:
            self.missing -= len(data)
        else:
            head, found, body = (self.head + data).partition(END)
            self.head = head + found
            if not found:
                return
            at = head.lower().find(b"content-length:")
            self.missing = int(head[at + 15 :].split(b"\r\n", 1)[0]) - len(body) if at >= 0 else 0
        if not self.missing:
            head, self.head = self.head, b""
            self.work(head)

    def work(self, head: bytes) -> None:
        """Answer a request, now or later."""
        self.closes = b"\r\nconnection: close" in head.lower()
        path = head.split(b" ", 2)[1]
        if path == b"/peak":
            self.say_peak()
            return
        size, delay = (int(part) for part in path.rsplit(b"/", 2)[1:])
        if not delay:
            self.answer(size)
            return
        global now, peak
        now += 1
        peak = max(peak, now)
        asyncio.get_running_loop().call_later(delay / 1000, self.done, size)

    def done(self, size: int) -> None:
        """Finish a call that took its time."""
        global now
        now -= 1
        self.answer(size)

    def answer(self, size: int) -> None:
        """Answer, and close where that was asked."""
        self.transport.write(answer_of(size))
        if self.closes:
            self.transport.close()

    def say_peak(self) -> None:
        """Answer the question for the peak."""
        global peak
        text = b"%d" % peak
        peak = now
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))


async def main() -> None:
    """Serve until ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Source, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
