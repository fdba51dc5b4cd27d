"""fewseg::inner_opt: against an independent oracle, at full size, and at the edges of math.md section 0."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewseg_ext import inner_opt
from support import relative_error


def unrolled(features, prototypes, target, steps=10, lr=0.1, scale=20.0, ignore_index=255, reduction="mean") -> Tensor:
    """Eq. 7 with PyTorch's own cross-entropy and autograd, written apart from fewseg_ext.ops.reference."""
    results = []
    for q, p, t in zip(features.flatten(2), prototypes, target.flatten(1), strict=True):
        for _ in range(steps):
            logits = scale * (F.normalize(p, dim=1) @ F.normalize(q, dim=0)).T
            loss = F.cross_entropy(logits, t.long(), ignore_index=ignore_index, reduction=reduction)
            (gradient,) = torch.autograd.grad(loss, p, create_graph=True)
            p = p - lr * gradient
        results.append(p)
    return torch.stack(results)


def problem(classes=2, channels=13, height=5, width=7, tasks=1, dtype=torch.float64, ignored=0.1, gradients=True):
    features = torch.randn(tasks, channels, height, width, dtype=dtype, requires_grad=gradients)
    prototypes = F.normalize(torch.randn(tasks, classes, channels, dtype=dtype), dim=2).requires_grad_(gradients)
    target = torch.randint(0, classes, (tasks, height, width))
    target[torch.rand(target.shape) < ignored] = 255
    return features, prototypes, target


def compare(features, prototypes, target, **options) -> list[float]:
    """Relative errors of the result and of both gradients against the unrolled loop in float64."""
    exact = [x.detach().double().requires_grad_() for x in (features, prototypes)]
    got = inner_opt(features, prototypes, target, **options)
    expected = unrolled(*exact, target, **options)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((got * weights.to(got.dtype)).sum(), (features, prototypes))
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    return [relative_error(x, y) for x, y in zip((got, *gradients), (expected, *wanted), strict=True)]


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize(("reduction", "lr"), [("mean", 0.1), ("sum", 0.003)])
def test_equals_unrolled_autograd(classes: int, reduction: str, lr: float) -> None:
    errors = compare(*problem(classes, tasks=2), lr=lr, reduction=reduction)
    assert max(errors) < 1e-12


@pytest.mark.parametrize("classes", [2, 6])
def test_full_size(classes: int) -> None:
    """A ResNet's map: C = 2048, 53 x 53. Float32 sums of 2,809 pixels and 2,048 channels must not wear out."""
    features, prototypes, target = problem(classes, 2048, 53, 53, dtype=torch.float32)
    result, d_features, d_prototypes = compare(features, prototypes, target)
    assert result < 2e-6
    assert d_features < 5e-6
    assert d_prototypes < 5e-6
    exact = [x.detach().double().requires_grad_() for x in (features, prototypes)]
    assert max(compare(*exact, target)) < 1e-10


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_steps(steps: int) -> None:
    features, prototypes, target = problem(3)
    assert max(compare(features, prototypes, target, steps=steps)) < 1e-12 if steps else True
    result = inner_opt(features, prototypes, target, steps=steps)
    moved = 0.0
    if steps == 0:
        assert torch.equal(result, prototypes)
        assert result.data_ptr() != prototypes.data_ptr()
        d_features, d_prototypes = torch.autograd.grad(result.sum(), (features, prototypes))
        assert not d_features.any()
        assert torch.equal(d_prototypes, torch.ones_like(prototypes))
    else:
        moved = relative_error(result, prototypes.detach())
    assert (moved > 1e-3) == (steps > 0)


