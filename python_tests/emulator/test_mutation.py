"""The mutation run by itself: it finds the barriers, removes one at a time, and knows who noticed."""

import subprocess
import sys
from pathlib import Path

import pytest
from emulator import mutation

CSRC = Path(__file__).resolve().parents[2] / "csrc"

KERNELS = """
#include "device.h"  // not __syncthreads()
namespace fewseg {
/* __syncthreads() neither,
   nor { this */
template <class T, int kN = 3>
__global__ void __launch_bounds__(256) reverse(const T* from, T* to) {
  SharedMemory shared;
  T* array = shared.take<T>(blockDim.x);
  array[threadIdx.x] = from[threadIdx.x];
  if (kN > 0) {
    __syncthreads();
  }
  __syncthreads  ( );  // one too many
  to[threadIdx.x] = array[blockDim.x - 1 - threadIdx.x];
}

__device__ inline void helper(unsigned mask) {
#pragma unroll
  for (int i = 0; i < 3; ++i) __syncwarp(mask &
                                         (~0u));
}

struct Sums {
  __device__ int operator()(int) { return 0; }
  __device__ void everywhere() { fewseg::grid_sync(); }
};
}  // namespace fewseg
"""


def test_finds_barriers():
    barriers = mutation.find_barriers(KERNELS, "a.cuh")
    assert [(b.function, b.number) for b in barriers] == [
        ("reverse", 1),
        ("reverse", 2),
        ("helper", 1),
        ("everywhere", 1),
    ]
    lines = KERNELS.splitlines()
    assert ["sync" in lines[b.line - 1] for b in barriers] == [True] * 4


def test_removes_one_and_keeps_the_lines():
    barrier = mutation.find_barriers(KERNELS, "a.cuh")[2]
    text = mutation.removed(KERNELS, barrier)
    assert "for (int i = 0; i < 3; ++i) ((void)0)\n;" in text
    assert text.count("\n") == KERNELS.count("\n")
    assert len(mutation.find_barriers(text, "a.cuh")) == 3


def test_finds_every_barrier_of_the_kernels():
    for file in (CSRC / "cuda").glob("*.cuh"):
        code = mutation.without_comments(file.read_text())
        expected = sum(code.count(name) for name in ("__syncthreads()", "__syncwarp(", "grid_sync(", "copies_done("))
        assert len(mutation.find_barriers(file.read_text(), file.name)) == expected


@pytest.mark.parametrize("line", ["a.cuh:f", "a.cuh: reason", "a.cuh:f#x: reason", "a.cuh:f:"])
def test_list_needs_reasons(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"# comment\n\n{line}\n")
    with pytest.raises(SystemExit, match="not `file:function: reason`"):
        mutation.read_allowed(tmp_path / "list.txt")


def test_list_of_this_repository_can_be_read():
    mutation.read_allowed(CSRC.parent / mutation.ALLOWED)


def run(source: Path, build: str, test: str, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, mutation.__file__, "--source", source, "--build", build, "--test", test, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "emulator").mkdir()
    (tmp_path / "csrc" / "cuda" / "a.cuh").write_text(KERNELS)
    return tmp_path


NOTICES_THE_FIRST = 'grep -q "^    __syncthreads" built || test $FEWSEG_EMULATOR_ORDER = forward'
ALL_BUT_THE_FIRST = ["reverse#2", "helper", "everywhere"]


def test_reports_what_goes_unnoticed(source):
    result = run(source, "cp csrc/cuda/a.cuh built", NOTICES_THE_FIRST)
    assert result.returncode == 1
    assert "reverse#1: noticed, reverse" in result.stdout
    assert result.stdout.count("NOT noticed") == result.stdout.count("unnoticed: ") == 3
    assert (source / "csrc" / "cuda" / "a.cuh").read_text() == KERNELS


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (ALL_BUT_THE_FIRST, None),
        (["reverse", "helper", "everywhere"], None),
        ([*ALL_BUT_THE_FIRST, "reverse#1"], "listed, but noticed: csrc/cuda/a.cuh:reverse#1"),
        ([*ALL_BUT_THE_FIRST, "gone"], "listed, but not tried: csrc/cuda/a.cuh:gone"),
        (ALL_BUT_THE_FIRST[:2], "unnoticed: csrc/cuda/a.cuh:26: everywhere#1"),
    ],
)
def test_listed_survivors(source, listed, problem):
    lines = [f"csrc/cuda/a.cuh:{name}: because\n" for name in listed]
    (source / mutation.ALLOWED).write_text("".join(lines))
    result = run(source, "cp csrc/cuda/a.cuh built", NOTICES_THE_FIRST)
    assert result.returncode == (problem is not None), result.stdout
    assert problem is None or problem in result.stdout


def test_endless_tests_notice(source):
    endless = 'grep -q "^    __syncthreads" csrc/cuda/a.cuh || sleep 100'
    result = run(source, "true", endless, "--only", "reverse#1", "--timeout", "1", "--orders", "shuffled:3")
    assert "reverse#1: noticed, shuffled:3" in result.stdout


@pytest.mark.parametrize(
    ("build", "test", "error"), [("false", "true", "the build failed"), ("true", "false", "before")]
)
def test_broken_commands_are_no_success(source, build, test, error):
    result = run(source, build, test)
    assert result.returncode == 1
    assert error in result.stderr


# Compiles only what changes.
BUILD = """set -e
compile="${CXX:-c++} -std=gnu++17 -O1 -DFEWSEG_EMULATED -pthread"
test -f emulator.o || $compile -c csrc/emulator/emulator.cpp -o emulator.o
$compile csrc/emulator/tests/correct_cases.cpp csrc/emulator/tests/main.cpp emulator.o -o cases
"""


@pytest.mark.slow
def test_emulator_notices_real_barriers():
    """Of the emulator's own kernels. Those of vote_in_warp are there to be called, and protect nothing."""
    kernels = [
        "--kernels",
        "csrc/emulator/tests/correct_cases.cpp",
        "--only",
        "#",
        "--orders",
        "forward,reverse,shuffled",
    ]
    result = run(CSRC.parent, BUILD, "./cases barrier votes last_block cooperative", *kernels)
    lines = [line for line in result.stdout.splitlines() if "oticed" in line and line.startswith("csrc")]
    assert len(lines) == 6, result.stdout + result.stderr
    assert all(("NOT noticed" in line) == ("vote_in_warp" in line) for line in lines), lines
