"""Models: backbones, prototypes, BiOpt and the prototype baseline."""

from fewseg_ext.models.backbones import build_backbone
from fewseg_ext.models.biopt import BiOpt, PrototypeBaseline, QueryState, SegmentationOutput, SupportState

__all__ = ["BiOpt", "PrototypeBaseline", "QueryState", "SegmentationOutput", "SupportState", "build_backbone"]
