"""Builds and checks the CUDA kernels on a machine with a GPU and without a network: `make gpu-check STAGE=all`.

Stages, each a few minutes on 16 cores, each usable alone after `build`:

    build     compiles for the GPU that is here, into build/gpu/site (kept between calls)
    test      the C++ driver (the resident kernels have the bits of single steps), the operators' tests on the GPU,
              graph capture, streams, 10,000 bitwise repeats of the resident kernels and of single steps
    sanitize  compute-sanitizer's memcheck, racecheck, initcheck and synccheck on a C++ driver, memcheck on some tests
    bench     benchmarks/kernel_speed.py

Needs Python with torch (CUDA) and the modules below, cmake, ninja and nvcc. Results are collected in one JSON file
(--out), stage by stage.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
SITE = BUILD / "site"
STAGES = ("build", "test", "sanitize", "bench")
MODULES = ("hypothesis", "numpy", "pip", "pybind11", "pytest", "rich", "scikit_build_core")
PROGRAMS = ("cmake", "ninja", "nvcc")


def run(*command: str | Path, timeout: int = 480, **environment: str) -> dict[str, Any]:
    """Runs from the test folder (the root holds a package folder without kernels) and returns what a report needs."""
    start = time.time()
    text = [str(part) for part in command]
    print("$", " ".join(text), flush=True)
    try:
        result = subprocess.run(
            text,
            cwd=ROOT / "python_tests",
            env={**os.environ, "PYTHONPATH": str(SITE), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        code, output = result.returncode, result.stdout
    except subprocess.TimeoutExpired as error:
        code, output = 124, (error.stdout or b"").decode(errors="replace") + "\nTIMED OUT"
    print(output[-4000:], flush=True)
    return {"command": " ".join(text), "status": code, "seconds": round(time.time() - start, 1), "tail": output[-1500:]}


def build() -> list[dict[str, Any]]:
    defines = ["FEWSEG_CUDA=ON", "CMAKE_CUDA_ARCHITECTURES=native"]
    options = [part for define in defines for part in ("-C", f"cmake.define.{define}")]
    shutil.rmtree(SITE, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--no-index"]
    step = run(*pip, "-C", f"build-dir={BUILD / 'cmake'}", *options, "--target", SITE, ROOT)
    driver = run(
        "nvcc",
        "-std=c++17",
        "-O1",
        "-lineinfo",
        "-arch=native",
        ROOT / "csrc/cuda/tests/driver.cu",
        "-o",
        BUILD / "driver",
    )
    return [step, driver]


def pytest(*arguments: str, **environment: str) -> dict[str, Any]:
    step = run(sys.executable, "-m", "pytest", "-q", "--backend=cuda", *arguments, **environment)
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", step["tail"])
    step["counts"] = {name: int(number) for number, name in counts}
    if not step["counts"].get("passed"):
        step["status"] = step["status"] or 1
    return step


def test() -> list[dict[str, Any]]:
    return [
        run(BUILD / "driver"),
        pytest("ops", "-m", "not slow", "-k", "not instruction_sets and not export"),
        pytest("cuda/test_gpu.py"),
    ]


def sanitize() -> list[dict[str, Any]]:
    if shutil.which("compute-sanitizer") is None:
        return [
            {"command": "compute-sanitizer", "status": 1, "seconds": 0, "tail": "compute-sanitizer is not on the PATH"}
        ]
    steps = []
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        steps.append(run("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", BUILD / "driver"))
    # Without torch's caching allocator every tensor is an allocation of its own, so an access beyond it is seen.
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q"]
    selection = ["--backend=cuda", "ops/test_contract.py", "-k", "stride_zero or empty_batch or only_where_needed"]
    steps.append(run(*command, *selection, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))
    return steps


def bench() -> list[dict[str, Any]]:
    out = BUILD / "kernel_speed.json"
    step = run(sys.executable, ROOT / "benchmarks" / "kernel_speed.py", "--device", "cuda", "--out", out)
    if out.is_file():
        step["result"] = json.loads(out.read_text())
    return [step]


def import_torch() -> Any:
    """torch, where it sees a GPU and all else that the stages need is there; else one message about all of it."""
    if importlib.util.find_spec("torch") is None:
        sys.exit(f"gpu-check: {sys.executable} has no torch; name one that has with `make gpu-check PYTHON=...`")
    import torch

    if not torch.cuda.is_available():
        sys.exit("gpu-check: torch sees no GPU here; this check is for a machine with one")
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    # The build finds cmake and ninja as packages of this Python too.
    missing += [name for name in PROGRAMS if shutil.which(name) is None and importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"gpu-check: {sys.executable} and the PATH lack {', '.join(missing)}")
    return torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--out", type=Path, default=BUILD / "gpu_check.json", help="where the JSON goes")
    options = parser.parse_args()
    torch = import_torch()
    result = json.loads(options.out.read_text()) if options.out.is_file() else {}
    result["device"] = torch.cuda.get_device_name()
    result["torch"] = torch.__version__
    BUILD.mkdir(parents=True, exist_ok=True)
    failed = []
    for stage in STAGES if options.stage == "all" else [options.stage]:
        steps = globals()[stage]()
        result[stage] = {"ok": all(step["status"] == 0 for step in steps), "steps": steps}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1))
        if not result[stage]["ok"]:
            failed.append(stage)
            if stage == "build":
                break
    print("gpu-check:", "failed: " + ", ".join(failed) if failed else "all stages passed", "->", options.out)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
