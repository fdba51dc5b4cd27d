import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewseg_ext.data.transforms import (
    PairTransform,
    RotateAndCrop,
    ScaleAndCrop,
    biopt_transforms,
    denormalize,
    vpi_transforms,
)


def pair():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 10, 14), dtype=torch.uint8, generator=generator)
    return image, torch.randint(-1, 4, (10, 14), dtype=torch.int16, generator=generator)


def test_normalises_with_the_imagenet_constants():
    image, labels = pair()
    result, same = PairTransform()(image, labels, random.Random(0))
    red = (image[0] / 255 - 0.485) / 0.229
    blue = (image[2] / 255 - 0.406) / 0.225
    torch.testing.assert_close(result[0], red)
    torch.testing.assert_close(result[2], blue)
    assert torch.equal(same, labels)
    torch.testing.assert_close(denormalize(result), image / 255)


def test_flip_mirrors_image_and_labels_together():
    image, labels = pair()
    plain, _ = PairTransform()(image, labels, random.Random(0))
    flipped = 0
    for seed in range(100):
        result, result_labels = PairTransform(flip=True)(image, labels, random.Random(seed))
        if torch.equal(result, plain):
            assert torch.equal(result_labels, labels)
        else:
            assert torch.equal(result, plain.flip(-1))
            assert torch.equal(result_labels, labels.flip(-1))
            flipped += 1
    assert 30 < flipped < 70


def test_resize_keeps_the_set_of_labels():
    image, labels = pair()
    result, result_labels = PairTransform(size=32)(image, labels, random.Random(0))
    assert result.shape == (3, 32, 32)
    assert result_labels.shape == (32, 32)
    assert result_labels.dtype == torch.int16
    assert set(result_labels.unique().tolist()) == {-1, 0, 1, 2, 3}


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        PairTransform(size=0)


def test_importing_the_data_modules_imports_nothing_optional():
    code = (
        "import sys, fewseg_ext.data.episodes, fewseg_ext.data.transforms, fewseg_ext.data.folder;"
        "import fewseg_ext.data.fss1000, fewseg_ext.data.pascal, fewseg_ext.data.coco, fewseg_ext.data.overlap;"
        "import fewseg_ext.data.prepare.pascal5i, fewseg_ext.data.prepare.coco20i;"
        "sys.exit(any(name in sys.modules for name in ('torchvision', 'pycocotools', 'scipy')))"
    )
    # From another folder than the root, where `python -c` would find the package without its kernels.
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert result.returncode == 0


def ramp(height, width):
    """Green and blue are the row and the column of the pixel, the label is row + column: what belongs together."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    image = torch.stack([torch.full((height, width), 9), rows.expand(height, width), columns.expand(height, width)])
    return image.to(torch.uint8), (rows + columns).to(torch.int16)


def pixels(image):
    return (denormalize(image) * 255).round().long()


@pytest.mark.parametrize("transform", [ScaleAndCrop(48, flip=True), RotateAndCrop(48), PairTransform(48, flip=True)])
def test_the_generator_of_the_episode_decides_everything(transform):
    image, labels = ramp(80, 90)
    first = transform(image, labels, random.Random(1))
    torch.manual_seed(99)
    second = transform(image, labels, random.Random(1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    others = [transform(image, labels, random.Random(seed))[0] for seed in range(8)]
    assert any(not torch.equal(first[0], other) for other in others)


def test_scale_and_crop_moves_image_and_labels_together():
    image, labels = ramp(60, 60)
    scales, corners = [], set()
    for seed in range(60):
        result, cut = ScaleAndCrop(60)(image, labels, random.Random(seed))
        assert result.shape == (3, 60, 60)
        assert cut.dtype == torch.int16
        _, rows, columns = pixels(result)
        assert ((rows + columns - cut).abs() <= 2).all()
        scales.append(60 / float(rows[-1, 0] - rows[0, 0] + 1))
        corners.add((int(rows[0, 0]), int(columns[0, 0])))
    assert 0.95 < min(scales) < 1.1
    assert 1.4 < max(scales) < 1.6
    assert len(corners) > 20


def test_a_scale_of_one_is_a_plain_resize():
    image, labels = ramp(50, 70)
    plain, plain_labels = PairTransform(40)(image, labels, random.Random(0))
    scaled, scaled_labels = ScaleAndCrop(40, scale=(1.0, 1.0))(image, labels, random.Random(0))
    assert torch.equal(plain, scaled)
    assert torch.equal(plain_labels, scaled_labels)


def test_rotate_and_crop_moves_image_and_labels_together():
    image, labels = ramp(120, 110)
    slopes = []
    for seed in range(40):
        result, cut = RotateAndCrop(48, flip=False)(image, labels, random.Random(seed))
        _, rows, columns = pixels(result)
        inside = cut >= 0
        assert inside.float().mean() > 0.9
        # Half a pixel of each coordinate, but beside the edge, where the fill is mixed in.
        assert ((rows + columns - cut).abs()[inside] <= 2).float().mean() > 0.97
        slopes.append(float(columns[40, 24] - columns[8, 24]) / 32)
    # tan(10 degrees) = 0.18, either way.
    assert -0.22 < min(slopes) < -0.1
    assert 0.1 < max(slopes) < 0.22


def test_outside_of_a_small_photo_is_the_mean_and_ignored():
    image, labels = ramp(20, 100)
    image, labels = image * 0 + 200, labels * 0 + 7
    result, cut = RotateAndCrop(48, flip=False, degrees=0)(image, labels, random.Random(0))
    assert cut[:20].unique().tolist() == [7]
    assert cut[20:].unique().tolist() == [-1]
    assert result[:, 20:].abs().max() < 0.02
    assert result[:, :20].min() > 1
    _, turned = RotateAndCrop(48, flip=False, degrees=10)(*ramp(48, 48), random.Random(3))
    assert (turned[[0, 0, -1, -1], [0, -1, 0, -1]] == -1).any()


def test_the_papers_augmentations():
    supports, query = biopt_transforms()
    assert isinstance(supports, ScaleAndCrop)
    assert (supports.size, supports.scale, supports.flip) == (417, (1.0, 1.5), False)
    assert type(query) is PairTransform
    assert (query.size, query.flip) == (417, False)
    supports, query = vpi_transforms()
    assert supports is query
    assert isinstance(query, RotateAndCrop)
    assert (query.size, query.flip, query.degrees) == (384, True, 10.0)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="scale must be two rising numbers from 1"):
        ScaleAndCrop(scale=(0.5, 1.0))
    with pytest.raises(ValueError, match="degrees must not be negative"):
        RotateAndCrop(degrees=-1)
