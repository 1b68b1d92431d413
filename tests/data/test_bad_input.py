"""Each kind of bad data ends the stage prepare_shards with one line and exit code 2, and leaves no partial output."""

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
    """A grey PNG whose header gives this size and bit depth; Pillow cannot write all of them."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(bits, photometric, data, orientation=1):
    """A grey TIFF of 4x3 pixels; Pillow cannot write all of them."""
    tags = [
        (256, 4),
        (257, 3),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 134 if photometric is not None else 122),
        (274, orientation),
        (277, 1),
    ]
    tags += [(278, 3), (279, len(data))]
    tags = [(tag, value) for tag, value in tags if value is not None]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


IMAGE = np.full((3, 4, 3), 120, np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
BOMB = grey_png(30_000, 30_000, 8, bytes(1000))
WIDE = encoded(LABELS.astype(np.uint16))


def bmp(bits, greys, data):
    """A BMP of 4x3 with a palette of the grey values `greys`; each row of `data` fills four bytes or more."""
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in greys)
    head = struct.pack("<IiiHHIIiiII", 40, 4, 3, 1, bits, 0, len(data), 0, 0, len(greys), 0)
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


def put(name, data):
    """Return a function that writes `data` to a file of the data set, or removes the file if `data` is None."""

    def change(root):
        path = root / name
        path.unlink() if data is None else path.write_bytes(data)

    return change


def zipped(root, entries=None, cut=None):
    """Write the data set as set.zip with additional `entries`, truncated to `cut` bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
        for name, data in (entries or {}).items():
            archive.writestr(name, data)
    (root.parent / "set.zip").write_bytes(buffer.getvalue()[:cut])


def flip(root):
    """Flip a byte of an image in the archive, which the CRC detects."""
    zipped(root)
    path = root.parent / "set.zip"
    data = bytearray(path.read_bytes())
    data[30 + len("train/a.png") + 40] ^= 255  # after the header of the first entry
    path.write_bytes(data)


def parquet(root, labels=True, cut=None):
    """Write the val split as a Parquet file; optionally without its second label, or truncated to `cut` bytes."""
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


def bad(message, change=None, **keys):
    """(what to do to the folder `set`, keys of `data` in params.yaml, what the error says)"""
    return change, keys, message


def bad_image(message, data):
    return bad(f"set/val/b.png is not a readable image{message}", put("val/b.png", data))


def bad_label(message, data):
    return bad(f"set/valannot/b.png {message}", put("valannot/b.png", data))


def bad_zip(message, change):
    return bad(f"set.zip{message}", change, source="set.zip")


def bad_table(message, change=parquet, **keys):
    return bad(message, change, source="table", train_split="val", classes="camvid", ignore=[11], **keys)


def without(name):
    return lambda root: ((root / name).unlink(), zipped(root))


