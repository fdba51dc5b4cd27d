"""The page: what is where, and what happens on a click."""

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from fewseg_ext.data.photos import PHOTO_SUFFIXES
from fewseg_ext.segment.result import COLORS
from fewseg_ext.web.example import add_example
from fewseg_ext.web.session import Session, SessionPhoto, Sessions, decode_mask

FOLDER = Path(__file__).parent
MOST_STEPS = 50
TITLE = "Label one photo, segment the others"
# Events that run the model wait for each other, whoever caused them: two at once would share the same processors.
MODEL = dict(concurrency_id="model", concurrency_limit=1)
# Reads the drawing when a button is pressed, in place of the empty text that the server knows.
READ_DRAWING = (
    "(number, name, drawing, steps) => [number, name, document.querySelector('#canvas .stage').maskPng(), steps]"
)
READ_CLICKED = "(number) => [document.querySelector('#results').clicked ?? null]"
# The event of gr.HTML says nothing of where it was clicked.
NOTE_CLICKED = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-photo]');
  if (!button) return;
  element.closest('#results').clicked = Number(button.dataset.photo);
  trigger('click');
  document.querySelector('#canvas').scrollIntoView({behavior: 'smooth', block: 'center'});
});"""


class Page:
    """Gradio's blocks over the sessions of all visitors.

    Args:
        sessions: of everyone.
        cookie: the name of the one that tells visitors apart.
        about: what the page runs on, for the top of it.
        steps: the model's number of inner steps; None hides the slider.
    """

    def __init__(self, sessions: Sessions, cookie: str, about: str, steps: int | None) -> None:
        self._sessions = sessions
        self._cookie = cookie
        limits = sessions.limits
        # Uploads are read and deleted at once; what a lost connection leaves behind goes after ten minutes.
        with gr.Blocks(title="fewseg", analytics_enabled=False, delete_cache=(300, 600)) as self.blocks:
            gr.HTML(f"<h1>{TITLE}</h1><p>{escape(about)}</p>", elem_id="about")
            with gr.Row(equal_height=False):
                with gr.Column(min_width=320):
                    gr.Markdown("### 1. Photos")
                    self.files = gr.File(
                        file_count="multiple",
                        file_types=list(PHOTO_SUFFIXES),
                        height=150,
                        elem_id="files",
                        label=f"Up to {limits.photos} photos, each up to {limits.megabytes} MB and "
                        f"{limits.megapixels} megapixels",
                    )
                    with gr.Row():
                        self.example = gr.Button("Start from a generated example", size="sm", elem_id="example")
                        self.empty = gr.Button("Remove all photos", size="sm", elem_id="empty")
                    gr.Markdown("### 2. Mark the object")
                    with gr.Row():
                        self.photo = gr.Dropdown([], label="Photo to mark or correct", elem_id="photo", min_width=200)
                        self.name = gr.Dropdown(
                            ["object"],
                            value="object",
                            label="Class: choose, or type a new one",
                            allow_custom_value=True,
                            elem_id="class",
                            min_width=200,
                        )
                    self.canvas = gr.HTML(
                        "null",
                        html_template=(FOLDER / "canvas.html").read_text(encoding="utf-8"),
                        js_on_load=(FOLDER / "canvas.js").read_text(encoding="utf-8"),
                        elem_id="canvas",
                    )
                    self.drawing = gr.Textbox(visible=False)
                    with gr.Row():
                        self.use = gr.Button("Use as labelled photo", variant="primary", elem_id="use")
                        self.forget = gr.Button("Forget its label", elem_id="forget")
                with gr.Column(min_width=320):
                    gr.Markdown("### 3. Result")
                    self.steps = gr.Slider(
                        0,
                        MOST_STEPS,
                        value=steps or 0,
                        step=1,
                        label="Inner steps: how far the model adapts to each photo",
                        visible=steps is not None,
                        elem_id="steps",
                    )
                    self.results = gr.HTML(elem_id="results", js_on_load=NOTE_CLICKED)
                    self.clicked = gr.Number(visible=False)
            self.status = gr.HTML(elem_id="status")
            self._wire(steps is not None)

    def _wire(self, has_steps: bool) -> None:
        everything = [self.photo, self.name, self.canvas, self.results, self.status]
        steps = self.steps if has_steps else gr.State(None)
        quiet: dict[str, Any] = dict(show_progress="hidden", api_visibility="private")
        busy: dict[str, Any] = dict(show_progress="minimal", api_visibility="private", **MODEL)
        self.blocks.load(self._open, None, everything, **quiet)
        self.files.upload(self._add, [self.files, self.photo, steps], [self.files, *everything], **busy)
        self.example.click(self._example, [steps], everything, **busy)
        self.empty.click(self._empty, None, everything, **quiet)
        # `input` is the user's own choice, `change` would be this program's too.
        for component in (self.photo, self.name):
            component.input(self._choose, [self.photo, self.name], everything, **quiet)
        self.results.click(self._choose_clicked, [self.clicked], everything, js=READ_CLICKED, **quiet)
        marked = [self.photo, self.name, self.drawing, steps]
        self.use.click(self._use, marked, everything, js=READ_DRAWING, **busy)
        self.forget.click(self._forget, [self.photo, steps], everything, **busy)
        if has_steps:
            options = {**busy, "show_progress": "hidden", "trigger_mode": "always_last"}
            self.steps.input(self._slide, [steps], [self.results, self.status], **options)
        self.blocks.unload(self._close)

    # --- events: each gives new values of photo, name, canvas, results and status ------------------------------------

    def _session(self, request: gr.Request) -> Session:
        return self._sessions.of(request.cookies[self._cookie], request.session_hash or "")

    def _open(self, request: gr.Request) -> list[Any]:
        return _everything(self._session(request), None, "Add photos, or start from the generated example.")

    def _close(self, request: gr.Request) -> None:
        self._sessions.drop_unless_used(request.cookies.get(self._cookie, ""), request.session_hash or "")

    def _add(
        self, paths: list[str] | None, number: int | None, steps: float | None, request: gr.Request
    ) -> Iterator[list[Any]]:
        session, problems = self._session(request), []
        for path in map(Path, paths or []):
            try:
                photo = session.add_file(path, path.name)
                number = number or photo.number
            except ValueError as error:
                problems.append(str(error))
            finally:
                path.unlink(missing_ok=True)
        for update in _segment(session, number, steps, problems):
            yield [None, *update]

    def _example(self, steps: float | None, request: gr.Request) -> Iterator[list[Any]]:
        session = self._session(request)
        try:
            number = add_example(session)
        except ValueError as error:
            yield _everything(session, None, problems=[str(error)])
            return
        yield from _segment(session, number, steps)

    def _empty(self, request: gr.Request) -> list[Any]:
        self._sessions.drop(request.cookies[self._cookie], request.session_hash or "")
        return _everything(self._session(request), None, "All photos and labels are forgotten.")

    def _choose(self, number: int | None, name: str | None, request: gr.Request) -> list[Any]:
        session = self._session(request)
        return _everything(session, number, _how_to_mark(session, number), name=name)

    def _choose_clicked(self, number: float | None, request: gr.Request) -> list[Any]:
        return self._choose(None if number is None else int(number), None, request)

    def _use(
        self, number: int | None, name: str | None, drawing: str, steps: float | None, request: gr.Request
    ) -> Iterator[list[Any]]:
        session = self._session(request)
        try:
            if number not in session.photos:
                raise ValueError("Choose a photo first.")
            mask = decode_mask(drawing, session.photos[number].pixels.shape[:2])
            session.label(number, name or "", mask)
        except ValueError as error:
            # The drawing stays as it is: only the status is new.
            yield [gr.skip()] * 4 + [_status(problems=[str(error)])]
            return
        yield from _segment(session, number, steps, name=name)

    def _forget(self, number: int | None, steps: float | None, request: gr.Request) -> Iterator[list[Any]]:
        session = self._session(request)
        try:
            session.unlabel(number or 0)
        except ValueError as error:
            yield [gr.skip()] * 4 + [_status(problems=[str(error)])]
            return
        yield from _segment(session, number, steps)

    def _slide(self, steps: float | None, request: gr.Request) -> list[str]:
        session = self._session(request)
        for _ in session.segment(None if steps is None else int(steps)):
            pass
        return [_results(session), _status(_summary(session))]


def _segment(
    session: Session,
    number: int | None,
    steps: float | None,
    problems: list[str] | None = None,
    name: str | None = None,
) -> Iterator[list[Any]]:
    """Segments what is not labelled, showing what there is meanwhile."""
    total = session.unlabelled if session.class_names else 0
    for done in session.segment(None if steps is None else int(steps)) if total else ():
        if done < total:
            yield [gr.skip()] * 3 + [_results(session), _status(f"Segmented {done} of {total} ...")]
    yield _everything(session, number, _summary(session), problems, name)


def _everything(
    session: Session, number: int | None, text: str = "", problems: list[str] | None = None, name: str | None = None
) -> list[Any]:
    photo = session.photos.get(number or 0)
    name = name or (session.class_names[0] if session.class_names else "object")
    return [
        gr.update(
            choices=[(_title(photo), photo.number) for photo in session.photos.values()],
            value=photo.number if photo else None,
        ),
        gr.update(choices=session.class_names or ["object"], value=name),
        _canvas_order(session, photo, name),
        _results(session),
        _status(text, problems),
    ]


def _title(photo: SessionPhoto) -> str:
    return f"{photo.name} (labelled)" if photo.labels is not None else photo.name


def _canvas_order(session: Session, photo: SessionPhoto | None, name: str) -> str:
    """See canvas.js."""
    if photo is None:
        return "null"
    number = session.class_names.index(name) if name in session.class_names else len(session.class_names)
    known = photo.shown is not None and name in session.class_names
    return json.dumps(
        {
            "photo": _address(session, photo, "photo"),
            "mask": _address(session, photo, f"mask{number + 1}") if known else None,
            "color": _css(number),
            "width": photo.pixels.shape[1],
            "height": photo.pixels.shape[0],
        }
    )


def _results(session: Session) -> str:
    shown = [photo for photo in session.photos.values() if photo.shown is not None]
    if not shown:
        return '<div class="results"><p>Mark the object in one photo, and every other photo is segmented.</p></div>'
    legend = "".join(
        f'<span><i style="background:{_css(index)}"></i>{escape(name)}</span>'
        for index, name in enumerate(session.class_names)
    )
    download = f'<a class="download" href="archive/{session.key}" download>Download masks and COCO JSON (zip)</a>'
    return (
        f'<div class="results"><p>{download}</p><p class="legend">{legend}'
        '<span>certain<span class="scale"></span>undecided</span></p>'
        + "".join(_result(session, photo) for photo in shown)
        + "</div>"
    )


def _result(session: Session, photo: SessionPhoto) -> str:
    name = escape(photo.name)
    pictures = [("photo", "photo", f"{name}"), ("overlay", "mask", f"{name} with the mask")]
    if photo.labels is None:
        assert photo.uncertainty is not None
        pictures.append(("uncertainty", "uncertainty", f"Where the mask of {name} is uncertain"))
        said, verb = f"{100 * photo.uncertainty.mean():.0f} % uncertain", "Correct"
    else:
        said, verb = "labelled", "Change"
    figures = "".join(
        f'<figure class="{kind}"><img src="{_address(session, photo, kind)}" alt="{alt}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for kind, caption, alt in pictures
    )
    return (
        f"<article><header><strong>{name}</strong><span>{said}</span>"
        f'<button type="button" data-photo="{photo.number}" aria-label="{verb} {name}">{verb}</button></header>'
        f'<div class="pictures">{figures}</div></article>'
    )


def _summary(session: Session) -> str:
    if not session.photos:
        return "Add photos, or start from the generated example."
    if not session.class_names:
        return f"{len(session.photos)} photos. Choose one, mark the object and press “Use as labelled photo”."
    found = [photo for photo in session.photos.values() if photo.uncertainty is not None]
    labelled = f"{len(session.photos) - session.unlabelled} labelled"
    if not found:
        return f"{labelled}. Add other photos to have them segmented."
    worst = max(found, key=lambda photo: float(photo.uncertainty.mean()))  # type: ignore[union-attr]
    return f"{labelled}, {len(found)} segmented. The least certain is {worst.name}: correct that one next."


def _how_to_mark(session: Session, number: int | None) -> str:
    if number not in session.photos:
        return _summary(session)
    return f"Mark {session.photos[number].name}, then press “Use as labelled photo”."


def _status(text: str = "", problems: list[str] | None = None) -> str:
    if problems:
        return f'<p class="problem" role="alert">{escape(chr(10).join(problems))}</p>'
    return f'<p role="status">{escape(text)}</p>'


def _address(session: Session, photo: SessionPhoto, kind: str) -> str:
    # The photo stays as it is; the others change with the masks.
    version = "" if kind == "photo" else f"?{session.version}"
    return f"pictures/{session.key}/{photo.number}/{kind}{version}"


def _css(index: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*COLORS[index % len(COLORS)])
