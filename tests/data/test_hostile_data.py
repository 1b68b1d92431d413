"""Manifests, shards and archives that strangers made, with right digests, and photographs of 100 million pixels."""

import io
import json
import os
import shutil
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ade20k_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError, SegquantError
from segquant.base.files import sha256
from segquant.data import images, shards
from segquant.data.images import decode_annotation, histogram
from segquant.data.labels import Labels
from segquant.data.sources import open_source
from segquant.data.table_rows import Parquet
from segquant.data.tree import Archive, Folder
from segquant.evaluation import loop, metric


def test_a_cell_that_a_file_holds_once_for_many_rows_is_in_memory_once(tmp_path):
    """A Parquet file of 20 MB took 7 GB."""
    cell, sides = os.urandom(2_000_000), {"width": [1] * 100, "height": [1] * 100}
    for name, columns in (
        ("plain", {"image": [cell] * 100}),
        ("struct", {"image": [{"bytes": cell, "path": "a"}] * 100}),
        ("shard", {"id": [*map(str, range(100))], **dict.fromkeys(("image", "annotation"), [cell] * 100), **sides}),
    ):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(columns), path, dictionary_pagesize_limit=1 << 30)
        before = pa.total_allocated_bytes()
        if name == "shard":
            count = 0
            for row in shards.shard_rows(shards.Shard(path, 100, sha256(path))):
                assert row["image"] == row["annotation"] == cell and row["id"] == str(count)
                count += 1
                assert pa.total_allocated_bytes() - before < 20_000_000
            assert count == 100
            continue
        table = Parquet([path])
        (read,) = table.cells(99, ["image"])
        assert read == (cell if name == "plain" else {"bytes": cell, "path": "a"})
        assert pa.total_allocated_bytes() - before < 20_000_000


