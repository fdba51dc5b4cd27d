"""Ctrl+C, SIGTERM and kill at random moments: a line, nothing half-written, and the same command ends the same.

`training/test_resume.py` kills trainings at given iterations, `web/test_web_server.py` stops the page.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import run_cli
from PIL import Image
from test_hostile_names import class_folders

from fewseg_ext.data.synthetic import SyntheticConfig
from fewseg_ext.demo import run_demo
from fewseg_ext.files import TEMPORARY
from fewseg_ext.interruptions import told_in_a_line
from fewseg_ext.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from photo_files import contents
from readers import READERS, model
from test_segmenter import photo_and_mask
from tiny import ENVIRONMENT, options, write_photos

ENTRY = (sys.executable, "-c", "from fewseg_ext.cli import main; main()")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True)
class Command:
    """A command and what it writes."""

    arguments: list[str]
    out: Path
    result: Callable[[Path], object]  # of its folder: what two runs must agree in


def _texts(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(out).items() if not name.endswith((".jsonl", ".json"))}


def _evaluated(out: Path) -> object:
    report = json.loads((out / "evaluation.json").read_text())
    del report["environment"]
    return report, {name: (out / name).read_bytes() for name in ("evaluation.csv", "class_iou.png", "examples.png")}


def _trained(out: Path) -> object:
    last = load_checkpoint(out / "last.ckpt")
    weights = {name: value.numpy().tobytes() for name, value in last.weights.items()}
    return weights, last.history, last.scores, sorted(path.name for path in out.iterdir())


def make_command(name: str, folder: Path) -> Command:
    """Its input in ``folder``, its output in ``folder/out``."""
    out = folder / "out"
    if name == "train":
        root = write_photos(folder / "photos")
        return Command(["train", *options("biopt", root, 12, "--out", str(out))], out, _trained)
    if name.startswith("prepare"):
        dataset = name.split()[1]
        root = folder / "data"
        root.mkdir()
        if dataset == "fss1000":
            class_folders(root, ("apple", "pear"))
        else:
            READERS["prepare pascal5i, .mat" if dataset == "pascal5i" else "prepare coco20i, photo"].write(root)
        return Command(["prepare", dataset, str(root), "--out", str(out)], out, contents)
    network = model()
    checkpoint = str(save_checkpoint(folder / "biopt.ckpt", Checkpoint(network.config, network.state_dict())))
    root = class_folders(folder / "photos", ("apple", "pear"))
    if name == "evaluate":
        arguments = ["evaluate", checkpoint, "--dataset", "folder", "--root", str(root), "--size", "32"]
        return Command([*arguments, "--episodes", "20", "--seeds", "1", "--out", str(out)], out, _evaluated)
    for number in range(8):
        (folder / "queries").mkdir(exist_ok=True)
        Image.fromarray(photo_and_mask(number, 80, 100)[0]).save(folder / "queries" / f"{number}.png")
    support = f"{root / 'apple' / '0.jpg'}:{root / 'apple' / '0.png'}"
    arguments = ["segment", "--checkpoint", checkpoint, "--size", "32", "--support", support, "--coco", "--labelme"]
    return Command([*arguments, "--query", str(folder / "queries"), "--out", str(out)], out, _texts)


NAMES = ("segment", "evaluate", "train", "prepare pascal5i", "prepare coco20i", "prepare fss1000")


def interrupted(
    command: Command, capsys: pytest.CaptureFixture[str], number: signal.Signals, after: float
) -> tuple[int, str, str]:
    """Runs it in this process, which gets the signal after so many seconds, unless it is done before."""
    ignored = {other: signal.signal(other, lambda *_: None) for other in STATUS}
    alarm = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        return run_cli(capsys, *command.arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        for other, action in ignored.items():
            signal.signal(other, action)


def check_whole(out: Path) -> None:
    """No temporary file, and every file can be read."""
    if not out.exists():
        return
    for path in out.rglob("*"):
        assert not path.name.startswith((TEMPORARY, ".")), path
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as file:
                file.load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".ckpt":
            load_checkpoint(path)


def interrupt_and_go_on(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], numbers: list[signal.Signals], seed: int
) -> int:
    """How many of the interruptions came in time."""
    rng = random.Random(seed)
    command = make_command(name, folder)
    start = time.perf_counter()
    status, _, errors = run_cli(capsys, *command.arguments)
    length = time.perf_counter() - start
    assert (status, errors) == (0, "")
    expected = command.result(command.out)
    shutil.rmtree(command.out)
    there = {path: data for path, data in contents(folder).items() if not path.startswith("out/")}
    came = 0
    for number in numbers:
        status, _, errors = interrupted(command, capsys, number, rng.uniform(0.005, length))
        assert status in (0, STATUS[number]), errors
        check_whole(command.out)
        if status:
            came += 1
            # A training that is told to stop says in which iteration.
            assert len(errors.splitlines()) == 1 or "stopped in iteration" in " ".join(errors.split()), errors
            assert "Traceback" not in errors
        if status == 0 or rng.random() < 0.3:
            # From the beginning again.
            shutil.rmtree(command.out, ignore_errors=True)
    status, _, errors = run_cli(capsys, *command.arguments)
    assert (status, errors) == (0, "")
    assert command.result(command.out) == expected
    check_whole(command.out)
    assert {path: data for path, data in contents(folder).items() if not path.startswith("out/")} == there
    return came


@pytest.mark.parametrize("name", NAMES)
def test_an_interruption_is_a_line_and_changes_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = signal.SIGINT if NAMES.index(name) % 2 else signal.SIGTERM
    interrupt_and_go_on(name, tmp_path, capsys, [number], seed=NAMES.index(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_interruptions_change_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [signal.SIGINT, signal.SIGTERM] * 20
    came = interrupt_and_go_on(name, tmp_path, capsys, numbers, seed=1)
    assert came >= len(numbers) // 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_kills_change_nothing(name: str, tmp_path: Path) -> None:
    """Of a process of its own, at random moments of its life. What it leaves half-written goes with the next run."""
    command = make_command(name, tmp_path)

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*ENTRY, *command.arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def finish() -> float:
        begin = time.perf_counter()
        process = start()
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        return time.perf_counter() - begin

    length = finish()
    expected = command.result(command.out)
    shutil.rmtree(command.out)
    there = {path: data for path, data in contents(tmp_path).items() if not path.startswith("out/")}
    rng = random.Random(2)
    for _ in range(8):
        process = start()
        try:
            process.wait(rng.uniform(0.3, 1) * length)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate(timeout=60)
    finish()
    assert command.result(command.out) == expected
    check_whole(command.out)
    assert {path: data for path, data in contents(tmp_path).items() if not path.startswith("out/")} == there


def demo(folder: Path) -> None:
    run_demo(
        folder,
        iterations=2,
        baseline_iterations=2,
        vpi_iterations=2,
        batch_size=2,
        episodes=2,
        data=SyntheticConfig(size=32, train_classes=2, unseen_classes=2, images_per_class=2),
    )


@pytest.mark.slow
def test_interruptions_of_the_demo_leave_nothing_half_written(tmp_path: Path) -> None:
    start = time.perf_counter()
    demo(tmp_path / "whole")
    length = time.perf_counter() - start
    rng = random.Random(3)
    ignored = {other: signal.signal(other, lambda *_: None) for other in STATUS}
    try:
        for number in [signal.SIGINT, signal.SIGTERM] * 5:
            signal.signal(signal.SIGALRM, lambda *_, number=number: os.kill(os.getpid(), number))
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.01, length))
            try:
                with told_in_a_line():
                    demo(tmp_path / "out")
            except SystemExit as error:
                assert error.code == STATUS[number]
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            check_whole(tmp_path / "out")
    finally:
        for other, action in ignored.items():
            signal.signal(other, action)
    demo(tmp_path / "out")
    pictures = {name: data for name, data in contents(tmp_path / "whole").items() if name.startswith("data/")}
    again = contents(tmp_path / "out")
    assert {name: again[name] for name in pictures} == pictures
    assert set(again) == set(contents(tmp_path / "whole"))


def test_what_a_library_makes_of_an_interruption_is_told_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:

    before = {number: signal.getsignal(number) for number in STATUS}
    if before[signal.SIGINT] == signal.SIG_IGN:
        pytest.skip("Ctrl+C is ignored here, as in scripts' background jobs")

    def imports(number: signal.Signals) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except KeyboardInterrupt as error:
            raise ImportError("numpy could not be imported") from error

    def serves() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            sys.exit(0)

    for number, status in STATUS.items():
        with pytest.raises(SystemExit) as ended, told_in_a_line():
            imports(number)
        assert ended.value.code == status
    assert capsys.readouterr().err == "fewseg: interrupted\nfewseg: stopped\n"
    assert {number: signal.getsignal(number) for number in STATUS} == before
    # As in a process that a script started in the background.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with told_in_a_line():
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before[signal.SIGINT])
    # Nothing was received: the error is its own, and a page that Ctrl+C closes has not failed.
    with pytest.raises(ValueError, match="own"), told_in_a_line():
        raise ValueError("own")
    with pytest.raises(SystemExit) as ended, told_in_a_line():
        serves()
    assert ended.value.code == 0
