"""The CPU kernels built with sanitizers run the operators' tests, under every instruction set of this processor."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fewseg_ext  # noqa: F401  (loads the operators)
import sanitized

OP_TESTS = Path(__file__).resolve().parents[1] / "ops"
_, USABLE = (text.split(",") for text in torch.ops.fewseg._instruction_sets().split(";"))
# torch's compiler starts compilers and processes of its own, which would all run with the sanitizer's runtime.
LEFT_OUT = "compile or export or opcheck or instruction_sets or full_size"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _cpu_run_only(backend: str) -> None:
    if backend != "cpu":
        pytest.skip("part of the tests without --backend")


def run_op_tests(environment: dict[str, str], chosen: str, marks: str = "not slow", timeout: int = 1800) -> str:
    """Runs the operators' tests that ``-k chosen`` picks, in a process with that environment."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marks, "-k", chosen]
    # From another folder: `python -m pytest` would import the package's source from the current one.
    result = subprocess.run(
        [*command, str(OP_TESTS)], env=environment, cwd=OP_TESTS, capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    assert " passed" in result.stdout
    return result.stdout


def assert_noticed(environment: dict[str, str], mistake: str, message: str) -> None:
    """What csrc/cpu/tests/planted.cpp does wrong is reported: the library of that process is the instrumented one."""
    script = f"import torch, fewseg_ext; torch.ops.fewseg._planted('{mistake}')"
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=OP_TESTS, capture_output=True, text=True, timeout=300
    )
    assert result.returncode != 0
    assert message in result.stderr, result.stderr[-3000:]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of AddressSanitizer and UndefinedBehaviourSanitizer."""
    site = sanitized.install(tmp_path_factory.mktemp("address"), "address,undefined")
    return sanitized.environment(site, "address")


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of ThreadSanitizer: three plain threads (csrc/cpu/tests/threads.cpp) share work of any size."""
    site = sanitized.install(tmp_path_factory.mktemp("thread"), "thread")
    return sanitized.environment(site, "thread", OMP_NUM_THREADS="1")


def test_address_and_undefined_behaviour(address: dict[str, str]) -> None:
    assert_noticed(address, "read out of bounds", "heap-buffer-overflow")
    assert_noticed(address, "overflow", "signed integer overflow")


@pytest.mark.parametrize("name", USABLE)
def test_op_tests_under_address_sanitizer(address: dict[str, str], name: str) -> None:
    run_op_tests({**address, "FEWSEG_CPU_ISA": name}, f"not ({LEFT_OUT})")


@pytest.mark.parametrize("name", USABLE)
def test_hostile_arguments_under_address_sanitizer(address: dict[str, str], name: str) -> None:
    run_op_tests({**address, "FEWSEG_CPU_ISA": name, "FEWSEG_EXAMPLES": "300"}, "test_properties", marks="slow")


def test_races_are_noticed(threads: dict[str, str]) -> None:
    assert_noticed(threads, "race", "data race")


@pytest.mark.parametrize("name", USABLE)
def test_op_tests_under_thread_sanitizer(threads: dict[str, str], name: str) -> None:
    # It follows no threads that a forked process starts.
    run_op_tests({**threads, "FEWSEG_CPU_ISA": name}, f"not ({LEFT_OUT} or data_loader)")