def test_a_file_whose_name_is_no_utf8_is_one_line(tmp_path):
    data = ade20k_folder(tmp_path, "validation", 1)
    for path in [*data.rglob("*.jpg"), *data.rglob("*.png")]:
        path.rename(path.with_name(os.fsdecode(b"a\xe9") + path.suffix))
    with pytest.raises(DataError, match=r"has the file 'a\\udce9', whose name is no UTF-8: rename it"):
        source = open_source(Data(str(data), classes="ade20k", reduce_labels=True), "validation")
        shards.write_shards({"validation": source}, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "shards"
    shards.write_shards({"validation": open_source("scenes", "validation", 2)}, folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "shards")


def rewritten(folder, **columns):
    """Put other columns into the only shard (None: without it), and make its digest right again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["splits"]["validation"]["shards"][0]
    table = pq.read_table(folder / entry["file"])
    for name, column in columns.items():
        table = table.drop_columns([name])
        table = table if column is None else table.append_column(name, column)
    pq.write_table(table, folder / entry["file"])
    entry["sha256"] = sha256(folder / entry["file"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


COLUMNS = {
    "no image": {"image": None},
    "no annotation": {"annotation": None},
    "no width": {"width": None},
    "image as text": {"image": pa.array(["x", "y"])},
    "image as number": {"image": pa.array([1, 2])},
    "image null": {"image": pa.array([None, b"x"], pa.binary())},
    "annotation null": {"annotation": pa.array([b"x", None], pa.binary())},
    "width as text": {"width": pa.array(["4", "4"])},
    "height null": {"height": pa.array([None, None], pa.int32())},
}


@pytest.mark.parametrize("kind", list(COLUMNS))
def test_a_shard_whose_columns_are_others_is_one_line(kind, folder):
    """They were a KeyError, TypeError or AttributeError where the row was used."""
    rewritten(folder, **COLUMNS[kind])
    with pytest.raises(DataError, match=f"shard .* has no {kind.split()[-1 if kind[:3] == 'no ' else 0]} of .*: run"):
        list(shards.read_rows(folder, "validation"))


def test_an_id_that_is_no_text_is_one_line(folder):
    wrong = pa.array([b"\xff\xfe", b"\xff"], pa.binary())
    rewritten(folder, id=pa.Array.from_buffers(pa.string(), 2, wrong.buffers()))
    with pytest.raises(DataError, match="shard .* cannot be read .*utf-8.*: run prepare_shards again"):
        list(shards.read_rows(folder, "validation"))


SHARD = ("splits", "validation", "shards", 0)
MANIFESTS = [
    ((), []),
    ((), None),
    (("classes",), None),
    (("classes",), [1, 2]),
    (("classes",), ["a"] * 1000),
    (("splits",), []),
    (("splits", "validation"), 5),
    (("splits", "validation", "shards"), None),
    (("splits", "validation", "class_pixels"), 7),
    (SHARD, "x"),
    ((*SHARD, "file"), 5),
    ((*SHARD, "file"), "../../x.parquet"),
    ((*SHARD, "file"), "/abs/x.parquet"),
    ((*SHARD, "file"), ""),
    ((*SHARD, "rows"), "2"),
    ((*SHARD, "sha256"), None),
    ((*SHARD, "skipped"), 5),
    ((*SHARD, "skipped"), [5]),
    (("fingerprint",), {}),
]


@pytest.mark.parametrize(("at", "value"), MANIFESTS)
def test_a_manifest_of_another_form_is_one_line(at, value, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    *parents, last = at or [None]
    place = manifest
    for key in parents:
        place = place[key]
    if at:
        place[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest if at else value))
    with pytest.raises(DataError, match="manifest.json is not as prepare_shards writes it: run prepare_shards again"):
        shards.open_shards(folder, "validation")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000], ids=["lists", "objects", "digits"])
def test_json_that_no_parser_takes_is_one_line(text, folder):
    """A RecursionError with a traceback."""
    (folder / "manifest.json").write_text(text)
    with pytest.raises(SegquantError, match="manifest.json is not (readable JSON|as prepare_shards)"):
        shards.read_manifest(folder)


def test_json_larger_than_any_is_not_read(folder):
    with open(folder / "manifest.json", "r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(SegquantError, match="manifest.json is not readable JSON: it has 1073741824 bytes, more than"):
        shards.read_manifest(folder)


def test_an_annotation_of_a_foreign_shard_holds_bytes(folder):
    """Classes of 16 bits or floats went on to the score."""
    for array in (np.full((3, 4), 300, np.uint16), np.full((3, 4), 0.5, np.float32)):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "TIFF")
        with pytest.raises(DataError, match="a has a label of (uint16|float32), not uint8: run prepare_shards again"):
            decode_annotation(file.getvalue(), "a")


def archive(path, change):
    """A zip archive with an image, whose bytes `change` edits."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("val/a.png", b"nothing")
        file.writestr("val/b.png", b"nothing")
    data = bytearray(path.read_bytes())
    change(data, data.rindex(b"PK\x01\x02"), data.index(b"PK\x03\x04"))
    path.write_bytes(data)


def put(offset, value, local=False):
    def change(data, central, first):
        at = (first if local else central) + offset
        data[at : at + len(value)] = value

    return change


# Offsets in a central header: version 6, flags 8, method 10, CRC 16, sizes 20 and 24, local header 42.
HEADERS = {
    "version": put(6, b"\xff\x00"),
    "encrypted": put(8, b"\x01\x00"),
    "method": put(10, b"\x63\x00"),
    "lzma": put(10, b"\x0e\x00"),
    "crc": put(16, b"\0\0\0\0"),
    "size": put(24, b"\xff\xff\xff\x0f"),
    "packed size": put(20, b"\xff\xff\xff\x0f"),
    "packed size 0": put(20, b"\0\0\0\0"),
    "place": put(42, b"\xff\xff\xff\x7f"),
    "name is no UTF-8": lambda data, central, first: (
        put(8, b"\0\x08")(data, central, first),
        put(46, b"\xff")(data, central, first),
    ),
    "zip64": put(20, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    "extra": put(30, b"\xff\xff"),
    "comment": put(32, b"\xff\xff"),
}


@pytest.mark.parametrize("kind", list(HEADERS))
def test_an_archive_with_odd_headers_is_one_line(kind, tmp_path):
    archive(tmp_path / "a.zip", HEADERS[kind])
    with pytest.raises(DataError) as caught:
        tree = Archive(tmp_path / "a.zip")
        assert [tree.read(name) for name in tree.names()] == [b"nothing"] * 2, "which is all that it holds"
        raise DataError("right")
    assert "\n" not in str(caught.value)


def scramble(rng, everywhere, data, central, first):
    start = central if everywhere else len(data) - 22
    for at in rng.integers(start, len(data), rng.integers(1, 4)):
        data[at] = rng.integers(256)


def test_archives_with_wrong_bytes_are_refused_or_right(tmp_path):
    for seed in range(300):
        archive(tmp_path / "a.zip", partial(scramble, np.random.default_rng(seed), seed % 2))
        try:
            tree = Archive(tmp_path / "a.zip")
            assert all(tree.read(name) == b"nothing" for name in tree.names())
        except DataError:
            pass


def test_a_named_pipe_and_a_file_larger_than_any_image_are_not_read(tmp_path):
    """A named pipe was waited for without end."""
    os.mkfifo(tmp_path / "pipe.png")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(DataError, match="pipe.png cannot be read .it is no file"):
        Folder(tmp_path).read("pipe.png")
    with pytest.raises(DataError, match="large.png cannot be read .it has 2147483648 bytes, more than"):
        Folder(tmp_path).read("large.png")


def test_a_list_of_names_is_bounded_before_it_is_unpacked(tmp_path):
    """One of 500 MB of line ends took gigabytes, from an archive of 0.5 MB."""
    with zipfile.ZipFile(tmp_path / "voc.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("JPEGImages/a.jpg", "SegmentationClass/a.png"):
            archive.writestr(name, b"x")
        archive.writestr("ImageSets/Segmentation/val.txt", b"\n" * ((1 << 26) + 1))
    with pytest.raises(DataError, match="val.txt unpacks to 67108865 bytes, more than the 67108864 of any such file"):
        open_source(Data(str(tmp_path / "voc.zip")), "val")


@pytest.mark.parametrize("name", ["val.parquet", "set.zip"])
def test_a_named_pipe_is_no_table_and_no_archive(name, tmp_path):
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set" / name)
    source = tmp_path / "set" / (name if name.endswith("zip") else "")
    with pytest.raises(DataError, match="it is no file"):
        open_source(Data(str(source), classes="camvid"), "val")


@pytest.mark.parametrize("kind", ["pipe", "endless", "large"])
def test_a_list_of_classes_is_a_small_file(kind, tmp_path):
    path = tmp_path / "classes.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(bytes(1 << 21))
    put_png(tmp_path / "set")
    with pytest.raises(ConfigError, match="data.classes .* cannot be read: .*it (is no file|has 2097152 bytes)"):
        open_source(
            Data(str(tmp_path / "set"), images="{split}/*.png", annotations="{split}/*.png", classes=str(path)), "val"
        )


def put_png(folder):
    (folder / "val").mkdir(parents=True)
    Image.new("L", (2, 2), 1).save(folder / "val/a.png")


SHAPE = (2500, 4000)
PIXELS = SHAPE[0] * SHAPE[1]


def peak(call):
    """Bytes of NumPy a pixel that `call` takes at once."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / PIXELS
    finally:
        tracemalloc.stop()


def row_of(label):
    file = io.BytesIO()
    Image.fromarray(label).save(file, "PNG", compress_level=1)
    return {"id": "a", "image": b"", "annotation": file.getvalue(), "width": SHAPE[1], "height": SHAPE[0]}


def test_labels_take_a_few_bytes_a_pixel():
    """Wide copies of a photograph of 108 million pixels took gigabytes."""
    label = np.random.default_rng(0).integers(0, 9, SHAPE, np.uint8)
    values = Labels([str(i) for i in range(9)], np.arange(256, dtype=np.int16))
    colors = Labels(values.classes, values.values, {0x010101 * i: i for i in range(9)})
    assert peak(lambda: values.ids(label, "a")) < 5
    assert peak(lambda: shards.LabelCounts().add(row_of(label))) < 6
    rgb = np.stack([label] * 3, -1)
    assert np.array_equal(colors.ids(rgb, "a"), label)
    assert peak(lambda: colors.ids(rgb, "a")) < 45
    assert peak(lambda: loop.row_label(row_of(label), "a", 9)) < 6


def plain_update(confusion, prediction, label):
    n = len(confusion)
    valid = label != 255
    pairs = label[valid].long() * (n + 1) + prediction[valid].long().clamp(max=n)
    return confusion + torch.bincount(pairs, minlength=n * (n + 1)).view(n, n + 1)


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 30), st.integers(1, 200), st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
def test_strips_count_what_a_plain_computation_counts(classes, height, width, strip, seed):
    generator = np.random.default_rng(seed)
    label, prediction = generator.integers(0, classes, (2, height, width), np.uint8)
    label[generator.random(label.shape) < 0.1] = 255
    table = generator.integers(0, 256, classes, np.uint8)
    before = images.STRIP, metric.STRIP
    images.STRIP = metric.STRIP = strip
    try:
        confusion = metric.new_confusion(classes)
        mapped = metric.mapped(torch.from_numpy(prediction), torch.from_numpy(table))
        alone = metric.update(confusion, mapped, torch.from_numpy(label))
        assert np.array_equal(mapped.numpy(), table[prediction])
        expected = plain_update(metric.new_confusion(classes), mapped, torch.from_numpy(label))
        assert torch.equal(confusion, expected) and torch.equal(alone, expected)
        assert np.array_equal(histogram(label), np.bincount(label.ravel(), minlength=256))
        colors = Labels(["x"] * 256, np.arange(256), {0x010203 * i % (1 << 24): i for i in range(256)})
        of = {i: color for color, i in colors.colors.items()}
        packed = np.array([of[i] for i in range(256)])[prediction]
        rgb = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8)
        assert np.array_equal(colors.ids(rgb, "a"), prediction)
        rgb[-1, -1] = 255, 254, 253
        with pytest.raises(ConfigError, match="a holds the colour '#fffefd'"):
            colors.ids(rgb, "a")
    finally:
        images.STRIP, metric.STRIP = before
