"""Dtypes, autocast and torch.func: what an operator takes, and what it gives back."""

import pytest
import torch

import fewseg_ext
from samples import SAMPLES, Sample, Sizes, results
from support import relative_error

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: "-".join(filter(None, (s.name, s.variant))))
half_dtypes = pytest.mark.parametrize(("dtype", "ulp"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str)

SIZES = Sizes(tasks=2, classes=3, channels=70, height=13, width=11, mask_height=40, mask_width=31)


def value_and_gradients(call, sample: Sample, args: tuple) -> list[torch.Tensor]:
    result = call(*args)
    loss = torch.zeros(())
    for one in sample.with_gradient(result):
        weights = torch.linspace(-1, 1, one.numel(), dtype=torch.float64).reshape(one.shape).to(one.dtype)
        loss = loss + (one * weights).sum()
    gradients = torch.autograd.grad(loss, [args[i] for i in sample.differentiable])
    return [*(x.detach() for x in results(result)), *gradients]


def in_float64(args: tuple) -> tuple:
    return tuple(
        x.detach().double().requires_grad_(x.requires_grad) if torch.is_tensor(x) and x.is_floating_point() else x
        for x in args
    )


@every_sample
@half_dtypes
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_half_features(sample: Sample, dtype: torch.dtype, ulp: float, channels_last: bool) -> None:
    """16-bit features beside float32 companions: only the storage is narrow, the arithmetic is float32."""
    if len(sample.differentiable) == 1 or (channels_last and not sample.feature_map):
        pytest.skip("has no companions, or no feature map")
    args = list(sample.arguments(SIZES, torch.float32))
    args[0] = args[0].to(dtype)
    if channels_last:
        args[0] = args[0].contiguous(memory_format=torch.channels_last)
    for i in sample.differentiable:
        args[i].requires_grad_()
    got = value_and_gradients(sample.public, sample, tuple(args))
    expected = value_and_gradients(sample.reference, sample, in_float64(tuple(args)))
    # The results and the companions' gradients are float32 through and through; the features' gradient is rounded once.
    own = len(got) - len(sample.differentiable)
    for i, (actual, wanted) in enumerate(zip(got, expected, strict=True)):
        assert actual.dtype == (dtype if i == own else torch.float32)
        assert relative_error(actual, wanted) < (2e-6 if i < own else ulp if i == own else 5e-6)


@every_sample
@half_dtypes
def test_everything_half(sample: Sample, dtype: torch.dtype, ulp: float) -> None:
    args = sample.arguments(SIZES, dtype, gradients=True)
    got = value_and_gradients(sample.public, sample, args)
    expected = value_and_gradients(sample.reference, sample, in_float64(args))
    for actual, wanted in zip(got, expected, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) < 2 * ulp


@every_sample
@pytest.mark.parametrize("call", ["public", "dispatched"])
def test_autocast(sample: Sample, call: str) -> None:
    """Under autocast features are taken as they come, everything else becomes float32, and so do the results."""
    args = sample.arguments(SIZES, torch.bfloat16, gradients=True)
    with torch.autocast(args[0].device.type, dtype=torch.bfloat16):
        got = value_and_gradients(getattr(sample, call), sample, args)
    own = len(got) - len(sample.differentiable)
    assert [x.dtype for x in got] == [torch.float32] * own + [torch.bfloat16] * len(sample.differentiable)
    taken = [
        x.float() if torch.is_tensor(x) and x.is_floating_point() and (i > 0 or not sample.feature_map) else x
        for i, x in enumerate(args)
    ]
    assert all(torch.equal(x, y) for x, y in zip(got, results(sample.public(*taken)), strict=False))


def test_a_companion_of_another_width_is_refused() -> None:
    for sample in SAMPLES:
        args = list(sample.arguments(SIZES, torch.bfloat16))
        for i in sample.differentiable[1:]:
            wrong = [*args[:i], args[i].double(), *args[i + 1 :]]
            with pytest.raises(TypeError, match=rf"{sample.name}: \w+ must be float32 or torch.bfloat16 like"):
                sample.public(*wrong)


def test_autocast_leaves_float64_alone() -> None:
    for sample in SAMPLES:
        args = sample.arguments()
        expected = results(sample.public(*args))
        with torch.autocast(args[0].device.type, dtype=torch.bfloat16):
            got = results(sample.public(*args))
        assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_autocast_makes_bool_masks_float32() -> None:
    masks = torch.rand(1, 2, 9, 9) < 0.5
    with torch.autocast(masks.device.type, dtype=torch.bfloat16):
        assert fewseg_ext.masked_avg_pool(torch.randn(1, 4, 3, 3, dtype=torch.bfloat16), masks).dtype == torch.float32


@every_sample
def test_func_grad(sample: Sample) -> None:
    args = sample.arguments()
    for i in sample.differentiable:

        def scalar(x, i=i):
            return sum(y.pow(2).sum() for y in sample.with_gradient(sample.public(*args[:i], x, *args[i + 1 :])))

        leaf = args[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(scalar(leaf), leaf)
        assert torch.equal(torch.func.grad(scalar)(args[i]), expected)
        with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
            torch.func.grad(lambda x, f=scalar: torch.func.grad(f)(x).pow(2).sum())(args[i])


@every_sample
def test_func_through_the_dispatcher_names_the_way_out(sample: Sample) -> None:
    args = sample.arguments()
    with pytest.raises(NotImplementedError, match=f"call fewseg_ext.{sample.name} instead"):
        torch.func.grad(lambda x: results(sample.dispatched(x, *args[1:]))[0].sum())(args[0])


@every_sample
def test_func_grad_under_autocast(sample: Sample) -> None:
    """The same casts as without the transform, which go another way."""
    args = sample.arguments(SIZES, torch.bfloat16)
    for i in sample.differentiable:

        def scalar(x, i=i):
            value = sample.public(*args[:i], x, *args[i + 1 :])
            assert all(y.dtype == torch.float32 for y in results(value))
            return sum(y.pow(2).sum() for y in sample.with_gradient(value))

        leaf = args[i].clone().requires_grad_()
        with torch.autocast(leaf.device.type, dtype=torch.bfloat16):
            (expected,) = torch.autograd.grad(scalar(leaf), leaf)
            got = torch.func.grad(scalar)(args[i])
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, expected)
