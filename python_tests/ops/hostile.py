"""Arguments of the operators that nobody means to give, drawn by hypothesis: what test_properties.py asks about.

Shapes from one pixel to 200 x 200 and from 1 to 256 classes, every dtype and mixture that is allowed, memory that is
permuted, expanded or overlaps itself, and values of any size.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fewseg_ext.ops import reference
from samples import Sample, Sizes, results

# Around the kernels' tiles of 16, and far beyond; hypothesis takes the first ones for simple.
SIDES = [1, 2, 3, 7, 15, 16, 17, 33, 64, 127, 200]
any_sizes = st.builds(
    Sizes,
    tasks=st.sampled_from([1, 2, 3, 0]),
    classes=st.sampled_from([1, 2, 3, 6, 33, 256]),
    channels=st.sampled_from([1, 2, 3, 16, 17, 33, 65, 130]),
    height=st.sampled_from(SIDES),
    width=st.sampled_from(SIDES),
    mask_height=st.sampled_from(SIDES),
    mask_width=st.sampled_from(SIDES),
)

# Features, and what stands beside them.
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]
# What a result may be off by, relative to its length. Storing 16-bit numbers is up to one rounding of each.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def fit(sample: Sample, sizes: Sizes, limit: int) -> Sizes:
    """The same sizes, the largest made smaller until the reference can do it in about ``limit`` multiply-adds."""
    names = ("classes", "channels", "height", "width", "mask_height", "mask_width")
    while True:
        pixels = sizes.height * sizes.width
        if sample.name == "tiled_conv2d":
            cost = sizes.classes * sizes.channels * (sizes.channels + 4) * (pixels + 8 * (sizes.height + sizes.width))
        elif sample.name in ("masked_avg_pool", "cosine_cross_entropy"):
            cost = sizes.classes * sizes.channels * (pixels + sizes.mask_height * sizes.mask_width)
        elif sample.name.startswith("mc_"):
            cost = 6 * sizes.classes * sizes.mask_height * sizes.mask_width
        elif sample.feature_map:
            cost = 2 * sizes.classes * sizes.channels * pixels
        else:
            cost = 5 * sizes.classes * sizes.channels
        if sizes.tasks * cost <= limit:
            return sizes
        largest = max(names, key=lambda name: getattr(sizes, name))
        sizes = replace(sizes, **{largest: max(1, 2 * getattr(sizes, largest) // 3)})


def with_dtypes(sample: Sample, sizes: Sizes, dtypes: tuple[torch.dtype, torch.dtype]) -> list[Any]:
    """The sample's arguments; every floating one but the first has the second dtype."""
    args = list(sample.arguments(sizes, dtypes[0]))
    return [
        x.to(dtypes[1]) if i > 0 and torch.is_tensor(x) and x.is_floating_point() else x for i, x in enumerate(args)
    ]


# --- memory --------------------------------------------------------------------------------------------------------


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


def expand(x: Tensor, draw: st.DataObject, name: str) -> Tensor:
    """Along one dimension the first entry again and again, with stride 0."""
    if x.numel() == 0:
        return x
    return x.narrow(draw.draw(st.integers(0, x.dim() - 1), label=f"{name} expanded"), 0, 1).expand(x.shape)