def test_descends() -> None:
    features, prototypes, target = problem(3, gradients=False)

    def loss(p: Tensor) -> float:
        logits = 20 * torch.einsum("bchw,bkc->bkhw", F.normalize(features, dim=1), F.normalize(p, dim=2))
        return F.cross_entropy(logits, target, ignore_index=255).item()

    losses = [loss(inner_opt(features, prototypes, target, steps=steps, lr=0.02)) for steps in range(0, 12, 3)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_first_order_takes_the_steps_as_constants() -> None:
    features, prototypes, target = problem(3)
    second = inner_opt(features, prototypes, target)
    first = inner_opt(features, prototypes, target, second_order=False)
    assert torch.equal(first, second)
    weights = torch.randn_like(first)
    d_features, d_prototypes = torch.autograd.grad((first * weights).sum(), (features, prototypes))
    assert torch.equal(d_prototypes, weights)
    assert not d_features.any()
    exact = torch.autograd.grad((second * weights).sum(), (features, prototypes))
    assert relative_error(exact[1], d_prototypes) > 1e-3


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_label_dtypes(dtype: torch.dtype) -> None:
    features, prototypes, target = problem(3)
    assert torch.equal(inner_opt(features, prototypes, target.to(dtype)), inner_opt(features, prototypes, target))


def test_options_reach_the_kernel() -> None:
    features, prototypes, target = problem(3)
    target[target == 255] = 2
    assert max(compare(features, prototypes, target, steps=3, lr=0.03, scale=7.0, ignore_index=2)) < 1e-12


# --- the edges: math.md, section 0 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_ignored_keeps_the_prototypes(dtype: torch.dtype) -> None:
    features, prototypes, target = problem(2, tasks=2, dtype=dtype)
    target[1] = 255
    result = inner_opt(features, prototypes, target)
    assert torch.equal(result[1], prototypes[1])
    assert not torch.equal(result[0], prototypes[0])
    weights = torch.randn_like(result)
    d_features, d_prototypes = torch.autograd.grad((result * weights).sum(), (features, prototypes))
    assert torch.equal(d_prototypes[1], weights[1])
    assert not d_features[1].any()
    assert d_features[0].any()


def test_zero_pixel_has_zero_gradient() -> None:
    features, prototypes, target = problem(2)
    with torch.no_grad():
        features[0, :, 1, 2] = 0
        target[0, 1, 2] = 1
    assert max(compare(features, prototypes, target)[0:3:2]) < 1e-12  # F.normalize has another gradient at 0
    (d_features,) = torch.autograd.grad(inner_opt(features, prototypes, target).pow(2).sum(), features)
    assert not d_features[0, :, 1, 2].any()
    assert torch.isfinite(d_features).all()
    assert d_features[0, :, 0, 0].any()


@pytest.mark.parametrize("zero_class", [0, 1])
def test_zero_prototype_never_moves(zero_class: int) -> None:
    features, prototypes, target = problem(3)
    with torch.no_grad():
        prototypes[0, zero_class] = 0
    result = inner_opt(features, prototypes, target)
    assert not result[0, zero_class].any()
    assert not torch.equal(result[0, 2], prototypes[0, 2])
    weights = torch.randn_like(result)
    d_features, d_prototypes = torch.autograd.grad((result * weights).sum(), (features, prototypes))
    assert torch.equal(d_prototypes[0, zero_class], weights[0, zero_class])
    assert torch.isfinite(d_features).all()


def test_one_class_has_nothing_to_learn() -> None:
    features, prototypes, _ = problem(1)
    target = torch.zeros(1, 5, 7, dtype=torch.long)
    assert torch.equal(inner_opt(features, prototypes, target), prototypes)


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e3, 1e17])
def test_range_of_norms_in_float32(scale: float) -> None:
    """1e-12 <= |q|, |P| <= 1e18. Features of any length give the same steps; the step shrinks as 1/|P|."""
    features, prototypes, target = problem(2, 64, 9, 9, dtype=torch.float32, gradients=False)
    features = F.normalize(features, dim=1)
    expected = inner_opt(features, prototypes, target)
    assert relative_error(inner_opt(features * scale, prototypes, target), expected) < 1e-6
    one = inner_opt(features, prototypes, target, steps=1) - prototypes
    scaled = inner_opt(features, prototypes * scale, target, steps=1, lr=0.1 * scale**2) - prototypes * scale
    assert relative_error(scaled / scale, one) < 1e-4


def test_more_classes_than_fit_a_stack() -> None:
    assert max(compare(*problem(33, 24, 6, 6), steps=3)) < 1e-12


def test_nan_is_not_hidden() -> None:
    features, prototypes, target = problem(2, tasks=2, gradients=False)
    features[0, 0, 0, 0] = float("nan")
    target[0, 0, 0] = 1
    result = inner_opt(features, prototypes, target)
    assert result[0].isnan().any()
    assert result[1].isfinite().all()


# --- errors --------------------------------------------------------------------------------------------------------


def arguments(**changes):
    features, prototypes, target = problem(2, tasks=2, gradients=False)
    return {"features": features, "prototypes": prototypes, "target": target, **changes}


