"""JSON over HTTP to one server, patient with what may pass and clear about what will not.

Sent again, after a wait that doubles each time: what the server could not do now (408, 409, 425, 429, 5xx, for as long
as its ``Retry-After`` says), broken connections, silence, answers that are no JSON. Everything else ends at once.
"""

from __future__ import annotations

import http.client
import json
import math
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

PASSING = frozenset({408, 409, 425, 429})
LARGEST = 16_000_000
"""Bytes of an answer."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, whatever the server asks for."""


class EndpointError(ValueError):
    """The server cannot be reached, refuses, or answers something else than was asked; the message says what to do."""


class _Passing(Exception):
    """What may be gone at the next try."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """One server.

    Args:
        base_url: such as ``http://localhost:8000/v1``; without a path, ``/v1`` is added.
        api_key: sent as bearer token, and never shown or stored.
        timeout: seconds of silence after which a try has failed.
        retries: how often a request is sent again.
        backoff: seconds before the first of them; each further wait is twice as long.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, timeout: float = 60.0, retries: int = 4, backoff: float = 0.5
    ) -> None:
        self.base_url = checked_url(base_url)
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout={timeout}: must be a positive number of seconds")
        if retries < 0:
            raise ValueError(f"retries={retries}: must be at least 0")
        if not (math.isfinite(backoff) and backoff >= 0):
            raise ValueError(f"backoff={backoff}: must be 0 or a positive number of seconds")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
            raise ValueError("api_key holds blanks around it, or characters that no key has: copy it again")
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self._key = api_key
        self._opener = urllib.request.build_opener(_NoRedirect)

    def request(
        self, path: str, body: Mapping[str, Any] | None = None, on_retry: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """The JSON object that the server answers to a POST of ``body``, or to a GET without one.

        Raises EndpointError.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._once(path, body)
            except _Passing as trouble:
                if attempt == self.retries:
                    tries = f"{attempt + 1} tries" if attempt else "one try"
                    raise self._error(f"{trouble}, after {tries}; is this the server, and is it running?") from trouble
                on_retry()
                time.sleep(min(max(self.backoff * 2**attempt, trouble.wait), LONGEST_WAIT))
        raise AssertionError("unreachable")

    def _once(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "foveal"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base_url}/{path}", data, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                raw = response.read(LARGEST + 1)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from error
        except TimeoutError as error:
            raise _Passing(f"no answer within {self.timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        if len(raw) > LARGEST:
            raise self._error(f"the answer is longer than {LARGEST:,} bytes; ask for fewer tokens")
        try:
            answer = json.loads(raw)
        except ValueError as error:
            raise _Passing(f"the answer is no JSON: {_start(raw)}") from error
        if not isinstance(answer, dict):
            raise self._error(f"the answer is no JSON object: {_start(raw)}; is this an OpenAI-compatible server?")
        return answer

    def _unreachable(self, error: Exception) -> Exception:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return self._error(f"its certificate does not hold ({reason.verify_message}); check the address")
        if isinstance(reason, TimeoutError):
            return _Passing(f"no answer within {self.timeout:g} s")
        return _Passing(f"no connection ({reason or type(reason).__name__})")

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status means: an EndpointError, or `_Passing`."""
        with error:
            try:
                said = _message(error.read(10_000))
            except (OSError, http.client.HTTPException):
                said = ""
        reason = f"HTTP {error.code} {error.reason}" + (f": {self._without_key(said)}" if said else "")
        if error.code in PASSING or error.code >= 500:
            return _Passing(reason, _seconds(error.headers.get("Retry-After")))
        remedy = {401: "check the API key", 403: "check the API key", 404: "check the address and the model's name"}
        if 300 <= error.code < 400:
            return self._error(f"it redirects to {error.headers.get('Location')!r}; if you trust that, give it instead")
        return self._error(f"{reason}; {remedy.get(error.code, 'the server does not accept this request')}")

    def _error(self, reason: str) -> EndpointError:
        return EndpointError(f"base_url={self.base_url!r}: {reason}")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def checked_url(base_url: str) -> str:
    """The address without a slash at its end, ``/v1`` added where it has no path; ValueError when it is none."""
    try:
        parts = urlsplit(base_url.strip())
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or any(character.isspace() or ord(character) < 32 for character in base_url.strip()):
        raise ValueError(f"base_url={base_url!r}: must be an address such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("base_url holds a password, a query or a fragment: give the bare address, and the key apart")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _message(raw: bytes) -> str:
    """What an error's body says, on one line: ``{"error": {"message": …}}``, ``{"detail": …}`` or plain text."""
    try:
        said = json.loads(raw)
    except ValueError:
        return _start(raw)
    for name in ("error", "message", "detail"):
        said = said.get(name, said) if isinstance(said, dict) else said
    return _start(said.encode() if isinstance(said, str) else json.dumps(said).encode())


def _start(raw: bytes) -> str:
    text = " ".join(raw[:400].decode(errors="replace").split())
    return f"{text[:200]}…" if len(text) > 200 else text


def _seconds(retry_after: str | None) -> float:
    """Of a ``Retry-After`` header; dates count as none, the doubling waits then do."""
    try:
        seconds = float(retry_after or 0.0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
