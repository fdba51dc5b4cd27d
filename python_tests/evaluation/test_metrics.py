import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchmetrics import JaccardIndex

from fewseg_ext.evaluation.metrics import SegmentationScore


def slow_score(episodes, num_classes):
    """Pixel by pixel, as the definitions read."""
    inter, union = [0] * num_classes, [0] * num_classes
    binary = {True: [0, 0], False: [0, 0]}
    per_image = []
    for prediction, target, class_ids in episodes:
        pairs = list(zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True))
        pairs = [(p, t) for p, t in pairs if t != 255]
        for way, class_id in enumerate(class_ids, start=1):
            both = sum(p == way and t == way for p, t in pairs)
            either = sum(p == way or t == way for p, t in pairs)
            inter[class_id] += both
            union[class_id] += either
            if either:
                per_image.append(both / either)
        for p, t in pairs:
            for foreground in (True, False):
                here, there = (p > 0) == foreground, (t > 0) == foreground
                binary[foreground][0] += here and there
                binary[foreground][1] += here or there
    iou = [i / u if u else math.nan for i, u in zip(inter, union, strict=True)]
    occurred = [x for x in iou if not math.isnan(x)]
    return {
        "class_iou": iou,
        "miou": sum(occurred) / len(occurred),
        "fb_iou": sum(i / u for i, u in binary.values()) / 2,
        "positive_iou": sum(per_image) / len(per_image),
    }


def random_batches(ways, seed):
    """Three batches of random labels over six classes, of which the last never occurs."""
    generator = torch.Generator().manual_seed(seed)
    for batch in (4, 1, 3):
        prediction = torch.randint(0, ways + 1, (batch, 9, 7), generator=generator)
        target = torch.randint(0, ways + 1, (batch, 9, 7), generator=generator).to(torch.uint8)
        target[torch.rand(target.shape, generator=generator) < 0.2] = 255
        yield prediction, target, torch.stack([torch.randperm(5, generator=generator)[:ways] for _ in range(batch)])


@pytest.mark.parametrize("ways", [1, 3])
def test_agrees_with_the_definition(ways):
    score, episodes = SegmentationScore(6), []
    for prediction, target, class_ids in random_batches(ways, seed=ways):
        score.update(prediction, target, class_ids)
        episodes += zip(prediction, target, class_ids.tolist(), strict=True)
    values, expected = score.compute(), slow_score(episodes, 6)
    assert values.keys() == expected.keys()
    assert math.isnan(expected["class_iou"][5])
    for name, value in expected.items():
        close = torch.tensor(value, dtype=torch.float64)
        torch.testing.assert_close(values[name], close, rtol=0, atol=1e-11, equal_nan=True)
    assert int(score.episodes) == 8


@pytest.mark.parametrize("ways", [1, 3])
def test_agrees_with_torchmetrics(ways):
    """With ways renamed to classes, an episode has no pixel of a class that is none of its ways."""
    score = SegmentationScore(5)
    jaccard = JaccardIndex("multiclass", num_classes=6, ignore_index=255, average="none")
    binary = JaccardIndex("multiclass", num_classes=2, ignore_index=255, average="macro")
    for prediction, target, class_ids in random_batches(ways, seed=10 + ways):
        score.update(prediction, target, class_ids)
        target = target.long()
        for p, t, classes in zip(prediction, target, class_ids, strict=True):
            names = torch.cat([torch.tensor([0]), classes + 1])
            jaccard.update(names[p][None], torch.where(t == 255, 255, names[t.clamp(max=ways)])[None])
        binary.update(prediction.clamp(max=1), torch.where(target == 255, 255, target.clamp(max=1)))
    values = score.compute()
    # torchmetrics gives 0 to a class that does not occur.
    torch.testing.assert_close(values["class_iou"].nan_to_num().float(), jaccard.compute()[1:])
    torch.testing.assert_close(values["fb_iou"].float(), binary.compute())


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from fewseg_ext.evaluation.metrics import SegmentationScore
rank, meeting_point, result = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
score = SegmentationScore(6)
for i, batch in enumerate(torch.load(result + ".episodes")):
    if i % 2 == rank:
        score.update(*batch)
torch.save(score.compute(), f"{result}.{rank}")
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_find_what_one_finds_bit_for_bit(tmp_path):
    batches = list(random_batches(2, seed=5))
    alone = SegmentationScore(6)
    for batch in batches:
        alone.update(*batch)
    result = tmp_path / "result"
    torch.save(batches, f"{result}.episodes")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), tmp_path / "meeting_point", result],
            cwd=Path(__file__).parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    for rank in range(2):
        together = torch.load(f"{result}.{rank}")
        for name, value in alone.compute().items():
            torch.testing.assert_close(together[name], value, rtol=0, atol=0, equal_nan=True)


def test_divides_once_and_not_per_episode():
    score = SegmentationScore(1)
    target = torch.ones(2, 1, 10, dtype=torch.uint8)
    target[1, 0, 1:] = 0
    prediction = target.clone()
    prediction[1] = 1 - prediction[1]  # an object of one pixel, wholly missed
    score.update(prediction, target, torch.zeros(2, 1, dtype=torch.int64))
    score.update(torch.ones(1, 1, 80), torch.ones(1, 1, 80), torch.zeros(1, 1, dtype=torch.int64))
    # Of 10, 10 and 80 pixels in the unions 10, 0 and 80 are right.
    assert score.compute()["miou"] == 0.9
    assert score.compute()["positive_iou"] == pytest.approx(2 / 3)


def test_ignored_pixels_count_neither_way():
    score = SegmentationScore(1)
    target = torch.tensor([[[1, 255, 255, 0]]])
    score.update(torch.tensor([[[1, 1, 0, 0]]]), target, torch.tensor([[0]]))
    assert all(value == 1 for value in score.compute().values())


def test_a_way_that_is_nowhere_has_no_iou():
    score = SegmentationScore(2)
    score.update(torch.tensor([[[1, 0]]]), torch.tensor([[[1, 0]]]), torch.tensor([[1, 0]]))
    values = score.compute()
    assert values["class_iou"][1] == 1
    assert values["class_iou"][0].isnan()
    assert values["miou"] == values["positive_iou"] == 1


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_episodes_there_is_no_score():
    assert all(value.isnan().all() for value in SegmentationScore(3).compute().values())


def test_without_classes_there_is_none_either():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        SegmentationScore(0)


@pytest.mark.parametrize(
    ("prediction", "target", "class_ids", "message"),
    [
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), [[0]], "must both be"),
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), [[0]], r"class_ids must be \[B,N\]"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), [[2]], r"class_ids must be 0..1"),
        (torch.full((1, 4, 4), 2), torch.zeros(1, 4, 4), [[0]], "a label in prediction"),
        (torch.zeros(1, 4, 4), torch.full((1, 4, 4), 7), [[0]], "a label in target"),
    ],
)
def test_what_is_no_episode_is_refused(prediction, target, class_ids, message):
    with pytest.raises(ValueError, match=message):
        SegmentationScore(2).update(prediction, target, torch.tensor(class_ids))
