"""The SIMT emulator by itself: correct kernels work in every thread order, planted bugs are noticed.

The kernels are the cases of csrc/emulator/tests/, in one program that is compiled once per test session.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
ORDERS = ("forward", "reverse", "shuffled")
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ("-std=gnu++17", "-O1", "-Wall", "-Wextra", "-Werror", "-DFEWSEG_EMULATED", "-pthread")

CORRECT = [
    "indexing",
    "barrier",
    "block_votes",
    "shuffles",
    "votes",
    "atomics",
    "last_block",
    "cooperative",
    "asynchronous_copies",
    "early_return",
    "host_threads",
    "half",
    "within_bounds",
    "take_all_of_plan",
    "deep_stack",
    "as_many_as_fit",
    "launch_after_failure",
]

REPORTED = {
    "divergent_barrier": r"divergent barrier.*\(0, 0, 0\).*32 thread\(s\) have returned.*wait at __syncthreads",
    "barrier_after_return": r"divergent barrier.*1 thread\(s\) have returned \(the first: thread 63\)",
    "barriers_at_two_places": r"divergent barrier: waits at __syncthreads\(\) in planted_cases.cpp:\d+, while",
    "shuffle_against_barrier": r"divergent .*wait at __shfl_sync\(\).*mask 0xffffffff.* wait at __syncthreads",
    "lane_left_out_of_mask": r"thread 31: __shfl_sync\(\) .* its mask 0x7fffffff leaves out",
    "shuffle_reads_beyond_mask": r"reads lane 20, which the mask 0x0000ffff leaves out",
    "lanes_of_mask_have_returned": r"1 thread\(s\) have returned \(the first: thread 31\); 31 thread\(s\) wait",
    "divergent_grid_barrier": r"have returned \(the first: block \(2, 0, 0\), thread 0\); 96 .* wait at grid_sync",
    "grid_barrier_without_cooperation": r"grid_sync\(\) in a launch that is not cooperative",
    "off_by_one": r"block \([01], 0, 0\): shared array 1 was written at byte 128, past its 128 bytes",
    "off_by_one_between_arrays": r"shared array 0 was written at byte 40, past its 40 bytes",
    "before_the_start": r"shared array 0 was written at byte -4, before its start",
    "take_beyond_plan": r"takes 52 bytes of shared memory as array 1 after 16 bytes, but the launch plan has 64",
    "takes_differ": r"takes (40|36) bytes as shared array 1, where another take was of (36|40) bytes",
    "stack_overflow": r"stack overflowed",
    "copies_never_waited_for": r"returns without having waited for its asynchronous copies",
    "misaligned_copy": r"copies 8 bytes to or from an address that is no multiple of them",
    "trap": r"block \(0, 0, 0\), thread 9: __trap\(\)",
    "exception": r"thrown by the kernel",
    "nested_launch": r"launch\(\) inside a kernel",
    "block_of_48": r"a block of 48 threads is not a multiple of 32",
    "block_of_2048": r"a block of 2048 threads",
    "empty_grid": r"0 x 1 x 1 blocks is empty",
    "too_much_shared_memory": r"66560 bytes of shared memory, but a block has at most 65536",
    "too_many_cooperative_threads": r"only 8 of its 9 blocks fit",
    "too_much_cooperative_shared_memory": r"only 4 of its 5 blocks fit",
}

# A barrier too few: nothing to report, but the orders disagree.
DISAGREE = [
    "removed_barrier",
    "removed_barrier_behind_shuffles",
    "removed_second_barrier",
    "removed_warp_barrier",
    "removed_grid_barrier",
    "block_order",
]


def compile_program(folder: Path, *flags: str) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    sources = [CSRC / "emulator" / "emulator.cpp", *sorted((CSRC / "emulator" / "tests").glob("*.cpp"))]
    program = folder / "emulator_tests"
    subprocess.run([COMPILER, *FLAGS, *flags, *sources, "-o", program], check=True)
    return program


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(tmp_path_factory.mktemp("emulator"))


def run(program: Path, *cases: str, order: str = "forward", **settings: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FEWSEG_EMULATOR_")}
    environment |= {"FEWSEG_EMULATOR_ORDER": order} | settings
    return subprocess.run([program, *cases], env=environment, capture_output=True, text=True, timeout=60)


def output(program: Path, *cases: str, **settings: str) -> str:
    result = run(program, *cases, **settings)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("case", CORRECT)
def test_correct_kernels(program, case):
    """Results are checked inside; what is printed besides has to be the same in every order."""
    outputs = {output(program, case, order=order) for order in ORDERS}
    outputs.add(output(program, case, order="shuffled", FEWSEG_EMULATOR_SEED="2"))
    assert len(outputs) == 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", REPORTED)
def test_reported_bugs(program, case, order):
    result = run(program, case, order=order)
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.search(REPORTED[case], result.stdout)


@pytest.mark.parametrize("case", DISAGREE)
def test_orders_disagree(program, case):
    forward, reverse = (output(program, case, order=order) for order in ("forward", "reverse"))
    assert forward != reverse
    # With few warps one shuffled order may be one of the two; all cannot.
    shuffled = {output(program, case, order="shuffled", FEWSEG_EMULATOR_SEED=str(seed)) for seed in range(5)}
    assert len(shuffled) > 1


@pytest.mark.parametrize("order", ORDERS)
def test_uninitialised_shared_memory_is_nan(program, order):
    output(program, "uninitialised", order=order)


@pytest.mark.parametrize("order", ORDERS)
def test_asynchronous_copies_are_not_there_early(program, order):
    output(program, "copy_read_too_early", order=order)


@pytest.mark.parametrize("order", ORDERS)
def test_read_past_the_end_is_nan(program, order):
    assert "nan" in output(program, "read_off_by_one", order=order)


def test_second_launch_differs_where_a_counter_is_not_reset(program):
    result = run(program, "counter_not_reset")
    assert result.returncode == 1
    assert "1 instead of 2" in result.stdout


def test_count_too_early_is_noticed_where_blocks_interleave(program):
    """Only the shuffled order runs several blocks at once; whether it shows is up to the seed."""
    results = [run(program, "counted_too_early", order="shuffled", FEWSEG_EMULATOR_SEED=str(i)) for i in range(10)]
    assert any("wrong: counted_too_early" in result.stdout for result in results)


def test_every_case_is_tested(program):
    others = [
        "copy_read_too_early",
        "counted_too_early",
        "counter_not_reset",
        "device",
        "read_off_by_one",
        "uninitialised",
    ]
    assert output(program).split() == sorted([*CORRECT, *REPORTED, *DISAGREE, *others])


def test_shuffled_order_repeats_with_its_seed(program):
    outputs = [output(program, "removed_second_barrier", order="shuffled", FEWSEG_EMULATOR_SEED=i) for i in "112"]
    assert outputs[0] == outputs[1] != outputs[2]


def test_pretended_device(program):
    assert output(program, "device") == "4 65536 102400 65536 2048\n"
    settings = "multiprocessors=2,shared_per_block=1024,shared_per_multiprocessor=2048"
    assert output(program, "device", FEWSEG_EMULATOR_DEVICE=settings) == "2 1024 2048 65536 2048\n"
    refused = run(program, "as_many_as_fit", FEWSEG_EMULATOR_DEVICE="multiprocessors=3")
    assert "only 6 of its 8 blocks fit" in refused.stdout


@pytest.mark.parametrize(
    "settings",
    [{"FEWSEG_EMULATOR_DEVICE": "cores=3"}, {"FEWSEG_EMULATOR_DEVICE": "multiprocessors"}, {"order": "backward"}],
)
def test_settings_without_meaning_are_refused(program, settings):
    result = run(program, "indexing", **settings) if "order" in settings else run(program, "device", **settings)
    assert result.returncode == 2
    assert next(iter(settings.values())) in result.stdout


@pytest.mark.parametrize("call", ["atomicAdd(&x, 1.0f)", "atomicMax(&x, 1.0f)", "atomicExch(&x, 1.0f)"])
def test_no_atomics_on_floats(tmp_path, call):
    """Sums with float atomics depend on the order of the threads."""
    source = tmp_path / "atomics.cpp"
    for kind, compiles in (("unsigned", True), ("float", False)):
        text = call if kind == "float" else call.replace("1.0f", "1u")
        source.write_text(f'#include "cuda/device.h"\n__global__ void kernel({kind} x) {{ {text}; }}\n')
        command = [COMPILER, *FLAGS, "-fsyntax-only", f"-I{CSRC}", source]
        assert (subprocess.run(command, capture_output=True).returncode == 0) == compiles


@pytest.mark.slow
def test_under_address_sanitizer(tmp_path):
    program = compile_program(tmp_path, "-g", "-fsanitize=address", "-fno-omit-frame-pointer")
    no_leaks = {"ASAN_OPTIONS": "detect_leaks=0"}  # LeakSanitizer cannot run in some containers
    for order in ORDERS:
        cases = [case for case in CORRECT if case != "half"]
        output(program, *cases, order=order, **no_leaks)
        for case in ("divergent_barrier", "lanes_of_mask_have_returned", "divergent_grid_barrier", "exception"):
            assert run(program, case, order=order, **no_leaks).returncode == 2
        for case in ("off_by_one", "off_by_one_between_arrays", "before_the_start", "read_off_by_one"):
            assert "use-after-poison" in run(program, case, order=order, **no_leaks).stderr


@pytest.mark.slow
def test_with_portable_fibers(tmp_path):
    """What other architectures than x86-64 get."""
    program = compile_program(tmp_path, "-DFEWSEG_EMULATOR_UCONTEXT")
    for order in ORDERS:
        output(program, *CORRECT, order=order)
        for case in ("divergent_barrier", "off_by_one", "stack_overflow", "exception"):
            assert run(program, case, order=order).returncode == 2
