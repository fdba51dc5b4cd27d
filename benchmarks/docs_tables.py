"""Writes the tables of README.md and docs/ from the committed results, so that no figure is copied by hand.

    python benchmarks/docs_tables.py           rewrites them
    python benchmarks/docs_tables.py --check   fails where a page and the results differ

A table stands between two comments, <!-- table: NAME --> and <!-- end of table -->.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gaussian_baselines
from paper import tables
from targets import MAIN, met, verdicts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OPS = ("masked_avg_pool", "cosine_logits", "cosine_cross_entropy", "inner_opt")


def load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return result


def speed() -> list[str]:
    result = load("kernel_speed_cpu.json")
    rows = {row["name"]: row for row in result["cases"]}
    facts = result["environment"]
    lines = [
        "| B = 1, K = 2, C = 2048, 53 x 53, masks and labels 417 x 417, float32 | ms | careful PyTorch "
        "| the same compiled | what one writes first | of the read sweep | extra MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for op in OPS:
        for direction in ("", " fwd+bwd"):
            row = rows[f"{op}{direction} {MAIN}"]
            ours = row["ms"]["ours"]["p50"]
            others = [row["ms"].get(name, {}).get("p50") for name in ("eager", "compiled", "naive")]
            cells = [f"{other / ours:.1f}x" if other else "" for other in others]
            lines.append(
                f"| `{op}`{', forward + backward' if direction else ''} | {ours:.1f} | {' | '.join(cells)} "
                f"| {100 * row['share_of_read_sweep']:.0f} % | {row['extra_peak_mib']:.1f} |"
            )
    lines += [
        "",
        f"Measured {facts['date']}: {facts['processor']}, {facts['threads']} threads, {facts['instruction_set']}, "
        f"torch {facts['torch']}; medians, warm caches.",
    ]
    missed = [f"{v['what']} {v['value']:.1f} instead of {v['must']:g}" for v in verdicts(result) if not met(v)]
    if missed:
        lines += ["", f"Targets not reached: {'; '.join(missed)}; see [NOTES](benchmarks/NOTES.md)."]
    return lines


def vpi_speed() -> list[str]:
    rows = [row for row in load("kernel_speed_cpu.json")["cases"] if row["op"] in gaussian_baselines.OPS]
    lines = [
        "| float32 | ms | careful PyTorch | what one writes first | extra MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        ours = row["ms"]["ours"]["p50"]
        others = " | ".join(f"{row['ms'][name]['p50'] / ours:.1f}x" for name in ("eager", "naive"))
        name = row["name"].removeprefix(row["op"]).removesuffix(row["dtype"]).strip()
        lines.append(f"| `{row['op']}` {name} | {ours:.2f} | {others} | {max(row['extra_peak_mib'], 0):.1f} |")
    return lines


def experiments(name: str) -> Callable[[], list[str]]:
    """A table of the papers' experiments on real photos."""
    return lambda: tables.TABLES[name](load("paper_experiments/results.json"))


def vpi_behaviour() -> list[str]:
    return (RESULTS / "vpi_behaviour.md").read_text().splitlines()


# By page, from the root.
TABLES: dict[str, dict[str, Callable[[], list[str]]]] = {
    "README.md": {"speed": speed, "accuracy": experiments("accuracy")},
    "benchmarks/results/paper_experiments/README.md": {
        name: experiments(name) for name in tables.TABLES if name != "accuracy"
    },
    "docs/vpi.md": {"vpi_behaviour": vpi_behaviour, "vpi_speed": vpi_speed},
}


def rewritten(page: str, text: str) -> str:
    """``text`` of ``page`` with every table made anew.

    Raises:
        ValueError: a table that nobody makes, or one of ours that has no place in ``text``.
    """
    names = re.findall(r"<!-- table: (\w+) -->", text)
    tables = TABLES[page]
    if set(names) != set(tables):
        raise ValueError(f"{page} has the tables {sorted(names)}, made are {sorted(tables)}")
    for name in names:
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)"
        body = "\n" + "\n".join(tables[name]()) + "\n\n"
        text = re.sub(pattern, lambda m, body=body: m[1] + body + m[2], text, flags=re.DOTALL)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where something would change")
    options = parser.parse_args()
    differ = False
    for page in TABLES:
        path = ROOT / page
        before = path.read_text()
        after = rewritten(page, before)
        if before != after and options.check:
            print(f"{page} differs from the results: run python benchmarks/docs_tables.py", file=sys.stderr)
            differ = True
        elif before != after:
            path.write_text(after)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
