"""What ``fewseg serve`` does: a folder of its own, the page, and an end without traces."""

import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from fewseg_ext.segmenter import Segmenter
from fewseg_ext.web.limits import LOOPBACK, Limits

# A photo must not stay on the disk of a computer that several people use.
NOT_KEPT = {"cache-control": "no-store"}
INSTALL = 'fewseg serve needs gradio: pip install "fewseg-ext[web]"'


def serve(
    segmenter: Segmenter,
    about: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    limits: Limits | None = None,
    console: Console | None = None,
) -> None:
    """Serve the page until the process is told to stop (Ctrl+C or SIGTERM).

    Args:
        segmenter: its model and size are shared by all sessions.
        about: what the page runs on, shown at its top.
        host: where to listen. Other than at 127.0.0.1 and localhost a token is required.
        port: 0 takes any free one.
        token: what a visitor must know; None or an empty text makes one where one is required.
        limits: of each session.
        console: gets the address.

    Raises:
        ImportError: gradio or pycocotools is missing.
        OSError: the port is taken, or the host is none of this machine.
    """
    from fewseg_ext.data.coco import mask_tools

    mask_tools()
    limits = limits or Limits()
    if not token:
        token = None if host in LOOPBACK else secrets.token_urlsafe(16)
    console = console or Console(quiet=True)
    with _listening(host, port) as listener, temporary_folder():
        port = listener.getsockname()[1]
        try:
            import uvicorn

            app = make_app(segmenter, about, cookie=f"fewseg-{port}", token=token, limits=limits)
        except ModuleNotFoundError as error:
            raise ImportError(f"{INSTALL} ({error})") from error
        name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        address = f"http://{name}:{port}/"
        console.print(about, highlight=False, markup=False)
        console.print(f"Open {address}{f'?token={token}' if token else ''}", soft_wrap=True, markup=False)
        console.print("Ctrl+C stops it; photos and labels are forgotten then.")
        # Gradio prints the errors of its events; uvicorn's log would end in a traceback for every page that is open.
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, server_header=False)
        # Ctrl+C is how it ends.
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def make_app(segmenter: Segmenter, about: str, *, cookie: str, token: str | None, limits: Limits) -> Any:
    """The page as an ASGI application; ``temporary_folder`` must be in use."""
    import fastapi
    import gradio as gr

    from fewseg_ext.web.access import Access, visitor_of
    from fewseg_ext.web.page import FOLDER, Page
    from fewseg_ext.web.pictures import archive, draw
    from fewseg_ext.web.session import Session, Sessions

    def make_session() -> Session:
        return Session(Segmenter(segmenter.model, segmenter.device, segmenter.size), limits)

    sessions = Sessions(make_session, limits)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def own(request: fastapi.Request, key: str) -> Session:
        session = sessions.find(visitor_of(request.headers, cookie), key)
        if session is None:
            raise fastapi.HTTPException(404)
        return session

    @app.get("/pictures/{key}/{number}/{kind}")
    def picture(request: fastapi.Request, key: str, number: int, kind: str) -> fastapi.Response:
        session = own(request, key)
        try:
            content, media_type = draw(session, session.photos[number], kind)
        except KeyError as error:
            raise fastapi.HTTPException(404) from error
        return fastapi.Response(content, media_type=media_type, headers=NOT_KEPT)

    @app.get("/archive/{key}")
    def masks(request: fastapi.Request, key: str) -> fastapi.Response:
        headers = {**NOT_KEPT, "content-disposition": 'attachment; filename="fewseg-masks.zip"'}
        return fastapi.Response(archive(own(request, key)), media_type="application/zip", headers=headers)

    app = gr.mount_gradio_app(
        app,
        Page(sessions, cookie, about, make_session().inner_steps).blocks,
        path="/",
        max_file_size=limits.file_bytes,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css_paths=[FOLDER / "page.css"],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
    )
    return Access(app, cookie, token, largest_upload=limits.photos * limits.file_bytes)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for everything that Gradio writes, removed at the end, also when the process is told to stop.

    To be entered before gradio is imported, which looks at the environment then.
    """
    folder = Path(tempfile.mkdtemp(prefix="fewseg-serve-"))
    environment = {
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_CACHE_DIR": str(folder / "cache"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in environment}
    default_folder, default_action = tempfile.tempdir, signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(0)

    os.environ.update(environment)
    tempfile.tempdir = str(folder)
    # uvicorn raises the signal again when it is done, and the default action would leave the folder behind.
    signal.signal(signal.SIGTERM, stop)
    try:
        yield folder
    finally:
        signal.signal(signal.SIGTERM, default_action)
        tempfile.tempdir = default_folder
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # From here on a browser that comes before the server is ready waits, instead of being refused.
        listener.listen(128)
    except OSError as error:
        raise OSError(
            f"cannot listen at {host}, port {port} ({error}): choose another with --host or --port"
        ) from error
    return listener
