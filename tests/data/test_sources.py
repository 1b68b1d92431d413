import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from segquant.base.classes import ADE20K, CAMVID, CITYSCAPES, VOC
from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError
from segquant.data.images import decode_annotation
from segquant.data.rows import rows
from segquant.data.sources import open_images, open_source


def _write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _pair(tmp_path, image, label, labels):
    _write(tmp_path / image, np.zeros((*labels.shape, 3), np.uint8))
    _write(tmp_path / label, labels.astype(np.uint8))


LABELS = np.array([[0, 1, 2], [10, 11, 3]])


def _ade(images, labels, split):
    """A row of LAYOUTS: a pair in these folders, and the split that a user asks for."""
    image, label = f"images/{images}/ADE_val_1.jpg", f"annotations/{labels}/ADE_val_1.png"
    return image, label, split, ADE20K, [[255, 0, 1], [20, 10, 2]], np.array([[0, 1, 2], [21, 11, 3]])


LAYOUTS = {
    "ade": _ade("validation", "validation", "val"),
    "ade, val by its long name": _ade("val", "val", "validation"),
    "ade, val": _ade("val", "val", "val"),
    "ade, train": _ade("train", "train", "training"),
    "ade, training": _ade("training", "training", "train"),
    "voc": (
        "JPEGImages/2007_000032.jpg",
        "SegmentationClass/2007_000032.png",
        "val",
        VOC,
        [[0, 15, 255], [1, 20, 0]],
        np.array([[0, 15, 255], [1, 20, 0]]),
    ),
    "camvid": ("val/a.png", "valannot/a.png", "val", CAMVID, [[0, 1, 2], [10, 255, 3]]),
    "cityscapes": (
        "leftImg8bit/val/ulm/a_leftImg8bit.png",
        "gtFine/val/ulm/a_gtFine_labelTrainIds.png",
        "val",
        CITYSCAPES,
        [[0, 1, 2], [10, 11, 3]],
    ),
}


LONG = {f"{layout}, val by its long name": layout for layout in ("voc", "camvid", "cityscapes")}


@pytest.mark.parametrize("layout", [*LAYOUTS, *LONG])
def test_each_layout_is_recognised(tmp_path, layout):
    long, layout = layout in LONG, LONG.get(layout, layout)
    image, label, split, classes, expected, *labels = LAYOUTS[layout]
    split = "validation" if long else split
    _pair(tmp_path, image, label, *labels or [LABELS])
    if layout == "voc":
        _pair(tmp_path, "JPEGImages/2007_000033.jpg", "SegmentationClass/2007_000033.png", LABELS)
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
        (tmp_path / "ImageSets/Segmentation/val.txt").write_text("2007_000032\n")
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


