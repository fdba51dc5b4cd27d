"""fewseg::gaussian_sample and fewseg::sample_prototypes: the random numbers, and what is drawn with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fewseg_ext
from fewseg_ext import gaussian_aggregate, gaussian_sample, sample_prototypes
from fewseg_ext.ops import reference
from samples import KEY, gaussians
from support import relative_error

# From the known answers that the authors of Philox publish: counter, key, result.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_reference_gives_the_known_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    assert reference.philox(torch.tensor(counter), torch.tensor(key)).tolist() == words


def test_operator_gives_the_known_answer() -> None:
    """Counter 0 under key 0 is the first published vector; its words are two pairs of Box-Muller."""
    u = (torch.tensor(KNOWN[0][2], dtype=torch.float64) + 0.5) / 2**32
    radius, angle = (-2 * u[::2].log()).sqrt(), 2 * torch.pi * u[1::2]
    expected = torch.stack((radius * angle.cos(), radius * angle.sin()), 1).flatten()
    got = gaussian_sample(torch.zeros(1, 4).double(), torch.ones(1, 4).double(), 1, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(got[0, 0], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("key", [KEY, (-1, -1), (2**63 - 1, -(2**63)), (7, 2**32)], ids=str)
def test_every_word_of_key_and_counter_counts(key: tuple[int, int]) -> None:
    mean, variance = torch.zeros(3, 11, dtype=torch.float64), torch.ones(3, 11, dtype=torch.float64)
    expected = reference.normal_noise(3, 5, 11, torch.tensor(key))
    torch.testing.assert_close(gaussian_sample(mean, variance, 5, torch.tensor(key)), expected, rtol=1e-9, atol=1e-15)


def standard_samples(tasks: int, samples: int, channels: int, key: tuple[int, int] = KEY) -> Tensor:
    size = (tasks, channels)
    return gaussian_sample(torch.zeros(size), torch.ones(size), samples, torch.tensor(key)).double()


def test_moments_and_tails() -> None:
    """Within five standard errors of what n independent normal numbers have; the key is fixed, so the test is too."""
    z = standard_samples(8, 64, 1024).flatten()
    n = z.numel()
    assert abs(z.mean()) < 5 * (1 / n) ** 0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(z.pow(3).mean()) < 5 * (15 / n) ** 0.5
    assert abs(z.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    normal = torch.distributions.Normal(0.0, 1.0)
    for threshold in (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0):
        share = float(normal.cdf(torch.tensor(threshold, dtype=torch.float64)))
        assert abs((z < threshold).double().mean() - share) < 5 * (share * (1 - share) / n) ** 0.5


def correlation(x: Tensor, y: Tensor) -> float:
    x, y = x.flatten() - x.mean(), y.flatten() - y.mean()
    return float((x * y).mean() / (x.pow(2).mean() * y.pow(2).mean()).sqrt())


def test_independence() -> None:
    """Between channels (also those of one Box-Muller pair), samples, tasks and keys; of the values and the squares."""
    z = standard_samples(16, 32, 512)
    pairs = {f"channel + {d}": (z[..., d:], z[..., :-d]) for d in (1, 2, 3, 4, 8)}
    pairs["pair"] = (z[..., 0::2], z[..., 1::2])
    pairs |= {f"sample + {d}": (z[:, d:], z[:, :-d]) for d in (1, 4)}
    pairs |= {f"task + {d}": (z[d:], z[:-d]) for d in (1, 4)}
    for i in range(2):
        other = list(KEY)
        other[i] += 1
        pairs[f"key {i}"] = (z, standard_samples(16, 32, 512, tuple(other)))
    for name, (x, y) in pairs.items():
        limit = 5 / x.numel() ** 0.5
        assert abs(correlation(x, y)) < limit, name
        assert abs(correlation(x.pow(2), y.pow(2))) < limit, name


@pytest.mark.parametrize("operator", [gaussian_sample, sample_prototypes])
def test_first_samples_do_not_depend_on_their_number(operator) -> None:
    size = (2, 13) if operator is gaussian_sample else (2, 3, 13)
    mean, variance = gaussians(*size, dtype=torch.float32)
    many = operator(mean, variance, 9, torch.tensor(KEY))
    for count in (1, 4):
        assert torch.equal(operator(mean, variance, count, torch.tensor(KEY)), many[:, :count])


def test_sample_prototypes_samples_the_aggregate() -> None:
    inputs = [x.requires_grad_() for x in gaussians(2, 3, 13, dtype=torch.float64)]
    got = sample_prototypes(*inputs, 6, torch.tensor(KEY))
    expected = gaussian_sample(*gaussian_aggregate(*inputs), 6, torch.tensor(KEY))
    weights = torch.randn_like(got)
    gradients, wanted = (torch.autograd.grad(x, inputs, weights) for x in (got, expected))
    for x, y in zip((got, *gradients), (expected, *wanted), strict=True):
        assert relative_error(x, y) < 1e-13


def test_small_variances_have_no_gradient() -> None:
    variance = torch.tensor([[-1.0, 0.0, 1e-13, 2e-12]], dtype=torch.float64, requires_grad=True)
    z = gaussian_sample(torch.zeros_like(variance), variance, 3, torch.tensor(KEY))
    raised = variance.detach().clamp(min=1e-12)
    assert torch.equal(z, gaussian_sample(torch.zeros_like(variance), raised, 3, torch.tensor(KEY)))
    (gradient,) = torch.autograd.grad(z.sum(), variance)
    assert not gradient[0, :3].any()
    assert gradient[0, 3] != 0


def test_the_key_is_drawn_with_the_generator() -> None:
    mean, variance = torch.zeros(1, 4), torch.ones(1, 4)

    def draw(seed: int) -> Tensor:
        return gaussian_sample(mean, variance, 2, generator=torch.Generator(mean.device).manual_seed(seed))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    torch.manual_seed(5)
    first = gaussian_sample(mean, variance, 2)
    assert not torch.equal(first, gaussian_sample(mean, variance, 2))
    torch.manual_seed(5)
    assert torch.equal(first, gaussian_sample(mean, variance, 2))


def test_drawing_the_key_compiles() -> None:
    """Without a graph break, and with another key at every call."""
    compiled = torch.compile(lambda *x: sample_prototypes(*x, 2), fullgraph=True, backend="aot_eager")
    args = gaussians(1, 2, 4, dtype=torch.float32)
    assert not torch.equal(compiled(*args), compiled(*args))


# Prints samples drawn by the other kernels, as the bits of their float32.
OTHER = """
import torch, fewseg_ext
mean, variance = torch.load({inputs!r})
z = fewseg_ext.sample_prototypes(mean, variance, 40, torch.tensor({key!r}))
torch.save(z, {output!r})
"""


def test_cpu_and_cuda_agree_within_one_ulp(backend: str, tmp_path: Path) -> None:
    mean, variance = gaussians(3, 2, 257, dtype=torch.float32)
    mean[:, :, ::2] = 0  # nothing then hides small samples
    if backend == "emulated":
        pytest.skip("the run with --backend=cpu compares both")
    if backend == "cuda":
        got = sample_prototypes(mean, variance, 40, torch.tensor(KEY)).cpu()
        expected = sample_prototypes(mean.cpu(), variance.cpu(), 40, torch.tensor(KEY, device="cpu"))
    else:
        if not (Path(fewseg_ext.__file__).parent / "libfewseg_ops_emulated.so").is_file():
            pytest.skip("a wheel for users has no emulator")
        inputs, output = tmp_path / "inputs.pt", tmp_path / "output.pt"
        torch.save((mean, variance), inputs)
        code = OTHER.format(inputs=str(inputs), output=str(output), key=KEY)
        environment = {**os.environ, "FEWSEG_EMULATE_CUDA": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code], check=True, timeout=100, env=environment)
        got, expected = torch.load(output), sample_prototypes(mean, variance, 40, torch.tensor(KEY))
    below, above = (torch.nextafter(expected, torch.full((), limit, device="cpu")) for limit in (-1e30, 1e30))
    assert ((got >= below) & (got <= above)).all()


MEAN, VARIANCE, A_KEY = torch.zeros(2, 4), torch.ones(2, 4), torch.tensor(KEY)
BAD = {
    "rank": ({"mean": MEAN[0]}, ValueError, r"mean must be \[B,C\], got 1"),
    "sizes": ({"variance": VARIANCE[:1]}, ValueError, "variance must have the sizes of mean"),
    "samples": ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
    "key dtype": ({"key": A_KEY.int()}, TypeError, "key must be int64, got torch.int32"),
    "key size": ({"key": A_KEY[:1]}, ValueError, r"key must be \[2\], got"),
    "key device": ({"key": A_KEY.to("meta")}, ValueError, "key is on meta, but mean is on"),
    "both": ({"generator": torch.Generator("cpu")}, ValueError, "got both key and generator"),
    "not a tensor": ({"mean": 1.0, "key": None}, TypeError, "mean must be a tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case: str) -> None:
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        gaussian_sample(**{"mean": MEAN, "variance": VARIANCE, "num_samples": 2, "key": A_KEY, **changes})
    assert str(caught.value).startswith("fewseg_ext.gaussian_sample: ")


def test_errors_of_sample_prototypes() -> None:
    with pytest.raises(ValueError, match=r"fewseg_ext.sample_prototypes: mean must be \[B,S,C\], got 2"):
        sample_prototypes(MEAN, VARIANCE, 2, A_KEY)
