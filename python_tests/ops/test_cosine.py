"""fewseg::cosine_logits and fewseg::cosine_cross_entropy: against PyTorch's own functions, and at the edges."""

import pytest
import torch
import torch.nn.functional as F

from fewseg_ext import cosine_cross_entropy, cosine_logits
from support import relative_error


def problem(classes=3, channels=13, grid=(6, 5), target_grid=(20, 17), tasks=2, dtype=torch.float64, gradients=True):
    features = torch.randn(tasks, channels, *grid, dtype=dtype).requires_grad_(gradients)
    prototypes = torch.randn(tasks, classes, channels, dtype=dtype).requires_grad_(gradients)
    target = torch.randint(0, classes, (tasks, *target_grid))
    target[torch.rand(target.shape) < 0.1] = 255
    return features, prototypes, target


def plain_logits(features, prototypes, scale=20.0):
    return scale * F.cosine_similarity(features[:, None], prototypes[..., None, None], dim=2)


def plain_loss(features, prototypes, target, scale=20.0, ignore_index=255, reduction="mean"):
    """What users write."""
    logits = plain_logits(features, prototypes, scale)
    logits = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    if reduction == "per_task":
        per_task = zip(logits, target, strict=True)
        return torch.stack([F.cross_entropy(x[None], t[None].long(), ignore_index=ignore_index) for x, t in per_task])
    return F.cross_entropy(logits, target.long(), ignore_index=ignore_index, reduction=reduction)


