"""What stored values mean: two classes as 0 and 255, mappings, colours, and what cannot be right."""

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segquant.base.classes import CAMVID
from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError
from segquant.data.images import decode_annotation, decode_label
from segquant.data.labels import labels_of
from segquant.data.rows import Readable, rows
from segquant.data.shards import write_shards
from segquant.data.sources import open_source

PATTERNS = {"images": "{split}/*.jpg", "annotations": "masks/*.png"}
RED, BLUE, BLACK = [255, 0, 0], [0, 0, 255], [0, 0, 0]


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "two.txt").write_text("land\nwater\n")
    (tmp_path / "three.txt").write_text("land\nwater\nice\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place, name, stored, palette=None):
    """A grey photograph, and its label: values (H, W), colours (H, W, 3), or values with a palette."""
    label = Image.fromarray(np.array(stored, np.uint8))
    if palette:
        label = Image.fromarray(np.array(stored, np.uint8), "P")
        label.putpalette([part for color in palette for part in color])
    for folder, image in (("val", Image.new("RGB", label.size, (90, 90, 90))), ("masks", label)):
        (place / "set" / folder).mkdir(parents=True, exist_ok=True)
        image.save(place / "set" / folder / f"{name}.{'jpg' if folder == 'val' else 'png'}")


def data(**keys):
    return Data(**{"source": "set", **PATTERNS, "classes": "two.txt", **keys})


MEANINGS = {
    "two classes as 0 and 255": ({"label_values": {0: 0, 255: 1}}, [[0, 255]], [[0, 1]]),
    "the other way round": ({"label_values": {0: 1, 255: 0}}, [[0, 255]], [[1, 0]]),
    "255 does not count beside a mapping": ({"label_values": {7: 0, 9: 1}}, [[7, 9, 255]], [[0, 1, 255]]),
    "null does not count": ({"label_values": {0: None, 1: 0, 2: 1}}, [[0, 1, 2]], [[255, 0, 1]]),
    "ignore beside a mapping": ({"label_values": {1: 0, 2: 1}, "ignore": [0]}, [[0, 1, 2]], [[255, 0, 1]]),
    "several values of one class": ({"label_values": {1: 0, 2: 1, 3: 1}}, [[1, 2, 3]], [[0, 1, 1]]),
    "nothing is ignored": ({"ignore": []}, [[0, 1]], [[0, 1]]),
    "255 is ignored beside others": (
        {"ignore": [9], "reduce_labels": True},
        [[0, 1, 2, 9, 255]],
        [[255, 0, 1, 255, 255]],
    ),
    "colours": (
        {"label_values": {"#ff0000": 0, "#0000FF": 1, "#000000": None}},
        [[RED, BLUE, BLACK, RED]],
        [[0, 1, 255, 0]],
    ),
    "greys as colours": ({"label_values": {"#000000": 0, "#ffffff": 1}}, [[0, 255]], [[0, 1]]),
}


@pytest.mark.parametrize("meaning", list(MEANINGS))
def test_stored_values_become_class_ids(meaning, place):
    keys, stored, expected = MEANINGS[meaning]
    write(place, "a", stored)
    (row,) = rows(open_source(data(**keys), "val"))
    assert decode_annotation(row["annotation"]).tolist() == expected


def test_a_mapping_takes_the_names_of_a_known_layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, color in (("val", 90), ("valannot", 100)):
        Path("set", folder).mkdir(parents=True)
        Image.new("L", (4, 3), color).save(f"set/{folder}/a.png")
    Image.new("L", (4, 3), 110).save("set/val/b.png")
    Image.new("L", (4, 3), 11).save("set/valannot/b.png")
    source = open_source(Data("set", label_values={"100": 3, "11": None}), "val")
    assert source.classes == CAMVID and [decode_annotation(row["annotation"]).max() for row in rows(source)] == [3, 255]


def test_a_palette_has_indices_or_colours(place):
    write(place, "a", [[0, 1, 2]], [BLACK, BLUE, RED])
    for keys, expected in (
        ({"classes": "three.txt"}, [0, 1, 2]),
        ({"label_values": {"#ff0000": 0, "#0000ff": 1, "#000000": None}}, [255, 1, 0]),
    ):
        (row,) = rows(open_source(data(**keys), "val"))
        assert decode_annotation(row["annotation"]).tolist() == [expected]


WRONG = {
    "0 and 255 for two classes": (
        {},
        [[0, 255]],
        "set, split val has labels of class 0 alone, and the value 255, which does not count: if 255 is a class",
    ),
    "0 and 255 for two classes, by a stranger's advice": (
        {"reduce_labels": False, "ignore": [255]},
        [[0, 255]],
        "alone",
    ),
    "255 that nobody ignores": ({"ignore": []}, [[0, 1, 255]], "masks/a.png holds the value 255, which is no class"),
    "a value that the mapping lacks": (
        {"label_values": {0: 0, 255: 1}},
        [[0, 254, 255]],
        "masks/a.png holds the value 254, which is no class: give it one by data.label_values, or name it in data.ign",
    ),
    "a colour that the mapping lacks": (
        {"label_values": {"#ff0000": 0}},
        [[RED, BLUE]],
        "masks/a.png holds the colour '#0000ff', which data.label_values lacks",
    ),
    "colours without a mapping": ({}, [[RED, BLUE]], "or its colours must stand in data.label_values"),
    "nothing ignored where the layout drops values": (
        {"ignore": [], "source": "city", "images": None, "annotations": None, "classes": None},
        [[0, 1]],
        "data.ignore is empty, but the layout of city has values without a class: leave it null, or give every value",
    ),
    "a class beyond the list": ({"label_values": {0: 0, 1: 2}}, [[0]], "gives '1' class 2, but there are 2 classes"),
    "a mapping without names": (
        {"label_values": {0: 0, 255: 1}, "classes": None},
        [[0, 255]],
        "set does not name its classes: set data.classes",
    ),
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_what_cannot_be_right_is_one_line(mistake, place):
    keys, stored, message = WRONG[mistake]
    write(place, "a", stored)
    for file in ("leftImg8bit/val/x/x_leftImg8bit.png", "gtFine/val/x/x_gtFine_labelIds.png"):
        (place / "city" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 1), 7).save(place / "city" / file)
    with pytest.raises((ConfigError, DataError)) as caught:
        write_shards({"val": open_source(data(**keys), "val")}, place / "out")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("keys", "fits", "beyond", "message"),
    [
        ({}, [[0, 1]], [[0, 2]], "holds class id 2, but there are 2 classes"),
        ({"label_values": {7: 0, 8: 1}}, [[7, 8]], [[7, 9]], "holds the value 9, which is no class"),
        ({"label_values": {"#ff0000": 0, "#0000ff": 1}}, [[RED, BLUE]], [[RED, BLACK]], "holds the colour '#000000'"),
    ],
)
def test_a_label_that_the_configuration_does_not_fit_is_not_skipped(keys, fits, beyond, message, place):
    write(place, "a", fits)
    write(place, "b", beyond)
    with pytest.raises(ConfigError, match=f"masks/b.png {message}"):
        write_shards({"val": open_source(data(**keys), "val", None, "skip")}, place / "out", on_error="skip")
    assert not (place / "out").exists()
    with pytest.raises(ConfigError, match=f"masks/b.png {message}"):
        Readable(open_source(data(**keys), "val"))[1]


