import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewseg_ext.data.transforms import PairTransform, denormalize


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


def test_importing_the_data_modules_does_not_import_torchvision():
    code = (
        "import sys, fewseg_ext.data.episodes, fewseg_ext.data.fss1000, fewseg_ext.data.transforms;"
        "sys.exit('torchvision' in sys.modules)"
    )
    # From another folder than the root, where `python -c` would find the package without its kernels.
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert result.returncode == 0
