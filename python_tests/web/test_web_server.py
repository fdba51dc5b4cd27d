"""The page over HTTP: who gets in, what is refused, what is left behind. The browser's tests are beside this file."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import fewseg_ext
from fewseg_ext import cli
from fewseg_ext.training.checkpoint import Checkpoint, save_checkpoint
from fewseg_ext.web.limits import Limits, Upload
from fewseg_ext.web.server import make_app, serve, temporary_folder
from fewseg_ext.web.session import Session, Sessions
from test_segmenter import photo_and_mask

pytest.importorskip("gradio", reason='the page needs gradio: pip install "fewseg-ext[web]"')
httpx = pytest.importorskip("httpx")

LIMITS = Limits(photos=2, megabytes=1)


def make_segmenter() -> fewseg_ext.Segmenter:
    torch.manual_seed(0)
    return fewseg_ext.Segmenter(fewseg_ext.BiOpt("conv4"), size=64)


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Makes a visitor of the page: visit() of the one on this computer, visit("token") of the one with a token."""
    from starlette.testclient import TestClient

    # Not inside the page's own folder, where tempfile would put it from here on.
    tmp_path_factory.getbasetemp()
    with temporary_folder():
        apps = {
            token: make_app(make_segmenter(), "conv4", cookie="fewseg", token=token, limits=LIMITS)
            for token in (None, "secret")
        }
        yield lambda token=None, name="127.0.0.1:7860": TestClient(apps[token], f"http://{name}")


def test_a_visitor_of_this_computer_needs_no_token_and_others_do_not_get_in(visit) -> None:
    visitor = visit()
    assert visitor.get("/config").status_code == 401
    assert "Label one photo" in visitor.get("/").text
    assert visitor.get("/config").status_code == 200
    # A foreign site whose name was made to mean 127.0.0.1.
    assert visit(name="evil.example:7860").get("/").status_code == 403


def test_the_token_opens_the_page_and_nothing_else_does(visit) -> None:
    visitor = visit("secret", "192.168.0.7:7860")
    for address in ("/", "/?token=wrong", "/?token="):
        answer = visitor.get(address)
        assert answer.status_code == 401
        assert 'name="token"' in answer.text
    assert not visitor.cookies
    assert visitor.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
    assert visitor.get("/pictures/x/1/photo").status_code == 401
    answer = visitor.get("/?token=secret")
    assert answer.status_code == 200
    assert "token" not in str(answer.url)
    assert "HttpOnly" in answer.history[0].headers["set-cookie"]
    assert visitor.get("/config").status_code == 200


def test_cookies_of_other_pages_on_this_computer_do_not_matter(visit) -> None:
    """A browser sends those of every port."""
    visitor = visit()
    visitor.get("/")
    own = visitor.cookies.pop("fewseg")
    for other in ("a@b=1", "[a]=1", "a=1", "="):
        assert visitor.get("/config", headers={"cookie": f"{other}; fewseg={own}"}).status_code == 200
    assert visitor.get("/config", headers={"cookie": "a@b=1"}).status_code == 401