def overlap(x: Tensor, draw: st.DataObject, name: str) -> Tensor:
    """Numbers of x in a shape whose elements share memory: strides of 0 to 3 whatever the sizes."""
    if x.numel() == 0:
        return x
    strides = [draw.draw(st.integers(0, 3), label=f"{name} stride") for _ in x.shape]
    length = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    # Exactly as long as the view is: what reads on is out of bounds.
    return x.flatten().repeat(-(-length // x.numel()))[:length].clone().as_strided(x.shape, strides)


def channels_last(x: Tensor, draw: st.DataObject, name: str) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


LAYOUTS: list[Callable[[Tensor, st.DataObject, str], Tensor]] = [
    lambda x, draw, name: x,
    channels_last,
    restride,
    expand,
    overlap,
]


def any_memory(args: list[Any], sample: Sample, draw: st.DataObject) -> list[Any]:
    def changed(i: int, x: Tensor) -> Tensor:
        layout = draw.draw(st.sampled_from(range(len(LAYOUTS))), label=f"memory of argument {i}")
        if x.dim() == 1 and not x.is_floating_point():
            layout = 0  # a key, which expanded would be another key
        return LAYOUTS[layout](x, draw, f"argument {i}")

    return [changed(i, x) if torch.is_tensor(x) else x for i, x in enumerate(args)]


# --- calls ---------------------------------------------------------------------------------------------------------


def value_and_gradients(call: Callable[..., Any], sample: Sample, args: list[Any]) -> list[Tensor]:
    """Results and gradients of the call, the latter for weights that are the same for every dtype."""
    args = [x.detach() if torch.is_tensor(x) else x for x in args]
    inputs = [args[i].requires_grad_() for i in sample.differentiable]
    result = call(*args)
    generator = torch.Generator("cpu").manual_seed(1)
    differentiated = sample.with_gradient(result)
    # Quarters, which every dtype holds.
    weights = [torch.randint(-8, 9, x.shape, generator=generator, device="cpu").to(x) / 4 for x in differentiated]
    gradients = torch.autograd.grad(differentiated, inputs, weights)
    return [*(x.detach() for x in results(result)), *gradients]


def in_float64(args: list[Any]) -> list[Any]:
    """Contiguous copies in float64: what the reference is asked."""
    return [
        (x.double() if x.is_floating_point() else x).clone(memory_format=torch.contiguous_format)
        if torch.is_tensor(x)
        else x
        for x in args
    ]


# --- what is right -------------------------------------------------------------------------------------------------


def distance(actual: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The length of the difference where both are finite, and of what was wanted there."""
    both = actual.isfinite() & wanted.isfinite()
    actual, wanted = actual.double()[both], wanted.double()[both]
    # Squares of numbers beyond 1e154 would overflow.
    unit = max(wanted.abs().max().item(), actual.abs().max().item(), 1e-300) if len(wanted) else 1.0
    return unit * ((actual - wanted) / unit).norm().item(), unit * (wanted / unit).norm().item()


def rounding_of(sample: Sample, args: list[Any], argument: int) -> float:
    """How far a gradient may be off by rounding alone, where it is a difference of which little is left.

    Of a cosine: the gradient to a vector v is something divided by |v|, minus its part along v; with one channel that
    is all of it. Of an average: that to a mask is (feature - average) / mass. Of aggregated Gaussians: that to a
    variance v has (mean of all - mean) / v in it; both the operator and the reference compute it in double.
    """
    if sample.name in ("gaussian_aggregate", "sample_prototypes") and argument == 1:
        mean, variance = (x.double().nan_to_num(1, 1, 1) for x in args[:2])
        largest = (mean.abs().max() / variance.clamp(min=reference.LEAST_VARIANCE).min()).item() if mean.numel() else 0
        return 1000 * torch.finfo(torch.float64).eps * largest
    epsilon = torch.finfo(torch.float64 if args[0].dtype == torch.float64 else torch.float32).eps
    if sample.name == "masked_avg_pool" and argument == 1 and args[0].numel():
        features, mass = args[0].double(), args[1].double().sum((2, 3)) + args[2]
        return 100 * epsilon * (features.abs().max() * features.shape[1] / mass.abs().min()).item()
    if not sample.name.startswith(("cosine", "inner")):
        return 0.0

    def shortest(vectors: Tensor, dim: int) -> float:
        lengths = vectors.double().norm(dim=dim)
        lengths = lengths[lengths > reference.ZERO_NORM]
        return lengths.min().item() if len(lengths) else 1.0

    length = shortest(args[argument], dim=1 if argument == 0 else 2)
    size = 1 / length
    if sample.variant == "sum":
        size *= args[2][0].numel()
    if sample.name == "inner_opt":
        # A step moves the prototypes by lr / |p|, of which the derivative is lr / |p|^2.
        size = size * (1 + args[4] / shortest(args[1], dim=2)) if argument == 0 else 1 + args[4] / length**2
    return 1000 * epsilon * args[argument].numel() ** 0.5 * size


def assert_right(sample: Sample, args: list[Any], got: list[Tensor]) -> None:
    """What is finite is the reference's, up to rounding.

    Where the arguments leave hardly anything of a result but rounding (all prototypes alike, a single channel), there
    is no relative error to speak of; there the operator may be as far off as plain PyTorch in the same accumulator is.
    """
    expected = value_and_gradients(sample.reference, sample, in_float64(args))
    own = len(got) - len(sample.differentiable)
    accumulator = torch.float64 if args[0].dtype == torch.float64 else torch.float32
    finite = all(x.isfinite().all() for x in args if torch.is_tensor(x))
    plain = None
    for i, (actual, exact) in enumerate(zip(got, expected, strict=True)):
        if not finite and sample.name.startswith(("cosine_logits", "gaussian", "sample")):
            # Elsewhere a NaN may count with weight 0, which the reference takes for NaN too. Of finite numbers the
            # reference makes NaN where something on the way has overflowed that the operator does not need.
            assert not (exact.isnan() & actual.isfinite()).any(), f"result {i} has a number where there is none"
        error, length = distance(actual, exact.to(actual.dtype))
        if error <= 1e-33:  # the softmaxes end at 1e-38, and up to 200 x 200 of them are summed
            continue
        if error <= TOLERANCE[actual.dtype] * length:
            continue
        if i >= own and error <= rounding_of(sample, args, sample.differentiable[i - own]):
            continue
        if sample.name == "mc_uncertainty" and i < own and error <= TOLERANCE[accumulator] * actual.numel() ** 0.5:
            continue  # differences of numbers of about 1: next to nothing is left where all samples are alike
        if plain is None:
            narrow = [x.to(accumulator) if torch.is_tensor(x) and x.is_floating_point() else x for x in args]
            plain = value_and_gradients(sample.reference, sample, narrow)
        noise, _ = distance(plain[i], exact)
        assert error <= 20 * noise, f"result {i}: off by {error} of {length}; plain PyTorch by {noise}"


# --- values --------------------------------------------------------------------------------------------------------

# Factors of a vector's numbers. Within: lengths that stay between 1e-12, below which a vector is zero, and 1e18.
WITHIN = {
    torch.float32: [1e-9, 1e-4, 1e4, 1e9, 1e16],
    torch.bfloat16: [1e-9, 1e-4, 1e4, 1e9, 1e16],
    torch.float16: [1e-3, 10.0],
    torch.float64: [1e-9, 1e9, 1e100],
}
OUTSIDE = {
    torch.float32: [1e-42, 1e-30, 1e-20, 1e20, 1e30, 3e37],
    torch.bfloat16: [1e-39, 1e-30, 1e-20, 1e20, 1e30, 3e37],
    torch.float16: [1e-7, 1e4],
    torch.float64: [1e-310, 1e-170, 1e170, 1e300],
}


def scaled(sample: Sample, args: list[Any], factors: list[float]) -> list[Any]:
    """Features times the first factor, what is beside them times the second.

    The step of inner_opt grows as the square of the prototypes, so that the descent is the same one at another scale.
    """
    args = list(args)
    for i in (0, 1):
        if torch.is_tensor(args[i]) and args[i].is_floating_point():
            args[i] = (args[i].double() * factors[i]).to(args[i].dtype)
    if sample.name == "inner_opt":
        args[4] *= min(factors[1], 1e150) ** 2
    return args


SPECIAL = [float("inf"), float("-inf"), float("nan"), -0.0, 1e-42, -1e-30, 1e30, 3e38]


def plant(args: list[Any], draw: st.DataObject) -> list[Any]:
    """The same arguments with up to three numbers of SPECIAL in their place."""
    args = [x.clone() if torch.is_tensor(x) else x for x in args]
    floating = [x for x in args if torch.is_tensor(x) and x.is_floating_point() and x.numel() > 0]
    for _ in range(draw.draw(st.integers(1, 3), label="how many")):
        if floating:
            x = draw.draw(st.sampled_from(range(len(floating))), label="argument")
            place = draw.draw(st.integers(0, floating[x].numel() - 1), label="place")
            floating[x].view(-1)[place] = draw.draw(st.sampled_from(SPECIAL), label="value")
    return args
