"""What a training takes, as sections of params.yaml."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from segquant.base.validate import Pair, Section, Several, wrong


@dataclass(frozen=True)
class Phase(Section):
    """Part of a training with one size of crops and one batch size."""

    steps: int = Field(ge=1, description="Optimizer steps.")
    crop: int = Field(ge=32, description="Pixels a side.")
    batch_size: int = Field(ge=1, description="Images, of all processes together.")


@dataclass(frozen=True, kw_only=True)
class Training(Section):
    """What every training has: the optimizer, its schedule, and upkeep."""

    seed: int = Field(0, ge=0)
    lr: float = Field(1e-3, ge=0, description="The highest learning rate.")
    warmup: int = Field(200, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["poly", "cosine"] = Field("poly", description="How the learning rate falls to zero.")
    power: float = Field(1.0, ge=0, description="Exponent of the polynomial decay.")
    clip: float = Field(1.0, ge=0, description="Highest gradient norm; 0: no limit.")
    accumulate: int = Field(1, ge=1, description="Parts of a batch, one after the other, to save memory.")
    ema: float = Field(
        0.0,
        ge=0,
        le=0.99999,
        description="Decay of an exponential moving average, which replaces the weights; 0: none.",
    )
    amp: Literal["bfloat16", "float32"] = Field("bfloat16", description="Precision of the forward pass.")
    workers: int = Field(1, ge=0, description="Processes that draw and decode images.")
    checkpoint_every: int = Field(100, ge=1, description="Steps.")
    validate_every: int = Field(1000, ge=1, description="Steps.")
    validation_images: int = Field(64, ge=1)

    def result(self) -> dict[str, Any]:
        """The options that the trained weights depend on."""
        upkeep = {"workers", "checkpoint_every", "validate_every", "validation_images"}
        return {key: value for key, value in asdict(self).items() if key not in upkeep}


@dataclass(frozen=True, kw_only=True)
class Train(Training):
    """Training of the built-in model from random weights."""

    phases: Several[Phase]
    images: int | None = Field(None, ge=1, description="Images of the train split; null: all.")
    scale: float = Field(1.4, ge=1, description="Images are resized to between 1 and this many crops before cropping.")
    weight_decay: float = Field(0.01, ge=0)
    balance: float = Field(
        0.5, ge=0, description="Rare classes weigh (median share / share) ** balance in the loss; 0: all alike."
    )


@dataclass(frozen=True, kw_only=True)
class Distill(Training):
    """Training of a student on labels and on the predictions of a larger teacher."""

    teacher: str = Field(description="A folder or a hub id.")
    student: str = Field(description="A folder or a hub id; training starts from its weights.")
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    crop: int | None = Field(
        None, ge=32, description="Pixels a side; null: the shorter side of the model's input by the protocol."
    )
    weight_decay: float = Field(0.01, ge=0)
    alpha: float = Field(
        0.5, ge=0, le=1, description="Share of the teacher in the loss; labels have the rest. 1 needs no labels."
    )
    temperature: float = Field(2.0, ge=0.1, description="Softens both predictions.")
    images: int | None = Field(None, ge=1, description="Images of the train split; null: all.")
    scale: Pair[Annotated[float, Field(ge=0.1)]] = Field(
        (0.75, 1.5), description="Images are resized by a factor in this range before cropping."
    )

    def __post_init__(self) -> None:
        _no_url("teacher", self.teacher)
        _no_url("student", self.student)
        if self.scale[0] > self.scale[1]:
            raise wrong("scale", f"has the smaller factor last, {list(self.scale)}: give it first")


@dataclass(frozen=True, kw_only=True)
class Qat(Training):
    """Quantization-aware training that starts from the codes of calibration; `lr` is in codes a step."""

    steps: int = Field(ge=1)
    batch_size: int = Field(1, ge=1)
    crop: int | None = Field(
        None, ge=32, description="Pixels a side; null: the shorter side of the model's input by the protocol."
    )
    teacher: str = Field(
        "float32",
        description="float32: the model itself before quantization; none: the labels; else a folder or a hub id.",
    )
    range_learning: bool = Field(True, description="Learn scales and zeros too.")
    lr: float = Field(0.004, ge=0, description="Codes a step.")
    warmup: int = Field(20, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["poly", "cosine"] = Field("cosine", description="How the learning rate falls to zero.")

    def __post_init__(self) -> None:
        _no_url("teacher", self.teacher)


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Quantization-aware training of a graph with fake-quantized products; `lr` is AdamW's."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(4, ge=1)
    crop: int | None = Field(
        None, ge=64, description="Pixels a side; null: the shorter side of the model's input by the protocol."
    )
    lr: float = Field(1e-5, ge=0, description="The highest learning rate of AdamW.")
    warmup: int = Field(10, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["poly", "cosine"] = Field("cosine", description="How the learning rate falls to zero.")
    amp: Literal["bfloat16", "float32"] = Field("float32", description="Precision of the forward pass.")

    def __post_init__(self) -> None:
        if self.ema:
            raise ValueError("train of a graph takes no ema: the ranges of the graph do not fit averaged weights")


def _no_url(key: str, source: str) -> None:
    if "://" in source:
        raise wrong(key, "is a URL, whose files no digest covers here: give a folder or a hub id")
