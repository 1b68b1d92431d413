"""The kinds of quantization method, as params.yaml has them.

An entry of quant.methods with the key `engine` is a Graph, which runs on that engine. Any other runs in PyTorch: with
weights `auto` it is an Auto, else a Recipe. An entry of quant.packed runs the codes of one of these two as a graph.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from segquant.base.training import Finetune, Qat
from segquant.base.validate import MUST_BE, Section, Several, wrong

Quantized = Literal["float8", "int8", "int4", "int3", "int2"]
Algorithm = Literal["affine", "hqq", "gptq"]
Engine = Literal["onnxruntime", "openvino"]
Compute = Literal["float32", "bfloat16"]
BASELINE = "float32"  # the method that the others are compared with
ENGINES: tuple[str, ...] = get_args(Engine)
COMPUTES: tuple[str, ...] = get_args(Compute)


@dataclass(frozen=True)
class Override(Section):
    """What some layers of a recipe get instead; a key left out keeps what the layer has otherwise."""

    weights: Quantized | None = None
    group_size: int | None = Field(None, ge=2)
    algorithm: Algorithm | None = None


@dataclass(frozen=True)
class SmallLayers(Section):
    """Layers of up to `weights` weights share scales in groups of `group_size`, and have codes of `bits` bits."""

    weights: int = Field(ge=1)
    group_size: int = Field(ge=2)
    bits: Literal[2, 3, 4, 8] | None = Field(None, description="Left out: as the other layers.")


@dataclass(frozen=True)
class Ranges(Section):
    """Bits of a group's scale, as a share of the largest of its row, and of its zero."""

    scale: int = Field(ge=1, le=8)
    zero: int = Field(ge=1, le=8)


@dataclass(frozen=True)
class Calibration(Section):
    """Unlabelled images of the train split that a method calibrates on."""

    images: int = Field(64, ge=1)


