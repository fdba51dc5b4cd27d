"""Times the operators beside what they replace, in one process on the same inputs.

    python benchmarks/kernel_speed.py --quick          two minutes on two cores
    python benchmarks/kernel_speed.py                  every operator and shape, torch.compile, scaling, cold caches
    python benchmarks/kernel_speed.py --chart FILE     draws the charts of a result written earlier

Absolute times do not compare between machines; the ratios in the table do. See baselines.py for what is compared,
targets.py for what is asked of the ratios, and NOTES.md for what was learnt.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gaussian_baselines
import torch
from cases import SCALING, Call, Case, cases
from charts import draw_ratios, draw_scaling
from gaussian_cases import GaussianCase, gaussian_cases
from rich.console import Console
from rich.progress import track
from rich.table import Table
from targets import met, verdicts
from torch import Tensor

import fewseg_ext
from baselines import EAGER, NAIVE
from measure import (
    environment,
    extra_peak_mib,
    extra_peak_mib_cuda,
    flush_caches,
    multiply_adds_per_ms,
    time_ms,
    write_json,
)

RESULTS = Path(__file__).parent / "results"
ALL_EAGER: dict[str, Callable[..., Any]] = {**EAGER, **gaussian_baselines.EAGER}
ALL_NAIVE: dict[str, Callable[..., Any]] = {**NAIVE, **gaussian_baselines.NAIVE}


def results(case: Call, call: Callable[..., Any], args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    made = call(*args, **case.options)
    return made if isinstance(made, tuple) else (made,)


def runner(case: Call, call: Callable[..., Any], args: tuple[Tensor, ...]) -> Callable[[], Any]:
    options = case.options
    if not case.backward:
        return lambda: call(*args, **options)
    leaves = [x for x in args if x.requires_grad]
    gradients = [torch.ones_like(x) for x in results(case, call, args)]
    return lambda: torch.autograd.grad(results(case, call, args), leaves, gradients)


def implementations(case: Call, compiled: bool) -> dict[str, Callable[..., Any]]:
    result: dict[str, Callable[..., Any]] = {"ours": getattr(fewseg_ext, case.op)}
    if case.dtype == "float32":  # the baselines do not mix dtypes
        result["eager"] = ALL_EAGER[case.op]
        # PyTorch code over a batch is the same code over its tasks, and takes gigabytes for the features.
        if case.tasks == 1 or isinstance(case, GaussianCase):
            result["naive"] = ALL_NAIVE[case.op]
        if compiled:
            torch._dynamo.reset()
            result["compiled"] = torch.compile(ALL_EAGER[case.op])
    return result


def measure(case: Call, compiled: bool, rate: float | None = None, cold: bool = False) -> dict[str, Any]:
    """Times and memory of one case; ``rate``: multiply-adds per millisecond of this machine."""
    args = case.inputs()
    row: dict[str, Any] = {**asdict(case), "name": case.name, "ms": {}}
    for name, call in implementations(case, compiled).items():
        row["ms"][name] = time_ms(runner(case, call, args))
    ours = getattr(fewseg_ext, case.op)
    if cold:
        row["ms"]["ours, cold"] = time_ms(runner(case, ours, args), most=5, before=flush_caches)
    row["extra_peak_mib"] = memory_in_fresh_process(case)
    if isinstance(case, GaussianCase):
        return row
    row["ms"]["read sweep"] = time_ms(args[0].detach().sum)
    if case.op == "inner_opt" and case.steps > 1:
        row["ms"]["one step"] = time_ms(runner(replace(case, steps=1), ours, args))
    median = row["ms"]["ours"]["p50"]
    row["share_of_read_sweep"] = case.sweeps() * row["ms"]["read sweep"]["p50"] / median
    if rate:
        row["share_of_multiply_add_rate"] = case.multiply_adds() / rate / median
    row["features_mib"] = case.features_mib()
    return row


def scaling(device: str) -> dict[str, list[dict[str, Any]]]:
    """inner_opt, ours and eager, along every axis around its main shape."""
    main = Case("inner_opt", False, device=device)
    points: dict[str, list[dict[str, Any]]] = {}
    todo = [(axis, value) for axis, values in SCALING.items() for value in values]
    if device == "cpu":
        todo += [("threads", n) for n in range(1, torch.get_num_threads() + 1)]
    threads = torch.get_num_threads()
    for axis, value in track(todo, description="scaling", transient=True):
        torch.set_num_threads(value if axis == "threads" else threads)
        for backward in (False, True):
            case = replace(main, backward=backward, **({} if axis == "threads" else {axis: value}))
            args = case.inputs()
            calls = {"ours": fewseg_ext.inner_opt, "eager": EAGER["inner_opt"]}
            ms = {name: time_ms(runner(case, call, args), budget_s=0.3) for name, call in calls.items()}
            points.setdefault(axis, []).append({"value": value, "backward": backward, "ms": ms})
    torch.set_num_threads(threads)
    return points


def memory_in_fresh_process(case: Call) -> float:
    """Extra peak memory of one call of ours; with the backward the gradient itself is left out."""
    command = [sys.executable, __file__, "--memory", json.dumps(asdict(case))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.strip().splitlines()[-1])


def print_memory(case: Call) -> None:
    small = case.small
    measure_extra = extra_peak_mib_cuda if case.device == "cuda" else extra_peak_mib
    call = getattr(fewseg_ext, case.op)
    runner(small, call, small.inputs())()  # what is loaded once is not the call's
    args = case.inputs()
    if not case.backward:
        extra = measure_extra(lambda: call(*args, **case.options))
    else:
        leaves = [x for x in args if x.requires_grad]

        def backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad([x.sum() for x in results(case, call, args)], leaves)

        extra = measure_extra(backward) - case.gradient_mib()
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
    table = Table(title="Milliseconds, and how many times as long as ours; shares of what the machine can do")
    table.add_column("operator and shape")
    columns = (
        "p20",
        "ours p50",
        "p80",
        "cold",
        "eager",
        "compiled",
        "naive",
        "of read sweep",
        "of FMA rate",
        "extra MiB",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        ours = row["ms"]["ours"]
        cold = row["ms"].get("ours, cold", {}).get("p50")
        cells = [f"{ours[p]:.2f}" for p in ("p20", "p50", "p80")] + [f"{cold:.1f}" if cold else ""]
        for name in ("eager", "compiled", "naive"):
            other = row["ms"].get(name, {}).get("p50")
            cells.append(f"{other:.1f} ({other / ours['p50']:.1f}x)" if other else "")
        for share in ("share_of_read_sweep", "share_of_multiply_add_rate"):
            cells.append(f"{100 * row[share]:.0f} %" if share in row else "")
        table.add_row(row["name"], *cells, f"{row['extra_peak_mib']:.1f}")
    return table


def verdict_table(result: dict[str, Any]) -> Table:
    table = Table(title="Targets")
    for column in ("ratio", "measured", "must", "goal", ""):
        table.add_column(column, justify="left" if column == "ratio" else "right")
    for verdict in verdicts(result):
        sign = ">=" if verdict["at_least"] else "<="
        goal = f"{sign} {verdict['goal']:g}" if verdict["goal"] is not None else ""
        state = "missed" if not met(verdict) else "goal" if verdict["goal"] and met(verdict, "goal") else "met"
        table.add_row(verdict["what"], f"{verdict['value']:.2f}", f"{sign} {verdict['must']:g}", goal, state)
    return table


def draw(result: dict[str, Any], path: Path) -> list[Path]:
    drawn = [path.with_suffix(".png")]
    draw_ratios(result, drawn[0])
    if result.get("scaling"):
        drawn.append(path.with_name(f"{path.stem}_scaling.png"))
        draw_scaling(result, drawn[1])
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the main shape only, warm caches, no scaling")
    parser.add_argument("--op", choices=list(ALL_EAGER), action="append", help="only this operator (may be repeated)")
    parser.add_argument("--threads", type=int, help="number of threads (default: torch's)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--no-compiled", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--out", type=Path, help="where the JSON goes (default: benchmarks/results/kernel_speed_DEVICE[_quick].json)"
    )
    parser.add_argument("--chart", type=Path, metavar="JSON", help="only draw the charts of this result")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        given = json.loads(options.memory)
        print_memory(Case(**given) if given["op"] in EAGER else GaussianCase(**given))
        return
    if options.chart:
        draw(json.loads(options.chart.read_text()), options.chart)
        return

    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    full = not options.quick
    rate = multiply_adds_per_ms(options.device)
    rows = []
    gaussian = [] if options.quick and not options.op else gaussian_cases(options.device)
    for case in [*cases(options.quick, options.device), *gaussian]:
        if options.op and case.op not in options.op:
            continue
        # Compiling a backward takes minutes and gains nothing over eager (see NOTES.md).
        compiled = not options.no_compiled and not case.backward and case.dtype == "float32"
        if options.quick and case.op not in ("inner_opt", "cosine_cross_entropy"):
            compiled = False
        with console.status(case.name):
            rows.append(measure(case, compiled, rate, cold=full and case.tasks == 1))
        console.print(f"{case.name}: {rows[-1]['ms']['ours']['p50']:.2f} ms")
    result: dict[str, Any] = {
        "environment": environment(),
        "cache": "warm: calls follow one another on the same inputs; 'cold': caches overwritten before every call",
        "multiply_adds_per_ms": rate,
        "cases": rows,
        "call_overhead_us": call_overhead(options.device),
    }
    if full and not options.op:
        result["scaling"] = scaling(options.device)
    console.print(table_of(rows))
    overhead = result["call_overhead_us"]
    console.print(
        "Forward+backward of a tiny call, microseconds: "
        + ", ".join(f"{name} {us:.0f} ({us / overhead['x.clone()']:.1f}x)" for name, us in overhead.items())
    )
    if options.device == "cpu":
        console.print(verdict_table(result))
    name = f"kernel_speed_{options.device}{'_quick' if options.quick else ''}.json"
    out = options.out or RESULTS / name
    write_json(out, result)
    drawn = draw(result, out)
    console.print(f"written: {out}, {', '.join(path.name for path in drawn)}")


if __name__ == "__main__":
    main()
