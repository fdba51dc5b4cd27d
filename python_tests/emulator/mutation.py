"""Removes each barrier of the CUDA kernels (and each wait for asynchronous copies) in a copy of the sources, one at a
time: do the emulated tests notice?

    python python_tests/emulator/mutation.py --list
    python python_tests/emulator/mutation.py --build "cmake --build {copy}/build/emulated" --test "pytest -x ..."

Both commands run in the copy; `{copy}` in them is its folder. The tests run once per thread order, with
FEWSEG_EMULATOR_ORDER (and FEWSEG_EMULATOR_SEED for `shuffled:SEED`) set, until one fails or does not end. Barriers that
nothing may notice are listed in csrc/emulator/unnoticed_barriers.txt with the reason, `file:function: reason` or
`file:function#n: reason` for the n-th barrier of the function. Exit status 1: a barrier goes unnoticed and is not
listed, or one is listed that is noticed or no longer there.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = Path("csrc/emulator/unnoticed_barriers.txt")
ORDERS = ("forward", "reverse", "shuffled")
# Fences are not among them: fibers are sequentially consistent, so no test here could miss one.
BARRIER = re.compile(r"\b(?:fewseg::)?(?:__syncthreads|__syncwarp|grid_sync|copies_done)\s*\(")


@dataclass(frozen=True)
class Barrier:
    file: str  # relative to the root
    function: str
    number: int  # among the function's barriers, from 1
    line: int
    start: int  # of the call in the text, up to `end`
    end: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.function}#{self.number}"

    @property
    def names(self) -> tuple[str, str]:
        """What a line of the list of allowed survivors may call it."""
        return f"{self.file}:{self.function}", f"{self.file}:{self.function}#{self.number}"


def without_comments(text: str) -> str:
    """The text with comments, strings and preprocessor lines blanked out; every character keeps its place."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*'
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.DOTALL | re.MULTILINE)


def function_at(code: str, position: int) -> str:
    """The outermost function around a position; `code` is free of comments."""
    headers: list[str] = []
    begin = 0
    for match in re.finditer(r"[{};]", code[:position]):
        if match.group() == "{":
            headers.append(code[begin : match.start()])
        elif match.group() == "}" and headers:
            headers.pop()
        begin = match.end()
    for header in headers:
        if re.match(r"\s*(?:namespace|struct|class|union|enum|extern)\b", header.split(">")[-1]):
            continue
        for name in re.findall(r"\b([A-Za-z_]\w*)\s*\(", header):
            if not name.startswith("__"):  # __launch_bounds__(...)
                return name
    raise ValueError(f"no function around {code[position : position + 40]!r}")


def find_barriers(text: str, file: str) -> list[Barrier]:
    code = without_comments(text)
    result: list[Barrier] = []
    for match in BARRIER.finditer(code):
        depth, end = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        try:
            function = function_at(code, match.start())
        except ValueError:
            continue  # a declaration
        number = 1 + sum(barrier.function == function for barrier in result)
        line = text.count("\n", 0, match.start()) + 1
        result.append(Barrier(file, function, number, line, match.start(), end))
    return result


def barriers_of(root: Path, pattern: str) -> list[Barrier]:
    files = sorted(root.glob(pattern))
    if not files:
        raise SystemExit(f"no file matches {pattern} in {root}")
    return [barrier for file in files for barrier in find_barriers(file.read_text(), str(file.relative_to(root)))]


def removed(text: str, barrier: Barrier) -> str:
    """Line numbers stay as they are, so that reports of the emulator point to the original."""
    call = text[barrier.start : barrier.end]
    return text[: barrier.start] + "((void)0)" + "\n" * call.count("\n") + text[barrier.end :]


