import math

import pytest
import torch

from fewseg_ext.evaluation.metrics import SegmentationScore


def slow_score(episodes, num_classes):
    """Pixel by pixel, as the definition reads."""
    inter, union = [0] * num_classes, [0] * num_classes
    binary = {True: [0, 0], False: [0, 0]}
    for prediction, target, class_ids in episodes:
        for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
            if t == 255:
                continue
            for way, class_id in enumerate(class_ids, start=1):
                inter[class_id] += p == way and t == way
                union[class_id] += p == way or t == way
            for foreground in (True, False):
                here, there = (p > 0) == foreground, (t > 0) == foreground
                binary[foreground][0] += here and there
                binary[foreground][1] += here or there
    iou = [i / u if u else math.nan for i, u in zip(inter, union, strict=True)]
    occurred = [x for x in iou if not math.isnan(x)]
    return iou, sum(occurred) / len(occurred), sum(i / u for i, u in binary.values()) / 2


@pytest.mark.parametrize("ways", [1, 3])
def test_agrees_with_the_definition(ways):
    generator = torch.Generator().manual_seed(ways)
    score, episodes = SegmentationScore(6), []
    for batch in (4, 1, 3):
        prediction = torch.randint(0, ways + 1, (batch, 9, 7), generator=generator)
        target = torch.randint(0, ways + 1, (batch, 9, 7), generator=generator).to(torch.uint8)
        target[torch.rand(target.shape, generator=generator) < 0.2] = 255
        # Class 5 never occurs.
        class_ids = torch.stack([torch.randperm(5, generator=generator)[:ways] for _ in range(batch)])
        score.update(prediction, target, class_ids)
        episodes += zip(prediction, target, class_ids.tolist(), strict=True)
    iou, miou, fb_iou = slow_score(episodes, 6)
    assert math.isnan(iou[5])
    torch.testing.assert_close(score.class_iou, torch.tensor(iou, dtype=torch.float64), equal_nan=True)
    assert score.miou == pytest.approx(miou, abs=1e-12)
    assert score.fb_iou == pytest.approx(fb_iou, abs=1e-12)
    assert score.episodes == 8


def test_divides_once_and_not_per_episode():
    score = SegmentationScore(1)
    target = torch.ones(2, 1, 10, dtype=torch.uint8)
    target[1, 0, 1:] = 0
    prediction = target.clone()
    prediction[1] = 1 - prediction[1]  # an object of one pixel, wholly missed
    per_episode = score.update(prediction, target, torch.zeros(2, 1, dtype=torch.int64))
    assert per_episode.tolist() == [[1.0], [0.0]]
    # 10 of 10 and 0 of 10 pixels: 10 / 20, which happens to be the mean; a smaller union tells them apart.
    assert score.miou == 0.5
    score.update(torch.ones(1, 1, 80), torch.ones(1, 1, 80), torch.zeros(1, 1, dtype=torch.int64))
    assert score.miou == 0.9


def test_ignored_pixels_count_neither_way():
    score = SegmentationScore(1)
    target = torch.tensor([[[1, 255, 255, 0]]])
    score.update(torch.tensor([[[1, 1, 0, 0]]]), target, torch.tensor([[0]]))
    assert score.miou == score.fb_iou == 1.0


def test_a_way_that_is_nowhere_has_no_iou():
    score = SegmentationScore(2)
    per_way = score.update(torch.tensor([[[1, 0]]]), torch.tensor([[[1, 0]]]), torch.tensor([[1, 0]]))
    assert per_way[0, 0] == 1
    assert per_way[0, 1].isnan()
    assert score.miou == 1.0


def test_without_episodes_there_is_no_score():
    assert math.isnan(SegmentationScore(3).miou)


def test_shapes_that_do_not_fit_are_refused():
    score = SegmentationScore(2)
    with pytest.raises(ValueError, match=r"must both be"):
        score.update(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), torch.tensor([[0]]))
    with pytest.raises(ValueError, match=r"class_ids must be \[B,N\]"):
        score.update(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), torch.tensor([[0]]))
