import numpy as np
import pytest
import torch
from PIL import Image

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.folder import ClassFolders, JsonFolder, LabelMasks, foreground, open_folder
from fewseg_ext.data.photos import check_photo, read_image
from photo_files import SIDE, box, coco_json, write_json, write_mask, write_photo


def disc(value=255):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[30:60, 30:60] = value
    return mask


def write_pair(folder, name, mask=None, seed=0):
    write_photo(folder / f"{name}.jpg", seed=seed)
    write_mask(folder / f"{name}.png", disc() if mask is None else mask, palette=False)


def ids(source, class_id=0):
    return [source.image_id(class_id, index) for index in range(source.num_images(class_id))]


def test_class_folders(tmp_path):
    for name in ("apple", "pear"):
        for number in ("10", "2"):
            write_pair(tmp_path / name, number)
    (tmp_path / "apple" / "._2.jpg").write_bytes(b"macOS")
    write_photo(tmp_path / ".ipynb_checkpoints" / "2-checkpoint.jpg")
    source = open_folder(tmp_path)
    assert isinstance(source, ClassFolders)
    assert (source.class_names, source.problems) == (["apple", "pear"], [])
    assert ids(source, 1) == ["pear/2.jpg", "pear/10.jpg"]
    image, labels = source.read(1, 0)
    assert image.shape == (3, SIDE, SIDE)
    assert labels.dtype == torch.int16
    assert torch.equal(labels, torch.from_numpy(disc(2)).short())
    assert EpisodeDataset(source, episodes=1)[0]["query_masks"].unique().tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P"])
def test_masks_of_one_object_are_understood_however_they_were_saved(tmp_path, mode):
    image = Image.fromarray(disc()).convert(mode)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(foreground(tmp_path / "mask.png"), disc(1))


def test_masks_of_ones_and_of_palettes(tmp_path):
    write_mask(tmp_path / "ones.png", disc(1), palette=False)
    assert np.array_equal(foreground(tmp_path / "ones.png"), disc(1))
    labels = disc(3)
    labels[0] = 255
    write_mask(tmp_path / "palette.png", labels)
    expected = disc(1).astype(np.int16)
    expected[0] = -1
    assert np.array_equal(foreground(tmp_path / "palette.png"), expected)
    soft = disc(128)
    soft[0] = 127
    write_mask(tmp_path / "soft.png", soft, palette=False)
    assert np.array_equal(foreground(tmp_path / "soft.png"), disc(1))


def test_class_folders_list_what_they_leave_out(tmp_path):
    apple = tmp_path / "apple"
    for name in "abcdefg":
        write_pair(apple, name)
    (apple / "c.png").unlink()
    (apple / "d.jpg").write_bytes((apple / "d.jpg").read_bytes()[:500])
    (apple / "e.png").write_text("no mask")
    write_mask(apple / "f.png", disc()[:50], palette=False)
    write_mask(apple / "g.png", np.zeros((SIDE, SIDE)), palette=False)
    write_pair(tmp_path / "pear", "1")
    with pytest.warns(UserWarning, match="6 left out, listed in `problems`; the first: .*c.jpg: no mask"):
        source = open_folder(tmp_path)
    assert source.class_names == ["apple"]
    assert ids(source) == ["apple/a.jpg", "apple/b.jpg"]
    reasons = ["c.jpg: no mask", "d.jpg cannot be read", "e.png cannot be read", "f.jpg: 96 x 96 pixels, but its mask"]
    reasons += ["g.png: the mask is empty", "class pear: 1 usable photos, 2 are needed"]
    assert len(source.problems) == len(reasons)
    for problem, reason in zip(source.problems, reasons, strict=True):
        assert reason in problem
    with pytest.warns(UserWarning, match="5 left out"):
        assert open_folder(tmp_path, min_images=1).class_names == ["apple", "pear"]
    with pytest.raises(ValueError, match="no class with 3 usable photos; the first of 7 problems"):
        open_folder(tmp_path, min_images=3)


def test_images_with_label_masks(tmp_path):
    labels = disc(7)
    labels[0], labels[1] = 2, 255
    for name in "ab":
        write_photo(tmp_path / "images" / f"{name}.jpg")
        write_mask(tmp_path / "masks" / f"{name}.png", labels)
    write_photo(tmp_path / "images" / "c.png")
    Image.fromarray(labels.astype(np.uint16) * 100).save(tmp_path / "masks" / "c.png")
    with pytest.warns(UserWarning, match="3 left out, .*class 200: 1 usable photos"):
        source = open_folder(tmp_path)
    assert isinstance(source, LabelMasks)
    assert source.class_names == ["2", "7"]
    assert ids(source, 1) == ["a", "b"]
    assert source.read(1, 0)[1][[0, 1, 2, 40], 40].tolist() == [1, -1, 0, 2]
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    with pytest.warns(UserWarning, match="3 left out"):
        assert open_folder(tmp_path).class_names == ["two", "7"]
    (tmp_path / "classes.txt").write_text("one\none\n")
    with pytest.raises(ValueError, match=r"classes.txt names a class twice: one"):
        open_folder(tmp_path)


