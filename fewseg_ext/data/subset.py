"""Some classes of a source."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewseg_ext.data.photos import PhotoSource
from fewseg_ext.data.transforms import SOURCE_IGNORE


class ClassSubset(PhotoSource):
    """Some classes of a source, as an `ImageSource`.

    Args:
        source: the whole.
        class_ids: the classes to keep, in their new order.
        ignored: classes whose pixels do not count; those of the others are background.
    """

    def __init__(self, source: PhotoSource, class_ids: Sequence[int], ignored: Sequence[int] = ()) -> None:
        self.source = source
        self.class_ids = list(class_ids)
        # The label of class c is c + 1, and the first entry is for SOURCE_IGNORE.
        self._new_label = torch.zeros(len(source.class_names) + 2, dtype=torch.int16)
        self._new_label[0] = SOURCE_IGNORE
        for new, class_id in enumerate(self.class_ids):
            self._new_label[class_id + 2] = new + 1
        for class_id in ignored:
            self._new_label[class_id + 2] = SOURCE_IGNORE
        names = [source.class_names[class_id] for class_id in self.class_ids]
        self.title = f"{source.title}, {', '.join(names)}"
        super().__init__(names, [source.photos[class_id] for class_id in self.class_ids])

    def image_id(self, class_id: int, index: int) -> str:
        """The source's own."""
        return self.source.image_id(self.class_ids[class_id], index)

    def read(self, class_id: int, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 [3,h,w] and labels int16 [h,w]."""
        image, labels = self.source.read(self.class_ids[class_id], index)
        return image, self._relabelled(labels)

    def read_labels(self, class_id: int, index: int) -> Tensor:
        """The labels alone, int16 [h,w]."""
        return self._relabelled(self.source.read_labels(self.class_ids[class_id], index))

    def _relabelled(self, labels: Tensor) -> Tensor:
        return self._new_label[labels.long() + 1]
