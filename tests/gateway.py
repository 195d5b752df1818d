"""A real nginx in front of a Prefect server, with TLS by an authority of its own and a path prefix, for the tests."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from watchdog import end_with_us

FRAME = """
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
daemon off;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/key.pem;
{location}
    }}
}}
"""


@dataclass(frozen=True)
class Gateway:
    """A running nginx."""

    address: str
    certificate: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets to reach the server through it."""
        return {"PREFECT_API_URL": f"{self.address}/prefect/api", "PREFECT_API_SSL_CERT_FILE": str(self.certificate)}


@contextmanager
def gateway(upstream: str, location: str, folder: Path, host: str = "localhost") -> Iterator[Gateway]:
    """Pass on what `location` says, whose server is at `upstream`, until the context ends. Without nginx, skip the test.

    Its certificate is for `host`.
    """
    path = f"{os.environ['PATH']}:/usr/sbin"
    nginx, openssl = shutil.which("nginx", path=path), shutil.which("openssl", path=path)
    if not nginx or not openssl:
        pytest.skip("there is no nginx command, or no openssl")
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subject = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    subprocess.run(command, check=True, capture_output=True)
    location = location.replace("http://127.0.0.1:4200", upstream)
    (folder / "nginx.conf").write_text(FRAME.format(folder=folder, port=port, location=location), encoding="utf-8")
    with (folder / "output").open("w") as output:
        process = subprocess.Popen([nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder)], stdout=output, stderr=output)
    end_with_us(process.pid)
    try:
        for _poll in range(200):
            assert process.poll() is None, (folder / "output").read_text(encoding="utf-8")
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Gateway(f"https://{host}:{port}", folder / "certificate.pem", folder)
    finally:
        process.terminate()
        process.wait()
