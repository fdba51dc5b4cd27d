"""What ``fewseg segment`` does."""

import csv
import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewseg_ext.data.photos import MASK_SUFFIX, PHOTO_SUFFIXES, visible
from fewseg_ext.files import make_folder, open_to_append, remove_leftovers, write_atomically, write_text
from fewseg_ext.progress import progress_bar
from fewseg_ext.segment.annotations import Annotated, coco_json, labelme_json
from fewseg_ext.segment.inputs import Photo
from fewseg_ext.segment.result import SegmentationResult
from fewseg_ext.segmenter import Segmenter

JOURNAL = "progress.jsonl"
# Of the contact sheet: the least certain photos, so many and so wide.
SHEET_PHOTOS, SHEET_COLUMNS, SHEET_SIDE = 60, 6, 200
# In bytes, without suffix: the systems' limit is 255.
LONGEST_NAME = 200
# Lines of the table on the screen; the CSV file has all.
SHOWN_ROWS = 20


@dataclass(frozen=True)
class Support:
    """A labelled photo of the command line."""

    photo: Path
    mask: Path
    name: str | None = None  # of its class; None for the only class, or for label maps


@dataclass(frozen=True)
class Record:
    """A line of the journal and of the summary: one photo that is done."""

    photo: str  # absolute path
    name: str  # of its mask and overlay, without suffix
    area_percent: float
    confidence: float
    uncertainty: float  # mean entropy in nats
    mutual_information: float | None
    version: str  # changes with the photo and with everything that its result depends on

    @property
    def is_whole(self) -> bool:
        """Whether the fields of a line that was read are what they should be."""
        texts, numbers = (self.photo, self.name, self.version), (self.area_percent, self.confidence, self.uncertainty)
        return (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
            and (self.mutual_information is None or isinstance(self.mutual_information, int | float))
        )


@dataclass(frozen=True)
class Summary:
    """What a run left behind."""

    records: list[Record]  # the least certain first
    failures: dict[str, str]  # path -> what was wrong
    reused: int  # of the records, those that an earlier run had made


def parse_support(text: str) -> Support:
    """``IMG:MASK`` or ``NAME=IMG:MASK``; colons and equal signs in file names are recognised by what exists.

    Raises:
        ValueError: no colon that separates two names.
    """
    places = [match.start() for match in re.finditer(":", text) if 0 < match.start() < len(text) - 1]
    # The colon of a drive, "C:\\" or "C:/", separates nothing.
    splits = [i for i in reversed(places) if not re.search(r"(^|[:=])[A-Za-z]$", text[:i]) or text[i + 1] not in "\\/"]
    if not splits:
        raise ValueError(f"support: expected IMG:MASK or NAME=IMG:MASK, got {text!r}")
    candidates = []
    for i in splits:
        photo, mask = text[:i], text[i + 1 :]
        candidates.append(Support(Path(photo), Path(mask)))
        if "=" in photo:
            name, _, rest = photo.partition("=")
            if name and rest:
                candidates.append(Support(Path(rest), Path(mask), name))
    there = [c for c in candidates if c.photo.is_file() and c.mask.is_file()]
    # Nothing is there: the message that follows names the files of the likeliest reading.
    named = [c for c in candidates if c.name is not None]
    return (there or named or candidates)[0]


def find_photos(paths: Iterable[Path], supports: Sequence[Support] = ()) -> list[Path]:
    """The photos of files and folders (not of folders in them), each once, in order.

    In a folder a ``.png`` beside a photo of the same name is taken for its mask, and the supports' masks are left out.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: no photo at all.
    """
    # os.path's, which takes links that lead round in a circle as they are.
    masks = {os.path.realpath(support.mask) for support in supports}
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_file():
            found[path] = None
        elif path.is_dir():
            files = [p for p in visible(path) if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file()]
            with_mask = {p.stem for p in files if p.suffix.lower() != MASK_SUFFIX}
            for file in files:
                if (
                    not (file.suffix.lower() == MASK_SUFFIX and file.stem in with_mask)
                    and os.path.realpath(file) not in masks
                ):
                    found[file] = None
        else:
            raise FileNotFoundError(f"query not found: {path}")
    if not found:
        raise ValueError(f"query: no photos ({', '.join(PHOTO_SUFFIXES)}) in what was given")
    # The same file under two names counts once.
    return list({path.resolve(): path for path in reversed(found)}.values())[::-1]


