"""Which images a split has: lists of names, images without a label, and images that are in two splits."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from segquant.base.classes import VOC
from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError
from segquant.data.images import decode_annotation
from segquant.data.rows import rows
from segquant.data.shards import open_shards, read_rows, write_shards
from segquant.data.sources import image_digests, open_images, open_source

LISTS = {
    "images": "photos/**/*.jpg",
    "annotations": "masks/**/*.png",
    "names": "lists/{split}.txt",
    "classes": "two.txt",
}


def write(file, mode="RGB", color=0, size=(4, 3)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """`set` with photographs a to d in two folders, all with masks but d, and lists of names."""
    (tmp_path / "two.txt").write_text("land\nwater\n")
    for number, name in enumerate(("a", "b", "more/c", "more/d")):
        write(tmp_path / f"set/photos/{name}.jpg", color=(60 * number, 0, 0))
        if name != "more/d":
            write(tmp_path / f"set/masks/{name}.png", "L", number % 2)
    lists = {"train": "a\n\nmore/c\n", "val": "\ufeffb.jpg\n", "all": "a\nb\nmore/c\nmore/d\n"}
    bad = {"unknown": "a\nz\n", "twice": "a\na\n", "empty": "\n"}
    (tmp_path / "set/lists").mkdir()
    for name, text in {**lists, **bad}.items():
        (tmp_path / f"set/lists/{name}.txt").write_text(text)
    (tmp_path / "set/lists/latin.txt").write_bytes(b"\xe9\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("split", "ids"), [("train", ["a", "more-c"]), ("val", ["b"])])
def test_lists_choose_the_images_of_a_split(place, split, ids):
    assert [row["id"] for row in rows(open_source(Data("set", **LISTS), split))] == ids


MISTAKES = {
    "no such list": ("test", {}, "set/lists/test.txt, which lists the images of the split, is not there"),
    "a name without an image": ("unknown", {}, "set/lists/unknown.txt names 'z' in line 2: there is no such image"),
    "a name twice": ("twice", {}, "names 'a' in line 2: there is no such image, or it is listed twice"),
    "an empty list": ("empty", {}, "set/lists/empty.txt lists no image"),
    "a list in another encoding": ("latin", {}, "set/lists/latin.txt is no text in UTF-8"),
    "an image without a label": ("all", {}, "set/photos/more/d.jpg has no label: add set/masks/more/d.png or remove"),
    "no list and no {split}": ("val", {"names": None}, "images 'photos/**/*.jpg' has no {split}, so that every split"),
    "one list for every split": ("val", {"names": "lists/val.txt"}, "has no {split}, so that every split"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_list_that_does_not_fit_is_one_line(mistake, place):
    split, keys, message = MISTAKES[mistake]
    with pytest.raises((ConfigError, DataError)) as caught:
        open_source(Data("set", **{**LISTS, **keys}), split)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_list_does_not_choose_from_a_table(place):
    (place / "table").mkdir()
    (place / "table/val.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="table is a table, which data.names cannot choose from"):
        open_source(Data("table", names="{split}.txt"), "val")


def test_an_image_without_a_label_is_left_out_only_where_skip_says_so(place):
    source = open_source(Data("set", **LISTS), "all", on_error="skip")
    manifest = write_shards({"val": source}, place / "out", on_error="skip")
    assert [row["id"] for row in read_rows(place / "out", "val")] == ["a", "b", "more-c"]
    assert [shard.get("skipped") for shard in manifest["splits"]["val"]["shards"]] == [
        ["set/photos/more/d.jpg has no label"]
    ]
    assert [shard.skipped for shard in open_shards(place / "out", "val")] == [("set/photos/more/d.jpg has no label",)]
    assert json.loads((place / "out/manifest.json").read_text()) == manifest


def test_each_skipped_row_is_listed_once_with_its_shard(place):
    for name in ("a", "c"):
        write(place / f"set/photos/{name}.jpg")
    for name in "abc":
        write(place / f"set/masks/{name}.png", "L", 1)
    data = Data("set", **{**LISTS, "images": "{split}/*.jpg", "annotations": "masks/*.png", "names": None})
    for broken in ("a", "b", "c"):
        whole = {name: (place / f"set/photos/{name}.jpg").read_bytes() for name in "abc"}
        (place / f"set/photos/{broken}.jpg").write_bytes(whole[broken][:-40])
        with pytest.raises(DataError, match=f"{broken}.jpg is not a readable image"):
            write_shards({"photos": open_source(data, "photos")}, place / "out", 1)
        assert not (place / "out").exists()
        source = open_source(data, "photos", on_error="skip")
        manifest = write_shards({"photos": source}, place / f"out {broken}", 1, "skip")
        shards = manifest["splits"]["photos"]["shards"]
        errors = [error for shard in shards for error in shard.get("skipped", ())]
        assert len(shards) == 2 and len(errors) == 1 and f"{broken}.jpg is not a readable image" in errors[0]
        (place / f"set/photos/{broken}.jpg").write_bytes(whole[broken])
    for name in "abc":
        (place / f"set/photos/{name}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="no image of split 'photos' can be read: set/photos/a.jpg is not a readable"):
        write_shards({"photos": open_source(data, "photos", on_error="skip")}, place / "none", on_error="skip")
    assert not (place / "none").exists()


def test_the_next_readable_image_takes_the_place_of_a_broken_one_for_calibration(place, caplog):
    (place / "set/photos/b.jpg").write_bytes(b"")
    data = Data("set", **LISTS)
    with caplog.at_level(logging.WARNING):
        with pytest.raises(DataError, match="b.jpg is not a readable image"):
            open_images(data, "val")[0]
        source = open_images(data, "all", on_error="skip")
        assert [row["id"] for row in source] == ["a", "more-c", "more-c", "a"]
    assert [message.split(" ")[1] for message in caplog.messages] == ["set/photos/b.jpg", "set/photos/more/d.jpg"]
    with pytest.raises(DataError, match="^set, split val: none of its 1 images can be read: set/photos/b.jpg is not"):
        source = open_images(data, "val", on_error="skip")
        source[0]
    with pytest.raises(DataError, match="^set, split val: none of its 1 images can be read: set/photos/b.jpg is not"):
        source[0]


def test_images_in_two_splits_are_counted_in_one_line(place, caplog):
    source = open_source(Data("set", **LISTS), "train")
    other = open_source(Data("set", **LISTS), "val")
    with caplog.at_level(logging.WARNING):
        write_shards({"train": source, "validation": other}, place / "apart")
        assert not [message for message in caplog.messages if "also" in message]
        (place / "set/photos/b.jpg").write_bytes((place / "set/photos/a.jpg").read_bytes())
        write_shards({"train": source, "validation": other}, place / "common")
        write_shards(
            {"val": other}, place / "run", learned=set(image_digests(open_images(Data("set", **LISTS), "train")))
        )
    warnings = [message for message in caplog.messages if "also" in message]
    assert [text.split(", are")[0] for text in warnings] == [
        "1 of the 1 images of split 'validation', such as b",
        "1 of the 1 images of split 'val', such as b",
    ]


def test_pascal_voc(tmp_path):
    """The devkit's folders: a list names two of the three photographs, as most have no mask."""
    root = tmp_path / "VOCdevkit/VOC2012"
    for name in ("2007_000032", "2007_000033", "2007_000999"):
        write(root / f"JPEGImages/{name}.jpg")
    for name, value in (("2007_000032", 15), ("2007_000033", 255)):
        label = Image.new("P", (4, 3), value)
        label.putpixel((0, 0), 0)
        label.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
        (root / "SegmentationClass").mkdir(exist_ok=True)
        label.save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n2007_000032\n")
    (root / "ImageSets/Segmentation/test.txt").write_text("2007_000999\n")
    for source in (root, root.parent):
        labelled = open_source(str(source), "val")
        assert labelled.classes == VOC and len(VOC) == 21
        assert [row["id"] for row in rows(labelled)] == ["2007_000033", "2007_000032"]
        assert np.unique(decode_annotation(labelled[1]["annotation"])).tolist() == [0, 15]
    with pytest.raises(DataError, match="has no split 'train' in a known layout"):
        open_source(str(root), "train")
    with pytest.raises(DataError, match="2007_000999.jpg has no label"):
        open_source(str(root), "test")


def test_training_needs_no_names_of_classes(place):
    """Folders that look like ADE20K's, with other labels: their photographs can calibrate."""
    write(place / "other/images/training/x.jpg")
    write(place / "other/annotations/training/x.png", "L", 1)
    (row,) = rows(open_images(Data("other"), "train"))
    assert (row["id"], row["annotation"]) == ("x", None)
