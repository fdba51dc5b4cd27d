"""Loads the native operator library and registers what the stable ABI leaves to Python.

The kernels live in ``libfewseg_ops.so`` and are reached through torch's dispatcher. C++ holds the schemas and the
kernels; autograd, autocast and the shape rules (fake kernels) are registered from here, op by op.
"""

import os
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fewseg_ext.ops import _checks

_PACKAGE = Path(__file__).resolve().parents[1]

# The kernels check labels on the CPU and can raise nothing but RuntimeError; this is how their message begins.
_BAD_LABEL = "target has the label"


def _find(name: str) -> Path:
    """A library of this package. Python that runs in the source folder, or after an editable installation, finds the
    package there and the kernels only where they were installed."""
    if not (_PACKAGE / name).is_file() and (_PACKAGE.parent / "CMakeLists.txt").is_file():
        return Path(sysconfig.get_path("platlib"), "fewseg_ext", name)
    return _PACKAGE / name


def _warn_of_newer_sources(library: Path) -> None:
    """Beside sources that can be edited: edits of Python are seen at once, those of C++ when it is built again."""
    root = _PACKAGE.parent
    sources = [root / "CMakeLists.txt", *(p for folder in ("cmake", "csrc") for p in (root / folder).rglob("*.*"))]
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > library.stat().st_mtime:
        warnings.warn(
            f"{newest.relative_to(root)} is newer than the compiled kernels in {library.parent}: install again, with "
            "the command that installed them, or the edit has no effect",
            stacklevel=2,
        )


def _load(name: str) -> None:
    path = _find(name)
    if not path.is_file():
        raise ImportError(
            f"fewseg_ext's native library is missing ({name} is not beside the package). Build and install it "
            "with `pip install .` from the source folder; the sources alone do not work, because the kernels have to "
            "be compiled."
        )
    if path.parent != _PACKAGE:
        _warn_of_newer_sources(path)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"fewseg_ext's native library {name} does not load under torch {torch.__version__}: {error}. It needs "
            "torch >= 2.10; reinstall it with `pip install --no-build-isolation .` from the source folder."
        ) from error


def _load_all() -> bool:
    """Loads what fits the running torch; returns whether the CUDA kernels are among it."""
    if os.environ.get("FEWSEG_EMULATE_CUDA"):
        # Tests only: the CUDA kernels in the emulator, instead of the CPU kernels.
        _load("libfewseg_ops_emulated.so")
        return False
    _load("libfewseg_ops.so")
    # The CUDA library needs libtorch_cuda, which a CPU torch does not have; a GPU it does not need to be loaded.
    if torch.version.cuda is None or not _find("libfewseg_ops_cuda.so").is_file():
        return False
    _load("libfewseg_ops_cuda.so")
    return True


has_cuda_kernels = _load_all()
library = torch.library.Library("fewseg", "FRAGMENT")

below_autograd = torch._C._AutoDispatchBelowAutograd


def _with_defaults(op: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Calls ``kernel`` with every argument of the schema: torch leaves out those at the end that have their default."""
    defaults = [argument.default_value for argument in getattr(torch.ops.fewseg, op).default._schema.arguments]

    def call(*args: Any) -> Any:
        return kernel(*args, *defaults[len(args) :])

    return call


def register_fake(op: str, kernel: Callable[..., Any]) -> None:
    """The result's shapes, dtypes and layout from the arguments', for torch.compile and export."""
    torch.library.register_fake(f"fewseg::{op}", _with_defaults(op, kernel), lib=library)


def _without_cuda(op: str) -> Callable[..., Any]:
    """The CUDA kernel of a build that has none."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"fewseg_ext.{op}: got CUDA tensors, but this installation has no CUDA kernels. Rebuild it with an nvcc on "
            "the PATH (pip install nvidia-cuda-nvcc): "
            "pip install --no-build-isolation -C cmake.define.FEWSEG_CUDA=ON ."
        )

    return kernel


