"""Compares two results of kernel_speed.py from the same machine and fails where a ratio got worse.

    python benchmarks/kernel_speed.py --quick --out /tmp/new.json
    python benchmarks/check_regression.py benchmarks/results/kernel_speed_cpu.json /tmp/new.json

Only ratios are compared (a baseline's time over ours, both of one run), because times differ from run to run. Exit
status: 0 nothing lost, 1 a ratio fell by more than the limit, 2 the results cannot be compared.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# The facts that must agree for ratios to mean the same.
FACTS = ("processor", "threads", "instruction_set", "device")


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """How many times as long as ours each baseline takes, by case and baseline; larger is better."""
    found = {
        f"{row['name']}: {name}": time["p50"] / row["ms"]["ours"]["p50"]
        for row in result["cases"]
        for name, time in row["ms"].items()
        if name in ("eager", "compiled", "naive", "read sweep")
    }
    overhead = result.get("call_overhead_us", {})
    for op, us in overhead.items():
        if op != "x.clone()":
            found[f"tiny call of {op}: x.clone()"] = overhead["x.clone()"] / us
    return found


def compare(before: dict[str, Any], after: dict[str, Any], limit: float) -> list[str]:
    """One line per ratio that fell by more than ``limit``, a share such as 0.1.

    Raises:
        ValueError: the results are of different machines, or have no case in common.
    """
    for fact in FACTS:
        first, second = before["environment"].get(fact), after["environment"].get(fact)
        if first != second:
            raise ValueError(f"the results are not comparable: {fact} is {first!r} in one and {second!r} in the other")
    old, new = ratios(before), ratios(after)
    common = old.keys() & new.keys()
    if not common:
        raise ValueError("the results have no case in common")
    return [
        f"{name}: {old[name]:.2f}x -> {new[name]:.2f}x ({100 * (new[name] / old[name] - 1):+.0f} %)"
        for name in old
        if name in common and new[name] < (1 - limit) * old[name]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="JSON of kernel_speed.py")
    parser.add_argument("after", type=Path, help="JSON of kernel_speed.py, same machine")
    parser.add_argument("--limit", type=float, default=0.1, help="the loss that is still accepted (default: 0.1)")
    options = parser.parse_args()
    try:
        lost = compare(*(json.loads(path.read_text()) for path in (options.before, options.after)), options.limit)
    except (OSError, ValueError) as error:
        print(f"check_regression: {error}", file=sys.stderr)
        return 2
    for line in lost:
        print(line)
    print(f"{len(lost)} ratios fell by more than {100 * options.limit:.0f} %")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
