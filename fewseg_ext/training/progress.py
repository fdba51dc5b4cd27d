"""The progress bar of a training."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fewseg_ext.training.config import TrainingConfig


class TrainingProgress:
    """A bar with smoothed loss, the last validation's mIoU, speed and time left; silent without a console."""

    def __init__(self, console: Console | None, description: str, config: TrainingConfig) -> None:
        self.by_time = config.iterations is None
        self.loss: float | None = None
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}") if self.by_time else MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}{task.fields[miou]}  {task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        self.progress = Progress(*columns, console=console, disable=console is None)
        total = config.seconds if self.by_time else config.iterations
        self.task = self.progress.add_task(description, total=total, done="", loss="-", miou="", speed="")

    def __enter__(self) -> "TrainingProgress":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def update(self, iteration: int, seconds: float, loss: float, images: int, miou: float | None) -> None:
        """After an iteration: ``seconds`` since the start, ``images`` in it, ``miou`` of validation in per cent."""
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self.progress.update(
            self.task,
            completed=seconds if self.by_time else iteration,
            done=f"{iteration} it",
            loss=f"{self.loss:.3f}",
            miou="" if miou is None else f"  mIoU {miou:.1f}",
            speed=f"{images * iteration / max(seconds, 1e-9):.0f} images/s",
        )
