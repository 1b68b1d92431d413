"""params.yaml as frozen, validated dataclasses. Nothing else reads that file."""

from __future__ import annotations

import dataclasses
import netrc
import os
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from segquant.errors import ConfigError

WEIGHTS = ("float32", "bfloat16", "float8", "int8", "int4", "int3", "int2")
QUANTIZED = WEIGHTS[2:]
ALGORITHMS = ("affine", "hqq", "gptq")
WANDB_MODES = ("offline", "online", "disabled")
ALIGNED_PROTOCOL = "aligned-512-v1"
FIXED_PROTOCOL = re.compile(r"fixed-(\d+)x(\d+)-v1")
LABEL_MAPS = "data/label_maps/"
# Method names become file names, beside others in metrics/ and in the output of `segquant run`.
_METHOD_NAME = re.compile(r"[A-Za-z0-9_-]+")
_RESERVED = {
    "classes", "environment", "hardware", "manifest", "partial", "predictions", "quantize", "reference", "report",
    "results", "selected", "shards", "speed",
}  # fmt: skip


def _choice(*names: str, **kw: Any) -> Any:
    return field(metadata={"choices": names}, **kw)


def _at_least(low: float, **kw: Any) -> Any:
    return field(metadata={"low": low}, **kw)


def _within(low: float, high: float, **kw: Any) -> Any:
    return field(metadata={"low": low, "high": high}, **kw)


def check_protocol(protocol: str) -> str:
    """Give back `protocol`, the name of an input protocol (data/protocols.py); ConfigError when there is none."""
    match = FIXED_PROTOCOL.fullmatch(protocol)
    if protocol != ALIGNED_PROTOCOL and (match is None or min(map(int, match.groups())) < 32):
        raise ConfigError(
            f"protocol '{protocol}' is unknown: choose {ALIGNED_PROTOCOL} or fixed-HxW-v1 (H and W at least 32)"
        )
    return protocol


@dataclass(frozen=True)
class Model:
    source: str
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Columns:
    """Of a table: which one holds images and which one labels."""

    image: str = "image"
    annotation: str = "annotation"


@dataclass(frozen=True)
class Data:
    """A labelled data set and how it is read; what is None is as its layout has it."""

    source: str
    revision: str | None = None
    configuration: str | None = None
    columns: Columns = Columns()
    images: str | None = None
    annotations: str | None = None
    classes: str | None = None
    reduce_labels: bool | None = None
    ignore: tuple[int, ...] | None = _at_least(0, default=None)
    train_split: str = "train"
    validation_split: str = "validation"
    limit: int | None = _at_least(1, default=None)
    shard_mb: float = _at_least(0.1, default=4.0)
    label_map: str | None = None

    def __post_init__(self) -> None:
        if (self.images is None) != (self.annotations is None):
            raise ConfigError("data.images and data.annotations are two patterns of one pair: give both or none")
        if self.ignore and max(self.ignore) > 255:
            raise ConfigError(f"data.ignore has {max(self.ignore)}: labels hold 0 to 255")
        if self.label_map and not self.label_map.startswith(LABEL_MAPS):
            raise ConfigError(f"data.label_map '{self.label_map}' must lie in {LABEL_MAPS}, where DVC sees its changes")


@dataclass(frozen=True)
class Override:
    """What some layers of a recipe get instead; what is left out is as the recipe has it."""

    weights: str | None = _choice(*QUANTIZED, default=None)
    group_size: int | None = _at_least(2, default=None)
    algorithm: str | None = _choice(*ALGORITHMS, default=None)


@dataclass(frozen=True)
class SmallLayers:
    """Layers of no more weights than `weights` share scales in groups of `group_size`."""

    weights: int = _at_least(1)
    group_size: int = _at_least(2)


@dataclass(frozen=True)
class Calibration:
    """Unlabelled images of the train split that a recipe looks at."""

    images: int = _at_least(1, default=64)


