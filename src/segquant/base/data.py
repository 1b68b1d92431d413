"""The section `data` of params.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from segquant.base.validate import Section, shown, wrong

LABEL_MAPS = "data/label_maps/"
BY_POSITION = "by_position"
MAX_PIXELS = 178_956_970  # from where on Pillow suspects a decompression bomb
_VALUE = re.compile(r"[0-9]{1,3}")
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Columns(Section):
    """The columns of a table that hold images and labels."""

    image: str = "image"
    annotation: str = "annotation"


def _text_keys(values: Any) -> Any:
    return {str(key): class_id for key, class_id in values.items()} if isinstance(values, dict) else values


LabelValues = Annotated[
    dict[str, Annotated[int, Field(ge=0, le=254)] | None], Field(min_length=1), BeforeValidator(_text_keys)
]


@dataclass(frozen=True)
class Data(Section):
    """A labelled data set and how to read it; the layout of the data set decides what is null."""

    source: str = Field(description="scenes (built in), a folder, a zip archive, or a hub id.")
    revision: str | None = Field(None, description="Commit of a hub id; null: the newest.")
    configuration: str | None = Field(None, description="Folder in a hub id or in a Parquet folder; null: all of it.")
    columns: Columns = Field(Columns(), description="Of Parquet.")
    images: str | None = Field(None, description="Pattern such as photos/{split}/*.jpg, for an unknown layout.")
    annotations: str | None = Field(None, description="Pattern such as masks/{split}/*_mask.png, together with images.")
    names: str | None = Field(
        None, description="Lists of names such as lists/{split}.txt: which images a split has, one name a line."
    )
    classes: str | None = Field(
        None, description="ade20k, cityscapes, camvid, voc, or a text file with one name a line."
    )
    reduce_labels: bool | None = Field(None, description="true: label 0 is no class, and the others are one too high.")
    label_values: LabelValues | None = Field(
        None, description="Class id of each stored value or '#RRGGBB' colour; null: it does not count."
    )
    ignore: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Field(strict=False)] | None = Field(
        None, description="Stored label values that do not count; so does 255, unless the list is empty."
    )
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="Of an image or a label; a larger one is refused.")
    train_split: str = "train"
    validation_split: str = "validation"
    limit: int | None = Field(None, ge=1, description="Images of each split; null: all.")
    shard_mb: float = Field(4.0, ge=0.1, le=10_000, description="Smallest size of a shard, in megabytes.")
    label_map: str | None = Field(
        None,
        description=f"YAML file in {LABEL_MAPS}, from the model's class ids to the data set's; or {BY_POSITION}: equal "
        "ids are the same class, whatever their names.",
    )

    def __post_init__(self) -> None:
        if (self.images is None) != (self.annotations is None):
            raise ValueError("images and annotations are two patterns of one pair: give both or none")
        if self.images and "{split}" not in self.images + (self.names or ""):
            raise wrong(
                "images",
                f"{self.images!r} has no {{split}}, so that every split would be the same: write {{split}} where its "
                "name stands, or list the images of each split in data.names, such as lists/{split}.txt",
            )
        for key in ("images", "annotations", "names"):
            if (getattr(self, key) or "").startswith(("/", "~")):
                raise wrong(key, f"{getattr(self, key)!r} is absolute: give it below data.source")
        self._check_label_values()
        if self.label_map not in (None, BY_POSITION) and not self.label_map.startswith(LABEL_MAPS):
            problem = (
                f"{shown(self.label_map)} must be {BY_POSITION} or lie in {LABEL_MAPS}, where DVC sees its changes"
            )
            raise wrong("label_map", problem)

    def _check_label_values(self) -> None:
        values, ignore = self.label_values or {}, self.ignore or ()
        keys: dict[str, str] = {}  # of each value or colour, however it is written
        for key in values:
            if not (_COLOR.fullmatch(key) or _VALUE.fullmatch(key) and int(key) <= 255):
                raise wrong(
                    "label_values", f"has {shown(key)}: use stored values 0 to 255, or colours such as '#804080'"
                )
            same = keys.setdefault(key.lower() if key.startswith("#") else str(int(key)), key)
            if same != key:
                raise wrong("label_values", f"has {same!r} and {key!r}, which are the same: keep one")
        colors = [key for key in values if key.startswith("#")]
        if colors and (len(colors) < len(values) or self.ignore):
            raise ValueError(
                "label_values and ignore mix colours and numbers: use colours alone, with null for one that does not "
                "count"
            )
        if values and self.reduce_labels is not None:
            raise ValueError("label_values says what each stored value means: leave reduce_labels null")
        if twice := [value for value in ignore if values.get(keys.get(str(value))) is not None]:
            raise ValueError(f"ignore has {twice[0]}, to which label_values gives a class: drop one of them")
