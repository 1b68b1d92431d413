import io

import numpy as np
import pytest
from PIL import Image

from segquant.data.classes import ADE20K, CAMVID, CITYSCAPES
from segquant.data.images import decode_annotation
from segquant.data.sources import open_source, rows
from segquant.errors import DataError


def _write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _pair(tmp_path, image, label, labels):
    _write(tmp_path / image, np.zeros((*labels.shape, 3), np.uint8))
    _write(tmp_path / label, labels.astype(np.uint8))


LABELS = np.array([[0, 1, 2], [10, 11, 3]])
LAYOUTS = {
    "ade": ("images/validation/a.jpg", "annotations/validation/a.png", "val", ADE20K, [[255, 0, 1], [9, 10, 2]]),
    "camvid": ("val/a.png", "valannot/a.png", "val", CAMVID, [[0, 1, 2], [10, 255, 3]]),
    "cityscapes": (
        "leftImg8bit/val/ulm/a_leftImg8bit.png",
        "gtFine/val/ulm/a_gtFine_labelTrainIds.png",
        "val",
        CITYSCAPES,
        [[0, 1, 2], [10, 11, 3]],
    ),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_each_layout_is_recognised(tmp_path, layout):
    image, label, split, classes, expected = LAYOUTS[layout]
    _pair(tmp_path, image, label, LABELS)
    source = open_source(str(tmp_path), split)
    assert list(source.classes) == list(classes)
    (row,) = rows(source)
    assert (row["width"], row["height"]) == (3, 2)
    assert row["image"] == (tmp_path / image).read_bytes()  # the original bytes
    np.testing.assert_array_equal(decode_annotation(row["annotation"]), expected)


def test_the_limit_takes_the_first_in_name_order(tmp_path):
    for name in ("c", "a", "b"):
        _pair(tmp_path, f"val/{name}.png", f"valannot/{name}.png", LABELS)
    assert [r["id"] for r in rows(open_source(str(tmp_path), "val", 2))] == ["a", "b"]
    assert len(open_source("scenes", "validation", 5)) == 5


def test_two_images_of_one_name_are_refused(tmp_path):
    _pair(tmp_path, "val/a.png", "valannot/a.png", LABELS)
    _write(tmp_path / "val/a.jpg", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(DataError, match="have one name, and so one label"):
        open_source(str(tmp_path), "val")


def _break(tmp_path, what):
    image, label = tmp_path / "val/a.png", tmp_path / "valannot/a.png"
    _pair(tmp_path, "val/a.png", "valannot/a.png", LABELS)
    if what == "no label":
        label.unlink()
    elif what == "sizes":
        _write(label, np.zeros((4, 4), np.uint8))
    elif what == "id":
        _write(label, np.full((2, 3), 60, np.uint8))
    elif what == "rgb label":
        _write(label, np.zeros((2, 3, 3), np.uint8))
    elif what == "truncated image":
        image.write_bytes(image.read_bytes()[:40])
    elif what == "empty image":
        image.write_bytes(b"")
    elif what == "truncated label":
        label.write_bytes(label.read_bytes()[:40])
    elif what == "text image":
        image.write_text("hello")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no label", "a.png has no label"),
        ("sizes", "valannot/a.png is 4x4 but its image "),
        ("id", "valannot/a.png holds class id 60, but there are 11 classes"),
        ("rgb label", "valannot/a.png is a RGB image: a label must be 8-bit"),
        ("truncated image", "val/a.png is not a readable image"),
        ("empty image", "val/a.png is not a readable image"),
        ("text image", "val/a.png is not a readable image"),
        ("truncated label", "valannot/a.png is not a readable label"),
    ],
)
def test_a_broken_pair_is_named(tmp_path, what, message):
    _break(tmp_path, what)
    with pytest.raises(DataError) as error:
        list(rows(open_source(str(tmp_path), "val")))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folders_and_splits(tmp_path):
    with pytest.raises(DataError, match="is not there: give 'scenes', a labelled folder"):
        open_source(str(tmp_path / "none"), "val")
    with pytest.raises(DataError, match="has no split 'val' in a layout known here"):
        open_source(str(tmp_path), "val")
    with pytest.raises(DataError, match="choose one of train, validation"):
        open_source("scenes", "test")
    (tmp_path / "val").mkdir()
    (tmp_path / "valannot").mkdir()
    with pytest.raises(DataError, match="val has no images"):
        open_source(str(tmp_path), "val")


def test_real_ade20k_labels_are_the_pngs_minus_one(real):
    root = real / "ADEChallengeData2016"
    source = open_source(str(root), "validation")
    assert len(source) == 9
    for row in rows(source):
        raw = np.asarray(Image.open(root / "annotations/validation" / f"{row['id']}.png")).astype(int)
        ours = np.asarray(Image.open(io.BytesIO(row["annotation"]))).astype(int)
        np.testing.assert_array_equal(ours, np.where(raw == 0, 255, raw - 1))


def test_real_camvid_counts(real):
    assert len(open_source(str(real / "camvid"), "train")) == 123
    assert len(open_source(str(real / "camvid"), "val")) == 51
