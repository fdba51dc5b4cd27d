"""A fitted segmenter as one file that runs without this package's Python code."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from fewseg_ext import ops
from fewseg_ext.data.transforms import normalize
from fewseg_ext.files import temporary_path
from fewseg_ext.models.biopt import PrototypeModel, QueryState, SupportState
from fewseg_ext.models.vpi import VPI
from fewseg_ext.segmenter import Segmenter, sample_logits


class Predictor(nn.Module):
    """Model and support in one: RGB in [0, 1], float32 [1,3,size,size] -> probabilities [1,K,size,size]."""

    def __init__(self, segmenter: Segmenter, steps: int | None) -> None:
        super().__init__()
        self.model = segmenter.model
        self.steps = steps
        self.state_class = type(segmenter.fitted.state)
        for name, value in vars(segmenter.fitted.state).items():
            self.register_buffer(f"support_{name}", value)
        self.names = tuple(vars(segmenter.fitted.state))

    def forward(self, image: Tensor) -> Tensor:
        state = self.state_class(**{name: getattr(self, f"support_{name}") for name in self.names})
        query = self.model.encode_query(normalize(image))
        if isinstance(self.model, PrototypeModel):
            assert isinstance(state, SupportState) and isinstance(query, QueryState)
            # As `predict`, which switches autocast off first: torch.export.load knows no autocast regions.
            stages = self.model._prototype_stages(state.prototypes, query.features, self.steps)
            prototypes = list(stages.values())[-1]
            logits = ops.cosine_logits(query.features, prototypes, self.model.scale)[:, None]
        else:
            logits = sample_logits(self.model, state, query, self.steps)
        return ops.mc_average(logits, (image.shape[-2], image.shape[-1]))


def export_segmenter(segmenter: Segmenter, path: str | os.PathLike[str], steps: int | None, compiled: bool) -> None:
    """See :meth:`fewseg_ext.Segmenter.export`."""
    segmenter._check_steps(steps)
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"export: expected a file name that ends in .pt2, got {path.name!r}")
    if isinstance(segmenter.model, VPI) and not segmenter.model.deterministic:
        # Its samples are drawn with a generator, which a program cannot hold.
        raise ValueError("export: VPI draws samples and cannot be exported; a deterministic VPI or BiOpt can")
    example = torch.zeros(1, 3, segmenter.size, segmenter.size, device=segmenter.device)
    with torch.no_grad():
        program = torch.export.export(Predictor(segmenter, steps).eval(), (example,), strict=False)
    with temporary_path(path.parent) as folder:
        folder.mkdir()
        # torch wants the ending.
        temporary = folder / path.name
        if compiled:
            torch._inductor.aoti_compile_and_package(program, package_path=str(temporary))
        else:
            torch.export.save(program, temporary)
        os.replace(temporary, path)
