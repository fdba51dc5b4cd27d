"""BiOpt and the baseline: stages, shapes, dtypes, options. Its gradients are in test_biopt_gradients.py."""

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewseg_ext
from fewseg_ext.models import BiOpt, PrototypeBaseline, QueryState, build_model


class TinyBackbone(nn.Sequential):
    out_channels = 6
    stride = 2

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 6, 3, 1, 1))


class Colours(nn.Module):
    """The image is its own feature map: episodes whose answer is known."""

    out_channels = 3
    stride = 1

    def forward(self, images: Tensor) -> Tensor:
        return images


def episode(tasks: int = 2, ways: int = 1, shots: int = 1, size: int = 16, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(tasks + 10 * ways + 100 * shots)
    return (
        torch.randn(tasks, ways, shots, 3, size, size, generator=generator).to(dtype),
        torch.randint(0, ways + 1, (tasks, ways, shots, size, size), generator=generator),
        torch.randn(tasks, 3, size, size, generator=generator).to(dtype),
        torch.randint(0, ways + 1, (tasks, size, size), generator=generator),
    )


MODELS = [
    pytest.param(lambda **k: BiOpt(TinyBackbone(), **k), ["support", "init", "final"], id="biopt"),
    pytest.param(lambda **k: BiOpt(TinyBackbone(), init="support", **k), ["support", "final"], id="dagger"),
    pytest.param(lambda **k: PrototypeBaseline(TinyBackbone(), **k), ["support"], id="baseline"),
]


@pytest.mark.parametrize(("make", "terms"), MODELS)
@pytest.mark.parametrize("ways", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 5])
def test_n_way_k_shot(make: Any, terms: list[str], ways: int, shots: int) -> None:
    model = make()
    images, masks, query, truth = episode(2, ways, shots)
    truth[0, :3] = 255
    out = model(images, masks, query, truth)
    assert out.logits.shape == (2, ways + 1, 16, 16)
    assert out.prototypes.shape == (2, ways + 1, 6)
    assert list(out.losses) == terms
    assert out.loss == sum(out.losses.values())
    expected = torch.stack([F.cross_entropy(out.logits[i : i + 1], truth[i : i + 1], ignore_index=255) for i in (0, 1)])
    torch.testing.assert_close(out.losses[terms[-1]], expected.mean())
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("make", "terms"), MODELS)
def test_stages_compose_forward(make: Any, terms: list[str]) -> None:
    model = make()
    images, masks, query, truth = episode(3, 2, 2)
    whole = model(images, masks, query, truth)
    state, encoded = model.encode_support(images, masks), model.encode_query(query)
    parts = model.predict(state, encoded, query_masks=truth)
    assert torch.equal(parts.logits, whole.logits)
    assert parts.loss == whole.loss
    without = model(images, masks, query)
    assert without.loss is None
    assert without.losses == {}
    assert torch.equal(without.logits, whole.logits)
    features = model.backbone(images.flatten(0, 2)).unflatten(0, images.shape[:3])
    assert torch.equal(model.pool_support(features, masks).prototypes, state.prototypes)


def test_a_support_state_serves_several_queries() -> None:
    model = BiOpt(TinyBackbone())
    images, masks, query, _ = episode(2)
    two = model.predict(
        model.encode_support(images, masks).repeat(2), model.encode_query(query.repeat_interleave(2, 0))
    )
    one = model(images, masks, query)
    torch.testing.assert_close(two.logits, one.logits.repeat_interleave(2, 0))
    with pytest.raises(ValueError, match="2 support states for 3 queries: one query per task"):
        model.predict(model.encode_support(images, masks), QueryState(torch.randn(3, 6, 8, 8), (16, 16)))


