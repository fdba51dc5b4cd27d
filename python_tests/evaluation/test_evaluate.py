from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.transforms import PairTransform, denormalize
from fewseg_ext.evaluation.evaluate import evaluate, example_rows
from fewseg_ext.evaluation.pictures import draw_grid


class Stripes:
    """Black images with a white stripe, which is the object."""

    class_names = ("a", "b", "c")

    def num_images(self, class_id):
        return 4

    def image_id(self, class_id, index):
        return f"{class_id}/{index}"

    def read(self, class_id, index):
        labels = torch.zeros(16, 16, dtype=torch.int16)
        labels[4 : 8 + 4 * (index % 2)] = class_id + 1
        return (labels > 0).expand(3, -1, -1).to(torch.uint8) * 255, labels


class Bright(nn.Module):
    """Says foreground where the query is bright, at a resolution of its own."""

    def __init__(self, shrink=1, invert=False):
        super().__init__()
        self.shrink, self.invert = shrink, invert
        self.modes = []

    def forward(self, support_images, support_masks, query_images):
        self.modes.append(self.training)
        foreground = denormalize(query_images)[:, :1] * 2 - 1
        logits = torch.cat([-foreground, foreground], 1)
        return SimpleNamespace(logits=F.avg_pool2d(-logits if self.invert else logits, self.shrink))


def data(**options):
    return EpisodeDataset(Stripes(), episodes=20, **options)


def test_the_truth_scores_100_and_its_opposite_0():
    perfect = evaluate(Bright(), data())
    assert perfect.miou == perfect.fb_iou == 100
    assert perfect.class_iou == {"a": 100, "b": 100, "c": 100}
    wrong = evaluate(Bright(invert=True), data())
    assert wrong.miou == wrong.fb_iou == 0


def test_coarse_logits_are_upsampled_to_the_masks():
    assert evaluate(Bright(shrink=4), data()).miou == 100
    # A resized data set is scored at its own resolution.
    result = evaluate(Bright(), data(transform=PairTransform(size=8)))
    assert "squashed to 8 x 8" in result.protocol


def test_augmented_episodes_are_not_scored():
    with pytest.raises(ValueError, match="augmented"):
        evaluate(Bright(), data(transform=PairTransform(flip=True)))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_eval_mode_only_meanwhile(training):
    model = Bright().train(training)
    evaluate(model, data())
    assert set(model.modes) == {False}
    assert model.training is training


def test_the_protocol_is_told():
    result = evaluate(Bright(), data(shots=2, seed=7))
    for part in ("20 episodes for each seed of 7", "1-way 2-shot", "own size", "labelled 255 removed"):
        assert part in result.protocol
    assert result.episodes == 20


def test_progress_ends_at_the_total():
    seen = []
    evaluate(Bright(), data(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 20) for i in range(1, 21)]


def test_examples_are_of_different_classes_and_show_the_query_s_way():
    rows = example_rows(data(ways=2), {"bright": Bright().eval()}, count=5)
    assert sorted(row.title for row in rows) == ["a", "b", "c"]
    for row in rows:
        assert row.support_mask.any() and row.query_mask.any()
        assert torch.equal(row.query_mask, denormalize(row.query_image)[0] > 0.5)


def test_the_iou_under_an_example_leaves_ignored_pixels_out():
    (row,) = example_rows(data(), {"bright": Bright().eval()}, count=1)
    row.query_mask[:2] = False
    row.predictions["bright"][:2] = True
    row.query_ignored[:2] = True
    assert draw_grid([row]).axes[3].get_xlabel() == "IoU 100"
