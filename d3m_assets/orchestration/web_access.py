"""Who may talk to Dagster's web server: its own page, and programs of this machine; never the page of another site.

Dagster's server has no login and answers every request that reaches it, mutations by GET and with any ``Host`` included, so
that any page that a browser has open could delete runs, through a name that resolves to 127.0.0.1 too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""What a browser on this machine may call the server by; an IPv6 address in brackets, as in the header ``Host``."""
READING = ("GET", "HEAD", "OPTIONS")


def guarded(app: ASGIApp, allowed_hosts: Sequence[str]) -> ASGIApp:
    """An ASGI application that passes on only what its own pages, or programs without a browser, ask for.

    Args:
        app: Dagster's web application.
        allowed_hosts: Names, without port, that requests may have in ``Host``.
    """
    return TrustedHostMiddleware(SameOriginMiddleware(app), allowed_hosts=list(allowed_hosts), www_redirect=False)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def names_for(host: str, also: Sequence[str] = ()) -> list[str]:
    """Names that requests may have in ``Host``.

    Args:
        host: Address that the server listens on.
        also: Names that it has for others.
    """
    return [*LOOPBACK_NAMES, *([host] if is_loopback(host) else []), *also]


class SameOriginMiddleware:
    """Refuses requests of other origins, GraphQL in an address, and being shown in a frame of another site.

    Args:
        app: What is protected. Its ``Host`` was checked before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request or websocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if refusal := _refusal(scope):
            # For a websocket, this is the answer to its handshake.
            await PlainTextResponse(refusal, status_code=403)(scope, receive, send)
            return

        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Frame-Options"] = "SAMEORIGIN"
            await send(message)

        await self._app(scope, receive, send_unframed)


def _place(origin: str) -> str | None:
    """Host and port of an origin; None: it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _refusal(scope: Scope) -> str:
    """Why a request is refused; empty: it is not."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is not None and _place(origin) != headers.get("host", "").lower():
        return "d3m: requests of pages of another origin are refused"
    site = headers.get("sec-fetch-site", "none")
    followed_link = (
        scope["type"] == "http"
        and scope["method"] in READING
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
    if site not in ("same-origin", "none") and not followed_link:
        return "d3m: requests of pages of another site are refused"
    asks_by_address = "query" in QueryParams(scope["query_string"]) and scope["path"].rstrip("/").endswith("/graphql")
    opens_graphiql = scope.get("method") == "GET" and "text/html" in headers.get("accept", "")
    if asks_by_address and not opens_graphiql:
        # A link or a form of any page can ask so. The page itself and Dagster's clients send JSON.
        return "d3m: GraphQL is answered in the body of a POST request only"
    return ""
