"""The mean of the predictions of several samples."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _library, _monte_carlo

_OP = "fewseg_ext.mc_average"
_op = torch.ops.fewseg.mc_average.default
_backward = _library.define_backward("mc_average")


def mc_average(logits: Tensor, size: Sequence[int] | None = None) -> Tensor:
    r"""Averages the probabilities of L Monte-Carlo samples, upsampled to the image.

    .. math:: y(x) = \frac{1}{L} \sum_l softmax_k(up(logits_l)(x))

    Eq. 5 of the VPI paper; equals ``F.interpolate(logits_l, size, mode="bilinear").softmax(1)`` averaged over l, but
    stores neither upsampled logits nor the probabilities of a single sample. Differentiable. See docs/math.md.

    Args:
        logits: [B,L,K,H,W]; float32, float64, bfloat16 or float16.
        size: h, w of the result; bilinear, ``align_corners=False``. None: H, W.

    Returns:
        [B,K,h,w] the mean probabilities, in the dtype of the logits (float32 under autocast).

    Raises:
        ValueError: sizes that do not fit.
        TypeError: a dtype that is not supported.
        NotImplementedError: when the gradient is itself differentiated.

    Example:
        >>> import torch, fewseg_ext
        >>> fewseg_ext.mc_average(torch.randn(1, 6, 2, 13, 13), size=(100, 100)).shape
        torch.Size([1, 2, 100, 100])
    """
    if _library.through_dispatcher(logits):
        return torch.ops.fewseg.mc_average(logits, size)
    return _apply(logits, size)


class _MCAverage(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, size: Sequence[int] | None) -> Tensor:
        with _library.below_autograd():
            return _op(logits, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return _backward(gradient, *ctx.saved_tensors), None


def _check(logits: Tensor, size: Sequence[int] | None) -> None:
    _monte_carlo.check(_OP, logits, size)


_differentiable = _library.differentiable(_MCAverage)
_apply = _library.checked_late(_op, _differentiable, _check, differentiable=1)


def _fake(logits: Tensor, size: Sequence[int] | None) -> Tensor:
    _check(logits, size)
    return _monte_carlo.probabilities(logits, size)


_library.register_autograd("mc_average", _apply)
_library.register_autocast("mc_average", features=False)
_library.register_fake("mc_average", _fake)
_library.register_fake("_mc_average_backward", _monte_carlo.fake_backward)