def test_what_a_session_does_not_have_is_not_found(visit, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(make_segmenter(), LIMITS)
    photo, _ = photo_and_mask()
    number = session.add(Upload(photo, (photo.shape[1], photo.shape[0])), "a.jpg").number
    monkeypatch.setattr(Sessions, "find", lambda sessions, visitor, key: session if key == session.key else None)
    visitor = visit()
    visitor.get("/")
    for kind, status in (("photo", 200), ("uncertainty", 404), ("none", 404)):
        assert visitor.get(f"/pictures/{session.key}/{number}/{kind}").status_code == status
    assert visitor.get(f"/pictures/{session.key}/99/photo").status_code == 404
    assert visitor.get(f"/pictures/x/{number}/photo").status_code == 404


def test_the_buttons_forget_all_or_say_what_is_wrong() -> None:
    """The page's events without a browser, of a model without inner steps."""
    sessions = Sessions(lambda: Session(make_segmenter(), LIMITS), LIMITS)
    from fewseg_ext.web.page import Page

    page = Page(sessions, "fewseg", "conv4", None)
    assert not page.steps.visible
    request = SimpleNamespace(cookies={"fewseg": "anna"}, session_hash="tab")
    assert "needs room for 4 photos" in list(page._example(None, request))[-1][-1]
    session = sessions.of("anna", "tab")
    photo, mask = photo_and_mask()
    session.label(session.add(Upload(photo, (photo.shape[1], photo.shape[0])), "a.jpg").number, "box", mask)
    for updates in (page._use(99, "box", "", None, request), page._forget(99, None, request)):
        (update,) = updates
        assert "Choose a photo" in update[-1]
    assert "1 labelled" in page._choose(99, None, request)[-1]
    assert "All photos and labels are forgotten" in page._empty(request)[-1]
    assert sessions.find("anna", session.key) is None
    assert "Add photos" in page._slide(None, request)[-1]


def test_nothing_is_loaded_from_elsewhere_and_no_analytics(visit) -> None:
    visitor = visit()
    answer = visitor.get("/")
    assert re.findall(r"https?://(?!127\.0\.0\.1)", answer.headers["content-security-policy"]) == []
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not re.search(r"<(script|link)[^>]*(src|href)=.?(https?:)?//(?!127\.0\.0\.1)", answer.text)
    assert visitor.get("/config").json()["analytics_enabled"] is False
    assert not re.search(r"@import|url\(.?https?:", visitor.get("/theme.css").text)


def test_uploads_are_limited_and_cannot_be_read_back(visit) -> None:
    visitor = visit()
    visitor.get("/")
    assert visitor.post("/gradio_api/upload", files={"files": bytes(2**20 + 1)}).status_code == 413
    too_many = [("files", (f"{n}.jpg", bytes(2**20 - 1000))) for n in range(3)]
    assert visitor.post("/gradio_api/upload", files=too_many).status_code == 413
    assert visitor.post("/gradio_api/queue/join", content=bytes(9_000_000)).status_code == 413
    assert visitor.post("/gradio_api/queue/join", content=iter([b"{}"])).status_code == 411
    (path,) = visitor.post("/gradio_api/upload", files={"files": ("a.jpg", b"photo")}).json()
    assert Path(path).read_bytes() == b"photo"
    for address in (
        f"/gradio_api/file={path}",
        f"/gradio_api/file/{path}",
        f"/gradio_api//file={path}",
        f"/file={path}",
    ):
        assert visitor.get(address).status_code in (403, 404)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_it_is_stopped(stop: signal.Signals, tmp_path: Path) -> None:
    model = make_segmenter().model
    save_checkpoint(tmp_path / "biopt.ckpt", Checkpoint(model.config, model.state_dict()))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    before = sorted(tmp_path.rglob("*"))
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path / "tmp"),
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(Path(fewseg_ext.__file__).parents[1]),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "fewseg_ext.cli", "serve", "--checkpoint", "biopt.ckpt", "--size", "64"]
    process = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    try:
        assert process.stdout.readline().startswith("BiOpt as trained in biopt.ckpt; photos are seen at 64 x 64")
        address = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+/)\n", process.stdout.readline())[1]
        Image.fromarray(photo_and_mask()[0]).save(tmp_path / "tmp" / "a.png")
        with httpx.Client(base_url=address, timeout=60, follow_redirects=True) as visitor:
            visitor.get("/")
            files = {"files": ("a.png", (tmp_path / "tmp" / "a.png").read_bytes())}
            (path,) = visitor.post("/gradio_api/upload", files=files).json()
        (tmp_path / "tmp" / "a.png").unlink()
        assert Path(path).is_relative_to(tmp_path / "tmp")
        process.send_signal(stop)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stdout.close()
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_checkpoint_the_page_says_on_which_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("fewseg_ext.web.server.serve", lambda segmenter, about, **options: said.append(about))
    torch.save(make_segmenter().model.backbone.state_dict(), tmp_path / "conv4.pth")
    arguments = ["serve", "--backbone", "conv4", "--weights", str(tmp_path / "conv4.pth"), "--size", "64"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert said == [
        "BiOpt on the features of conv4 (conv4.pth), not trained for segmentation; photos are seen at 64 x 64 pixels, "
        "on cpu."
    ]


def test_elsewhere_there_is_always_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    tokens: list[str | None] = []
    monkeypatch.setattr("fewseg_ext.web.server.make_app", lambda *_, token, **__: tokens.append(token))
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    for host in ("127.0.0.1", "0.0.0.0"):
        for given in (None, "", "mine"):
            serve(make_segmenter(), "", host=host, port=0, token=given)
    assert tokens[:3] == [None, None, "mine"]
    assert len(tokens[3]) >= 20
    assert len({*tokens[3:5], "mine"}) == 3
    assert tokens[5] == "mine"


def test_what_is_missing_or_taken_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=r"cannot listen at 127.0.0.1, port .*choose another with --host or --port"):
            serve(make_segmenter(), "", port=taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "fewseg_ext.web.page", raising=False)
    with pytest.raises(ImportError, match=r'fewseg serve needs gradio: pip install "fewseg-ext\[web\]"'):
        serve(make_segmenter(), "", port=0, console=Console(quiet=True))