def run_segment(
    out_dir: str | os.PathLike[str],
    segmenter: Segmenter,
    supports: Sequence[Support],
    photos: Sequence[Path],
    *,
    class_names: Sequence[str] | None = None,
    steps: int | None = None,
    batch_size: int = 4,
    coco: bool = False,
    labelme: bool = False,
    console: Console | None = None,
) -> Summary:
    """Segments photos and writes masks, overlays, summary, contact sheet and annotation files; goes on where an
    earlier run with the same support and model was stopped.

    Args:
        out_dir: gets everything; nothing is written elsewhere.
        segmenter: not fitted yet.
        supports: the labelled photos; all of them have names, or none.
        photos: from :func:`find_photos`.
        class_names: of label maps, see ``Segmenter.fit``.
        steps: inner steps instead of the model's own.
        batch_size: photos that go through the backbone together.
        coco: also write ``annotations.json``.
        labelme: also write ``labelme/<photo>.json``.
        console: shows a bar and the summary.

    Raises:
        What ``Segmenter.fit`` raises; ImportError where ``coco`` needs pycocotools. Nothing is written then.
    """
    if coco:
        from fewseg_ext.data.coco import mask_tools

        mask_tools()
    named = [support.name for support in supports if support.name is not None]
    if named and len(named) < len(supports):
        raise ValueError("support: give every one a class name (NAME=IMG:MASK), or none")
    segmenter.fit([s.photo for s in supports], [s.mask for s in supports], named or None, class_names)
    out = Path(out_dir)
    names = _unique_names(photos)
    settings = _digest(segmenter, steps)
    done = _read_journal(out)
    versions: dict[Path, str] = {}
    failures: dict[str, str] = {}
    for photo in photos:
        try:
            status = photo.stat()
        except OSError as error:
            failures[str(photo)] = str(error)
            continue
        versions[photo] = f"{settings}-{status.st_mtime_ns}-{status.st_size}"
    kept = {
        photo: record
        for photo in versions
        if (record := done.get(names[photo])) is not None
        and record.version == versions[photo]
        and record.photo == str(photo.absolute())
        and all(path.is_file() for path in _files(out, record.name))
    }
    todo = [photo for photo in versions if photo not in kept]
    records = dict(kept)
    for folder in ("masks", "overlays", *(["labelme"] if labelme else [])):
        make_folder(out / folder, within=out)
    remove_leftovers(out)

    def failed(photo: Photo, error: Exception) -> None:
        failures[str(photo)] = str(error)

    with progress_bar(console, "segmenting") as progress, open_to_append(out / JOURNAL) as journal:
        # A line that a stopped run left unfinished must not swallow the next one.
        journal.write("\n")
        for result in segmenter.predict_many(todo, steps, batch_size, failed):
            photo = Path(result.path or "")
            record = _record(result, photo, names[photo], versions[photo])
            _write_result(out, record.name, result)
            journal.write(json.dumps(asdict(record)) + "\n")
            journal.flush()
            records[photo] = record
            progress(len(records) + len(failures), len(photos))
    ordered = sorted(records.values(), key=lambda record: (-record.uncertainty, record.photo))
    values, classes = segmenter.fitted.values, segmenter.class_names
    write_text(out / "summary.csv", _as_csv(ordered))
    _write_sheet(out, ordered)
    if coco:
        content = coco_json((_annotated(out, record) for record in ordered), classes, values)
        write_text(out / "annotations.json", json.dumps(content) + "\n")
    if labelme:
        labelme_folder = out / "labelme"
        for record in ordered:
            annotated = labelme_json(_annotated(out, record), labelme_folder.resolve(), classes, values)
            write_text(labelme_folder / f"{record.name}.json", json.dumps(annotated, indent=2) + "\n")
    summary = Summary(ordered, failures, len(kept))
    if console is not None:
        _print(summary, out, console)
    return summary


def _unique_names(photos: Sequence[Path]) -> dict[Path, str]:
    """What the files of every photo are called: its stem, with a digest of the path where that is too long or another
    photo's too.

    Independent of the order, so that a later run finds the same names.
    """
    # Some file systems do not tell upper and lower case apart.
    count = Counter(photo.stem.lower() for photo in photos)

    def name(photo: Path) -> str:
        stem = os.fsencode(photo.stem)
        if count[photo.stem.lower()] == 1 and len(stem) <= LONGEST_NAME:
            return photo.stem
        path = os.fsencode(photo.absolute())
        return f"{os.fsdecode(stem[:LONGEST_NAME])}-{hashlib.sha256(path).hexdigest()[:8]}"

    return {photo: name(photo) for photo in photos}