CONFIG = {
    "a value above 255": ({"label_values": {256: 0}}, "has '256': use stored values 0 to 255, or colours such as '#8"),
    "a colour of three digits": ({"label_values": {"#fff": 0}}, "label_values has '#fff': use stored"),
    "a class id above 254": ({"label_values": {0: 255}}, "label_values.0 must be at most 254, not 255"),
    "an empty mapping": ({"label_values": {}}, "must be a mapping with at least one entry"),
    "values and colours": ({"label_values": {"0": 0, "#000000": 1}}, "mix colours and numbers"),
    "ignored values and colours": ({"label_values": {"#000000": 1}, "ignore": [0]}, "mix colours and numbers"),
    "a mapping and reduce_labels": ({"label_values": {0: 0}, "reduce_labels": False}, "leave reduce_labels null"),
    "a colour in two cases": (
        {"label_values": {"#ff0000": 0, "#FF0000": 1}},
        "label_values has '#ff0000' and '#FF0000', which are the same: keep one",
    ),
    "a value written twice": ({"label_values": {"1": 0, "01": 0}}, "label_values has '1' and '01', which are the same"),
    "an ignored class, with a zero": ({"label_values": {"01": 0}, "ignore": [1]}, "ignore has 1, to which label_val"),
    "an ignored class": ({"label_values": {0: 0}, "ignore": [0]}, "ignore has 0, to which label_values gives a class"),
}


