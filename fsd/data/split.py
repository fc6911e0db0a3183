"""One split of a prepared data set, as every reader of it sees it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """N images, decoded and letterboxed, with their boxes. Opened by `store.open_split`."""

    name: str  # train, val or test
    classes: tuple[str, ...]  # K names; a label is a position here
    images: np.ndarray  # [N, S, S, 3] uint8, BGR, letterboxed (top left, pad 114); memory map
    offsets: np.ndarray  # [N + 1] int64: boxes of image i are rows offsets[i]:offsets[i + 1]
    boxes: np.ndarray  # [total, 4] float32 xyxy in pixels of the letterboxed image
    labels: np.ndarray  # [total] int64, 0..K-1
    difficult: (
        np.ndarray
    )  # [total] bool: neither to be found nor punished (VOC difficult, COCO crowd)
    original_boxes: np.ndarray  # [total, 4] float32 xyxy in pixels of the original image
    sizes: np.ndarray  # [N, 2] int64: height, width of the original image
    scales: np.ndarray  # [N] float64: letterboxed pixels per original pixel
    names: tuple[str, ...]  # file names, unique in the split
    groups: tuple[str, ...]  # video or scene of each image; '' where unknown

    def __len__(self) -> int:
        return len(self.images)

    @property
    def input_px(self) -> int:
        return self.images.shape[1]

    def rows(self, index: int) -> slice:
        """Where the boxes of image `index` lie in boxes, labels and difficult."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))
