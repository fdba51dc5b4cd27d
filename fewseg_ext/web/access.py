"""Who gets in: the token, the cookie that tells visitors apart, and what nobody may ask of Gradio."""

import secrets
from html import escape
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewseg_ext.web.limits import LOOPBACK

# Gradio's ways to read files of the server and to fetch for others: the page uses none of them, so that a photo is
# seen by nobody but the session that holds it (see server.py).
CLOSED = ("/gradio_api/file", "/gradio_api/proxy", "/gradio_api/stream", "/gradio_api/upload_progress", "/proxy=")
# A mask as PNG takes some kilobytes.
LARGEST_EVENT = 8_000_000
# All that the browser may load comes from here, so that nothing is asked of the network.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'; form-action 'self'"
)
FORM = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>fewseg</title>
<form method="get" action=""><p><label>Token, as printed where the page was started:
<input name="token" type="password" autofocus></label> <button>Open</button></p><p role="alert">{}</p></form>"""


class Access:
    """ASGI middleware.

    Args:
        app: the page.
        cookie: name of the cookie.
        token: without it nobody gets in; None lets in whoever calls the page by a loopback name.
        largest_upload: bytes of all files of one upload together.
    """

    def __init__(self, app: ASGIApp, cookie: str, token: str | None, largest_upload: int) -> None:
        self._app = app
        self._cookie = cookie
        self._token = token
        self._largest_upload = largest_upload
        self._visitors: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            answer = self._refused(scope)
            if answer is None:
                await self._app(scope, receive, _with_policy(send))
            else:
                await answer(scope, receive, _with_policy(send))
        # Gradio uses no web sockets.

    def _refused(self, scope: Scope) -> Response | None:
        """The answer that ends it here, or None."""
        headers, path = Headers(scope=scope), scope["path"]
        # A site on the internet can make its own name mean 127.0.0.1.
        if self._token is None and _name(headers.get("host", "")) not in LOOPBACK:
            return PlainTextResponse("this page is served to this computer only", 403)
        # Browsers fetch the manifest without cookies, and it says nothing.
        if visitor_of(headers, self._cookie) not in self._visitors and path != "/manifest.json":
            return self._welcome(scope)
        if path.startswith(CLOSED):
            return PlainTextResponse("not served", 403)
        if scope["method"] == "POST":
            limit = self._largest_upload if path.startswith("/gradio_api/upload") else LARGEST_EVENT
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return PlainTextResponse("length required", 411)
            if int(length) > limit:
                return PlainTextResponse(f"more than {limit // 1_000_000} MB at once", 413)
        return None

    def _welcome(self, scope: Scope) -> Response:
        if scope["method"] != "GET" or scope["path"] != "/":
            return PlainTextResponse("open the page first", 401)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self._token is not None and not secrets.compare_digest(given.encode(), self._token.encode()):
            return HTMLResponse(FORM.format(escape("This is not the token." if given else "")), 401)
        visitor = secrets.token_urlsafe(24)
        self._visitors.add(visitor)
        # Without the token, which would stay in the browser's history.
        answer = RedirectResponse(scope.get("root_path", "") + "/", 303)
        answer.set_cookie(self._cookie, visitor, httponly=True, samesite="strict")
        return answer


def visitor_of(headers: Headers, cookie: str) -> str:
    """What the cookie says, or an empty text."""
    # Not Python's own SimpleCookie, which stops at the first strange name among the cookies of other pages.
    return cookie_parser(headers.get("cookie", "")).get(cookie, "")


def _name(host: str) -> str:
    return host.rsplit(":", 1)[0] if ":" in host else host


def _with_policy(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
            added["referrer-policy"] = "no-referrer"
            message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
        await send(message)

    return wrapped
