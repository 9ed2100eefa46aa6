"""A real HTTP server on 127.0.0.1 that serves one file of weights, well or badly, and remembers who asked for what."""

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Serving:
    """What the server does; a test changes it and reads ``asked``.

    ``breaks``: bytes after which each answer in turn ends its connection; ``statuses``: what the next answers are
    instead; ``length``: what Content-Length says; ``ranges``: whether parts are served; ``piece_pause``: seconds
    between pieces of a kilobyte; ``silence``: seconds in front of each answer.
    """

    content: bytes
    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    length: int | None = None
    ranges: bool = True
    validators: bool = True
    version: str = "1"
    endless: bool = False
    content_type: str = "application/octet-stream"
    location: str = ""
    piece_pause: float = 0.0
    silence: float = 0.0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    port: int = 0

    def url(self, name="weights.pth"):
        return f"http://127.0.0.1:{self.port}/{name}"

    @property
    def parts(self):
        """The Range of each request, None for a whole one."""
        return [headers.get("Range") for _, headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(b"")

    def do_CONNECT(self):  # as a proxy that lets nobody through
        self.server.serving.asked.append((self.path, dict(self.headers)))
        self._answer(b"", 403)

    def do_GET(self):
        serving = self.server.serving
        serving.asked.append((self.path, dict(self.headers)))
        time.sleep(serving.silence)
        if serving.statuses:
            return self._answer(b"no", serving.statuses.pop(0))
        if serving.location:
            self.send_response(302)
            self.send_header("Location", serving.location)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        etag = f'"{serving.version}"'
        content, start = serving.content, 0
        wanted = self.headers.get("Range")
        if wanted and serving.ranges and self.headers.get("If-Range") in (None, etag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._answer(b"", 416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if serving.validators:
            self.send_header("ETag", etag)
        self.send_header("Content-Type", serving.content_type)
        if not serving.endless:
            length = len(content) if serving.length is None else serving.length
            self.send_header("Content-Length", str(length - start))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        body = content[start:]
        if serving.breaks:
            body = body[: serving.breaks.pop(0)]
        piece = 1024 if serving.piece_pause else 1 << 16
        for place in range(0, len(body), piece):
            self.wfile.write(body[place : place + piece])
            time.sleep(serving.piece_pause)
        while serving.endless:
            self.wfile.write(bytes(1 << 16))
        return None

    def _answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self):
        with suppress(OSError):  # the client has gone
            super().handle()

    def log_message(self, *_):
        pass


@contextmanager
def served(content=b""):
    """A server in a thread; gives its ``Serving``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.serving = Serving(content, port=server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.serving
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
