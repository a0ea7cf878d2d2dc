"""Who may talk to the server: a page that it has served to the person who was told its address, and nobody else.

The server listens on the loopback interface, which every program and every user of the machine can reach, and, through a
browser, every site that is open in it. So, in this order:

- *Host* must be a name of this machine: another name that has been made to point here (DNS rebinding) is refused.
- A request that writes must come from the page's own origin.
- The first request brings the token of the address; it is answered with a cookie that only this origin sends back, and no
  script can read. All others bring the cookie.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOSTS = ("127.0.0.1", "localhost")
POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src data:", "connect-src 'self'",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# A site may send a person here, and then no cookie of ours comes along, not even on a reload; from this page, one does.
_AGAIN = b'<!doctype html><html lang="en"><title>diffin</title><meta http-equiv="refresh" content="0;url=/?again=1">'
_CLOSED = "This page needs the whole address that was printed when it was started, with its token."


class Guard:
    """Lets through what may pass, and adds the headers that every answer has.

    Args:
        app: the server behind it.
        port: that the server listens on; cookies do not tell ports apart, so their name does.
        token: of the address; drawn if not given.
    """

    def __init__(self, app: App, port: int, token: str | None = None) -> None:
        self._app = app
        self.token = token or secrets.token_urlsafe(32)
        self._once: set[str] = set()
        self._cookie, self._secret = f"diffin-{port}", secrets.token_urlsafe(32)

    def once(self) -> str:
        """A token that opens the page a single time: for an address that others can see, as in a list of processes."""
        token = secrets.token_urlsafe(32)
        self._once.add(token)
        return token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        extra = dict(HEADERS)

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in extra.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        host = headers.get("host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            await _answer(sending, 421, b"unknown host")
        elif not _same_origin(scope, headers, host):
            await _answer(sending, 403, b"another origin")
        elif self._has_cookie(headers):
            await self._app(scope, receive, sending)
        elif self._has_token(scope):
            extra["set-cookie"] = f"{self._cookie}={self._secret}; Path=/; HttpOnly; SameSite=Strict"
            await self._app(scope, receive, sending)
        elif scope["path"] == "/" and not scope["query_string"]:
            await _answer(sending, 200, _AGAIN, "text/html; charset=utf-8")
        else:
            await _answer(sending, 403, _CLOSED.encode())

    def _has_cookie(self, headers: dict[str, str]) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return found is not None and _equal(found.value, self._secret)

    def _has_token(self, scope: Scope) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        if given in self._once:
            self._once.remove(given)
            return True
        return _equal(given, self.token)


def _same_origin(scope: Scope, headers: dict[str, str], host: str) -> bool:
    """Whether the page of this server asks; what only shows the page may come from anywhere, as a link."""
    site = headers.get("sec-fetch-site", "same-origin")
    if scope["method"] in ("GET", "HEAD"):
        return site in ("same-origin", "none") or scope["path"] == "/"
    return site == "same-origin" and headers.get("origin") == f"http://{host}"


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


async def _answer(send: Send, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