def test_tasks_do_not_mix() -> None:
    """The batch's loss is the mean of its tasks' losses, whatever the number of their valid pixels."""
    model = BiOpt(TinyBackbone())
    images, masks, query, truth = episode(3)
    truth[0, 2:] = 255
    whole = model(images, masks, query, truth)
    each = [model(images[i : i + 1], masks[i : i + 1], query[i : i + 1], truth[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole.logits, torch.cat([x.logits for x in each]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.loss, torch.stack([x.loss for x in each]).mean())


def test_the_steps_slider_reruns_only_the_inner_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BiOpt(TinyBackbone(), inner_steps=7)
    images, masks, query, _ = episode()
    state, encoded = model.encode_support(images, masks), model.encode_query(query)
    calls: list[dict[str, Any]] = []
    original = fewseg_ext.ops.inner_opt

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(fewseg_ext.ops, "inner_opt", watched)
    monkeypatch.setattr(TinyBackbone, "forward", lambda *_: pytest.fail("the backbone ran again"))
    results = [model.predict(state, encoded, steps=steps).prototypes for steps in (0, 1, 7, None)]
    assert [call["steps"] for call in calls] == [0, 1, 7, 7]
    assert torch.equal(results[2], results[3])
    moved = [(p - results[0]).norm().item() for p in results]
    assert moved[0] == 0 < moved[1] < moved[2]


def test_without_steps_dagger_is_the_baseline_and_biopt_its_init_module() -> None:
    images, masks, query, truth = episode()
    baseline = PrototypeBaseline(TinyBackbone())
    expected = baseline(images, masks, query, truth)
    dagger = BiOpt(copy.deepcopy(baseline.backbone), init="support", inner_steps=0)(images, masks, query, truth)
    torch.testing.assert_close(dagger.logits, expected.logits)
    torch.testing.assert_close(dagger.loss, 2 * expected.loss)
    biopt = BiOpt(copy.deepcopy(baseline.backbone), inner_steps=0)(images, masks, query, truth)
    torch.testing.assert_close(biopt.losses["final"], biopt.losses["init"])
    assert not torch.allclose(biopt.logits, expected.logits)


def test_omega_starts_at_one_half_and_blends_per_channel() -> None:
    model = BiOpt(TinyBackbone(), inner_steps=0)
    images, masks, query, _ = episode()
    support, features = model.encode_support(images, masks).prototypes, model.encode_query(query).features
    half = model.initial_prototypes(support, features)
    with torch.no_grad():
        model.weight_generator.bias.copy_(torch.tensor([50.0, -50.0] * 3))
    blend = model.initial_prototypes(support, features)
    torch.testing.assert_close(blend[..., ::2], support[..., ::2])
    torch.testing.assert_close(blend[..., 1::2], (2 * half - support)[..., 1::2])


@pytest.mark.parametrize("normalize", [True, False])
def test_the_inner_loop_starts_at_unit_prototypes_by_default(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def no_steps(features: Tensor, prototypes: Tensor, target: Tensor, **_: Any) -> Tensor:
        seen.extend([prototypes, target])
        return prototypes.clone()

    monkeypatch.setattr(fewseg_ext.ops, "inner_opt", no_steps)
    model = BiOpt(TinyBackbone(), normalize_prototypes=normalize)
    images, masks, query, _ = episode()
    model(images, masks, query)
    start = model.initial_prototypes(model.encode_support(images, masks).prototypes, model.backbone(query))
    expected = start / start.norm(dim=-1, keepdim=True) if normalize else start
    torch.testing.assert_close(seen[0], expected)
    assert seen[1].shape == (2, 8, 8)
    assert not seen[1].is_floating_point()


def test_options_reach_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "inner_steps": 3,
        "inner_lr": 0.02,
        "inner_reduction": "sum",
        "second_order": False,
        "scale": 11.0,
        "resize": "masks",
    }
    model = BiOpt(TinyBackbone(), **options)
    inner: dict[str, Any] = {}
    resize: set[str] = set()
    inner_opt, pool = fewseg_ext.ops.inner_opt, fewseg_ext.ops.masked_avg_pool
    monkeypatch.setattr(fewseg_ext.ops, "inner_opt", lambda *a, **k: (inner.update(k), inner_opt(*a, **k))[1])
    monkeypatch.setattr(fewseg_ext.ops, "masked_avg_pool", lambda *a, **k: (resize.add(k["resize"]), pool(*a, **k))[1])
    images, masks, query, _ = episode()
    model(images, masks, query)
    assert inner == {"steps": 3, "lr": 0.02, "reduction": "sum", "second_order": False, "scale": 11.0}
    assert resize == {"masks"}


def test_supports_of_another_class_lower_the_score() -> None:
    """A red square on blue among green ones: supports that show red find it, supports that show green do not."""
    # Red and green are both nearer to blue than to each other.
    colours = {"red": (1.0, 0.1, 0.3), "green": (0.1, 1.0, 0.4), "blue": (0.1, 0.1, 1.0)}

    def paint(image: Tensor, colour: str, rows: slice, columns: slice) -> None:
        image[:, rows, columns] = torch.tensor(colours[colour]).view(3, 1, 1)

    query = torch.empty(1, 3, 24, 24)
    paint(query[0], "blue", slice(None), slice(None))
    paint(query[0], "red", slice(4, 12), slice(4, 12))
    paint(query[0], "green", slice(14, 22), slice(14, 22))
    truth = torch.zeros(24, 24, dtype=torch.bool)
    truth[4:12, 4:12] = True
    support, mask = torch.empty(1, 1, 1, 3, 24, 24), torch.zeros(1, 1, 1, 24, 24, dtype=torch.bool)
    mask[..., 8:20, 8:20] = True
    for make in (BiOpt, PrototypeBaseline):
        iou = {}
        for colour in ("red", "green"):
            paint(support[0, 0, 0], "blue", slice(None), slice(None))
            paint(support[0, 0, 0], colour, slice(8, 20), slice(8, 20))
            found = make(Colours())(support, mask, query).logits.argmax(1)[0] == 1
            iou[colour] = (found & truth).sum() / (found | truth).sum()
        assert iou["red"] > 0.95
        assert iou["green"] < 0.05


def test_a_way_without_a_mask_has_a_zero_prototype_and_finite_gradients() -> None:
    images, masks, query, truth = episode(1, 2)
    masks[masks == 2] = 0
    for model in (BiOpt(TinyBackbone()), BiOpt(TinyBackbone(), init="support"), PrototypeBaseline(TinyBackbone())):
        assert not model.encode_support(images, masks).prototypes[0, 2].any()
        out = model(images, masks, query, truth)
        assert out.logits.isfinite().all()
        out.loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_query_that_is_all_ignored_has_loss_zero() -> None:
    model = BiOpt(TinyBackbone())
    images, masks, query, truth = episode(2)
    truth[1] = 255
    out = model(images, masks, query, truth)
    alone = model(images[:1], masks[:1], query[:1], truth[:1])
    torch.testing.assert_close(out.loss, alone.loss / 2)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_dtypes(dtype: torch.dtype) -> None:
    model = BiOpt(TinyBackbone())
    images, masks, query, truth = episode()
    assert (
        model(images, masks.to(dtype), query, truth.to(dtype)).loss == model(images, masks > 0, query, truth > 0).loss
    )


def test_double_and_bfloat16() -> None:
    model = BiOpt(TinyBackbone())
    images, masks, query, truth = episode()
    single = model(images, masks, query, truth)
    double = copy.deepcopy(model).double()(images.double(), masks, query.double(), truth)
    assert double.logits.dtype == double.prototypes.dtype == torch.float64
    torch.testing.assert_close(single.loss.double(), double.loss, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images, masks, query, truth)
    assert mixed.logits.dtype == mixed.prototypes.dtype == mixed.loss.dtype == torch.float32
    torch.testing.assert_close(mixed.losses["support"], single.losses["support"], rtol=0.05, atol=0.05)
    mixed.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    half = copy.deepcopy(model).bfloat16()(images.bfloat16(), masks, query.bfloat16())
    assert half.prototypes.dtype == torch.float32
    assert half.logits.isfinite().all()


def test_a_seventh_of_a_trajectory_is_not_lost_to_bfloat16() -> None:
    """Under autocast the features may be coarse, but ten steps from them must be exact."""
    model = BiOpt(TinyBackbone())
    images, masks, query, _ = episode()
    state, features = model.encode_support(images, masks), model.encode_query(query).features.bfloat16()
    exact = model.predict(state, QueryState(features.float(), (16, 16)))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.predict(state, QueryState(features, (16, 16)))
    torch.testing.assert_close(mixed.prototypes, exact.prototypes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "terms"), MODELS)
def test_inference_mode_and_compile(make: Any, terms: list[str]) -> None:
    model = make()
    arguments = episode()
    expected = model(*arguments)
    with torch.inference_mode():
        torch.testing.assert_close(model(*arguments).loss, expected.loss.detach())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(*arguments)
    torch.testing.assert_close(compiled.logits, expected.logits)
    parameter = model.backbone[0].weight
    gradients = [torch.autograd.grad(out.loss, parameter)[0] for out in (compiled, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("make", [BiOpt, PrototypeBaseline])
def test_config_and_state_dict_rebuild_the_model(make: Any) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    model = make("resnet18", scale=12.0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    config = json.loads(json.dumps(model.config))
    again = build_model(config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert type(again) is type(model)
    images, masks, query, _ = episode(1, size=33)
    with torch.no_grad():
        assert torch.equal(again(images, masks, query).logits, model(images, masks, query).logits)


def test_a_model_with_a_module_is_rebuilt_with_one() -> None:
    model = BiOpt(TinyBackbone(), inner_steps=2, init="support")
    with pytest.raises(ValueError, match="pass backbone=module"):
        build_model(model.config)
    again = build_model(model.config, backbone=TinyBackbone())
    again.load_state_dict(model.state_dict())
    assert (again.inner_steps, again.init) == (2, "support")
    with pytest.raises(ValueError, match="'Biopt' is unknown, expected one of BiOpt"):
        build_model({**model.config, "name": "Biopt"})
    for wrong in ({"inner_steps": 0.5}, {"second_order": "no"}, {"inner_lr": True}, {"scale": "20"}, {"init": None}):
        with pytest.raises(ValueError, match=f"model: {next(iter(wrong))} is to be (int|bool|float|str), got"):
            build_model({**BiOpt("conv4").config, **wrong})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "query"}, 'init: expected "module" or "support", got \'query\''),
        ({"inner_steps": -1}, "inner_steps: expected 0 or more, got -1"),
        ({"inner_lr": float("nan")}, "inner_lr: expected a finite number"),
        ({"inner_reduction": "none"}, "inner_reduction: "),
        ({"scale": 0.0}, "scale: expected a positive number"),
        ({"resize": "both"}, "resize: "),
        ({"weights": "IMAGENET1K_V1"}, "weights: goes with a backbone's name"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiOpt(TinyBackbone(), **options)
    with pytest.raises(ValueError, match="Tanh needs an int attribute out_channels"):
        BiOpt(nn.Tanh())


def test_bad_episodes() -> None:
    model = BiOpt(TinyBackbone())
    images, masks, query, truth = episode()
    for arguments, message in (
        ((images[0], masks, query), r"support_images: expected \[B,N,S,3,h,w\], got \[1, 1, 3, 16, 16\]"),
        ((images, masks[:, :, 0], query), r"support_masks: expected \[B,N,S,h,w\]"),
        ((images, masks[:1], query), r"support_masks: .* B,N,S = \[2, 1, 1\]"),
        ((images, masks * 255, query), "support_masks: .*looks like a 0/255 mask: pass mask > 127"),
        ((images, masks, query[0]), r"query_images: expected \[B,3,h,w\]"),
        ((images, masks, query, truth[:1]), r"query_masks: expected \[B,h,w\] with B = 2"),
        ((images, masks, query, truth + 1), "query_masks: label 2 is not of this 1-way episode"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*arguments)
    with pytest.raises(TypeError, match="support_masks: expected integer labels"):
        model(images, masks.float(), query)
    assert torch.equal(model(images, masks > 0, query).logits, model(images, masks, query).logits)
