"""Any shape, stride, dtype and value: the operators equal the reference, or refuse with a clear error; never a crash.

The short runs draw the same examples every time. The long ones (marked slow) draw new ones, FEWSEG_EXAMPLES each.
"""

import os
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hostile import (
    DTYPES,
    OUTSIDE,
    WITHIN,
    any_memory,
    any_sizes,
    assert_right,
    fit,
    in_float64,
    plant,
    restride,
    scaled,
    value_and_gradients,
    with_dtypes,
)
from samples import SAMPLES, Sample, Sizes, results
from support import relative_error

EXAMPLES = int(os.environ.get("FEWSEG_EXAMPLES", "1000"))
quickly = settings(deadline=None, max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck))
for_long = settings(
    deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), print_blob=True, database=None
)
# Multiply-adds that the reference does for one example.
QUICK, LONG = 20_000, 300_000
any_sample = st.sampled_from(SAMPLES)
any_dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 99)

sizes = st.builds(
    Sizes,
    tasks=st.integers(0, 3),
    classes=st.integers(1, 7),
    channels=st.integers(1, 40),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    mask_height=st.integers(1, 40),
    mask_width=st.integers(1, 40),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(sample=st.sampled_from(SAMPLES), sizes=sizes, seed=st.integers(0, 99), data=st.data())
def test_any_shape_and_strides(sample: Sample, sizes: Sizes, seed: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    plain = sample.arguments(sizes)
    args = [restride(x, data, f"argument {i}") if torch.is_tensor(x) else x for i, x in enumerate(plain)]
    inputs = [[xs[i].requires_grad_() for i in sample.differentiable] for xs in (args, plain)]
    got, expected = sample.public(*args), sample.reference(*plain)
    weights = [torch.randn_like(x) for x in sample.with_gradient(expected)]
    gradients, wanted = (
        torch.autograd.grad(sample.with_gradient(result), leaves, weights)
        for result, leaves in zip((got, expected), inputs, strict=True)
    )
    for x, y in zip((*results(got), *gradients), (*results(expected), *wanted), strict=True):
        # With one channel the gradients are zero, and what the reference has instead is rounding.
        assert relative_error(x, y) < 1e-10 or (x - y).abs().max() < 1e-9


@settings(deadline=None, max_examples=60)
@given(sample=st.sampled_from(SAMPLES), sizes=sizes, wrong=sizes, which=st.integers(0, 5))
def test_sizes_that_do_not_fit_are_refused(sample: Sample, sizes: Sizes, wrong: Sizes, which: int) -> None:
    """One argument of another size: the right answer where it fits all the same, else ValueError; never a crash."""
    args = list(sample.arguments(sizes))
    tensors = [i for i, x in enumerate(args) if torch.is_tensor(x)]
    i = tensors[which % len(tensors)]
    args[i] = sample.arguments(wrong)[i]
    try:
        got = results(sample.public(*args))
    except ValueError as error:
        assert f"{sample.name}: " in str(error)
        return
    if got[0].isnan().any():  # how a GPU says it
        labels = args[tensors[-1]]
        assert not labels.is_floating_point()
        assert ((labels >= args[1].shape[1]) & (labels != 255)).any()
        return
    for x, y in zip(got, results(sample.reference(*args)), strict=True):
        assert relative_error(x, y) < 1e-10


@settings(deadline=None, max_examples=40)
@given(sample=st.sampled_from(SAMPLES), sizes=sizes, value=st.sampled_from([float("inf"), float("nan"), 1e30, -0.0]))
def test_odd_values_stay_in_their_task(sample: Sample, sizes: Sizes, value: float) -> None:
    args = sample.arguments(sizes, torch.float32)
    if sizes.tasks < 2 or results(sample.public(*args))[0].dim() == 0:
        return
    before = results(sample.public(*args))
    args[0].view(-1)[0] = value
    for x, y in zip(results(sample.public(*args)), before, strict=True):
        assert torch.equal(x[1:], y[1:])


# --- any memory, dtype, size and value -----------------------------------------------------------------------------


def check_any_input(
    sample: Sample, sizes: Sizes, dtypes, zeros: bool, seed: int, data: st.DataObject, limit: int
) -> None:
    """Every size and dtype in every kind of memory, among them views whose elements share theirs."""
    torch.manual_seed(seed)
    args = with_dtypes(sample, fit(sample, sizes, limit), dtypes)
    if zeros and sample.feature_map:
        args[0][:, :, :1, :1] = 0  # a pixel that is a zero vector
        args[1][:, :1] = 0  # a zero prototype, an empty mask
    args = any_memory(args, sample, data)
    assert_right(sample, args, value_and_gradients(sample.public, sample, args))


@quickly
@given(any_sample, any_sizes, any_dtypes, st.booleans(), seeds, st.data())
def test_any_input(sample, sizes, dtypes, zeros, seed, data) -> None:
    check_any_input(sample, sizes, dtypes, zeros, seed, data, QUICK)


@pytest.mark.slow
@for_long
@given(any_sample, any_sizes, any_dtypes, st.booleans(), seeds, st.data())
def test_any_input_for_long(sample, sizes, dtypes, zeros, seed, data) -> None:
    check_any_input(sample, sizes, dtypes, zeros, seed, data, LONG)


def check_any_scale(sample: Sample, sizes: Sizes, dtypes, seed: int, data: st.DataObject, limit: int) -> None:
    """Vectors of 1e-9 to 1e16 give the right answer. Those far outside too, or one that is not finite."""
    torch.manual_seed(seed)
    inside = data.draw(st.booleans(), label="within the promised range")
    table = WITHIN if inside else OUTSIDE
    factors = [data.draw(st.sampled_from([1.0, *table[dtype]]), label="factor") for dtype in dtypes]
    args = scaled(sample, with_dtypes(sample, fit(sample, sizes, limit), dtypes), factors)
    got = value_and_gradients(sample.public, sample, args)
    if sample.name.startswith("mc_") and factors[0] > 1e4:
        # Logits, not vectors: where two of them are nearly equal, the last bit decides between 0 and 1.
        assert not ((got[0] < 0) | (got[0] > 1)).any()
        return
    assert_right(sample, args, got)
    # A step of 1e10 and more times the square of an inverse length may overflow although the result would not.
    if inside and not (sample.name == "inner_opt" and args[4] > 1e10):
        expected = value_and_gradients(sample.reference, sample, in_float64(args))
        for x, y in zip(got, expected, strict=True):
            assert not (y.to(x.dtype).isfinite() & ~x.isfinite()).any(), "not finite, but could be"


@quickly
@given(any_sample, any_sizes, any_dtypes, seeds, st.data())
def test_any_scale(sample, sizes, dtypes, seed, data) -> None:
    check_any_scale(sample, sizes, dtypes, seed, data, QUICK)


@pytest.mark.slow
@for_long
@given(any_sample, any_sizes, any_dtypes, seeds, st.data())
def test_any_scale_for_long(sample, sizes, dtypes, seed, data) -> None:
    check_any_scale(sample, sizes, dtypes, seed, data, LONG)


def check_any_value(sample: Sample, sizes: Sizes, dtypes, seed: int, data: st.DataObject, limit: int) -> None:
    """A few numbers that are infinite, not a number, negative zero, denormal or the largest there is."""
    torch.manual_seed(seed)
    args = plant(with_dtypes(sample, fit(sample, sizes, limit), dtypes), data)
    assert_right(sample, args, value_and_gradients(sample.public, sample, args))


@quickly
@given(any_sample, any_sizes, any_dtypes, seeds, st.data())
def test_any_value(sample, sizes, dtypes, seed, data) -> None:
    check_any_value(sample, sizes, dtypes, seed, data, QUICK)


@pytest.mark.slow
@for_long
@given(any_sample, any_sizes, any_dtypes, seeds, st.data())
def test_any_value_for_long(sample, sizes, dtypes, seed, data) -> None:
    check_any_value(sample, sizes, dtypes, seed, data, LONG)


# --- what is refused -----------------------------------------------------------------------------------------------

# What becomes of a tensor argument, and whether the message has to name the operator: where torch refuses it before any
# code of ours runs, the message is torch's.
CHANGES = {
    "a dimension less": (lambda x: x[0], True),
    "a dimension more": (lambda x: x[None], True),
    "no elements": (lambda x: x[..., :0], True),
    "complex": (lambda x: x.to(torch.complex64), True),
    "int8": (lambda x: x.to(torch.int8), True),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), True),
    "a list": (lambda x: x.tolist(), False),
    "None": (lambda x: None, False),
    "on meta": (lambda x: x.to("meta"), False),
    "sparse": (lambda x: x.to_sparse(), False),
}