def _layers(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return "<patterns>"
    return "<name>" if value in ("all", "linear") else None


Layers = Annotated[
    Annotated[Literal["all", "linear"], Tag("<name>")] | Annotated[Several[str], Tag("<patterns>")],
    Discriminator(
        _layers,
        custom_error_type=MUST_BE,
        custom_error_message="all, linear or a list of name patterns such as [decode_head.*]",
    ),
]


def _ranges(value: Any) -> str | None:
    return "<ranges>" if isinstance(value, (dict, Ranges)) else "<name>" if value == "float16" else None


RangesOf = Annotated[
    Annotated[Literal["float16"], Tag("<name>")] | Annotated[Ranges, Tag("<ranges>")],
    Discriminator(
        _ranges,
        custom_error_type=MUST_BE,
        custom_error_message="float16 or bits such as {scale: 6, zero: 6}",
    ),
]


@dataclass(frozen=True)
class Recipe(Section):
    """A method that PyTorch runs: what happens to the weights and to the activations of its layers."""

    weights: Literal["float32", "bfloat16", Quantized]
    group_size: int | None = Field(
        None, ge=2, description="Weights of a row that share a scale; left out: one scale for each row."
    )
    algorithm: Algorithm = Field(
        "affine",
        description="affine: round to nearest; hqq: half-quadratic scales; gptq: codes fitted to layer outputs.",
    )
    activations: Literal["int8", "float8"] | None = Field(
        None, description="Activations quantized as they come; left out: float."
    )
    layers: Layers = Field(
        "all", description="all (Linear and Conv2d), linear, or a list of name patterns such as [decode_head.*]."
    )
    small_layers: SmallLayers | None = None
    ranges: RangesOf | None = Field(
        None,
        description="Bits of gptq's scales and zeros, or float16; left out: 6 each, or float16 for int8.",
    )
    overrides: dict[str, Override] = Field(
        default_factory=dict, description='Layers by name pattern, as {"decode_head.*": {weights: int8}}.'
    )
    calibration: Calibration | None = None
    train: Qat | None = None

    source: ClassVar[None] = None  # it needs no other method

    @property
    def packable(self) -> bool:
        """Whether a graph can run its codes."""
        return self.weights in get_args(Quantized) and not self.activations

    @property
    def calibration_images(self) -> int:
        """How many images it calibrates on: 0 unless some layer's algorithm is gptq."""
        algorithms = {self.algorithm, *(override.algorithm for override in self.overrides.values())}
        return (self.calibration or Calibration()).images if "gptq" in algorithms else 0


@dataclass(frozen=True, kw_only=True)
class Auto(Section):
    """A method that PyTorch runs, whose layers get the bits and groups that cost least within a budget."""

    weights: Literal["auto"]
    megabytes: float | None = Field(None, ge=0, description="Of model.safetensors, at most; 1 MB is 10**6 bytes.")
    points: float | None = Field(
        None, ge=0, description="Points of mIoU that train images may lose; of agreement without labels."
    )
    bits: Several[Literal[2, 3, 4, 8]] = (2, 3, 4, 8)
    group_sizes: Several[Annotated[int, Field(ge=2)]] = Field(
        (16, 32, 64, 128), description="Weights of a row that share a scale, below 8 bits."
    )
    layers: Layers = "all"
    ranges: RangesOf | None = Field(None, description="As of a recipe: bits of scales and zeros, or float16.")
    calibration: Calibration | None = None
    train: Qat | None = None

    source: ClassVar[None] = None
    packable: ClassVar[bool] = True
    algorithm: ClassVar[str] = "gptq"

    def __post_init__(self) -> None:
        if (self.megabytes is None) == (self.points is None):
            raise ValueError("weights auto need a budget: give megabytes or points, one of the two")
        for key in ("bits", "group_sizes"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise wrong(key, f"has a value twice: {', '.join(map(str, values))}")

    @property
    def calibration_images(self) -> int:
        """How many images it calibrates on."""
        return (self.calibration or Calibration()).images


@dataclass(frozen=True, kw_only=True)
class Graph(Section):
    """A method that runs as a graph on an engine; calibration finds the ranges of its int8 activations."""

    engine: Engine
    weights: Literal["float32", "float16", "int8"]
    algorithm: Literal["cast", "pt2e", "qdq", "nncf"] = Field(
        "cast",
        description="pt2e: torchao's PyTorch 2 export; qdq: ONNX Runtime's quantizer; nncf: NNCF; cast: none.",
    )
    compute: Compute = Field("float32", description="Precision of float nodes; bfloat16: openvino only.")
    calibration: Calibration | None = None
    max_drop: float | None = Field(
        None, ge=0, description="Points of mIoU (0 to 100) on the calibration images that qdq may cost."
    )
    ignored_types: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="Node types that nncf leaves float, such as [GroupConvolution]."
    )
    train: Finetune | None = None

    source: ClassVar[None] = None
    packable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        engines = {"pt2e": "onnxruntime", "qdq": "onnxruntime", "nncf": "openvino"}
        if (self.algorithm == "cast") == (self.weights == "int8"):
            raise ValueError(f"weights int8 need an algorithm ({', '.join(engines)}), and no other weights have one")
        engine = engines.get(self.algorithm, self.engine)
        checks = (
            (self.engine != engine, f"engine {engine}"),
            (self.engine == "openvino" and self.weights == "float16", "no weights float16: onnxruntime does"),
            (self.compute != "float32" and self.engine != "openvino", "compute float32: openvino alone has others"),
            (self.max_drop is not None and self.algorithm != "qdq", "no max_drop: algorithm qdq alone searches"),
            (self.ignored_types and self.algorithm != "nncf", "no ignored_types: they are of algorithm nncf"),
            (self.train and self.algorithm != "pt2e", "no train: algorithm pt2e alone trains"),
            (self.calibration and self.algorithm == "cast", "no calibration: nothing is quantized"),
        )
        for refused, allowed in checks:
            if refused:
                raise ValueError(f"algorithm {self.algorithm} on {self.engine} takes {allowed}")

    @property
    def calibration_images(self) -> int:
        """How many images calibration finds the ranges on."""
        return 0 if self.algorithm == "cast" else (self.calibration or Calibration(images=100)).images


@dataclass(frozen=True, kw_only=True)
class Packed(Section):
    """A method that runs another one's codes, at their true width, as a graph on an engine."""

    source: str = Field(alias="from", description="The entry of quant.methods whose codes it runs.")
    engine: Engine
    activations: Literal["int8"] | None = Field(
        None, description="int8: in ranges from calibration, on onnxruntime; left out: float."
    )
    compute: Compute = Field("float32", description="Precision of float nodes; bfloat16: openvino only.")
    calibration: Calibration | None = None
    train: Finetune | None = Field(
        None, description="Training towards float32 of what has no codes below 8 bits, for int8 activations."
    )

    @property
    def algorithm(self) -> str:
        """What finds the ranges of int8 activations, as a Graph has it."""
        return "pt2e" if self.activations else "cast"

    def __post_init__(self) -> None:
        checks = (
            (self.activations and self.engine != "onnxruntime", "activations are float: onnxruntime has int8"),
            (self.compute != "float32" and self.engine != "openvino", "compute is float32: openvino alone has others"),
            (self.calibration and not self.activations, "there is no calibration: activations stay float"),
            (self.train and not self.activations, "there is no train: activations stay float"),
        )
        for refused, reason in checks:
            if refused:
                raise ValueError(f"on {self.engine}, {reason}")

    @property
    def calibration_images(self) -> int:
        """How many images calibration finds the ranges on."""
        return (self.calibration or Calibration(images=100)).images if self.activations else 0


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "<graph>" if "engine" in value else "<auto>" if value.get("weights") == "auto" else "<recipe>"
    return {Graph: "<graph>", Auto: "<auto>"}.get(type(value), "<recipe>")


def _kind_or_packed(value: Any) -> str:
    packed = "from" in value if isinstance(value, dict) else isinstance(value, Packed)
    return "<packed>" if packed else _kind(value)


_Recipe, _Auto, _Graph = (
    Annotated[Recipe, Tag("<recipe>")],
    Annotated[Auto, Tag("<auto>")],
    Annotated[Graph, Tag("<graph>")],
)
Direct = Annotated[_Recipe | _Auto | _Graph, Discriminator(_kind)]  # of the model itself, not of another method's codes
Method = Annotated[_Recipe | _Auto | _Graph | Annotated[Packed, Tag("<packed>")], Discriminator(_kind_or_packed)]
