"""What only a GPU can show: run by `--backend=cuda`, as `make gpu-check` does."""

import pytest
import torch

import fewseg_ext
from fewseg_ext._info import DeviceLimits, plan_inner_opt
from samples import SAMPLES, Sample, Sizes, results

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: "-".join(filter(None, (s.name, s.variant))))
SIZES = Sizes(tasks=2, classes=3, channels=70, height=13, width=11, mask_height=40, mask_width=31)


@pytest.fixture(autouse=True)
def _gpu_only(backend: str) -> None:
    if backend != "cuda":
        pytest.skip("needs --backend=cuda")


def run(sample: Sample, args: tuple) -> list[torch.Tensor]:
    result = sample.public(*args)
    total = sum(x.sum() for x in sample.with_gradient(result))
    gradients = torch.autograd.grad(total, [args[i] for i in sample.differentiable])
    return [*(x.detach() for x in results(result)), *gradients]


def same(sample: Sample, one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Bit for bit, but for torch's own convolution, whose sums have no fixed order on a GPU."""
    if sample.name == "tiled_conv2d":
        return all(torch.allclose(x, y, rtol=1e-4, atol=1e-4) for x, y in zip(one, other, strict=True))
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@every_sample
def test_graph_capture_and_replay(sample: Sample) -> None:
    """Forward and backward in one graph: replayed it gives the same, and for other values in the same memory theirs."""
    args = sample.arguments(SIZES, torch.float32, gradients=True)
    expected = run(sample, args)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(sample, args)  # the first call may load modules, which a capture forbids
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(sample, args)
    for _ in range(3):
        for x in captured:
            x.fill_(float("nan"))
        graph.replay()
        assert same(sample, captured, expected)
    with torch.no_grad():
        args[0].mul_(2.0)
        args[0][:, :, 0] += 1
    graph.replay()
    assert same(sample, captured, run(sample, args))


@every_sample
def test_two_streams(sample: Sample) -> None:
    """Work goes to the current stream, and two calls at once do not share scratch memory."""
    args = [sample.arguments(SIZES, torch.float32, gradients=True) for _ in range(2)]
    expected = [run(sample, a) for a in args]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for _ in range(20):
        for stream, a in zip(streams, args, strict=True):
            with torch.cuda.stream(stream):
                results.append(run(sample, a))
    torch.cuda.synchronize()
    for i, result in enumerate(results):
        assert all(torch.equal(x, y) for x, y in zip(result, expected[i % 2], strict=True))


def test_no_synchronisation() -> None:
    for sample in SAMPLES:
        args = sample.arguments(SIZES, torch.float32, gradients=True)
        run(sample, args)
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(sample, args)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def limits() -> DeviceLimits:
    gpu = torch.cuda.get_device_properties()
    return DeviceLimits(
        multiprocessors=gpu.multi_processor_count,
        shared_per_block=gpu.shared_memory_per_block_optin,
        shared_per_multiprocessor=gpu.shared_memory_per_multiprocessor,
    )


@pytest.mark.parametrize(
    ("kernel", "sizes"),
    [
        ("resident", Sizes(tasks=3, classes=3, channels=200, height=40, width=41)),
        ("steps", Sizes(tasks=1, classes=3, channels=600, height=200, width=201)),  # 96 MB: on no GPU's chip
    ],
)
def test_ten_thousand_repeats_have_the_same_bits(kernel: str, sizes: Sizes) -> None:
    """The barrier of the grid and the hand-over to the last block order memory, which the emulator cannot test."""
    size = (sizes.tasks, sizes.classes, sizes.channels, sizes.height, sizes.width)
    assert plan_inner_opt(*size, torch.float32, limits())["kernel"] == kernel
    sample = next(s for s in SAMPLES if s.name == "inner_opt")
    args = sample.arguments(sizes, torch.float32, gradients=True)
    expected = run(sample, args)
    different = torch.zeros((), dtype=torch.bool)
    for _ in range(10_000):
        for x, y in zip(run(sample, args), expected, strict=True):
            different |= (x != y).any()
    assert not different


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_has_the_bits_of_its_tasks(dtype: torch.dtype) -> None:
    """At full size, where a batch takes other launches than one task: several tasks at a time, and several rounds."""
    features = torch.randn(5, 512, 53, 53).to(dtype)
    prototypes = torch.nn.functional.normalize(torch.randn(5, 2, 512), dim=2)
    target = torch.randint(0, 2, (5, 53, 53))
    batch = fewseg_ext.inner_opt(features, prototypes, target)
    for i in range(5):
        assert torch.equal(
            batch[i : i + 1], fewseg_ext.inner_opt(*(x[i : i + 1] for x in (features, prototypes, target)))
        )


def test_debug_mode_raises_for_wrong_labels() -> None:
    target = torch.full((1, 3, 3), 7)
    features, prototypes = torch.randn(1, 4, 3, 3), torch.randn(1, 2, 4)
    assert fewseg_ext.inner_opt(features, prototypes, target).isnan().all()
    fewseg_ext.set_debug(True)
    try:
        with pytest.raises(ValueError, match="target has the label 7"):
            fewseg_ext.inner_opt(features, prototypes, target)
    finally:
        fewseg_ext.set_debug(False)


def test_a_tensor_on_the_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="prototypes is on cpu, but features is on cuda"):
        fewseg_ext.cosine_logits(torch.randn(1, 4, 3, 3), torch.randn(1, 2, 4, device="cpu"))
