"""Label one photo or a few, and have a folder segmented.

    python examples/segment_a_folder.py photos --label photos/1.jpg photos/1.png --out masks

Nothing is trained: the features are those of MobileNetV2 as pretrained on ImageNet. ``--checkpoint`` takes a model of
``fewseg train`` instead. ``fewseg segment`` does all of this and more on the command line.
"""

import argparse
from pathlib import Path

from PIL import Image

import fewseg_ext


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--label", nargs=2, action="append", required=True, metavar=("PHOTO", "MASK"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="a trained model instead of a pretrained backbone")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="of the backbone: a name or a file")
    parser.add_argument("--size", type=int, default=417, help="what the model sees; a checkpoint's is its training's")
    options = parser.parse_args(arguments)

    if options.checkpoint is not None:
        segmenter = fewseg_ext.Segmenter.from_checkpoint(options.checkpoint, size=options.size)
    else:
        segmenter = fewseg_ext.Segmenter.from_pretrained_backbone("mobilenet_v2", options.weights, size=options.size)
    segmenter.fit([photo for photo, _ in options.label], [mask for _, mask in options.label])

    labelled = {Path(photo).resolve() for photo, _ in options.label}
    photos = [path for path in sorted(options.photos.glob("*.jpg")) if path.resolve() not in labelled]
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for result in segmenter.predict_many(photos):
        name = Path(result.path).stem
        Image.fromarray(result.mask).save(options.out / f"{name}.png")
        result.overlay().save(options.out / f"{name}_overlay.jpg")
        results.append((result.uncertainty.mean(), name, result.area))

    print("least certain first: label that one next")
    for uncertainty, name, area in sorted(results, reverse=True):
        print(f"{name:>20}  {uncertainty:.3f} nats   {100 * area:5.1f} % of the photo")


if __name__ == "__main__":
    main()
