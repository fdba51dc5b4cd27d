"""The charts of kernel_speed.py, drawn from its JSON."""

from pathlib import Path
from typing import Any

COLOURS = {"ours": "#e45756", "eager": "#4c78a8", "compiled": "#72b7b2", "naive": "#bab0ac"}
AXES = {
    "tasks": "tasks B",
    "classes": "classes K",
    "channels": "channels C",
    "grid": "pixels H x W",
    "steps": "steps T",
    "threads": "threads",
}


def place(environment: dict[str, Any]) -> str:
    where = environment["device"]
    if where == "cpu":
        where = f"{environment['processor']}, {environment['threads']} threads, {environment['instruction_set']}"
    return f"{where}, torch {environment['torch']}"


def draw_ratios(result: dict[str, Any], path: Path) -> None:
    """Bars: how many times as long as ours each baseline takes, on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [row for row in result["cases"] if {"eager", "naive", "compiled"} & row["ms"].keys()]
    baselines = ("eager", "compiled", "naive")
    figure = Figure(figsize=(9, 0.55 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(baselines)
    for i, row in enumerate(rows):
        for j, name in enumerate(baselines):
            if name in row["ms"]:
                ratio = row["ms"][name]["p50"] / row["ms"]["ours"]["p50"]
                # From 1, where both take equally long: a bar to the left is a loss.
                axes.barh(i + j * height, ratio - 1, height, left=1, color=COLOURS[name])
                axes.text(max(ratio, 1) * 1.08, i + j * height, f"{ratio:.1f}", va="center", fontsize=7)
    axes.set_yticks([i + height for i in range(len(rows))], [row["name"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as long as fewseg_ext (logarithmic)")
    axes.set_title(place(result["environment"]), fontsize=9)
    axes.set_xlim(right=2.5 * axes.get_xlim()[1])
    handles = [Patch(color=COLOURS[name], label=name) for name in baselines]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), fontsize=8)
    figure.savefig(path, dpi=120)


def draw_scaling(result: dict[str, Any], path: Path) -> None:
    """inner_opt against each of its sizes, one panel each; forward solid, forward + backward dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.2), layout="constrained")
    panels = figure.subplots(2, 3).flat
    for ax, (axis, points) in zip(panels, result["scaling"].items(), strict=False):
        for name in ("ours", "eager"):
            for backward, style in ((False, "-"), (True, "--")):
                line = [p for p in points if p["backward"] == backward and name in p["ms"]]
                at = [p["value"] ** 2 if axis == "grid" else p["value"] for p in line]
                what = "forward + backward" if backward else "forward"
                ax.plot(at, [p["ms"][name]["p50"] for p in line], style, marker="o", markersize=3, color=COLOURS[name],
                        label=f"{name}, {what}")  # fmt: skip
        ax.set_xscale("log")
        ax.set_yscale("log")
        values = sorted({p["value"] ** 2 if axis == "grid" else p["value"] for p in points})
        ax.set_xticks(values, [str(v) for v in values], fontsize=8)
        ax.minorticks_off()
        ax.set_xlabel(AXES[axis])
        ax.grid(alpha=0.3)
    figure.supylabel("milliseconds")
    figure.suptitle(f"inner_opt around B=1 K=2 C=2048 53x53 T=10 float32; {place(result['environment'])}", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=120)