def register_autograd(op: str, kernel: Callable[..., Any]) -> None:
    """What runs for ``torch.ops.fewseg.<op>`` above the CPU or CUDA kernel."""
    complete = _with_defaults(op, kernel)

    def outside_transforms(*args: Any) -> Any:
        # An autograd Function cannot be applied inside the dispatcher while a transform is at work.
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                f"torch.ops.fewseg.{op} does not work under torch.func transforms; call fewseg_ext.{op} instead"
            )
        return complete(*args)

    library.impl(op, outside_transforms, "Autograd")
    if not has_cuda_kernels:
        library.impl(op, _without_cuda(op), "CUDA")


# What autocast makes of an operator's arguments.
_autocasts: dict[torch._ops.OpOverload, Callable[[tuple[Any, ...]], tuple[Any, ...]]] = {}


def register_autocast(op: str, features: bool = True) -> None:
    """What runs first under ``torch.autocast``: floating tensors become float32, or stay as they are beside float64.

    Bool masks become float32 too: they say nothing of the result's dtype, which is to be float32 like the others'.

    Args:
        op: the operator.
        features: whether the first argument is a feature map, which is taken as it comes.
    """
    overload = getattr(torch.ops.fewseg, op).default

    def cast(index: int, x: Any, first: Tensor) -> Any:
        if not isinstance(x, Tensor) or first.dtype == torch.float64 or (features and index == 0):
            return x
        return x.to(torch.float32) if x.is_floating_point() or x.dtype == torch.bool else x

    _autocasts[overload] = lambda args: tuple(cast(index, x, args[0]) for index, x in enumerate(args))

    for backend in ("CPU", "CUDA"):
        key = f"Autocast{backend}"
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def outside_autocast(*args: Any, _keys: Any = keys) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(_keys):
                return overload(*_autocasts[overload](args))

        library.impl(op, outside_autocast, key)


class _NoSecondDerivative(torch.autograd.Function):
    """Runs a backward op and lets nobody differentiate it: a silent zero would be a wrong number."""

    generate_vmap_rule = True

    @staticmethod
    def forward(op: Any, name: str, *args: Any) -> Any:
        with below_autograd():
            return op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError(
            f"fewseg::{ctx.name} cannot be differentiated twice: the gradient of its gradient is not implemented"
        )


def define_backward(op: str) -> Callable[..., Any]:
    """Returns what an autograd Function calls for ``fewseg::_<op>_backward``; differentiating that call raises."""
    name = f"_{op}_backward"
    overload = getattr(torch.ops.fewseg, name).default

    if not has_cuda_kernels:
        # Operators whose backward needs nothing but their arguments have no raw forward.
        if hasattr(torch.ops.fewseg, f"_{op}_forward"):
            library.impl(f"_{op}_forward", _without_cuda(op), "CUDA")
        library.impl(name, _without_cuda(op), "CUDA")

    def call(*args: Any) -> Any:
        if needs_gradient(*(x for x in args if isinstance(x, Tensor))):
            return _NoSecondDerivative.apply(overload, op, *args)
        with below_autograd():
            return overload(*args)

    library.impl(name, call, "Autograd")  # also for who calls the raw operator
    return call


