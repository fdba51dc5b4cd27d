"""Cosine similarity of every pixel with every prototype, as logits."""

from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _checks, _library

_OP = "fewseg_ext.cosine_logits"
_op = torch.ops.fewseg.cosine_logits.default
_forward = torch.ops.fewseg._cosine_logits_forward.default
_backward = _library.define_backward("cosine_logits")


def cosine_logits(features: Tensor, prototypes: Tensor, scale: float = 20.0) -> Tensor:
    r"""Scores every pixel against every prototype.

    .. math:: logits_k(x) = scale \cdot \cos(q(x), P_k)

    The softmax of these over k is the mask that BiOpt predicts (Eq. 6, with the sign that its argmax needs: plus).
    Differentiable in both. See docs/math.md.

    Args:
        features: [B,C,H,W]; float32, float64, bfloat16 or float16, NCHW or channels-last.
        prototypes: [B,K,C]; float32 (float64 with float64 features) or the features' dtype.
        scale: factor of the cosine (alpha).

    Returns:
        [B,K,H,W] the logits, in the wider of the two floating dtypes. A vector no longer than 1e-12 has cosine 0 with
        everything, and gradient 0.

    Raises:
        ValueError: sizes, devices or options that do not fit.
        TypeError: a dtype that is not supported.
        NotImplementedError: when the gradient is itself differentiated.

    Example:
        >>> import torch, fewseg_ext
        >>> fewseg_ext.cosine_logits(torch.randn(1, 64, 13, 13), torch.randn(1, 2, 64)).shape
        torch.Size([1, 2, 13, 13])
    """
    if _library.through_dispatcher(features):
        return torch.ops.fewseg.cosine_logits(features, prototypes, scale)
    return _apply(features, prototypes, scale)


def _check(features: Tensor, prototypes: Tensor, scale: float) -> None:
    _checks.features(_OP, features)
    _checks.prototypes(_OP, prototypes, features)
    _checks.finite(_OP, "scale", scale)


class _CosineLogits(torch.autograd.Function):
    @staticmethod
    def forward(features: Tensor, prototypes: Tensor, scale: float) -> tuple[Tensor, ...]:
        with _library.below_autograd():
            return _forward(features, prototypes, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, prototypes, scale = inputs
        _, cosine, inverse_norm = output
        ctx.save_for_backward(features, prototypes, cosine, inverse_norm)
        ctx.scale = scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Any, ...]:
        needs_features, needs_prototypes = ctx.needs_input_grad[:2]
        d_features, d_prototypes = _backward(gradient, *ctx.saved_tensors, ctx.scale, needs_features, needs_prototypes)
        return _library.wanted(d_features, needs_features), _library.wanted_as(d_prototypes, ctx, 1), None


_differentiable = _library.differentiable(_CosineLogits)
_apply = _library.checked_late(_op, _differentiable, _check, differentiable=2)


def _fake(features: Tensor, prototypes: Tensor, scale: float) -> Tensor:
    _check(features, prototypes, scale)
    size = (features.shape[0], prototypes.shape[1], features.shape[2], features.shape[3])
    return features.new_empty(size, dtype=torch.promote_types(features.dtype, prototypes.dtype))


def _fake_forward(features: Tensor, prototypes: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(features, prototypes, scale), *_library.fake_cosines(features, prototypes)


_library.register_autograd("cosine_logits", _apply)
_library.register_autocast("cosine_logits")
_library.register_fake("cosine_logits", _fake)
_library.register_fake("_cosine_logits_forward", _fake_forward)
_library.register_fake("_cosine_logits_backward", _library.fake_cosines_backward)
