"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

from fewseg_ext.training.checkpoint import Checkpoint
from fewseg_ext.training.config import TrainingConfig as TrainingConfig
from fewseg_ext.training.distributed import gather_random_states, mean_and_any, rank, world_size
from fewseg_ext.training.progress import TrainingProgress

KEYS = ("support_images", "support_masks", "query_images", "query_masks")


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


class Trainer:
    """Trains a model on episodes.

    The loss is ``model(support_images, support_masks, query_images, query_masks).loss``. Iteration i takes the episodes
    i * batch_size onwards, from the start again after the last one, so what an iteration sees does not depend on how
    the training got there. Several processes (`torch.distributed`) cut every batch into equal parts in order of rank,
    and average their gradients: as the loss is a mean over episodes, this is the gradient of the whole batch.

    Args:
        model: with an attribute ``config``, a dictionary of plain values that goes into checkpoints.
        dataset: map-style, of the dictionaries that `EpisodeDataset` returns.
        config: how to train.
        device: where to train; the model is moved there.
        console: shows the progress bar; None shows nothing.

    Raises:
        ValueError: the batch cannot be cut into equal parts for the processes, or ``config.frozen`` names a part that
            the model does not have, or all of it.
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
        if config.batch_size % world_size():
            raise ValueError(
                f"batch_size: {config.batch_size} episodes cannot be divided among {world_size()} processes evenly"
            )
        self.model = model.to(device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.dataset = dataset
        self.config = config
        self.device = torch.device(device)
        self.console = console
        _freeze(model, config.frozen)
        self.optimizer = _make_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.iteration = 0
        self.seconds = 0.0
        self.history: list[float] = []
        self.scores: list[dict[str, float]] = []
        self.stop_requested = False
        self._random_state: dict[str, Tensor] | None = None
        self._parallel: nn.Module = model
        if world_size() > 1:
            # Buffers are the same everywhere already: normalisation is frozen, or of groups.
            self._parallel = DistributedDataParallel(model, broadcast_buffers=False)

    def run(self, description: str = "training", after_iteration: Callable[[], None] | None = None) -> list[float]:
        """Trains until the budget is spent or ``stop_requested`` is set; returns the loss of every iteration.

        Args:
            description: of the progress bar.
            after_iteration: called after every iteration, when the trainer's state is one that can be saved.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        self._set_random_state()
        self.model.train()
        batches = iter(
            DataLoader(
                self.dataset,
                batch_sampler=EndlessBatches(
                    len(self.dataset),  # type: ignore[arg-type]
                    self.config.batch_size,
                    self.iteration,
                    rank(),
                    world_size(),
                ),
                num_workers=self.config.num_workers,
                # A loader draws a number when it starts, which must not come from the stream that the model draws from.
                generator=torch.Generator().manual_seed(self.config.seed),
            )
        )
        spent_before, start = self.seconds, time.perf_counter()
        with TrainingProgress(self.console if rank() == 0 else None, description, self.config) as bar:
            stopping = False
            while self._done() < 1 and not stopping:
                batch = next(batches)
                loss = self.step(batch)
                # All processes have to agree on the last iteration, whatever their clocks and signals say.
                self.seconds, stopping = mean_and_any(
                    spent_before + time.perf_counter() - start, self.stop_requested, self.device
                )
                if after_iteration is not None:
                    after_iteration()
                images = world_size() * sum(batch[key].shape[:-3].numel() for key in KEYS if key.endswith("images"))
                miou = self.scores[-1]["miou"] if self.scores else None
                bar.update(self.iteration, self.seconds, loss, images, miou)
        return self.history

    def step(self, batch: dict[str, Tensor]) -> float:
        """One iteration on this process's part of a batch of episodes; returns the loss of the whole batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * self.config.lr_factor(self._done(), self.iteration)
        dtype = getattr(torch, self.config.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            output = self._parallel(*(batch[key].to(self.device, non_blocking=True) for key in KEYS))
        loss: Tensor = output.loss
        if self._done() < self.config.support_first:
            loss = output.losses["support"]
            if world_size() > 1:
                # DistributedDataParallel waits for a gradient of everything that the output depends on.
                loss = loss + 0 * output.loss
        value, _ = mean_and_any(float(loss.detach()), False, self.device)
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss became {value} in iteration {self.iteration + 1}; a lower learning rate than "
                f"{self.config.lr:g} usually helps"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.config.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.iteration += 1
        self.history.append(value)
        return value

    def checkpoint(self) -> Checkpoint:
        """The present state, ready for `save_checkpoint`. With several processes all of them must call this."""
        return Checkpoint(
            model=dict(getattr(self.model, "config", {})),
            weights=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            iteration=self.iteration,
            history=list(self.history),
            training=asdict(self.config),
            seconds=self.seconds,
            scaler=self.scaler.state_dict(),
            random_states=gather_random_states(self.device),
            scores=list(self.scores),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of the same model and settings, as if there had been no interruption.

        The schedule and the place in the data follow from the iteration.

        Raises:
            ValueError: the checkpoint is of another model.
        """
        own = [_kinds(group) for group in self.optimizer.param_groups]
        try:
            self.model.load_state_dict(checkpoint.weights)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            if checkpoint.scaler:
                self.scaler.load_state_dict(checkpoint.scaler)
            groups = zip(self.optimizer.param_groups, own, strict=True)
            if not all(_same_kinds(group, kinds) for group, kinds in groups) or not _state_fits(self.optimizer):
                raise ValueError("other settings of the optimizer")
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError("the checkpoint is of another model or optimizer than this training's") from error
        self.iteration = checkpoint.iteration
        self.seconds = checkpoint.seconds
        self.history = list(checkpoint.history)
        self.scores = list(checkpoint.scores)
        if len(checkpoint.random_states) == world_size():
            self._random_state = checkpoint.random_states[rank()]

    def _set_random_state(self) -> None:
        """As the checkpoint left it; else from the seed, different in every process and after every interruption."""
        if self._random_state is None:
            torch.manual_seed(self.config.seed + rank() + world_size() * self.iteration)
            return
        try:
            torch.set_rng_state(self._random_state["cpu"].cpu())
            if self.device.type == "cuda" and "cuda" in self._random_state:
                torch.cuda.set_rng_state(self._random_state["cuda"].cpu(), self.device)
        except (KeyError, AttributeError, TypeError, RuntimeError) as error:
            raise ValueError("the checkpoint's state of the random numbers is damaged") from error

    def _done(self) -> float:
        """The part of the budget that is spent."""
        if self.config.iterations is not None:
            return self.iteration / self.config.iterations
        assert self.config.seconds is not None
        return self.seconds / self.config.seconds