def differentiable(function: type[torch.autograd.Function], results: int = 1) -> Callable[..., Any]:
    """Returns what applies ``function`` and gives its first ``results`` results; the others are for the backward only.

    ``function`` has the ``setup_context`` form that torch.func needs. Applying that form takes as long as several
    kernels of small calls, and its additional results become outputs of the graph; so outside of torch.func the same
    three methods run in the older form.
    """

    def wanted_of(outputs: Any) -> Any:
        if isinstance(outputs, Tensor):
            return outputs
        return outputs[0] if results == 1 else tuple(outputs[:results])

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            outputs = function.forward(*args)
            function.setup_context(ctx, args, outputs)
            return wanted_of(outputs)

        backward = staticmethod(function.backward)

    class Whole(function):  # type: ignore[valid-type, misc]
        # vmap calls forward and backward slice by slice: torch has that for every operator without a rule of its own.
        generate_vmap_rule = True

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[results:])
            function.setup_context(ctx, inputs, output)

    Direct.__name__ = Direct.__qualname__ = Whole.__name__ = Whole.__qualname__ = function.__name__

    def call(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return wanted_of(Whole.apply(*args))
        return Direct.apply(*args)

    return call


def checked_late(
    kernel: torch._ops.OpOverload, with_gradient: Callable[..., Any], check: Callable[..., None], differentiable: int
) -> Callable[..., Any]:
    """Returns what runs an operator: the kernel alone, or ``with_gradient`` where autograd has to see the call.

    The kernels check their arguments themselves. ``check``, which says in better words what is wrong, runs once one of
    them has failed: to run it first took as long as a small kernel.

    Args:
        kernel: the operator below autograd.
        with_gradient: of the same arguments, see `differentiable`.
        check: of the same arguments; raises ValueError or TypeError.
        differentiable: how many arguments, the first ones, may need a gradient.
    """

    def apply(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active() and _is_autocast(args[0]):
            args = _autocasts[kernel](args)
        if _checks.debug():
            check(*args)
        try:
            if needs_gradient(*args[:differentiable]):
                return with_gradient(*args)
            with below_autograd():
                return kernel(*args)
        except Exception as error:
            problem = error
        # Outside of the handler, so that a traceback begins with the better words.
        check(*args)
        raise translate(problem) if isinstance(problem, RuntimeError) else problem

    return apply


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd has to see a call with these arguments.

    Forward mode counts too: the autograd Functions have no jvp and say so, where the bare kernel would drop the
    tangents without a word. So do torch.func transforms: a slice under vmap does not know whether the whole needs one.
    """
    if torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def through_dispatcher(features: Tensor) -> bool:
    """Whether a public function has to go through ``torch.ops`` instead of calling its autograd Function directly:
    when it is being traced, and under autocast, whose casts are registered there. Under torch.func transforms it
    cannot, and `checked_late` casts."""
    if torch.compiler.is_compiling():
        return True
    return _is_autocast(features) and not torch._C._are_functorch_transforms_active()


def _is_autocast(features: Any) -> bool:
    # What is no tensor goes on to the checks, which say so.
    return isinstance(features, Tensor) and torch.is_autocast_enabled(features.device.type)


def is_traced(x: Tensor) -> bool:
    """Whether a call is being recorded, by torch.compile or torch.export, instead of computed."""
    return torch.compiler.is_compiling() or isinstance(x, (FakeTensor, FunctionalTensor))


def translate(error: RuntimeError) -> Exception:
    """The exception to raise for what a kernel raised: a bad label is the caller's ValueError."""
    text = str(error)
    return ValueError(text) if _BAD_LABEL in text else error


def is_channels_last(features: Tensor) -> bool:
    """Whether the kernels take the features as channels-last; what is both counts as NCHW."""
    return not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)


def like_features(features: Tensor) -> Tensor:
    """An empty gradient in the layout that the kernels give it: channels-last for channels-last, else NCHW."""
    if not is_channels_last(features):
        return features.new_empty(features.shape)
    return torch.empty_like(features, memory_format=torch.channels_last)


def accumulator_dtype(features: Tensor) -> torch.dtype:
    """What the kernels sum and keep their intermediate results in."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def wanted(gradient: Tensor, needed: bool) -> Tensor | None:
    """A backward op returns an empty tensor for a gradient that nobody needs."""
    return gradient if needed else None


def wanted_as(gradient: Tensor, ctx: Any, index: int) -> Tensor | None:
    """The same for the gradient of the saved tensor ``index``, in that tensor's dtype."""
    return gradient.to(ctx.saved_tensors[index].dtype) if ctx.needs_input_grad[index] else None


def fake_cosines(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes of what the cosine operators keep: cosine [B,K,H*W] and inverse_norm [B,H*W]."""
    tasks, classes, pixels = features.shape[0], prototypes.shape[1], features.shape[2] * features.shape[3]
    dtype = accumulator_dtype(features)
    return features.new_empty((tasks, classes, pixels), dtype=dtype), features.new_empty((tasks, pixels), dtype=dtype)


def fake_cosines_backward(gradient: Tensor, features: Tensor, prototypes: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Shapes of the cosine operators' gradients; the last two arguments say which are needed."""
    needs_features, needs_prototypes = rest[-2:]
    d_features = like_features(features) if needs_features else features.new_empty(0)
    size = (features.shape[0] if needs_prototypes else 0, *prototypes.shape[1:])
    return d_features, features.new_empty(size, dtype=accumulator_dtype(features))
