"""The whole BiOpt loss and every parameter's gradient against a plain, unrolled writing of the paper.

The oracle below shares nothing with fewseg_ext: it walks over tasks and classes, upsamples features to pool them, and
lets autograd unroll the inner loop. All in float64, where the two differ by rounding only.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewseg_ext.models import BiOpt

TOLERANCE = 1e-10


class TinyBackbone(nn.Sequential):
    out_channels = 5
    stride = 2

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 7, 3, 2, 1), nn.Tanh(), nn.Conv2d(7, 5, 3, 1, 1))


def cosines(pixels: Tensor, prototypes: Tensor) -> Tensor:
    """[n,C], [K,C] -> [n,K]."""
    return F.cosine_similarity(pixels[:, None], prototypes[None], dim=2)


def average_under(features: Tensor, mask: Tensor) -> Tensor:
    """[C,H,W], [h,w] -> [C], with the features upsampled to the mask."""
    large = F.interpolate(features[None], size=mask.shape, mode="bilinear", align_corners=False)[0]
    return (large * mask).sum((1, 2)) / (mask.sum() + 1e-5)


def unrolled_loss(
    model: BiOpt, images: Tensor, masks: Tensor, queries: Tensor, truths: Tensor, second_order: bool = True
) -> dict[str, Tensor]:
    """Eq. 5 to 8 task by task, from the parameters of ``model`` and its plain numbers."""
    ways, scale = images.shape[1], model.scale
    terms: dict[str, list[Tensor]] = {}
    for task in range(len(images)):
        encoded = [model.backbone(x[None])[0] for x in images[task].flatten(0, 1)]
        maps = list(masks[task].flatten(0, 1))
        query = model.backbone(queries[task : task + 1])[0]
        pixels, truth = query.flatten(1).T, truths[task]

        support = torch.stack(
            [
                torch.stack(
                    [average_under(f, (m == k).double()) for f, m in zip(encoded, maps, strict=True) if (m == k).any()]
                ).mean(0)
                for k in range(ways + 1)
            ]
        )
        rough = cosines(pixels, support).argmax(1)
        names, start, target = {"support": support}, support, rough
        if model.init == "module":
            temporary = torch.stack(
                [
                    pixels[rough == k].sum(0) / ((rough == k).double().sum() + 1e-5)
                    if (rough == k).any()
                    else support[k]
                    for k in range(ways + 1)
                ]
            )
            layer = model.weight_generator
            omega = torch.sigmoid(torch.cat([support, temporary], 1) @ layer.weight.T + layer.bias)
            names["init"] = start = omega * support + (1 - omega) * temporary
            target = cosines(pixels, start).argmax(1)
        p = start / start.norm(dim=1, keepdim=True) if model.normalize_prototypes else start
        for _ in range(model.inner_steps):
            q = pixels if second_order else pixels.detach()
            here = p if second_order else p.detach().requires_grad_()
            loss = F.cross_entropy(scale * cosines(q, here), target, reduction=model.inner_reduction)
            (gradient,) = torch.autograd.grad(loss, here, create_graph=second_order)
            p = p - model.inner_lr * gradient
        names["final"] = p
        for name, prototypes in names.items():
            logits = (scale * cosines(pixels, prototypes)).T.view(1, ways + 1, *query.shape[1:])
            logits = F.interpolate(logits, size=truth.shape, mode="bilinear", align_corners=False)
            terms.setdefault(name, []).append(F.cross_entropy(logits, truth[None], ignore_index=255))
    return {name: torch.stack(values).mean() for name, values in terms.items()}


def tiny_episode(ways: int, shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(ways * 10 + shots)
    images = torch.randn(2, ways, shots, 3, 14, 12, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, ways + 1, (2, ways, shots, 14, 12), generator=generator)
    queries = torch.randn(2, 3, 14, 12, generator=generator, dtype=torch.float64)
    truths = torch.randint(0, ways + 1, (2, 14, 12), generator=generator)
    masks[:, :, :, :2], truths[0, 5:], truths[1, 0] = 255, 255, 255
    masks[0, 0, 0][masks[0, 0, 0] == 1] = 0  # an image without its object must not dilute
    if shots == 1:
        masks[0, 0, 0, 6:9, 3:8] = 1
    return images, masks, queries, truths


def tiny_model(**options: object) -> BiOpt:
    torch.manual_seed(3)
    model = BiOpt(TinyBackbone(), **options).double()  # type: ignore[arg-type]
    if model.init == "module":
        nn.init.normal_(model.weight_generator.weight, std=0.5)
        nn.init.normal_(model.weight_generator.bias, std=0.5)
    return model


def relative(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("second_order", [True, False], ids=["second-order", "first-order"])
@pytest.mark.parametrize(
    ("ways", "shots", "options"),
    [
        (1, 1, {}),
        (1, 2, {"scale": 7.0, "inner_lr": 0.3}),
        (2, 1, {}),
        (3, 2, {}),
        (1, 1, {"init": "support"}),
        (1, 1, {"normalize_prototypes": False, "inner_reduction": "sum", "inner_lr": 0.002}),
        (1, 1, {"inner_steps": 0}),
    ],
)
def test_loss_and_every_gradient_equal_the_unrolled_paper(
    ways: int, shots: int, options: dict[str, object], second_order: bool
) -> None:
    model = tiny_model(second_order=second_order, **options)
    plain = copy.deepcopy(model)
    arguments = tiny_episode(ways, shots)

    out = model(*arguments)
    assert out.loss is not None
    out.loss.backward()
    expected = unrolled_loss(plain, *arguments, second_order=second_order)
    sum(expected.values()).backward()  # type: ignore[union-attr]

    assert list(out.losses) == list(expected)
    for name, value in expected.items():
        assert relative(out.losses[name], value) < TOLERANCE
    gradients = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        reference = gradients[name].grad
        assert parameter.grad is not None and reference is not None
        assert reference.norm() > 1e-4, f"{name}: nothing to compare"
        assert relative(parameter.grad, reference) < TOLERANCE, name


@pytest.mark.parametrize("init", ["module", "support"])
def test_first_order_has_the_same_loss_and_other_gradients(init: str) -> None:
    arguments = tiny_episode(1, 1)
    results = []
    for second_order in (True, False):
        model = tiny_model(init=init, second_order=second_order)
        out = model(*arguments)
        assert out.loss is not None
        out.loss.backward()
        results.append((out.loss.detach(), [p.grad for p in model.parameters()]))
    assert results[0][0] == results[1][0]
    for exact, approximate in zip(results[0][1], results[1][1], strict=True):
        assert exact is not None and approximate is not None
        assert relative(approximate, exact) > 1e-3


def test_the_inner_target_is_a_constant_but_p0_carries_gradient() -> None:
    """The final term alone trains the weight generator: through P^0, which the loop starts from."""
    model = tiny_model()
    out = model(*tiny_episode(1, 1))
    (gradient,) = torch.autograd.grad(out.losses["final"], model.weight_generator.weight)
    assert gradient.norm() > 1e-4