@pytest.mark.parametrize("mistake", list(CONFIG))
def test_a_mapping_that_contradicts_itself_is_one_line(mistake):
    keys, message = CONFIG[mistake]
    with pytest.raises(ConfigError) as caught:
        data(**keys)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_classes_without_a_labelled_pixel_are_named_in_one_line(place, caplog):
    write(place, "a", [[0, 2, 255]])
    with caplog.at_level(logging.WARNING):
        list(rows(open_source(data(classes="three.txt"), "val")))
        assert caplog.messages == ["set, split val has no labelled pixel of 1 of the 3 classes: water"]
        caplog.clear()
        write(place, "b", [[1]])
        list(rows(open_source(data(classes="three.txt"), "val")))
        list(rows(open_source("scenes", "validation", 2)))  # its 150 names are ADE20K's, of which it draws some
    assert not caplog.messages


def test_the_names_of_a_known_layout_may_be_given(place):
    """They are its own classes, and so change nothing."""
    for folder, image in (
        ("val", Image.new("RGB", (12, 1))),
        ("valannot", Image.fromarray(np.arange(12, dtype=np.uint8)[None])),
    ):
        (place / "camvid" / folder).mkdir(parents=True)
        image.save(place / "camvid" / folder / "a.png")
    for classes in (None, "camvid"):
        (row,) = rows(open_source(Data("camvid", classes=classes), "val"))
        assert decode_annotation(row["annotation"]).tolist() == [[*range(11), 255]]


FOREIGN = {
    "ADE20K's folders": ("images/validation", "annotations/validation", "ADE_val_1"),
    "ADE20K's folders, other names": ("images/val", "annotations/val", "a"),
    "CamVid's folders": ("validation", "validationannot", "a"),
    "VOC's folders": ("JPEGImages", "SegmentationClass", "2007_000032"),
    "VOC's folders, other names": ("JPEGImages", "SegmentationClass", "a"),
}


def test_colours_are_not_those_of_a_layout(place):
    for folder, color in (("val", RED), ("valannot", RED)):
        (place / "set" / folder).mkdir(parents=True)
        Image.new("RGB", (3, 1), tuple(color)).save(place / "set" / folder / "a.png")
    with pytest.raises(ConfigError, match="does not name its classes: set data.classes"):
        open_source(Data("set", label_values={"#ff0000": 0, "#0000ff": 1}), "val")


def test_colours_of_16_bits_are_not_cut_to_eight(place):
    """Pillow drops the lower byte, so that 0 and 1 would be one colour."""
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + bytes(5) + b"\1")), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )
    with pytest.raises(DataError, match="a.png is a PNG of 16 bits a channel, so that its values are not certain"):
        decode_label(b"\x89PNG\r\n\x1a\n" + body, "a.png", 100, colors=True)


def test_an_index_beyond_the_palette_has_no_colour(place):
    """Pillow would call it black, and so the class of black."""
    image = Image.fromarray(np.array([[0, 1, 255]], np.uint8), "P")
    image.putpalette([0, 0, 0, *range(60)])
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    assert decode_label(encoded.getvalue(), "a.png", 100).tolist() == [[0, 1, 255]]
    with pytest.raises(DataError, match="a.png has the index 255, but its palette has 21 colours: map indices"):
        decode_label(encoded.getvalue(), "a.png", 100, colors=True)


def test_names_in_another_encoding_say_so(place):
    (place / "wide.txt").write_text("land\nwater\n", encoding="utf-16")
    with pytest.raises(ConfigError, match="data.classes 'wide.txt' is no text in UTF-8: save it so"):
        labels_of(Data("set", classes="wide.txt"), None)


@pytest.mark.parametrize("layout", list(FOREIGN))
def test_folder_names_do_not_decide_the_classes(layout, place):
    images, labels, name = FOREIGN[layout]
    for folder, image in (
        (images, Image.new("RGB", (3, 1))),
        (labels, Image.fromarray(np.array([[0, 1, 255]], np.uint8))),
    ):
        (place / "set" / folder).mkdir(parents=True)
        image.save(place / "set" / folder / f"{name}.png")
    (place / "set/ImageSets/Segmentation").mkdir(parents=True)
    (place / "set/ImageSets/Segmentation/validation.txt").write_text(name)
    with pytest.raises(ConfigError, match="does not name its classes: set data.classes"):
        open_source("set", "validation")
    source = open_source(Data("set", classes="two.txt"), "validation")
    assert source.classes == ["land", "water"]
    assert [decode_annotation(row["annotation"]).tolist() for row in rows(source)] == [[[0, 1, 255]]]


def test_real_ade20k_is_told_by_its_labels(real):
    source = open_source(str(real / "ADEChallengeData2016"), "validation", 1)
    assert len(source.classes) == 150 and source.labels.values[[0, 1, 150]].tolist() == [255, 0, 149]
