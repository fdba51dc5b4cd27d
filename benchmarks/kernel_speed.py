"""Times the operators beside what they replace, in one process on the same inputs.

    python benchmarks/kernel_speed.py --quick          two minutes on two cores
    python benchmarks/kernel_speed.py                  every operator and shape, with torch.compile
    python benchmarks/kernel_speed.py --chart FILE     draws the chart of a result written earlier

Absolute times do not compare between machines; the ratios in the table do. See baselines.py for what is compared, and
NOTES.md for what was learnt.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fewseg_ext
from baselines import EAGER, NAIVE
from measure import environment, extra_peak_mib, extra_peak_mib_cuda, time_ms, write_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    op: str
    backward: bool
    tasks: int = 1
    classes: int = 2
    channels: int = 2048
    grid: int = 53
    image: int = 417
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def name(self) -> str:
        what = f"{self.op} fwd+bwd" if self.backward else self.op
        return f"{what} B={self.tasks} K={self.classes} C={self.channels} {self.grid}x{self.grid} {self.dtype}"

    def inputs(self) -> tuple[Tensor, ...]:
        # Everything is made on the device; the seed makes it the same in every process.
        with torch.device(self.device):
            return self._inputs()

    def _inputs(self) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        features = torch.randn(self.tasks, self.channels, self.grid, self.grid).to(getattr(torch, self.dtype))
        if self.op == "masked_avg_pool":
            foreground = torch.rand(self.tasks, 1, self.image, self.image) < 0.3
            return features.requires_grad_(self.backward), torch.cat([~foreground, foreground], 1)
        prototypes = torch.nn.functional.normalize(torch.randn(self.tasks, self.classes, self.channels), dim=2)
        side = self.image if self.op == "cosine_cross_entropy" else self.grid
        target = torch.randint(0, self.classes, (self.tasks, side, side))
        leaves = features.requires_grad_(self.backward), prototypes.requires_grad_(self.backward)
        return leaves if self.op == "cosine_logits" else (*leaves, target)

    def features_mib(self) -> float:
        size = torch.finfo(getattr(torch, self.dtype)).bits // 8
        return self.tasks * self.channels * self.grid**2 * size / 2**20


def cases(quick: bool, device: str) -> list[Case]:
    main = [Case(op, backward) for op in EAGER for backward in (False, True)]
    more = [
        *(Case(op, backward, channels=512) for op in EAGER for backward in (False, True)),
        *(Case(op, False, tasks=8) for op in EAGER),
        *(Case(op, backward, classes=6) for op in ("cosine_cross_entropy", "inner_opt") for backward in (False, True)),
        *(Case(op, backward, channels=320, grid=41, image=321) for op in EAGER for backward in (False, True)),
        *(Case(op, False, dtype="bfloat16") for op in EAGER),
    ]
    return [replace(case, device=device) for case in (main if quick else main + more)]


def runner(call: Callable[..., Tensor], args: tuple[Tensor, ...], backward: bool) -> Callable[[], Any]:
    if not backward:
        return lambda: call(*args)
    leaves = [x for x in args if x.requires_grad]
    gradient = torch.ones_like(call(*args))
    return lambda: torch.autograd.grad(call(*args), leaves, gradient)


def implementations(case: Case, compiled: bool) -> dict[str, Callable[..., Tensor]]:
    result = {"ours": getattr(fewseg_ext, case.op)}
    if case.dtype == "float32":  # the baselines do not mix dtypes
        result["eager"] = EAGER[case.op]
        # PyTorch code over a batch is the same code over its tasks, and takes gigabytes.
        if case.tasks == 1:
            result["naive"] = NAIVE[case.op]
        if compiled:
            torch._dynamo.reset()
            result["compiled"] = torch.compile(EAGER[case.op])
    return result


def measure(case: Case, compiled: bool) -> dict[str, Any]:
    args = case.inputs()
    row: dict[str, Any] = {**asdict(case), "name": case.name, "ms": {}}
    features = args[0].detach()
    row["ms"]["read sweep"] = time_ms(features.sum)
    for name, call in implementations(case, compiled).items():
        row["ms"][name] = time_ms(runner(call, args, case.backward))
    row["extra_peak_mib"] = memory_in_fresh_process(case)
    row["features_mib"] = case.features_mib()
    return row


def memory_in_fresh_process(case: Case) -> float:
    """Extra peak memory of one call of ours; with the backward the gradient itself is left out."""
    command = [sys.executable, __file__, "--memory", json.dumps(asdict(case))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.strip().splitlines()[-1])


def print_memory(case: Case) -> None:
    small = replace(case, tasks=1, classes=2, channels=16, grid=5, image=9)
    measure_extra = extra_peak_mib_cuda if case.device == "cuda" else extra_peak_mib
    run = runner(getattr(fewseg_ext, case.op), small.inputs(), case.backward)
    run()  # what is loaded once is not the call's
    args = case.inputs()
    call = getattr(fewseg_ext, case.op)
    if not case.backward:
        extra = measure_extra(lambda: call(*args))
    else:
        leaves = [x for x in args if x.requires_grad]
        extra = measure_extra(lambda: torch.autograd.grad(call(*args).sum(), leaves)) - case.features_mib()
    print(extra)


def call_overhead(device: str) -> dict[str, float]:
    """Forward and backward of a call with next to no arithmetic, beside x.clone()'s, in microseconds."""
    with torch.device(device):
        return _call_overhead()


