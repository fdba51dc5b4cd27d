"""The training loop."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fewseg_ext.training.checkpoint import Checkpoint


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Exactly one of ``iterations`` and ``seconds`` says for how long.

    A budget in iterations repeats bit for bit on one machine; one in seconds does as many iterations as fit. The
    learning rate rises over the first ``warmup`` part of the budget and falls to zero along a cosine over the rest.
    During the first ``support_first`` part only the loss of the support prototypes trains, the term that all prototype
    models have: features first, then what is built on them.
    """

    iterations: int | None = None
    seconds: float | None = None
    batch_size: int = 8
    optimizer: str = "adamw"  # or "sgd"
    lr: float = 2e-3
    head_lr: float | None = None  # of all that is not in `model.backbone`; None means lr
    weight_decay: float = 1e-4
    momentum: float = 0.9  # of sgd
    warmup: float = 0.05
    support_first: float = 0.0
    max_grad_norm: float | None = 5.0
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.iterations is None) == (self.seconds is None):
            raise ValueError("TrainingConfig: give either iterations or seconds")
        if (self.iterations or self.seconds or 0) <= 0:
            raise ValueError("TrainingConfig: the budget must be positive")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f'TrainingConfig: optimizer must be "adamw" or "sgd", got {self.optimizer!r}')
        if self.batch_size < 1:
            raise ValueError(f"TrainingConfig: batch_size must be at least 1, got {self.batch_size}")

    def lr_factor(self, done: float) -> float:
        """The learning rate's factor when the part ``done`` (0..1) of the budget is spent."""
        if done < self.warmup:
            # Not from zero: the first iteration is to do something too.
            return (0.1 + 0.9 * done / self.warmup) if self.warmup > 0 else 1.0
        return 0.5 + 0.5 * math.cos(math.pi * min((done - self.warmup) / (1 - self.warmup), 1.0))


class Trainer:
    """Trains a model on episodes.

    The loss is ``model(support_images, support_masks, query_images, query_masks).loss``. Iteration i takes the episodes
    i * batch_size onwards, from the start again after the last one, so what an iteration sees does not depend on how
    the training got there.

    Args:
        model: with an attribute ``config``, a dictionary of plain values that goes into checkpoints.
        dataset: map-style, of the dictionaries that `EpisodeDataset` returns.
        config: how to train.
        device: where to train; the model is moved there.
        console: shows the progress bar; None shows nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset[Any],
        config: TrainingConfig,
        *,
        device: torch.device | str = "cpu",
        console: Console | None = None,
    ) -> None:
        self.model = model.to(device)
        self.dataset = dataset
        self.config = config
        self.device = torch.device(device)
        self.console = console
        self.optimizer = _make_optimizer(model, config)
        self.iteration = 0
        self.seconds = 0.0
        self.history: list[float] = []

    def run(self, description: str = "training") -> list[float]:
        """Trains until the budget is spent; returns the loss of every iteration.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        torch.manual_seed(self.config.seed)
        self.model.train()
        batches = iter(
            DataLoader(
                self.dataset,
                batch_sampler=_EndlessBatches(len(self.dataset), self.config.batch_size, self.iteration),  # type: ignore[arg-type]
                num_workers=self.config.num_workers,
            )
        )
        spent_before, start = self.seconds, time.perf_counter()
        with _TrainingProgress(self.console, description, self.config) as bar:
            while self._done() < 1:
                loss = self.step(next(batches))
                self.seconds = spent_before + time.perf_counter() - start
                bar.update(self.iteration, self.seconds, loss)
        return self.history

    def step(self, batch: dict[str, Tensor]) -> float:
        """One iteration on one batch of episodes; returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * self.config.lr_factor(self._done())
        keys = ("support_images", "support_masks", "query_images", "query_masks")
        output = self.model(*(batch[key].to(self.device) for key in keys))
        loss: Tensor = output.losses["support"] if self._done() < self.config.support_first else output.loss
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss became {value} in iteration {self.iteration + 1}; a lower learning rate than "
                f"{self.config.lr:g} usually helps"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.iteration += 1
        self.history.append(value)
        return value

    def checkpoint(self) -> Checkpoint:
        """The present state, ready for `save_checkpoint`."""
        return Checkpoint(
            model=dict(getattr(self.model, "config", {})),
            weights=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            iteration=self.iteration,
            history=list(self.history),
            training=asdict(self.config),
        )

    def _done(self) -> float:
        """The part of the budget that is spent."""
        if self.config.iterations is not None:
            return self.iteration / self.config.iterations
        assert self.config.seconds is not None
        return self.seconds / self.config.seconds


def _make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    backbone: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("backbone.") else head).append(parameter)
    head_lr = config.lr if config.head_lr is None else config.head_lr
    # full_lr is what the schedule scales; lr changes in every iteration.
    groups = [
        {"params": parameters, "lr": lr, "full_lr": lr}
        for parameters, lr in ((backbone, config.lr), (head, head_lr))
        if parameters
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


class _EndlessBatches(Sampler[list[int]]):
    """Consecutive indices, round and round; where to begin is a function of the iteration alone."""

    def __init__(self, length: int, batch_size: int, iteration: int) -> None:
        self.length, self.batch_size, self.iteration = length, batch_size, iteration

    def __iter__(self) -> Iterator[list[int]]:
        first = self.iteration * self.batch_size
        while True:
            yield [i % self.length for i in range(first, first + self.batch_size)]
            first += self.batch_size


class _TrainingProgress:
    """A bar with the smoothed loss, the speed and the time left; silent without a console."""

    def __init__(self, console: Console | None, description: str, config: TrainingConfig) -> None:
        self.by_time = config.iterations is None
        self.loss: float | None = None
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}") if self.by_time else MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        self.progress = Progress(*columns, console=console, disable=console is None)
        total = config.seconds if self.by_time else config.iterations
        self.task = self.progress.add_task(description, total=total, done="", loss="-", speed="")

    def __enter__(self) -> "_TrainingProgress":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def update(self, iteration: int, seconds: float, loss: float) -> None:
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self.progress.update(
            self.task,
            completed=seconds if self.by_time else iteration,
            done=f"{iteration} it",
            loss=f"{self.loss:.3f}",
            speed=f"{iteration / max(seconds, 1e-9):.1f} it/s",
        )
