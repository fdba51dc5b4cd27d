"""Few-shot segmentation: native operators for PyTorch, and the BiOpt and VPI models built on them.

Importing this package loads the operators. The models are loaded when they are first used, and with them torchvision.
"""

from typing import TYPE_CHECKING, Any

from fewseg_ext.ops import (
    cosine_cross_entropy,
    cosine_logits,
    gaussian_aggregate,
    gaussian_sample,
    inner_opt,
    masked_avg_pool,
    mc_average,
    mc_uncertainty,
    sample_prototypes,
    set_debug,
    tiled_conv2d,
)

if TYPE_CHECKING:
    from fewseg_ext.models.biopt import BiOpt, PrototypeBaseline
    from fewseg_ext.models.vpi import VPI
    from fewseg_ext.segmenter import Segmenter

__version__ = "0.1.0"

_LAZY = {
    "BiOpt": "fewseg_ext.models.biopt",
    "PrototypeBaseline": "fewseg_ext.models.biopt",
    "Segmenter": "fewseg_ext.segmenter",
    "VPI": "fewseg_ext.models.vpi",
}

__all__ = [
    "VPI",
    "BiOpt",
    "PrototypeBaseline",
    "Segmenter",
    "cosine_cross_entropy",
    "cosine_logits",
    "gaussian_aggregate",
    "gaussian_sample",
    "inner_opt",
    "masked_avg_pool",
    "mc_average",
    "mc_uncertainty",
    "sample_prototypes",
    "set_debug",
    "tiled_conv2d",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fewseg_ext' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
