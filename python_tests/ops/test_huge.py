"""Tensors of more than 2^31 bfloat16 numbers, where an index of 32 bits would turn negative.

Everything outside a strip at the end is masked or ignored, so that the answer is that of the strip alone. The strip is
reached by the highest indices only.
"""

import math

import pytest
import torch

import fewseg_ext
from fewseg_ext.ops import reference
from support import relative_error

pytestmark = pytest.mark.slow

# 32,832 x 256 x 256 = 2^31 + 2^22 numbers, 4.3 GB. A strip of 8 rows is 134 MB.
CHANNELS, SIDE, ROWS = 32_832, 256, 8
GIB = 2**30


@pytest.fixture(autouse=True)
def _cpu_only(backend: str) -> None:
    if backend != "cpu":
        pytest.skip("about the CPU kernels")


def needs(gib: float) -> None:
    """Skips where that much memory is not free: the test would take the machine down with it."""
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    if free < (gib + 2) * GIB:
        pytest.skip(f"needs {gib} GiB of memory, and {free / GIB:.0f} are available")


def features() -> torch.Tensor:
    return filled(1, CHANNELS, SIDE, SIDE)


def filled(*size: int) -> torch.Tensor:
    """The same small pattern throughout: random numbers for all of it would take minutes."""
    pattern = torch.randn(65_537).bfloat16()
    whole = torch.empty(math.prod(size), dtype=torch.bfloat16)
    assert whole.numel() > 2**31
    for start in range(0, whole.numel(), len(pattern)):
        part = whole[start : start + len(pattern)]
        part.copy_(pattern[: len(part)])
    return whole.view(size)


def strip_of(x: torch.Tensor) -> torch.Tensor:
    return x[..., -ROWS:, :].clone()


def prototypes(classes: int = 2) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(1, classes, CHANNELS), dim=2)


def labels() -> torch.Tensor:
    target = torch.full((1, SIDE, SIDE), 255, dtype=torch.uint8)
    target[:, -ROWS:] = torch.randint(0, 2, (1, ROWS, SIDE))
    return target


