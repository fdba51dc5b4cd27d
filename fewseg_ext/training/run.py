"""What `fewseg train` does: a training in a folder, which goes on where it stopped."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.overlap import photo_hashes
from fewseg_ext.files import remove_leftovers, write_text
from fewseg_ext.models.registry import MODELS
from fewseg_ext.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fewseg_ext.training.data import hold_out, open_base_classes, training_episodes, validation_episodes
from fewseg_ext.training.distributed import launched_by_torchrun, rank
from fewseg_ext.training.engine import Trainer
from fewseg_ext.training.log import TrainingLog
from fewseg_ext.training.recipe import Recipe

LAST, BEST = "last.ckpt", "best.ckpt"
# As a shell reports a process that SIGTERM ended: whoever started it sees that the training is not finished.
STOPPED_STATUS = 128 + signal.SIGTERM
# What may differ between a training and its continuation: none of it changes the weights.
_FREE = ("run", "data.root", "training.num_workers")


class TrainingStopped(RuntimeError):
    """SIGTERM came; the checkpoint is written."""


def run_training(
    recipe: Recipe,
    out_dir: str | os.PathLike[str],
    *,
    device: str = "cpu",
    console: Console | None = None,
) -> Trainer:
    """Trains, or goes on with the training whose checkpoint is in ``out_dir``.

    Checkpoints hold hashes of the photos, those that the model was selected by too, so that an evaluation on any of
    them is found out.

    Args:
        recipe: what to train, and how.
        out_dir: gets ``recipe.yaml``, ``log.jsonl``, ``last.ckpt``, with validation classes ``best.ckpt``, and at the
            end ``loss.png``.
        device: "cpu" or "cuda".
        console: shows what is trained and the progress bar; None shows nothing.

    Raises:
        ValueError: ``out_dir`` holds a training with other settings, or an unreadable checkpoint.
        OSError: a checkpoint could not be written; the one before it is intact.
        TrainingStopped: SIGTERM came.
        TrainingDiverged: the loss is not finite.
    """
    with launched_by_torchrun(device) as own_device:
        run = _Run(recipe, Path(out_dir), own_device, console if rank() == 0 else None)
        run.train()
        return run.trainer


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        device: torch.device,
        console: Console | None,
    ) -> None:
        self.recipe, self.out, self.console = recipe, out, console
        checkpoint = _previous(out / LAST, recipe)
        source = open_base_classes(recipe.data, console)
        train, validation = hold_out(source, recipe.data.validation_classes)
        self.validation: EpisodeDataset | None = None
        if validation is not None:
            # Only validations need torchmetrics; its absence is better told now than by the first of them.
            import fewseg_ext.evaluation.metrics  # noqa: F401

            self.validation = validation_episodes(validation, recipe.data, recipe.run.validation_episodes)
        torch.manual_seed(recipe.training.seed)
        # The weights that a training started from need not be there when it goes on.
        weights = recipe.model.get("weights") if checkpoint is None else None
        model = MODELS[recipe.method](**{**recipe.model, "weights": weights})
        episodes = training_episodes(train, recipe.data, recipe.training.seed)
        self.trainer = Trainer(model, episodes, recipe.training, device=device, console=console)
        if checkpoint is not None:
            model.config = dict(checkpoint.model)
            self.trainer.restore(checkpoint)
        self._say(checkpoint, train.class_names, validation.class_names if validation is not None else [])
        self.log: TrainingLog | None = None
        self.photo_hashes = checkpoint.photo_hashes if checkpoint is not None else None
        if rank() == 0:
            if self.photo_hashes is None:
                self.photo_hashes = photo_hashes(source, console)
            out.mkdir(parents=True, exist_ok=True)
            remove_leftovers(out)
            write_text(out / "recipe.yaml", recipe.as_yaml())
            self.log = TrainingLog(out, self.trainer.iteration, recipe.run.tensorboard)

    def train(self) -> None:
        trainer = self.trainer
        try:
            with _stop_on_sigterm(trainer):
                trainer.run(f"training {self.recipe.method}", self._after_iteration)
                if self._finished():
                    self._finish()
                    return
                self._save(LAST)
        finally:
            if self.log is not None:
                self.log.close()
        raise TrainingStopped(
            f"stopped in iteration {trainer.iteration}, which {self.out / LAST} holds; the same command goes on"
        )

    def _finished(self) -> bool:
        budget = self.recipe.training
        if budget.iterations is not None:
            return self.trainer.iteration >= budget.iterations
        return self.trainer.seconds >= (budget.seconds or 0)

    def _after_iteration(self) -> None:
        trainer, every = self.trainer, self.recipe.run
        iteration, finished = trainer.iteration, self._finished()
        if self.log is not None and (iteration % every.log_every == 0 or finished):
            rates = {f"lr_{i}": group["lr"] for i, group in enumerate(trainer.optimizer.param_groups)}
            self.log.write(iteration, loss=trainer.history[-1], seconds=round(trainer.seconds, 3), **rates)
        # First the validation, so that a checkpoint that exists has its score.
        if self.validation is not None and (iteration % every.validate_every == 0 or finished):
            self._validate(self.validation)
        if iteration % every.save_every == 0 or finished:
            self._save(LAST)

    def _validate(self, episodes: EpisodeDataset) -> None:
        # torchmetrics is needed here only.
        from fewseg_ext.training.validation import validate

        trainer = self.trainer
        best = max((score["miou"] for score in trainer.scores), default=float("-inf"))
        score = validate(trainer.model, episodes, trainer.device, self.recipe.training.num_workers)
        trainer.scores.append({"iteration": trainer.iteration, **score})
        if self.log is not None:
            self.log.write(trainer.iteration, **{f"validation_{name}": value for name, value in score.items()})
        if score["miou"] > best:
            self._save(BEST)

    def _save(self, name: str) -> None:
        checkpoint = self.trainer.checkpoint()  # in every process
        if rank() == 0:
            checkpoint.recipe = self.recipe.as_dict()
            checkpoint.photo_hashes = self.photo_hashes
            save_checkpoint(self.out / name, checkpoint)

    def _finish(self) -> None:
        if rank() != 0:
            return
        try:
            from fewseg_ext.evaluation.pictures import draw_losses, save_figure

            save_figure(self.out / "loss.png", draw_losses({self.recipe.method: self.trainer.history}))
        except ImportError as error:
            self._print(f"No loss.png: {error}")
        self._print(f"Checkpoints, log and recipe: {self.out}")

    def _say(self, checkpoint: Checkpoint | None, train: list[str], validation: list[str]) -> None:
        if checkpoint is not None:
            self._print(f"Going on from iteration {checkpoint.iteration} of {self.out / LAST}")
        self._print(f"Training on {len(train)} base classes of {self.recipe.data.name}")
        if validation:
            self._print(
                f"{BEST}: chosen by the mIoU on {len(validation)} other base classes, never on test classes: "
                f"{', '.join(validation)}"
            )
        else:
            self._print(f"No validation classes: {LAST} is the result (--data.validation_classes holds some out)")

    def _print(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False)


def _previous(path: Path, recipe: Recipe) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        ValueError: it cannot be read, or is of a training with other settings.
    """
    if not path.exists():
        return None
    try:
        checkpoint = load_checkpoint(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; nothing was changed. Move it away to begin anew, or choose another --out"
        ) from error
    there, here = _fields(checkpoint.recipe), _fields(recipe.as_dict())
    for field in [*here, *there]:
        if there.get(field) != here.get(field):
            raise ValueError(
                f"{path} is of a training with other settings ({field}: {there.get(field)} there, {here.get(field)} "
                "here): choose another --out, or the same settings to go on with it"
            )
    return checkpoint


def _fields(recipe: dict[str, Any]) -> dict[str, Any]:
    """By dotted name, without what may change between a training and its continuation."""
    flat: dict[str, Any] = {}
    for section, content in recipe.items():
        values = content.items() if isinstance(content, dict) else [(None, content)]
        flat.update({section if key is None else f"{section}.{key}": value for key, value in values})
    return {key: value for key, value in flat.items() if key not in _FREE and key.split(".")[0] not in _FREE}


@contextmanager
def _stop_on_sigterm(trainer: Trainer) -> Iterator[None]:
    """The iteration that runs is finished first, so that the checkpoint is a whole state."""

    def stop(*_: object) -> None:
        trainer.stop_requested = True

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