def read_allowed(path: Path) -> dict[str, str]:
    allowed = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([^:\s]+:\w+(?:#\d+)?):\s*(\S.*)", line)
        if match is None:
            raise SystemExit(f"{path}: not `file:function: reason`: {line}")
        allowed[match.group(1)] = match.group(2)
    return allowed


def run(command: str, copy: Path, timeout: float, log: Path, **environment: str) -> bool:
    """Whether the command succeeds in time."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command.replace("{copy}", str(copy)),
            shell=True,
            cwd=copy,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the shell's children too
            process.wait()
            output.write(f"\nnot done after {timeout:.0f} s\n")
            return False


class Mutation:
    def __init__(self, copy: Path, build: str, test: str, orders: tuple[str, ...], timeout: float) -> None:
        self.copy, self.build, self.test, self.orders, self.timeout = copy, build, test, orders, timeout
        self.log = copy / "mutation.log"

    def prepare(self) -> None:
        """Builds and tests what nothing was removed from; later tests may take ten times as long."""
        self._build()
        start = time.monotonic()
        if (order := self._order_that_notices()) is not None:
            raise SystemExit(f"the tests fail before anything is removed, order {order}:\n{self.log.read_text()}")
        self.timeout = min(self.timeout, 60 + 10 * (time.monotonic() - start))

    def who_notices(self, barrier: Barrier) -> str | None:
        """The first thread order in which the tests fail without this barrier."""
        path = self.copy / barrier.file
        original = path.read_text()
        try:
            path.write_text(removed(original, barrier))
            self._build()
            return self._order_that_notices()
        finally:
            path.write_text(original)

    def _build(self) -> None:
        if not run(self.build, self.copy, self.timeout, self.log):
            raise SystemExit(f"the build failed:\n{self.log.read_text()}")

    def _order_that_notices(self) -> str | None:
        for setting in self.orders:
            order, _, seed = setting.partition(":")
            environment = {"FEWSEG_EMULATOR_ORDER": order} | ({"FEWSEG_EMULATOR_SEED": seed} if seed else {})
            if not run(self.test, self.copy, self.timeout, self.log, **environment):
                return setting
        return None


def judge(unnoticed: list[Barrier], barriers: list[Barrier], allowed: dict[str, str]) -> list[str]:
    """What is wrong: survivors that are not listed, and lines of the list that name no survivor."""
    problems = [f"unnoticed: {barrier}" for barrier in unnoticed if not set(barrier.names) & set(allowed)]
    survivors = {name for barrier in unnoticed for name in barrier.names}
    tried = {name for barrier in barriers for name in barrier.names}
    for name in allowed:
        if name not in survivors:
            problems.append(f"listed, but {'noticed' if name in tried else 'not tried'}: {name}")
    return problems


def copy_sources(source: Path, copy: Path) -> None:
    left_out = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "__pycache__", ".*_cache")
    shutil.copytree(source, copy, ignore=left_out, symlinks=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("--kernels", default="csrc/cuda/*.cuh", help="which files (glob)")
    parser.add_argument("--build", help="shell command")
    parser.add_argument("--test", help="shell command; fails if it notices something")
    parser.add_argument("--orders", default=",".join(ORDERS), help="as forward,reverse,shuffled:7")
    parser.add_argument("--only", default="", help="regular expression for file:line: function#n")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one build or test")
    parser.add_argument("--list", action="store_true", help="only list the barriers")
    arguments = parser.parse_args()

    barriers = [b for b in barriers_of(arguments.source, arguments.kernels) if re.search(arguments.only, str(b))]
    if arguments.list:
        print("\n".join(map(str, barriers)))
        return 0
    if not arguments.build or not arguments.test:
        parser.error("--build and --test are needed")
    allowed = read_allowed(arguments.source / ALLOWED)
    if arguments.only:
        allowed = {name: allowed[name] for name in allowed if any(name in barrier.names for barrier in barriers)}

    unnoticed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy_sources(arguments.source, copy)
        orders = tuple(arguments.orders.split(","))
        mutation = Mutation(copy, arguments.build, arguments.test, orders, arguments.timeout)
        mutation.prepare()
        for barrier in barriers:
            order = mutation.who_notices(barrier)
            print(f"{barrier}: {f'noticed, {order}' if order else 'NOT noticed'}", flush=True)
            if order is None:
                unnoticed.append(barrier)
    problems = judge(unnoticed, barriers, allowed)
    print(f"{len(barriers) - len(unnoticed)} of {len(barriers)} barriers noticed", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
