"""The charts of paper_experiments.py, drawn from its JSON."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, RED, GREEN, GREY = "#4c78a8", "#e45756", "#54a24b", "#8a8a8a"
NAMES = {
    "baseline": "baseline",
    "init": "init module",
    "dagger": "InOpt-dagger",
    "first-order": "InOpt, first-order",
    "inopt": "InOpt",
    "vpi": "VPI",
    "vpi-deterministic": "deterministic",
}
COLOURS = {"baseline": GREY, "dagger": BLUE, "inopt": RED, "vpi": RED, "vpi-deterministic": BLUE}


def draw_all(result: dict[str, Any], folder: Path) -> None:
    for name, draw in {
        "inner_steps": draw_steps,
        "training_loss": draw_losses,
        "samples": draw_samples,
        "classes": draw_classes,
        "calibration": draw_calibration,
    }.items():
        figure = draw(result)
        figure.savefig(folder / f"{name}.png", dpi=110, facecolor="white")


def draw_steps(result: dict[str, Any]) -> Figure:
    """BiOpt's Fig. 5."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for ax, (metric, title) in zip(figure.subplots(1, 2), (("miou", "mIoU"), ("fb_iou", "binary IoU")), strict=True):
        for variant, metrics in result["biopt"]["steps"].items():
            rows = metrics[metric]
            _band(ax, range(len(rows)), rows, COLOURS[variant], NAMES[variant])
        _tidy(ax, "inner steps at the test", f"{title}, per cent")
        ax.set_xticks(range(len(rows)))
        ax.legend(fontsize=8)
    figure.suptitle("The inner loop at the test, on unseen classes: mean and spread over training seeds", fontsize=10)
    return figure


def draw_losses(result: dict[str, Any]) -> Figure:
    """BiOpt's Fig. 7. The losses have one, two and three cross-entropies: the mean of a model's own is drawn."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.subplots()
    terms = {"baseline": 1, "dagger": 2, "inopt": 3}
    for variant, histories in result["biopt"]["losses"].items():
        curve = [sum(values) / len(values) / terms[variant] for values in zip(*histories, strict=True)]
        window = max(1, len(curve) // 15)
        smooth = [sum(curve[max(0, i - window) : i + 1]) / len(curve[max(0, i - window) : i + 1])
                  for i in range(len(curve))]  # fmt: skip
        ax.plot(range(1, len(curve) + 1), curve, color=COLOURS[variant], alpha=0.25, linewidth=0.7)
        ax.plot(range(1, len(curve) + 1), smooth, color=COLOURS[variant], label=NAMES[variant])
    _tidy(ax, "iteration", "cross-entropy, mean of the terms")
    ax.legend(fontsize=8)
    ax.set_title("Training loss, mean over seeds", fontsize=10)
    return figure


def draw_samples(result: dict[str, Any]) -> Figure:
    """VPI's Fig. 3, right."""
    samples = result["vpi"]["samples"]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _band(left, samples["samples"], samples["miou"], RED, "mIoU")
    _tidy(left, "samples L", "mIoU, per cent")
    right.plot(samples["samples"], samples["ms"], color=BLUE, marker="o")
    _tidy(right, "samples L", "ms a prediction, without the backbone")
    right.set_ylim(bottom=0)
    figure.suptitle("VPI by the number of samples", fontsize=10)
    return figure


def draw_classes(result: dict[str, Any]) -> Figure:
    """VPI's Fig. 5."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.subplots()
    for i, (variant, classes) in enumerate(result["vpi"]["class_iou"].items()):
        at = [x + 0.4 * i - 0.2 for x in range(len(classes))]
        means = [row["mean"] for row in classes.values()]
        stds = [row["std"] for row in classes.values()]
        ax.bar(at, means, 0.38, yerr=stds, capsize=2, color=COLOURS[variant], label=NAMES[variant])
    ax.set_xticks(range(len(classes)), list(classes))
    _tidy(ax, "", "IoU, per cent")
    ax.legend(fontsize=8)
    ax.set_title("Class by class, 1-shot: mean and spread over training seeds", fontsize=10)
    return figure


def draw_calibration(result: dict[str, Any]) -> Figure:
    models = result["uncertainty"]
    figure = Figure(figsize=(3.4 * len(models), 3.6), layout="constrained")
    for ax, (name, row) in zip(figure.subplots(1, len(models)), models.items(), strict=True):
        ax.plot([0.5, 1], [0.5, 1], color=GREY, linestyle=":")
        for when, colour in (("before", GREY), ("after", RED)):
            bins = [i for i, share in enumerate(row[when]["share"]) if share > 1e-3]
            ax.plot([row[when]["confidence"][i] for i in bins], [row[when]["accuracy"][i] for i in bins], marker="o",
                    markersize=4, color=colour,
                    label=f"{when} scaling, error {100 * row[when]['ece']['mean']:.1f} %")  # fmt: skip
        _tidy(ax, "confidence", "accuracy")
        ax.set_title(f"{NAMES[name]}, T = {row['temperature']['mean']:.2f}", fontsize=10)
        ax.legend(fontsize=7)
    figure.suptitle("Calibration on unseen classes; the temperature is fitted on held-out base classes", fontsize=10)
    return figure


def _band(ax: Axes, at: Any, rows: list[dict[str, Any]], colour: str, label: str) -> None:
    means, stds = ([row[key] for row in rows] for key in ("mean", "std"))
    ax.plot(list(at), means, color=colour, marker="o", markersize=4, label=label)
    low, high = ([m + sign * s for m, s in zip(means, stds, strict=True)] for sign in (-1, 1))
    ax.fill_between(list(at), low, high, color=colour, alpha=0.15)


def _tidy(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
