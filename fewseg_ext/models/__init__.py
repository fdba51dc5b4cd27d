"""Models: backbones, prototypes, BiOpt and the prototype baseline."""

from fewseg_ext.models.backbones import build_backbone, freeze_batch_norm
from fewseg_ext.models.biopt import BiOpt, PrototypeBaseline, QueryState, SegmentationOutput, SupportState
from fewseg_ext.models.registry import build_model

__all__ = [
    "BiOpt",
    "PrototypeBaseline",
    "QueryState",
    "SegmentationOutput",
    "SupportState",
    "build_backbone",
    "build_model",
    "freeze_batch_norm",
]
