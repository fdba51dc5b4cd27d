"""The short way: scores and pictures of a model on an `EpisodeDataset`, at the resolution of its episodes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from fewseg_ext import ops
from fewseg_ext.data.episodes import IGNORE_INDEX, EpisodeDataset
from fewseg_ext.data.transforms import PairTransform
from fewseg_ext.evaluation.evaluator import DEFAULT_CACHE_BYTES, Evaluator, label_map
from fewseg_ext.evaluation.pictures import GridRow
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.models.episode_model import EpisodeModel


@dataclass(frozen=True)
class EvaluationResult:
    """Scores in per cent, and what they were measured on."""

    miou: float
    fb_iou: float
    class_iou: dict[str, float]  # by class name; NaN for a class that no episode drew
    episodes: int
    protocol: str


def evaluate(
    model: nn.Module,
    dataset: EpisodeDataset,
    *,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    progress: Callable[[int, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
) -> EvaluationResult:
    """Scores ``model`` on every episode of ``dataset`` with an `Evaluator`, at the size of the episodes' masks.

    Args:
        model: see `Evaluator`.
        dataset: the episodes; its transform may resize and nothing else.
        device: where the model is.
        num_workers: processes that read images.
        cache_bytes: see `Evaluator`.
        progress: called as ``progress(episodes_done, episodes_in_total)`` after every episode.
        part: see `Evaluator.run`.

    Raises:
        ValueError: an augmenting transform.
    """
    if type(dataset.transform) is not PairTransform or dataset.transform.flip:
        raise ValueError("evaluate: the episodes are augmented; scores need a PairTransform that only resizes")
    size = dataset.transform.size
    protocol = EvaluationProtocol(
        episodes=len(dataset),
        seeds=(dataset.seed,),
        ways=dataset.ways,
        shots=dataset.shots,
        input_size=size,
        square_size=size,
    )
    evaluator = Evaluator(
        model, dataset.source, protocol, device=device, num_workers=num_workers, cache_bytes=cache_bytes
    )
    scores = evaluator.run(dataset.seed, progress, part)["original" if size is None else "square"]
    return EvaluationResult(scores.miou, scores.fb_iou, scores.class_iou, len(dataset), str(protocol))


@torch.inference_mode()
def predict(model: nn.Module, batch: dict[str, Tensor], device: torch.device | str = "cpu") -> Tensor:
    """The predicted episode label maps int64 [B,h,w] of a batch of episodes, as large as its query masks.

    A model that draws samples draws the same ones for the same batch.
    """
    height, width = batch["query_masks"].shape[-2:]
    return label_map([_sample_logits(model, batch, device)], (height, width))


@torch.inference_mode()
def _sample_logits(model: nn.Module, batch: dict[str, Tensor], device: torch.device | str) -> Tensor:
    """[B,L,K,H,W], of one sample where the model draws none."""
    images, masks, queries = (batch[key].to(device) for key in ("support_images", "support_masks", "query_images"))
    if not isinstance(model, EpisodeModel):
        logits: Tensor = model(images, masks, queries).logits[:, None]
        return logits
    samples = torch.Generator(device).manual_seed(0)
    return model.sample_logits(model.encode_support(images, masks), model.encode_query(queries), generator=samples)


def example_rows(
    dataset: EpisodeDataset,
    models: Mapping[str, nn.Module],
    count: int,
    device: torch.device | str = "cpu",
    samples: int = 2,
) -> list[GridRow]:
    """The first episodes of different classes, not chosen by how well they went, for `draw_grid`.

    Args:
        dataset: the episodes, resized where the images differ in size.
        models: by column title, in eval mode.
        count: of rows, fewer where there are fewer classes.
        device: where the models are.
        samples: of a model that averages samples, so many single ones are shown, and the entropy of the average.
    """
    rows: list[GridRow] = []
    seen: set[int] = set()
    for index in range(len(dataset)):
        plan = dataset.plan(index)
        way = plan.query_way
        class_id = plan.class_ids[way - 1]
        if class_id in seen:
            continue
        seen.add(class_id)
        episode = dataset[index]
        batch = default_collate([episode])
        predictions: dict[str, Tensor] = {}
        uncertainties: dict[str, Tensor] = {}
        for name, model in models.items():
            height, width = episode["query_masks"].shape
            size = (height, width)
            logits = _sample_logits(model, batch, device)
            predictions[name] = label_map([logits], size)[0].cpu() == way
            if logits.shape[1] > 1:
                for sample in range(min(samples, logits.shape[1])):
                    one = label_map([logits[:, sample : sample + 1]], size)
                    predictions[f"{name}, sample {sample + 1}"] = one[0].cpu() == way
                uncertainties[f"{name}, entropy"] = ops.mc_uncertainty(logits, size)[2][0].float().cpu()
        rows.append(
            GridRow(
                title=dataset.source.class_names[class_id].replace("_", " "),
                support_image=episode["support_images"][way - 1, 0],
                support_mask=episode["support_masks"][way - 1, 0] == way,
                query_image=episode["query_images"],
                query_mask=episode["query_masks"] == way,
                query_ignored=episode["query_masks"] == IGNORE_INDEX,
                predictions=predictions,
                uncertainties=uncertainties,
            )
        )
        if len(rows) == count:
            break
    return rows
