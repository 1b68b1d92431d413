"""An HTTP or HTTPS server on this machine, for as long as a test asks it."""

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], certificate: Path | None = None) -> Iterator[int]:
    """Serve `handler` on a free port of 127.0.0.1, which is given; over TLS where there is a `certificate`."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield http.server_address[1]
    finally:
        http.shutdown()
        http.server_close()


def certified(path: Path, monkeypatch, *names: str) -> Path:
    """Write key and certificate of 127.0.0.1 and the host `names` to `path`, and let this process trust it alone."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    hosts = ",".join(["IP:127.0.0.1", *(f"DNS:{name}" for name in names)])
    request = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext subjectAltName={hosts}"
    parts = [path.with_suffix(".key"), path.with_suffix(".crt")]
    command = [*request.split(), "-keyout", parts[0], "-out", parts[1]]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text("".join(part.read_text() for part in parts))
    monkeypatch.setenv("SSL_CERT_FILE", str(parts[1]))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    return path
