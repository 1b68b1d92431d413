"""params.yaml as frozen, validated dataclasses. Nothing else reads that file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from segquant.base.errors import ConfigError
from segquant.base.fields import at_least, build, choice, within
from segquant.base.keys import has_wandb_key

WEIGHTS = ("float32", "bfloat16", "float8", "int8", "int4", "int3", "int2")
QUANTIZED = WEIGHTS[2:]
ALGORITHMS = ("affine", "hqq", "gptq")
ENGINES = ("onnxruntime", "openvino")  # that run graphs; PyTorch runs every other method
WANDB_MODES = ("offline", "online", "disabled")
ALIGNED_PROTOCOL = "aligned-512-v1"
FIXED_PROTOCOL = re.compile(r"fixed-(\d+)x(\d+)-v1")
LABEL_MAPS = "data/label_maps/"
# Method names become file names, beside others in metrics/ and in the output of `segquant run`.
_METHOD_NAME = re.compile(r"[A-Za-z0-9_-]+")
_RESERVED = {
    "class_loss",
    "classes",
    "confusion",
    "data",
    "environment",
    "hardware",
    "layers",
    "manifest",
    "onnx",
    "partial",
    "predictions",
    "quantize",
    "reference",
    "report",
    "results",
    "selected",
    "sensitivity",
    "shards",
    "speed",
}


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
    ignore: tuple[int, ...] | None = at_least(0, default=None)
    train_split: str = "train"
    validation_split: str = "validation"
    limit: int | None = at_least(1, default=None)
    shard_mb: float = at_least(0.1, default=4.0)
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

    weights: str | None = choice(*QUANTIZED, default=None)
    group_size: int | None = at_least(2, default=None)
    algorithm: str | None = choice(*ALGORITHMS, default=None)


@dataclass(frozen=True)
class SmallLayers:
    """Layers of no more weights than `weights` share scales in groups of `group_size`."""

    weights: int = at_least(1)
    group_size: int = at_least(2)


@dataclass(frozen=True)
class Calibration:
    """Unlabelled images of the train split that a recipe looks at."""

    images: int = at_least(1, default=64)


@dataclass(frozen=True)
class Phase:
    steps: int = at_least(1)
    crop: int = at_least(32)
    batch_size: int = at_least(1)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every training has: the optimizer, its schedule, and upkeep."""

    seed: int = at_least(0, default=0)
    lr: float = at_least(0.0, default=1e-3)
    warmup: int = at_least(0, default=200)
    schedule: str = choice("poly", "cosine", default="poly")
    power: float = at_least(0.0, default=1.0)
    clip: float = at_least(0.0, default=1.0)
    accumulate: int = at_least(1, default=1)
    ema: float = within(0.0, 0.99999, default=0.0)
    amp: str = choice("bfloat16", "float32", default="bfloat16")
    workers: int = at_least(0, default=1)
    checkpoint_every: int = at_least(1, default=100)
    validate_every: int = at_least(1, default=1000)
    validation_images: int = at_least(1, default=64)

    def result(self) -> dict[str, Any]:
        """The options that the trained weights depend on."""
        upkeep = {"workers", "checkpoint_every", "validate_every", "validation_images"}
        return {key: value for key, value in asdict(self).items() if key not in upkeep}


@dataclass(frozen=True, kw_only=True)
class Train(Training):
    """Training of the built-in model from nothing."""

    phases: tuple[Phase, ...]
    images: int | None = at_least(1, default=None)
    scale: float = at_least(1.0, default=1.4)
    weight_decay: float = at_least(0.0, default=0.01)
    balance: float = at_least(0.0, default=0.5)


@dataclass(frozen=True, kw_only=True)
class Distill(Training):
    """Training of a student on labels and on a larger teacher's predictions.

    `crop` None is the shorter side of the model's input by the protocol.
    """

    teacher: str
    student: str
    steps: int = at_least(1)
    batch_size: int = at_least(1)
    crop: int | None = at_least(32, default=None)
    weight_decay: float = at_least(0.0, default=0.01)
    alpha: float = within(0.0, 1.0, default=0.5)
    temperature: float = at_least(0.1, default=2.0)
    images: int | None = at_least(1, default=None)
    scale: tuple[float, float] = at_least(0.1, default=(0.75, 1.5))


