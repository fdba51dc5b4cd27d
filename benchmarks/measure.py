"""Timing, memory and the facts of the machine, for all benchmarks."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def time_ms(
    call: Callable[[], Any], budget_s: float = 0.6, most: int = 60, before: Callable[[], Any] | None = None
) -> dict[str, float]:
    """Runs ``call`` repeatedly and returns {p20, p50, p80} in milliseconds; the first call is not counted.

    Warm caches: the calls follow one another on the same inputs, unless ``before`` (not timed) empties the caches. A
    call of more than a second is measured twice. On a GPU a time is from an idle device to an idle device, so it
    includes the launches.
    """
    if torch.cuda.is_available():
        on_gpu = call

        def call() -> None:
            on_gpu()
            torch.cuda.synchronize()

        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    repeats = max(2, min(most, int(budget_s / max(first, 1e-6))))
    if first < budget_s:
        call()
    times = []
    for _ in range(repeats):
        if before:
            before()
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    last = len(times) - 1
    return {"p20": times[round(0.2 * last)], "p50": statistics.median(times), "p80": times[round(0.8 * last)]}


_flushed: list[torch.Tensor] = []


def flush_caches() -> None:
    """Writes twice as much as the last-level cache holds, so that nothing of the inputs stays in it."""
    if not _flushed:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
        kib = int(size.read_text().strip().rstrip("K")) if size.is_file() else 32 * 1024
        _flushed.append(torch.empty(2 * kib * 1024, dtype=torch.uint8))
    _flushed[0].fill_(len(_flushed))


def multiply_adds_per_ms(device: str = "cpu") -> float:
    """What a large matrix product reaches here: the rate of multiply-adds that nothing exceeds."""
    n = 1024 if device == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device)
    return n**3 / time_ms(lambda: a @ b)["p20"]


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"{field} is not in /proc/self/status")


def extra_peak_mib(call: Callable[[], Any]) -> float:
    """How far the resident memory of this process rises above where it stood, in MiB, while ``call`` runs.

    Counts native scratch, which torch's profiler does not see. Linux only; meant for a process of its own, in which
    nothing freed earlier hides what is allocated.
    """
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before = _status_mib("VmRSS")
    kept = call()
    peak = _status_mib("VmHWM")
    del kept
    return peak - before


def extra_peak_mib_cuda(call: Callable[[], Any]) -> float:
    """The same for a GPU, by torch's allocator, which the kernels' scratch goes through."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del kept
    return (peak - before) / 2**20


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """What a figure means nothing without."""
    import fewseg_ext

    chosen = torch.ops.fewseg._instruction_sets().split(";")[0]
    return {
        "fewseg_ext": fewseg_ext.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": chosen,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "date": time.strftime("%Y-%m-%d"),
    }


def write_json(path: Path, content: Any) -> None:
    from fewseg_ext.files import write_text

    write_text(path, json.dumps(content, indent=1) + "\n")
