"""Which Parquet files and rows make a split, and what a cell may hold."""

import io
import json
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError, SegquantError
from segquant.data.images import decode_annotation
from segquant.data.rows import rows
from segquant.data.sources import open_source


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def put(path, values, cell=lambda value: {"bytes": png(value), "path": f"{value}.png"}, **options):
    """Write a Parquet file with a row per value; all pixels of the row's label have that value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [cell(value) for value in values]
    pq.write_table(pa.table({"image": cells, "annotation": cells}), path, **options)


def labels(folder, split, **keys):
    """The label value of each row."""
    source = open_source(Data(str(folder), classes="camvid", **keys), split)
    return [int(decode_annotation(row["annotation"])[0, 0]) for row in rows(source)]


def test_brackets_in_a_path_are_not_a_pattern(tmp_path):
    put(tmp_path / "set[1]" / "val.parquet", [1])
    put(tmp_path / "set1" / "val.parquet", [2])
    assert labels(tmp_path / "set[1]", "val") == [1]


@pytest.mark.parametrize(
    "files",
    [
        ("val-00000-of-00002.parquet", "val-00001-of-00002.parquet"),
        ("data/val-00000-of-00002-f3a663f7140ee7fd.parquet", "data/val-00001-of-00002-0d1c2b3a49586776.parquet"),
        ("val-00001-of-00002.parquet", "val-00002-of-00002.parquet"),
        ("val/00000-of-00002.parquet", "val/00001-of-00002.parquet"),
        ("data/val-0.parquet", "data/val-1.parquet"),
        ("val/0000.parquet", "val/0001.parquet"),
        ("default/val/0000.parquet", "default/val/0001.parquet"),
        ("val/part-00000-3f2a.parquet", "val/part-00001-3f2a.parquet"),
    ],
)
def test_a_split_has_only_its_own_files(tmp_path, files):
    for n, file in enumerate(files):
        put(tmp_path / file, [n])
    for similar in ("train", "val_extra", "val-hard", "validation", "valid", "val_matched", "val-f3a663f7140ee7fd"):
        for file in files:
            put(tmp_path / file.replace("val", similar), [9])
    assert labels(tmp_path, "val") == [0, 1]


def test_several_configurations_are_not_mixed(tmp_path):
    for place in ("full/train/0.parquet", "mini/train/0.parquet", "full/val-0.parquet", "mini/val-0.parquet"):
        put(tmp_path / place, [1 if "mini" in place else 2])
    for split in ("train", "val"):
        with pytest.raises(ConfigError, match=f"split '{split}' in several folders: choose data.conf.* full, mini$"):
            labels(tmp_path, split)
        assert labels(tmp_path, split, configuration="mini") == [1]
    put(tmp_path / "val.parquet", [3])
    with pytest.raises(ConfigError, match="from full, mini, or move the files that lie in no folder into one"):
        labels(tmp_path, "val")


@pytest.mark.parametrize(
    ("asked", "there"),
    [("train", "training"), ("training", "train"), ("val", "validation"), ("validation", "val"), ("valid", "val")],
)
def test_a_split_is_found_by_another_name_of_the_same_meaning(tmp_path, asked, there):
    put(tmp_path / f"{there}-0.parquet", [1])
    put(tmp_path / "test.parquet", [9])
    assert labels(tmp_path, asked) == [1]
    put(tmp_path / "more" / asked / "0.parquet", [2])
    assert labels(tmp_path, asked) == [2]  # exactly the name that is asked for
    with pytest.raises(DataError, match=f"has no split 'dev': choose one of .*test.*{there}"):
        labels(tmp_path, "dev")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train-00001-of-00003.parquet"], "has 1 of the 3 files of split 'train': fetch it again"),
        (["train-00001-of-00003-f3a663f7140ee7fd.parquet"], "has 1 of the 3 files of split 'train': fetch it again"),
        (["train_0_of_2.parquet"], "has 1 of the 2 files of split 'train': fetch it again"),
        (["train-0-of-1.parquet", "train.parquet"], "has several versions of split 'train', such as train-0-of-1.par"),
    ],
)
def test_a_missing_part_and_a_part_too_many_are_errors(tmp_path, files, message):
    for file in files:
        put(tmp_path / file, [1])
    with pytest.raises(DataError, match=message):
        labels(tmp_path, "train")


def test_files_that_pyarrow_names_by_a_hash_are_called_by_their_folder(tmp_path):
    put(tmp_path / "split=val/0123456789abcdef0123456789abcdef-0.parquet", [1])
    with pytest.raises(DataError, match="has no split 'val': choose one of split=val"):
        labels(tmp_path, "val")
    assert labels(tmp_path, "split=val") == [1]


def test_files_with_cells_of_two_kinds_are_refused(tmp_path):
    put(tmp_path / "val-0.parquet", [1])
    put(tmp_path / "val-1.parquet", [2], cell=png)
    with pytest.raises(DataError, match="val-1.parquet has binary in column 'image', but val-0.parquet has struct<"):
        labels(tmp_path, "val")


def test_a_changed_file_is_read_again(tmp_path):
    """Even with the same modification time, as after a copy."""
    file = tmp_path / "val.parquet"
    put(file, [1])
    stat = file.stat()
    assert labels(tmp_path, "val") == [1]
    put(file, [2, 3])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert labels(tmp_path, "val") == [2, 3]


def test_rows_are_found_in_every_row_group(tmp_path):
    put(tmp_path / "val-0.parquet", range(5), row_group_size=2)
    put(tmp_path / "val-1.parquet", range(5, 8), row_group_size=1)
    assert labels(tmp_path, "val") == list(range(8))
    source = open_source(Data(str(tmp_path), classes="camvid"), "val")
    assert [source[i]["id"] for i in (7, 0, 4, 2)] == ["7", "0", "4", "2"]


def test_a_column_must_be_in_all_files(tmp_path):
    put(tmp_path / "val-0.parquet", [1])
    pq.write_table(pa.table({"image": [png(1)], "mask": [png(1)]}), tmp_path / "val-1.parquet")
    with pytest.raises(ConfigError, match=r"has no column 'annotation': set data.columns.annotation to one of image$"):
        labels(tmp_path, "val")


def test_a_table_without_rows_is_an_error(tmp_path):
    pq.write_table(pa.table({"image": [png(1)], "annotation": [png(1)]}).slice(0, 0), tmp_path / "val.parquet")
    with pytest.raises(DataError, match=r"\(val\) has no rows"):
        labels(tmp_path, "val")


def test_a_cell_may_be_bytes_or_a_path(tmp_path):
    put(tmp_path / "bytes" / "val.parquet", [1, 2], png)
    assert labels(tmp_path / "bytes", "val") == [1, 2]
    for name, cell in (
        ("a path", lambda v: f"files/{v}.png"),
        ("struct", lambda v: {"bytes": None, "path": f"files/{v}.png"}),
    ):
        put(tmp_path / name / "val.parquet", [1, 2], cell)
        with pytest.raises(DataError, match=r"column image names files/1.png, which cannot be read .No such file"):
            labels(tmp_path / name, "val")
        (tmp_path / name / "files").mkdir()
        for value in (1, 2):
            (tmp_path / name / "files" / f"{value}.png").write_bytes(png(value))
        assert labels(tmp_path / name, "val") == [1, 2]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([{"bytes": png(1), "path": 5}], r"has struct<bytes: binary, path: int64> instead of images in column 'image'"),
        ([{"bytes": [1, 2], "path": "a"}], "instead of images in column 'image'"),
        (["iVBORw0K" * 900], r"column image names (iVBORw0K){25}\.\.\., which cannot be read .File name too long"),
        ([{"bytes": None, "path": "a\0.png"}], "column image names a\0.png, which cannot be read .embedded null byte"),
    ],
)
def test_a_cell_that_holds_no_image_is_one_line(tmp_path, cells, message):
    pq.write_table(pa.table({"image": cells, "annotation": cells}), tmp_path / "val.parquet")
    with pytest.raises(SegquantError, match=message):
        labels(tmp_path, "val")


@pytest.mark.parametrize("path", ["{outside}", "../private.png", "files/../../private.png", "/dev/zero"])
def test_a_path_stays_inside_the_data_folder(tmp_path, path):
    (tmp_path / "private.png").write_bytes(png(1))
    path = path.format(outside=tmp_path / "private.png")
    for name, cell in (("struct", {"bytes": None, "path": path}), ("text", path)):
        put(tmp_path / name / "val.parquet", [1], lambda _, cell=cell: cell)
        with pytest.raises(DataError, match=f"names {path}, which lies outside of .*/{name}: put the file into it"):
            labels(tmp_path / name, "val")


def test_a_named_pipe_is_no_image_and_a_link_of_the_folders_owner_is(tmp_path):
    put(tmp_path / "set/val.parquet", [1], lambda _: "a.png")
    os.mkfifo(tmp_path / "set/a.png")  # reading it would never end
    with pytest.raises(DataError, match="names a.png, which cannot be read .it is no file"):
        labels(tmp_path / "set", "val")
    (tmp_path / "set/a.png").unlink()
    (tmp_path / "disk.png").write_bytes(png(1))
    (tmp_path / "set/a.png").symlink_to(tmp_path / "disk.png")
    assert labels(tmp_path / "set", "val") == [1]


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([[png(1)], [png(1)], [png(2)]], names=["image", "annotation", "image"])
    pq.write_table(table, tmp_path / "val.parquet")
    with pytest.raises(ConfigError, match="has two columns 'image': rename one of them"):
        labels(tmp_path, "val")


@pytest.mark.parametrize(("named", "split"), [(None, "train"), ("validation", "validation")])
def test_a_saved_split_has_only_its_name(tmp_path, named, split):
    """Otherwise a model could be calibrated on the images that it is evaluated on."""
    cells = [{"bytes": png(v), "path": f"{v}.png"} for v in (1, 2, 3)]
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": cells, "annotation": cells}, features, split=named)
    dataset.select([2, 0]).save_to_disk(str(tmp_path / "saved"))
    assert labels(tmp_path / "saved", split) == [3, 1]
    with pytest.raises(DataError, match=f"has no split 'test': choose one of {split}$"):
        labels(tmp_path / "saved", "test")
    synonym = {"train": "training", "validation": "val"}[split]
    assert labels(tmp_path / "saved", synonym) == [3, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [("state.json", "{}"), ("state.json", "[]"), ("dataset_dict.json", "{}"), ("dataset_dict.json", "[1]")],
)
def test_damaged_metadata_of_a_saved_data_set_are_one_line(tmp_path, name, text):
    dataset = datasets.Dataset.from_dict({"image": [png(1)], "annotation": [png(1)]})
    saved = dataset if name == "state.json" else datasets.DatasetDict(train=dataset)
    saved.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / name).write_text(text)
    with pytest.raises(DataError, match="saved cannot be read as a table"):
        labels(tmp_path / "saved", "train")


@pytest.mark.parametrize("name", ["../private.arrow", "{outside}", "data/../../private.arrow"])
def test_a_saved_data_set_names_only_files_of_its_own(name, tmp_path):
    """`datasets` follows any path in state.json, and any address in dataset_dict.json."""
    dataset = datasets.Dataset.from_dict({"image": [png(1)], "annotation": [png(1)]})
    datasets.DatasetDict(train=dataset).save_to_disk(str(tmp_path / "set"))
    state = tmp_path / "set/train/state.json"
    arrow = state.with_name("data-00000-of-00001.arrow")
    arrow.rename(tmp_path / "set/private.arrow")
    name = name.format(outside=tmp_path / "set/private.arrow")
    state.write_text(json.dumps({**json.loads(state.read_text()), "_data_files": [{"filename": name}]}))
    for folder in ("set", "set/train"):
        with pytest.raises(DataError, match="state.json names .*private.arrow', which lies outside of .*/set/train"):
            labels(tmp_path / folder, "train")
    for split in ("../other", "/tmp", "a::https://example.org"):
        (tmp_path / "set/dataset_dict.json").write_text(json.dumps({"splits": ["train", split]}))
        with pytest.raises(DataError, match=f"names the split '{split}', which is no folder beside it"):
            labels(tmp_path / "set", "train")


def test_a_named_pipe_in_a_saved_data_set_is_not_waited_for(tmp_path):
    datasets.Dataset.from_dict({"image": [png(1)], "annotation": [png(1)]}).save_to_disk(str(tmp_path / "set"))
    (tmp_path / "set/data-00000-of-00001.arrow").unlink()
    os.mkfifo(tmp_path / "set/data-00000-of-00001.arrow")
    with pytest.raises(DataError, match="cannot be read as a table .*it is no file"):
        labels(tmp_path / "set", "train")


def test_a_known_layout_takes_precedence_over_a_parquet_file(tmp_path):
    put(tmp_path / "meta" / "val.parquet", [1])
    for folder in ("val", "valannot"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(png(10))
    source = open_source(str(tmp_path), "val")
    assert [row["id"] for row in rows(source)] == ["a"] and np.unique(decode_annotation(source[0]["annotation"])) == 10


def test_a_folder_of_files_may_be_a_link(tmp_path):
    put(tmp_path / "elsewhere/val.parquet", [1, 2])
    (tmp_path / "set").mkdir()
    (tmp_path / "set/data").symlink_to(tmp_path / "elsewhere")
    assert labels(tmp_path / "set", "val") == [1, 2]
