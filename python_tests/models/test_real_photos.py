"""The four rows of benchmarks/real_photos.py on one quick seed, near the numbers known for them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("rich", reason="rich is not installed")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "real_photos.py"
    spec = importlib.util.spec_from_file_location("real_photos", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_photos"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_iou_is_summed_over_episodes_without_ignored_pixels(benchmark: ModuleType) -> None:
    score = benchmark.Score()
    score.add(8, torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 1, 255]))  # 1 of 3
    score.add(8, torch.tensor([1, 1, 1, 0]), torch.tensor([1, 1, 1, 0]))  # 3 of 3
    assert score.per_class()["cat"] == pytest.approx(100 * 4 / 6)
    assert score.per_class()["dog"] == 0


def test_summary_and_tables(benchmark: ModuleType, tmp_path: Path) -> None:
    seeds = [{"init": dict.fromkeys(benchmark.CLASSES.values(), value)} for value in (30.0, 34.0)]
    summary = benchmark.summarize(seeds)
    assert summary["init"]["miou"] == 32 and summary["init"]["std"] == pytest.approx(8**0.5)
    protocol = benchmark.protocol_of(benchmark.parse(["--data", str(tmp_path)]))
    text = benchmark.markdown(protocol, summary)
    assert "| init | 32.00 | 2.83 | 32.0 |" in text and str(tmp_path) not in text
    benchmark.write_atomically(tmp_path / "new" / "result.md", text)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["result.md"]


def test_without_data_the_benchmark_says_so(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--data", str(tmp_path)]) == 1
    assert "Pass --data FOLDER or set FEWSEG_REAL_DATA" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_status:
        benchmark.main(["--shots", "0"])
    assert exit_status.value.code == 2
