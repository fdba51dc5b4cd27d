"""What lets every CUDA operator be captured in a CUDA graph, as far as the sources show it: the host side neither waits
for the GPU nor takes memory that torch does not know of. test_gpu.py captures them where there is a GPU.
"""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
HOST_CODE = sorted(
    path for folder in ("cuda", "common") for path in (CSRC / folder).iterdir() if path.suffix in (".h", ".cuh", ".cu")
)

# All that is called of CUDA: launches, and questions that are answered without the GPU. No copy, no wait, no memory.
CUDA_CALLS = {
    "cudaDeviceGetAttribute",
    "cudaFuncSetAttribute",
    "cudaGetDevice",
    "cudaGetErrorString",
    "cudaLaunchCooperativeKernel",
    "cudaLaunchKernel",
}
# And of torch: tensors of torch's caching allocator, views and copies of them on the current stream. An item() or a
# copy to the CPU would wait for the GPU.
TORCH_CALLS = {
    "aten::convolution",
    "aten::convolution_backward",
    "aten::permute",
    "contiguous",
    "copy_",
    "empty_like",
    "narrow",
    "new_zeros",
    "reshape",
    "select",
    "to",
    "view",
}


def code(path: Path) -> str:
    """Without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("path", HOST_CODE, ids=lambda path: path.name)
def test_host_code_neither_waits_nor_allocates(path: Path) -> None:
    text = code(path)
    assert set(re.findall(r"\bcuda[A-Z]\w*(?=\()", text)) <= CUDA_CALLS
    called = set(re.findall(r"torch::stable::(\w+)\(", text)) | set(re.findall(r'"(aten::\w+)"', text))
    assert called <= TORCH_CALLS
    # Memory that kernels see comes from make() and new_zeros() alone: a std::vector's would be the host's.
    assert not re.search(r"\b(malloc|new \w+\[|cub::|thrust::)", text)


def test_tensors_are_converted_on_their_device() -> None:
    """torch::stable::to with a device, the fourth argument, would be a copy, and a wait."""
    calls = [call for path in HOST_CODE for call in re.findall(r"torch::stable::to\(([^()]*)\)", code(path))]
    assert calls
    for call in calls:
        tensor, dtype, *rest = (part.strip() for part in call.split(","))
        assert (tensor, dtype) == ("tensor", "type")
        assert not rest or rest[1] == "std::nullopt", call
