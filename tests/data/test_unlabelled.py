"""Photographs to calibrate and train on need no labels, on every route, unless a method learns or scores with them."""

import io
import json
import logging
import re
from dataclasses import replace
from functools import cache

import datasets
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from segquant.base import config
from segquant.base.config import Auto, Calibration, Data, Qat
from segquant.base.errors import ConfigError, DataError
from segquant.data.images import decode_image
from segquant.data.rows import rows
from segquant.data.sources import open_photos, open_source
from segquant.lanes import check
from segquant.training.split import TrainSplit, split_of_source

PATTERNS = {"images": "img/{split}/*.png", "annotations": "lab/{split}/*.png", "classes": "ade20k"}
PATTERNS |= {"reduce_labels": False}
TABLE = {"classes": "ade20k", "reduce_labels": False}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PHOTOS = [png(np.full((40, 60, 3), value)) for value in (70, 140)]
LABEL = png(np.ones((40, 60)))


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def folder(labels):
    def write(root):
        put(root, {f"img/train/{i}.png": photo for i, photo in enumerate(PHOTOS)})
        put(root, {f"lab/train/{i}.png": label for i, label in enumerate(labels)})

    return write


def parquet(labels):
    def write(root):
        cells = {"image": PHOTOS} | ({} if labels is None else {"annotation": labels})
        cells = {key: [value and {"bytes": value, "path": None} for value in column] for key, column in cells.items()}
        features = datasets.Features({key: datasets.Image() for key in cells})
        root.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(cells, features).to_parquet(str(root / "train.parquet"))

    return write


def plain(root):
    put(root, {f"{i}.png": photo for i, photo in enumerate(PHOTOS)})


# (what writes the data, its keys, what a method that needs labels says)
ROUTES = {
    "no labels": (folder([]), PATTERNS, DataError, "0.png has no label"),
    "a label is missing": (folder([LABEL]), PATTERNS, DataError, "1.png has no label"),
    "labels of other values": (folder([png(np.full((40, 60), 200))] * 2), PATTERNS, ConfigError, "holds class id 200"),
    "no classes": (folder([LABEL] * 2), {**PATTERNS, "classes": None}, ConfigError, "does not name its classes"),
    "broken labels": (folder([b"x"] * 2), PATTERNS, DataError, "0.png is not a readable label"),
    "a table without annotations": (parquet(None), TABLE, ConfigError, "set data.columns.annotation"),
    "a table whose annotations are null": (parquet([None] * 2), TABLE, DataError, "column annotation is empty"),
    "a folder of photographs": (plain, {}, DataError, "has no split 'train' in a known layout"),
    "a folder of photographs beside patterns": (plain, PATTERNS, DataError, r"img/train/\*.png matches no file"),
}


UNLABELLED = ("no classes", "a folder of photographs", "a folder of photographs beside patterns")


@pytest.fixture(scope="module")
def params():
    params = config.load(ROOT / "params.yaml")
    return replace(params, protocol="fixed-64x64-v1")


def split_of(params, route, tiny_folder, tmp_path):
    write, keys, error, message = ROUTES[route]
    write(tmp_path / "set")
    data = Data(str(tmp_path / "set"), **keys)
    scored = open_source("scenes", "validation", 2)
    return lambda: split_of_source(params, tiny_folder, data, "train", scored, None), error, message


@pytest.mark.parametrize("route", list(ROUTES))
def test_calibration_and_training_with_a_teacher_read_no_labels(route, params, tiny_folder, tmp_path, tiny):
    split, _, _ = split_of(params, route, tiny_folder, tmp_path)
    recipe = replace(params.quant.methods["int4"], train=Qat(steps=1, validation_images=1))
    check(params, tiny, {"int4": recipe}, split)
    images = split().images(2)
    assert images.shape == (2, 3, 64, 64)
    grey = [(value / 255 - 0.485) / 0.229 for value in (70, 140)]
    assert images[:, 0, 0, 0].tolist() == pytest.approx(grey, abs=1e-5)


@pytest.mark.parametrize("route", list(ROUTES))
def test_a_method_that_learns_from_labels_says_what_they_lack(route, params, tiny_folder, tmp_path, tiny):
    split, error, message = split_of(params, route, tiny_folder, tmp_path)
    recipe = replace(params.quant.methods["int4"], train=Qat(steps=1, validation_images=1, teacher="none"))
    with pytest.raises(error, match=message):
        check(params, tiny, {"int4": recipe}, split)


@pytest.mark.parametrize("route", list(ROUTES))
def test_a_budget_in_points_counts_agreement_where_there_are_no_labels(
    route, params, tiny_folder, tmp_path, tiny, caplog
):
    """And nowhere else: labels that are broken, incomplete or of other values are an error."""
    split, error, message = split_of(params, route, tiny_folder, tmp_path)
    split = cache(split)
    recipe = Auto(weights="auto", points=1.0, calibration=Calibration(2))
    if route not in UNLABELLED:
        with pytest.raises(error, match=message):
            check(params, tiny, {"auto": recipe}, split)
        return
    check(params, tiny, {"auto": recipe}, split)
    points = split().points_or_agreement(128)
    assert points.measure == "agreement with float32" and points.score(tiny) == 100
    (warning,) = (text for text in caplog.messages if "float32" in text)
    assert re.search(message, warning) and warning.endswith("places whose class is not float32's here")