def _call_overhead() -> dict[str, float]:
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    masks, target = torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    prototypes = torch.randn(1, 2, 4, requires_grad=True)
    calls: dict[str, Callable[[], Tensor]] = {
        "x.clone()": lambda: x.clone(),
        "masked_avg_pool": lambda: fewseg_ext.masked_avg_pool(x, masks),
        "cosine_logits": lambda: fewseg_ext.cosine_logits(x, prototypes),
        "cosine_cross_entropy": lambda: fewseg_ext.cosine_cross_entropy(x, prototypes, target),
        "inner_opt": lambda: fewseg_ext.inner_opt(x, prototypes, target, 1),
    }

    def many(call: Callable[[], Tensor]) -> Callable[[], None]:
        gradient = torch.ones_like(call())

        def run() -> None:
            for _ in range(200):
                torch.autograd.grad(call(), x, gradient)

        return run

    return {name: time_ms(many(call))["p50"] * 1e3 / 200 for name, call in calls.items()}


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Milliseconds (median), and how many times as long as ours")
    table.add_column("operator and shape")
    for column in ("ours", "eager", "compiled", "naive", "read sweeps", "extra MiB"):
        table.add_column(column, justify="right")
    for row in rows:
        ours = row["ms"]["ours"]["p50"]
        cells = [f"{ours:.2f}"]
        for name in ("eager", "compiled", "naive"):
            other = row["ms"].get(name, {}).get("p50")
            cells.append(f"{other:.1f} ({other / ours:.1f}x)" if other else "")
        cells += [f"{ours / row['ms']['read sweep']['p50']:.1f}", f"{row['extra_peak_mib']:.1f}"]
        table.add_row(row["name"], *cells)
    return table


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Bars: how many times as long as ours each baseline takes, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    rows = [row for row in result["cases"] if len(row["ms"]) > 2]
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(rows) + 1.6), layout="constrained")
    colours = {"eager": "#4c78a8", "compiled": "#72b7b2", "naive": "#bab0ac"}
    height = 0.8 / len(colours)
    for i, row in enumerate(rows):
        for j, (name, colour) in enumerate(colours.items()):
            if name in row["ms"]:
                ratio = row["ms"][name]["p50"] / row["ms"]["ours"]["p50"]
                # From 1, where both take equally long: a bar to the left is a loss.
                axes.barh(i + j * height, ratio - 1, height, left=1, color=colour)
                axes.text(max(ratio, 1) * 1.08, i + j * height, f"{ratio:.1f}", va="center", fontsize=7)
    axes.set_yticks([i + height for i in range(len(rows))], [row["name"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as long as fewseg_ext (logarithmic)")
    facts = result["environment"]
    where = facts["device"] if facts["device"] != "cpu" else f"{facts['processor']}, {facts['threads']} threads"
    axes.set_title(f"{where}, torch {facts['torch']}", fontsize=9)
    axes.set_xlim(right=2.5 * axes.get_xlim()[1])
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the main shape only, without torch.compile of backwards")
    parser.add_argument("--op", choices=list(EAGER), action="append", help="only this operator (may be repeated)")
    parser.add_argument("--threads", type=int, help="number of threads (default: torch's)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--no-compiled", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--out", type=Path, help="where the JSON goes (default: benchmarks/results/kernel_speed_DEVICE[_quick].json)"
    )
    parser.add_argument("--chart", type=Path, metavar="JSON", help="only draw the chart of this result")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print_memory(Case(**json.loads(options.memory)))
        return
    if options.chart:
        draw_chart(json.loads(options.chart.read_text()), options.chart.with_suffix(".png"))
        return

    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    rows = []
    for case in cases(options.quick, options.device):
        if options.op and case.op not in options.op:
            continue
        # Compiling a backward takes minutes and gains nothing over eager (see NOTES.md).
        compiled = not options.no_compiled and not case.backward and case.dtype == "float32"
        if options.quick and case.op not in ("inner_opt", "cosine_cross_entropy"):
            compiled = False
        with console.status(case.name):
            rows.append(measure(case, compiled))
        console.print(f"{case.name}: {rows[-1]['ms']['ours']['p50']:.2f} ms")
    overhead = call_overhead(options.device)
    console.print(table_of(rows))
    console.print(
        "Forward+backward of a tiny call, microseconds: "
        + ", ".join(f"{name} {us:.0f} ({us / overhead['x.clone()']:.1f}x)" for name, us in overhead.items())
    )
    result = {"environment": environment(), "cache": "warm", "cases": rows, "call_overhead_us": overhead}
    name = f"kernel_speed_{options.device}{'_quick' if options.quick else ''}.json"
    out = options.out or RESULTS / name
    write_json(out, result)
    draw_chart(result, out.with_suffix(".png"))
    console.print(f"written: {out} and {out.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
