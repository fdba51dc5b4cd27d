"""What every operator promises: that it is registered properly, repeats bit for bit, and works in all of PyTorch."""

import pytest
import torch

from samples import SAMPLES, Sample, Sizes, results
from support import relative_error

pytestmark = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: "-".join(filter(None, (s.name, s.variant))))

# Odd sizes around the tiles of the kernels: 16 channels, 16 and 128 pixels.
SIZES = [
    Sizes(tasks=1, classes=1, channels=1, height=1, width=1, mask_height=1, mask_width=1),
    Sizes(tasks=1, classes=2, channels=15, height=1, width=15, mask_height=3, mask_width=50),
    Sizes(tasks=3, classes=3, channels=16, height=4, width=4, mask_height=4, mask_width=4),
    Sizes(tasks=2, classes=6, channels=17, height=17, width=1, mask_height=5, mask_width=2),
    Sizes(tasks=1, classes=2, channels=33, height=1, width=127, mask_height=2, mask_width=127),
    Sizes(tasks=1, classes=5, channels=64, height=8, width=16, mask_height=19, mask_width=31),
    Sizes(tasks=2, classes=2, channels=47, height=43, width=3, mask_height=10, mask_width=10),
]


def loss(sample: Sample, result) -> torch.Tensor:
    """A scalar with a different gradient for every element."""
    generator = torch.Generator("cpu").manual_seed(1)
    total = torch.zeros(())
    for one in sample.with_gradient(result):
        weights = torch.randn(one.shape, dtype=torch.float64, generator=generator, device="cpu").to(one)
        total = total + (one * weights).sum()
    return total


def value_and_gradients(call, sample: Sample, args: tuple) -> list[torch.Tensor]:
    result = call(*args)
    inputs = [args[i] for i in sample.differentiable]
    return [*(x.detach() for x in results(result)), *torch.autograd.grad(loss(sample, result), inputs)]


def equal(one, other) -> bool:
    return all(torch.equal(x, y) for x, y in zip(results(one), results(other), strict=True))


def detached(args: tuple) -> list:
    return [x.detach() if torch.is_tensor(x) else x for x in args]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{s.tasks}x{s.classes}x{s.channels}x{s.height}x{s.width}")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["f64", "f32"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_equals_the_reference(sample: Sample, sizes: Sizes, dtype, tolerance, channels_last) -> None:
    if channels_last and not sample.feature_map:
        pytest.skip("takes no feature map")
    args = list(sample.arguments(sizes, dtype))
    exact = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in args]
    if channels_last:
        args[0] = args[0].contiguous(memory_format=torch.channels_last)
    for i in sample.differentiable:
        args[i].requires_grad_()
        exact[i].requires_grad_()
    got = value_and_gradients(sample.public, sample, tuple(args))
    expected = value_and_gradients(sample.reference, sample, tuple(exact))
    for actual, wanted in zip(got, expected, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) < tolerance
    if channels_last:
        gradient = got[-len(sample.differentiable)]
        assert gradient.stride() == args[0].stride(), "the gradient of channels-last features is channels-last"


def test_gradcheck(sample: Sample) -> None:
    args = sample.arguments(Sizes(tasks=2, classes=3, channels=4, height=3, width=3), gradients=True)
    assert torch.autograd.gradcheck(lambda *a: sample.with_gradient(sample.public(*a)), args, fast_mode=False)


def test_dispatched_equals_public(sample: Sample) -> None:
    args = sample.arguments(gradients=True)
    public = value_and_gradients(sample.public, sample, args)
    dispatched = value_and_gradients(sample.dispatched, sample, args)
    assert all(torch.equal(x, y) for x, y in zip(public, dispatched, strict=True))


