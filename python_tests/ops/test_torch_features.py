"""What else PyTorch does with operators: shapes that vary under compile and export, vmap, deterministic algorithms."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.export import Dim

from samples import SAMPLES, Sample, Sizes, results

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: "-".join(filter(None, (s.name, s.variant))))

# None of them 1, which the compiler takes for a constant of its own.
SIZES = [
    Sizes(),
    Sizes(tasks=3, height=6, width=5),
    Sizes(tasks=4, classes=5, channels=18, height=7, width=13, mask_height=11, mask_width=6),
    Sizes(tasks=2, classes=2, channels=33, height=12, width=9, mask_height=3, mask_width=17),
]


def value_and_gradients(call, sample: Sample, args: tuple) -> list[torch.Tensor]:
    result = call(*args)
    total = sum(x.square().sum() for x in sample.with_gradient(result))
    gradients = torch.autograd.grad(total, [args[i] for i in sample.differentiable])
    return [*(x.detach() for x in results(result)), *gradients]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@every_sample
def test_dynamic_shapes_compile_once(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch, classes, channels and both grids vary: one graph serves them all, forward and backward."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    # Sizes that are equal by chance in the first call would count as one number, and the next call compile again.
    monkeypatch.setattr(torch.fx.experimental._config, "use_duck_shape", False)
    compiled = torch.compile(sample.public, fullgraph=True, dynamic=True, backend=backend)
    for sizes in SIZES:
        if sample.name.startswith("mc_"):
            sizes = replace(sizes, mask_height=9, mask_width=7)  # the size is a number of the call, not of a tensor
        args = sample.arguments(sizes, gradients=True)
        assert equal(value_and_gradients(compiled, sample, args), value_and_gradients(sample.public, sample, args))
    assert len(graphs) == 1


@every_sample
def test_exports_with_dynamic_shapes(sample: Sample) -> None:
    args = sample.arguments()

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            given = iter(tensors)
            return sample.public(*(next(given) if torch.is_tensor(x) else x for x in args))

    tensors = tuple(x for x in args if torch.is_tensor(x))

    def varying(i: int, x: torch.Tensor) -> dict:
        if x.dim() == 1 and not x.is_floating_point():
            return {}  # the noise's key is two numbers
        if sample.name == "tiled_conv2d" and i == 2:
            return {0: Dim.AUTO, 1: Dim.AUTO}  # a kernel's height and width are what they are
        return dict.fromkeys(range(x.dim()), Dim.AUTO)

    dynamic = tuple(varying(i, x) for i, x in enumerate(tensors))
    program = torch.export.export(Module(), tensors, dynamic_shapes=(dynamic,))
    for sizes in SIZES:
        others = tuple(x for x in sample.arguments(sizes) if torch.is_tensor(x))
        given = iter(others)
        expected = sample.public(*(next(given) if torch.is_tensor(x) else x for x in args))
        assert equal(list(results(program.module()(*others))), list(results(expected)))


@every_sample
@pytest.mark.parametrize("call", ["public", "dispatched"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap(sample: Sample, call: str) -> None:
    """Slice by slice, which is what the operators' own batch is faster than."""
    args = sample.arguments()
    stacked = torch.stack([args[0], args[0].flip(0) * 1.5])

    def value(x):
        return results(getattr(sample, call)(x, *args[1:]))

    got, expected = torch.func.vmap(value)(stacked), [value(x) for x in stacked]
    assert equal(list(got), [torch.stack(each) for each in zip(*expected, strict=True)])


@every_sample
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_and_gradients(sample: Sample) -> None:
    """Gradients of each slice by vmap of grad, and of all by autograd through vmap: never silently without one."""
    args = sample.arguments()
    stacked = torch.stack([args[0], args[0].flip(0) * 1.5])

    def scalar(x, call=sample.public):
        return sum(y.square().sum() for y in sample.with_gradient(call(x, *args[1:])))

    expected = torch.stack([torch.func.grad(scalar)(x) for x in stacked])
    assert torch.equal(torch.func.vmap(torch.func.grad(scalar))(stacked), expected)
    for call in (sample.public, sample.dispatched):
        leaf = stacked.clone().requires_grad_()
        total = torch.func.vmap(partial(scalar, call=call))(leaf).sum()
        (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
        assert torch.equal(gradient, expected)
        with pytest.raises(NotImplementedError, match="cannot be differentiated twice"):
            (leaf.sum() + gradient.square().sum()).backward()


@every_sample
def test_deterministic_algorithms(sample: Sample) -> None:
    """Torch raises under it for what has no fixed order of sums; and new memory is filled with NaN."""
    args = sample.arguments(gradients=True)
    expected = value_and_gradients(sample.public, sample, args)
    torch.use_deterministic_algorithms(True)
    try:
        got = value_and_gradients(sample.public, sample, args)
    finally:
        torch.use_deterministic_algorithms(False)
    assert equal(got, expected)