def test_two_images_of_the_same_name_are_refused(tmp_path):
    _pair(tmp_path, "val/a.png", "valannot/a.png", LABELS)
    _write(tmp_path / "val/a.jpg", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(DataError, match="have the same name and so the same label"):
        open_source(str(tmp_path), "val")


def test_missing_folders_and_splits(tmp_path):
    with pytest.raises(DataError, match="is not there: give 'scenes', a labelled folder"):
        open_source(str(tmp_path / "none"), "val")
    with pytest.raises(DataError, match="has no split 'val' in a known layout"):
        open_source(str(tmp_path), "val")
    with pytest.raises(DataError, match="choose one of train, validation"):
        open_source("scenes", "test")
    (tmp_path / "val").mkdir()
    (tmp_path / "valannot").mkdir()
    with pytest.raises(DataError, match="val has no images"):
        open_source(str(tmp_path), "val")


def test_published_cityscapes(tmp_path):
    """19 of the labelIds are evaluated; trainIds take precedence where they exist."""
    stored = np.array([[0, 7, 8, 11, 26], [33, 34, 29, 5, 255]])
    _pair(tmp_path, "leftImg8bit/val/ulm/a_leftImg8bit.png", "gtFine/val/ulm/a_gtFine_labelIds.png", stored)
    labels = decode_annotation(open_source(str(tmp_path), "val")[0]["annotation"])
    assert labels.tolist() == [[255, 0, 1, 2, 13], [18, 255, 255, 255, 255]]
    _write(tmp_path / "gtFine/val/ulm/a_gtFine_labelTrainIds.png", np.full((2, 5), 4, np.uint8))
    assert np.unique(decode_annotation(open_source(str(tmp_path), "val")[0]["annotation"])).tolist() == [4]


@pytest.mark.parametrize("top", ["", "CamVid/", "data/CamVid/", "./", "./CamVid//"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_archives_may_have_extra_folders_files_and_backslashes(tmp_path, top, separator):
    """The data at the top or in a folder, a README beside them, and names as a few programs write them."""
    _pair(tmp_path, "val/a.png", "valannot/a.PNG", LABELS)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("val/a.png", "valannot/a.PNG"):
            entry = zipfile.ZipInfo()
            entry.filename = f"{top}{name}".replace("/", separator)
            archive.writestr(entry, (tmp_path / name).read_bytes())
        archive.writestr(f"{top.split('/')[0]}/README.txt" if top.count("/") > 1 else "README.txt", "hello")
        archive.writestr("__MACOSX/val/._a.png", "?")
    source = open_source(str(tmp_path / "set.zip"), "val")
    assert [row["image"] for row in rows(source)] == [(tmp_path / "val/a.png").read_bytes()]


def test_an_ambiguous_folder_is_refused(tmp_path):
    for top in ("first", "second"):
        _pair(tmp_path, f"{top}/val/a.png", f"{top}/valannot/a.png", LABELS)
    folders = ", ".join(str(tmp_path / top) for top in ("first", "second"))
    for opened in (open_source, lambda source, split: open_images(Data(source), split)):
        with pytest.raises(DataError, match=f"2 folders have a split 'val' in a known layout .{folders}.: give one of"):
            opened(str(tmp_path), "val")
    _pair(tmp_path, "second/images/val/ADE_1.png", "second/annotations/val/ADE_1.png", LABELS)
    shutil.rmtree(tmp_path / "first")  # of one folder with two layouts the first counts, as at the top
    assert [row["id"] for row in rows(open_images(Data(str(tmp_path)), "val"))] == ["ADE_1"]


def test_real_camvid_counts(real):
    assert len(open_source(str(real / "camvid"), "train")) == 123
    assert len(open_source(str(real / "camvid"), "val")) == 51


def test_a_label_of_exactly_that_name_comes_before_one_with_its_suffix_in_another_case(tmp_path):
    _pair(tmp_path, "val/x.png", "masks/val/x.PNG", LABELS % 2)
    _write(tmp_path / "masks/val/x.png", np.full((2, 3), 2, np.uint8))
    for suffix, expected in (("PNG", [0, 1]), ("png", [2])):
        options = Data(
            str(tmp_path), images="{split}/*.png", annotations=f"masks/{{split}}/*.{suffix}", classes="camvid"
        )
        (row,) = rows(open_source(options, "val"))
        assert np.unique(decode_annotation(row["annotation"])).tolist() == expected


@pytest.mark.parametrize("line", ["c.jpg", "c.jpg.png"])
def test_a_list_names_an_image_as_the_wildcards_match_it(tmp_path, line):
    """Supervisely calls the label of c.jpg c.jpg.png."""
    _pair(tmp_path, "img/c.jpg", "masks/c.jpg.png", LABELS % 3)
    (tmp_path / "val.txt").write_text(f"{line}\n")
    options = Data(str(tmp_path), images="img/*", annotations="masks/*.png", names="{split}.txt", classes="camvid")
    assert [row["id"] for row in rows(open_source(options, "val"))] == ["c.jpg"]


def test_an_archive_and_its_folder_take_the_same_patterns(tmp_path):
    """The one folder around all files in an archive may stand in a pattern, or not."""
    _pair(tmp_path, "set/top/val/0.jpg", "set/top/val/0_m.png", LABELS % 3)
    (tmp_path / "set/top/val.txt").write_text("0\n")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for path in (tmp_path / "set").rglob("*.*"):
            file.write(path, path.relative_to(tmp_path / "set"))
    for source, top in (("set", "top/"), ("set.zip", "top/"), ("set.zip", ""), ("set.zip", "./top/")):
        keys = {
            "images": f"{top}{{split}}/*.jpg",
            "annotations": f"{top}{{split}}/*_m.png",
            "names": f"{top}{{split}}.txt",
        }
        (row,) = rows(open_source(Data(str(tmp_path / source), classes="camvid", **keys), "val"))
        assert row["id"] == "0"


@pytest.mark.parametrize("split", ["*", "v*", "**"])
def test_a_split_is_no_wildcard(split, tmp_path):
    """It would be several splits, and what is trained on would be scored."""
    _pair(tmp_path, "val/a.png", "masks/val/a.png", LABELS % 2)
    options = Data(str(tmp_path), images="{split}/*.png", annotations="masks/{split}/*.png", classes="camvid")
    with pytest.raises(ConfigError, match="has a wildcard, so that several splits would be one: name one of them"):
        open_source(options, split)


def test_names_in_two_unicode_forms_are_named(tmp_path):
    """macOS writes another form than most; the two look the same."""
    _pair(tmp_path, "val/\u00e9.png", "valannot/e\u0301.png", LABELS)
    with pytest.raises(DataError, match="have names in two Unicode forms .NFC and NFD., which look the same: rename"):
        open_source(str(tmp_path), "val")


@pytest.mark.parametrize("key", ["images", "annotations", "names"])
def test_an_absolute_pattern_is_refused(key, tmp_path):
    patterns = {"images": "{split}/*.png", "annotations": "masks/*.png", key: str(tmp_path / "{split}/*.png")}
    with pytest.raises(ConfigError, match=f"Data.{key} '/.*' is absolute: give it below data.source"):
        Data(str(tmp_path), **patterns)


def test_a_folder_that_links_to_itself_is_refused_and_other_links_are_followed(tmp_path):
    """Walking through the link would count each image forty times."""
    options = Data(
        str(tmp_path), images="photos/{split}/**/*.png", annotations="masks/{split}/**/*.png", classes="cityscapes"
    )
    _pair(tmp_path, "elsewhere/a.png", "masks/val/a.png", LABELS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/val").symlink_to(tmp_path / "elsewhere")
    assert [row["id"] for row in rows(open_source(options, "val"))] == ["a"]
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"val/loop links to .*, a folder that holds it: remove the link"):
        open_source(options, "val")


def test_a_folder_for_training_without_photographs_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        DataError, match=r"neither .*train nor .* holds photographs, and .* has no split 'train' in a known"
    ):
        open_images(Data(str(tmp_path)), "train")
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    assert [row["id"] for row in rows(open_images(Data(str(tmp_path)), "train"))] == ["a.png"]