@dataclass(frozen=True)
class Phase:
    steps: int = _at_least(1)
    crop: int = _at_least(32)
    batch_size: int = _at_least(1)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every training has: the optimizer, its schedule, and upkeep."""

    seed: int = _at_least(0, default=0)
    lr: float = _at_least(0.0, default=1e-3)
    weight_decay: float = _at_least(0.0, default=0.01)
    warmup: int = _at_least(0, default=200)
    schedule: str = _choice("poly", "cosine", default="poly")
    power: float = _at_least(0.0, default=1.0)
    clip: float = _at_least(0.0, default=1.0)
    accumulate: int = _at_least(1, default=1)
    ema: float = _within(0.0, 0.99999, default=0.0)
    amp: str = _choice("bfloat16", "float32", default="bfloat16")
    workers: int = _at_least(0, default=1)
    checkpoint_every: int = _at_least(1, default=100)
    validate_every: int = _at_least(1, default=1000)
    validation_images: int = _at_least(1, default=64)


@dataclass(frozen=True, kw_only=True)
class Train(Training):
    """Training of the built-in model from nothing."""

    phases: tuple[Phase, ...]
    images: int | None = _at_least(1, default=None)
    scale: float = _at_least(1.0, default=1.4)
    balance: float = _at_least(0.0, default=0.5)


@dataclass(frozen=True, kw_only=True)
class Distill(Training):
    """Training of a student on labels and on a larger teacher's predictions."""

    teacher: str
    student: str
    steps: int = _at_least(1)
    crop: int = _at_least(32)
    batch_size: int = _at_least(1)
    alpha: float = _within(0.0, 1.0, default=0.5)
    temperature: float = _at_least(0.1, default=2.0)
    images: int | None = _at_least(1, default=None)
    scale: tuple[float, float] = _at_least(0.1, default=(0.75, 1.5))


@dataclass(frozen=True, kw_only=True)
class Qat(Training):
    """Quantization-aware training of what calibration found; `lr` is in codes a step.

    `teacher` is `float32` (the model itself before it is quantized), `none` (labels), or where another model is.
    """

    steps: int = _at_least(1)
    batch_size: int = _at_least(1, default=1)
    crop: int = _at_least(32, default=512)
    teacher: str = "float32"
    range_learning: bool = True
    lr: float = _at_least(0.0, default=0.004)
    weight_decay: float = _at_least(0.0, default=0.0)
    warmup: int = _at_least(0, default=20)
    schedule: str = _choice("poly", "cosine", default="cosine")


@dataclass(frozen=True)
class Recipe:
    """A quantization method: what is done to the weights and to the activations of its layers.

    `layers` is `all`, `linear` or name patterns (`*` for any text); the keys of `overrides` are such patterns.
    """

    weights: str = _choice(*WEIGHTS)
    group_size: int | None = _at_least(2, default=None)
    algorithm: str = _choice(*ALGORITHMS, default="affine")
    activations: str | None = _choice("int8", "float8", default=None)
    layers: str | tuple[str, ...] = _choice("all", "linear", default="all")
    small_layers: SmallLayers | None = None
    overrides: dict[str, Override] = field(default_factory=dict)
    calibration: Calibration | None = None
    train: Qat | None = None

    @property
    def calibration_images(self) -> int:
        """How many images it looks at: none unless some layer's algorithm is gptq."""
        chosen = {self.algorithm, *(o.algorithm for o in self.overrides.values())}
        return (self.calibration or Calibration()).images if "gptq" in chosen else 0


@dataclass(frozen=True)
class Quant:
    method: str
    methods: dict[str, Recipe]
    launcher: str = "python"

    def __post_init__(self) -> None:
        for name in self.methods:
            if not _METHOD_NAME.fullmatch(name) or name in _RESERVED:
                taken = ", ".join(sorted(_RESERVED))
                raise ConfigError(f"quant.methods has '{name}': use letters, digits, _ and -, and none of {taken}")
        if "float32" not in self.methods:
            raise ConfigError("quant.methods lacks float32, which loss and speed are told against")
        if self.method not in self.methods:
            raise ConfigError(f"quant.method '{self.method}' is unknown: choose one of {', '.join(self.methods)}")

    def choose(self, names: Sequence[str] | None) -> dict[str, Recipe]:
        """The recipes of the named methods, all of them for None. Raises ConfigError for an unknown name."""
        for name in names or ():
            if name not in self.methods:
                raise ConfigError(f"method '{name}' is unknown: choose from {', '.join(self.methods)}")
        return {name: self.methods[name] for name in names or self.methods}


@dataclass(frozen=True)
class Eval:
    batch_size: int = _at_least(1, default=4)
    device: str = _choice("auto", "cpu", "cuda", default="auto")
    pictures: int = _at_least(0, default=6)
    dtype: str = _choice("float32", "bfloat16", "float16", default="float32")
    compile: bool = False
    workers: int | None = _at_least(0, default=None)
    max_gpu_memory_gb: float = _at_least(2.0, default=12.0)
    on_error: str = _choice("stop", "skip", default="stop")
    launcher: str = "python"


