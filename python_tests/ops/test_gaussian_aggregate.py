"""fewseg::gaussian_aggregate: the four weightings, and small variances."""

import pytest
import torch

from fewseg_ext import gaussian_aggregate
from fewseg_ext.ops import reference
from samples import gaussians
from support import relative_error

WEIGHTINGS = ("precision", "uniform")


@pytest.mark.parametrize("mean_weighting", WEIGHTINGS)
@pytest.mark.parametrize("variance_weighting", WEIGHTINGS)
def test_weightings(mean_weighting: str, variance_weighting: str) -> None:
    inputs = [x.requires_grad_() for x in gaussians(2, 5, 19, dtype=torch.float64)]
    got = gaussian_aggregate(*inputs, mean_weighting, variance_weighting)
    expected = reference.gaussian_aggregate(*inputs, mean_weighting, variance_weighting)
    weights = [torch.randn_like(x) for x in expected]
    gradients, wanted = (torch.autograd.grad(x, inputs, weights) for x in (got, expected))
    for x, y in zip((*got, *gradients), (*expected, *wanted), strict=True):
        assert relative_error(x, y) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_shot_keeps_its_mean(dtype: torch.dtype) -> None:
    mean, variance = gaussians(3, 1, 50, dtype=dtype)
    aggregated = gaussian_aggregate(mean, variance)
    assert torch.equal(aggregated[0], mean[:, 0])
    torch.testing.assert_close(aggregated[1], variance[:, 0])


def test_a_sure_shot_outweighs_the_others() -> None:
    mean, variance = torch.tensor([[[1.0], [5.0]]]), torch.tensor([[[1e-8], [1.0]]])
    precise, _ = gaussian_aggregate(mean, variance)
    uniform, _ = gaussian_aggregate(mean, variance, mean_weighting="uniform")
    assert abs(precise.item() - 1) < 1e-6
    assert uniform.item() == 3


@pytest.mark.parametrize("mean_weighting", WEIGHTINGS)
@pytest.mark.parametrize("variance_weighting", WEIGHTINGS)
def test_small_variances(mean_weighting: str, variance_weighting: str) -> None:
    """Below 1e-12 they count as 1e-12 and have no gradient, the others keep theirs."""
    mean = torch.tensor([[[0.0], [1.0], [4.0]]], dtype=torch.float64)
    variance = torch.tensor([[[-1.0], [0.0], [2e-12]]], dtype=torch.float64, requires_grad=True)
    result = gaussian_aggregate(mean, variance, mean_weighting, variance_weighting)
    raised = gaussian_aggregate(mean, variance.detach().clamp(min=1e-12), mean_weighting, variance_weighting)
    assert all(torch.equal(x, y) for x, y in zip(result, raised, strict=True))
    (gradient,) = torch.autograd.grad(result[0].sum() + result[1].sum(), variance)
    assert not gradient[0, :2].any()
    assert gradient[0, 2] != 0


MEAN, VARIANCE = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
BAD = {
    "rank": ({"mean": MEAN[0]}, ValueError, r"mean must be \[B,S,C\], got 2"),
    "sizes": ({"variance": VARIANCE[:1]}, ValueError, r"variance must have the sizes of mean, \[2, 3, 4\], got"),
    "no shots": ({"mean": MEAN[:, :0], "variance": VARIANCE[:, :0]}, ValueError, "mean must hold at least one shot"),
    "mean dtype": ({"mean": MEAN.long()}, TypeError, "mean must be float32, float64"),
    "variance dtype": ({"variance": VARIANCE.double()}, TypeError, "variance must be torch.float32 like mean"),
    "device": ({"variance": VARIANCE.to("meta")}, ValueError, "variance is on meta, but mean is on"),
    "weighting": ({"mean_weighting": "max"}, ValueError, "mean_weighting must be one of 'precision', 'uniform'"),
    "other": ({"variance_weighting": "max"}, ValueError, "variance_weighting must be one of 'precision', 'uniform'"),
    "not a tensor": ({"variance": 1.0}, TypeError, "variance must be a tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case: str) -> None:
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        gaussian_aggregate(**{"mean": MEAN, "variance": VARIANCE, **changes})
    assert str(caught.value).startswith("fewseg_ext.gaussian_aggregate: ")
