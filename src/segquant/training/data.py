"""Reproducible random training crops of a data source."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import Dataset

from segquant.base.errors import ConfigError
from segquant.data.images import IGNORE, decode_annotation, decode_image
from segquant.data.preprocessing import IMAGENET, Preprocessing
from segquant.data.protocols import resize_steps
from segquant.data.sources import Scenes


class Crops(Dataset):
    """`length` samples of an endless shuffled stream over `source`, from `first` on, with random augmentation.

    Each image is resized, cropped to `crop` x `crop` pixels, flipped half of the time, and changed in brightness,
    contrast and colour. It is resized to the size that `protocol` gives it (without a protocol, to the crop's size)
    times a random factor from the range `scale`, and to no less than the crop.

    Item i is a pure function of (seed, first + i), so that a resumed run sees the same samples as an unbroken one. It
    is an image float32 (3, crop, crop) and labels int64 (crop, crop), 255 = ignored or not labelled. Scenes take long
    to draw, so their encoded rows stay in memory.
    """

    def __init__(
        self,
        source,
        crop: int,
        scale: tuple[float, float],
        seed: int,
        first: int,
        length: int,
        protocol: str | None = None,
        preprocessing: Preprocessing = IMAGENET,
    ):
        self.source, self.crop, self.scale, self.seed = source, crop, scale, seed
        self.first, self.length = first, length
        self.protocol, self.preprocessing = protocol, preprocessing
        self._rows: dict[int, dict] = {}
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        index += self.first
        epoch, position = divmod(index, len(self.source))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.source))
        number = int(self._order[position])
        row = self._rows.get(number) or self.source[number]
        if isinstance(self.source, Scenes):
            self._rows[number] = row
        rng = np.random.default_rng([self.seed, 1, index])
        image = decode_image(row["image"], row["id"])
        if row["annotation"] is None:
            labels = Image.new("L", image.size, IGNORE)
        else:
            labels = Image.fromarray(decode_annotation(row["annotation"]))

        base = resize_steps(self.protocol, *image.size)[-1] if self.protocol else (self.crop, self.crop)
        factor = rng.uniform(*self.scale)
        size = tuple(max(self.crop, round(side * factor)) for side in base)
        left, top = rng.integers(0, [side - self.crop + 1 for side in size])
        box = (int(left), int(top), int(left) + self.crop, int(top) + self.crop)
        image = image.resize(size, self.preprocessing.filter).crop(box)
        labels = labels.resize(size, Image.Resampling.NEAREST).crop(box)
        if rng.random() < 0.5:
            image, labels = (picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in (image, labels))
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.75, 1.25))
        return self.preprocessing(image), torch.from_numpy(np.array(labels)).long()


def crop_size(crop: int | None, protocol: str, scale: tuple[float, float]) -> int:
    """`crop` in pixels, or if it is None the shorter side of the model's input under `protocol`.

    Raises ConfigError for a crop larger than every scaled image, which would have to be stretched to fill it.
    """
    side = min(resize_steps(protocol, 512, 512)[-1])
    if crop and crop > side * scale[1]:
        raise ConfigError(
            f"crop {crop} is larger than {protocol}'s images ({side} pixels, enlarged {scale[1]} times): "
            f"choose at most {int(side * scale[1])}"
        )
    return crop or side


def class_weights(source, num_classes: int, balance: float, images: int = 400) -> torch.Tensor:
    """Loss weights float32 (num_classes,): (median class share / class share) ** balance, within [0.2, 5].

    Median frequency balancing (D. Eigen and R. Fergus, 2015, https://arxiv.org/abs/1411.4734) with an exponent:
    `balance` 0 gives every class the weight 1. Shares are pixel counts of the first `images` of the source; a class
    without a pixel there weighs 1.
    """
    counts = np.zeros(256)
    for i in range(min(images, len(source))):
        counts += np.bincount(decode_annotation(source[i]["annotation"]).ravel(), minlength=256)
    counts = counts[:num_classes]
    weights = np.ones(num_classes)
    present = counts > 0
    weights[present] = np.clip((np.median(counts[present]) / counts[present]) ** balance, 0.2, 5)
    return torch.tensor(weights, dtype=torch.float32)