@dataclass(frozen=True)
class Speed:
    input_size: tuple[int, int] = _at_least(32, default=(512, 512))
    batch_sizes: tuple[int, ...] = _at_least(1, default=(1, 4))
    engines: tuple[str, ...] = _choice("eager", "compile", default=("eager",))
    runs: int = _at_least(2, default=10)
    warmup: int = _at_least(1, default=2)
    seconds: int = _at_least(1, default=20)


@dataclass(frozen=True)
class Sensitivity:
    """How the sensitivity of single layers is measured; the algorithm is one that needs no images."""

    bits: tuple[int, ...] = _choice(2, 3, 4, 8, default=(2, 4))
    group_size: int = _at_least(2, default=32)
    algorithm: str = _choice(*ALGORITHMS[:2], default="hqq")
    images: int = _at_least(1, default=32)


@dataclass(frozen=True)
class Wandb:
    mode: str = _choice(*WANDB_MODES, default="offline")
    project: str = "segquant"

    def resolve(self) -> str:
        """The mode that holds, WANDB_MODE over params.yaml. Raises ConfigError when it cannot work.

        Every stage before an evaluation asks too, so that a missing key stops the run before any work.
        """
        mode = os.environ.get("WANDB_MODE") or self.mode
        if mode not in WANDB_MODES:
            raise ConfigError(f"WANDB_MODE '{mode}' is unknown: choose one of {', '.join(WANDB_MODES)}")
        if mode == "online" and not _has_wandb_key():
            raise ConfigError("wandb.mode is online but there is no key: set WANDB_API_KEY, or use wandb.mode=offline")
        return mode


@dataclass(frozen=True)
class Params:
    model: Model
    data: Data
    protocol: str
    quant: Quant
    eval: Eval
    speed: Speed
    sensitivity: Sensitivity
    train: Train
    distill: Distill
    wandb: Wandb

    def __post_init__(self) -> None:
        check_protocol(self.protocol)


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        known = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    return known.authenticators("api.wandb.ai") is not None


def load(path: str | Path | None = None) -> Params:
    """Read and check a params file, by default ./params.yaml or else this repository's.

    Raises ConfigError in one line that lists what is allowed.
    """
    if path is None:
        own = Path(__file__).resolve().parents[2] / "params.yaml"
        path = own if not Path("params.yaml").exists() and own.exists() else "params.yaml"
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: run this from the repository's root") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return build(Params, tree)


def build(kind: type, tree: Any, where: str = "") -> Any:
    """Make the dataclass `kind` from a mapping, checking names, types, choices and lower bounds."""
    name = where or "params.yaml"
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} must be a mapping of {_names(kind)}, not {tree!r}")
    known = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in known:
            raise ConfigError(f"{name} has an unknown key '{key}': allowed are {_names(kind)}")
    values = {}
    for key, spec in known.items():
        at = f"{where}.{key}" if where else key
        if key in tree:
            values[key] = _value(hints[key], tree[key], at, spec.metadata)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{name} lacks the key '{key}'")
    return kind(**values)


def _names(kind: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(kind))


def _value(hint: Any, value: Any, at: str, metadata: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        hint = next((k for k in kinds if isinstance(value, list) == (typing.get_origin(k) is tuple)), kinds[0])
        if isinstance(value, list) and typing.get_origin(hint) is tuple and len(kinds) > 1:
            metadata = {}  # the choices are those of a plain word
    if dataclasses.is_dataclass(hint):
        return build(hint, value, at)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict) or not value:
            raise ConfigError(f"{at} must be a mapping with at least one entry, not {value!r}")
        return {str(k): _value(typing.get_args(hint)[1], v, f"{at}.{k}", {}) for k, v in value.items()}
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{at} must be a list, not {value!r}")
        if parts[1] is Ellipsis:
            parts = parts[:1] * len(value)
        if len(value) != len(parts):
            raise ConfigError(f"{at} must be a list of {len(parts)} values, not {value!r}")
        return tuple(_value(p, v, f"{at}[{i}]", metadata) for i, (p, v) in enumerate(zip(parts, value)))
    return _scalar(hint, value, at, metadata)


def _scalar(hint: type, value: Any, at: str, metadata: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{at} must be of type {hint.__name__}, not {value!r}")
    if "choices" in metadata and value not in metadata["choices"]:
        raise ConfigError(f"{at} '{value}' is unknown: choose one of {', '.join(map(str, metadata['choices']))}")
    if "low" in metadata and not value >= metadata["low"]:
        raise ConfigError(f"{at} must be at least {metadata['low']}, not {value}")
    if "high" in metadata and not value <= metadata["high"]:
        raise ConfigError(f"{at} must be at most {metadata['high']}, not {value}")
    return value