def test_label_masks_list_what_they_leave_out(tmp_path):
    for name in "abcde":
        write_photo(tmp_path / "images" / f"{name}.jpg")
        write_mask(tmp_path / "masks" / f"{name}.png", disc(1))
    (tmp_path / "masks" / "c.png").unlink()
    write_mask(tmp_path / "masks" / "d.png", np.zeros((SIDE, SIDE)))
    write_mask(tmp_path / "masks" / "e.png", disc(1).T[:, :9])
    with pytest.warns(UserWarning, match="3 left out"):
        source = open_folder(tmp_path)
    assert ids(source) == ["a", "b"]
    for problem, reason in zip(source.problems, ["c.jpg: no mask c.png", "the mask is empty", "9 x 96"], strict=True):
        assert reason in problem


def test_label_masks_of_0_and_255_are_refused_with_advice(tmp_path):
    for name in "ab":
        write_photo(tmp_path / "images" / f"{name}.jpg")
        write_mask(tmp_path / "masks" / f"{name}.png", disc(255))
    with pytest.raises(ValueError, match="write 1 for the object"):
        open_folder(tmp_path)


@pytest.fixture
def exported(tmp_path):
    """What annotation tools export: own categories, two of them of one name, photos in images/."""
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(1, 5)]
    categories = [{"id": 0, "name": "cup"}, {"id": 5, "name": "lid"}, {"id": 6, "name": "lid"}]
    annotations = [
        {"image_id": n, "category_id": c, "segmentation": [box(10 * c, 0, 10 * c + 30, 50)]}
        for n in (1, 2)
        for c in (0, 5, 6)
    ]
    annotations.append({"image_id": 3, "category_id": 9, "segmentation": [box(0, 0, 9, 9)]})
    for n in (1, 2, 3):
        write_photo(tmp_path / "images" / f"{n}.jpg", seed=n)
    write_json(tmp_path / "annotations" / "export.json", coco_json(images, annotations, categories))
    return tmp_path


def test_coco_style_json(exported):
    with pytest.warns(UserWarning, match="3 left out"):
        source = open_folder(exported)
    assert isinstance(source, JsonFolder)
    assert source.class_names == ["cup", "lid (5)", "lid (6)"]
    assert ids(source, 1) == ["1", "2"]
    # Columns 50..59 are the first lid's alone, 60..79 both lids'.
    assert source.read(1, 0)[1][5, [10, 55, 65, 85]].tolist() == [1, 2, 2, 3]
    assert source.read(2, 0)[1][5, [10, 55, 65, 85]].tolist() == [1, 2, 3, 3]
    reasons = ["3.jpg: category 9 is not in the list", "3.jpg: no usable annotation", "4.jpg: missing"]
    for problem, reason in zip(source.problems, reasons, strict=True):
        assert reason in problem


def test_json_without_its_photos_or_without_any(exported):
    for photo in (exported / "images").iterdir():
        photo.unlink()
    with pytest.raises(ValueError, match=r"no class with 2 usable photos; the first of 4 problems: .*1.jpg: missing"):
        open_folder(exported / "annotations" / "export.json")
    write_json(exported / "annotations" / "export.json", coco_json([], [], [{"id": 1, "name": "cup"}]))
    with pytest.raises(ValueError, match="names no photos"):
        open_folder(exported)
    write_json(exported / "other.json", {})
    with pytest.raises(ValueError, match=r"several JSON files, open one of them: .*export.json, .*other.json"):
        open_folder(exported)


def test_other_folders_are_refused(tmp_path):
    write_photo(tmp_path / "1.jpg")
    with pytest.raises(ValueError, match="none of the layouts"):
        open_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder of photos not found"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="min_images must be at least 1, got 0"):
        ClassFolders(tmp_path, min_images=0)


def test_a_photo_marked_as_turned_is_turned_unless_its_mask_is_not(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "1.png", exif=exif)
    assert read_image(tmp_path / "1.png").shape == (3, 16, 8)
    assert read_image(tmp_path / "1.png", size=(8, 16)).shape == (3, 16, 8)
    assert [check_photo(tmp_path / "1.png", size) for size in ((8, 16), (16, 8))] == [None, None]
    assert "8 x 16 pixels, but its mask is 9 x 9" in (check_photo(tmp_path / "1.png", (9, 9)) or "")
    stored = read_image(tmp_path / "1.png", size=(16, 8))
    assert torch.equal(stored, torch.from_numpy(pixels).permute(2, 0, 1))
    with pytest.raises(ValueError, match=r"1.png is 8 x 16 pixels, but its mask is 5 x 5"):
        read_image(tmp_path / "1.png", size=(5, 5))


@pytest.mark.real_data
def test_real_folders_open(real_data):
    source = open_folder(real_data / "fss_like")
    assert len(source.class_names) == 38
    assert sum(source.num_images(c) for c in range(38)) == len(list((real_data / "fss_like").glob("*/*.jpg")))
    assert source.problems == []
