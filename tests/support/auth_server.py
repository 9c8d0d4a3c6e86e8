"""A small authorization server on loopback: device flows (RFC 8628), good and bad.

In a test: ``with AuthServer() as server``, whose `answers` say what each next request for a token
gets, the last one again and again. By hand: ``python tests/support/auth_server.py PORT`` grants
after ten seconds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

DEVICE_CODE = "devicecode-SECRET-6f1a2b"
USER_CODE = "WDJB-SECRET"
ACCESS = "accesstoken-SECRET-77aa"
REFRESH = "refreshtoken-SECRET-88bb"
SECRETS = (DEVICE_CODE, USER_CODE, ACCESS, REFRESH)
"""What may stand in no event, log line, error or status."""


def write_config(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A configuration file with these ``[auth.NAME]`` tables; the environment that names it."""
    lines = []
    for name, table in tables.items():
        lines.append(f"[auth.{name}]")
        # Texts, truth values and lists of texts are the same in JSON and TOML.
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path.write_text("\n".join(lines) + "\n")
    return {"ACP_GATEWAY_CONFIG": str(path)}


class AuthServer:
    def __init__(self, port: int = 0, **codes: Any) -> None:
        self.codes: dict[str, Any] = {"expires_in": 600, "interval": 1, **codes}
        """Further members of the answer to a start."""
        self.start = "ok"
        """What a start gets: ok, or one of the bad answers below."""
        self.answers = ["authorization_pending"]
        """What requests for a token get."""
        self.token: dict[str, Any] = {
            "access_token": ACCESS,
            "refresh_token": REFRESH,
            "token_type": "Bearer",
            "expires_in": 3600,
            "resource_url": "portal.example",
        }
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and form of each request, oldest first."""
        self.metadata: dict[str, Any] = {}
        """Changes to the metadata document."""
        self.moved: str | None = None
        """Where ``redirect`` leads."""
        self.closing = threading.Event()
        self._challenges: dict[str, str | None] = {}
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> AuthServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def table(self, **more: Any) -> dict[str, Any]:
        """An ``[auth.NAME]`` table for this server."""
        return {
            "client_id": "gateway-tests",
            "device_authorization_endpoint": f"{self.url}/device",
            "token_endpoint": f"{self.url}/token",
            **more,
        }

    def seen(self, path: str) -> list[dict[str, str]]:
        return [form for each, form in self.requests if each == path]

    # ---- answers --------------------------------------------------------------------------------

    def begin(self, form: dict[str, str]) -> tuple[str, Any]:
        code = f"{DEVICE_CODE}-{len(self._challenges)}"
        self._challenges[code] = form.get("code_challenge")
        body = {
            "device_code": code,
            "user_code": USER_CODE,
            "verification_uri": f"{self.url}/open-SECRET",
            "verification_uri_complete": f"{self.url}/open-SECRET?code={USER_CODE}",
            **self.codes,
        }
        return self.start, {key: value for key, value in body.items() if value is not None}

    def grant(self, form: dict[str, str]) -> tuple[str, Any]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "grant":
            if not self._proved(form):
                answer = "invalid_grant"
            else:
                return "ok", self.token
        return answer, {
            "error": answer,
            # Servers repeat what they were sent.
            "error_description": f"code {form.get('device_code')} of {USER_CODE}\r\nforged: line",
        }

    def _proved(self, form: dict[str, str]) -> bool:
        code = form.get("device_code", "")
        if self._challenges.get(code, "") is None:
            return True
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == self._challenges.get(code)

    def described(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "device_authorization_endpoint": f"{self.url}/device",
            "token_endpoint": f"{self.url}/token",
            **self.metadata,
        }


class _Handler(BaseHTTPRequestHandler):
    site: AuthServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.site.requests.append((self.path, {}))
        if self.path == "/.well-known/oauth-authorization-server":
            self._send(200, json.dumps(self.site.described()).encode())
        else:
            self._send(404, b"{}")

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        form = {key: values[0] for key, values in parse_qs(text).items()}
        self.site.requests.append((self.path, form))
        make: Callable[[dict[str, str]], tuple[str, Any]] | None = {
            "/device": self.site.begin,
            "/token": self.site.grant,
        }.get(self.path)
        if make is None:
            self._send(404, b"{}")
            return
        kind, body = make(form)
        bad = getattr(self, f"_bad_{kind}", None)
        if bad is not None:
            bad()
        elif kind == "ok":
            self._send(200, json.dumps(body).encode())
        else:
            self._send(429 if kind == "slow_down" else 400, json.dumps(body).encode())

    def _bad_html(self) -> None:
        self._send(200, f"<html>{ACCESS}</html>".encode(), "text/html")

    def _bad_malformed(self) -> None:
        self._send(200, f'{{"access_token": "{ACCESS}"'.encode())

    def _bad_array(self) -> None:
        self._send(200, b"[]")

    def _bad_broken(self) -> None:
        self._send(500, f"<h1>{ACCESS}</h1>".encode(), "text/html")

    def _bad_hang(self) -> None:
        self.site.closing.wait(120)
        self.close_connection = True

    def _bad_huge(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        try:
            for _ in range(10_000):
                self.wfile.write(b" " * 65536)
        except OSError:
            pass

    def _bad_redirect(self) -> None:
        self.send_response(307)
        self.send_header("location", self.site.moved or f"{self.site.url}/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    with AuthServer(int(sys.argv[1]) if sys.argv[1:] else 0) as server:
        print(server.url, flush=True)
        time.sleep(10)
        server.answers = ["grant"]
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