@quickly
@given(any_sample, st.sampled_from(list(CHANGES)), st.integers(0, 5), st.booleans())
def test_what_is_no_such_tensor_is_refused(sample: Sample, change: str, which: int, gradients: bool) -> None:
    args = list(sample.arguments(dtype=torch.float32, gradients=gradients))
    tensors = [i for i, x in enumerate(args) if torch.is_tensor(x)]
    i = tensors[which % len(tensors)]
    optional = (sample.name == "tiled_conv2d" or sample.placed) and i == 3  # the bias, the key
    if (optional and change == "None") or (len(tensors) == 1 and change == "on meta"):
        return  # as it should be
    changed, names_operator = CHANGES[change]
    args[i] = changed(args[i].detach())
    with pytest.raises((ValueError, TypeError, NotImplementedError, RuntimeError)) as caught:
        sample.public(*args)
    assert not names_operator or re.search(rf"fewseg(_ext.|::){sample.name}: ", str(caught.value))


@pytest.mark.parametrize("number", [2**31 + 1, 2**40, 2**62, 2**63 - 1])
def test_numbers_that_no_memory_holds_are_refused(number: int) -> None:
    """Sizes whose products overflow 64 bits included."""
    for sample in SAMPLES:
        args = list(sample.arguments())
        if sample.name == "tiled_conv2d":
            changes = [(4, (number, 0)), (4, (0, number)), (5, (number, 1)), (5, (1, number))]
        elif sample.name.startswith("mc_"):
            changes = [(1, (number, number)), (1, (2**20, number)), (1, (number, 2**20))]
        elif sample.placed:
            changes = [(2, max(number, 2**46))]
        else:
            continue
        for i, value in changes:
            with pytest.raises((ValueError, RuntimeError)):
                sample.public(*[value if j == i else x for j, x in enumerate(args)])


