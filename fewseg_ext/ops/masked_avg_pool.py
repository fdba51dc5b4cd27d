"""Masked average pooling."""

from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _checks, _library

_OP = "fewseg_ext.masked_avg_pool"
_op = torch.ops.fewseg.masked_avg_pool.default
_forward = torch.ops.fewseg._masked_avg_pool_forward.default
_backward = _library.define_backward("masked_avg_pool")


def masked_avg_pool(features: Tensor, masks: Tensor, eps: float = 1e-5, resize: str = "features") -> Tensor:
    r"""Averages features under masks: one prototype per mask.

    .. math:: P_k = \sum_y M_k(y) F(y) / (\sum_y M_k(y) + eps)

    The masks may have another resolution than the features. With ``resize="features"`` the result is exactly that of
    upsampling the features to the masks (bilinear, ``align_corners=False``), without ever building them; with
    ``resize="masks"`` the masks are resized to the features' grid first. Differentiable in both. See docs/math.md.

    Args:
        features: [B,C,H,W]; float32, float64, bfloat16 or float16, NCHW or channels-last.
        masks: [B,K,h,w] one mask per class; bool, or weights in float32 (float64 with float64 features) or the
            features' dtype. Label maps are not taken: pass ``(labels == k)``.
        eps: added to the mask's sum, in mask pixels (of the masks' own grid, or of the features' where they are
            resized to it).
        resize: ``"features"`` or ``"masks"``.

    Returns:
        [B,K,C] the prototypes, in the wider of the two floating dtypes. An empty mask gives zeros.

    Raises:
        ValueError: sizes, devices or options that do not fit.
        TypeError: a dtype that is not supported, integer masks above all.
        NotImplementedError: when the gradient is itself differentiated.

    Example:
        >>> import torch, fewseg_ext
        >>> labels = torch.randint(0, 2, (1, 417, 417))
        >>> masks = torch.stack([labels == k for k in range(2)], dim=1)
        >>> fewseg_ext.masked_avg_pool(torch.randn(1, 64, 53, 53), masks).shape
        torch.Size([1, 2, 64])
    """
    if _library.through_dispatcher(features):
        return torch.ops.fewseg.masked_avg_pool(features, masks, eps, resize)
    return _apply(features, masks, eps, resize)


def _check(features: Tensor, masks: Tensor, eps: float, resize: str) -> None:
    _checks.features(_OP, features)
    _checks.rank(_OP, "masks", masks, "B,K,h,w")
    if masks.dtype == torch.bool:
        _checks.same_device(_OP, "masks", masks, features)
    elif masks.is_floating_point():
        _checks.companion(_OP, "masks", masks, features)
    else:
        raise TypeError(
            f"{_OP}: masks must be bool or floating, got {masks.dtype}: pass one mask per class, as (labels == k); "
            "a label such as 255 would otherwise be a weight of 255"
        )
    _checks.same_size(_OP, "masks", masks.shape[0], "features", features.shape[0], "tasks")
    _checks.not_empty(_OP, "masks", masks, "pixel")
    _checks.finite(_OP, "eps", eps)
    _checks.choice(_OP, "resize", resize, ("features", "masks"))


def _result_dtype(features: Tensor, masks: Tensor) -> torch.dtype:
    return features.dtype if masks.dtype == torch.bool else torch.promote_types(features.dtype, masks.dtype)


class _MaskedAvgPool(torch.autograd.Function):
    @staticmethod
    def forward(features: Tensor, masks: Tensor, eps: float, resize: str) -> tuple[Tensor, ...]:
        with _library.below_autograd():
            return _forward(features, masks, eps, resize)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, masks, _, resize = inputs
        _, weights, inverse_mass = output
        ctx.save_for_backward(features, weights, inverse_mass)
        ctx.masks_like = masks.shape[2], masks.shape[3], resize
        ctx.masks_dtype = masks.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Any, ...]:
        needs_features, needs_masks = ctx.needs_input_grad[:2]
        d_features, d_masks = _backward(gradient, *ctx.saved_tensors, *ctx.masks_like, needs_features, needs_masks)
        d_masks = d_masks.to(ctx.masks_dtype)
        return _library.wanted(d_features, needs_features), _library.wanted(d_masks, needs_masks), None, None


_differentiable = _library.differentiable(_MaskedAvgPool)
_apply = _library.checked_late(_op, _differentiable, _check, differentiable=2)


def _fake(features: Tensor, masks: Tensor, eps: float, resize: str) -> Tensor:
    _check(features, masks, eps, resize)
    size = (features.shape[0], masks.shape[1], features.shape[1])
    return features.new_empty(size, dtype=_result_dtype(features, masks))


def _fake_forward(features: Tensor, masks: Tensor, eps: float, resize: str) -> tuple[Tensor, Tensor, Tensor]:
    accumulator = _library.accumulator_dtype(features)
    size = masks.shape[:2]
    weights = features.new_empty((*size, features.shape[2] * features.shape[3]), dtype=accumulator)
    return _fake(features, masks, eps, resize), weights, features.new_empty(size, dtype=accumulator)


def _fake_backward(
    gradient: Tensor,
    features: Tensor,
    weights: Tensor,
    inverse_mass: Tensor,
    mask_h: int,
    mask_w: int,
    resize: str,
    needs_features: bool,
    needs_masks: bool,
) -> tuple[Tensor, Tensor]:
    d_features = _library.like_features(features) if needs_features else features.new_empty(0)
    tasks = features.shape[0] if needs_masks else 0
    return d_features, weights.new_empty((tasks, weights.shape[1], mask_h, mask_w))


_library.register_autograd("masked_avg_pool", _apply)
_library.register_autocast("masked_avg_pool")
_library.register_fake("masked_avg_pool", _fake)
_library.register_fake("_masked_avg_pool_forward", _fake_forward)
_library.register_fake("_masked_avg_pool_backward", _fake_backward)
