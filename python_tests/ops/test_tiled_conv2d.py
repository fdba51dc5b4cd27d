"""fewseg::tiled_conv2d: equal to the convolution of the concatenation, at every border."""

import pytest
import torch

from fewseg_ext import tiled_conv2d
from fewseg_ext.ops import reference
from support import relative_error


def problem(grid=(6, 5), kernel=(3, 3), tasks=2, samples=3, channels=4, latent=3, outputs=5, dtype=torch.float64):
    return [
        torch.randn(tasks, channels, *grid, dtype=dtype),
        torch.randn(tasks, samples, latent, dtype=dtype),
        torch.randn(outputs, channels + latent, *kernel, dtype=dtype),
        torch.randn(outputs, dtype=dtype),
    ]


# Grid, kernel, padding, dilation: grids narrower than the kernel, taps that never lie inside, borders wider than the
# grid, even kernels.
GEOMETRIES = [
    ((6, 5), (3, 3), (1, 1), (1, 1)),
    ((6, 5), (1, 1), (0, 0), (1, 1)),
    ((6, 5), (3, 3), (0, 0), (1, 1)),
    ((6, 5), (5, 3), (2, 1), (1, 1)),
    ((9, 8), (3, 5), (2, 6), (2, 3)),
    ((1, 1), (3, 3), (1, 1), (1, 1)),
    ((2, 1), (7, 5), (3, 2), (1, 1)),
    ((1, 3), (5, 7), (8, 9), (4, 3)),
    ((3, 4), (3, 3), (9, 7), (1, 2)),
    ((5, 5), (2, 4), (1, 0), (1, 1)),
    ((20, 19), (3, 3), (6, 6), (6, 6)),
]


@pytest.mark.parametrize(("grid", "kernel", "padding", "dilation"), GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_equals_the_convolution(grid, kernel, padding, dilation, channels_last: bool, bias: bool) -> None:
    inputs = problem(grid, kernel)[: 4 if bias else 3]
    if channels_last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    for x in inputs:
        x.requires_grad_()
    options = {"padding": padding, "dilation": dilation}
    got, expected = tiled_conv2d(*inputs, **options), reference.tiled_conv2d(*inputs, **options)
    weights = torch.randn_like(expected)
    gradients, wanted = (torch.autograd.grad(x, inputs, weights) for x in (got, expected))
    for x, y in zip((got, *gradients), (expected, *wanted), strict=True):
        assert relative_error(x, y) < 1e-12


def test_one_number_pads_and_dilates_both_axes() -> None:
    inputs = problem()
    pairs = tiled_conv2d(*inputs, padding=(2, 2), dilation=(2, 2))
    assert torch.equal(tiled_conv2d(*inputs, padding=2, dilation=2), pairs)


def test_samples_of_channels_last_features_are_channels_last() -> None:
    features, *rest = problem()
    result = tiled_conv2d(features.contiguous(memory_format=torch.channels_last), *rest, padding=1)
    assert result.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert tiled_conv2d(features, *rest, padding=1).is_contiguous()


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_a_channels_last_gradient_is_taken_as_it_comes(channels_last: bool) -> None:
    """The gradient's layout need not be the features'."""
    inputs = [x.requires_grad_() for x in problem(outputs=20)]
    result = tiled_conv2d(*inputs, padding=1)
    gradient = torch.randn_like(result)
    if channels_last:
        gradient = gradient.flatten(0, 1).contiguous(memory_format=torch.channels_last).view_as(result)
        assert not gradient.is_contiguous()
    got = torch.autograd.grad(result, inputs, gradient)
    expected = torch.autograd.grad(reference.tiled_conv2d(*inputs, padding=1), inputs, gradient)
    assert all(relative_error(x, y) < 1e-12 for x, y in zip(got, expected, strict=True))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_bits_do_not_depend_on_threads_or_batch(channels_last: bool) -> None:
    """Without the features' part, whose convolution is torch's."""
    inputs = problem((31, 33), tasks=3, channels=2, latent=70, outputs=40, dtype=torch.float32)
    inputs[0].zero_()
    if channels_last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    z, weight, bias = (x.requires_grad_() for x in inputs[1:])
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            result = tiled_conv2d(*inputs, padding=1)
            gradients = torch.autograd.grad(result.sin().sum(), (z, bias))
            runs.append((result, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))
    for task in range(3):
        alone = tiled_conv2d(inputs[0][task : task + 1], z[task : task + 1], weight, bias, padding=1)
        assert torch.equal(alone[0], runs[0][0][task])


FEATURES, Z, WEIGHT = torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 7), torch.zeros(8, 10, 3, 3)
BAD = {
    "features": ({"features": FEATURES[0]}, ValueError, r"features must be \[B,C,H,W\], got 3"),
    "z rank": ({"z": Z[0]}, ValueError, r"z must be \[B,L,D\], got 2"),
    "z tasks": ({"z": Z[:1]}, ValueError, "z has 1 tasks, but features has 2"),
    "no samples": ({"z": Z[:, :0]}, ValueError, "z must hold at least one sample and one channel"),
    "z dtype": ({"z": Z.double()}, TypeError, "z must be torch.float32 like features"),
    "weight rank": ({"weight": WEIGHT[0]}, ValueError, r"weight must be \[O,C\+D,kh,kw\], got 3"),
    "no kernel": ({"weight": WEIGHT[..., :0]}, ValueError, "weight must not be empty"),
    "channels": ({"weight": WEIGHT[:, :9]}, ValueError, "weight has 9 input channels, .* expected 10"),
    "bias": ({"bias": torch.zeros(7)}, ValueError, "bias has 7 output channels, but weight has 8"),
    "bias device": ({"bias": torch.zeros(8, device="meta")}, ValueError, "bias is on meta"),
    "padding": ({"padding": -1}, ValueError, "padding must not be negative"),
    "paddings": ({"padding": (1, 2, 3)}, ValueError, "padding must be one number or two"),
    "dilation": ({"dilation": 0}, ValueError, "dilation must be at least 1"),
    "too large": ({"dilation": 2}, ValueError, "weight has a kernel of 3 x 3 .* larger than the features 4 x 5"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case: str) -> None:
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        tiled_conv2d(**{"features": FEATURES, "z": Z, "weight": WEIGHT, **changes})
    assert str(caught.value).startswith("fewseg_ext.tiled_conv2d: ")
