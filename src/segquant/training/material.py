"""What a quantization-aware training works on, and the part that every one of them shares: train within a build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from segquant.base.config import Method, Phase
from segquant.base.errors import DataError
from segquant.base.files import digest, sha256
from segquant.base.hub import files
from segquant.data.preprocessing import Preprocessing
from segquant.evaluation.loop import Evaluation
from segquant.training.data import Crops
from segquant.training.loop import Record, announce, silent, train

Recording = Callable[[], AbstractContextManager[Record | None]]  # around a training
SCALE = (0.9, 1.3)  # of images before cropping: much smaller crops or other scales fit what evaluation does not see


class Material(NamedTuple):
    """The images to train on: rows, the names of their labels' classes (none without labels), and JSON that says
    which rows they are. `validate` evaluates a model on other rows; `as_labelled` says that the model's classes are
    the labels'."""

    rows: Sequence[dict]
    classes: Sequence[str]
    identity: Any
    protocol: str
    validate: Callable[[nn.Module], Evaluation] | None = None
    as_labelled: bool = True


def name_training(words: str, recipe: Method, models: Sequence[Path], identity: Any, protocol: str) -> str:
    """The recipe in words, and a digest of everything that the training's result depends on."""
    weights = [sha256(path) for folder in models for path in files(folder)]
    depends = [asdict(replace(recipe, train=None)), recipe.train.result(), weights, identity, protocol]
    return f"{words} [{digest(depends)[:16]}]"


@dataclass
class Trainer:
    """One training inside a build. A killed run continues from the file `checkpoint`, which the caller removes.

    `run` names the training, `steps` of `recipe.train` are on crops of `crop` pixels; `earlier` are the seconds that
    the training had taken before it was killed.
    """

    recipe: Method
    material: Material
    preprocessing: Preprocessing
    checkpoint: Path
    run: str
    crop: int
    steps: int
    recording: Recording = nullcontext
    earlier: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.material.rows):
            raise DataError("there are no images to train on")

    def announce(self, first: str) -> None:
        """Log what a run that continues does before it goes on with training."""
        announce(self.checkpoint, self.run, first)

    def train(
        self,
        model: nn.Module,
        loss: Callable[..., Any],
        groups: list[dict],
        validate: Callable[[nn.Module], Evaluation] | None,
    ) -> None:
        """Train the parameter `groups` of `model` in place."""
        options, material = self.recipe.train, self.material

        def samples(crop: int, first: int, length: int) -> Crops:
            return Crops(material.rows, crop, SCALE, options.seed, first, length, material.protocol, self.preprocessing)

        with self.recording() as record:
            self.earlier += train(
                model,
                samples,
                loss,
                options,
                (Phase(self.steps, self.crop, options.batch_size),),
                groups,
                checkpoint=self.checkpoint,
                run=self.run,
                validate=validate,
                record=record or silent,
            )

    def total(self, times: dict[str, Any]) -> dict[str, Any]:
        """A build's times with the seconds of earlier runs."""
        return {**times, "seconds": round(times["seconds"] + self.earlier, 3)} if "seconds" in times else times
