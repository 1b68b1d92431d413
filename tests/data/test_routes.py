"""The same labelled images from a folder, an archive, by patterns, from Parquet, save_to_disk and the hub."""

import io
import shutil
import zipfile
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import ade20k_folder
from PIL import Image

from segquant.base.classes import ADE20K
from segquant.base.config import Columns, Data
from segquant.base.errors import ConfigError, DataError
from segquant.data.images import decode_annotation
from segquant.data.rows import rows
from segquant.data.shards import write_shards
from segquant.data.sources import open_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADE = {"classes": "ade20k", "reduce_labels": True}


@pytest.fixture(scope="module", params=["made up", "real"])
def official(request, tmp_path_factory):
    """The folder ADEChallengeData2016, made up or real."""
    if request.param == "real":
        return request.getfixturevalue("real") / "ADEChallengeData2016"
    root = tmp_path_factory.mktemp("data") / "ADEChallengeData2016"
    for split, count in (("training", 5), ("validation", 3)):
        ade20k_folder(root, split, count)
    return root


def features():
    return datasets.Features(
        {"image": datasets.Image(), "annotation": datasets.Image(), "scene_category": datasets.Value("int32")}
    )


def as_dataset(official, split):
    images = sorted((official / "images" / split).glob("*.jpg"))
    labels = [official / "annotations" / split / f"{path.stem}.png" for path in images]

    def cell(path):
        return {"bytes": path.read_bytes(), "path": path.name}

    columns = {
        "image": [cell(p) for p in images],
        "annotation": [cell(p) for p in labels],
        "scene_category": [0] * len(images),
    }
    return datasets.Dataset.from_dict(columns, features())


