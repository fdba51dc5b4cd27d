"""The README's picture of `Segmenter`: one labelled generated picture, two others of the class segmented.

`fewseg demo` trains the model that it uses:

    fewseg demo --out runs/demo
    python benchmarks/segmenter_picture.py --demo runs/demo --out docs/images/own_photos.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from real_photos import ROOT

import fewseg_ext
from fewseg_ext.segment.result import draw_overlay

SIDE, GAP, LINE = 220, 8, 22


def heat(uncertainty: np.ndarray) -> Image.Image:
    """Dark where certain, bright where undecided between two classes."""
    level = np.clip(uncertainty / np.log(2), 0, 1)[..., None]
    return Image.fromarray((level * (255, 200, 60) + (1 - level) * (30, 20, 60)).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo", help="what `fewseg demo` wrote")
    parser.add_argument("--name", default="ringed_star", help="an unseen class")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "own_photos.png")
    options = parser.parse_args()
    folder = options.demo / "data" / "unseen" / options.name
    segmenter = fewseg_ext.Segmenter.from_checkpoint(options.demo / "biopt.ckpt", size=128)
    segmenter.fit(folder / "1.jpg", folder / "1.png")
    with Image.open(folder / "1.jpg") as photo, Image.open(folder / "1.png") as mask:
        labelled = draw_overlay(np.array(photo), np.array(mask) // 255, [1])
    cells = [("labelled", labelled)]
    for number in (2, 3):
        result = segmenter.predict(folder / f"{number}.jpg")
        cells += [("segmented", result.overlay()), ("its uncertainty", heat(result.uncertainty))]
    sheet = Image.new("RGB", (len(cells) * (SIDE + GAP) + GAP, SIDE + LINE + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (title, picture) in enumerate(cells):
        left = GAP + index * (SIDE + GAP)
        draw.text((left, GAP), title, fill="black")
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, LINE))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
