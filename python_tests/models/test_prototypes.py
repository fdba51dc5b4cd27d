"""Label maps, pooled prototypes and cosine scores."""

import pytest
import torch
import torch.nn.functional as F

from fewseg_ext.models import prototypes
from fewseg_ext.models.prototypes import check_labels, label_masks, query_prototypes, support_prototypes
from fewseg_ext.ops import reference


def labels(*values: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.tensor(values).to(dtype).view(1, -1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_masks_leave_ignored_pixels_out_of_every_class(dtype: torch.dtype) -> None:
    masks = label_masks(labels(0, 1, 2, 255, 2, dtype=dtype), ways=2)
    assert masks.shape == (3, 1, 5) and masks.dtype == torch.bool
    assert masks[:, 0].int().tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1]]


def test_a_bool_mask_is_background_and_one_way() -> None:
    masks = label_masks(labels(0, 1, 0, dtype=torch.bool), ways=1)
    assert masks[:, 0].int().tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("values", "ways"), [((0, 0), 1), ((0, 1, 255), 1), ((255, 3, 0), 3), ((0, 255, 2), 2), ((1, 1), 1), ((), 1)]
)
def test_good_labels_pass(values: tuple[int, ...], ways: int) -> None:
    check_labels(labels(*values), ways)


@pytest.mark.parametrize(
    ("values", "ways", "message"),
    [
        ((0, 255, 255), 1, "mymasks: .*looks like a 0/255 mask: pass mask > 127"),
        ((255, 255), 2, "looks like a 0/255 mask: pass mask > 127"),
        ((0, 1, 2), 1, r"label 2 is not of this 1-way episode: expected 0 \(background\), 1 or 255"),
        ((0, 254, 255), 1, "label 254 is not"),
        ((0, 4), 3, r"label 4 .* expected 0 \(background\), 1\.\.3 or 255"),
    ],
)
def test_bad_labels_say_what_is_expected(values: tuple[int, ...], ways: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_labels(labels(*values), ways, "mymasks")


def test_dtypes_that_are_no_labels() -> None:
    with pytest.raises(ValueError, match="label -1 is not"):
        check_labels(labels(0, -1, dtype=torch.int64), 1)
    with pytest.raises(TypeError, match=r"expected integer labels .* got torch\.float32"):
        check_labels(labels(0, 1, dtype=torch.float32), 1)
    with pytest.raises(ValueError, match="a bool mask has one foreground class, but the episode has 2 ways"):
        check_labels(labels(0, 1, dtype=torch.bool), 2)


def test_an_image_without_the_class_does_not_dilute_its_prototype() -> None:
    """Two images; the first has no way 1, the second no background: each class is what its one image says."""
    features = torch.randn(1, 2, 4, 3, 3)
    maps = torch.zeros(1, 2, 3, 3, dtype=torch.long)
    maps[0, 1] = 1
    for resize in ("features", "masks"):
        pooled = support_prototypes(features, label_masks(maps, 2), resize)
        torch.testing.assert_close(pooled[0, 0], features[0, 0].mean((1, 2)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pooled[0, 1], features[0, 1].mean((1, 2)), rtol=1e-4, atol=1e-5)
        assert not pooled[0, 2].any()


def test_every_image_weighs_the_same_whatever_its_object_s_size() -> None:
    features = torch.randn(1, 2, 4, 4, 4, dtype=torch.float64)
    maps = torch.zeros(1, 2, 4, 4, dtype=torch.long)
    maps[0, 0, :, :3] = 1
    maps[0, 1, 0, 0] = 1
    pooled = support_prototypes(features, label_masks(maps, 1))[0, 1]
    each = torch.stack([features[0, 0, :, :, :3].mean((1, 2)), features[0, 1, :, 0, 0]])
    torch.testing.assert_close(pooled, each.mean(0), rtol=1e-4, atol=1e-5)


def test_an_object_that_the_resized_mask_loses_does_not_dilute() -> None:
    features = torch.randn(1, 2, 4, 2, 2)
    maps = torch.zeros(1, 2, 16, 16, dtype=torch.long)
    maps[0, 0, 0, 0] = 1  # between the samples of the 2 x 2 grid
    maps[0, 1, :, 8:] = 1
    pooled = support_prototypes(features, label_masks(maps, 1), "masks")
    torch.testing.assert_close(pooled[0, 1], features[0, 1, :, :, 1].mean(1), rtol=1e-4, atol=1e-5)


def test_prototypes_of_half_precision_features_are_float32() -> None:
    features = torch.randn(1, 1, 4, 3, 3, dtype=torch.bfloat16)
    assert support_prototypes(features, torch.ones(1, 1, 2, 3, 3, dtype=torch.bool)).dtype == torch.float32


def test_a_class_predicted_nowhere_keeps_its_support_prototype() -> None:
    features, support = torch.randn(2, 5, 3, 3), torch.randn(2, 3, 5)
    predicted = torch.zeros(2, 3, 3, dtype=torch.long)
    predicted[1, :, 1] = 2
    pooled = query_prototypes(features, predicted, support)
    torch.testing.assert_close(pooled[0, 0], features[0].mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert torch.equal(pooled[0, 1:], support[0, 1:]) and torch.equal(pooled[1, 1], support[1, 1])
    torch.testing.assert_close(pooled[1, 2], features[1, :, :, 1].mean(1), rtol=1e-4, atol=1e-5)


def test_cosine_logits_are_the_operator_s_with_zero_vectors_and_gradients() -> None:
    features = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    p = torch.randn(2, 3, 6, dtype=torch.float64)
    p[1, 2] = 0
    p.requires_grad_()
    zeroed = torch.ones(2, 1, 3, 4, dtype=torch.float64)
    zeroed[0, 0, 1, 1] = 0
    weights = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    results = []
    for function in (prototypes.cosine_logits, reference.cosine_logits):
        value = function(features * zeroed, p, 7.0)
        results.append((value, *torch.autograd.grad((value * weights).sum(), (features, p))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert not results[0][2][1, 2].any()


def test_task_cross_entropy_is_a_mean_per_task_and_zero_over_nothing() -> None:
    logits = torch.randn(3, 2, 4, 4, requires_grad=True)
    target = torch.randint(0, 2, (3, 4, 4))
    target[1, 2:], target[2] = 255, 255
    losses = prototypes.task_cross_entropy(logits, target)
    expected = [F.cross_entropy(logits[i : i + 1], target[i : i + 1], ignore_index=255) for i in (0, 1)]
    torch.testing.assert_close(losses[:2], torch.stack(expected))
    assert losses[2] == 0
    losses.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and not logits.grad[2].any()
