"""Any shape, stride and value: the operators equal the reference, or refuse with a clear error."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from samples import SAMPLES, Sample, Sizes, results
from support import relative_error

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


def restride(x: Tensor, draw: st.DataObject, name: str) -> Tensor:
    """The same values under strides of another kind: permuted memory, gaps, or an offset into a larger tensor."""
    order = draw.draw(st.permutations(range(x.dim())), label=f"{name} memory order")
    gap = draw.draw(st.integers(1, 3), label=f"{name} gap")
    offset = draw.draw(st.integers(0, 2), label=f"{name} offset")
    memory = torch.zeros([x.shape[d] + offset for d in order[:-1]] + [(x.shape[order[-1]] + offset) * gap]).to(x.dtype)
    view = memory[tuple(slice(offset, None) for _ in order[:-1])][..., offset * gap :: gap]
    view.copy_(x.permute(order))
    result = view.permute([order.index(d) for d in range(x.dim())])
    assert torch.equal(result, x)
    return result


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
