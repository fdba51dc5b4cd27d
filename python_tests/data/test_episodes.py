import pytest
import torch
from torch.utils.data import DataLoader

from fewseg_ext.data.episodes import EpisodeDataset
from fewseg_ext.data.transforms import PairTransform


class Stripes:
    """Image i of class c is filled with the value 20 c + i; its columns are labelled: ignore, c, the class after c."""

    def __init__(self, classes=4, images=5):
        self.class_names = [f"class{c}" for c in range(classes)]
        self.images = images

    def num_images(self, class_id):
        return self.images

    def read(self, class_id, index):
        image = torch.full((3, 4, 3), 20 * class_id + index, dtype=torch.uint8)
        after = (class_id + 1) % len(self.class_names)
        labels = torch.tensor([-1, class_id + 1, after + 1], dtype=torch.int16).expand(4, 3)
        return image, labels


class Identity(PairTransform):
    """Keeps the values, to recognise the images by."""

    def __call__(self, image, labels, rng):
        return image.float(), labels


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_shapes_and_dtypes():
    episode = EpisodeDataset(Stripes(), ways=2, shots=3)[0]
    expected = {
        "support_images": ((2, 3, 3, 4, 3), torch.float32),
        "support_masks": ((2, 3, 4, 3), torch.uint8),
        "query_images": ((3, 4, 3), torch.float32),
        "query_masks": ((4, 3), torch.uint8),
        "class_ids": ((2,), torch.int64),
        "query_way": ((), torch.int64),
    }
    assert {key: (tuple(value.shape), value.dtype) for key, value in episode.items()} == expected


def test_episodes_do_not_depend_on_workers_or_order():
    data = EpisodeDataset(Stripes(), episodes=8, ways=2, shots=2, seed=5, transform=PairTransform(flip=True))
    alone = list(DataLoader(data, batch_size=2, num_workers=0))
    shared = list(DataLoader(data, batch_size=2, num_workers=2))
    assert len(alone) == len(shared) == 4
    assert all(equal(a, b) for a, b in zip(alone, shared, strict=True))
    backwards = [data[i] for i in reversed(range(8))][::-1]
    assert all(equal(data[i], backwards[i]) for i in range(8))


def test_seeds_and_indices_give_different_episodes():
    def picks(seed):
        data = EpisodeDataset(Stripes(), episodes=50, seed=seed, transform=Identity())
        return [(float(e["support_images"].mean()), float(e["query_images"].mean())) for e in data_items(data)]

    assert picks(0) == picks(0)
    assert picks(0) != picks(1)
    # 4 classes x 5 x 4 ordered pairs of images = 80 possible episodes.
    assert len(set(picks(0))) > 25


def data_items(data):
    return [data[i] for i in range(len(data))]


def test_supports_are_distinct_and_never_the_query():
    data = EpisodeDataset(Stripes(images=4), episodes=100, ways=2, shots=3, transform=Identity())
    query_ways = set()
    for episode in data_items(data):
        values = episode["support_images"].mean((-3, -2, -1))
        for way, class_id in enumerate(episode["class_ids"].tolist()):
            used = values[way].tolist()
            if way + 1 == int(episode["query_way"]):
                used.append(float(episode["query_images"].mean()))
            assert len(set(used)) == len(used)
            assert all(20 * class_id <= value < 20 * class_id + 4 for value in used)
        query_ways.add(int(episode["query_way"]))
    assert query_ways == {1, 2}


def test_labels_are_ways_with_other_classes_as_background():
    data = EpisodeDataset(Stripes(), episodes=30, ways=2, transform=Identity())
    seen = set()
    for episode in data_items(data):
        ids = episode["class_ids"].tolist()
        for way, class_id in enumerate(ids, start=1):
            after = (class_id + 1) % 4
            after_way = ids.index(after) + 1 if after in ids else 0
            assert episode["support_masks"][way - 1, 0, 0].tolist() == [255, way, after_way]
            seen.add(after_way > 0)
    assert seen == {True, False}


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="5-way episodes need 5 classes, the data has 4"):
        EpisodeDataset(Stripes(classes=4), ways=5)


def test_a_class_with_too_few_images_is_named():
    source = Stripes()
    source.num_images = lambda class_id: 2 if class_id == 2 else 5
    EpisodeDataset(source, shots=1)
    with pytest.raises(ValueError, match=r"need 3 images per class .*'class2' has 2"):
        EpisodeDataset(source, shots=2)


@pytest.mark.parametrize("field", ["episodes", "ways", "shots"])
def test_counts_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        EpisodeDataset(Stripes(), **{field: 0})


def test_a_way_is_never_the_ignore_label():
    with pytest.raises(ValueError, match="ways must be below 255, the ignore label, got 255"):
        EpisodeDataset(Stripes(), ways=255)


def test_there_are_as_many_episodes_as_asked_for():
    data = EpisodeDataset(Stripes(), episodes=3)
    assert len(data) == 3
    for index in (3, -1):
        with pytest.raises(IndexError):
            data[index]


def test_images_of_different_sizes_need_a_size():
    source = Stripes()
    read = source.read
    source.read = lambda c, i: tuple(x[..., : 2 + i % 2] for x in read(c, i))
    data = EpisodeDataset(source, episodes=20, shots=2)
    with pytest.raises(ValueError, match="PairTransform with a size"):
        data_items(data)
    resized = EpisodeDataset(source, episodes=20, shots=2, transform=PairTransform(size=8))
    assert all(episode["support_images"].shape == (1, 2, 3, 8, 8) for episode in data_items(resized))


def test_plan_names_the_images_that_the_episode_shows():
    data = EpisodeDataset(Stripes(), episodes=20, ways=2, shots=2, seed=3, transform=Identity())
    for index in range(20):
        plan, episode = data.plan(index), data[index]
        shown = [[20 * c + i for i in images] for c, images in zip(plan.class_ids, plan.supports, strict=True)]
        assert episode["support_images"][:, :, 0, 0, 0].tolist() == shown
        assert episode["query_images"][0, 0, 0] == 20 * plan.class_ids[plan.query_way - 1] + plan.query
        assert (episode["class_ids"].tolist(), episode["query_way"]) == (list(plan.class_ids), plan.query_way)


def test_the_query_can_have_a_transform_of_its_own():
    class Negative(PairTransform):
        def __call__(self, image, labels, rng):
            return -image.float(), labels

    data = EpisodeDataset(Stripes(), episodes=9, shots=2, transform=Identity(), query_transform=Negative())
    alike = EpisodeDataset(Stripes(), episodes=9, shots=2, transform=Identity())
    for index in range(9):
        assert torch.equal(data[index]["query_images"], -alike[index]["query_images"])
        assert torch.equal(data[index]["support_images"], alike[index]["support_images"])