@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(sample: Sample, gradients: bool) -> None:
    pytest.importorskip("expecttest", reason="opcheck needs expecttest")
    tests = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if gradients and sample.only_first_result:
        tests.pop()  # it would ask all results for their gradients; test_compiles_without_graph_breaks asks the first
    torch.library.opcheck(sample.dispatched.default, sample.arguments(gradients=gradients), test_utils=tests)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_graph_breaks(sample: Sample, dynamic: bool) -> None:
    torch._dynamo.reset()

    def doubled(*args):
        return tuple(x * 2 for x in results(sample.public(*args)))

    compiled = torch.compile(doubled, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for sizes in (Sizes(), Sizes(tasks=3, height=6, width=5)):
        args = sample.arguments(sizes, gradients=True)
        got = value_and_gradients(compiled, sample, args)
        expected = value_and_gradients(doubled, sample, args)
        assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_exports(sample: Sample) -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            given = iter(tensors)
            return sample.public(*(next(given) if torch.is_tensor(x) else x for x in args))

    args = sample.arguments()
    tensors = tuple(x for x in args if torch.is_tensor(x))
    program = torch.export.export(Module(), tensors)
    assert f"torch.ops.fewseg.{sample.name}" in program.graph_module.code
    assert equal(program.module()(*tensors), sample.public(*args))


def test_second_derivative_raises(sample: Sample) -> None:
    """The gradient-penalty pattern: through a silent once_differentiable it would give a wrong number."""
    args = sample.arguments(gradients=True)
    x = args[sample.differentiable[0]]
    (gradient,) = torch.autograd.grad(loss(sample, sample.public(*args)), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"fewseg::{sample.name} cannot be differentiated twice"):
        (x.sum() + gradient.pow(2).sum()).backward()


def test_forward_mode_raises(sample: Sample) -> None:
    args = list(sample.arguments())
    with torch.autograd.forward_ad.dual_level():
        args[0] = torch.autograd.forward_ad.make_dual(args[0], torch.ones_like(args[0]))
        with pytest.raises((NotImplementedError, RuntimeError), match="jvp"):
            sample.public(*args)


def test_inference_mode_and_no_grad(sample: Sample) -> None:
    args = sample.arguments(gradients=True)
    expected = sample.public(*args)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for call in (sample.public, sample.dispatched):
                result = call(*args)
                assert equal(result, expected)
                assert not any(x.requires_grad for x in results(result))


def test_gradients_only_where_needed(sample: Sample) -> None:
    everything = sample.arguments(gradients=True)
    expected = value_and_gradients(sample.public, sample, everything)[-len(sample.differentiable) :]
    for wanted, gradient in zip(sample.differentiable, expected, strict=True):
        args = detached(everything)
        args[wanted].requires_grad_()
        (got,) = torch.autograd.grad(loss(sample, sample.public(*args)), args[wanted])
        assert torch.equal(got, gradient)


def test_gradient_with_stride_zero(sample: Sample) -> None:
    """The gradient of .sum() is one number, expanded."""
    args = sample.arguments(gradients=True)
    inputs = [args[i] for i in sample.differentiable]
    got = torch.autograd.grad(sum(x.sum() for x in sample.with_gradient(sample.public(*args))), inputs)
    result = sample.with_gradient(sample.public(*args))
    expected = torch.autograd.grad(result, inputs, [torch.ones_like(x) for x in result])
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_does_not_change_or_alias_its_inputs(sample: Sample) -> None:
    args = sample.arguments(gradients=True)
    before = [x.detach().clone() for x in args if torch.is_tensor(x)]
    result = sample.public(*args)
    loss(sample, result).backward()
    tensors = [x for x in args if torch.is_tensor(x)]
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))
    pointers = [x.data_ptr() for x in (*results(result), *tensors)]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_threads_or_batch(sample: Sample, dtype: torch.dtype) -> None:
    if sample.name == "tiled_conv2d":
        pytest.skip("torch's convolution depends on the threads; test_tiled_conv2d.py has the rest")
    # Large enough to be shared between threads.
    sizes = Sizes(tasks=3, classes=3, channels=130, height=31, width=33, mask_height=100, mask_width=90)
    args = sample.arguments(sizes, dtype, gradients=True)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            runs.append(value_and_gradients(sample.public, sample, args))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))
    together = results(sample.public(*args))
    if together[0].dim() == 0 or sample.placed:
        return
    for task in range(sizes.tasks):
        alone = [x[task : task + 1] if torch.is_tensor(x) and i not in sample.shared else x for i, x in enumerate(args)]
        assert equal(tuple(x[0] for x in results(sample.public(*alone))), tuple(x[task] for x in together))


def test_empty_batch(sample: Sample) -> None:
    args = sample.arguments(Sizes(tasks=0), gradients=True)
    values = value_and_gradients(sample.public, sample, args)
    gradients = values[-len(sample.differentiable) :]
    for result in values[: -len(gradients)]:
        assert result.shape[:1] in ((0,), ()), "a loss over no task is a scalar, 0"
        assert not result.any()
    for i, gradient in zip(sample.differentiable, gradients, strict=True):
        assert gradient.shape == args[i].shape
        assert not gradient.any()


def test_any_strides(sample: Sample) -> None:
    """Views that are neither NCHW nor channels-last give what their contiguous copies give."""
    args = list(sample.arguments())

    def changed(change, shared: bool = True) -> list:
        return [
            change(x) if torch.is_tensor(x) and x.dim() > 1 and (shared or i not in sample.shared) else x
            for i, x in enumerate(args)
        ]

    expected = sample.public(*args)
    wide = changed(lambda x: torch.stack([x, x + 1], dim=-1)[..., 0])  # every stride doubled
    assert not wide[0].is_contiguous()
    assert equal(sample.public(*wide), expected)
    flipped = changed(lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2))
    assert equal(sample.public(*flipped), expected)
    expanded = changed(lambda x: x[:1].expand(3, *x.shape[1:]), shared=False)
    repeated = [x.contiguous() if torch.is_tensor(x) else x for x in expanded]
    assert equal(sample.public(*expanded), sample.public(*repeated))


def test_schema_has_the_public_defaults(sample: Sample) -> None:
    """torch.ops.fewseg.<op> and fewseg_ext.<op>: same names, order and defaults; Python may take more."""
    import inspect

    schema = [(a.name, a.default_value) for a in sample.dispatched.default._schema.arguments]
    signature = [
        (p.name, None if p.default is p.empty else list(p.default) if isinstance(p.default, tuple) else p.default)
        for p in inspect.signature(sample.public).parameters.values()
    ]
    names = [name for name, _ in schema]
    assert [x for x in signature if x[0] in names] == schema
    for name in [name for name, _ in signature if name not in names]:
        assert inspect.signature(sample.public).parameters[name].default is None
