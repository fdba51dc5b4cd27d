"""Every barrier of the CUDA kernels is needed: without it, the emulator sees a difference or an error."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MUTATION = ROOT / "python_tests" / "emulator" / "mutation.py"
# Removing the barrier before the last block's counter shows only where blocks interleave, so in the shuffled order.
ORDERS = "forward,reverse,shuffled:1,shuffled:2,shuffled:3,shuffled:4"


@pytest.mark.slow
def test_removing_any_barrier_is_noticed(tmp_path: Path) -> None:
    sources = "{root}/csrc/cuda/tests/driver.cu {root}/csrc/emulator/emulator.cpp"
    compile_driver = "c++ -std=c++17 -O1 -Wno-unknown-pragmas -DFEWSEG_EMULATED -x c++ " + sources
    expected = tmp_path / "expected.txt"
    build = [*compile_driver.format(root=ROOT).split(), "-o", str(tmp_path / "driver")]
    subprocess.run(build, check=True, timeout=300)
    expected.write_text(subprocess.run([tmp_path / "driver"], capture_output=True, text=True, check=True).stdout)

    result = subprocess.run(
        [
            *(sys.executable, str(MUTATION), "--orders", ORDERS),
            *("--build", compile_driver.format(root="{copy}") + " -o {copy}/driver"),
            *("--test", f"sh -c '{{copy}}/driver > {{copy}}/out.txt && cmp {{copy}}/out.txt {expected}'"),
        ],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "barriers noticed" in result.stdout