BAD = {
    "features rank": ({"features": torch.zeros(13, 5, 7)}, ValueError, r"features must be \[B,C,H,W\], got 3"),
    "features dtype": (
        {"features": torch.zeros(2, 13, 5, 7, dtype=torch.int64)},
        TypeError,
        "features must be float32",
    ),
    "no pixels": ({"features": torch.zeros(2, 13, 0, 7)}, ValueError, "features must have at least one pixel"),
    "prototypes rank": ({"prototypes": torch.zeros(2, 13)}, ValueError, r"prototypes must be \[B,K,C\], got 2"),
    "prototypes dtype": ({"prototypes": torch.zeros(2, 2, 13)}, TypeError, "prototypes must be torch.float64"),
    "no classes": (
        {"prototypes": torch.zeros(2, 0, 13, dtype=torch.float64)},
        ValueError,
        "prototypes must hold at least one class",
    ),
    "tasks": (
        {"prototypes": torch.zeros(3, 2, 13, dtype=torch.float64)},
        ValueError,
        "prototypes has 3 tasks, but features has 2",
    ),
    "channels": (
        {"prototypes": torch.zeros(2, 2, 12, dtype=torch.float64)},
        ValueError,
        "prototypes has 12 channels, but features has 13",
    ),
    "target rank": ({"target": torch.zeros(2, 35, dtype=torch.long)}, ValueError, r"target must be \[B,H,W\], got 2"),
    "target dtype": ({"target": torch.zeros(2, 5, 7)}, TypeError, "target must be int64, int32 or uint8"),
    "target grid": (
        {"target": torch.zeros(2, 7, 5, dtype=torch.long)},
        ValueError,
        "target must have the features' grid 5 x 7, got 7 x 5",
    ),
    "label": (
        {"target": torch.full((2, 5, 7), 2)},
        ValueError,
        r"target has the label 2 at \[0, 0, 0\]; expected 0..1 or ignore_index = 255",
    ),
    "negative label": ({"target": torch.full((2, 5, 7), -1)}, ValueError, "target has the label -1"),
    "steps": ({"steps": -1}, ValueError, "steps must not be negative, got -1"),
    "lr": ({"lr": float("nan")}, ValueError, "lr must be finite, got nan"),
    "scale": ({"scale": float("inf")}, ValueError, "scale must be finite, got inf"),
    "reduction": ({"reduction": "none"}, ValueError, "reduction must be one of 'mean', 'sum', got 'none'"),
    "device": ({"target": torch.zeros(2, 5, 7, dtype=torch.long, device="meta")}, ValueError, "target is on meta"),
}


LABEL_CASES = ("label", "negative label")


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("gradients", [False, True])
def test_errors(case: str, gradients: bool, backend: str) -> None:
    if case in LABEL_CASES and backend != "cpu":
        pytest.skip("a GPU cannot raise for a label without waiting; see test_wrong_labels_on_a_gpu")
    changes, error, message = BAD[case]
    args = arguments(**changes)
    if gradients and args["prototypes"].is_floating_point():
        args["prototypes"].requires_grad_()
    with pytest.raises(error, match=message) as caught:
        inner_opt(**args)
    assert "inner_opt: " in str(caught.value)


@pytest.mark.parametrize("case", [case for case in BAD if case != "device"])
def test_errors_of_the_kernel_itself(case: str, backend: str) -> None:
    """Below Python the kernel checks again, so that no caller makes it read out of bounds."""
    if case in LABEL_CASES and backend != "cpu":
        pytest.skip("a GPU cannot raise for a label without waiting; see test_wrong_labels_on_a_gpu")
    args = arguments(**BAD[case][0])
    with torch.inference_mode(), torch._C._AutoDispatchBelowAutograd():
        if case == "no pixels":
            with pytest.raises(RuntimeError, match="fewseg::inner_opt"):
                torch.ops.fewseg.inner_opt(**args)
        else:
            with pytest.raises(RuntimeError, match="fewseg::inner_opt: "):
                torch.ops.fewseg.inner_opt(**args)


@pytest.mark.parametrize("label", [3, -1, 254, 2**40])
def test_wrong_labels_on_a_gpu(label: int, backend: str) -> None:
    """Never an access out of bounds; NaN for that task, the right numbers for the others."""
    if backend == "cpu":
        pytest.skip("the CPU raises")
    features, prototypes, target = problem(3, tasks=2)
    expected = inner_opt(features, prototypes, target)
    target[0, 1, 1] = label
    result = inner_opt(features, prototypes, target)
    assert result[0].isnan().all()
    assert torch.equal(result[1], expected[1])
    d_features, d_prototypes = torch.autograd.grad(result.sum(), (features, prototypes))
    assert d_prototypes[0].isnan().all()
    assert d_prototypes[1].isfinite().all()
    assert d_features[1].isfinite().all()
