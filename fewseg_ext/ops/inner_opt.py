"""The inner optimisation of BiOpt."""

from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _checks, _library

_OP = "fewseg_ext.inner_opt"
_op = torch.ops.fewseg.inner_opt.default
_forward = torch.ops.fewseg._inner_opt_forward.default
_backward = _library.define_backward("inner_opt")


def inner_opt(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    steps: int = 10,
    lr: float = 0.1,
    scale: float = 20.0,
    ignore_index: int = 255,
    reduction: str = "mean",
    second_order: bool = True,
) -> Tensor:
    r"""Optimises class prototypes on an image by gradient descent (Eq. 7 of the BiOpt paper).

    Starting from the given prototypes, takes ``steps`` steps

    .. math:: P \leftarrow P - lr \, \nabla_P \, CE(softmax_k(scale \cdot \cos(q(x), P_k)), t(x))

    on every task of the batch independently. The call is differentiable in ``features`` and ``prototypes``: its
    backward is the exact second-order one, in closed form, so that no graph of the steps is kept. See docs/math.md.

    Args:
        features: [B,C,H,W] query features q; float32, float64, bfloat16 or float16, NCHW or channels-last.
        prototypes: [B,K,C] where the descent starts, class 0 the background; float32 (float64 with float64 features)
            or the features' dtype. A step moves a prototype by about ``lr * scale * error / |P|`` when the reduction is
            the mean: normalise prototypes of a large norm first.
        target: [B,H,W] labels 0..K-1, or ``ignore_index``; int64, int32 or uint8.
        steps: number of steps, 0 or more; 0 gives a copy of the prototypes.
        lr: step size.
        scale: factor of the cosine in the softmax (alpha).
        ignore_index: label of pixels that do not count. Wins over a real class of the same number.
        reduction: ``"mean"`` divides a task's loss by its number of valid pixels, ``"sum"`` does not. A task without
            valid pixels keeps its prototypes.
        second_order: whether gradients flow through the gradients of the steps. If not, the steps count as constants:
            the gradient passes to ``prototypes`` unchanged, and ``features`` gets zeros.

    Returns:
        [B,K,C] the optimised prototypes, in the wider of the two floating dtypes.

    Raises:
        ValueError: sizes, devices or options that do not fit; a label outside 0..K-1 that is not ``ignore_index`` (on
            CUDA only under :func:`fewseg_ext.set_debug`; without it that task's result is NaN).
        TypeError: a dtype that is not supported.
        NotImplementedError: when the gradient is itself differentiated.

    Example:
        >>> import torch, fewseg_ext
        >>> features, prototypes = torch.randn(1, 64, 13, 13), torch.randn(1, 2, 64)
        >>> target = torch.randint(0, 2, (1, 13, 13))
        >>> fewseg_ext.inner_opt(features, prototypes, target).shape
        torch.Size([1, 2, 64])
    """
    args = (features, prototypes, target, steps, lr, scale, ignore_index, reduction, second_order)
    if _library.through_dispatcher(features):
        return torch.ops.fewseg.inner_opt(*args)
    return _apply(*args)


def _check(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    steps: int,
    lr: float,
    scale: float,
    ignore_index: int,
    reduction: str,
    second_order: bool,
) -> None:
    _checks.features(_OP, features)
    _checks.prototypes(_OP, prototypes, features)
    _checks.target(_OP, target, features, prototypes.shape[1], ignore_index, grid="H,W")
    if steps < 0:
        raise ValueError(f"{_OP}: steps must not be negative, got {steps}")
    _checks.finite(_OP, "lr", lr)
    _checks.finite(_OP, "scale", scale)
    _checks.choice(_OP, "reduction", reduction, ("mean", "sum"))


class _InnerOpt(torch.autograd.Function):
    @staticmethod
    def forward(features: Tensor, prototypes: Tensor, target: Tensor, *settings: Any) -> tuple[Tensor, ...]:
        with _library.below_autograd():
            return _forward(features, prototypes, target, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        features, prototypes, target, _, *settings = inputs
        _, trajectory, h, cosine = output
        ctx.save_for_backward(features, target, trajectory, h, cosine)
        ctx.settings = settings
        ctx.prototypes_dtype = prototypes.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Any, ...]:
        needs_features = ctx.needs_input_grad[0]
        d_features, d_prototypes = _backward(gradient, *ctx.saved_tensors, *ctx.settings, needs_features)
        return _library.wanted(d_features, needs_features), d_prototypes.to(ctx.prototypes_dtype), *[None] * 6


class _FirstOrder(torch.autograd.Function):
    """The descent as a constant shift: P^T = P^0 - (something that has no gradient)."""

    @staticmethod
    def forward(features: Tensor, prototypes: Tensor, *rest: Any) -> Tensor:
        with _library.below_autograd():
            return _op(features, prototypes, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, prototypes = inputs[:2]
        ctx.features_like = features.shape, features.dtype
        ctx.prototypes_dtype = prototypes.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        shape, dtype = ctx.features_like
        # Zeros and not None: torch.autograd.grad takes None for "not in the graph".
        d_features = gradient.new_zeros(shape, dtype=dtype) if ctx.needs_input_grad[0] else None
        return d_features, gradient.to(ctx.prototypes_dtype), *[None] * 7


_differentiable = _library.differentiable(_InnerOpt)
_first_order = _library.differentiable(_FirstOrder)


def _with_gradient(*args: Any) -> Tensor:
    *rest, second_order = args
    return _differentiable(*rest) if second_order else _first_order(*args)


_apply = _library.checked_late(_op, _with_gradient, _check, differentiable=2)


def _fake(features: Tensor, prototypes: Tensor, *rest: Any) -> Tensor:
    _check(features, prototypes, *rest)
    return features.new_empty(prototypes.shape, dtype=torch.promote_types(features.dtype, prototypes.dtype))


def _fake_forward(features: Tensor, prototypes: Tensor, target: Tensor, steps: int, *rest: Any) -> tuple[Tensor, ...]:
    result = _fake(features, prototypes, target, steps, *rest, True)
    tasks, classes, channels = prototypes.shape
    accumulator = _library.accumulator_dtype(features)
    vectors = features.new_empty((tasks, steps, classes, channels), dtype=accumulator)
    cosine = features.new_empty((tasks, steps, classes - 1, target.shape[1] * target.shape[2]), dtype=accumulator)
    return result, vectors, torch.empty_like(vectors), cosine


def _fake_backward(
    gradient: Tensor, features: Tensor, target: Tensor, trajectory: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    needs_features = rest[-1]
    d_features = _library.like_features(features) if needs_features else features.new_empty(0)
    return d_features, features.new_empty(gradient.shape, dtype=trajectory.dtype)


_library.register_autograd("inner_opt", _apply)
_library.register_autocast("inner_opt")
_library.register_fake("inner_opt", _fake)
_library.register_fake("_inner_opt_forward", _fake_forward)
_library.register_fake("_inner_opt_backward", _fake_backward)
