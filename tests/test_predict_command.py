"""`segquant predict` as a user runs it."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from forked import segquant
from PIL import Image
from transformers import SegformerImageProcessorPil

import segquant as package
from segquant.base import config
from segquant.base.config import Recipe
from segquant.base.errors import ConfigError, DataError
from segquant.data.palette import palette
from segquant.data.sources import open_source
from segquant.predictions import _upright, find, overlay, predict_pictures
from segquant.quant.build import build


@pytest.fixture
def photos(tmp_path):
    source = open_source("scenes", "validation", 3)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "more/c.png")):
        (tmp_path / "photos" / name).write_bytes(source[i]["image"])
    return tmp_path / "photos"


def test_files_folders_and_patterns_become_overlays_with_a_legend(tiny_folder, photos, tmp_path):
    build(tiny_folder, Recipe("int8"), tmp_path / "int8", torch.device("cpu"))
    options = ["--artifact", tmp_path / "int8", "--protocol", "fixed-64x64-v1", "--output", tmp_path / "out"]
    done = segquant("predict", photos, *options, "--json")
    assert done.returncode == 0, done.stderr
    results = {result["overlay"]: result for result in json.loads(done.stdout)}
    assert set(results) == {str(tmp_path / "out" / name) for name in ("a.png", "b.png", "more/c.png")}
    photo = Image.open(photos / "a.png").convert("RGB")
    model = package.load_quantized(tmp_path / "int8")
    processor = SegformerImageProcessorPil(do_reduce_labels=False, size={"height": 64, "width": 64})
    with torch.no_grad():
        logits = model(**processor(photo, return_tensors="pt")).logits
    up = torch.nn.functional.interpolate(logits, photo.size[::-1], mode="bilinear", align_corners=False)
    ids = up.argmax(1)[0].numpy()
    expected = np.asarray(Image.blend(photo, Image.fromarray(palette()[ids]), 0.55)).astype(int)
    sheet = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
    assert (np.abs(sheet[: photo.height, : photo.width] - expected).max(-1) <= 1).mean() > 0.999
    shares = results[str(tmp_path / "out" / "a.png")]["classes"]
    assert sum(shares.values()) == pytest.approx(1) and list(shares.values()) == sorted(shares.values(), reverse=True)
    name, share = next(iter(shares.items()))
    (number,) = [i for i, label in model.config.id2label.items() if label == name]
    assert share == pytest.approx((ids == number).mean(), abs=1e-3)
    legend = {tuple(color) for color in sheet[:, photo.width :].reshape(-1, 3).tolist()}
    assert tuple(palette()[number].tolist()) in legend
    plain = segquant(
        "predict", photos / "*.png", photos / "more" / "c.png", *options[:4], "--output", tmp_path / "flat"
    )
    assert plain.returncode == 0, plain.stderr
    assert {path.name for path in (tmp_path / "flat").glob("[!.]*")} == {"a.png", "b.png", "c.png"}
    assert (
        plain.stdout.startswith(f"{tmp_path / 'flat' / 'a.png'}: {name} ") and "\x1b" not in plain.stdout + plain.stderr
    )


def test_the_exif_orientation_of_a_photograph_is_applied(tiny_folder, photos, tmp_path):
    build(tiny_folder, Recipe("float32"), tmp_path / "float32", torch.device("cpu"))
    photo = Image.open(photos / "a.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    photo.save(photos / "turned.jpg", exif=exif, quality=95)
    options = ["--artifact", tmp_path / "float32", "--protocol", "fixed-64x64-v1", "--output", tmp_path / "out"]
    assert segquant("predict", photos / "turned.jpg", *options).returncode == 0
    sheet = np.asarray(Image.open(tmp_path / "out" / "turned.png")).astype(int)
    upright = np.asarray(photo.rotate(-90, expand=True)).astype(int)
    shown = sheet[: upright.shape[0], : upright.shape[1]]
    assert np.corrcoef(shown.mean(-1).ravel(), upright.mean(-1).ravel())[0, 1] > 0.5


def test_a_bad_picture_or_artifact_is_one_line_and_no_file_is_written(tiny_folder, photos, tmp_path):
    with pytest.raises(DataError, match="is no picture, no folder with pictures and no pattern"):
        find([str(tmp_path / "nothing*.jpg")], tmp_path / "out")
    shutil.copy(photos / "a.png", photos / "more" / "a.png")
    with pytest.raises(DataError, match="would both be written to a.png"):
        find([str(photos / "a.png"), str(photos / "more" / "a.png")], tmp_path / "out")
    with pytest.raises(DataError, match="would both be written to a.png"):
        find([str(photos / "**" / "a.png")], tmp_path / "out")
    with pytest.raises(DataError, match="a.png would be replaced by its overlay: give another --output"):
        find([str(photos / "a.png")], photos)
    (photos / "out").mkdir()
    (photos / "out" / "old.png").write_bytes(b"an earlier overlay")
    assert "out/old.png" not in find([str(photos)], photos / "out")
    assert "out/old.png" in find([str(photos)], photos.parent)  # photos.parent is no folder of overlays
    with pytest.raises(DataError, match="a.png would be replaced by its overlay: give another --output"):
        find([str(photos)], photos)
    build(tiny_folder, Recipe("float32"), tmp_path / "float32", torch.device("cpu"))
    (photos / "broken.png").write_bytes(b"no picture")
    for picture, artifact, message in (
        (photos / "broken.png", tmp_path / "float32", "broken.png is not a readable image"),
        (photos / "a.png", tmp_path / "nowhere", "nowhere"),
    ):
        done = segquant("predict", picture, "--artifact", artifact, "--output", tmp_path / "out")
        errors = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
        assert done.returncode == 2 and len(errors) == 1 and message in errors[0]
        assert not (tmp_path / "out").exists()


def test_a_broken_picture_late_leaves_nothing_of_the_others(tiny_folder, tmp_path):
    """Overlays are written while later pictures are unread."""
    build(tiny_folder, Recipe("float32"), tmp_path / "float32", torch.device("cpu"))
    for i in range(70):
        (tmp_path / f"photos/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (i, i, i)).save(tmp_path / f"photos/{i % 2}/{i:02d}.png")
    (tmp_path / "photos/1/69.png").write_bytes(b"x")
    options = ["--artifact", tmp_path / "float32", "--protocol", "fixed-64x64-v1"]
    done = segquant("predict", tmp_path / "photos", *options, "--output", tmp_path / "new/out")
    assert done.returncode == 2 and "69.png is not a readable image" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "new").exists()
    done = segquant("predict", tmp_path / "photos/0", *options, "--output", tmp_path / "new/out")
    overlays = {path.name: path.read_bytes() for path in (tmp_path / "new/out").iterdir()}
    assert done.returncode == 0 and "00.png" in overlays and len(overlays) == 38  # three are segquant's own
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "photos/0/00.png")
    (tmp_path / "photos/0/68.png").write_bytes(b"x")
    done = segquant("predict", tmp_path / "photos/0", *options, "--output", tmp_path / "new/out")
    after = {path.name: path.read_bytes() for path in (tmp_path / "new/out").iterdir()}
    assert done.returncode == 2 and after.pop(".segquant.json")
    names, before = (sorted(files.pop(".segquant.files").splitlines()) for files in (after, overlays))
    assert names == before and after.items() <= overlays.items()


def test_overlays_of_an_earlier_run_are_no_photographs(tiny_folder, photos, tmp_path):
    build(tiny_folder, Recipe("float32"), tmp_path / "float32", torch.device("cpu"))
    before = find([str(photos)], tmp_path / "out")
    options = ["--artifact", tmp_path / "float32", "--protocol", "fixed-64x64-v1", "--output", photos / "one"]
    assert segquant("predict", photos / "a.png", *options).returncode == 0
    assert find([str(photos)], photos / "two") == before


def test_exif_data_that_cannot_be_read_are_one_line(tiny_folder, tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "b.png", exif=b"Exif\0\0" + b"garbage!!" * 5)
    with pytest.raises(DataError, match="b.png has EXIF data that cannot be read .not a TIFF file"):
        _upright(tmp_path / "b.png", 10**6)


def test_a_turned_picture_of_16_bits_is_that_picture(tiny_folder, tmp_path):
    build(tiny_folder, Recipe("float32"), tmp_path / "artifact", torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (50, 70)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels, -1))).save(tmp_path / "upright.png")
    params = config.load(ROOT / "params.yaml")
    pictures = [str(tmp_path / f"{name}.png") for name in ("turned", "upright")]
    turned, upright = predict_pictures(params, pictures, tmp_path / "artifact", tmp_path / "out", "fixed-64x64-v1")
    assert turned["classes"] == upright["classes"] and len(upright["classes"]) > 1


def test_links_are_followed_and_hidden_files_are_not_pictures(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(photos / "a.png", tmp_path / "elsewhere" / "d.png")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "._a.png").write_bytes(b"what macOS leaves")
    names = {"a.png", "b.png", "linked/d.png", "more/c.png"}
    assert set(find([str(photos)], tmp_path / "out")) == names


def test_a_legend_that_is_too_long_says_how_many_more(tmp_path):
    ids = np.arange(150, dtype=np.uint8).repeat(20).reshape(50, 60)
    sheet = overlay(Image.new("RGB", (60, 50)), ids, {})
    (tmp_path / "sheet.png").write_bytes(sheet)
    assert Image.open(tmp_path / "sheet.png").height > 300


def test_a_picture_of_the_users_is_never_replaced_by_an_overlay(tiny_folder, photos, tmp_path):
    build(tiny_folder, Recipe("int8"), tmp_path / "int8", torch.device("cpu"))
    params = config.load(ROOT / "params.yaml")

    def predict(*pictures, output):
        return predict_pictures(
            params, list(map(str, pictures)), tmp_path / "int8", output, "fixed-64x64-v1", force=True
        )

    out = tmp_path / "out"
    predict(photos / "a.png", output=out)
    (out / "b.png").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in [*out.glob("*.png"), *photos.rglob("*.png")]}
    with pytest.raises(ConfigError, match="b.png would be replaced, and segquant did not write it"):
        predict(photos, output=out)
    Image.open(photos / "a.png").convert("RGB").save(photos / "more/a.jpg")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/more").symlink_to(photos)  # more/a.jpg would be written over photos/a.png
    with pytest.raises(ConfigError, match="lies behind a link"):
        predict(photos, output=tmp_path / "linked")
    assert {path: path.read_bytes() for path in before} == before
    (out / "b.png").unlink()
    assert len(predict(photos / "a.png", photos / "b.png", output=out)) == 2