def _freeze(model: nn.Module, frozen: Sequence[str]) -> None:
    """Takes the gradient from the parameters whose dotted names begin with one of ``frozen``."""
    for part in frozen:
        found = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not found:
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"training.frozen: the model has no part {part!r}; its parts are {parts} and theirs")
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("training.frozen: nothing is left to train")


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
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, weight_decay=config.weight_decay)


def _kinds(group: dict[str, Any]) -> dict[str, type]:
    """The settings of a group of parameters by the kind of their value; whole numbers are as good as others."""
    return {key: float if type(value) is int else type(value) for key, value in group.items()}


def _same_kinds(group: dict[str, Any], own: dict[str, type]) -> bool:
    """Whether the settings of a group that was loaded can be used; other versions of torch know fewer of them."""
    kinds = _kinds(group)
    return {"lr", "full_lr"} <= kinds.keys() and all(kinds.get(key, kind) is kind for key, kind in own.items())


def _state_fits(optimizer: torch.optim.Optimizer) -> bool:
    """Whether what is kept of every parameter has its shape."""
    return all(
        isinstance(parameter, Tensor)
        and isinstance(state, dict)
        and all(
            value.dim() == 0 or value.shape == parameter.shape for value in state.values() if isinstance(value, Tensor)
        )
        for parameter, state in optimizer.state.items()
    )


class EndlessBatches(Sampler[list[int]]):
    """Consecutive indices, round and round; where to begin is a function of the iteration alone.

    Args:
        length: of the data set.
        batch_size: of all processes together.
        iteration: the first.
        rank: which part of each batch.
        world_size: how many parts.
    """

    def __init__(self, length: int, batch_size: int, iteration: int, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.batch_size, self.iteration = length, batch_size, iteration
        self.part = batch_size // world_size
        self.offset = rank * self.part

    def __iter__(self) -> Iterator[list[int]]:
        first = self.iteration * self.batch_size + self.offset
        while True:
            yield [i % self.length for i in range(first, first + self.part)]
            first += self.batch_size
