"""Models: backbones, prototypes, BiOpt, VPI and the prototype baseline."""

from fewseg_ext.models.backbones import build_backbone, freeze_batch_norm
from fewseg_ext.models.biopt import BiOpt, PrototypeBaseline, QueryState, SegmentationOutput, SupportState
from fewseg_ext.models.registry import build_model
from fewseg_ext.models.vpi import VPI, GaussianState, PyramidState, UncertainOutput

__all__ = [
    "VPI",
    "BiOpt",
    "GaussianState",
    "PrototypeBaseline",
    "PyramidState",
    "QueryState",
    "SegmentationOutput",
    "SupportState",
    "UncertainOutput",
    "build_backbone",
    "build_model",
    "freeze_batch_norm",
]
