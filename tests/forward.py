"""A forward proxy for the tests: it opens tunnels (CONNECT) to hosts, of which it alone knows where they are."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import cast

HEAD_BYTES = 65_536


class ForwardProxy(ThreadingTCPServer):
    """Opens tunnels until the context ends; `tunnels` has the host and port of each."""

    daemon_threads = True

    def __init__(self, hosts: Mapping[str, str], credentials: str = "") -> None:
        """Take the address behind each host name, and the value of Proxy-Authorization that it asks for, if any."""
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.hosts = hosts
        self.credentials = credentials
        self.tunnels: list[str] = []

    @contextmanager
    def opened(self) -> Iterator["ForwardProxy"]:
        """Take connections until the context ends."""
        with self:
            thread = threading.Thread(target=self.serve_forever, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self.shutdown()
                thread.join()


class _Tunnel(BaseRequestHandler):
    request: socket.socket

    def handle(self) -> None:
        proxy = cast("ForwardProxy", self.server)
        head = b""
        while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES:
            if not (received := self.request.recv(HEAD_BYTES)):
                return
            head += received
        lines = head.decode("latin-1").split("\r\n")
        method, target, *_version = lines[0].split(" ")
        if method != "CONNECT":
            self.request.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return
        if proxy.credentials and f"proxy-authorization: {proxy.credentials}".lower() not in map(str.lower, lines):
            self.request.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        proxy.tunnels.append(target)
        host, _, port = target.rpartition(":")
        with suppress(OSError), socket.create_connection((proxy.hosts[host], int(port))) as there:
            self.request.sendall(b"HTTP/1.1 200 Connection Established\r\n\r\n")
            threading.Thread(target=_pass_on, args=(there, self.request), daemon=True).start()
            _pass_on(self.request, there)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(HEAD_BYTES):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
