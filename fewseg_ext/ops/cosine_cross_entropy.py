"""Cross-entropy of upsampled cosine logits, without the upsampled logits."""

from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _checks, _library

_OP = "fewseg_ext.cosine_cross_entropy"
_op = torch.ops.fewseg.cosine_cross_entropy.default
_forward = torch.ops.fewseg._cosine_cross_entropy_forward.default
_backward = _library.define_backward("cosine_cross_entropy")


def cosine_cross_entropy(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    scale: float = 20.0,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of the softmax over scaled cosines, upsampled to the target.

    .. math:: CE(softmax_k(up(scale \cdot \cos(q, P_k))(y)), t(y))

    equals ``F.cross_entropy(F.interpolate(cosine_logits(...), target.shape[1:], mode="bilinear"), target)``, but reads
    the features once and builds nothing of the target's size. Differentiable in features and prototypes.
    See docs/math.md.

    Args:
        features: [B,C,H,W]; float32, float64, bfloat16 or float16, NCHW or channels-last.
        prototypes: [B,K,C]; float32 (float64 with float64 features) or the features' dtype.
        target: [B,h,w] labels 0..K-1, or ``ignore_index``; int64, int32 or uint8. Of any size: the logits are upsampled
            to it (bilinear, ``align_corners=False``).
        scale: factor of the cosine (alpha).
        ignore_index: label of pixels that do not count. Wins over a real class of the same number.
        reduction: ``"mean"`` over the valid pixels of the batch, ``"per_task"`` the mean of every task, or ``"sum"``.

    Returns:
        The loss in the wider of the two floating dtypes: a scalar, or [B] for ``"per_task"``. Over no valid pixel it is
        0 with zero gradients, where ``F.cross_entropy`` gives NaN.

    Raises:
        ValueError: sizes, devices or options that do not fit; a label outside 0..K-1 that is not ``ignore_index`` (on
            CUDA only under :func:`fewseg_ext.set_debug`; without it that task's loss is NaN).
        TypeError: a dtype that is not supported.
        NotImplementedError: when the gradient is itself differentiated.

    Example:
        >>> import torch, fewseg_ext
        >>> features, prototypes = torch.randn(2, 64, 13, 13), torch.randn(2, 2, 64)
        >>> target = torch.randint(0, 2, (2, 100, 100))
        >>> fewseg_ext.cosine_cross_entropy(features, prototypes, target, reduction="per_task").shape
        torch.Size([2])
    """
    args = (features, prototypes, target, scale, ignore_index, reduction)
    if _library.through_dispatcher(features):
        return torch.ops.fewseg.cosine_cross_entropy(*args)
    return _apply(*args)


def _check(
    features: Tensor, prototypes: Tensor, target: Tensor, scale: float, ignore_index: int, reduction: str
) -> None:
    _checks.features(_OP, features)
    _checks.prototypes(_OP, prototypes, features)
    _checks.target(_OP, target, features, prototypes.shape[1], ignore_index, grid="h,w")
    _checks.finite(_OP, "scale", scale)
    _checks.choice(_OP, "reduction", reduction, ("mean", "per_task", "sum"))


class _CosineCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(features: Tensor, prototypes: Tensor, target: Tensor, *settings: Any) -> tuple[Tensor, ...]:
        with _library.below_autograd():
            return _forward(features, prototypes, target, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, prototypes, target, *settings = inputs
        _, cosine, inverse_norm = output
        ctx.save_for_backward(features, prototypes, target, cosine, inverse_norm)
        ctx.settings = settings

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Any, ...]:
        needs_features, needs_prototypes = ctx.needs_input_grad[:2]
        d_features, d_prototypes = _backward(
            gradient, *ctx.saved_tensors, *ctx.settings, needs_features, needs_prototypes
        )
        return _library.wanted(d_features, needs_features), _library.wanted_as(d_prototypes, ctx, 1), *[None] * 4


_differentiable = _library.differentiable(_CosineCrossEntropy)
_apply = _library.checked_late(_op, _differentiable, _check, differentiable=2)


def _fake(
    features: Tensor, prototypes: Tensor, target: Tensor, scale: float, ignore_index: int, reduction: str
) -> Tensor:
    _check(features, prototypes, target, scale, ignore_index, reduction)
    size = (features.shape[0],) if reduction == "per_task" else ()
    return features.new_empty(size, dtype=torch.promote_types(features.dtype, prototypes.dtype))


def _fake_forward(features: Tensor, prototypes: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(features, prototypes, *rest), *_library.fake_cosines(features, prototypes)


def _fake_backward(
    gradient: Tensor, features: Tensor, prototypes: Tensor, target: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return _library.fake_cosines_backward(gradient, features, prototypes, *rest)


_library.register_autograd("cosine_cross_entropy", _apply)
_library.register_autocast("cosine_cross_entropy")
_library.register_fake("cosine_cross_entropy", _fake)
_library.register_fake("_cosine_cross_entropy_forward", _fake_forward)
_library.register_fake("_cosine_cross_entropy_backward", _fake_backward)