def assert_features_gradient(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """The strip's own gradient, and zero elsewhere."""
    assert relative_error(got[..., -ROWS:, :], wanted) < 1e-2
    assert all(not got[:, first : first + 1024, :-ROWS].any() for first in range(0, CHANNELS, 1024))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_masked_avg_pool(channels_last: bool) -> None:
    needs(14)
    whole = features()
    strip = strip_of(whole).requires_grad_()
    if channels_last:
        whole = whole.view(1, SIDE, SIDE, CHANNELS).permute(0, 3, 1, 2)
        strip = strip_of(whole).requires_grad_()
    masks = torch.zeros(1, 2, SIDE, SIDE, dtype=torch.bool)
    masks[:, :, -ROWS:] = torch.rand(1, 2, ROWS, SIDE) < 0.5
    whole.requires_grad_()
    expected = fewseg_ext.masked_avg_pool(strip, strip_of(masks), eps=0)
    got = fewseg_ext.masked_avg_pool(whole, masks, eps=0)
    weights = torch.randn_like(got)
    (wanted,) = torch.autograd.grad(expected, strip, weights)
    assert relative_error(got, expected) < 1e-2
    assert_features_gradient(*torch.autograd.grad(got, whole, weights), wanted)


def test_cosine_logits() -> None:
    needs(10)
    whole, vectors = features(), prototypes(3)
    expected = fewseg_ext.cosine_logits(strip_of(whole), vectors)
    got = fewseg_ext.cosine_logits(whole, vectors)
    assert relative_error(got[:, :, -ROWS:], expected) < 1e-5
    weights = torch.zeros_like(got)
    weights[:, :, -ROWS:] = torch.randn_like(expected)
    strip = strip_of(whole).requires_grad_()
    vectors.requires_grad_()
    wanted = torch.autograd.grad(
        fewseg_ext.cosine_logits(strip, vectors), (strip, vectors), weights[:, :, -ROWS:].contiguous()
    )
    whole.requires_grad_()
    d_whole, d_vectors = torch.autograd.grad(fewseg_ext.cosine_logits(whole, vectors), (whole, vectors), weights)
    assert relative_error(d_vectors, wanted[1]) < 1e-5
    assert_features_gradient(d_whole, wanted[0])


def test_cosine_cross_entropy() -> None:
    needs(10)
    whole, vectors, target = features(), prototypes().requires_grad_(), labels()
    strip = strip_of(whole).requires_grad_()
    whole.requires_grad_()
    expected = fewseg_ext.cosine_cross_entropy(strip, vectors, strip_of(target))
    got = fewseg_ext.cosine_cross_entropy(whole, vectors, target)
    assert relative_error(got, expected) < 1e-5
    wanted = torch.autograd.grad(expected, (strip, vectors))
    d_whole, d_vectors = torch.autograd.grad(got, (whole, vectors))
    assert relative_error(d_vectors, wanted[1]) < 1e-5
    assert_features_gradient(d_whole, wanted[0])


def test_inner_opt() -> None:
    needs(14)
    whole, vectors, target = features(), prototypes().requires_grad_(), labels()
    strip = strip_of(whole).requires_grad_()
    whole.requires_grad_()
    expected = fewseg_ext.inner_opt(strip, vectors, strip_of(target), steps=2)
    got = fewseg_ext.inner_opt(whole, vectors, target, steps=2)
    assert relative_error(got - vectors, expected - vectors) < 1e-4
    weights = torch.randn_like(got)
    wanted = torch.autograd.grad(expected, (strip, vectors), weights)
    d_whole, d_vectors = torch.autograd.grad(got, (whole, vectors), weights)
    assert relative_error(d_vectors, wanted[1]) < 1e-4
    assert_features_gradient(d_whole, wanted[0])


def test_tiled_conv2d() -> None:
    """A result of 8 samples of 16 channels of 4100 x 4100."""
    needs(14)
    side, samples, channels = 4100, 8, 16
    whole = torch.randn(1, 1, side, side).bfloat16()
    z, weight = torch.randn(1, samples, 3).bfloat16(), torch.randn(channels, 4, 3, 3).bfloat16()
    crop = whole[..., -ROWS:, :].float()
    got = fewseg_ext.tiled_conv2d(whole, z, weight, padding=1)
    assert got.numel() > 2**31
    tiled = torch.cat([crop.expand(samples, -1, -1, -1), z.float()[0, :, :, None, None].expand(-1, -1, ROWS, side)], 1)
    expected = torch.nn.functional.conv2d(tiled, weight.float(), padding=1)
    assert relative_error(got[0, :, :, -ROWS + 1 :], expected[:, :, 1:]) < 1e-2
    del got
    # The gradient of the last rows of the last sample alone.
    inputs = [x.requires_grad_() for x in (whole, z, weight)]
    result = fewseg_ext.tiled_conv2d(*inputs, padding=1)
    d_whole, d_z, _ = torch.autograd.grad(result[0, -1, :, -1].float().sum(), inputs)
    taps = weight.detach().float()
    assert not d_whole[..., :-2, :].any()
    assert relative_error(d_whole[0, 0, -1, 1:-1], taps[:, 0, 1].sum().expand(side - 2)) < 1e-2
    assert not d_z[0, :-1].any()
    inside = taps[:, 1:, :2].sum((0, 2)) @ torch.tensor([side - 1.0, side, side - 1])
    assert relative_error(d_z[0, -1], inside) < 1e-2


def test_gaussian_aggregate() -> None:
    """64 shots that share memory: shot s of channel c is base[s + c]. Huge are the operator's copies."""
    needs(18)
    shots, channels, last = 64, 2**25 + 64, 1000
    base, spread = torch.randn(shots + channels).bfloat16(), torch.rand(shots + channels).bfloat16() + 0.5
    mean, variance = (x.as_strided((1, shots, channels), (0, 1, 1)) for x in (base, spread))
    assert mean.numel() > 2**31
    got = fewseg_ext.gaussian_aggregate(mean, variance)
    expected = fewseg_ext.gaussian_aggregate(mean[..., -last:].float(), variance[..., -last:].float())
    for x, y in zip(got, expected, strict=True):
        assert relative_error(x[:, -last:], y) < 1e-2


def noise_of_last_samples(samples: int, channels: int, last: int, key: torch.Tensor) -> torch.Tensor:
    """[last,C]: what `reference.normal_noise` has for the last samples of task 0; for all of them it takes minutes."""
    number, group = torch.arange(samples - last, samples)[:, None], torch.arange(channels // 4)[None]
    number, group = torch.broadcast_tensors(number, group)
    counter = torch.stack((group, number, torch.zeros_like(group), key[1].expand_as(group)), -1)
    words = reference.philox(counter, torch.stack((key[0], torch.zeros_like(key[0]))))
    u = (words.double() + 0.5) * 2.0**-32
    radius, angle = (-2 * u[..., 0::2].log()).sqrt(), 2 * torch.pi * u[..., 1::2]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1)


@pytest.mark.parametrize("op", [fewseg_ext.gaussian_sample, fewseg_ext.sample_prototypes], ids=lambda f: f.__name__)
def test_samples(op) -> None:
    """2^20 + 64 samples of 2048 numbers; three shots that agree are as good as one."""
    needs(14)
    samples, channels, last, key = 2**20 + 64, 2048, 3, torch.tensor([1, 2])
    mean, variance = torch.randn(1, channels).bfloat16(), torch.rand(1, channels).bfloat16() + 0.5
    shots = [x if op is fewseg_ext.gaussian_sample else x[:, None].expand(1, 3, channels) for x in (mean, variance)]
    got = op(*shots, samples, key)
    assert got.numel() > 2**31
    noise = noise_of_last_samples(samples, channels, last, key)
    # The variance of an aggregate is S / sum of precisions, so that of equal ones is theirs.
    expected = mean.double() + variance.double().sqrt() * noise
    assert relative_error(got[0, -last:], expected) < 1e-2


def test_mc_average() -> None:
    """A small map of logits brought to 32,776 x 32,768; the last rows are those of the logits' last row."""
    needs(14)
    height, width = 32_776, 32_768
    logits = torch.randn(1, 2, 2, 4, 4).bfloat16().requires_grad_()
    got = fewseg_ext.mc_average(logits, (height, width))
    assert got.numel() > 2**31
    row = logits.detach()[..., 3:, :].clone().requires_grad_()
    expected = fewseg_ext.mc_average(row, (ROWS, width))
    assert torch.equal(got[..., -ROWS:, :], expected)
    weights = torch.randn(expected.shape)
    (wanted,) = torch.autograd.grad((expected.float() * weights).sum(), row)
    total = (got[..., -ROWS:, :].float() * weights).sum()
    del got
    (gradient,) = torch.autograd.grad(total, logits)
    assert not gradient[..., :3, :].any()
    assert relative_error(gradient[..., 3:, :], wanted) < 1e-2


def test_mc_uncertainty() -> None:
    """32 samples of 5800 x 5800, not resized: every row is its own."""
    needs(15)
    samples, side = 32, 5800
    logits = filled(1, samples, 2, side, side)
    expected = fewseg_ext.mc_uncertainty(strip_of(logits))
    for x, y in zip(fewseg_ext.mc_uncertainty(logits), expected, strict=True):
        assert torch.equal(x[..., -ROWS:, :], y)