TABLE = {
    "no such folder": bad("data source 'nowhere' is not there: give 'scenes', a labelled folder", source="nowhere"),
    "a file for a folder": bad("'set/x.txt' is a file: give a folder", put("x.txt", b"x"), source="set/x.txt"),
    "no such split": bad("set has no split 'test' in a known layout, images/SPLIT", validation_split="test"),
    "a split without images": bad(
        "set/val has no images: add images (.bmp, .gif, .jpeg,",
        lambda root: [p.unlink() for p in (root / "val").iterdir()],
    ),
    "an image without a label": bad(
        "set/val/b.png has no label: add set/valannot/b.png or remove the image", put("valannot/b.png", None)
    ),
    "a label of a different size": bad_label("is 3x4 but its image set/val/b.png is 4x3", encoded(LABELS.T)),
    "a label of the size to which EXIF turns its image": bad_label(
        "is 3x4 but its image set/val/b.png is 4x3: make them the same size (EXIF's rotation of an image is not applied",
        encoded(LABELS.T),
    ),
    "a TIFF of 4 bits for a label": bad_label(
        "is a TIFF of 4-bit grey, so that its values are not certain: save it as an 8-bit PNG",
        tiff(4, 1, bytes([0x01, 0x23, 0x45, 0x67, 0x89, 0xA0])),
    ),
    "a TIFF of 0 as white for a label": bad_label(
        "is a TIFF where 0 is white, so", tiff(8, 0, (LABELS % 11).tobytes())
    ),
    "a TIFF that does not say what white is for a label": bad_label(
        "is a TIFF where 0 is white, so", tiff(8, None, (LABELS % 11).tobytes())
    ),
    "a TIFF for a label, turned": bad_label("is a TIFF with orientation 3, so", tiff(8, 1, (LABELS % 11).tobytes(), 3)),
    "a TIFF for an image, turned": bad(
        "set/val/b.png is a TIFF with orientation 3, but labels are not turned: save it as an 8-bit PNG",
        put("val/b.png", tiff(8, 1, bytes(12), 3)),
    ),
    "a TIFF of 16 bits and 0 as white for an image": bad_image(" (it is a TIFF of 16-bit grey", tiff(16, 0, bytes(24))),
    "a BMP of 8 bits and two greys for a label": bad_label(
        "is not a readable label (it is a BMP with a palette of greys", bmp(8, (0, 255), bytes(12))
    ),
    "a BMP of 4 bits and 16 greys for an image": bad_image(
        " (it is a BMP with a palette of greys", bmp(4, range(16), bytes(12))
    ),
    "a PGM up to 11 for a label": bad_label(
        "is a PNM whose highest value is 11, so", b"P5 4 3 11\n" + (LABELS % 11).tobytes()
    ),
    "a PGM in words up to 11 for a label": bad_label(
        "is a PNM whose highest value is 11, so", b"P2 4 3 11\n" + b"0 1 2 3 4 5 6 7 8 9 10 0\n"
    ),
    "a PBM for a label": bad_label("is a PBM, where 1 is black, so", b"P1 4 3\n0 1 0 1 0 1 0 1 0 1 0 1\n"),
    "a label in colours": bad_label("has RGB pixels: a label must be 8-bit", encoded(IMAGE)),
    "a label of 16 bits": bad_label("has 16-bit pixels: a label must be 8-bit", WIDE),
    "a JPEG for a label": bad_label("is a JPEG, which may change class ids", encoded(LABELS, "JPEG")),
    "a JPEG in a TIFF for a label": bad_label(
        "is a TIFF, which may change class ids", encoded(LABELS, "TIFF", compression="jpeg")
    ),
    "a JPEG 2000 for a label": bad_label(
        "is a JPEG2000, which may change", encoded(LABELS, "JPEG2000", irreversible=True)
    ),
    "an id beyond the classes": bad_label("holds class id 30, but there are 11 classes", encoded(LABELS + 30)),
    "an empty image": bad_image("", b""),
    "an empty label": bad_label("is not a readable label", b""),
    "a truncated PNG": bad_image("", encoded(NOISE)[:-40]),
    "a truncated JPEG": bad_image(" (image file is truncated", encoded(NOISE, "JPEG")[:-40]),
    "a truncated label": bad_label("is not a readable label", encoded(NOISE[..., 0])[:-40]),
    "a label of several pages": bad_label(
        "has 2 pages, of which one would be read: save the one with class ids as PNG",
        encoded(NOISE[..., 0], "TIFF", save_all=True, append_images=[Image.fromarray(NOISE[..., 1])]),
    ),
    "text for an image": bad_image(" (its format is unknown): replace or remove it", b"<html>"),
    "floats for an image": bad_image(" (it has 32 bits per pixel", encoded(np.ones((3, 4), np.float32), "TIFF")),
    "a decompression bomb": bad(
        "set/val/b.png has 30000x30000 pixels, more than data.max_pixels, 178956970: raise that", put("val/b.png", BOMB)
    ),
    "a bomb for a label": bad_label("has 30000x30000 pixels, more than data.max_pixels", BOMB),
    "two images of the same name": bad(
        "set/val/b.png and b.jpg have the same name and so the same label", put("val/b.jpg", encoded(IMAGE, "JPEG"))
    ),
    "an archive with ../": bad_zip(
        " holds '../evil.png', which would unpack outside", lambda root: zipped(root, {"../evil.png": b"x"})
    ),
    "an archive with /": bad_zip(
        " holds '/etc/evil.png', which would unpack outside", lambda root: zipped(root, {"/etc/evil.png": b"x"})
    ),
    "a truncated archive": bad_zip(" is not a readable zip archive", lambda root: zipped(root, cut=300)),
    "a wrong byte in an archive": bad_zip(":train/a.png cannot be read (", flip),
    "a bomb in an archive": bad_zip(
        ":train/a.png unpacks to 1048576 bytes", lambda root: (put("train/a.png", bytes(1 << 20))(root), zipped(root))
    ),
    "an image missing in an archive": bad_zip(":val/b.png has no label", without("valannot/b.png")),
    "an entry twice by another name": bad_zip(
        " holds 'val/a.png' twice", lambda root: zipped(root, {"./val//a.png": b"x"})
    ),
    "an entry twice in an archive": bad_zip(" holds 'val/a.png' twice", lambda root: zipped(root, {"val/a.png": b"x"})),
    "a broken Parquet file": bad_table(
        "table cannot be read as a table (Parquet magic bytes", lambda root: parquet(root, cut=-3)
    ),
    "a Parquet file without labels": bad_table(
        "table (val) row 1 (b), column annotation is empty: remove the row", lambda root: parquet(root, labels=False)
    ),
    "no such column": bad_table("has no column 'photo': set data.columns.image to one of", columns={"image": "photo"}),
    "a column of numbers": bad_table(
        "table (val) has int64 instead of images in column 'label': set data.columns.annotation",
        columns={"annotation": "label"},
    ),
    "no such configuration": bad_table("table has no folder 'mini': check data.configuration", configuration="mini"),
    "other classes for a known layout": bad(
        "set has the labels of a known layout, but data.classes names other classes: set data.reduce_labels",
        classes="cityscapes",
    ),
    "no network": bad("'owner/name' is nothing here and the hub gives none", source="owner/name", classes="camvid"),
    "patterns that match nothing": bad(
        "set/photos/train/*.jpg matches no file", images="photos/{split}/*.jpg", annotations="masks/*.png"
    ),
    "a single pattern": bad("give both or none", images="val/*.png"),
    "patterns without classes": bad(
        "set does not name its classes: set data.classes", images="{split}/*.png", annotations="{split}annot/*.png"
    ),
    "an unknown key": bad("data has an unknown key 'sauce': allowed are source,", sauce="x"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with a data set `set` in CamVid's layout."""
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
    """Run the stage in `place`; return its exit code and the lines of stderr without progress and INFO."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {"source": "set", "validation_split": "val", "limit": None, **keys}
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["prepare_shards", "--output", "out/shards"])
    try:
        run(prepare_shards.main)
        code = 0
    except SystemExit as error:
        code = error.code
    lines = [line for line in capsys.readouterr().err.splitlines() if not re.match(r"shards \w+: |INFO |$", line)]
    return code, lines


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("mistake", list(TABLE))
def test_one_line_and_no_partial_output(mistake, place, capsys, monkeypatch):
    change, keys, message = TABLE[mistake]
    if change:
        change(place / "set")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    code, lines = prepare(place, capsys, monkeypatch, keys)
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    del after[place / "params.yaml"]
    assert after == before


def test_existing_shards_stay(place, capsys, monkeypatch):
    assert prepare(place, capsys, monkeypatch, {})[0] == 0
    before = {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}
    put("val/b.png", b"")(place / "set")
    assert prepare(place, capsys, monkeypatch, {})[0] == 2
    assert {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()} == before


def test_a_full_disk(place, capsys, monkeypatch):
    """The kernel limits the size of a file, which fails like a full disk."""
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
    assert not (place / "out").exists()


def rows(place, capsys, monkeypatch):
    assert prepare(place, capsys, monkeypatch, {}) == (0, [])
    return {row["id"]: row for row in read_rows(place / "out/shards", "validation")}


UNUSUAL = {
    "CMYK": (Image.fromarray(IMAGE).convert("CMYK"), "JPEG"),
    "greyscale": (Image.fromarray(IMAGE[..., 0]), "JPEG"),
    "grey with alpha": (Image.fromarray(IMAGE[..., 0]).convert("LA"), "PNG"),
    "alpha": (Image.fromarray(IMAGE).convert("RGBA"), "PNG"),
    "a palette": (Image.fromarray(IMAGE).quantize(2), "PNG"),
    "one bit": (Image.new("1", (4, 3), 1), "PNG"),
    "16-bit grey": (Image.fromarray(np.full((3, 4), 120 * 256 + 7, np.uint16)), "PNG"),
}


@pytest.mark.parametrize("kind", list(UNUSUAL))
def test_unusual_images_keep_their_bytes(kind, place, capsys, monkeypatch):
    image, format = UNUSUAL[kind]
    buffer = io.BytesIO()
    image.save(buffer, format)
    put("val/b.png", buffer.getvalue())(place / "set")
    row = rows(place, capsys, monkeypatch)["b"]
    assert row["image"] == buffer.getvalue()
    pixels = np.asarray(decode_image(row["image"], "b")).astype(int)
    expected = 255 if kind == "one bit" else 120
    assert pixels.shape == (3, 4, 3) and np.abs(pixels - expected).max() <= (3 if format == "JPEG" else 0)


def test_exif_rotation_is_not_applied(place, capsys, monkeypatch):
    """The labels are not rotated, so neither is the image."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    put("val/b.png", encoded(IMAGE, "JPEG", exif=exif))(place / "set")
    row = rows(place, capsys, monkeypatch)["b"]
    assert (row["width"], row["height"]) == (4, 3) == decode_image(row["image"], "b").size


def packed(values, bits):
    """The rows of a PNG's picture, each after its filter type 0."""
    lines = ["".join(f"{value:0{bits}b}" for value in line) for line in values]
    return b"".join(
        b"\0" + bytes(int(line[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(line), 8)) for line in lines
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_few_bits_keep_their_ids(bits, place, capsys, monkeypatch):
    """Pillow scales 2-bit and 4-bit grey to 0..255: id 1 of 4 bits would become 17."""
    values = (np.arange(12).reshape(3, 4) % min(2**bits, len(CAMVID))).tolist()
    put("valannot/b.png", grey_png(3, 4, bits, packed(values, bits)))(place / "set")
    labels = decode_annotation(rows(place, capsys, monkeypatch)["b"]["annotation"])
    assert labels.tolist() == values


@pytest.mark.parametrize("format", ["BMP", "GIF", "PPM", "TIFF"])
def test_labels_may_have_any_lossless_format(format, place, capsys, monkeypatch):
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    put("valannot/b.png", encoded(LABELS % 11, format, **options))(place / "set")
    np.testing.assert_array_equal(decode_annotation(rows(place, capsys, monkeypatch)["b"]["annotation"]), LABELS % 11)


@pytest.mark.parametrize(
    "label",
    [tiff(8, 1, (LABELS % 11).tobytes()), b"P2 4 3 255\n0 1 2 3 4 5 6 7 8 9 10 0\n"],
    ids=["TIFF", "PGM in words"],
)
def test_plain_tiff_and_pgm_labels_keep_their_ids(label, place, capsys, monkeypatch):
    put("valannot/b.png", label)(place / "set")
    np.testing.assert_array_equal(decode_annotation(rows(place, capsys, monkeypatch)["b"]["annotation"]), LABELS % 11)


def test_a_palette_label_holds_its_indices(place, capsys, monkeypatch):
    label = Image.fromarray(LABELS % 11, "P")
    label.putpalette([200, 10, 10] * 256)
    buffer = io.BytesIO()
    label.save(buffer, "PNG")
    put("valannot/b.png", buffer.getvalue())(place / "set")
    np.testing.assert_array_equal(decode_annotation(rows(place, capsys, monkeypatch)["b"]["annotation"]), LABELS % 11)
