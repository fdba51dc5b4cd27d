"""The CUDA kernels, run by the emulator: the operators' own tests, in three thread orders, and the C++ driver."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fewseg_ext
import sanitized

ROOT = Path(__file__).resolve().parents[2]
OP_TESTS = ROOT / "python_tests" / "ops"
LIBRARY = Path(fewseg_ext.__file__).parent / "libfewseg_ops_emulated.so"

# Large maps take minutes in the emulator; what is registered in Python is tested beside the CPU kernels.
LEFT_OUT = "full_size or instruction_sets or compile or export or opcheck or func or autocast or schema or forward_mode"
# Minutes too: less strict than to equal the reference's gradients, and what the driver below looks at as well.
LEFT_OUT_QUICK = f"{LEFT_OUT} or gradcheck or bits_do_not_depend"
# Other orders need not repeat what does not depend on them.
LEFT_OUT_AGAIN = f"{LEFT_OUT} or error or any_shape or odd_values or vmap or deterministic"


@pytest.fixture(autouse=True)
def _cpu_run_only(backend: str) -> None:
    if backend != "cpu":
        pytest.skip("part of the tests without --backend")


@pytest.mark.parametrize(
    "order", ["shuffled", *(pytest.param(order, marks=pytest.mark.slow) for order in ("forward", "reverse"))]
)
def test_op_tests_pass(order: str) -> None:
    """A missing barrier shows as a difference between the orders, most of all when they change."""
    assert LIBRARY.is_file(), "build with -C cmake.define.FEWSEG_BUILD_TESTS=ON, as `make setup` does"
    left_out = LEFT_OUT_QUICK if order == "shuffled" else LEFT_OUT_AGAIN
    command = [sys.executable, "-m", "pytest", "-q", "--backend=emulated", "-m", "not slow", "-k", f"not ({left_out})"]
    # From another folder: `python -m pytest` would import the package's source from the current one.
    result = subprocess.run(
        [*command, str(OP_TESTS)],
        env={**os.environ, "FEWSEG_EMULATOR_ORDER": order},
        cwd=OP_TESTS,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def build_driver(folder: Path, *flags: str) -> Path:
    """csrc/cuda/tests/driver.cu with the emulator, without torch."""
    driver = folder / "driver"
    sources = [str(ROOT / "csrc/cuda/tests/driver.cu"), str(ROOT / "csrc/emulator/emulator.cpp")]
    command = ["c++", "-std=c++17", "-O1", "-Wno-unknown-pragmas", "-DFEWSEG_EMULATED", *flags, "-x", "c++", *sources]
    subprocess.run([*command, "-o", str(driver)], check=True, timeout=300)
    return driver


def checksums(driver: Path, order: str) -> str:
    environment = {**os.environ, "FEWSEG_EMULATOR_ORDER": order}
    result = subprocess.run([driver], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("ok\n")
    return result.stdout


def test_driver_gives_the_same_bits_in_every_order(tmp_path: Path) -> None:
    driver = build_driver(tmp_path)
    results = {order: checksums(driver, order) for order in ("forward", "reverse", "shuffled")}
    assert len(set(results.values())) == 1, results
    kernels = {line.split()[0] for line in results["forward"].splitlines()[:-1]}
    assert {"cosines", "pool", "combine", "steps", "resident", "resize", "loss", "residual"} <= kernels
    assert {"gaussian_sample", "sample_prototypes", "average_samples", "add_table", "sum_classes"} <= kernels


@pytest.mark.slow
def test_driver_under_address_sanitizer(tmp_path: Path) -> None:
    driver = build_driver(tmp_path, "-fsanitize=address", "-fno-omit-frame-pointer", "-g")
    for order in ("forward", "reverse", "shuffled"):
        checksums(driver, order)


@pytest.mark.slow
def test_op_tests_under_address_sanitizer(tmp_path: Path) -> None:
    """The emulated library built with AddressSanitizer, in a process that loads its runtime first."""
    site = sanitized.install(tmp_path, "address", "FEWSEG_BUILD_TESTS=ON")
    # The emulator's fibers are annotated, but not for stack frames that live on.
    environment = sanitized.environment(site, "address", ASAN_OPTIONS="detect_stack_use_after_return=0")
    command = [sys.executable, "-m", "pytest", "-q", "--backend=emulated", "-m", "not slow", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-k", f"not ({LEFT_OUT_AGAIN} or bits)", str(OP_TESTS)],
        env=environment,
        cwd=OP_TESTS,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout
