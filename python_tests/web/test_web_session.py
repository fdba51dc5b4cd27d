"""The page's sessions without a browser: what is accepted, what labels do, what the archive holds."""

import base64
import io
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fewseg_ext
from fewseg_ext.segment.result import COLORS
from fewseg_ext.web.example import PICTURES, add_example
from fewseg_ext.web.limits import LONGEST_SIDE, Limits, Upload, read_upload
from fewseg_ext.web.pictures import archive, draw
from fewseg_ext.web.session import Session, Sessions, decode_mask
from test_segmenter import iou, photo_and_mask

EXIF_ORIENTATION = 0x0112


def make(limits: Limits | None = None, model_class=fewseg_ext.BiOpt, **options) -> Session:
    torch.manual_seed(0)
    return Session(fewseg_ext.Segmenter(model_class("conv4", **options), size=64), limits or Limits())


def add(session: Session, seed: int, name: str | None = None) -> tuple[int, np.ndarray]:
    """The number of a new photo, and where its object is."""
    photo, mask = photo_and_mask(seed, 90, 120)
    upload = Upload(photo, (photo.shape[1], photo.shape[0]))
    return session.add(upload, name or f"{seed}.jpg").number, mask


def segment(session: Session, steps: int | None = None) -> None:
    assert list(session.segment(steps)) == list(range(1, session.unlabelled + 1))


def content_of(session: Session) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive(session))) as file:
        return {name: file.read(name) for name in file.namelist()}


def mask_of(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)))


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that says it has width x height pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    return path


def test_one_labelled_photo_segments_the_others_and_a_correction_is_a_further_shot() -> None:
    session = make()
    (first, mask), (second, truth), (third, _) = (add(session, seed) for seed in (1, 2, 3))
    session.label(first, "box", mask)
    segment(session)
    found = session.photos[second]
    assert iou(found.mask == 1, truth) > 0.6
    assert 0 <= found.uncertainty.min() < found.uncertainty.max() <= 1
    before = session.photos[third].mask
    session.label(second, " box ", truth)
    assert session.class_names == ["box"]
    assert session.photos[third].mask is None
    segment(session)
    np.testing.assert_array_equal(session.photos[second].labels, truth)
    both = fewseg_ext.Segmenter(session._segmenter.model, size=64)
    both.fit([session.photos[n].pixels for n in (first, second)], [mask, truth])
    np.testing.assert_array_equal(session.photos[third].mask, both.predict(session.photos[third].pixels).mask)
    assert (session.photos[third].mask != before).any()


def test_several_classes_and_a_correction_of_one_keeps_the_others() -> None:
    session = make()
    (first, mask), (second, truth) = (add(session, seed) for seed in (1, 2))
    sky = np.zeros_like(mask)
    sky[:4] = True
    session.label(first, "box", mask)
    session.label(first, "sky", sky & ~mask)
    assert session.class_names == ["box", "sky"]
    segment(session)
    found = session.photos[second].mask
    assert set(np.unique(found)) == {0, 1, 2}
    session.label(second, "box", truth)
    kept = (found == 2) & ~truth
    assert kept.any()
    np.testing.assert_array_equal(session.photos[second].labels, np.where(truth, 1, np.where(kept, 2, 0)))
    session.unlabel(first)
    assert session.class_names == ["box", "sky"]
    # A class of which nothing is left is gone, and the numbers close the gap.
    session.label(second, "sky", truth)
    assert session.class_names == ["sky"]
    np.testing.assert_array_equal(session.photos[second].labels, truth)
    session.unlabel(second)
    assert (session.class_names, session.photos[second].shown) == ([], None)
    session.unlabel(second)


def test_labels_may_go_while_the_others_are_segmented() -> None:
    session = make()
    (first, mask), (second, _), (third, _) = (add(session, seed) for seed in (1, 2, 3))
    session.label(first, "box", mask)
    segmented = session.segment()
    next(segmented)
    assert session.photos[second].mask is not None
    session.unlabel(first)
    assert list(segmented) == [2]
    assert [session.photos[n].mask for n in (second, third)] == [None, None]


