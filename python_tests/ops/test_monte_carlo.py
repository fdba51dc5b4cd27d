"""fewseg::mc_average and fewseg::mc_uncertainty: against the softmax of upsampled logits, and at the edges."""

import math

import pytest
import torch

from fewseg_ext import mc_average, mc_uncertainty
from fewseg_ext.ops import reference
from support import relative_error


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 9, 20])
@pytest.mark.parametrize("size", [None, (6, 5), (23, 31), (3, 2), (1, 1)], ids=str)
def test_equals_the_definition(classes: int, size: tuple[int, int] | None) -> None:
    logits = (3 * torch.randn(2, 4, classes, 6, 5, dtype=torch.float64)).requires_grad_()
    got, expected = mc_uncertainty(logits, size), reference.mc_uncertainty(logits, size)
    weights = torch.randn_like(expected[0])
    (gradient,) = torch.autograd.grad(got[0], logits, weights)
    (wanted,) = torch.autograd.grad(expected[0], logits, weights)
    for x, y in zip((*got, gradient), (*expected, wanted), strict=True):
        assert relative_error(x, y) < 1e-12


def test_full_size() -> None:
    logits = 2 * torch.randn(1, 6, 2, 48, 48)
    got = mc_uncertainty(logits, (384, 384))
    expected = reference.mc_uncertainty(logits.double(), (384, 384))
    for x, y, tolerance in zip(got, expected, (1e-6, 2e-6, 1e-6, 1e-5), strict=True):
        assert relative_error(x, y) < tolerance


def test_both_operators_give_the_same_probabilities() -> None:
    logits = torch.randn(2, 3, 4, 7, 5)
    assert torch.equal(mc_average(logits, (20, 30)), mc_uncertainty(logits, (20, 30))[0])


def test_samples_that_agree_have_no_mutual_information() -> None:
    logits = torch.randn(1, 1, 3, 5, 5).expand(1, 4, 3, 5, 5)
    _, variance, entropy, information = mc_uncertainty(logits, (9, 9))
    assert variance.max() < 1e-12
    assert information.max() < 1e-6
    assert entropy.min() > 0.01


def test_samples_that_contradict_each_other() -> None:
    """Sure of opposite classes: the whole entropy, log 2, is disagreement."""
    logits = torch.zeros(1, 2, 2, 1, 1)
    logits[0, 0, 0], logits[0, 1, 1] = 50.0, 50.0
    probabilities, variance, entropy, information = (x.flatten() for x in mc_uncertainty(logits))
    torch.testing.assert_close(probabilities, torch.full((2,), 0.5))
    torch.testing.assert_close(variance, torch.full((2,), 0.25))
    torch.testing.assert_close(entropy, torch.full((1,), math.log(2)))
    torch.testing.assert_close(information, torch.full((1,), math.log(2)))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("value", [1e4, 1e30, float("inf")])
def test_huge_logits(classes: int, value: float) -> None:
    """Overflow nowhere; a logit of minus infinity is a class that cannot be."""
    logits = torch.zeros(1, 2, classes, 2, 2)
    logits[:, :, 0] = -value
    expected = torch.full((1, classes, 2, 2), 1 / (classes - 1))
    expected[:, 0] = 0
    probabilities, variance, entropy, information = mc_uncertainty(logits)
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(entropy, torch.full((1, 2, 2), math.log(classes - 1)))
    torch.testing.assert_close(information, torch.zeros(1, 2, 2), rtol=0, atol=1e-6)
    assert not variance.any()


def test_only_the_probabilities_have_a_gradient() -> None:
    logits = torch.randn(1, 3, 2, 4, 4, requires_grad=True)
    probabilities, *others = mc_uncertainty(logits)
    for other in others:
        with pytest.raises(NotImplementedError, match="only the probabilities are differentiable"):
            torch.autograd.grad(probabilities.sum() + other.sum(), logits, retain_graph=True)
    assert torch.autograd.grad(probabilities[:, 0].sum(), logits)[0].any()


def test_compiled_code_detaches_the_others() -> None:
    compiled = torch.compile(mc_uncertainty, fullgraph=True, backend="aot_eager")
    results = compiled(torch.randn(1, 3, 2, 4, 4, requires_grad=True))
    assert [x.requires_grad for x in results] == [True, False, False, False]


BAD = {
    "rank": ({"logits": torch.zeros(2, 3, 4, 5)}, ValueError, r"logits must be \[B,L,K,H,W\], got 4"),
    "dtype": ({"logits": torch.zeros(1, 1, 1, 1, 1).long()}, TypeError, "logits must be float32"),
    "no samples": ({"logits": torch.zeros(1, 0, 2, 3, 3)}, ValueError, "at least one sample and one class"),
    "no pixels": ({"logits": torch.zeros(1, 2, 2, 0, 3)}, ValueError, "logits must have at least one pixel"),
    "size": ({"size": (3,)}, ValueError, r"size must be two numbers of at least 1, got \(3,\)"),
    "zero": ({"size": (0, 3)}, ValueError, r"size must be two numbers of at least 1, got \(0, 3\)"),
    "not a tensor": ({"logits": [1]}, TypeError, "logits must be a tensor"),
}


@pytest.mark.parametrize("operator", [mc_average, mc_uncertainty])
@pytest.mark.parametrize("case", BAD)
def test_errors(operator, case: str) -> None:
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        operator(**{"logits": torch.zeros(1, 2, 2, 3, 3), **changes})
    assert str(caught.value).startswith(f"fewseg_ext.{operator.__name__}: ")
