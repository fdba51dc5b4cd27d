"""Every operator in a few lines of plain PyTorch: the definition, and what the tests compare with.

Nothing here is called by the product. The functions are differentiable by autograd (to any order), take the arguments
of the operator of the same name and compute in float32, or in float64 where an input is float64. Symbols: q features,
p prototypes, t target, as in ``docs/math.md``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this length a vector counts as zero: its direction is noise.
ZERO_NORM = 1e-12


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _result_dtype(*tensors: Tensor) -> torch.dtype:
    result = tensors[0].dtype
    for x in tensors[1:]:
        result = torch.promote_types(result, x.dtype)
    return result


def unit(v: Tensor, dim: int) -> Tensor:
    """v / |v| along ``dim``; 0, with zero gradient, where |v| <= 1e-12."""
    nonzero = v.norm(dim=dim, keepdim=True) > ZERO_NORM
    # The inner where keeps the gradient of the norm, which is NaN at 0, out of the graph.
    return torch.where(nonzero, v / torch.where(nonzero, v, 1.0).norm(dim=dim, keepdim=True), 0.0)


def masked_avg_pool(features: Tensor, masks: Tensor, eps: float = 1e-5, resize: str = "features") -> Tensor:
    """[B,C,H,W], [B,K,h,w] -> [B,K,C]: the average of the features under each mask."""
    compute, result = _compute_dtype(features, masks), _result_dtype(features, masks)
    if masks.dtype == torch.bool:
        result = features.dtype
    f, m = features.to(compute), masks.to(compute)
    if resize == "features":
        f = F.interpolate(f, size=m.shape[-2:], mode="bilinear", align_corners=False)
    else:
        m = F.interpolate(m, size=f.shape[-2:], mode="bilinear", align_corners=False)
    total = torch.einsum("bchw,bkhw->bkc", f, m)
    return (total / (m.sum((2, 3))[..., None] + eps)).to(result)


def cosine_logits(features: Tensor, prototypes: Tensor, scale: float = 20.0) -> Tensor:
    """[B,C,H,W], [B,K,C] -> [B,K,H,W]: scale * cos(feature, prototype)."""
    compute = _compute_dtype(features, prototypes)
    q, p = unit(features.to(compute), 1), unit(prototypes.to(compute), 2)
    return (scale * torch.einsum("bchw,bkc->bkhw", q, p)).to(_result_dtype(features, prototypes))


def cosine_cross_entropy(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    scale: float = 20.0,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    """[B,C,H,W], [B,K,C], [B,h,w] -> scalar, or [B] for ``"per_task"``: cross-entropy of upsampled cosine logits."""
    compute = _compute_dtype(features, prototypes)
    result = _result_dtype(features, prototypes)
    logits = cosine_logits(features.to(compute), prototypes.to(compute), scale)
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, target.long(), ignore_index=ignore_index, reduction="none").sum((1, 2))
    valid = (target != ignore_index).sum((1, 2))
    if reduction == "mean":
        loss = loss.sum() / valid.sum().clamp(min=1)
    elif reduction == "per_task":
        loss = loss / valid.clamp(min=1)
    else:
        loss = loss.sum()
    return loss.to(result)


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
    """[B,C,H,W], [B,K,C], [B,H,W] -> [B,K,C]: Eq. 7 of the BiOpt paper, gradient descent on the cross-entropy."""
    compute = _compute_dtype(features, prototypes)
    q, p = features.to(compute), prototypes.to(compute)
    per_task = "per_task" if reduction == "mean" else "sum"
    with torch.enable_grad():
        p = p if p.requires_grad else p.detach().requires_grad_()
        for _ in range(steps):
            loss = cosine_cross_entropy(q, p, target, scale, ignore_index, per_task).sum()
            (gradient,) = torch.autograd.grad(loss, p, create_graph=second_order)
            p = p - lr * gradient
    needs_graph = torch.is_grad_enabled() and (features.requires_grad or prototypes.requires_grad)
    return (p if needs_graph else p.detach()).to(_result_dtype(features, prototypes))