def test_there_are_as_many_classes_as_colours() -> None:
    session = make()
    number, mask = add(session, 1)
    rows = np.array_split(np.arange(len(mask)), len(COLORS) + 1)
    for index, part in enumerate(rows):
        marked = np.zeros_like(mask)
        marked[part] = True
        if index < len(COLORS):
            session.label(number, f"class {index}", marked)
    with pytest.raises(ValueError, match="There are 7 classes already"):
        session.label(number, "one more", marked)


def test_the_slider_runs_only_the_inner_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    session = make(inner_lr=1.0)
    (first, mask), (second, _) = (add(session, seed) for seed in (1, 2))
    session.label(first, "box", mask)
    segment(session, 0)
    before = session.photos[second].uncertainty

    def forbidden(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(session._segmenter.model, "encode", forbidden)
    segment(session, 20)
    assert np.abs(session.photos[second].uncertainty - before).max() > 1e-3
    assert session.inner_steps == 10
    assert make(model_class=fewseg_ext.VPI).inner_steps is None


MISTAKES = {
    "nothing": ("box", lambda m: m & False, "Nothing is marked in 1.jpg"),
    "no name": ("  ", lambda m: m, "needs a name"),
    "long name": ("x" * 61, lambda m: m, "needs a name of 1 to 60"),
    "size": ("box", lambda m: m[1:], "another size than the photo"),
    "too small": ("box", lambda m: np.eye(1, m.size, 1, dtype=bool).reshape(m.shape), "too small to be seen"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_and_change_nothing(mistake: str) -> None:
    name, change, message = MISTAKES[mistake]
    session = make()
    number, mask = add(session, 1)
    session.label(number, "thing", mask)
    with pytest.raises(ValueError, match=message):
        session.label(number, name, change(mask))
    assert session.class_names == ["thing"]
    np.testing.assert_array_equal(session.photos[number].labels, mask)
    with pytest.raises(ValueError, match="Choose a photo"):
        session.label(99, "thing", mask)


def test_bad_files_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(photos=1, megabytes=1, megapixels=2)
    (tmp_path / "notes.jpg").write_text("not a photo")
    Image.fromarray(photo_and_mask()[0]).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:2000])
    (tmp_path / "heavy.jpg").write_bytes(bytes(2**20 + 1))
    # The second is so large that Pillow refuses it by itself.
    bomb(tmp_path / "bomb.png", 2001, 1000)
    bomb(tmp_path / "huge.png", 60_000, 60_000)
    expected = {
        "notes.jpg": "not an image file",
        "half.png": "cannot be read: ",
        "heavy.jpg": "more than 1 MB",
        "bomb.png": "2001 x 1000 pixels, and the limit is 2 megapixels",
        "huge.png": "the limit is 2 megapixels",
    }
    session = make(limits)
    for name, message in expected.items():
        with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
            session.add_file(tmp_path / name, name)
    add(session, 1)
    with pytest.raises(ValueError, match=r"^x.jpg: no room, the limit is 1 photos"):
        session.add_file(tmp_path / "notes.jpg", "x.jpg")
    with pytest.raises(ValueError, match="needs room for 4"):
        add_example(session)
    with pytest.raises(ValueError, match="megapixels: expected 1 or more"):
        Limits(megapixels=0)


def test_a_large_turned_photo_is_shrunk_and_its_mask_is_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.new("RGB", (3000, 1500), (9, 99, 199)).save(tmp_path / "a.jpg", exif=exif)
    upload = read_upload(tmp_path / "a.jpg", Limits())
    assert upload.size == (1500, 3000)
    assert upload.pixels.shape == (LONGEST_SIDE, LONGEST_SIDE // 2, 3)
    session = make()
    number = session.add_file(tmp_path / "a.jpg", "a.jpg").number
    mask = np.zeros(upload.pixels.shape[:2], bool)
    mask[: LONGEST_SIDE // 4] = True
    session.label(number, "top", mask)
    content = content_of(session)
    np.testing.assert_array_equal(mask_of(content["masks/a.png"])[:, 0], np.arange(3000) < 750)


def test_the_archive_holds_every_mask_and_coco_json(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    session = make()
    (first, mask), (second, _), _ = (add(session, seed, "../a.jpg") for seed in (1, 2, 3))
    session.label(first, "box", mask)
    assert sorted(content_of(session)) == ["annotations.json", "masks/a.png"]
    segment(session)
    content = content_of(session)
    assert sorted(content) == ["annotations.json", "masks/a-2.png", "masks/a-3.png", "masks/a.png"]
    np.testing.assert_array_equal(mask_of(content["masks/a.png"]), mask)
    np.testing.assert_array_equal(mask_of(content["masks/a-2.png"]), session.photos[second].mask)
    (tmp_path / "a.json").write_bytes(content["annotations.json"])
    coco = COCO(tmp_path / "a.json")
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "box"}]
    for annotation in coco.loadAnns(coco.getAnnIds()):
        (image,) = coco.loadImgs(annotation["image_id"])
        expected = mask_of(content[f"masks/{Path(image['file_name']).stem}.png"])
        np.testing.assert_array_equal(coco.annToMask(annotation), expected)


def test_a_mask_goes_through_the_canvas_and_back() -> None:
    session = make()
    number, mask = add(session, 1)
    session.label(number, "box", mask)
    picture, media_type = draw(session, session.photos[number], "mask1")
    assert media_type == "image/png"
    data_url = "data:image/png;base64," + base64.b64encode(picture).decode()
    np.testing.assert_array_equal(decode_mask(data_url, mask.shape), mask)
    assert not decode_mask("", mask.shape).any()
    for wrong in (data_url[:200], data_url.replace("png", "gif"), "data:image/png;base64,AAAA", "x"):
        with pytest.raises(ValueError, match="could not be read"):
            decode_mask(wrong, mask.shape)
    with pytest.raises(ValueError, match="could not be read"):
        decode_mask(data_url, (5, 5))
    with pytest.raises(KeyError):
        draw(session, session.photos[number], "uncertainty")


def test_the_example_is_labelled_and_segmented() -> None:
    session = make()
    first = add_example(session)
    segment(session)
    assert len(session.photos) == PICTURES
    assert [photo.labels is not None for photo in session.photos.values()] == [True] + [False] * (PICTURES - 1)
    assert session.photos[first].labels.mean() > 0.02
    assert session.class_names == ["striped star"]


def test_nobody_finds_the_session_of_another() -> None:
    sessions = Sessions(make, Limits(), most=2)
    first = sessions.of("anna", "tab 1")
    assert sessions.of("anna", "tab 1") is first
    assert sessions.of("anna", "tab 2").key != first.key
    assert sessions.find("anna", first.key) is first
    assert sessions.find("bert", first.key) is None
    # The third drops the one that was used longest ago.
    sessions.of("anna", "tab 1")
    sessions.of("bert", "tab 1")
    assert sessions.find("anna", first.key) is first
    assert len(sessions) == 2
    sessions.drop("anna", "tab 1")
    assert sessions.find("anna", first.key) is None
    sessions.drop_unless_used("anna", "tab 1")


def test_a_tab_that_is_not_used_again_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sessions, "grace_seconds", 0.2)
    sessions = Sessions(make, Limits())
    for tab in ("left", "asleep"):
        sessions.of("anna", tab)
        sessions.drop_unless_used("anna", tab)
    sessions.of("anna", "asleep")
    assert len(sessions) == 2
    time.sleep(0.5)
    assert list(sessions._sessions) == [("anna", "asleep")]
