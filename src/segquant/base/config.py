"""params.yaml as frozen, checked dataclasses. No other module reads that file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from segquant.base.data import BY_POSITION, Columns, Data
from segquant.base.errors import ConfigError, one_line, system_reason
from segquant.base.keys import has_wandb_key
from segquant.base.recipes import (
    BASELINE,
    ENGINES,
    Auto,
    Calibration,
    Direct,
    Graph,
    Method,
    Override,
    Packed,
    Ranges,
    Recipe,
    SmallLayers,
)
from segquant.base.training import Distill, Finetune, Phase, Qat, Train, Training
from segquant.base.validate import Pair, Section, Several, as_mapping, build, shown, wrong
from segquant.base.yaml_file import read_yaml

__all__ = [
    "ALIGNED_PROTOCOL",
    "Auto",
    "BASELINE",
    "BY_POSITION",
    "Calibration",
    "Columns",
    "Data",
    "Distill",
    "ENGINES",
    "Eval",
    "FIXED_PROTOCOL",
    "Finetune",
    "Graph",
    "Method",
    "Model",
    "Override",
    "Packed",
    "Params",
    "Phase",
    "Qat",
    "Quant",
    "Ranges",
    "Recipe",
    "Review",
    "Sensitivity",
    "SmallLayers",
    "Speed",
    "Train",
    "Training",
    "Wandb",
    "as_mapping",
    "build",
    "check_protocol",
    "load",
]

WandbMode = Literal["offline", "online", "disabled"]
ALIGNED_PROTOCOL = "aligned-512-v1"
FIXED_PROTOCOL = re.compile(r"fixed-([1-9][0-9]{1,3})x([1-9][0-9]{1,3})-v1")
MOST_SIDE = 8192  # pixels of a side of a model's input
_METHOD_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # it becomes a file name
_PICTURES = ("photo", "truth")  # what the report shows beside the methods' pictures, by these names


def check_protocol(protocol: str) -> str:
    """Return `protocol`, the name of an input protocol (data/protocols.py). Raises ConfigError where there is none."""
    match = FIXED_PROTOCOL.fullmatch(protocol)
    if protocol != ALIGNED_PROTOCOL and not (match and all(32 <= int(side) <= MOST_SIDE for side in match.groups())):
        raise ConfigError(
            f"protocol {shown(protocol)} is unknown: choose {ALIGNED_PROTOCOL} or fixed-HxW-v1 (H and W from 32 to "
            f"{MOST_SIDE})"
        )
    return protocol


@dataclass(frozen=True)
class Model(Section):
    """The float32 baseline."""

    source: str = Field(description="A folder, a hub id, or the https URL of a safetensors file.")
    revision: str | None = Field(None, description="Commit of a hub id; null: the newest.")
    sha256: str | None = Field(None, description="Of the files behind a URL, where it is required (docs/models.md).")


@dataclass(frozen=True)
class Quant(Section):
    """The quantization methods; each one is a lane of the pipeline."""

    method: Annotated[str, Field(description="The selected method, which `dvc metrics diff` compares.")]
    methods: Annotated[dict[str, Direct], Field(min_length=1)]
    packed: dict[str, Packed] = Field(default_factory=dict, description="Methods that run another one's codes.")
    launcher: str = Field("python", description="What starts a quantization.")

    def __post_init__(self) -> None:
        for key in ("methods", "packed"):
            for name in getattr(self, key):
                if not _METHOD_NAME.fullmatch(name):
                    raise wrong(key, f"has {shown(name)}: use letters, digits, _ and -, at most 64")
                if name in _PICTURES:
                    raise wrong(key, f"has {shown(name)}, the name of another picture of the report: choose another")
        if BASELINE not in self.methods:
            raise wrong("methods", "lacks float32, the baseline for loss and speed")
        if self.methods[BASELINE] != Recipe("float32"):
            raise wrong("methods", "has another float32 than {weights: float32}, the baseline for loss and speed")
        packable = [name for name, recipe in self.methods.items() if recipe.packable]
        for name, recipe in self.packed.items():
            if name in self.methods:
                raise wrong("packed", f"has {shown(name)}, as methods has: choose another name")
            if recipe.source not in packable:
                choices = f"choose one of {', '.join(packable)}" if packable else "there is none"
                message = f"has {name} from {shown(recipe.source)}, no method with codes and float activations"
                raise wrong("packed", f"{message}: {choices}")
        if self.method not in self.recipes:
            raise wrong("method", f"{shown(self.method)} is unknown: choose one of {', '.join(self.recipes)}")

    @property
    def recipes(self) -> dict[str, Method]:
        """Those of all methods, of quant.methods first."""
        return {**self.methods, **self.packed}

    def choose(self, names: Sequence[str] | None) -> dict[str, Method]:
        """The recipes of the named methods, all of them for None. Raises ConfigError for an unknown name."""
        for name in names or ():
            if name not in self.recipes:
                raise ConfigError(f"method '{name}' is unknown: choose from {', '.join(self.recipes)}")
        return {name: self.recipes[name] for name in names or self.recipes}

    def needed(self, recipes: Mapping[str, Method]) -> dict[str, Method]:
        """`recipes`, and before them float32, which their speed is measured against, and those whose codes they run."""
        sources = [recipe.source for recipe in recipes.values() if recipe.source]
        return {**{name: self.methods[name] for name in (BASELINE, *sources)}, **recipes}


@dataclass(frozen=True)
class Eval(Section):
    """How methods are evaluated."""

    batch_size: int = Field(4, ge=1, description="Images of one input size at a time.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one.")
    pictures: int = Field(6, ge=0, description="Predictions kept for the report.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of autocast; float32: none.")
    compile: bool = Field(False, description="torch.compile the model.")
    workers: int | None = Field(
        None, ge=0, description="Threads that decode and resize images; null: 4 with a GPU, none on a CPU."
    )
    max_gpu_memory_gb: float = Field(12.0, ge=2, description="The batch is halved until it fits.")
    on_error: Literal["stop", "skip"] = Field("stop", description="At a broken image or label.")
    launcher: str = Field("python", description="What starts an evaluation, such as torchrun --nproc-per-node 2.")

    def on(self, engine: str | None) -> Eval:
        """The settings that hold on an engine (None: PyTorch): a graph has no autocast and no torch.compile."""
        return replace(self, dtype="float32", compile=False) if engine else self


@dataclass(frozen=True)
class Speed(Section):
    """How speed is measured."""

    input_size: Pair[Annotated[int, Field(ge=32, le=MOST_SIDE)]] = Field(
        (512, 512), description="Height and width, in pixels."
    )
    batch_sizes: Several[Annotated[int, Field(ge=1, le=4096)]] = Field(
        (1, 4), description="Images at a time; tables show the first."
    )
    engines: Several[Literal["eager", "compile"]] = Field(("eager",), description="Tables show the first.")
    runs: int = Field(10, ge=2, description="Timed pairs of the method and float32.")
    warmup: int = Field(2, ge=1, description="Runs before the timed ones.")
    seconds: int = Field(20, ge=1, description="A method whose runs take longer gets fewer of them.")


@dataclass(frozen=True)
class Sensitivity(Section):
    """How the sensitivity of single layers is measured."""

    bits: Several[Literal[2, 3, 4, 8]] = (2, 4)
    group_size: int = Field(32, ge=2)
    algorithm: Literal["affine", "hqq"] = Field("hqq", description="One that needs no images.")
    images: int = Field(32, ge=1, description="Of the validation split.")

    def __post_init__(self) -> None:
        if len(set(self.bits)) < len(self.bits):
            raise wrong("bits", f"has a width twice: {', '.join(map(str, self.bits))}")


@dataclass(frozen=True)
class Review(Section):
    """What a pull request may cost."""

    max_drop: float = Field(0.5, ge=0, description="Points of mIoU (0 to 100) that any method may lose.")


@dataclass(frozen=True)
class Wandb(Section):
    """Tracking with Weights & Biases."""

    mode: WandbMode = Field("offline", description="WANDB_MODE in the environment wins.")
    project: str = "segquant"

    def resolve(self) -> str:
        """The mode in force: WANDB_MODE, else params.yaml's. Raises ConfigError when it cannot work.

        Every stage before an evaluation calls this too, so that a missing key stops the run before any work.
        """
        mode = os.environ.get("WANDB_MODE") or self.mode
        modes = get_args(WandbMode)
        if mode not in modes:
            raise ConfigError(f"WANDB_MODE '{mode}' is unknown: choose one of {', '.join(modes)}")
        if mode == "online" and not has_wandb_key():
            raise ConfigError("wandb.mode is online but there is no key: set WANDB_API_KEY, or use wandb.mode=offline")
        return mode


@dataclass(frozen=True)
class Params(Section):
    """The configuration of segquant."""

    model: Model
    data: Data
    protocol: Annotated[str, Field(description="From image to model input: aligned-512-v1 or fixed-HxW-v1.")]
    quant: Quant
    eval: Eval
    speed: Speed
    sensitivity: Sensitivity
    train: Train
    distill: Distill
    review: Review
    wandb: Wandb

    def __post_init__(self) -> None:
        check_protocol(self.protocol)


def load(path: str | Path | None = None) -> Params:
    """Read and check a params file: by default ./params.yaml, else this repository's.

    Raises ConfigError in one line that lists what is allowed.
    """
    if path is None:
        ours = Path(__file__).resolve().parents[3] / "params.yaml"
        path = ours if not Path("params.yaml").exists() and ours.exists() else "params.yaml"
    try:
        tree = read_yaml(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: run this from the repository's root") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {system_reason(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {one_line(error)}") from error
    _check_names(tree)
    return build(Params, tree)


def _check_names(tree: Any) -> None:
    """Raise ConfigError for a method whose name YAML does not read as text: DVC then runs no stage for it."""
    quant = tree.get("quant") if isinstance(tree, dict) else None
    for key in ("methods", "packed"):
        methods = quant.get(key) if isinstance(quant, dict) else None
        for name in methods if isinstance(methods, dict) else ():
            if isinstance(name, str):
                continue
            kind = {"bool": "a truth value", "NoneType": "nothing"}.get(type(name).__name__, "a number")
            raise ConfigError(f"quant.{key} has {name!r}, which YAML reads as {kind}: quote it, or choose a word")