def _digest(segmenter: Segmenter, steps: int | None) -> str:
    """Of everything but the photo that a result depends on."""
    digest = hashlib.sha256()
    about = (segmenter.model.config, segmenter.size, segmenter.class_names, segmenter.fitted.values, steps)
    digest.update(json.dumps(about).encode())
    for tensor in (*segmenter.model.state_dict().values(), *vars(segmenter.fitted.state).values()):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_journal(out: Path) -> dict[str, Record]:
    """What earlier runs have done, by name; the last line of a name counts."""
    if not (out / JOURNAL).is_file():
        return {}
    done = {}
    for line in (out / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            # Empty, or cut off when a run was stopped.
            continue
        if record.is_whole:
            done[record.name] = record
    return done


def _files(out: Path, name: str) -> tuple[Path, Path]:
    return out / "masks" / f"{name}.png", out / "overlays" / f"{name}.png"


def _record(result: SegmentationResult, photo: Path, name: str, version: str) -> Record:
    information = result.mutual_information
    return Record(
        photo=str(photo.absolute()),
        name=name,
        area_percent=round(100 * result.area, 3),
        confidence=round(result.confidence, 4),
        uncertainty=round(float(result.uncertainty.mean()), 5),
        mutual_information=None if information is None else round(float(information.mean()), 6),
        version=version,
    )


def _write_result(out: Path, name: str, result: SegmentationResult) -> None:
    mask, overlay = _files(out, name)
    write_atomically(mask, lambda file: Image.fromarray(result.mask).save(file, format="PNG"))
    write_atomically(overlay, lambda file: result.overlay().save(file, format="PNG", compress_level=1))


def _annotated(out: Path, record: Record) -> Annotated:
    with Image.open(_files(out, record.name)[0]) as file:
        return Annotated(Path(record.photo), np.array(file), record.confidence)


def _as_csv(records: Sequence[Record]) -> str:
    text = io.StringIO()
    fields = [field for field in Record.__dataclass_fields__ if field != "version"]
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    return text.getvalue()


def _write_sheet(out: Path, records: Sequence[Record]) -> None:
    """The least certain photos as small overlays, with name, uncertainty and area."""
    shown = records[:SHEET_PHOTOS]
    if not shown:
        return
    line, gap = 26, 6
    columns = min(SHEET_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (columns * (SHEET_SIDE + gap) + gap, rows * (SHEET_SIDE + line + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, record in enumerate(shown):
        left = gap + index % columns * (SHEET_SIDE + gap)
        top = gap + index // columns * (SHEET_SIDE + line + gap)
        with Image.open(_files(out, record.name)[1]) as file:
            file.thumbnail((SHEET_SIDE, SHEET_SIDE))
            sheet.paste(file, (left, top))
        # The built-in font knows Latin-1.
        name = record.name[:30].encode("latin-1", "replace").decode("latin-1")
        text = f"{name}\nuncertainty {record.uncertainty:.2f}  area {record.area_percent:.0f} %"
        draw.text((left, top + SHEET_SIDE), text, fill="black")
    write_atomically(out / "contact_sheet.jpg", lambda file: sheet.save(file, format="JPEG", quality=85))


def _print(summary: Summary, out: Path, console: Console) -> None:
    table = Table(title="the least certain first: label those next", title_justify="left")
    table.add_column("photo", overflow="fold")
    for column in ("area %", "confidence", "uncertainty"):
        table.add_column(column, justify="right")
    for record in summary.records[:SHOWN_ROWS]:
        numbers = f"{record.area_percent:.1f}", f"{record.confidence:.2f}", f"{record.uncertainty:.3f}"
        # A name in square brackets is no markup.
        table.add_row(Text(Path(record.photo).name), *numbers)
    console.print(table)
    rest = len(summary.records) - SHOWN_ROWS
    if rest > 0:
        console.print(f"and {rest} more in summary.csv", highlight=False)
    reused = f" ({summary.reused} of them by an earlier run)" if summary.reused else ""
    console.print(f"{len(summary.records)} photos segmented{reused}: {out}", markup=False, highlight=False)
