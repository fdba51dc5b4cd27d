"""VPI: shapes, stages, samples, losses, gradients, and the convolutions that its samples share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fewseg_ext
from fewseg_ext.models import build_model
from fewseg_ext.models.vpi import GaussianState, SkipBlock, TiledBlock

SIZE = 32


@pytest.fixture
def model() -> fewseg_ext.VPI:
    torch.manual_seed(0)
    return fewseg_ext.VPI("conv4", latent_dim=12, width=16, num_samples=4, kl_warmup=0)


def episode(tasks: int = 2, ways: int = 1, shots: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(tasks, ways, shots, 3, SIZE, SIZE, generator=generator)
    masks = torch.zeros(tasks, ways, shots, SIZE, SIZE, dtype=torch.uint8)
    for way in range(ways):
        masks[:, way, :, 4 + way : 20 + way, 6:24] = way + 1
    masks[..., :2] = 255
    query = torch.randn(tasks, 3, SIZE, SIZE, generator=generator)
    truth = torch.randint(0, ways + 1, (tasks, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    truth[:, :3] = 255
    return images, masks, query, truth


@pytest.mark.parametrize(("ways", "shots"), [(1, 1), (1, 5), (3, 2)])
def test_shapes_and_probabilities(model, ways, shots) -> None:
    images, masks, query, truth = episode(2, ways, shots)
    out = model.eval()(images, masks, query, truth)
    assert out.prototypes.shape == (2, ways, 4, 12)
    assert out.sample_logits.shape[:3] == (2, 4, ways + 1)
    assert out.probabilities.shape == out.logits.shape == (2, ways + 1, SIZE, SIZE)
    torch.testing.assert_close(out.logits.softmax(1), out.probabilities)
    assert out.loss == sum(out.losses.values())
    assert set(out.losses) == {"segmentation", "kl"}


def test_uncertainty_is_that_of_the_samples(model) -> None:
    images, masks, query, _ = episode()
    with torch.no_grad():
        out = model.eval()(images, masks, query)
    samples = F.interpolate(out.sample_logits.flatten(0, 1), (SIZE, SIZE), mode="bilinear").softmax(1)
    samples = samples.unflatten(0, (2, 4))
    mean = samples.mean(1)
    torch.testing.assert_close(out.probabilities, mean)
    torch.testing.assert_close(out.entropy, torch.special.entr(mean).sum(1))
    conditional = torch.special.entr(samples).sum(2).mean(1)
    torch.testing.assert_close(out.mutual_information, out.entropy - conditional, atol=1e-6, rtol=0)
    assert (samples.std(1) > 1e-5).any(), "the samples do not differ"


def test_stages_compose_to_forward_and_repeat_with_a_seed(model) -> None:
    images, masks, query, _ = episode()
    model.eval()
    state, encoded = model.encode_support(images, masks), model.encode_query(query)
    draw = [model.predict(state, encoded, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draw[0].logits, draw[1].logits)
    assert not torch.equal(draw[0].logits, draw[2].logits)
    torch.manual_seed(7)
    whole = model(images, masks, query)
    torch.manual_seed(7)
    assert torch.equal(whole.logits, model.predict(state, encoded).logits)


def test_fewer_samples_are_the_first_of_more(model) -> None:
    images, masks, query, _ = episode()
    state, encoded = model.eval().encode_support(images, masks), model.encode_query(query)
    few, many = (
        model.predict(state, encoded, num_samples=n, generator=torch.Generator().manual_seed(0)).prototypes
        for n in (2, 6)
    )
    assert torch.equal(few, many[:, :, :2])


def test_shots_are_aggregated_by_precision() -> None:
    mean, variance = torch.tensor([0.0, 4.0]).view(1, 1, 2, 1), torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
    results = {}
    for means in ("precision", "uniform"):
        for variances in ("precision", "uniform"):
            model = fewseg_ext.VPI("conv4", latent_dim=1, width=8, mean_weighting=means, variance_weighting=variances)
            aggregated = model._aggregate(GaussianState(mean, variance))
            results[means[0] + variances[0]] = tuple(round(float(x), 4) for x in aggregated)
    assert results == {"pp": (1.0, 1.5), "pu": (1.0, 2.0), "up": (2.0, 1.5), "uu": (2.0, 2.0)}


def test_ways_are_decoded_alone(model) -> None:
    images, masks, query, _ = episode(1, ways=2)
    model.eval()
    both = model.predict(model.encode_support(images, masks), model.encode_query(query), num_samples=1)
    for way in range(2):
        one = (masks[:, way : way + 1] == way + 1).to(torch.uint8)
        alone = model.decoder(model.encode_query(query).pyramid, both.prototypes[:, way])
        torch.testing.assert_close(both.sample_logits[:, :, way + 1], alone[:, :, 1] - alone[:, :, 0])
        assert model.encode_support(images[:, way : way + 1], one).mean.shape == (1, 1, 1, 12)
    assert (both.sample_logits[:, :, 0] == 0).all()


def test_blocks_equal_convolutions_of_concatenations() -> None:
    torch.manual_seed(0)
    features, z, skip = torch.randn(2, 5, 9, 7), torch.randn(2, 3, 4), torch.randn(2, 6, 17, 13)
    tiled = TiledBlock(5, 4, 8)
    for sample in range(3):
        wide = torch.cat([features, z[:, sample, :, None, None].expand(-1, -1, 9, 7)], 1)
        expected = F.relu(tiled.norm(F.conv2d(wide, tiled.conv.weight, tiled.conv.bias, padding=1)))
        torch.testing.assert_close(tiled(features, z)[:, sample], expected)
    block = SkipBlock(8, 6, 10)
    x = torch.randn(2, 3, 8, 9, 7)
    weight = torch.cat([block.samples.weight, block.skip.weight], 1)
    for sample in range(3):
        wide = torch.cat([F.interpolate(x[:, sample], (17, 13), mode="bilinear"), skip], 1)
        expected = F.relu(block.norm(F.conv2d(wide, weight, block.samples.bias, padding=1)))
        torch.testing.assert_close(block(x, skip)[:, sample], expected, atol=1e-5, rtol=1e-5)


def test_losses_are_those_of_the_paper(model) -> None:
    images, masks, query, truth = episode()
    model.train()
    out = model(images, masks, query, truth)
    scores = F.interpolate(out.sample_logits[:, 0], (SIZE, SIZE), mode="bilinear")
    torch.testing.assert_close(out.losses["segmentation"], F.cross_entropy(scores, truth.long(), ignore_index=255))
    state = model.encode_support(images, masks)
    mean0, var0 = (x[:, 0] for x in model._posterior(model.backbone(query), truth, 1))
    mean1, var1 = state.mean[:, 0, 0], state.variance[:, 0, 0]
    kl = 0.5 * (var0 / var1 + (mean0 - mean1) ** 2 / var1 - 1 + var1.log() - var0.log()).sum(1).mean()
    torch.testing.assert_close(out.losses["kl"], model.kl_weight * kl)


def test_kl_warms_up_and_the_count_is_in_the_state() -> None:
    model = fewseg_ext.VPI("conv4", latent_dim=4, width=8, kl_weight=0.5, kl_warmup=4).train()
    factors = []
    for _ in range(6):
        model(*episode(1))
        factors.append(model.kl_factor)
    assert factors == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    model.eval()(*episode(1))
    assert int(model.state_dict()["training_steps"]) == 6


@pytest.mark.parametrize(
    ("kl_weight", "sample_from", "reached"), [(0, "prior", 0), (0.1, "prior", 1), (0, "posterior", 1)]
)
def test_what_reaches_the_posterior(kl_weight, sample_from, reached) -> None:
    model = fewseg_ext.VPI("conv4", latent_dim=4, width=8, kl_weight=kl_weight, kl_warmup=0, sample_from=sample_from)
    model.train()(*episode(1)).loss.backward()
    gradient = model.posterior.mean.weight.grad
    assert bool((gradient != 0).any()) == bool(reached)
    assert (model.prior.mean.weight.grad is not None and (model.prior.mean.weight.grad != 0).any()) == (
        sample_from == "prior" or kl_weight > 0
    )


def test_every_parameter_trains(model) -> None:
    # Prior and posterior start with equal variances, where the KL's gradient to the posterior's is zero.
    nn.init.constant_(model.posterior.log_variance.bias, -3.0)
    model.train()(*episode()).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()] == []


def test_deterministic_counterpart(model) -> None:
    plain = fewseg_ext.VPI("conv4", latent_dim=12, width=16, deterministic=True)
    images, masks, query, truth = episode()
    out = plain.train()(images, masks, query, truth)
    assert set(out.losses) == {"segmentation"}
    with torch.no_grad():
        first, second = (plain.eval()(images, masks, query) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert float(first.mutual_information.abs().max()) < 1e-6


def test_average_of_logits(model) -> None:
    images, masks, query, _ = episode()
    model.average = "logits"
    with torch.no_grad():
        out = model.eval()(images, masks, query)
    expected = F.interpolate(out.sample_logits.mean(1), (SIZE, SIZE), mode="bilinear").softmax(1)
    torch.testing.assert_close(out.probabilities, expected)


def test_config_builds_the_same_model(model) -> None:
    model.average = "probabilities"
    again = build_model(model.config)
    again.load_state_dict(model.state_dict())
    images, masks, query, _ = episode()
    torch.manual_seed(0)
    expected = model.eval()(images, masks, query).logits
    torch.manual_seed(0)
    assert torch.equal(again.eval()(images, masks, query).logits, expected)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "vgg16"])
def test_pyramids_of_the_backbones(name) -> None:
    pytest.importorskip("torchvision")
    backbone = fewseg_ext.models.build_backbone(name).eval()
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        pyramid, features = backbone.pyramid(images), backbone(images)
    assert torch.equal(pyramid[-1], features)
    assert tuple(x.shape[1] for x in pyramid) == backbone.pyramid_channels
    assert pyramid[0].shape[2] > pyramid[1].shape[2] >= pyramid[2].shape[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim: expected 1 or more, got 0"),
        ({"average": "votes"}, "average: expected 'probabilities' or 'logits', got 'votes'"),
        ({"kl_weight": -1.0}, "kl_weight: expected 0 or more"),
        ({"backbone": nn.Conv2d(3, 4, 1)}, "backbone: Conv2d has no pyramid"),
    ],
)
def test_bad_arguments(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        fewseg_ext.VPI(**{"backbone": "conv4", **options})


def test_bad_episodes(model) -> None:
    images, masks, query, truth = episode()
    with pytest.raises(ValueError, match="looks like a 0/255 mask"):
        model(images, (masks == 1).to(torch.uint8) * 255, query)
    with pytest.raises(ValueError, match="2 support states for 1 queries"):
        model(images, masks, query[:1])
    with pytest.raises(ValueError, match="query_masks"):
        model(images, masks, query, truth[:1])
