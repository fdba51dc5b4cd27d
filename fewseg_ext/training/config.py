"""How to train: optimiser, schedule, precision."""

import bisect
import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Exactly one of ``iterations`` and ``seconds`` says for how long.

    A budget in iterations repeats bit for bit on one machine; one in seconds does as many iterations as fit. The
    learning rate rises over the first ``warmup`` part of the budget and then follows the schedule. During the first
    ``support_first`` part only the loss of the support prototypes trains, the term that all prototype models have:
    features first, then what is built on them.

    Args:
        iterations: How many; in each the whole batch is seen once.
        seconds: Trains for that long instead, on the clock of this machine.
        batch_size: Episodes per iteration, of all processes together.
        optimizer: "sgd", "adam" or "adamw" (whose weight decay is not part of the gradient).
        lr: Learning rate, of the backbone if head_lr is given.
        head_lr: Learning rate of all that is not the backbone; null means lr.
        weight_decay: Factor of the squared weights.
        momentum: Of sgd.
        schedule: "cosine" falls to zero, "step" multiplies by decay_factor at every iteration of decay_at, "constant".
        decay_at: Iterations of the schedule "step".
        decay_factor: Of the schedule "step".
        warmup: Part of the budget, 0 to 1, in which the learning rate rises to its full value.
        support_first: Part of the budget, 0 to 1, in which only the support prototypes' loss trains.
        frozen: Parts of the model that keep their weights, by the beginnings of their parameters' names:
            "backbone.features.1" is one layer of a backbone, "backbone" all of it.
        max_grad_norm: Gradients are clipped to this norm; null does not clip.
        precision: "float32", or "bfloat16" or "float16" for the backbone (automatic mixed precision).
        channels_last: Keep the model's weights in channels-last order, in which many convolutions are faster.
        num_workers: Processes that read images, for each process that trains; 0 reads in the same process.
        seed: Of the initial weights, the episodes and the model's own samples.
    """

    iterations: int | None = None
    seconds: float | None = None
    batch_size: int = 8
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = 2e-3
    head_lr: float | None = None
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    decay_at: tuple[int, ...] = ()
    decay_factor: float = 0.1
    warmup: float = 0.05
    support_first: float = 0.0
    frozen: tuple[str, ...] = ()
    max_grad_norm: float | None = 5.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.iterations is None) == (self.seconds is None):
            raise ValueError("TrainingConfig: give either iterations or seconds")
        if (self.iterations or self.seconds or 0) <= 0:
            raise ValueError("TrainingConfig: the budget must be positive")
        for name, value, choices in (
            ("optimizer", self.optimizer, ("sgd", "adam", "adamw")),
            ("schedule", self.schedule, ("cosine", "step", "constant")),
            ("precision", self.precision, ("float32", "bfloat16", "float16")),
        ):
            if value not in choices:
                expected = " or ".join(f'"{choice}"' for choice in choices)
                raise ValueError(f"TrainingConfig: {name} must be {expected}, got {value!r}")
        if self.batch_size < 1:
            raise ValueError(f"TrainingConfig: batch_size must be at least 1, got {self.batch_size}")
        for name, rate in (("lr", self.lr), ("head_lr", self.head_lr)):
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"TrainingConfig: {name} must be a positive number, got {rate}")
        if self.schedule == "step" and (not self.decay_at or list(self.decay_at) != sorted(set(self.decay_at))):
            raise ValueError(
                f'TrainingConfig: the schedule "step" needs rising iterations in decay_at, got {self.decay_at}'
            )

    def lr_factor(self, done: float, iteration: int = 0) -> float:
        """The learning rate's factor when the part ``done`` (0..1) of the budget and ``iteration`` steps are spent."""
        if done < self.warmup:
            # Not from zero: the first iteration is to do something too.
            return 0.1 + 0.9 * done / self.warmup
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "step":
            return self.decay_factor ** bisect.bisect_right(self.decay_at, iteration)
        return 0.5 + 0.5 * math.cos(math.pi * min((done - self.warmup) / (1 - self.warmup), 1.0))