@dataclass(frozen=True, kw_only=True)
class Qat(Training):
    """Quantization-aware training of what calibration found; `lr` is in codes a step.

    `crop` None is the shorter side of the model's input by the protocol. `teacher` is `float32` (the model itself
    before it is quantized), `none` (labels), or where another model is.
    """

    steps: int = at_least(1)
    batch_size: int = at_least(1, default=1)
    crop: int | None = at_least(32, default=None)
    teacher: str = "float32"
    range_learning: bool = True
    lr: float = at_least(0.0, default=0.004)
    warmup: int = at_least(0, default=20)
    schedule: str = choice("poly", "cosine", default="cosine")


@dataclass(frozen=True)
class Recipe:
    """A quantization method: what is done to the weights and to the activations of its layers.

    `layers` is `all`, `linear` or name patterns (`*` for any text); the keys of `overrides` are such patterns.
    """

    weights: str = choice(*WEIGHTS)
    group_size: int | None = at_least(2, default=None)
    algorithm: str = choice(*ALGORITHMS, default="affine")
    activations: str | None = choice("int8", "float8", default=None)
    layers: str | tuple[str, ...] = choice("all", "linear", default="all")
    small_layers: SmallLayers | None = None
    overrides: dict[str, Override] = field(default_factory=dict)
    calibration: Calibration | None = None
    train: Qat | None = None

    @property
    def calibration_images(self) -> int:
        """How many images it looks at: none unless some layer's algorithm is gptq."""
        chosen = {self.algorithm, *(o.algorithm for o in self.overrides.values())}
        return (self.calibration or Calibration()).images if "gptq" in chosen else 0


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Quantization-aware training of a graph whose products are fake-quantized; `lr` is AdamW's.

    `crop` None is the shorter side of the model's input by the protocol. After the share `observe` of the steps the
    ranges of activations stay as they are.
    """

    epochs: int = at_least(1)
    batch_size: int = at_least(1, default=4)
    crop: int | None = at_least(64, default=None)
    observe: float = within(0.0, 1.0, default=0.5)
    lr: float = at_least(0.0, default=1e-5)
    warmup: int = at_least(0, default=10)
    schedule: str = choice("poly", "cosine", default="cosine")
    amp: str = choice("bfloat16", "float32", default="float32")

    def __post_init__(self) -> None:
        if self.ema:
            raise ConfigError("train of a graph takes no ema: averaged weights would be rounded by ranges of others")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A method that runs as a graph on an engine of its own, its int8 activations in ranges that calibration found.

    `algorithm` is who quantizes: torchao's PyTorch 2 export route, ONNX Runtime's quantizer, or NNCF. `max_drop` is in
    points of mIoU on the calibration images.
    """

    engine: str = choice(*ENGINES)
    weights: str = choice("float32", "float16", "int8")
    algorithm: str = choice("cast", "pt2e", "qdq", "nncf", default="cast")
    compute: str = choice("float32", "bfloat16", default="float32")
    calibration: Calibration | None = None
    max_drop: float | None = at_least(0.0, default=None)
    ignored_types: tuple[str, ...] = ()
    train: Finetune | None = None

    def __post_init__(self) -> None:
        routes = {"pt2e": "onnxruntime", "qdq": "onnxruntime", "nncf": "openvino"}
        if (self.algorithm == "cast") == (self.weights == "int8"):
            raise ConfigError(f"weights int8 need an algorithm ({', '.join(routes)}), and no other weights have one")
        for wrong, what in (
            (self.engine != routes.get(self.algorithm, self.engine), f"engine {routes.get(self.algorithm)}"),
            (
                self.engine == "openvino" and self.weights == "float16",
                "no weights float16: onnxruntime does",
            ),
            (self.compute != "float32" and self.engine != "openvino", "compute float32: openvino alone has others"),
            (self.max_drop is not None and self.algorithm != "qdq", "no max_drop: algorithm qdq alone searches"),
            (self.ignored_types and self.algorithm != "nncf", "no ignored_types: they are of algorithm nncf"),
            (self.train and self.algorithm != "pt2e", "no train: algorithm pt2e alone trains"),
            (self.calibration and self.algorithm == "cast", "no calibration: nothing is quantized"),
        ):
            if wrong:
                raise ConfigError(f"algorithm {self.algorithm} on {self.engine} takes {what}")

    @property
    def calibration_images(self) -> int:
        """How many images its ranges are found on."""
        return 0 if self.algorithm == "cast" else (self.calibration or Calibration(images=100)).images


