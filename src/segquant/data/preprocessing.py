"""How pixels become a model's input, as its preprocessor_config.json says; sizes and cropping are the protocol's.

transformers' own processor class fills in what the file leaves out, and is run once on every pixel value: a file whose
processor does more than this module knows is refused. Only classes are built that are known to read no file: some open
a file or ask the hub for what the JSON names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segquant.base.errors import ModelError, one_line
from segquant.base.files import parse_json, read_json
from segquant.base.validate import shown

PREPROCESSOR = "preprocessor_config.json"
_ORDER = {"RGB": [0, 1, 2], "BGR": [2, 1, 0]}
# The processors of transformers' models for semantic segmentation by the model's type, and others that files name.
# Each one rescales, normalizes and flips pixels, and reads nothing.
_OF_TYPE = {
    "beit": "Beit",
    "data2vec-vision": "Beit",
    "dpt": "DPT",
    "mobilenet_v2": "MobileNetV2",
    "mobilevit": "MobileViT",
    "mobilevitv2": "MobileViT",
    "segformer": "Segformer",
    "upernet": "Segformer",
}
_PROCESSORS = sorted({*_OF_TYPE.values(), "Bit", "CLIP", "ConvNext", "DeiT", "ViT"})
_SIZES = ("do_resize", "do_center_crop", "do_pad")  # are the protocol's


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _as_json(value: Any) -> str:
    """A value as its file has it, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _positive(name: str, value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{name} must be a number above 0, not {_as_json(value)}")
    return float(value)


def _three(name: str, value: Any, positive: bool = False) -> tuple[float, float, float]:
    """A number for each channel; a single number is every channel's, as in transformers."""
    values = [value] * 3 if _is_number(value) else value
    numbers = isinstance(values, Sequence) and len(values) == 3 and all(map(_is_number, values))
    if not numbers or (positive and min(values) <= 0):
        kind = "numbers above 0" if positive else "finite numbers"
        raise ValueError(f"{name} must be three {kind}, not {_as_json(value)}")
    first, second, third = map(float, values)
    return first, second, third


@dataclass(frozen=True)
class Preprocessing:
    """Pixels of 0 to 255 become (value * scale - mean) / std, channel by channel in the order of `channels`.

    `mean` and `std` are in that order too; `resample` is the name of Pillow's filter for the protocol's resize. The
    defaults are ImageNet's, which SegFormer was trained with.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    channels: str = "RGB"
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _three("mean", self.mean))
        object.__setattr__(self, "std", _three("std", self.std, positive=True))
        object.__setattr__(self, "scale", _positive("scale", self.scale))
        if not isinstance(self.channels, str) or self.channels not in _ORDER:
            raise ValueError(f"channels must be RGB or BGR, not {shown(self.channels)}")
        if not isinstance(self.resample, str) or self.resample.upper() not in Image.Resampling.__members__:
            raise ValueError(f"resample must be one of Pillow's filters, not {shown(self.resample)}")
        with np.errstate(all="ignore"):
            divisors = np.array([*self.std, self.scale], np.float32)
            if not np.isfinite([*self._table.ravel(), *divisors, *1 / divisors]).all():
                raise ValueError(
                    f"mean {shown(self.mean)}, std {shown(self.std)} and scale {shown(self.scale)} make pixels that "
                    "float32 cannot hold"
                )

    @property
    def filter(self) -> Image.Resampling:
        return Image.Resampling[self.resample.upper()]

    @cached_property
    def _table(self) -> np.ndarray:
        """What each value becomes, float32 (3, 256), rounded step by step as transformers rounds."""
        values = (np.arange(256) * self.scale).astype(np.float32)
        mean, std = (np.array(three, np.float32)[:, None] for three in (self.mean, self.std))
        return (values - mean) / std

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        """An RGB image uint8 (H, W, 3) as the model's input, float32 (3, H, W)."""
        pixels = np.asarray(image)
        values = np.empty((3, *pixels.shape[:2]), np.float32)
        for row, channel, target in zip(self._table, _ORDER[self.channels], values):
            row.take(pixels[..., channel], out=target, mode="clip")  # any other mode copies `target`
        return torch.from_numpy(values)

    def to_json(self) -> dict[str, Any]:
        """The fields as graphs' metadata `preprocessing` hold them, without `resample` where it is bilinear."""
        fields = {"channels": self.channels, "scale": self.scale, "mean": list(self.mean), "std": list(self.std)}
        return fields if self.resample == "bilinear" else {**fields, "resample": self.resample}

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Read what `to_json` gives, as JSON. Raises ValueError for a key or value that it cannot hold."""
        fields = parse_json(text)
        if not isinstance(fields, dict) or not {"mean", "std"} <= fields.keys():
            raise ValueError("it must be a JSON object with mean and std")
        fields.pop("multiple_of", None)  # of sizes
        unknown = sorted(fields.keys() - {"mean", "std", "scale", "channels", "resample"})
        if unknown:
            raise ValueError(f"it has the key '{unknown[0]}'")
        return cls(**fields)


IMAGENET = Preprocessing()


def read_preprocessing(folder: str | Path) -> Preprocessing:
    """What the preprocessor_config.json in a model's folder asks for; ImageNet's normalization without that file.

    Keys about sizes and cropping do not count, as the protocol has its own, and neither do those about labels, which
    the data set has. Raises ModelError, which names the key, for a file that cannot be followed whole.
    """
    path = Path(folder) / PREPROCESSOR
    other = path.with_name("processor_config.json")
    if not path.is_file():
        if other.is_file():
            raise ModelError(
                f"{folder} has a {other.name} but no {PREPROCESSOR}: write the image processor in it as that file "
                "(AutoImageProcessor.from_pretrained and save_pretrained)"
            )
        return IMAGENET
    _check_alone(path, other)
    processor = _processor(path)
    rescales, normalizes = (bool(getattr(processor, f"do_{verb}", None)) for verb in ("rescale", "normalize"))
    try:
        preprocessing = Preprocessing(
            mean=_three("image_mean", processor.image_mean) if normalizes else (0.0, 0.0, 0.0),
            std=_three("image_std", processor.image_std, positive=True) if normalizes else (1.0, 1.0, 1.0),
            scale=_positive("rescale_factor", processor.rescale_factor) if rescales else 1.0,
            channels="BGR" if getattr(processor, "do_flip_channel_order", None) else "RGB",
            resample=_filter(getattr(processor, "resample", None)),
        )
    except ValueError as error:
        raise ModelError(f"{path} cannot be followed: {error}") from error
    _check(path, processor, preprocessing)
    return preprocessing


def _check_alone(path: Path, other: Path) -> None:
    """Raise ModelError where the image processor in `other`, which transformers prefers, is not that of `path`."""
    settings = read_json(other) if other.is_file() else None
    processor = settings.get("image_processor") if isinstance(settings, dict) else None
    if processor is not None and processor != read_json(path):
        raise ModelError(
            f"{path} and the image_processor in {other.name} differ, and transformers takes the second: keep one"
        )


def _processor(path: Path) -> Any:
    """transformers' processor for the file. Without a type in the file, the model's type names it.

    Raises ModelError for one that is not of _PROCESSORS.
    """
    import transformers

    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ModelError(f"{path} is not a JSON object: copy the model's own file")
    name = settings.get("image_processor_type")
    name = settings.get("feature_extractor_type") if name is None else name  # 0 and "" are none, and refused below
    if name is None:
        config = read_json(path.with_name("config.json"))
        model_type = config.get("model_type") if isinstance(config, dict) else None
        if not isinstance(model_type, str) or model_type not in _OF_TYPE:
            raise ModelError(
                f"{path} names no image_processor_type, and neither does the model's type {shown(model_type)}: add it"
            )
        name = f"{_OF_TYPE[model_type]}ImageProcessor"
    # Files of 2021 to 2023 name the feature extractor that the processor was called then.
    name = str(name).removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    if name.removesuffix("ImageProcessor") not in _PROCESSORS or not name.endswith("ImageProcessor"):
        raise ModelError(
            f"{path} names the processor {name[:100]}, which is none of {', '.join(_PROCESSORS)}: where it rescales "
            "and normalizes alone, write SegformerImageProcessor with its mean and standard deviation"
        )
    try:
        return getattr(transformers, f"{name}Pil").from_dict(settings)
    except Exception as error:  # transformers raises many types
        raise ModelError(f"{path} cannot be read by transformers: {one_line(error)}") from error


def _check(path: Path, processor: Any, preprocessing: Preprocessing) -> None:
    """Raise ModelError unless the processor makes the same of every value in every channel."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([values, values + np.uint8(85), values + np.uint8(170)], axis=-1)  # uint8 wraps around
    off = {name: False for name in _SIZES if getattr(processor, name, None) is not None}
    try:
        expected = processor(image, return_tensors="pt", input_data_format="channels_last", **off)["pixel_values"][0]
        fits = torch.allclose(preprocessing(image), expected.float(), rtol=1e-5, atol=1e-5)
    except Exception as error:  # transformers raises many types
        raise ModelError(f"{path} cannot be followed: {type(processor).__name__} says {one_line(error)}") from error
    if not fits:
        raise ModelError(
            f"{path} cannot be followed: {type(processor).__name__} does more to pixels than rescaling, normalizing "
            "and flipping the order of channels"
        )


def _filter(value: Any) -> str:
    try:
        if isinstance(value, bool | float):  # transformers takes 0.0 for no filter at all
            raise ValueError
        return Image.Resampling(Image.Resampling.BILINEAR if value is None else value).name.lower()
    except ValueError:
        message = f"resample must be the number of one of Pillow's filters, 0 to 5, not {shown(value)}"
        raise ValueError(message) from None
