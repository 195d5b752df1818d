"""A way to a server on which deletions wait until the test lets them go: what happens meanwhile happens in mid-run.

It also listens to what the server is told.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import cast

DELETION = b"DELETE /api/artifacts/"


class Gate(ThreadingTCPServer):
    """Passes everything on to the server at an address, unless it is told to hold deletions.

    Attributes:
        address: Where it listens.
        heard: What the server was told.
    """

    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.heard = bytearray()
        self.server_port = int(address.rpartition(":")[2])
        self._changed = threading.Condition()
        self._allowed = inf
        self._waiting = 0

    @contextmanager
    def opened(self) -> Iterator["Gate"]:
        """Take connections until the context ends."""
        with self:
            thread = threading.Thread(target=self.serve_forever, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self.let_go()
                self.shutdown()
                thread.join()

    def hold_after(self, deletions: int) -> None:
        """Let so many more deletions through, and no further ones."""
        with self._changed:
            self._allowed = deletions

    def let_go(self) -> None:
        """Let all deletions through, those of clients that are still there."""
        with self._changed:
            self._allowed = inf
            self._changed.notify_all()

    def wait_until_held(self, timeout: float) -> None:
        """Wait until a deletion waits here."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting > 0, timeout), f"no deletion is held within {timeout:g} s"

    def pass_deletion(self) -> None:
        """Wait until one more deletion may pass."""
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._allowed > 0)
            self._waiting -= 1
            self._allowed -= 1


class _Passage(BaseRequestHandler):
    request: socket.socket

    def handle(self) -> None:
        gate = cast("Gate", self.server)
        with suppress(OSError), socket.create_connection(("127.0.0.1", gate.server_port)) as there:
            threading.Thread(target=_pass_on, args=(there, self.request), daemon=True).start()
            # Prefect's client sends a request at a time on a connection, and its beginning at once.
            while data := self.request.recv(65536):
                gate.heard.extend(data)
                if data.startswith(DELETION):
                    gate.pass_deletion()
                    if not _is_there(self.request):
                        break
                there.sendall(data)
            there.shutdown(socket.SHUT_RDWR)


def _pass_on(there: socket.socket, here: socket.socket) -> None:
    with suppress(OSError):
        while data := there.recv(65536):
            here.sendall(data)
        here.shutdown(socket.SHUT_RDWR)


def _is_there(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
