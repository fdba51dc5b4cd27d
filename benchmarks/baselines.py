"""What the operators are compared with, on the same inputs.

``naive``    what a user writes first, from PyTorch's own functions.
``eager``    careful PyTorch: normalise once, matrix products for the cosines, the closed-form gradient with the K-1
             differences only, pooling by the adjoint of the upsampling.
``compiled`` torch.compile of ``eager``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# --- naive -----------------------------------------------------------------------------------------------------------


def naive_masked_avg_pool(features: Tensor, masks: Tensor) -> Tensor:
    large = F.interpolate(features, masks.shape[-2:], mode="bilinear", align_corners=False)
    prototypes = [
        (large * m[:, None]).sum((2, 3)) / (m.sum((1, 2))[:, None] + 1e-5) for m in masks.to(features.dtype).unbind(1)
    ]
    return torch.stack(prototypes, 1)


def naive_cosine_logits(features: Tensor, prototypes: Tensor, scale: float = 20.0) -> Tensor:
    planes = [F.cosine_similarity(features, p[:, :, None, None], dim=1) for p in prototypes.unbind(1)]
    return scale * torch.stack(planes, 1)


def naive_cosine_cross_entropy(features: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    logits = naive_cosine_logits(features, prototypes)
    logits = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, target, ignore_index=255)


def naive_inner_opt(
    features: Tensor, prototypes: Tensor, target: Tensor, steps: int = 10, lr: float = 0.1, scale: float = 20.0
) -> Tensor:
    keep_graph = torch.is_grad_enabled() and features.requires_grad
    q, t = features.flatten(2), target.flatten(1)
    with torch.enable_grad():
        p = prototypes if keep_graph else prototypes.detach().requires_grad_()
        for _ in range(steps):
            logits = scale * F.cosine_similarity(q[:, None], p[..., None], dim=2)
            loss = torch.stack(
                [F.cross_entropy(x[None], labels[None], ignore_index=255) for x, labels in zip(logits, t, strict=True)]
            )
            (gradient,) = torch.autograd.grad(loss.sum(), p, create_graph=keep_graph)
            p = p - lr * gradient
    return p if keep_graph else p.detach()


# --- eager -----------------------------------------------------------------------------------------------------------


def eager_masked_avg_pool(features: Tensor, masks: Tensor) -> Tensor:
    masks = masks.to(features.dtype)
    with torch.enable_grad():
        grid = features.new_zeros(*masks.shape[:2], *features.shape[2:], requires_grad=True)
        large = F.interpolate(grid, masks.shape[-2:], mode="bilinear", align_corners=False)
        (weights,) = torch.autograd.grad(large, grid, masks)
    total = torch.bmm(weights.flatten(2), features.flatten(2).mT)
    return total / (masks.sum((2, 3))[..., None] + 1e-5)


def eager_cosine_logits(features: Tensor, prototypes: Tensor, scale: float = 20.0) -> Tensor:
    q, p = F.normalize(features.flatten(2), dim=1), F.normalize(prototypes, dim=2)
    return (scale * torch.bmm(p, q)).unflatten(2, features.shape[2:])


def eager_cosine_cross_entropy(features: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    logits = eager_cosine_logits(features, prototypes)
    logits = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, target, ignore_index=255)


def eager_inner_opt(
    features: Tensor, prototypes: Tensor, target: Tensor, steps: int = 10, lr: float = 0.1, scale: float = 20.0
) -> Tensor:
    q, p, t = F.normalize(features.flatten(2), dim=1), prototypes, target.flatten(1)
    valid = (t != 255).to(q.dtype)
    weight = (scale * valid / valid.sum(1, keepdim=True).clamp(min=1))[:, None]
    hit = F.one_hot(torch.where(t == 255, 0, t), p.shape[1]).mT[:, 1:].to(q.dtype)
    for _ in range(steps):
        norm = p.norm(dim=2, keepdim=True)
        unit = p / norm
        d = torch.bmm(unit[:, 1:] - unit[:, :1], q)
        s = torch.softmax(scale * torch.cat([torch.zeros_like(d[:, :1]), d], 1), 1)[:, 1:]
        h = torch.bmm(weight * (s - hit), q.mT)
        h = torch.cat([-h.sum(1, keepdim=True), h], 1)
        p = p - lr * (h - (unit * h).sum(2, keepdim=True) * unit) / norm
    return p


NAIVE: dict[str, Callable[..., Tensor]] = {
    "masked_avg_pool": naive_masked_avg_pool,
    "cosine_logits": naive_cosine_logits,
    "cosine_cross_entropy": naive_cosine_cross_entropy,
    "inner_opt": naive_inner_opt,
}
EAGER: dict[str, Callable[..., Tensor]] = {
    "masked_avg_pool": eager_masked_avg_pool,
    "cosine_logits": eager_cosine_logits,
    "cosine_cross_entropy": eager_cosine_cross_entropy,
    "inner_opt": eager_inner_opt,
}
