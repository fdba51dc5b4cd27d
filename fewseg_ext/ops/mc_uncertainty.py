"""The mean of the predictions of several samples, and how much they disagree."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _library, _monte_carlo

_OP = "fewseg_ext.mc_uncertainty"
_op = torch.ops.fewseg.mc_uncertainty.default
_backward = _library.define_backward("mc_uncertainty")


def mc_uncertainty(logits: Tensor, size: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Averages the probabilities of L Monte-Carlo samples, and measures their spread in the same sweep.

    The entropy of the mean prediction, :math:`H(\bar p)`, is its whole uncertainty; the mutual information
    :math:`H(\bar p) - \frac{1}{L} \sum_l H(p_l)` is the part that the samples disagree about. See docs/math.md.

    Args:
        logits: [B,L,K,H,W]; float32, float64, bfloat16 or float16.
        size: h, w of the results; bilinear, ``align_corners=False``. None: H, W.

    Returns:
        In the dtype of the logits (float32 under autocast): the mean probabilities [B,K,h,w], as
        :func:`fewseg_ext.mc_average` gives them; their variance over the samples (divided by L) [B,K,h,w]; the entropy
        of the mean [B,h,w] and the mutual information [B,h,w], both in nats. Only the probabilities are differentiable.

    Raises:
        ValueError: sizes that do not fit.
        TypeError: a dtype that is not supported.
        NotImplementedError: when a gradient is asked of variance, entropy or mutual information, or when the gradient
            of the probabilities is itself differentiated. Compiled code cannot tell such a gradient from one that
            nobody asked for: there the three come out detached.

    Example:
        >>> import torch, fewseg_ext
        >>> results = fewseg_ext.mc_uncertainty(torch.randn(1, 6, 2, 13, 13), size=(100, 100))
        >>> [tuple(x.shape) for x in results]
        [(1, 2, 100, 100), (1, 2, 100, 100), (1, 100, 100), (1, 100, 100)]
    """
    if _library.through_dispatcher(logits):
        return torch.ops.fewseg.mc_uncertainty(logits, size)
    return _apply(logits, size)


class _MCUncertainty(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, size: Sequence[int] | None, detached: bool) -> tuple[Tensor, ...]:
        with _library.below_autograd():
            return _op(logits, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(inputs[0])
        # None for a gradient that nobody asked for, instead of zeros: this is how the others are told apart.
        ctx.set_materialize_grads(False)
        if inputs[2]:
            ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        if any(x is not None for x in others):
            raise NotImplementedError(
                f"{_OP}: only the probabilities are differentiable; detach variance, entropy and mutual_information"
            )
        return None if gradient is None else _backward(gradient, *ctx.saved_tensors), None, None


_differentiable = _library.differentiable(_MCUncertainty, results=4)


def _check(logits: Tensor, size: Sequence[int] | None) -> None:
    _monte_carlo.check(_OP, logits, size)


def _with_gradient(logits: Tensor, size: Sequence[int] | None) -> Any:
    return _differentiable(logits, size, _library.is_traced(logits))


_apply = _library.checked_late(_op, _with_gradient, _check, differentiable=1)


def _fake(logits: Tensor, size: Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(logits, size)
    probabilities = _monte_carlo.probabilities(logits, size)
    of_tasks = (probabilities.shape[0], *probabilities.shape[2:])
    return probabilities, torch.empty_like(probabilities), logits.new_empty(of_tasks), logits.new_empty(of_tasks)


_library.register_autograd("mc_uncertainty", _apply)
_library.register_autocast("mc_uncertainty", features=False)
_library.register_fake("mc_uncertainty", _fake)
_library.register_fake("_mc_uncertainty_backward", _monte_carlo.fake_backward)