def test_a_budget_in_points_counts_agreement_where_labels_have_other_classes(params, tiny_folder, tmp_path, tiny):
    write, keys, *_ = ROUTES["no classes"]
    write(tmp_path / "set")
    (tmp_path / "names.txt").write_text("sky\nroad\n")
    data = Data(str(tmp_path / "set"), **{**keys, "classes": str(tmp_path / "names.txt")})
    split = split_of_source(params, tiny_folder, data, "train", open_source("scenes", "validation", 2), None)
    assert split.points_or_agreement(2).measure == "agreement with float32" and len(split.learned) == 2
    with pytest.raises(DataError, match="labels of the classes that are scored are needed"):
        split.points(2)


def test_calibration_on_fewer_images_than_asked_for_is_a_warning(params, tiny_folder, caplog):
    train, scored = (open_source("scenes", split, 2) for split in ("train", "validation"))
    split = TrainSplit(params, tiny_folder, train, None, ["rows"], scored, scored.classes)
    assert len(split.images(2)) == 2 and not caplog.messages
    assert len(split.images(5)) == len(split.images(5)) == 2
    assert caplog.messages == ["calibration asks for 5 images: it takes all 2 of the train split"]


def test_a_revision_of_data_that_are_here_is_refused(tmp_path):
    ROUTES["no classes"][0](tmp_path / "set")
    for source in (str(tmp_path / "set"), "scenes"):
        for opened in (open_source, open_photos):
            with pytest.raises(ConfigError, match=f"data.revision is of a hub id, and data source '{source}' is none"):
                opened(Data(source, revision="v1"), "train")


def test_a_budget_in_points_depends_on_how_classes_are_matched(params, tiny_folder):
    scenes = [open_source("scenes", split, 2) for split in ("train", "validation")]
    shared = (params, tiny_folder, scenes[0], None, ["rows"], scenes[1], scenes[1].classes)
    plain, mapped = TrainSplit(*shared, None), TrainSplit(*shared, "by_position")
    mapped.__dict__["_to_data"] = np.roll(np.arange(150), 1)
    in_points, in_bytes = (Auto(weights="auto", **budget) for budget in ({"points": 1.0}, {"megabytes": 1.0}))
    assert plain.identity_of(in_bytes) == mapped.identity_of(in_bytes) == ["rows"]
    assert plain.identity_of(in_points) != mapped.identity_of(in_points)
    json.dumps(mapped.identity_of(in_points))


def test_patterns_that_match_nothing_are_named_where_photographs_are_taken(params, tiny_folder, tmp_path, caplog):
    split, _, _ = split_of(params, "a folder of photographs beside patterns", tiny_folder, tmp_path)
    with caplog.at_level(logging.WARNING):
        split()
    assert caplog.messages == [
        f"data.images matches no file of split 'train' in {tmp_path / 'set'}: it is taken for photographs"
    ]
    (tmp_path / "set/0.png").unlink()
    (tmp_path / "set/1.png").unlink()
    with pytest.raises(DataError, match=r"holds photographs, and .*img/train/\*.png matches no file"):
        split()


def test_a_picture_beside_folders_of_pictures_is_no_photograph_of_a_split(tmp_path):
    """A legend would be all that methods calibrate on."""
    put(tmp_path / "set", {"legend.png": PHOTOS[0], "images/training/a.png": PHOTOS[0]})
    with pytest.raises(DataError, match=r"set/train holds no photographs, but another folder does .*training/a.png"):
        open_photos(Data(str(tmp_path / "set")), "train")


@pytest.mark.parametrize(("name", "place"), [("{}.png", "set"), ("train/{}.png", "set/train")])
def test_a_folder_of_photographs_is_named_with_their_number(name, place, tmp_path, caplog):
    put(tmp_path / "set", {name.format(i): photo for i, photo in enumerate(PHOTOS)} | {"a/notes.txt": b"x"})
    with caplog.at_level(logging.INFO):
        assert len(open_photos(Data(str(tmp_path / "set")), "train")) == 2
    assert caplog.messages == [f"2 photographs of {tmp_path / place}, without labels"]


def test_a_photograph_without_a_label_may_be_turned(tmp_path):
    """Pillow turns it as it decodes; only a label would have to be turned as well."""
    (tmp_path / "set").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), (70, 70, 70)).save(tmp_path / "set/a.tiff", exif=exif)
    (row,) = rows(open_photos(Data(str(tmp_path / "set")), "train"))
    assert decode_image(row["image"], "a").size == (row["width"], row["height"])
