"""A server of our own that does what a list says."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


def chat(text, usage=(7, 3)):
    """The body of an answer to a conversation."""
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if usage else None
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "usage": counts}


class Faulty(ThreadingHTTPServer):
    """Answers by ``script``: one entry a request, the last one for all that follow.

    An entry is a dict (JSON), bytes (as they are), a status code, (status, dict, headers), "hang" or "cut".
    ``requests`` keeps path, body and headers of what came; ``at_once`` the most requests that were open together.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.requests, self.open, self.at_once = [chat("yes")], [], 0, 0
        self.lock, self.over = threading.Lock(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Clients that give up are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._serve(None)

    def do_POST(self):
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *_):
        pass

    def _serve(self, body):
        server = self.server
        with server.lock:
            entry = server.script[min(len(server.requests), len(server.script) - 1)]
            server.requests.append((self.path, body, dict(self.headers)))
            server.open += 1
            server.at_once = max(server.at_once, server.open)
        try:
            self._do(entry(body) if callable(entry) else entry)
        finally:
            with server.lock:
                server.open -= 1

    def _do(self, entry):
        if entry == "hang":
            self.server.over.wait(5)
            return
        status, content, headers = entry if isinstance(entry, tuple) else (200, entry, {})
        if isinstance(entry, int):
            status, content = entry, {"error": {"message": f"status {entry}"}}
        raw = b'{"choices": [' if entry == "cut" else content if isinstance(content, bytes) else json.dumps(content)
        raw = raw.encode() if isinstance(raw, str) else raw
        time.sleep(0.01)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw) + (50 if entry == "cut" else 0)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Running, with a folder of the test for the answers that are kept."""
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    with Faulty() as faulty:
        thread = threading.Thread(target=faulty.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield faulty
        faulty.over.set()
        faulty.shutdown()
        thread.join()
