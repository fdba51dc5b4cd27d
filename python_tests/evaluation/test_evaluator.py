"""The evaluator against a slow and obvious one, and that nothing but the protocol changes its numbers."""

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.evaluation.cache import TensorCache
from fewseg_ext.evaluation.evaluate import evaluate, predict
from fewseg_ext.evaluation.evaluator import Evaluator, label_map, sample_generator
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.models.biopt import BiOpt, PrototypeBaseline, PrototypeModel
from fewseg_ext.models.vpi import VPI

IMAGES = 5  # of each class


class Photos:
    """Noise with a brighter object on it, images of different sizes, a band of ignored pixels around the object.

    Image i of every class is the same photo, with an object of each class in it: only labels tell the classes apart.
    """

    class_names = ("a", "b", "c")

    def num_images(self, class_id: int) -> int:
        return IMAGES

    def image_id(self, class_id: int, index: int) -> str:
        return f"photo {index}"

    def read(self, class_id: int, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        height, width = 40 + 3 * index, 50 - 2 * index
        image = torch.randint(0, 120, (3, height, width), generator=generator)
        labels = torch.zeros(height, width, dtype=torch.int16)
        for c in range(3):
            rows, columns = slice(12 * c + 1, 12 * c + 11), slice(5 + index, 25 + index)
            image[c, rows, columns] += 130
            # As COCO's masks may overlap: the class that the photo is read for covers more.
            labels[rows, columns] = c + 1 if c != class_id else 0
            if c == class_id:
                labels[rows.start - 1 : rows.stop + 1, columns] = -1
                labels[rows, columns] = c + 1
        return image.to(torch.uint8), labels


class Backbone(nn.Module):
    out_channels = 8
    pyramid_channels = (4, 6, 8)

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 6, 2, stride=2)
        self.last = nn.Conv2d(6, 8, 1)
        self.sizes: list[tuple[int, ...]] = []

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        self.sizes.append(tuple(images.shape))
        fine = self.fine(images)
        middle = self.middle(fine)
        return fine, middle, self.last(middle)

    def forward(self, images: Tensor) -> Tensor:
        return self.pyramid(images)[-1]


def make_model(model_class: type[PrototypeModel] | type[VPI] = PrototypeBaseline) -> PrototypeModel | VPI:
    torch.manual_seed(1)
    if model_class is not VPI:
        return model_class(Backbone()).eval()  # type: ignore[call-arg]
    model = VPI(Backbone(), latent_dim=6, width=8, num_samples=3).eval()
    # So wide that the samples decide many pixels.
    nn.init.constant_(model.prior.log_variance.bias, 3.0)
    return model


SMALL = {"episodes": 12, "seeds": (0,), "input_size": 32, "square_size": 24}


def slow_probabilities(
    model: PrototypeModel | VPI,
    support: tuple[Tensor, Tensor],
    query: Tensor,
    size: tuple[int, ...],
    samples: torch.Generator,
) -> Tensor:
    with torch.no_grad():
        state, encoded = model.encode_support(*support), model.encode_query(query[None])
        if isinstance(model, VPI):
            return model.predict(state, encoded, size=size, generator=samples).probabilities
        logits = model.predict(state, encoded, size=encoded.features.shape[-2:]).logits
    return F.interpolate(logits, size=size, mode="bilinear").softmax(1)


def slow_scores(model: PrototypeModel | VPI, protocol: EvaluationProtocol, seed: int) -> dict[str, dict[str, float]]:
    """Class IoU at both resolutions, one step after the other as the protocol reads."""
    source = Photos()
    pixels = {name: torch.zeros(3, 2, dtype=torch.int64) for name in ("original", "square")}
    resize = PairTransform(protocol.input_size)
    for index in range(protocol.episodes or 0):
        plan = EpisodeDataset(source, protocol.episodes, protocol.ways, protocol.shots, seed).plan(index)

        def ways_of(labels: Tensor, plan=plan) -> Tensor:
            ways = torch.zeros_like(labels)
            for way, class_id in enumerate(plan.class_ids, start=1):
                ways[labels == class_id + 1] = way
            ways[labels == -1] = 255
            return ways.to(torch.uint8)

        images, masks = [], []
        for class_id, indices in zip(plan.class_ids, plan.supports, strict=True):
            for i in indices:
                image, labels = resize(*source.read(class_id, i), random.Random())
                images.append(image)
                masks.append(ways_of(labels))
        shape = (1, protocol.ways, protocol.shots)
        image, labels = source.read(plan.class_ids[plan.query_way - 1], plan.query)
        truth = ways_of(labels)
        for name in pixels:
            size = truth.shape if name == "original" else (protocol.square_size,) * 2
            target = F.interpolate(truth[None, None].float(), size=size, mode="nearest-exact")[0, 0]
            probabilities = torch.zeros(1, protocol.ways + 1, *size)
            support = torch.stack(images).unflatten(0, shape), torch.stack(masks).unflatten(0, shape)
            samples = sample_generator(seed, index, "cpu")
            for scale in protocol.scales:
                query, _ = PairTransform(round(scale * 32))(image, labels, random.Random())
                probabilities += slow_probabilities(model, support, query, size, samples)
            prediction = probabilities.argmax(1)[0]
            if protocol.ignored == "background":
                target[target == 255] = 0
            for way, class_id in enumerate(plan.class_ids, start=1):
                here, there = (prediction == way) & (target != 255), target == way
                pixels[name][class_id] += torch.tensor([(here & there).sum(), (here | there).sum()])
    return {
        name: {c: 100 * int(i) / int(u) for c, (i, u) in zip(source.class_names, counts, strict=True)}
        for name, counts in pixels.items()
    }


