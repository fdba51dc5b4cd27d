"""Samples of a Gaussian prototype."""

from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _gaussians, _library

_OP = "fewseg_ext.gaussian_sample"
_op = torch.ops.fewseg.gaussian_sample.default
_backward = _library.define_backward("gaussian_sample")


def gaussian_sample(
    mean: Tensor,
    variance: Tensor,
    num_samples: int,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws samples of a diagonal Gaussian per task, differentiable by the reparametrisation.

    .. math:: z_l = \mu + \sigma \epsilon_l, \qquad \epsilon_l \sim N(0, 1)

    The noise is a function of ``key``, task, sample and channel alone (Philox 4x32-10 and Box-Muller): the same key
    gives the same samples on CPU and CUDA (within one unit in the last place of a float32), and the first samples are
    the same for every ``num_samples``. See docs/math.md.

    Args:
        mean: [B,C]; float32, float64, bfloat16 or float16.
        variance: [B,C], in the dtype of ``mean``, or float32 beside a 16-bit one. Below 1e-12 it is taken as 1e-12 and
            gets no gradient.
        num_samples: L, at least 1.
        key: [2] int64 on the device of ``mean``; drawn where it is not given.
        generator: what the key is drawn with, of the device of ``mean``; torch's own by default.

    Returns:
        [B,L,C] the samples, in the wider of the two dtypes.

    Raises:
        ValueError: sizes or devices that do not fit; both ``key`` and ``generator`` given.
        TypeError: a dtype that is not supported.
        NotImplementedError: when the gradient is itself differentiated.

    Example:
        >>> import torch, fewseg_ext
        >>> fewseg_ext.gaussian_sample(torch.zeros(2, 256), torch.ones(2, 256), num_samples=6).shape
        torch.Size([2, 6, 256])
    """
    key = _gaussians.key_of(_OP, mean, key, generator)
    if _library.through_dispatcher(mean):
        return torch.ops.fewseg.gaussian_sample(mean, variance, num_samples, key)
    return _apply(mean, variance, num_samples, key)


def _check(mean: Tensor, variance: Tensor, num_samples: int, key: Tensor) -> None:
    _gaussians.check(_OP, mean, variance, "B,C")
    _gaussians.check_noise(_OP, mean, num_samples, key)


class _GaussianSample(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        with _library.below_autograd():
            return _op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        mean, variance, _, key = inputs
        ctx.save_for_backward(variance, key)
        ctx.dtypes = mean.dtype, variance.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        gradients = _backward(gradient, *ctx.saved_tensors)
        needed = zip(gradients, ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
        return *(x.to(dtype) if needs else None for x, dtype, needs in needed), None, None


_differentiable = _library.differentiable(_GaussianSample)
_apply = _library.checked_late(_op, _differentiable, _check, differentiable=2)


def _fake(mean: Tensor, variance: Tensor, num_samples: int, key: Tensor) -> Tensor:
    _check(mean, variance, num_samples, key)
    size = (mean.shape[0], num_samples, mean.shape[1])
    return mean.new_empty(size, dtype=_gaussians.result_dtype(mean, variance))


def _fake_backward(gradient: Tensor, variance: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    dtype = _library.accumulator_dtype(variance)
    return variance.new_empty(variance.shape, dtype=dtype), variance.new_empty(variance.shape, dtype=dtype)


_library.register_autograd("gaussian_sample", _apply)
_library.register_autocast("gaussian_sample", features=False)
_library.register_fake("gaussian_sample", _fake)
_library.register_fake("_gaussian_sample_backward", _fake_backward)
