"""Every bad input that a data set can bring, through the stage that meets it: one line, exit 2, nothing half-written."""

import io
import re
import resource
import struct
import sys
import zipfile
import zlib

import datasets
import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from segquant.base.classes import CAMVID
from segquant.base.entry import run
from segquant.data import tree
from segquant.data.images import decode_annotation, decode_image
from segquant.data.shards import read_rows
from stages import prepare_shards

LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def encoded(array, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def grey_png(height, width, bits, data):
    """A PNG that says it is of this size and depth, which Pillow may not be able to write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


IMAGE = np.full((3, 4, 3), 120, np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
BOMB = grey_png(30_000, 30_000, 8, bytes(1000))
WIDE = encoded(LABELS.astype(np.uint16))


def put(name, data):
    """Write or, with None, remove a file of the data set."""

    def change(root):
        path = root / name
        path.unlink() if data is None else path.write_bytes(data)

    return change


def zipped(root, entries=None, cut=None):
    """The data set as an archive, with other entries, or cut after some bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
        for name, data in (entries or {}).items():
            archive.writestr(name, data)
    (root.parent / "set.zip").write_bytes(buffer.getvalue()[:cut])


def flip(root):
    """One byte of an image wrong in the archive, which its CRC tells."""
    zipped(root)
    path = root.parent / "set.zip"
    data = bytearray(path.read_bytes())
    data[30 + len("train/a.png") + 40] ^= 255  # behind the first entry's header
    path.write_bytes(data)


def parquet(root, labels=True, cut=None):
    """The val split in a Parquet file; without its second label, or cut after some bytes."""
    cells = {}
    for column, folder in (("image", "val"), ("annotation", "valannot")):
        cells[column] = [{"bytes": (root / folder / f"{n}.png").read_bytes(), "path": f"{n}.png"} for n in "ab"]
    if not labels:
        cells["annotation"][1] = None
    features = datasets.Features({**{column: datasets.Image() for column in cells}, "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({**cells, "label": [0, 1]}, features)
    file = root.parent / "table" / "val.parquet"
    table.to_parquet(str(file))
    file.write_bytes(file.read_bytes()[:cut])


ZIP = {"source": "set.zip"}
PARQUET = {"source": "table", "train_split": "val", "classes": "camvid", "ignore": [11]}
# what is wrong: (what is done to the folder, other keys of params.yaml's data, what the line says)
TABLE = {
    "no such folder": (
        None,
        {"source": "nowhere"},
        "data source 'nowhere' is not there: give 'scenes', a labelled folder",
    ),
    "a file for a folder": (put("x.txt", b"x"), {"source": "set/x.txt"}, "'set/x.txt' is a file: give a folder"),
    "no such split": (
        None,
        {"validation_split": "test"},
        "set has no split 'test' in a layout known here: images/SPLIT",
    ),
    "a split without images": (
        lambda root: [p.unlink() for p in (root / "val").iterdir()],
        {},
        "set/val has no images",
    ),
    "an image without a label": (put("valannot/b.png", None), {}, "set/val/b.png has no label: set/valannot/b.png"),
    "a label of another size": (
        put("valannot/b.png", encoded(LABELS.T)),
        {},
        "valannot/b.png is 3x4 but its image set/val/b.png is 4x3",
    ),
    "a label in colours": (
        put("valannot/b.png", encoded(IMAGE)),
        {},
        "valannot/b.png is a RGB image: a label must be 8-bit",
    ),
    "a label of 16 bits": (put("valannot/b.png", WIDE), {}, "valannot/b.png is a 16-bit image: a label must be 8-bit"),
    "a JPEG for a label": (
        put("valannot/b.png", encoded(LABELS, "JPEG")),
        {},
        "valannot/b.png is a JPEG, which may change class ids",
    ),
    "a JPEG in a TIFF for a label": (
        put("valannot/b.png", encoded(LABELS, "TIFF", compression="jpeg")),
        {},
        "valannot/b.png is a TIFF, which may change class ids",
    ),
    "a JPEG 2000 for a label": (
        put("valannot/b.png", encoded(LABELS, "JPEG2000", irreversible=True)),
        {},
        "valannot/b.png is a JPEG2000, which may change",
    ),
    "an id beyond the classes": (
        put("valannot/b.png", encoded(LABELS + 30)),
        {},
        "valannot/b.png holds class id 30, but there are 11 classes",
    ),
    "an empty image": (put("val/b.png", b""), {}, "set/val/b.png is not a readable image"),
    "an empty label": (put("valannot/b.png", b""), {}, "set/valannot/b.png is not a readable label"),
    "a truncated PNG": (put("val/b.png", encoded(NOISE)[:-40]), {}, "set/val/b.png is not a readable image"),
    "a truncated JPEG": (
        put("val/b.png", encoded(NOISE, "JPEG")[:-40]),
        {},
        "set/val/b.png is not a readable image (image file is truncated",
    ),
    "a truncated label": (
        put("valannot/b.png", encoded(NOISE[..., 0])[:-40]),
        {},
        "set/valannot/b.png is not a readable label",
    ),
    "text for an image": (
        put("val/b.png", b"<html>"),
        {},
        "set/val/b.png is not a readable image (its format is unknown): replace it",
    ),
    "floats for an image": (
        put("val/b.png", encoded(np.ones((3, 4), np.float32), "TIFF")),
        {},
        "val/b.png is not a readable image (it has 32 bits a pixel",
    ),
    "a decompression bomb": (
        put("val/b.png", BOMB),
        {},
        "val/b.png is not a readable image (Image size (900000000 pixels) exceeds limit",
    ),
    "a bomb for a label": (put("valannot/b.png", BOMB), {}, "valannot/b.png is not a readable label (Image size"),
    "two images of one name": (
        put("val/b.jpg", encoded(IMAGE, "JPEG")),
        {},
        "set/val/b.png and b.jpg have one name, and so one label",
    ),
    "an archive with ../": (
        lambda root: zipped(root, {"../evil.png": b"x"}),
        ZIP,
        "set.zip holds '../evil.png', which would lie outside",
    ),
    "an archive with /": (
        lambda root: zipped(root, {"/etc/evil.png": b"x"}),
        ZIP,
        "set.zip holds '/etc/evil.png', which would lie outside",
    ),
    "an archive cut short": (lambda root: zipped(root, cut=300), ZIP, "set.zip is not a readable zip archive"),
    "a wrong byte in an archive": (flip, ZIP, "set.zip:train/a.png cannot be read ("),
    "a bomb in an archive": (
        lambda root: (put("train/a.png", bytes(1 << 20))(root), zipped(root)),
        ZIP,
        "set.zip:train/a.png unpacks to 1048576 bytes",
    ),
    "an image missing in an archive": (
        lambda root: ((root / "valannot/b.png").unlink(), zipped(root)),
        ZIP,
        "set.zip:val/b.png has no label",
    ),
    "a broken Parquet file": (
        lambda root: parquet(root, cut=-3),
        PARQUET,
        "table cannot be read as a table (Parquet magic bytes",
    ),
    "a Parquet file without labels": (
        lambda root: parquet(root, labels=False),
        PARQUET,
        "table (val) row 1 (b), column annotation holds nothing: take the row out",
    ),
    "no such column": (
        parquet,
        {**PARQUET, "columns": {"image": "photo"}},
        "has no column 'photo': set data.columns.image to one of",
    ),
    "a column of numbers": (
        parquet,
        {**PARQUET, "columns": {"annotation": "label"}},
        "table (val) has int64 in column 'label', no images: set data.columns.annotation",
    ),
    "no such configuration": (
        parquet,
        {**PARQUET, "configuration": "mini"},
        "table has no folder 'mini': see data.configuration",
    ),
    "classes of one's own for a known layout": (
        None,
        {"classes": "cityscapes"},
        "set has labels of a known layout, but classes of your own: say data.reduce_labels and data.ignore",
    ),
    "an entry twice in an archive": (
        lambda root: zipped(root, {"val/a.png": b"x"}),
        ZIP,
        "set.zip holds 'val/a.png' twice",
    ),
    "no network": (
        None,
        {"source": "owner/name", "classes": "camvid"},
        "'owner/name' is nothing here and the hub gives none",
    ),
    "patterns that match nothing": (
        None,
        {"images": "photos/*.jpg", "annotations": "masks/*.png"},
        "set/photos/*.jpg matches no file",
    ),
    "one pattern of two": (None, {"images": "val/*.png"}, "give both or none"),
    "patterns without classes": (
        None,
        {"images": "{split}/*.png", "annotations": "{split}annot/*.png"},
        "set does not name its classes: give data.classes",
    ),
    "an unknown key": (None, {"sauce": "x"}, "data has an unknown key 'sauce': allowed are source,"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to run in, with a data set `set` of CamVid's layout in it; hands out a function that writes params.yaml."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            for folder, array in ((split, IMAGE), (f"{split}annot", LABELS)):
                path = tmp_path / "set" / folder / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(array))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tree, "LARGEST", 100_000)
    return tmp_path


def prepare(place, capsys, monkeypatch, keys):
    """Run the stage in `place`; gives its exit code and what it wrote to stderr but for the progress bar."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {"source": "set", "validation_split": "val", "limit": None, **keys}
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["prepare_shards", "--output", "out/shards"])
    try:
        run(prepare_shards.main)
        code = 0
    except SystemExit as end:
        code = end.code
    lines = [line for line in capsys.readouterr().err.splitlines() if not re.match(r"shards \w+: |INFO |$", line)]
    return code, lines


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", list(TABLE))
def test_one_line_and_nothing_half_written(what, place, capsys, monkeypatch):
    change, keys, message = TABLE[what]
    if change:
        change(place / "set")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    code, lines = prepare(place, capsys, monkeypatch, keys)
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    del after[place / "params.yaml"]
    assert after == before


def test_shards_that_stood_there_stay(place, capsys, monkeypatch):
    assert prepare(place, capsys, monkeypatch, {})[0] == 0
    before = {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}
    put("val/b.png", b"")(place / "set")
    assert prepare(place, capsys, monkeypatch, {})[0] == 2
    assert {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()} == before


def test_a_disk_that_fills(place, capsys, monkeypatch):
    """The kernel refuses to write more than some bytes to a file, as a full disk would."""
    for name in "ab":
        put(f"val/{name}.png", encoded(NOISE))(place / "set")
        put(f"valannot/{name}.png", encoded(NOISE[..., 0] % 11))(place / "set")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
        code, lines = prepare(place, capsys, monkeypatch, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith("error: cannot write out/shards: ") and "File too large" in lines[0]
    assert list((place / "out").iterdir()) == []


def rows(place, capsys, monkeypatch):
    assert prepare(place, capsys, monkeypatch, {}) == (0, [])
    return {row["id"]: row for row in read_rows(place / "out/shards", "validation")}


UNUSUAL = {
    "CMYK": (Image.fromarray(IMAGE).convert("CMYK"), "JPEG", {}),
    "greyscale": (Image.fromarray(IMAGE[..., 0]), "JPEG", {}),
    "grey with alpha": (Image.fromarray(IMAGE[..., 0]).convert("LA"), "PNG", {}),
    "alpha": (Image.fromarray(IMAGE).convert("RGBA"), "PNG", {}),
    "a palette": (Image.fromarray(IMAGE).quantize(2), "PNG", {}),
    "one bit": (Image.new("1", (4, 3), 1), "PNG", {}),
    "16-bit grey": (Image.fromarray(np.full((3, 4), 120 * 256 + 7, np.uint16)), "PNG", {}),
}


@pytest.mark.parametrize("what", list(UNUSUAL))
def test_unusual_images_are_taken_as_they_are(what, place, capsys, monkeypatch):
    image, format, options = UNUSUAL[what]
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    put("val/b.png", buffer.getvalue())(place / "set")
    row = rows(place, capsys, monkeypatch)["b"]
    assert row["image"] == buffer.getvalue()
    pixels = np.asarray(decode_image(row["image"], "b")).astype(int)
    wanted = 255 if what == "one bit" else 120
    assert pixels.shape == (3, 4, 3) and np.abs(pixels - wanted).max() <= (3 if format == "JPEG" else 0)


def test_exif_rotation_is_not_applied(place, capsys, monkeypatch):
    """The labels are not rotated, so neither is the image."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    put("val/b.png", encoded(IMAGE, "JPEG", exif=exif))(place / "set")
    row = rows(place, capsys, monkeypatch)["b"]
    assert (row["width"], row["height"]) == (4, 3) == decode_image(row["image"], "b").size


def packed(values, bits):
    """The lines of a PNG's picture, each after its filter's number."""
    lines = ["".join(f"{value:0{bits}b}" for value in line) for line in values]
    return b"".join(
        b"\0" + bytes(int(line[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(line), 8)) for line in lines
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_few_bits_keep_their_ids(bits, place, capsys, monkeypatch):
    """Pillow stretches greys of 2 and 4 bits to 0..255: id 1 of 4 bits would become 17."""
    values = (np.arange(12).reshape(3, 4) % min(2**bits, len(CAMVID))).tolist()
    put("valannot/b.png", grey_png(3, 4, bits, packed(values, bits)))(place / "set")
    found = decode_annotation(rows(place, capsys, monkeypatch)["b"]["annotation"])
    assert found.tolist() == values


@pytest.mark.parametrize("format", ["BMP", "GIF", "PPM", "TIFF"])
def test_labels_without_loss_may_be_of_other_formats(format, place, capsys, monkeypatch):
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    put("valannot/b.png", encoded(LABELS % 11, format, **options))(place / "set")
    np.testing.assert_array_equal(decode_annotation(rows(place, capsys, monkeypatch)["b"]["annotation"]), LABELS % 11)


def test_a_palette_label_holds_its_indices(place, capsys, monkeypatch):
    label = Image.fromarray(LABELS % 11, "P")
    label.putpalette([200, 10, 10] * 256)
    buffer = io.BytesIO()
    label.save(buffer, "PNG")
    put("valannot/b.png", buffer.getvalue())(place / "set")
    np.testing.assert_array_equal(decode_annotation(rows(place, capsys, monkeypatch)["b"]["annotation"]), LABELS % 11)
