"""Convolution over features with a vector tiled beside them, for several vectors at the cost of one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewseg_ext.ops import _checks, _library

_OP = "fewseg_ext.tiled_conv2d"
_op = torch.ops.fewseg.tiled_conv2d.default
_backward = _library.define_backward("tiled_conv2d")


def tiled_conv2d(
    features: Tensor,
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
) -> Tensor:
    r"""Convolves cat(features, tile(z_l)) for each of L vectors z_l.

    .. math:: result_l = conv(cat(F, tile(z_l))) = conv_F(F) + conv_z(tile(z_l))

    The features' part is torch's convolution, computed once for all samples. z is constant over the grid, so its part
    takes few distinct values (nine for a padded 3 x 3 kernel: interior, edges, corners), which one sweep adds. Equal to
    the convolution of the concatenation, at the borders too. Stride 1. Differentiable in all four tensors.
    See docs/math.md.

    Args:
        features: [B,C,H,W]; float32, float64, bfloat16 or float16, NCHW or channels-last.
        z: [B,L,D] the vectors; float32 (float64 with float64 features) or the features' dtype.
        weight: [O,C+D,kh,kw], the features' channels first; dtypes as ``z``.
        bias: [O] or None; dtypes as ``z``.
        padding: zeros around the input, one number or (rows, columns).
        dilation: distance of the kernel's taps, one number or (rows, columns).

    Returns:
        [B,L,O,H',W'], in the widest of the dtypes (float32 under autocast); the convolution runs in that dtype. Every
        sample has the layout of the features. H' = H + 2 padding - dilation (kh - 1), W' likewise.

    Raises:
        ValueError: sizes, devices or options that do not fit; a kernel larger than the padded features.
        TypeError: a dtype that is not supported.
        NotImplementedError: when the gradient is itself differentiated.

    Example:
        >>> import torch, fewseg_ext
        >>> features, z = torch.randn(1, 64, 13, 13), torch.randn(1, 6, 16)
        >>> fewseg_ext.tiled_conv2d(features, z, torch.randn(32, 80, 3, 3), padding=1).shape
        torch.Size([1, 6, 32, 13, 13])
    """
    args = (features, z, weight, bias, _pair("padding", padding), _pair("dilation", dilation))
    if _library.through_dispatcher(features):
        return torch.ops.fewseg.tiled_conv2d(*args)
    return _apply(*args)


def _pair(name: str, value: int | Sequence[int]) -> list[int]:
    pair = [value, value] if isinstance(value, (int, torch.SymInt)) else list(value)
    if len(pair) != 2:
        raise ValueError(f"{_OP}: {name} must be one number or two, got {value}")
    return pair


def _check(
    features: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], dilation: Sequence[int]
) -> None:
    _checks.features(_OP, features)
    _checks.rank(_OP, "z", z, "B,L,D")
    _checks.rank(_OP, "weight", weight, "O,C+D,kh,kw")
    _checks.companion(_OP, "z", z, features)
    _checks.companion(_OP, "weight", weight, features)
    _checks.same_size(_OP, "z", z.shape[0], "features", features.shape[0], "tasks")
    if z.shape[1] == 0 or z.shape[2] == 0:
        raise ValueError(f"{_OP}: z must hold at least one sample and one channel, got {_checks.shape(z)}")
    if weight.shape[0] == 0 or weight.shape[2] == 0 or weight.shape[3] == 0:
        raise ValueError(f"{_OP}: weight must not be empty, got {_checks.shape(weight)}")
    if weight.shape[1] != features.shape[1] + z.shape[2]:
        raise ValueError(
            f"{_OP}: weight has {weight.shape[1]} input channels, but features has {features.shape[1]} and z "
            f"{z.shape[2]}: expected {features.shape[1] + z.shape[2]}"
        )
    if bias is not None:
        _checks.rank(_OP, "bias", bias, "O")
        _checks.companion(_OP, "bias", bias, features)
        _checks.same_size(_OP, "bias", bias.shape[0], "weight", weight.shape[0], "output channels")
    if min(padding) < 0:
        raise ValueError(f"{_OP}: padding must not be negative, got {tuple(padding)}")
    if min(dilation) < 1:
        raise ValueError(f"{_OP}: dilation must be at least 1, got {tuple(dilation)}")
    height, width = _grid(features, weight, padding, dilation)
    if height < 1 or width < 1:
        raise ValueError(
            f"{_OP}: weight has a kernel of {weight.shape[2]} x {weight.shape[3]} (dilation {tuple(dilation)}), larger "
            f"than the features {features.shape[2]} x {features.shape[3]} with padding {tuple(padding)}"
        )


def _grid(features: Tensor, weight: Tensor, padding: Sequence[int], dilation: Sequence[int]) -> tuple[int, int]:
    """H', W' of the result."""
    height, width = (features.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) for i in range(2))
    return height, width


class _TiledConv2d(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        with _library.below_autograd():
            return _op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, z, weight, bias, *ctx.settings = inputs
        ctx.save_for_backward(features, z, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[:4]
        d_features, d_z, d_weight, d_bias = _backward(gradient, *ctx.saved_tensors, *ctx.settings, *needed)
        return (
            _library.wanted(d_features, needed[0]),
            _library.wanted_as(d_z, ctx, 1),
            _library.wanted(d_weight, needed[2]),
            d_bias.to(ctx.bias_dtype) if needed[3] else None,
            None,
            None,
        )


_differentiable = _library.differentiable(_TiledConv2d)
_apply = _library.checked_late(_op, _differentiable, _check, differentiable=4)


def _fake(
    features: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    _check(features, z, weight, bias, padding, dilation)
    dtype = features.dtype
    for x in (z, weight, bias):
        dtype = dtype if x is None else torch.promote_types(dtype, x.dtype)
    height, width = _grid(features, weight, padding, dilation)
    (tasks, samples), channels = z.shape[:2], weight.shape[0]
    if _library.is_channels_last(features):
        return features.new_empty((tasks, samples, height, width, channels), dtype=dtype).permute(0, 1, 4, 2, 3)
    return features.new_empty((tasks, samples, channels, height, width), dtype=dtype)


def _fake_backward(
    gradient: Tensor,
    features: Tensor,
    z: Tensor,
    weight: Tensor,
    padding: Sequence[int],
    dilation: Sequence[int],
    needs_features: bool,
    needs_z: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _library.accumulator_dtype(gradient)
    return (
        _library.like_features(features) if needs_features else features.new_empty(0),
        z.new_empty((z.shape[0] if needs_z else 0, *z.shape[1:]), dtype=dtype),
        weight.new_empty(weight.shape if needs_weight else (0,)),
        weight.new_empty((weight.shape[0] if needs_bias else 0,), dtype=dtype),
    )


_library.register_autograd("tiled_conv2d", _apply)
_library.register_autocast("tiled_conv2d")
_library.register_fake("tiled_conv2d", _fake)
_library.register_fake("_tiled_conv2d_backward", _fake_backward)