def errors(got, expected, inputs) -> list[float]:
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((got * weights.to(got.dtype)).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    return [relative_error(x, y) for x, y in zip((got, *gradients), (expected, *wanted), strict=True)]


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_logits(classes: int) -> None:
    features, prototypes, _ = problem(classes)
    got, expected = cosine_logits(features, prototypes, 7.0), plain_logits(features, prototypes, 7.0)
    assert max(errors(got, expected, (features, prototypes))) < 1e-12


def test_logits_zero_vectors() -> None:
    features, prototypes, _ = problem()
    with torch.no_grad():
        features[0, :, 1, 1] = 0
        prototypes[1, 2] = 0
    logits = cosine_logits(features, prototypes)
    assert not logits[0, :, 1, 1].any()
    assert not logits[1, 2].any()
    d_features, d_prototypes = torch.autograd.grad(logits.pow(2).sum() + logits.sum(), (features, prototypes))
    assert not d_features[0, :, 1, 1].any()
    assert not d_prototypes[1, 2].any()
    assert d_features.isfinite().all()
    assert d_prototypes[1, 1].any()


@pytest.mark.parametrize(("length", "cosine"), [(0.9e-12, 0.0), (1.1e-12, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_how_short_a_vector_counts_as_zero(length: float, cosine: float, dtype: torch.dtype) -> None:
    short, long = torch.zeros(1, 4, 1, 1, dtype=dtype), torch.ones(1, 4, 1, 1, dtype=dtype)
    short[0, 0] = length
    for features, prototypes in ((short, long), (long, short)):
        got = cosine_logits(features, prototypes[None, ..., 0, 0], scale=1.0)
        torch.testing.assert_close(got, torch.full_like(got, cosine))


@pytest.mark.parametrize("reduction", ["mean", "per_task", "sum"])
@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("target_grid", [(20, 17), (6, 5), (3, 4), (1, 1), (48, 33)], ids=str)
def test_loss(reduction: str, classes: int, target_grid: tuple[int, int]) -> None:
    features, prototypes, target = problem(classes, target_grid=target_grid)
    target[:, 0, 0] = 0  # at least one valid pixel, where F.cross_entropy would give NaN
    options = {"scale": 7.0, "reduction": reduction}
    got, expected = (f(features, prototypes, target, **options) for f in (cosine_cross_entropy, plain_loss))
    assert max(errors(got, expected, (features, prototypes))) < 1e-12


def test_loss_on_a_one_pixel_map() -> None:
    features, prototypes, target = problem(2, grid=(1, 1))
    got, expected = (f(features, prototypes, target) for f in (cosine_cross_entropy, plain_loss))
    assert max(errors(got, expected, (features, prototypes))) < 1e-12


@pytest.mark.parametrize("channels_last", [False, True])
def test_full_size(channels_last: bool) -> None:
    features, prototypes, target = problem(2, 512, (53, 53), (417, 417), 1, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in (features, prototypes)]
    expected = plain_loss(*exact, target)
    wanted = torch.autograd.grad(expected, exact)
    if channels_last:
        features = features.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    got = cosine_cross_entropy(features, prototypes, target)
    gradients = torch.autograd.grad(got, (features, prototypes))
    assert relative_error(got, expected) < 1e-6
    assert max(relative_error(x, y) for x, y in zip(gradients, wanted, strict=True)) < 5e-6


def test_a_sure_and_wrong_prediction_has_a_finite_loss() -> None:
    """exp(-2 * scale) underflows in float32; the loss must not."""
    features = torch.ones(1, 2, 3, 3)
    prototypes = torch.stack([torch.ones(2), -torch.ones(2)])[None]
    loss = cosine_cross_entropy(features, prototypes, torch.ones(1, 3, 3, dtype=torch.long), scale=1000.0)
    torch.testing.assert_close(loss, torch.tensor(2000.0))


@pytest.mark.parametrize("reduction", ["mean", "per_task", "sum"])
def test_nothing_valid_is_zero(reduction: str) -> None:
    features, prototypes, target = problem()
    target[0] = 255
    per_task = cosine_cross_entropy(features, prototypes, target, reduction="per_task")
    assert per_task[0] == 0
    assert per_task[1] > 0
    target[1] = 255
    loss = cosine_cross_entropy(features, prototypes, target, reduction=reduction)
    assert not loss.any()
    gradients = torch.autograd.grad(loss.sum(), (features, prototypes))
    assert not any(g.any() for g in gradients)


def test_ignore_index_wins_over_a_class() -> None:
    features, prototypes, target = problem()
    target[target == 255] = 2
    got, expected = (f(features, prototypes, target, ignore_index=2) for f in (cosine_cross_entropy, plain_loss))
    assert max(errors(got, expected, (features, prototypes))) < 1e-12


def test_batch_mean_weighs_pixels_and_per_task_tasks() -> None:
    features, prototypes, target = problem()
    target[0, 1:] = 255
    per_task = cosine_cross_entropy(features, prototypes, target, reduction="per_task")
    mean = cosine_cross_entropy(features, prototypes, target)
    valid = (target != 255).sum((1, 2))
    torch.testing.assert_close(mean, (per_task * valid).sum() / valid.sum())
    assert (mean - per_task.mean()).abs() > 1e-3


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_label_dtypes(dtype: torch.dtype) -> None:
    features, prototypes, target = problem()
    expected = cosine_cross_entropy(features, prototypes, target)
    assert torch.equal(cosine_cross_entropy(features, prototypes, target.to(dtype)), expected)


FEATURES, PROTOTYPES, TARGET = torch.zeros(2, 3, 4, 5), torch.zeros(2, 2, 3), torch.zeros(2, 9, 9, dtype=torch.long)
BAD = {
    "features rank": ({"features": FEATURES[0]}, ValueError, r"features must be \[B,C,H,W\], got 3"),
    "prototypes rank": ({"prototypes": PROTOTYPES[0]}, ValueError, r"prototypes must be \[B,K,C\], got 2"),
    "prototypes dtype": ({"prototypes": PROTOTYPES.half()}, TypeError, "prototypes must be torch.float32"),
    "channels": ({"prototypes": torch.zeros(2, 2, 4)}, ValueError, "prototypes has 4 channels, but features has 3"),
    "tasks": ({"prototypes": torch.zeros(1, 2, 3)}, ValueError, "prototypes has 1 tasks, but features has 2"),
    "device": ({"prototypes": PROTOTYPES.to("meta")}, ValueError, "prototypes is on meta"),
    "scale": ({"scale": float("inf")}, ValueError, "scale must be finite"),
}
BAD_LOSS = {
    "target rank": ({"target": TARGET[0]}, ValueError, r"target must be \[B,h,w\], got 2"),
    "target dtype": ({"target": TARGET.bool()}, TypeError, "target must be int64, int32 or uint8"),
    "target tasks": ({"target": TARGET[:1]}, ValueError, "target has 1 tasks, but features has 2"),
    "no pixels": ({"target": TARGET[:, :0]}, ValueError, "target must have at least one pixel"),
    "label": (
        {"target": TARGET + 7 * (torch.arange(9) == 4)},
        ValueError,
        r"target has the label 7 at \[0, 0, 4\]; expected 0..1 or ignore_index = 255",
    ),
    "reduction": ({"reduction": "none"}, ValueError, "reduction must be one of 'mean', 'per_task', 'sum', got 'none'"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_of_logits(case: str) -> None:
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        cosine_logits(**{"features": FEATURES, "prototypes": PROTOTYPES, **changes})
    assert str(caught.value).startswith("fewseg_ext.cosine_logits: ")


@pytest.mark.parametrize("case", BAD | BAD_LOSS)
def test_errors_of_loss(case: str, backend: str) -> None:
    if case == "label" and backend != "cpu":
        pytest.skip("a GPU cannot raise for a label without waiting; see test_wrong_labels_on_a_gpu")
    changes, error, message = (BAD | BAD_LOSS)[case]
    with pytest.raises(error, match=message) as caught:
        cosine_cross_entropy(**{"features": FEATURES, "prototypes": PROTOTYPES, "target": TARGET, **changes})
    assert "cosine_cross_entropy: " in str(caught.value)


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_wrong_labels_on_a_gpu(label: int, backend: str) -> None:
    if backend == "cpu":
        pytest.skip("the CPU raises")
    features, prototypes, target = problem()
    expected = cosine_cross_entropy(features, prototypes, target, reduction="per_task")
    target[0, 1, 1] = label
    loss = cosine_cross_entropy(features, prototypes, target, reduction="per_task")
    assert loss[0].isnan()
    assert loss[1] == expected[1]
    assert cosine_cross_entropy(features, prototypes, target).isnan()
    d_features, _ = torch.autograd.grad(loss.sum(), (features, prototypes))
    assert d_features[0].isnan().any()
    assert d_features[1].isfinite().all()
