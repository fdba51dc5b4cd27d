"""One sample of arguments for every operator: what the tests of the common contract run over.

A new operator is added to `SAMPLES` and inherits all of test_contract.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fewseg_ext
from fewseg_ext.ops import reference


@dataclass
class Sizes:
    tasks: int = 2
    classes: int = 3
    channels: int = 5
    height: int = 4
    width: int = 3
    mask_height: int = 7
    mask_width: int = 9


@dataclass
class Sample:
    name: str
    build: Callable[[Sizes, torch.dtype], tuple[Any, ...]]  # the positional arguments
    differentiable: tuple[int, ...]  # which of them have a gradient
    variant: str = ""

    @property
    def public(self) -> Callable[..., Tensor]:
        return getattr(fewseg_ext, self.name)

    @property
    def dispatched(self) -> Callable[..., Tensor]:
        return getattr(torch.ops.fewseg, self.name)

    @property
    def reference(self) -> Callable[..., Tensor]:
        return getattr(reference, self.name)

    def arguments(
        self, sizes: Sizes | None = None, dtype: torch.dtype = torch.float64, gradients: bool = False
    ) -> tuple[Any, ...]:
        """The arguments, as leaves that require gradients if asked."""
        args = list(self.build(sizes or Sizes(), dtype))
        for i in self.differentiable:
            args[i] = args[i].detach().requires_grad_(gradients)
        return tuple(args)


def features(sizes: Sizes, dtype: torch.dtype) -> Tensor:
    return torch.randn(sizes.tasks, sizes.channels, sizes.height, sizes.width, dtype=torch.float64).to(dtype)


def prototypes(sizes: Sizes, dtype: torch.dtype) -> Tensor:
    # Every prototype points at something: orthogonal ones would hide mistakes in the cosines.
    return (torch.randn(sizes.tasks, sizes.classes, sizes.channels, dtype=torch.float64) + 0.5).to(dtype)


def target(sizes: Sizes, height: int, width: int) -> Tensor:
    labels = torch.randint(0, sizes.classes, (sizes.tasks, height, width))
    labels[torch.rand(labels.shape) < 0.1] = 255
    return labels


def _masked_avg_pool(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    masks = torch.rand(sizes.tasks, sizes.classes, sizes.mask_height, sizes.mask_width, dtype=torch.float64).to(dtype)
    # A large eps: with a small one a one-pixel map gives masks a gradient that is nothing but cancellation.
    return features(sizes, dtype), masks, 0.5


def _inner_opt(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    labels = target(sizes, sizes.height, sizes.width)
    return features(sizes, dtype), prototypes(sizes, dtype), labels, 3, 0.05


def _cosine_logits(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    return features(sizes, dtype), prototypes(sizes, dtype), 7.0


def _cosine_cross_entropy(reduction: str) -> Callable[[Sizes, torch.dtype], tuple[Any, ...]]:
    def build(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
        labels = target(sizes, sizes.mask_height, sizes.mask_width)
        return features(sizes, dtype), prototypes(sizes, dtype), labels, 7.0, 255, reduction

    return build


SAMPLES = [
    Sample("masked_avg_pool", _masked_avg_pool, (0, 1)),
    Sample("cosine_logits", _cosine_logits, (0, 1)),
    *(Sample("cosine_cross_entropy", _cosine_cross_entropy(r), (0, 1), r) for r in ("mean", "per_task", "sum")),
    Sample("inner_opt", _inner_opt, (0, 1)),
]
