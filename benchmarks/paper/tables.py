"""The tables of paper_experiments.py as Markdown, from its JSON."""

from typing import Any

from paper.charts import NAMES

ROWS = {
    "baseline": "prototypes of the support (baseline)",
    "init": "init module, no inner steps",
    "dagger": "inner steps from the support's prototypes (InOpt-dagger)",
    "first-order": "InOpt, first-order gradient",
    "inopt": "InOpt, second-order gradient",
    "vpi-deterministic": "VPI's deterministic counterpart",
    "vpi": "VPI, 6 samples",
}


def cell(spread: dict[str, Any]) -> str:
    return f"{spread['mean']:.1f} ± {spread['std']:.1f}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    align = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, align, *rows)]


def settings_search(result: dict[str, Any]) -> list[str]:
    rows = [
        [row["what"], f"{row['best']:.1f} ({row['best_iteration']})", f"{row['last']:.1f}", row["chosen"]]
        for row in result["search"]
    ]
    return table(["settings", "best validation mIoU (iteration)", "last", ""], rows)


def biopt(result: dict[str, Any]) -> list[str]:
    part = result["biopt"]
    rows = []
    for variant, meaning in ROWS.items():
        if variant not in part["trained"]:
            continue
        untrained = part["untrained"].get(variant)
        cells = [cell(untrained[k]["miou"]) if untrained else "" for k in ("1", "5")]
        cells += [cell(part["trained"][variant][k][m]) for k in ("1", "5") for m in ("miou", "fb_iou")]
        rows.append([_counted(meaning, part["trained"][variant], result), *cells])
    head = ["", "untrained 1-shot", "untrained 5-shot", "1-shot mIoU", "1-shot binary", "5-shot mIoU", "5-shot binary"]
    return table(head, rows)


def _counted(meaning: str, row: dict[str, Any], result: dict[str, Any]) -> str:
    """Says where there are fewer trainings than the protocol tells."""
    count = len(row["1"]["miou"]["per_seed"])
    return meaning if count == result["trainings"] else f"{meaning}; {count} trainings"


def inner_steps(result: dict[str, Any]) -> list[str]:
    steps = result["biopt"]["steps"]
    shown = (0, 1, 2, 3, 5, 10)
    rows = [[NAMES[v], *(cell(metrics["miou"][i]) for i in shown)] for v, metrics in steps.items()]
    return table(["mIoU by inner steps", *map(str, shown)], rows)


def geometry(result: dict[str, Any]) -> list[str]:
    rows = []
    for which, row in result["biopt"]["geometry"].items():
        apart = (2 - 2 * row["cosine"]) ** 0.5
        rows.append([which, *(f"{value:.3f}" for value in (row["cosine"], apart, row["moved_1"], row["moved_10"]))])
    head = ["InOpt's prototypes", "cosine of object and background", "distance", "moved by 1 step", "by 10 steps"]
    return table(head, rows)


def multi_scale(result: dict[str, Any]) -> list[str]:
    scales = result["biopt"]["multi_scale"]
    rows = [
        [name, *(cell(scales[which][k]["miou"]) for k in ("1", "5"))]
        for which, name in (("single", "one scale"), ("several", "0.7, 1 and 1.3"))
    ]
    return table(["InOpt, mIoU", "1-shot", "5-shot"], rows)


def vpi(result: dict[str, Any]) -> list[str]:
    part = result["vpi"]["trained"]
    rows = [
        [ROWS[v], *(cell(part[v][k][m]) for k in ("1", "5") for m in ("miou", "fb_iou"))]
        for v in ("vpi-deterministic", "vpi")
    ]
    return table(["", "1-shot mIoU", "1-shot binary", "5-shot mIoU", "5-shot binary"], rows)


def aggregation(result: dict[str, Any]) -> list[str]:
    rows = [
        [*key.split(), *(cell(metrics[m]) for m in ("miou", "fb_iou"))]
        for key, metrics in result["vpi"]["aggregation"].items()
    ]
    return table(["means", "variances", "5-shot mIoU", "binary"], rows)


def samples(result: dict[str, Any]) -> list[str]:
    part = result["vpi"]["samples"]
    rows = [
        ["mIoU", *map(cell, part["miou"])],
        ["ms a prediction, without the backbone", *(f"{ms:.1f}" for ms in part["ms"])],
        ["the same, times that of one sample", *(f"{ms / part['ms'][0]:.2f}" for ms in part["ms"])],
    ]
    return table(["samples L", *map(str, part["samples"])], rows)


def uncertainty(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, row in result["uncertainty"].items():
        information = row.get("auroc_mutual_information")
        rows.append(
            [
                NAMES[name],
                f"{row['auroc_entropy']['mean']:.3f} ± {row['auroc_entropy']['std']:.3f}",
                f"{information['mean']:.3f} ± {information['std']:.3f}" if information else "",
                f"{row['temperature']['mean']:.2f}",
                *(f"{100 * row[when]['ece']['mean']:.1f}" for when in ("before", "after")),
            ]
        )
    head = ["", "AUROC of entropy", "of mutual information", "temperature", "calibration error, %", "scaled, %"]
    return table(head, rows)


def accuracy(result: dict[str, Any]) -> list[str]:
    """README's."""
    rows = []
    for part, variants in (("biopt", ("baseline", "init", "dagger", "first-order", "inopt")),
                           ("vpi", ("vpi-deterministic", "vpi"))):  # fmt: skip
        for v in variants:
            trained = result[part]["trained"][v]
            untrained = result[part].get("untrained", {}).get(v)
            rows.append(
                [
                    _counted(ROWS[v], trained, result),
                    *(cell(untrained[k]["miou"]) if untrained else "" for k in ("1", "5")),
                    *(cell(trained[k]["miou"]) for k in ("1", "5")),
                ]
            )
    head = ["mIoU ± std", "1-shot, untrained", "5-shot, untrained", "1-shot", "5-shot"]
    return [*table(head, rows), "", f"Protocol: {protocol(result)}."]


def protocol(result: dict[str, Any]) -> str:
    return result["protocol"]


def facts(result: dict[str, Any]) -> list[str]:
    where = result["environment"]
    return [
        f"`{result['command']}`, {result['seconds'] / 60:.0f} minutes on {where['processor']}, {where['threads']} "
        f"threads, torch {where['torch']}, {where['date']}.",
        "",
        f"Protocol: {protocol(result)}.",
    ]


TABLES = {
    "accuracy": accuracy,
    "facts": facts,
    "settings": settings_search,
    "biopt": biopt,
    "inner_steps": inner_steps,
    "geometry": geometry,
    "multi_scale": multi_scale,
    "vpi": vpi,
    "aggregation": aggregation,
    "samples": samples,
    "uncertainty": uncertainty,
}