def to_zip(official, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in official.rglob("*"):
            archive.write(file, file.relative_to(official.parent))
    return path


@pytest.fixture(scope="module")
def routes(official, tmp_path_factory):
    """{route: (data, name of the validation split)}"""
    base = tmp_path_factory.mktemp("routes")
    validation, train = as_dataset(official, "validation"), as_dataset(official, "training")
    datasets.DatasetDict({"train": train, "validation": validation}).save_to_disk(str(base / "saved"))
    repository = base / "hub" / "datasets--zhoubolei--scene_parse_150"
    snapshot = repository / "snapshots" / COMMIT
    for split, dataset in (("train", train), ("validation", validation)):
        for part in range(2):
            file = snapshot / "scene_parsing" / split / f"{part:04d}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            dataset.shard(2, part, contiguous=True).to_parquet(str(file))
        other = snapshot / "instance_segmentation" / split / "0000.parquet"
        other.parent.mkdir(parents=True)
        dataset.select_columns(["scene_category"]).to_parquet(str(other))
    (repository / "refs" / "refs" / "convert").mkdir(parents=True)
    (repository / "refs" / "refs" / "convert" / "parquet").write_text(COMMIT)
    (base / "flat").mkdir()
    validation.to_parquet(str(base / "flat" / "validation-00000-of-00001.parquet"))
    train.to_parquet(str(base / "flat" / "train-00000-of-00001.parquet"))
    (base / "renamed").mkdir()
    for split, dataset in (("train", train), ("validation", validation)):
        renamed = dataset.rename_columns({"image": "photo", "annotation": "mask"})
        renamed.to_parquet(str(base / "renamed" / f"{split}.parquet"))
    above = base / "above"
    (above / "docs").mkdir(parents=True)
    (above / official.name).symlink_to(official)
    return {
        "archive": Data(str(to_zip(official, base / "ADEChallengeData2016.zip"))),
        "folder above": Data(str(above)),
        "patterns": Data(str(official), images="images/{split}/*.jpg", annotations="annotations/{split}/*.png", **ADE),
        "saved to disk": Data(str(base / "saved"), **ADE),
        "Parquet": Data(str(base / "flat"), **ADE),
        "a configuration's folder": Data(str(snapshot), configuration="scene_parsing", **ADE),
        "other columns": Data(str(base / "renamed"), columns=Columns("photo", "mask"), **ADE),
        "the hub": Data("zhoubolei/scene_parse_150"),
        "the hub at a commit": Data("zhoubolei/scene_parse_150", revision=COMMIT),
    }, base / "hub"


ROUTES = (
    "archive",
    "folder above",
    "patterns",
    "saved to disk",
    "Parquet",
    "a configuration's folder",
    "other columns",
    "the hub",
    "the hub at a commit",
)


@pytest.fixture
def hub(routes, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(routes[1]))


@pytest.fixture(scope="module")
def from_folder(official, tmp_path_factory):
    """A function that gives the folder with a split's shards, from the official folders, and their manifest."""

    @cache
    def made(split):
        folder = tmp_path_factory.mktemp(split)
        return folder, write_shards({split: open_source(str(official), split)}, folder / "shards", 200_000)

    return made


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_makes_the_same_shards(route, split, from_folder, routes, hub, tmp_path):
    data = routes[0][route]
    if data.images:
        split = {"train": "training"}.get(split, split)  # patterns do not translate the name of the split
    folder, expected = from_folder(split)
    manifest = write_shards({split: open_source(data, split)}, tmp_path / "route", 200_000)
    assert manifest == expected and manifest["classes"] == list(ADE20K)
    for shard in expected["splits"][split]["shards"]:
        assert (tmp_path / "route" / shard["file"]).read_bytes() == (folder / "shards" / shard["file"]).read_bytes()


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_has_the_splits_by_both_of_their_names(route, routes, hub):
    """Patterns take the split as it is written."""
    for names in (("train", "training"), ("val", "validation")):
        if route == "patterns":
            with pytest.raises(DataError, match=r"images/(train|val)/\*.jpg matches no file"):
                open_source(routes[0][route], min(names, key=len))
            continue
        first, second = (open_source(routes[0][route], name) for name in names)
        assert len(first) == len(second) and first[0] == second[0]


@pytest.mark.parametrize("split", ["training", "validation"])
def test_class_ids_are_the_stored_values_minus_one(official, split):
    """Every pixel of every pair; the images keep the bytes of their files."""
    source = open_source(str(official), split)
    assert len(source) == len(list((official / "images" / split).iterdir()))
    for row in rows(source):
        stored = np.asarray(Image.open(official / "annotations" / split / f"{row['id']}.png")).astype(int)
        np.testing.assert_array_equal(decode_annotation(row["annotation"]), np.where(stored == 0, 255, stored - 1))
        assert row["image"] == (official / "images" / split / f"{row['id']}.jpg").read_bytes()
        assert (row["height"], row["width"]) == stored.shape


def test_every_real_pair_is_read(real):
    for split, count in (("training", 126), ("validation", 9)):
        assert len(open_source(str(real / "ADEChallengeData2016"), split)) == count


def test_a_limit_and_random_access(routes, hub):
    for route in ROUTES:
        source = open_source(routes[0][route], "validation", 2)
        whole = open_source(routes[0][route], "validation")
        assert len(source) == 2 and source[1] == whole[1]
        with pytest.raises(IndexError):
            source[2]


def pair(root, image, label, values):
    for name, array in ((image, np.zeros((*np.shape(values), 3), np.uint8)), (label, np.array(values, np.uint8))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / name)


@pytest.fixture
def names(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffroad\nsky\n car \n\n")
    return str(tmp_path / "names.txt")


def test_patterns_across_folders(tmp_path, names):
    """Two drives with frames of the same name; masks in a different folder with a different ending."""
    for drive in ("a/day", "b"):
        for frame in ("0001", "0002"):
            pair(tmp_path / "set", f"drives/{drive}/{frame}.png", f"masks/v1/{drive}/{frame}_mask.png", [[0, 1, 2, 9]])
    data = Data(
        str(tmp_path / "set"),
        images="{split}/**/*.png",
        annotations="masks/v1/**/*_mask.png",
        classes=names,
        ignore=(9,),
    )
    source = open_source(data, "drives")
    assert [row["id"] for row in rows(source)] == ["a-day-0001", "a-day-0002", "b-0001", "b-0002"]
    assert source.classes == ["road", "sky", "car"]
    assert decode_annotation(source[0]["annotation"]).tolist() == [[0, 1, 2, 255]]


def test_double_stars_match_no_folder_and_suffixes_match_any_case(tmp_path, names):
    for name in ("0", "a/1", "a/b/2"):
        pair(tmp_path / "set", f"drives/{name}.JPG", f"masks/{name}.PNG", [[0, 1, 2]])
    data = Data(str(tmp_path / "set"), images="./{split}/**/*.jpg", annotations="masks/**/*.png", classes=names)
    source = open_source(data, "drives")
    assert [row["id"] for row in rows(source)] == ["0", "a-1", "a-b-2"]


def test_parameters_for_labels_override_the_layout(tmp_path, names):
    pair(tmp_path, "val/a.png", "valannot/a.png", [[0, 1, 3, 200, 11]])
    data = Data(str(tmp_path), classes=names, reduce_labels=True, ignore=(200, 11))
    source = open_source(data, "val")
    assert decode_annotation(source[0]["annotation"]).tolist() == [[255, 0, 2, 255, 255]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": "{split}/*.png", "annotations": "valannot/*"}, "does not name its classes: set data.classes"),
        (
            {"images": "{split}/a.png", "annotations": "valannot/a.png"},
            "have different wildcards or none: use the same wildcards (* and **)",
        ),
        (
            {"images": "{split}/*.png", "annotations": "*/*.png"},
            "have different wildcards or none: use the same wildcards (* and **)",
        ),
        ({"images": "none/{split}/*.png", "annotations": "x/*.png"}, "none/val/*.png matches no file"),
        (
            {"images": "{split}/*.png", "annotations": "labels/*.png", "classes": "camvid"},
            "val/a.png has no label: add",
        ),
        ({"images": "val/*.png", "annotations": "valannot/*.png"}, "images 'val/*.png' has no {split}, so that every"),
        (
            {"images": "*/a.png", "annotations": "*annot/a.png", "names": "{split}.txt", "classes": "camvid"},
            "val.txt, which lists the images of the split, is not there: check data.names and the split",
        ),
        ({"classes": "blank.txt"}, "data.classes 'blank.txt' has no name in line 2: write a class per line"),
        ({"classes": "first.txt"}, "data.classes 'first.txt' has no name in line 1: write a class per line"),
        ({"classes": "twice.txt"}, "data.classes 'twice.txt' names two classes 'car': rename one"),
        ({"classes": "empty.txt"}, "data.classes 'empty.txt' names 0 classes: name 1 to 255, a class per line"),
        (
            {"classes": "cityscapes"},
            "has the labels of a known layout, but data.classes names other classes: set data.reduce",
        ),
        ({"classes": "nowhere.txt"}, "'nowhere.txt' is unknown: give one of ade20k, cityscapes, camvid, voc or a t"),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(tmp_path, keys, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text("road\n\nsky\n")
    (tmp_path / "first.txt").write_text("\nroad\nsky\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "twice.txt").write_text("car\nroad\ncar\n")
    pair(tmp_path, "val/a.png", "valannot/a.png", [[0, 11]])
    if keys.get("annotations") == "valannot/*":
        keys = {**keys, "images": "{split}/*"}
    with pytest.raises((ConfigError, DataError)) as caught:
        open_source(Data(str(tmp_path), **keys), "val")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_tables_that_do_not_fit_are_one_line(routes, hub, tmp_path):
    flat = routes[0]["Parquet"]
    for data, split, message in (
        (flat, "test", "has no split 'test': choose one of train, validation"),
        (routes[0]["saved to disk"], "test", "has no split 'test': choose one of train, validation"),
        (Data(flat.source), "validation", "does not name its classes: set data.classes"),
        (Data(flat.source, classes="ade20k"), "validation", "set data.reduce_labels to true where 0 is no class"),
        (
            Data(flat.source, columns=Columns("photo"), **ADE),
            "validation",
            "has no column 'photo': set data.columns.image to one of image, annotation, scene_category",
        ),
        (Data("owner/none", **ADE), "validation", "data source 'owner/none' is nothing here and the hub gives none"),
        (Data("zhoubolei/scene_parse_150", revision="v9"), "validation", "the hub gives none"),
        (
            Data("zhoubolei/scene_parse_150", configuration="none"),
            "validation",
            "in none at revision refs/convert/parquet, whose folders are instance_segmentation, scene_parsing: choose",
        ),
    ):
        with pytest.raises((ConfigError, DataError)) as caught:
            open_source(data, split)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_broken_tables_are_one_line(routes, tmp_path):
    whole = Path(routes[0]["Parquet"].source, "validation-00000-of-00001.parquet").read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"PAR1" + whole[4:-8] + b"????PAR1"):
        folder = tmp_path / str(len(broken))
        folder.mkdir()
        (folder / "validation.parquet").write_bytes(broken)
        with pytest.raises(DataError, match="cannot be read as a table") as caught:
            open_source(Data(str(folder), **ADE), "validation")
        assert "\n" not in str(caught.value)
    shutil.copytree(routes[0]["saved to disk"].source, tmp_path / "saved")
    for file in (tmp_path / "saved" / "validation").glob("*.arrow"):
        file.unlink()
    with pytest.raises(DataError, match="cannot be read as a table"):
        open_source(Data(str(tmp_path / "saved"), **ADE), "validation")


def test_rows_of_the_same_name_have_their_number_as_id(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    for name, paths, ids in (
        ("same", ["a/x.png", "b/x.png"], ["00000000", "00000001"]),
        ("none", [None, None], ["00000000", "00000001"]),
        ("different", ["a/x.png", "b/y.png"], ["x", "y"]),
    ):
        cells = [{"bytes": buffer.getvalue(), "path": path} for path in paths]
        columns = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
        table = datasets.Dataset.from_dict({"image": cells, "annotation": cells}, columns)
        table.to_parquet(str(tmp_path / name / "val.parquet"))
        source = open_source(Data(str(tmp_path / name), classes="camvid"), "val")
        assert [row["id"] for row in rows(source)] == ids


def test_a_row_without_an_image_is_named(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    cells = {"image": [None], "annotation": [{"bytes": buffer.getvalue(), "path": None}]}
    table = datasets.Dataset.from_dict(cells, datasets.Features({k: v for k, v in features().items() if k in cells}))
    table.to_parquet(str(tmp_path / "val.parquet"))
    with pytest.raises(DataError, match=r"\(val\) row 0 \(00000000\), column image is empty"):
        open_source(Data(str(tmp_path), **ADE), "val")[0]
