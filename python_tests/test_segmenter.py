"""`Segmenter`: what goes in, what comes out, what is kept, what is told of mistakes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fewseg_ext
from fewseg_ext.segment.result import COLORS
from fewseg_ext.training.checkpoint import Checkpoint, save_checkpoint

SIZE = 64
EXIF_ORIENTATION = 0x0112


def photo_and_mask(seed: int = 0, height: int = 48, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A red box on noisy blue: a backbone with random weights finds it."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    top, left = rng.integers(4, height // 3), rng.integers(4, width // 3)
    mask[top : top + height // 2, left : left + width // 2] = True
    photo = np.where(mask[..., None], (220, 40, 30), (40, 60, 200)) + rng.integers(-20, 20, (height, width, 3))
    return photo.clip(0, 255).astype(np.uint8), mask


def make(model_class=fewseg_ext.BiOpt, **options) -> fewseg_ext.Segmenter:
    torch.manual_seed(0)
    return fewseg_ext.Segmenter(model_class("conv4", **options), size=SIZE)


def iou(found: np.ndarray, there: np.ndarray) -> float:
    return (found & there).sum() / (found | there).sum()


@pytest.mark.parametrize("shots", [1, 3])
def test_finds_the_object_of_the_labelled_photos(shots: int) -> None:
    supports = [photo_and_mask(seed) for seed in range(1, shots + 1)]
    segmenter = make().fit(*map(list, zip(*supports, strict=True)))
    photo, truth = photo_and_mask(9, 50, 70)
    result = segmenter.predict(photo)
    assert result.mask.shape == truth.shape
    assert result.mask.dtype == np.uint8
    assert iou(result.mask == 1, truth) > 0.6
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    entropy = -(result.probabilities * np.log(result.probabilities + 1e-12)).sum(0)
    np.testing.assert_allclose(result.uncertainty, entropy, atol=1e-4)
    assert result.mutual_information is None
    assert result.area == (result.mask > 0).mean()


def test_every_form_of_photo_and_mask_means_the_same(tmp_path: Path) -> None:
    photo, mask = photo_and_mask()
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "one_bit.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "grey.png")
    palette = Image.fromarray(mask.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(tmp_path / "palette.png")
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    photos = [photo, str(tmp_path / "photo.png"), tmp_path / "photo.png", Image.fromarray(photo), tensor, tensor / 255]
    masks = [
        *[tmp_path / f"{name}.png" for name in ("one_bit", "grey", "palette")],
        Image.fromarray(mask),
        *[mask, mask.astype(np.uint8), mask.astype(np.int64) * 255, mask.astype(np.float32)],
        *[torch.from_numpy(mask), torch.from_numpy(mask).float(), mask[None]],
        np.dstack([mask * np.uint8(200), mask * np.uint8(0), mask * np.uint8(90), np.full_like(mask, 255, np.uint8)]),
    ]
    segmenter = make()
    expected = segmenter.fit(photo, mask).fitted.state.prototypes
    for other in photos:
        assert torch.equal(segmenter.fit(other, mask).fitted.state.prototypes, expected)
    for other in masks:
        assert torch.equal(segmenter.fit([photo], [other]).fitted.state.prototypes, expected)
    grey = photo[..., 0]
    expected = segmenter.fit(np.dstack([grey] * 3), mask).fitted.state.prototypes
    assert torch.equal(segmenter.fit(grey, mask).fitted.state.prototypes, expected)


def test_label_maps_keep_their_numbers_and_ignore_255() -> None:
    photo, mask = photo_and_mask()
    labels = np.where(mask, 12, 0).astype(np.uint8)
    labels[:, -8:] = 255
    labels[:6] = 7
    segmenter = make().fit(photo, labels)
    assert segmenter.class_names == ["7", "12"]
    result = segmenter.predict(photo)
    assert set(np.unique(result.mask)) == {0, 7, 12}
    assert make().fit(photo, labels.astype(np.float32)).class_names == ["7", "12"]
    assert result.probabilities.shape[0] == 3
    np.testing.assert_array_equal(np.array([0, 7, 12])[result.probabilities.argmax(0)], result.mask)
    counted = make().fit(photo, np.where(labels == 255, 0, labels)).fitted.state.prototypes
    same = (counted == segmenter.fitted.state.prototypes).all(-1)[0]
    assert same.tolist() == [False, True, True]


def test_one_name_per_mask_with_unequal_numbers_of_photos() -> None:
    """Two photos of a, one of b: the state is that of label maps with the same content."""
    photos, masks = zip(*(photo_and_mask(seed) for seed in range(3)), strict=True)
    named = make().fit(photos, masks, labels=["a", "a", "b"])
    assert named.class_names == ["a", "b"]
    maps = [mask * np.uint8(number) for mask, number in zip(masks, (1, 1, 2), strict=True)]
    as_maps = make().fit(photos, maps, class_names=["a", "b"])
    assert torch.equal(named.fitted.state.prototypes, as_maps.fitted.state.prototypes)
    alone = make().fit(photos[2], masks[2]).fitted.state.prototypes
    torch.testing.assert_close(named.fitted.state.prototypes[:, 2], alone[:, 1])


def test_a_turned_photo_is_segmented_as_it_is_shown(tmp_path: Path) -> None:
    photo, mask = photo_and_mask()
    upright = Image.fromarray(photo)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    segmenter = make().fit(photo, mask)
    turned = segmenter.predict(tmp_path / "turned.png")
    assert turned.overlay().size == upright.size
    np.testing.assert_array_equal(turned.mask, segmenter.predict(photo).mask)
    assert torch.equal(
        segmenter.fit(tmp_path / "turned.png", mask).fitted.state.prototypes,
        segmenter.fit(photo, mask).fitted.state.prototypes,
    )


def test_predict_many_is_predict_in_order_and_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    sizes = [(40, 60), (64, 64), (30, 90)]
    photos = [photo_and_mask(seed, *size)[0] for seed, size in enumerate(sizes)]
    (tmp_path / "broken.jpg").write_text("no photo")
    segmenter = make().fit(*photo_and_mask())
    wrong = []
    given = [photos[0], tmp_path / "broken.jpg", *photos[1:]]
    results = list(segmenter.predict_many(given, batch_size=2, on_error=lambda photo, error: wrong.append(photo)))
    assert wrong == [tmp_path / "broken.jpg"]
    for photo, result in zip(photos, results, strict=True):
        np.testing.assert_allclose(result.probabilities, segmenter.predict(photo).probabilities, atol=1e-5)
    with pytest.raises(ValueError, match=r"broken.jpg cannot be read"):
        list(segmenter.predict_many(given))


def test_other_steps_for_the_same_photo_run_only_the_inner_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, mask = photo_and_mask()
    segmenter = make(inner_lr=1.0).fit(photo, mask)
    expected = [make(inner_lr=1.0, inner_steps=n).fit(photo, mask).predict(photo).probabilities for n in (0, 20)]
    segmenter.predict(photo)

    def forbidden(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(segmenter.model, "encode", forbidden)
    results = [segmenter.predict(photo.copy(), steps=n).probabilities for n in (0, 20)]
    np.testing.assert_array_equal(results, expected)
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    segmenter = make().fit(*photo_and_mask())
    path = tmp_path / "photo.png"
    for seed in (1, 2):
        photo, _ = photo_and_mask(seed, 40 + seed)
        Image.fromarray(photo).save(path)
        np.testing.assert_array_equal(segmenter.predict(path).photo, photo)
    for seed in range(10):
        segmenter.predict(photo_and_mask(seed)[0])
    assert len(segmenter._kept) == segmenter.kept_photos


def test_vpi_tells_its_mutual_information_and_repeats_itself() -> None:
    segmenter = make(fewseg_ext.VPI).fit(*photo_and_mask())
    photo, _ = photo_and_mask(3)
    first, second = segmenter.predict(photo), next(segmenter.predict_many([photo]))
    assert first.mutual_information is not None
    assert first.mutual_information.max() > 0
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    with pytest.raises(ValueError, match="VPI has no inner loop"):
        segmenter.predict(photo, steps=3)
    photos, masks = zip(*(photo_and_mask(seed) for seed in range(3)), strict=True)
    with pytest.raises(ValueError, match="equally many photos of every class, got 2 of a, 1 of b"):
        segmenter.fit(photos, masks, labels=["a", "a", "b"])


@pytest.mark.parametrize("model_class", [fewseg_ext.BiOpt, fewseg_ext.VPI])
def test_a_saved_segmenter_answers_the_same(model_class, tmp_path: Path) -> None:
    photo, mask = photo_and_mask()
    segmenter = make(model_class).fit(photo, mask * np.uint8(9), class_names=None)
    segmenter.save(tmp_path / "saved")
    segmenter.save(tmp_path / "saved")
    assert sorted(path.suffix for path in (tmp_path / "saved").iterdir()) == [".json", ".safetensors", ".safetensors"]
    assert list(tmp_path.iterdir()) == [tmp_path / "saved"]
    loaded = fewseg_ext.Segmenter.load(tmp_path / "saved")
    assert loaded.class_names == ["9"]
    np.testing.assert_array_equal(loaded.predict(photo).probabilities, segmenter.predict(photo).probabilities)


def test_save_replaces_nothing_else_and_load_names_what_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    segmenter = make().fit(*photo_and_mask())
    with pytest.raises(FileExistsError, match="not a saved segmenter"):
        segmenter.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]
    with pytest.raises(FileNotFoundError, match=r"segmenter.json is missing"):
        fewseg_ext.Segmenter.load(tmp_path)
    segmenter.save(tmp_path / "saved")
    (tmp_path / "saved" / "support.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        fewseg_ext.Segmenter.load(tmp_path / "saved")
    unnamed = fewseg_ext.Segmenter(fewseg_ext.BiOpt(make().model.backbone), size=SIZE).fit(*photo_and_mask())
    with pytest.raises(ValueError, match="without a name"):
        unnamed.save(tmp_path / "unnamed")


def test_from_checkpoint_and_from_pretrained_backbone(tmp_path: Path) -> None:
    model = make().model
    save_checkpoint(tmp_path / "biopt.ckpt", Checkpoint(model.config, model.state_dict()))
    torch.save(model.backbone.state_dict(), tmp_path / "conv4.pth")
    photo, mask = photo_and_mask()
    expected = make().fit(photo, mask).predict(photo).probabilities
    for segmenter in (
        fewseg_ext.Segmenter.from_checkpoint(tmp_path / "biopt.ckpt", size=SIZE),
        fewseg_ext.Segmenter.from_pretrained_backbone("conv4", tmp_path / "conv4.pth", size=SIZE),
    ):
        np.testing.assert_array_equal(segmenter.fit(photo, mask).predict(photo).probabilities, expected)


def test_overlay_tints_the_object_alone() -> None:
    photo, mask = photo_and_mask()
    result = make().fit(photo, mask).predict(photo)
    picture = np.array(result.overlay(opacity=1.0))
    np.testing.assert_array_equal(picture[result.mask == 0], photo[result.mask == 0])
    assert (picture[result.mask == 1] == COLORS[0]).all()
    with pytest.raises(ValueError, match="opacity"):
        result.overlay(2.0)


MISTAKES = {
    "another size": (lambda p, m: dict(images=p, masks=m[:-1]), "60 x 48 pixels, but its mask is 60 x 47"),
    "no foreground": (lambda p, m: dict(images=p, masks=m & False), r"masks\[0\] has no foreground"),
    "too few masks": (lambda p, m: dict(images=[p, p], masks=[m]), "2 images, but 1 masks"),
    "nothing": (lambda p, m: dict(images=[], masks=[]), "no images"),
    "soft edges": (lambda p, m: dict(images=p, masks=p[..., 0]), "looks like masks with soft edges"),
    "too small": (lambda p, m: dict(images=p.repeat(9, 0), masks=one_pixel(9)), "object of 1 pixels is too small"),
    "no name": (lambda p, m: dict(images=p, masks=m * 3, class_names=["a", "b", "c"]), "labelled 'a'"),
    "names": (lambda p, m: dict(images=p, masks=m, labels=["a", "b"]), "2 names for 1 masks"),
    "normalised": (lambda p, m: dict(images=p / 128.0 - 1, masks=m), r"must lie in \[0, 1\]"),
    "layout": (lambda p, m: dict(images=p.transpose(2, 0, 1), masks=m), r"expected \[h,w,3\] or \[h,w\]"),
    "layout of a mask": (lambda p, m: dict(images=p, masks=p.transpose(2, 0, 1)), r"masks\[0\]: expected \[h,w\]"),
    "two kinds of names": (lambda p, m: dict(images=p, masks=m, labels="a", class_names=["a"]), "not both"),
    "names twice": (lambda p, m: dict(images=p, masks=m, class_names=["a", "a"]), "a name is given twice"),
    "label without a name": (
        lambda p, m: dict(images=[p, p], masks=[m * 1, m * 2], class_names=["a"]),
        "label 2 has no name, 1 class_names are given",
    ),
    "negative": (lambda p, m: dict(images=p, masks=m * -3), "label -3; expected 0 background, 1..254 a class"),
    "fractions": (lambda p, m: dict(images=p, masks=m * 1.5), r"must lie in \[0, 1\] or be whole"),
}


def one_pixel(times: int) -> np.ndarray:
    mask = np.zeros((48 * times, 60), bool)
    mask[5, 5] = True
    return mask


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_and_change_nothing(mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    photo, mask = photo_and_mask()
    segmenter = make().fit(photo, mask)
    before = segmenter.fitted
    with pytest.raises(ValueError, match=message):
        segmenter.fit(**arguments(photo, mask))
    assert segmenter.fitted is before


def test_before_fit_and_wrong_files(tmp_path: Path) -> None:
    segmenter = make()
    with pytest.raises(RuntimeError, match="not fitted yet"):
        segmenter.predict(photo_and_mask()[0])
    with pytest.raises(RuntimeError, match="not fitted yet"):
        segmenter.predict_many([])
    segmenter.fit(*photo_and_mask())
    with pytest.raises(FileNotFoundError):
        segmenter.predict(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="steps: expected 0 or more"):
        segmenter.predict(photo_and_mask()[0], steps=-1)
    with pytest.raises(TypeError, match="photo: expected a path"):
        segmenter.predict(7)
    with pytest.raises(TypeError, match="photo: expected uint8, or floating"):
        segmenter.predict(photo_and_mask()[0].astype(np.int32))
    with pytest.raises(TypeError, match=r"masks\[0\]: expected a path"):
        segmenter.fit(photo_and_mask()[0], 7)
    with pytest.raises(ValueError, match="batch_size: expected 1 or more, got 0"):
        segmenter.predict_many([], batch_size=0)


def test_what_makes_no_segmenter() -> None:
    model = make().model
    with pytest.raises(TypeError, match="expected BiOpt, VPI or PrototypeBaseline, got Conv4"):
        fewseg_ext.Segmenter(model.backbone)
    with pytest.raises(ValueError, match="size: expected 1 to"):
        fewseg_ext.Segmenter(model, size=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda asked for, but torch sees no GPU"):
            fewseg_ext.Segmenter(model, "cuda")
