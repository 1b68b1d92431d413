import json
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segquant.base.errors import DataError
from segquant.base.files import sha256
from segquant.data import shards
from segquant.data.images import decode_annotation
from segquant.data.rows import rows
from segquant.data.sources import open_source


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "shards"
    sources = {"train": open_source("scenes", "train", 3), "validation": open_source("scenes", "validation", 7)}
    shards.write_shards(sources, folder, shard_bytes=60_000)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "shards")


def test_a_split_in_a_split_is_written_beside_the_others(tmp_path):
    shards.write_shards({"val/kitchen": open_source("scenes", "validation", 2)}, tmp_path / "shards")
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == ["manifest.json", "val-kitchen-00000-of-00001.parquet"]
    assert len(shards.ShardRows(tmp_path / "shards", "val/kitchen")) == 2


def test_rows_are_read_as_they_were_written(folder):
    source = open_source("scenes", "validation", 7)
    assert list(shards.read_rows(folder, "validation")) == list(rows(source))
    assert len(list(shards.read_rows(folder, "validation", limit=2))) == 2


def test_rows_by_index_are_those_in_order_and_a_shard_is_read_once_when_it_is_asked_for(folder, monkeypatch):
    expected, read, shard_rows = list(shards.read_rows(folder, "validation")), [], shards.shard_rows
    monkeypatch.setattr(shards, "shard_rows", lambda shard: read.append(shard.path) or shard_rows(shard))
    by_index = shards.ShardRows(folder, "validation")
    assert len(by_index) == 7 and not read
    assert by_index[6] == expected[6] and len(read) == 1
    assert (
        list(by_index) == expected and len(read) == len(set(read)) == len(shards.open_shards(folder, "validation")) > 1
    )
    for index in (7, -1):
        with pytest.raises(IndexError):
            by_index[index]


def test_the_manifest_counts_images_and_pixels(folder):
    manifest = shards.read_manifest(folder)
    split = manifest["splits"]["validation"]
    assert split["images"] == 7 == sum(s["rows"] for s in split["shards"])
    assert len(split["shards"]) > 1
    for shard in split["shards"]:
        assert shard["file"].startswith("validation-0") and f"-of-{len(split['shards']):05d}" in shard["file"]
        assert shard["sha256"] == sha256(folder / shard["file"])
        assert shard["bytes"] == (folder / shard["file"]).stat().st_size
    labels = [decode_annotation(r["annotation"]).ravel() for r in shards.read_rows(folder, "validation")]
    counts = np.bincount(np.concatenate(labels), minlength=256)
    assert split["class_pixels"] == {str(i): int(n) for i, n in enumerate(counts) if n and i != 255}
    assert split["ignored_pixels"] == counts[255]


def test_the_fingerprint_covers_the_content(tmp_path):
    """It changes with an image, though the labels stay; it does not change with the size of the shards."""
    row = open_source("scenes", "train", 1)[0]
    fingerprints = set()
    for image in (row["image"], row["image"] + b" "):
        counts = shards.LabelCounts()
        counts.add({**row, "image": image})
        fingerprints.add(shards.make_manifest(["a"], {"val": counts.summary()})["fingerprint"])
    assert len(fingerprints) == 2
    source = {"train": open_source("scenes", "train", 6)}
    large, small = (shards.write_shards(source, tmp_path / str(size), size) for size in (10**6, 10**4))
    assert len(large["splits"]["train"]["shards"]) < len(small["splits"]["train"]["shards"])
    assert large["fingerprint"] == small["fingerprint"]


def test_writing_twice_gives_the_same_bytes(folder, tmp_path):
    sources = {"train": open_source("scenes", "train", 3), "validation": open_source("scenes", "validation", 7)}
    shards.write_shards(sources, tmp_path / "again", shard_bytes=60_000)
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "again").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_library_datasets_reads_the_shards(folder, tmp_path):
    files = sorted(str(p) for p in folder.glob("validation-*.parquet"))
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == ["id", "image", "annotation", "width", "height"]
    assert loaded["id"] == [r["id"] for r in shards.read_rows(folder, "validation")]


@pytest.mark.parametrize("name", ["/abs/x", "../../x", "a/../../x", "..", ".", "", "a\\..\\x", "a\0", None, 5])
def test_an_id_that_is_no_name_is_refused(name, folder):
    """Its picture was written outside of the results."""
    manifest = shards.read_manifest(folder)
    entry = manifest["splits"]["validation"]["shards"][0]
    table = pq.read_table(folder / entry["file"])
    kind = pa.int64() if name == 5 else pa.string()
    table = table.set_column(0, "id", pa.array([name] * len(table), kind))
    pq.write_table(table, folder / entry["file"])
    entry["sha256"] = sha256(folder / entry["file"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"validation-00000-of-\d+.parquet has the id .*, which is no name"):
        list(shards.read_rows(folder, "validation"))


def test_an_id_that_is_no_name_is_not_written(tmp_path):
    class Foreign(list):
        classes = ("a",)

    source = Foreign([{**open_source("scenes", "train", 1)[0], "id": "../x"}])
    with pytest.raises(DataError, match="split 'train' has the id '../x', which is no name"):
        shards.write_shards({"train": source}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_source_leaves_no_files(tmp_path):
    class Broken:
        classes = ("a",)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 2:
                raise DataError("x.png is broken")
            return open_source("scenes", "train", 3)[index]

    with pytest.raises(DataError, match="x.png"):
        shards.write_shards({"train": Broken()}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_broken_shards_are_named(folder):
    with pytest.raises(DataError, match="has no split 'test': choose one of train, validation"):
        list(shards.read_rows(folder, "test"))
    first = sorted(folder.glob("validation-*.parquet"))[0]
    whole = first.read_bytes()
    for wrong in (whole[:100], whole[:-1] + b"?", b""):
        first.write_bytes(wrong)
        with pytest.raises(DataError, match=f"shard .*{first.name} is not the file that its manifest names"):
            list(shards.read_rows(folder, "validation"))
    first.unlink()
    with pytest.raises(DataError, match=f"shard .*{first.name} is missing"):
        list(shards.read_rows(folder, "validation"))


@pytest.mark.parametrize(("rows", "message"), [(0, "has 0 rows but its manifest says 0"), (1, "has 1 rows but")])
def test_a_shard_whose_manifest_has_a_different_number_of_rows(folder, rows, message):
    file = folder / "validation-00000-of-00004.parquet"
    table = pq.read_table(file).slice(0, rows)
    pq.write_table(table, file)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["splits"]["validation"]["shards"][0]
    entry |= {"sha256": sha256(file), "rows": 0 if rows == 0 else entry["rows"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        list(shards.read_rows(folder, "validation"))


def test_a_file_that_is_not_parquet_is_named(folder):
    file = folder / "validation-00000-of-00004.parquet"
    file.write_bytes(b"nothing of the kind")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["validation"]["shards"][0]["sha256"] = sha256(file)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=f"shard .*{file.name} cannot be read"):
        list(shards.read_rows(folder, "validation"))
