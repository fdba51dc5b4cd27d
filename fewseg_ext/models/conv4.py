"""A small backbone that learns from scratch in minutes on a CPU."""

import torch.nn as nn
from torch import Tensor


class Conv4(nn.Module):
    """Four 3 x 3 convolutions with group normalisation, stride 4.

    Group instead of batch normalisation, because the batches of few-shot training are a handful of images and the
    statistics of an untrained network are worth nothing frozen. The last block ends without activation: prototypes are
    compared by angle, and features of one sign only fill one orthant of the space. The dilation of the last blocks
    lets a position see 43 pixels around.

    Args:
        out_channels: channels of the features.
        width: channels of the first block; the second has twice as many.
    """

    stride = 4

    def __init__(self, out_channels: int = 64, width: int = 24) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.pyramid_channels = (width, 2 * width, out_channels)
        self.blocks = nn.Sequential(
            _block(3, width, stride=2),
            _block(width, 2 * width, stride=2),
            _block(2 * width, out_channels, dilation=2),
            _block(out_channels, out_channels, dilation=2, activation=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B,3,h,w] float -> [B,out_channels,ceil(h/4),ceil(w/4)]."""
        return self.blocks(images)

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """The first two blocks' outputs, at strides 2 and 4, and the features: the finest first."""
        fine = self.blocks[0](images)
        middle = self.blocks[1](fine)
        return fine, middle, self.blocks[3](self.blocks[2](middle))


def _block(
    in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1, activation: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.GroupNorm(8, out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if activation else nn.Sequential(*layers)
