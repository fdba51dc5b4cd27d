"""nvcc on the CUDA sources: no warning, and every kernel within its budget of registers and shared memory."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*_kernel.cu"))
NVCC = shutil.which("nvcc")
ALL_ARCHITECTURES = ("75", "80", "86", "90", "100", "120")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")

# Registers a thread for sm_90. With 256 threads a block, 128 let two blocks share a multiprocessor, which is what the
# sweeps of single steps count on (their float64 instantiations may take a few more); a resident block has a
# multiprocessor to itself and may take 255. What the others take today leaves room for three blocks or more, and should
# not grow unnoticed.
REGISTERS = {
    "add_table_kernel": 40,
    "ascend_kernel": 152,
    "average_gradient_kernel": 88,
    "average_samples_kernel": 128,  # of eight classes in float64
    "bias_gradient_kernel": 40,
    "chunk_norms_kernel": 128,
    "combine_kernel": 64,
    "convert_labels_kernel": 40,
    "cosine_gradient_kernel": 40,
    "cosines_kernel": 80,
    "descend_kernel": 152,
    "gaussian_aggregate_backward_kernel": 56,
    "gaussian_aggregate_kernel": 56,
    "gaussian_sample_backward_kernel": 80,
    "gaussian_sample_kernel": 64,
    "loss_rows_kernel": 72,
    "normalise_weights_kernel": 40,
    "pool_kernel": 96,  # of eight classes, with the map that it writes
    "prepare_kernel": 40,
    "project_out_kernel": 40,
    "resident_ascend_kernel": 224,
    "resident_descend_kernel": 208,
    "residual_kernel": 80,
    "resize_kernel": 88,
    "scale_kernel": 24,
    "step_back_kernel": 64,
    "sum_classes_kernel": 64,
    "sum_rows_kernel": 40,
    "sum_samples_kernel": 40,
    "sum_taps_kernel": 56,
    "take_step_kernel": 64,
    "task_weights_kernel": 40,
    "unit_prototypes_kernel": 40,
    "weights_backward_kernel": 40,
    "z_table_kernel": 56,
}


def compile_device_code(source: Path, folder: Path, architecture: str, include: Path) -> str:
    """Compiles to a cubin, which needs no host compiler, and returns what nvcc and ptxas said."""
    command = [str(NVCC), "-cubin", "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas=-v", "-Xcompiler=-Wall"]
    command += ["-isystem", str(include), "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]
    command += [str(source), "-o", str(folder / f"{source.stem}_{architecture}.cubin")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


def compile_all(folder: Path, architecture: str, include: Path) -> str:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return "\n".join(pool.map(lambda source: compile_device_code(source, folder, architecture, include), SOURCES))


@pytest.fixture(scope="module")
def log() -> str:
    """What nvcc said when the installed library was built; see cmake/keep_output.sh."""
    objects = "*/CMakeFiles/fewseg_ops_cuda.dir/csrc/cuda"
    texts = {source.name: list((ROOT / "build").glob(f"{objects}/{source.name}.o.log")) for source in SOURCES}
    assert all(texts.values()), "build with -C cmake.define.FEWSEG_BUILD_TESTS=ON, as `make setup` does"
    return "\n".join(max(logs, key=lambda path: path.stat().st_mtime).read_text() for logs in texts.values())


def usage(log: str) -> dict[str, dict[str, int]]:
    """The most that any instantiation of each kernel takes."""
    pattern = re.compile(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers(?:, used \d+ barriers)?(?:, \d+ bytes cumulative stack size)?(?:, (\d+) bytes smem)?",
        re.DOTALL,
    )
    result: dict[str, dict[str, int]] = {}
    for symbol, stack, stores, loads, registers, static in pattern.findall(log):
        name = re.search(r"\d([a-z_]+_kernel)", symbol)
        assert name, symbol
        kernel = result.setdefault(name[1], {"registers": 0, "stack": 0, "spills": 0, "static shared": 0})
        for key, value in (("registers", registers), ("stack", stack), ("static shared", static or 0)):
            kernel[key] = max(kernel[key], int(value))
        kernel["spills"] = max(kernel["spills"], int(stores) + int(loads))
    return result


def test_no_warnings(log: str) -> None:
    assert not [line for line in log.splitlines() if "warning" in line.lower()]


def test_every_kernel_has_a_budget_and_keeps_it(log: str) -> None:
    if "for 'sm_90'" not in log:
        pytest.skip("the budgets are sm_90's, and this build is for another GPU")
    kernels = usage(log)
    assert kernels.keys() == REGISTERS.keys()
    for name, kernel in kernels.items():
        assert kernel["registers"] <= REGISTERS[name], f"{name}: {kernel}"
        assert kernel["spills"] == 0, f"{name}: {kernel}"
        assert kernel["stack"] == 0, f"{name} keeps an array in local memory: {kernel}"
        assert kernel["static shared"] == 0, f"{name}: shared memory is taken through SharedMemory only"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_compiles_for_every_architecture(architecture: str, tmp_path: Path) -> None:
    log = compile_all(tmp_path, architecture, Path(torch.__file__).parent / "include")
    assert "warning" not in log.lower()
    assert all(kernel["spills"] == 0 for kernel in usage(log).values())


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.10.0", "2.11.0"])
def test_compiles_with_older_headers(version: str, tmp_path: Path) -> None:
    """The oldest torch that the stable ABI of this package promises, and the one after it."""
    folder = tmp_path / "torch"
    command = ["pip", "download", "-q", "--no-deps", "-d", str(folder), f"torch=={version}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if result.returncode != 0:
        pytest.skip(f"torch {version} cannot be downloaded here")
    wheel = next(folder.glob("*.whl"))
    subprocess.run(["python3", "-m", "zipfile", "-e", str(wheel), str(folder)], check=True, timeout=1800)
    include = folder / "torch" / "include"
    assert "warning" not in compile_all(tmp_path, "90", include).lower()
    for source in sorted((ROOT / "csrc").glob("cpu/*_kernel.cpp")) + sorted((ROOT / "csrc").glob("ops/*.cpp")):
        command = ["c++", "-std=gnu++17", "-fsyntax-only", "-Wall", "-Wextra", "-isystem", str(include)]
        command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", str(source)]
        subprocess.run(command, check=True, timeout=300)
