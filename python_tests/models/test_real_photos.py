"""The four rows of benchmarks/real_photos.py on one quick seed, near the numbers known for them."""

import importlib.util
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("rich", reason="rich is not installed")

# mIoU of seed 0 with 15 episodes per class. Twelve such draws spread by 2.6 around 25.8, 35.1, 25.3 and 34.9, but the
# same draw repeats: every row moves by at least 1.4 without the ignore label, by 3 without ImageNet's mean, and by more
# without dilation, with the last ReLU or with random weights.
QUICK_EPISODES = 15
QUICK_MIOU = {"baseline": 22.8, "init": 30.6, "InOpt-dagger": 22.4, "InOpt": 30.4}
# Other versions of the JPEG decoder and the resampling may move a pixel.
TOLERANCE = 1.0


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "real_photos.py"
    spec = importlib.util.spec_from_file_location("real_photos", path)
    assert spec is not None
    assert spec.loader is not None
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
    assert summary["init"]["miou"] == 32
    assert summary["init"]["std"] == pytest.approx(8**0.5)
    protocol = benchmark.protocol_of(benchmark.parse(["--data", str(tmp_path)]))
    text = benchmark.markdown(protocol, summary)
    assert "| init | 32.00 | 2.83 | 32.0 |" in text
    assert str(tmp_path) not in text


def test_without_data_the_benchmark_says_so(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--data", str(tmp_path)]) == 1
    assert "Pass --data FOLDER or set FEWSEG_REAL_DATA" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_status:
        benchmark.main(["--shots", "0"])
    assert exit_status.value.code == 2


@pytest.mark.real_data
def test_the_rows_on_real_photos(benchmark: ModuleType, real_data: Path) -> None:
    photos = benchmark.Photos(real_data, "cpu")
    # Photos of the five complete classes whose object is large enough.
    assert {benchmark.CLASSES[c]: len(names) for c, names in photos.by_class.items()} == {
        "cat": 118,
        "cow": 69,
        "dog": 126,
        "horse": 77,
        "sheep": 54,
    }
    episodes = benchmark.draw_episodes(photos, 0, 1, QUICK_EPISODES)
    assert all(e.query not in e.supports for e in episodes)
    scores = benchmark.score_seed(photos, benchmark.build_rows(photos, "features"), episodes, lambda _: None)
    miou = {row: statistics.fmean(per_class.values()) for row, per_class in scores.items()}
    assert miou == pytest.approx(QUICK_MIOU, abs=TOLERANCE)
    # Paired over the same episodes the rows differ far more steadily: untrained, the init module is worth 7.7 to 11.5,
    # and the inner loop, which sharpens its own argmax, costs a little.
    assert 6 < miou["init"] - miou["baseline"] < 13
    assert -1.5 < miou["InOpt-dagger"] - miou["baseline"] < 0.5
    assert -0.6 < miou["InOpt"] - miou["init"] < 0.2


@pytest.mark.real_data
def test_the_contact_sheet_is_drawn(benchmark: ModuleType, real_data: Path, tmp_path: Path) -> None:
    photos = benchmark.Photos(real_data, "cpu")
    episodes = benchmark.draw_episodes(photos, 0, 2, 1)[:2]
    benchmark.contact_sheet(photos, benchmark.build_rows(photos, "masks"), episodes, tmp_path / "sheet.png")
    with benchmark.Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 246 + 6, 2 * 264 + 6)
