"""The trainings that the recipes' settings were chosen by: scored on held-out base classes, never on test classes.

One training each, of the first seed. What the recipes say now is the row that is marked as chosen.
"""

from typing import Any

from paper.lab import Lab
from paper.vpi import bench_of

# The first block of MobileNetV2 that trains, with every block after it.
FROM_BLOCK = {"all layers": 0, "from block 7": 7, "from block 14": 14}
BIOPT = ((5e-4, "all layers"), (2e-3, "all layers"), (4e-3, "from block 7"), (2e-3, "from block 14"))
VPI = (3e-4, 1e-3)


def search(lab: Lab) -> list[dict[str, Any]]:
    """One row for each setting."""
    untrained = lab.untrained(lab.recipe("ablation-inopt"))
    score = lab.cached("search-untrained", lab.backbone, lambda: lab.validate(untrained))
    rows = [{"what": "InOpt, untrained", "best": score, "best_iteration": 0, "last": score, "chosen": ""}]
    recipe = lab.recipe("ablation-inopt")
    for lr, layers in BIOPT:
        frozen = [f"backbone.features.{i}" for i in range(FROM_BLOCK[layers])]
        changed = lab.recipe("ablation-inopt", 0, f"--training.lr={lr}", f"--training.frozen=[{','.join(frozen)}]")
        chosen = changed == recipe
        name = "inopt-0" if chosen else f"search-inopt-{lr:g}-{layers.replace(' ', '-')}"
        rows.append(_row(f"InOpt, SGD {lr:g}, {layers}", lab.train(name, changed), chosen))
    recipe = lab.recipe("ablation-vpi")
    for lr in VPI:
        changed = lab.recipe("ablation-vpi", 0, f"--training.lr={lr}")
        chosen = changed == recipe
        name = "vpi-0" if chosen else f"search-vpi-{lr:g}"
        rows.append(_row(f"VPI, AdamW {lr:g}", bench_of(lab).train(name, changed), chosen))
    return rows


def _row(what: str, training: dict[str, Any], chosen: bool) -> dict[str, Any]:
    best = max(training["validation"], key=lambda s: s["miou"])
    return {
        "what": what,
        "best": best["miou"],
        "best_iteration": best["iteration"],
        "last": training["validation"][-1]["miou"],
        "chosen": "chosen" if chosen else "",
    }
