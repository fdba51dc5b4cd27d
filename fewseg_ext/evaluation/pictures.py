"""Pictures of what a model does: a grid of segmentations, loss curves, scores by class. Needs matplotlib."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewseg_ext.data.transforms import denormalize
from fewseg_ext.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH = (0.10, 0.75, 0.35)
PREDICTION = (1.00, 0.45, 0.05)
INK = "#333333"


@dataclass(frozen=True)
class GridRow:
    """One episode with one support image."""

    title: str
    support_image: Tensor  # float32 [3,h,w], normalised
    support_mask: Tensor  # bool [h,w]
    query_image: Tensor
    query_mask: Tensor
    query_ignored: Tensor  # bool [h,w], pixels that the IoU leaves out
    predictions: dict[str, Tensor]  # column title -> bool [h,w]
    uncertainties: dict[str, Tensor] = field(default_factory=dict)  # column title -> float32 [h,w] in nats


def check_matplotlib() -> None:
    """To be called before the minutes or hours whose pictures are drawn at the end.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    _figure_class()


def draw_grid(rows: Sequence[GridRow]) -> "Figure":
    """Support, query, truth, every prediction and every map of uncertainty in columns, one episode per row.

    Under a prediction stands its IoU, under an uncertainty its mean; its colours go from 0 to the entropy of a coin.
    """
    figure_class = _figure_class()
    names, maps = list(rows[0].predictions), list(rows[0].uncertainties)
    titles = ["support", "query", "truth", *names, *maps]
    figure = figure_class(figsize=(1.75 * len(titles) + 0.3, 1.95 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        _show(line[0], row.support_image, row.support_mask, TRUTH)
        _show(line[1], row.query_image)
        _show(line[2], row.query_image, row.query_mask, TRUTH)
        for name, ax in zip(names, line[3:], strict=False):
            prediction = row.predictions[name]
            _show(ax, row.query_image, prediction, PREDICTION)
            union = int(((prediction | row.query_mask) & ~row.query_ignored).sum())
            iou = int((prediction & row.query_mask).sum()) / max(union, 1)
            ax.set_xlabel(f"IoU {100 * iou:.0f}", fontsize=9, color=INK, labelpad=3)
        for name, ax in zip(maps, line[3 + len(names) :], strict=True):
            ax.imshow(row.uncertainties[name].numpy(), cmap="magma", vmin=0, vmax=math.log(2))
            _bare(ax)
            ax.set_xlabel(f"mean {row.uncertainties[name].mean():.2f} nats", fontsize=9, color=INK, labelpad=3)
        line[0].set_ylabel(_plain(row.title), fontsize=9, color=INK)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=11, color=INK)
    return figure


def draw_losses(
    histories: Mapping[str, Sequence[float]], switches: Mapping[str, int] | None = None, smoothing: float = 0.97
) -> "Figure":
    """Loss over iterations, one panel per model since their losses have different terms; raw and smoothed.

    ``switches`` marks the iteration from which a model trains with all terms of its loss, a jump that is no failure.
    """
    figure_class = _figure_class()
    figure = figure_class(figsize=(4.4 * len(histories), 3.2), layout="constrained")
    for ax, (name, history) in zip(
        figure.subplots(1, len(histories), squeeze=False)[0], histories.items(), strict=True
    ):
        steps = range(1, len(history) + 1)
        ax.plot(steps, history, color="#b9cbe4", linewidth=0.7)
        ax.plot(steps, _smooth(history, smoothing), color="#1f5fa8", linewidth=1.8)
        if switches and 0 < switches.get(name, 0) < len(history):
            ax.axvline(switches[name], color=INK, linewidth=0.8, linestyle=":")
            ax.text(switches[name], 1.0 * max(history), " all terms", fontsize=8, color=INK, va="top")
        ax.set_title(name, fontsize=11, color=INK)
        ax.set_xlabel("iteration", color=INK)
        ax.set_ylabel("training loss", color=INK)
        ax.set_ylim(0, 1.05 * max(history))
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def draw_class_scores(means: Mapping[str, float], spreads: Mapping[str, float], title: str, protocol: str) -> "Figure":
    """IoU per class as bars with the standard deviation over seeds; a line marks the mean over classes.

    Args:
        means: per cent by class name.
        spreads: standard deviations by class name.
        title: above the bars.
        protocol: how they were measured, in small print.
    """
    figure_class = _figure_class()
    figure = figure_class(figsize=(6.4, 0.26 * len(means) + 1.7), layout="constrained")
    ax = figure.subplots()
    rows = range(len(means))
    ax.barh(rows, list(means.values()), xerr=[spreads[name] for name in means], color="#7fa6d6", ecolor=INK, capsize=2)
    ax.set_yticks(rows, [_plain(name.replace("_", " ")) for name in means], fontsize=9, color=INK)
    ax.invert_yaxis()
    ax.set_ylim(len(means) - 0.4, -0.6)
    mean = sum(means.values()) / len(means)
    ax.axvline(mean, color="#1f5fa8", linewidth=1.2, linestyle="--")
    ax.set_xlabel(f"IoU, per cent (mean over classes {mean:.1f})", color=INK)
    ax.set_xlim(0, 100)
    ax.set_title(_plain(title), fontsize=10, color=INK)
    figure.supxlabel(_plain(textwrap.fill(protocol, 130)), fontsize=6, color=INK)
    ax.grid(alpha=0.25, axis="x")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(path: str | os.PathLike[str], figure: "Figure") -> None:
    """Writes a PNG file, whole or not at all."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110, facecolor="white"))


def _smooth(values: Sequence[float], smoothing: float) -> list[float]:
    """Exponential mean, corrected for its start."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean = smoothing * mean + (1 - smoothing) * value
        weight = smoothing * weight + (1 - smoothing)
        result.append(mean / weight)
    return result


def _show(ax: "Axes", image: Tensor, mask: Tensor | None = None, color: tuple[float, float, float] = TRUTH) -> None:
    """The image; under a mask tinted and outlined, elsewhere paler."""
    picture = denormalize(image)
    if mask is not None:
        tint = torch.tensor(color).view(3, 1, 1)
        picture = torch.where(mask, 0.5 * picture + 0.5 * tint, 0.6 * picture + 0.4)
    ax.imshow(picture.permute(1, 2, 0).numpy(), interpolation="antialiased")
    if mask is not None and mask.any() and not mask.all():
        ax.contour(mask.float().numpy(), levels=[0.5], colors=[color], linewidths=1.2)
    _bare(ax)


def _bare(ax: "Axes") -> None:
    """A picture: neither ticks nor frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _plain(text: str) -> str:
    """As it is: a dollar begins no formula, and what is no text in any encoding is a question mark."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$").replace("\0", "")


def _figure_class() -> "type[Figure]":
    try:
        # The class itself and not pyplot, which keeps global state and may want a display.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    return Figure
