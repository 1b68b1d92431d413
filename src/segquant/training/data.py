"""Random, reproducible training crops of a labelled source."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import Dataset

from segquant.base.errors import ConfigError
from segquant.data.images import IGNORE, decode_annotation, decode_image
from segquant.data.protocols import IMAGENET, Normalization, normalize, resize_steps
from segquant.data.sources import Scenes


class Crops(Dataset):
    """Samples of an endless shuffled stream over `source`: images resized, cropped, flipped and re-lit.

    An image is brought to the size that `protocol` gives it (None: squashed to the crop's), times a random factor
    between the two of `scale`, and no smaller than the crop, which is `crop` pixels a side.

    `[i]` is a pure function of (seed, first + i), so that a resumed run sees what an unbroken one would
    have seen. Gives float32 (3, crop, crop) and int64 labels (crop, crop), 255 = ignore or no labels. Scenes,
    which take long to draw, are kept in memory as they are encoded.
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
        normalization: Normalization = IMAGENET,
    ):
        self.source, self.crop, self.scale, self.seed = source, crop, scale, seed
        self.first, self.length = first, length
        self.protocol, self.normalization = protocol, normalization
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
        place = int(self._order[position])
        row = self._rows.get(place) or self.source[place]
        if isinstance(self.source, Scenes):
            self._rows[place] = row
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
        image = image.resize(size, Image.Resampling.BILINEAR).crop(box)
        labels = labels.resize(size, Image.Resampling.NEAREST).crop(box)
        if rng.random() < 0.5:
            image, labels = (i.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for i in (image, labels))
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.75, 1.25))
        return normalize(image, self.normalization), torch.from_numpy(np.array(labels)).long()


def crop_size(crop: int | None, protocol: str, scale: tuple[float, float]) -> int:
    """`crop`, or where it is None the shorter side of the model's input by `protocol`.

    Raises ConfigError for one that no image fills, which would be enlarged and squashed to it.
    """
    own = min(resize_steps(protocol, 512, 512)[-1])
    if crop and crop > own * scale[1]:
        raise ConfigError(
            f"crop {crop} is larger than {protocol}'s images ({own} pixels, enlarged {scale[1]} times): "
            f"give at most {int(own * scale[1])}"
        )
    return crop or own


def class_weights(source, num_classes: int, balance: float, images: int = 400) -> torch.Tensor:
    """Loss weights float32 (num_classes,): (median class share / class share) ** balance, within [0.2, 5].

    Median frequency balancing (Eigen and Fergus, 2015) with an exponent; 0 weighs all alike. Shares are
    counted on the first `images` of the source; a class absent there weighs 1.
    """
    counts = np.zeros(256)
    for i in range(min(images, len(source))):
        counts += np.bincount(decode_annotation(source[i]["annotation"]).ravel(), minlength=256)
    counts = counts[:num_classes]
    weights = np.ones(num_classes)
    seen = counts > 0
    weights[seen] = np.clip((np.median(counts[seen]) / counts[seen]) ** balance, 0.2, 5)
    return torch.tensor(weights, dtype=torch.float32)