class Recorder(TorchDispatchMode):
    """Notes what the raw backward operators are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().startswith("fewseg::_") and "_backward" in func.name():
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def free_sizes(sample: Sample, argument: int) -> tuple[int, ...]:
    """The dimensions of an argument of the raw backward that may have any size beside the others."""
    if sample.placed and argument == 0:
        return (1,)  # as many samples as there are gradients
    if sample.name.startswith("mc_"):
        return (2, 3) if argument == 0 else (1, 3, 4)  # both grids, and the number of samples
    if sample.name == "cosine_cross_entropy" and argument == 3:
        return (1, 2)  # the target's grid
    return ()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: "-".join(filter(None, (s.name, s.variant))))
def test_raw_backward_refuses_what_the_forward_did_not_give(sample: Sample) -> None:
    """Autograd hands it the right tensors; a caller that comes straight through the dispatcher reads nothing beyond."""
    with Recorder() as recorder:
        value_and_gradients(sample.public, sample, list(sample.arguments()))
    ((backward, args),) = recorder.calls
    for i, x in enumerate(args):
        if not torch.is_tensor(x):
            continue
        changed = [x[None], x.expand(2, *x.shape)[0, :0] if x.dim() else x.new_zeros(1)]
        for dim in range(x.dim()):
            if dim not in free_sizes(sample, i):
                changed.append(x.narrow(dim, 0, x.shape[dim] - 1))
        for other in changed:
            with pytest.raises(RuntimeError, match=f"fewseg::{sample.name}: "):
                backward(*args[:i], other, *args[i + 1 :])