@pytest.mark.parametrize("model_class", [PrototypeBaseline, BiOpt, VPI])
@pytest.mark.parametrize(
    "options",
    [{}, {"ways": 2, "shots": 2}, {"scales": (0.7, 1.0, 1.3)}, {"ignored": "background"}],
    ids=["1-way", "2-way 2-shot", "multi-scale", "ignored as background"],
)
def test_agrees_with_the_obvious_way(options, model_class):
    protocol = EvaluationProtocol(**{**SMALL, **options})
    model = make_model(model_class)
    scores = Evaluator(model, Photos(), protocol).run(3)
    for resolution, class_iou in slow_scores(model, protocol, 3).items():
        # A softmax of two logits may round to a tie where the logits differ: a pixel or two.
        assert scores[resolution].class_iou == pytest.approx(class_iou, abs=0.1)
        assert scores[resolution].miou == pytest.approx(sum(class_iou.values()) / 3, abs=0.1)


@pytest.mark.parametrize("model_class", [PrototypeBaseline, VPI])
def test_workers_and_cache_change_no_bit(model_class):
    protocol = EvaluationProtocol(**{**SMALL, "shots": 2, "scales": (0.7, 1.3)})
    plenty = Evaluator(make_model(model_class), Photos(), protocol)
    expected = plenty.run(0)
    for workers, cache_bytes in ((0, 0), (2, 0), (2, plenty.cache.bytes // 2), (2, 2**30)):
        model = make_model(model_class)
        other = Evaluator(model, Photos(), protocol, num_workers=workers, cache_bytes=cache_bytes)
        torch.manual_seed(workers)
        assert other.run(0) == expected
        assert other.run(0) == expected  # with a warm cache
        assert other.cache.bytes <= cache_bytes


def test_samples_are_of_the_episode_and_leave_torch_s_generator_alone(monkeypatch):
    where = "fewseg_ext.evaluation.evaluator.sample_generator"
    evaluator, drawn = Evaluator(make_model(VPI), Photos(), EvaluationProtocol(**SMALL)), []
    before = torch.get_rng_state()
    monkeypatch.setattr(where, lambda *key: drawn.append(key[:2]) or sample_generator(*key))
    miou = evaluator.run(5, part=(1, 2))["original"].miou
    assert drawn == [(5, index) for index in (1, 3, 5, 7, 9, 11)]
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(where, lambda *key: torch.Generator().manual_seed(0))
    assert evaluator.run(5, part=(1, 2))["original"].miou != miou, "the samples do not matter"


@pytest.mark.parametrize("model_class", [BiOpt, VPI])
def test_every_photo_is_encoded_once_and_alone(model_class):
    model = make_model(model_class)
    evaluator = Evaluator(model, Photos(), EvaluationProtocol(**{**SMALL, "episodes": 40}))
    evaluator.run(0)
    evaluator.run(1)
    # The same five photos in all three classes.
    assert model.backbone.sizes == [(1, 3, 32, 32)] * IMAGES
    assert evaluator.images_encoded == IMAGES
    without = Evaluator(model, Photos(), EvaluationProtocol(**{**SMALL, "episodes": 40}), cache_bytes=0)
    without.run(0)
    assert without.images_encoded == 80


def test_only_the_query_is_scaled():
    model = make_model()
    protocol = EvaluationProtocol(**{**SMALL, "episodes": 1, "shots": 3, "scales": (0.5, 1.5)})
    Evaluator(model, Photos(), protocol).run(0)
    assert sorted(size[-1] for size in model.backbone.sizes) == [16, 32, 32, 32, 48]


def test_softmax_maps_of_scales_and_of_samples_are_averaged_and_not_logits():
    sure, unsure = torch.tensor([0.0, 9.0]).view(1, 1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 1, 2, 1, 1)
    # Averaged logits, and the mean of sure and two unsure maps, say 1; the softmax of logits (1, 0) is 0.73.
    for maps in ([sure, unsure], [sure, unsure, unsure, unsure]):
        expected = int(len(maps) == 2)
        assert label_map(maps, (1, 1)).item() == label_map([torch.cat(maps, 1)], (1, 1)).item() == expected
    assert (sure + 3 * unsure).argmax() == 1


def test_label_map_is_argmax():
    logits = torch.randint(0, 3, (2, 4, 5, 6), generator=torch.Generator().manual_seed(0)).float()  # with ties
    assert torch.equal(label_map([logits[:, None]], (5, 6)), logits.argmax(1))
    up = F.interpolate(logits, size=(9, 7), mode="bilinear")
    assert torch.equal(label_map([logits[:, None]], (9, 7)), up.argmax(1))


def test_every_image_is_the_query_once():
    protocol = EvaluationProtocol(episodes=None, seeds=(0,), shots=2)
    plans = [episodes.plan(i) for episodes in [protocol.draw(Photos(), 0)] for i in range(len(episodes))]
    assert sorted((plan.class_ids[0], plan.query) for plan in plans) == [
        (c, i) for c in range(3) for i in range(IMAGES)
    ]
    for plan in plans:
        assert len({plan.query, *plan.supports[0]}) == 3
    assert plans != [episodes.plan(i) for episodes in [protocol.draw(Photos(), 1)] for i in range(len(episodes))]


def test_the_cache_is_bounded_and_holds_copies():
    cache = TensorCache(100)
    base = torch.zeros(10, 4)
    cache.put("a", (base[0], base[1, :2]))
    cache.put("b", (torch.zeros(10), torch.zeros(10)))
    assert "b" not in cache
    cache.put("b", (torch.zeros(10), torch.zeros(9)))
    assert cache.bytes == 100
    kept = cache.get("a")
    assert kept is not None
    assert [x.untyped_storage().nbytes() for x in kept] == [16, 8]
    assert cache.get("c") is None
    with pytest.raises(ValueError, match="max_bytes"):
        TensorCache(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"seeds": ()}, "seeds must be"),
        ({"seeds": (1, 1)}, "seeds must be"),
        ({"scales": (0.0,)}, "scales must be"),
        ({"scales": (0.7, 1.0), "input_size": None}, "scales need an input_size"),
        ({"ignored": "both"}, "ignored must be"),
        ({"episodes": None, "ways": 2}, "1-way"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol(**options)


def test_fewer_workers_than_none_are_refused():
    with pytest.raises(ValueError, match="num_workers must be 0 or more, got -1"):
        Evaluator(None, None, EvaluationProtocol(), num_workers=-1)


def test_the_protocol_s_line_tells_every_field():
    line = str(EvaluationProtocol())
    assert "\n" not in line
    changes = {
        "episodes": 7,
        "seeds": (8,),
        "ways": 2,
        "shots": 5,
        "input_size": 321,
        "scales": (0.7, 1.0, 1.3),
        "square_size": None,
        "ignored": "background",
    }
    assert set(changes) == set(EvaluationProtocol.__dataclass_fields__)
    assert len({line, *(str(EvaluationProtocol(**{name: value})) for name, value in changes.items())}) == 9


@pytest.mark.real_data
def test_real_photos_score_as_in_batches(real_data: Path):
    """`EpisodeDataset` and `predict`, the way of training and demo, over the photos of the FSS-like folder."""
    from fewseg_ext.data.fss1000 import FSS1000
    from fewseg_ext.evaluation.metrics import SegmentationScore

    source = FSS1000(real_data / "fss_like")
    model = BiOpt("mobilenet_v2", str(real_data / "weights" / "mobilenet_v2.safetensors")).eval()
    dataset = EpisodeDataset(source, episodes=8, transform=PairTransform(161))
    score = SegmentationScore(len(source.class_names))
    for batch in torch.utils.data.DataLoader(dataset, batch_size=4):
        score.update(predict(model, batch), batch["query_masks"], batch["class_ids"])
    result = evaluate(model, dataset)
    # Convolutions of one image and of four differ in their last bits.
    assert result.miou == pytest.approx(100 * float(score.compute()["miou"]), abs=0.05)
    assert result.miou > 10