Method = Recipe | Graph


@dataclass(frozen=True)
class Quant:
    method: str
    methods: dict[str, Method]
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

    def choose(self, names: Sequence[str] | None) -> dict[str, Method]:
        """The recipes of the named methods, all of them for None. Raises ConfigError for an unknown name."""
        for name in names or ():
            if name not in self.methods:
                raise ConfigError(f"method '{name}' is unknown: choose from {', '.join(self.methods)}")
        return {name: self.methods[name] for name in names or self.methods}


@dataclass(frozen=True)
class Eval:
    batch_size: int = at_least(1, default=4)
    device: str = choice("auto", "cpu", "cuda", default="auto")
    pictures: int = at_least(0, default=6)
    dtype: str = choice("float32", "bfloat16", "float16", default="float32")
    compile: bool = False
    workers: int | None = at_least(0, default=None)
    max_gpu_memory_gb: float = at_least(2.0, default=12.0)
    on_error: str = choice("stop", "skip", default="stop")
    launcher: str = "python"

    def on(self, engine: str | None) -> Eval:
        """What of this holds on an engine, None for PyTorch: graphs know no autocast and no torch.compile."""
        return replace(self, dtype="float32", compile=False) if engine else self


@dataclass(frozen=True)
class Speed:
    input_size: tuple[int, int] = at_least(32, default=(512, 512))
    batch_sizes: tuple[int, ...] = at_least(1, default=(1, 4))
    engines: tuple[str, ...] = choice("eager", "compile", default=("eager",))
    runs: int = at_least(2, default=10)
    warmup: int = at_least(1, default=2)
    seconds: int = at_least(1, default=20)


@dataclass(frozen=True)
class Sensitivity:
    """How the sensitivity of single layers is measured; the algorithm is one that needs no images."""

    bits: tuple[int, ...] = choice(2, 3, 4, 8, default=(2, 4))
    group_size: int = at_least(2, default=32)
    algorithm: str = choice(*ALGORITHMS[:2], default="hqq")
    images: int = at_least(1, default=32)


@dataclass(frozen=True)
class Review:
    """What a pull request may cost: points of mIoU (0 to 100) that any method may lose."""

    max_drop: float = at_least(0.0, default=0.5)


@dataclass(frozen=True)
class Wandb:
    mode: str = choice(*WANDB_MODES, default="offline")
    project: str = "segquant"

    def resolve(self) -> str:
        """The mode that holds, WANDB_MODE over params.yaml. Raises ConfigError when it cannot work.

        Every stage before an evaluation asks too, so that a missing key stops the run before any work.
        """
        mode = os.environ.get("WANDB_MODE") or self.mode
        if mode not in WANDB_MODES:
            raise ConfigError(f"WANDB_MODE '{mode}' is unknown: choose one of {', '.join(WANDB_MODES)}")
        if mode == "online" and not has_wandb_key():
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
    review: Review
    wandb: Wandb

    def __post_init__(self) -> None:
        check_protocol(self.protocol)


def load(path: str | Path | None = None) -> Params:
    """Read and check a params file, by default ./params.yaml or else this repository's.

    Raises ConfigError in one line that lists what is allowed.
    """
    if path is None:
        own = Path(__file__).resolve().parents[3] / "params.yaml"
        path = own if not Path("params.yaml").exists() and own.exists() else "params.yaml"
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: run this from the repository's root") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return build(Params, tree)
