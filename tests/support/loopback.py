"""What the stand-in servers share: one HTTP server on loopback, serving while its context is open."""

from __future__ import annotations

import enum
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, TypeVar

Server = TypeVar("Server", bound="Loopback")


class Fault(enum.Enum):
    """What goes wrong with one request of a file. Not every server knows every fault."""

    half = "the connection ends in the middle"
    silence = "half of the file, then nothing, and the connection stays"
    error = "the server answers 500"
    missing = "the server answers 404"
    flipped = "one byte is another one"
    elsewhere = "a redirect to the file"
    no_range = "the whole file, whatever was asked for"
    longer = "more bytes than were announced"
    huge = "ten terabytes are announced"
    other_part = "another part of the file than was asked for"


class Loopback:
    """A server on a free port. Its handler finds it as `owner`.

    Attributes:
        url: its address.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"owner": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self: Server) -> Server:
        """Starts serving."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()


class QuietHandler(BaseHTTPRequestHandler):
    """Prints nothing: the servers keep their requests."""

    owner: Any

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
