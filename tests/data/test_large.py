"""Images of many pixels, and images that are long and narrow, on each route that decodes."""

import io

import numpy as np
import pytest
from PIL import Image

from segquant.base.config import Data, Eval
from segquant.base.errors import DataError
from segquant.data.calibration import calibration_batch
from segquant.data.images import decode_annotation, decode_image
from segquant.data.rows import rows
from segquant.data.sources import open_images, open_source
from segquant.evaluation.loop import evaluate

PATTERNS = {"images": "{split}/*.png", "annotations": "masks/*.png", "classes": "camvid"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """`set` with one pair of 20x30 pixels."""
    monkeypatch.chdir(tmp_path)
    for folder, mode in (("val", "RGB"), ("masks", "L")):
        (tmp_path / "set" / folder).mkdir(parents=True)
        Image.new(mode, (30, 20), 3 if mode == "L" else (3, 3, 3)).save(tmp_path / "set" / folder / "a.png")
    return tmp_path


def test_more_pixels_than_the_key_allows_are_one_line(place):
    for open_rows in (open_source, open_images):
        with pytest.raises(DataError, match=r"val/a.png has 30x20 pixels, more than data.max_pixels, 599: raise that"):
            open_rows(Data("set", max_pixels=599, **PATTERNS), "val")[0]
    (place / "photos").mkdir()
    (place / "set/val/a.png").rename(place / "photos/a.png")
    with pytest.raises(DataError, match="photos/a.png has 30x20 pixels, more than data.max_pixels"):
        open_images(Data("photos", max_pixels=599), "train")[0]


def test_pillows_own_limit_does_not_count_and_stays(place, monkeypatch, recwarn):
    """Pillow warns of images above its limit and refuses those above twice that."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (row,) = rows(open_source(Data("set", max_pixels=600, **PATTERNS), "val"))
    assert decode_image(row["image"], "a").size == (30, 20) and decode_annotation(row["annotation"]).shape == (20, 30)
    assert Image.MAX_IMAGE_PIXELS == 100 and not recwarn.list


def row(width, height):
    image, label = io.BytesIO(), io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(image, "PNG")
    Image.fromarray(noise[..., 0] % 150).save(label, "PNG")
    return {"id": "long", "image": image.getvalue(), "annotation": label.getvalue(), "width": width, "height": height}


@pytest.mark.parametrize("size", [(20000, 4), (4, 20000), (1, 5000), (5000, 1)])
def test_narrow_images_are_scored_or_refused_in_one_line(size, tiny):
    pairs, options = [row(64, 48), row(*size)], {"num_classes": 150}
    assert evaluate(tiny, pairs, 2, protocol="fixed-64x64-v1", **options).n_images == 2
    message = f"long is {size[0]}x{size[1]}, too narrow for aligned-512-v1, which keeps the ratio"
    with pytest.raises(DataError, match=message):
        evaluate(tiny, pairs[1:], 1, protocol="aligned-512-v1", **options)
    with pytest.raises(DataError, match=message):
        calibration_batch(pairs, "aligned-512-v1")
    result = evaluate(tiny, pairs, 2, protocol="aligned-512-v1", settings=Eval(on_error="skip"), **options)
    assert result.n_images == 1 and message in result.skipped[0]
