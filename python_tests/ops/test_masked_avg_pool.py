"""fewseg::masked_avg_pool: the adjoint instead of the upsampled features, and its edges."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewseg_ext import masked_avg_pool
from support import relative_error


def upsampled(features: Tensor, masks: Tensor, eps: float = 1e-5) -> Tensor:
    """PANet's pooling, written out: upsample the features, average under the mask."""
    large = F.interpolate(features, masks.shape[-2:], mode="bilinear", align_corners=False)
    masks = masks.to(features.dtype)
    total = (large[:, None] * masks[:, :, None]).sum((3, 4))
    return total / (masks.sum((2, 3))[..., None] + eps)


def downsampled(features: Tensor, masks: Tensor, eps: float = 1e-5) -> Tensor:
    masks = F.interpolate(masks.to(features.dtype), features.shape[-2:], mode="bilinear", align_corners=False)
    total = (features[:, None] * masks[:, :, None]).sum((3, 4))
    return total / (masks.sum((2, 3))[..., None] + eps)


@pytest.mark.parametrize(("resize", "definition"), [("features", upsampled), ("masks", downsampled)])
@pytest.mark.parametrize(
    "grids",
    [((6, 5), (47, 40)), ((6, 5), (6, 5)), ((9, 8), (4, 3)), ((1, 1), (10, 7)), ((7, 1), (1, 9)), ((5, 4), (7, 5))],
    ids=str,
)
def test_equals_the_definition(resize: str, definition, grids) -> None:
    (H, W), (h, w) = grids
    features = torch.randn(2, 7, H, W, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(2, 3, h, w, dtype=torch.float64, requires_grad=True)
    # A large eps: with a small one a one-pixel map gives masks a gradient that is nothing but cancellation.
    got, expected = masked_avg_pool(features, masks, 0.5, resize), definition(features, masks, 0.5)
    weights = torch.randn_like(got)
    gradients = torch.autograd.grad((got * weights).sum(), (features, masks))
    wanted = torch.autograd.grad((expected * weights).sum(), (features, masks))
    for x, y in zip((got, *gradients), (expected, *wanted), strict=True):
        assert relative_error(x, y) < 1e-12


@pytest.mark.parametrize("channels_last", [False, True])
def test_full_size(channels_last: bool) -> None:
    features = torch.randn(1, 512, 53, 53)
    masks = torch.rand(1, 1, 417, 417) < 0.3
    masks = torch.cat([~masks, masks], 1)
    exact = upsampled(features.double(), masks)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    assert relative_error(masked_avg_pool(features, masks), exact) < 1e-6


def test_bool_masks_equal_floating_ones() -> None:
    features, masks = torch.randn(2, 7, 6, 5), torch.rand(2, 3, 20, 17) < 0.5
    result = masked_avg_pool(features, masks)
    assert result.dtype == torch.float32
    assert torch.equal(result, masked_avg_pool(features, masks.float()))


@pytest.mark.parametrize("resize", ["features", "masks"])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_empty_mask_gives_zeros(resize: str, eps: float) -> None:
    features = torch.randn(1, 7, 6, 5, requires_grad=True)
    masks = torch.ones(1, 2, 20, 17, requires_grad=True)
    with torch.no_grad():
        masks[0, 1] = 0
    result = masked_avg_pool(features, masks, eps, resize)
    assert not result[0, 1].any()
    assert result[0, 0].any()
    d_features, d_masks = torch.autograd.grad(result[0, 1].sum(), (features, masks))
    assert not d_features.any()
    assert torch.isfinite(d_masks).all()


def test_eps_counts_pixels_of_the_mask() -> None:
    features = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    masks = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(masked_avg_pool(features, masks, eps=64.0), torch.full((1, 1, 3), 0.5).double())
    resized = masked_avg_pool(features, masks, eps=16.0, resize="masks")
    torch.testing.assert_close(resized, torch.full((1, 1, 3), 0.5).double())


FEATURES = torch.zeros(2, 3, 4, 5)
BAD = {
    "rank": ({"masks": torch.ones(2, 4, 5)}, ValueError, r"masks must be \[B,K,h,w\], got 3"),
    "tasks": ({"masks": torch.ones(3, 1, 4, 5)}, ValueError, "masks has 3 tasks, but features has 2"),
    "labels": ({"masks": torch.ones(2, 1, 4, 5, dtype=torch.uint8)}, TypeError, r"\(labels == k\)"),
    "dtype": ({"masks": torch.ones(2, 1, 4, 5, dtype=torch.float64)}, TypeError, "masks must be torch.float32"),
    "no pixels": ({"masks": torch.ones(2, 1, 0, 5)}, ValueError, "masks must have at least one pixel"),
    "features": ({"features": torch.ones(2, 3, 4)}, ValueError, r"features must be \[B,C,H,W\]"),
    "resize": ({"resize": "both"}, ValueError, "resize must be one of 'features', 'masks', got 'both'"),
    "eps": ({"eps": float("nan")}, ValueError, "eps must be finite"),
    "device": ({"masks": torch.ones(2, 1, 4, 5, device="meta")}, ValueError, "masks is on meta"),
    "not a tensor": ({"masks": [1, 2]}, TypeError, "masks must be a tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case: str) -> None:
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        masked_avg_pool(**{"features": FEATURES, "masks": torch.ones(2, 1, 4, 5), **changes})
    assert str(caught.value).startswith("fewseg_ext.masked_avg_pool: ")
