"""Times a BiOpt training step and its inference by part, beside the same model on the reference operators; and VPI's
decoder for one sample and for six.

    python benchmarks/model_speed.py --quick     MobileNetV2 at 201 pixels, under a minute on two cores
    python benchmarks/model_speed.py             ResNet-50 at 417 pixels, the papers' setting, some minutes

The reference operators (fewseg_ext/ops/reference.py) are plain PyTorch: their inner loop is unrolled by autograd.
Weights and images are random: the time does not depend on them. Parts are the kernels' own times by torch's profiler;
what is left is the backbone, the losses' bookkeeping and the optimiser.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

import fewseg_ext
from fewseg_ext import ops
from fewseg_ext.ops import reference
from measure import environment, extra_peak_mib, time_ms, write_json

RESULTS = Path(__file__).parent / "results"
VPI_SIZE = 384
OPS = ("masked_avg_pool", "cosine_logits", "cosine_cross_entropy", "inner_opt")


@dataclass(frozen=True)
class Setting:
    backbone: str
    size: int
    batch: int
    shots: int
    training: bool
    reference: bool


@contextlib.contextmanager
def operators(use_reference: bool) -> Iterator[None]:
    """Inside, the models call the reference operators if asked to."""
    with contextlib.ExitStack() as stack:
        for op in OPS if use_reference else ():
            stack.enter_context(patch.object(ops, op, getattr(reference, op)))
        yield


def step(setting: Setting) -> Callable[[], Any]:
    """What is timed: a training step, or a prediction."""
    torch.manual_seed(0)
    model = fewseg_ext.BiOpt(backbone=setting.backbone)
    model.train(setting.training)
    b, s, n = setting.batch, setting.shots, setting.size
    support, query = torch.randn(b, 1, s, 3, n, n), torch.randn(b, 3, n, n)
    support_masks = torch.zeros(b, 1, s, n, n, dtype=torch.uint8)
    support_masks[..., n // 4 : n // 2, n // 4 : n // 2] = 1
    query_masks = torch.randint(0, 2, (b, n, n), dtype=torch.uint8)
    if not setting.training:

        def predict() -> None:
            with torch.no_grad():  # in inference mode the reference cannot differentiate its inner loop
                model(support, support_masks, query)

        return predict
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def train() -> None:
        optimiser.zero_grad()
        model(support, support_masks, query, query_masks).loss.backward()
        optimiser.step()

    return train


def parts(call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of our kernels in one call, by operator and direction."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        name = event.key.removeprefix("fewseg::")
        if name == event.key:
            continue
        op = next((op for op in OPS if op in name), None)
        if op:
            what = f"{op} backward" if name.endswith("_backward") else op
            found[what] = found.get(what, 0.0) + event.self_cpu_time_total / 1e3
    return found


def measure(setting: Setting) -> dict[str, Any]:
    with operators(setting.reference):
        call = step(setting)
        row = {**asdict(setting), "ms": time_ms(call, budget_s=20, most=5)}
        if not setting.reference:
            row["parts_ms"] = parts(call)
    command = [sys.executable, __file__, "--memory", json.dumps(asdict(setting))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row["extra_peak_mib"] = float(output.strip().splitlines()[-1])
    return row


def vpi_decoder(backbone: str, size: int) -> dict[str, dict[str, float]]:
    """Milliseconds of VPI's whole decoder by the number of samples, for one query."""
    torch.manual_seed(0)
    model = fewseg_ext.VPI(backbone).eval()
    with torch.no_grad():
        pyramid = model.encode(torch.randn(1, 3, size, size))
        z = torch.randn(1, 6, model.config["latent_dim"])

        def decode(samples: int) -> Callable[[], Any]:
            some = z[:, :samples].contiguous()
            return lambda: model.decoder(pyramid, some)

        return {str(samples): time_ms(decode(samples), budget_s=8, most=7) for samples in (1, 6)}


def print_memory(setting: Setting) -> None:
    with operators(setting.reference):
        print(extra_peak_mib(step(setting)))


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="One call of the model")
    for column in ("", "operators", "ms p50", "p20", "p80", "extra peak MiB", "inner loop"):
        table.add_column(column, justify="left" if column in ("", "operators") else "right")
    for row in rows:
        ms = row["ms"]
        inner = sum(ms for name, ms in row.get("parts_ms", {}).items() if name.startswith("inner_opt"))
        table.add_row(
            "training step" if row["training"] else "inference",
            "reference" if row["reference"] else "ours",
            *(f"{ms[p]:.0f}" for p in ("p50", "p20", "p80")),
            f"{row['extra_peak_mib']:.0f}",
            f"{100 * inner / ms['p50']:.1f} %" if "parts_ms" in row else "",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="MobileNetV2 at 201 pixels instead of ResNet-50 at 417")
    parser.add_argument("--batch", type=int, default=1, help="tasks per step (default: 1)")
    parser.add_argument("--shots", type=int, default=1, help="support images per task (default: 1)")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results/model_speed*.json)")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print_memory(Setting(**json.loads(options.memory)))
        return
    backbone, size = ("mobilenet_v2", 201) if options.quick else ("resnet50", 417)
    console = Console()
    rows = []
    for training in (True, False):
        for use_reference in (False, True):
            setting = Setting(backbone, size, options.batch, options.shots, training, use_reference)
            with console.status(str(setting)):
                rows.append(measure(setting))
    console.print(table_of(rows))
    for row in rows:
        if "parts_ms" in row:
            what = "training step" if row["training"] else "inference"
            listed = ", ".join(f"{name} {ms:.1f}" for name, ms in sorted(row["parts_ms"].items()))
            console.print(f"{what}, milliseconds in our kernels: {listed}")
    with console.status("VPI's decoder"):
        decoder = vpi_decoder(backbone, VPI_SIZE)
    one, six = (decoder[samples]["p50"] for samples in ("1", "6"))
    console.print(f"VPI's decoder at {VPI_SIZE} pixels: L = 1 {one:.0f} ms, L = 6 {six:.0f} ms, {six / one:.2f} times")
    out = options.out or RESULTS / f"model_speed{'_quick' if options.quick else ''}.json"
    write_json(out, {"environment": environment(), "rows": rows, "vpi_decoder_ms": decoder})
    console.print(f"written: {out}")


if __name__ == "__main__":
    main()
