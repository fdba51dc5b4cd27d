"""Calls of the operators, for tests of threads and processes. A file of its own, so that spawned workers import it."""

from typing import Any

import torch
from torch.utils.data import Dataset

from samples import SAMPLES, Sizes, results

# Large enough for a kernel to share between threads.
SIZES = Sizes(tasks=2, classes=3, channels=70, height=21, width=23, mask_height=50, mask_width=40)


def arguments_of(number: int) -> tuple[Any, ...]:
    """Always the same for a sample."""
    torch.manual_seed(number)
    return SAMPLES[number].arguments(SIZES, torch.float32)


def value_and_gradients(number: int, args: tuple[Any, ...]) -> list[torch.Tensor]:
    sample = SAMPLES[number]
    leaves = [x.detach() if torch.is_tensor(x) else x for x in args]
    inputs = [leaves[i].requires_grad_() for i in sample.differentiable]
    result = sample.public(*leaves)
    total = sum(x.square().sum() for x in sample.with_gradient(result))
    gradients = torch.autograd.grad(total, inputs)
    return [*(x.detach() for x in results(result)), *gradients]


class Calls(Dataset[list[torch.Tensor]]):
    """Item i: what the operator of sample i gives."""

    def __len__(self) -> int:
        return len(SAMPLES)

    def __getitem__(self, number: int) -> list[torch.Tensor]:
        return value_and_gradients(number, arguments_of(number))
