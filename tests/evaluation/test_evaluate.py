import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_segformer
from PIL import Image
from transformers import SegformerImageProcessorPil

from segquant import models
from segquant.base.config import Eval, Recipe
from segquant.base.errors import DataError, SegquantError
from segquant.data.images import decode_annotation, decode_image
from segquant.data.preprocessing import read_preprocessing
from segquant.data.rows import rows
from segquant.data.shards import open_shards, write_shards
from segquant.data.sources import open_source
from segquant.engines.load import load_quantized
from segquant.evaluation.loop import evaluate
from segquant.evaluation.predict import predict
from segquant.evaluation.reference import read_reference, write_reference
from segquant.quant.build import build


@pytest.fixture
def source():
    return open_source("scenes", "validation", 5)


def _plain(model, source, size):
    """Class maps of Hugging Face's processor and F.interpolate, one image at a time."""
    processor = SegformerImageProcessorPil(do_reduce_labels=False, size={"height": size, "width": size})
    maps = []
    for row in rows(source):
        inputs = processor(decode_image(row["image"], "x"), return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        upsampled = F.interpolate(logits, (row["height"], row["width"]), mode="bilinear", align_corners=False)
        maps.append(upsampled.argmax(1)[0].numpy())
    return maps


def test_predictions_equal_those_of_a_plain_script(tiny, source):
    expected = _plain(tiny, source, 64)
    for batch_size in (1, 2, 8):
        predictions = predict(tiny, rows(source), "fixed-64x64-v1", Eval(batch_size=batch_size))
        actual = [prediction.classes.numpy() for prediction in predictions]
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == np.uint8
            assert (a == b).mean() > 0.9999  # the batch size can change the last bit


def as_png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_a_model_agrees_with_itself_and_its_score_matches_its_predictions(source, tmp_path):
    models.save(small_segformer(stages=4), tmp_path / "tiny")  # of two stages, one pixel is a tie
    write_shards({"validation": source}, tmp_path / "shards", shard_bytes=1)
    shards, folder = open_shards(tmp_path / "shards", "validation"), tmp_path / "reference"
    options = {"protocol": "fixed-64x64-v1", "settings": Eval(batch_size=4)}
    write_reference(tmp_path / "tiny", shards, folder, partial=tmp_path / "partial", **options)
    reference = [pair for shard in shards for pair in read_reference(folder, shard)]
    tiny = models.load(tmp_path / "tiny")
    result = evaluate(tiny, rows(source), len(source), num_classes=150, reference=reference, pictures=2, **options)
    assert result.agreement == 1.0
    assert result.n_images == 5
    assert len(result.pictures) == 2
    right = counted = 0
    for (_, prediction), row in zip(reference, rows(source), strict=True):
        prediction, label = decode_annotation(prediction), decode_annotation(row["annotation"])
        right += int(((prediction == label) & (label != 255)).sum())
        counted += int((label != 255).sum())
    assert result.scores.overall_accuracy == pytest.approx(right / counted, abs=1e-12)


def test_each_image_has_its_own_counts_however_many_are_fetched_together(tiny, source, monkeypatch):
    options = {"num_classes": 150, "protocol": "fixed-64x64-v1"}
    alone = [evaluate(tiny, [row], 1, **options).images[0] for row in rows(source)]
    for fetched in (2, 5, 32):
        monkeypatch.setattr("segquant.evaluation.loop._FETCHED", fetched)
        images = evaluate(tiny, rows(source), 5, settings=Eval(batch_size=1), **options).images
        assert [name for name, _ in images] == [name for name, _ in alone]
        for (_, cells), (_, expected) in zip(images, alone, strict=True):
            assert cells.dtype == np.int64
            np.testing.assert_array_equal(cells, expected)


def test_agreement_counts_pixels(tiny, source):
    predictions = predict(tiny, rows(source), "fixed-64x64-v1", Eval(batch_size=4))
    maps = [(prediction.row["id"], prediction.classes.numpy().copy()) for prediction in predictions]
    total = sum(m.size for _, m in maps)
    maps[0][1][0, :10] += 1
    result = evaluate(
        tiny,
        rows(source),
        5,
        num_classes=150,
        protocol="fixed-64x64-v1",
        settings=Eval(batch_size=4),
        reference=[(name, as_png(m)) for name, m in maps],
    )
    assert result.agreement == 1 - 10 / total


def test_the_label_map_translates_to_the_data_sets_classes(tiny, source):
    everything_is_sky = np.full(150, 2, np.uint8)
    result = evaluate(
        tiny, rows(source), 5, num_classes=150, protocol="fixed-64x64-v1", label_map=everything_is_sky, pictures=1
    )
    assert result.scores.accuracy[2] == 1.0
    assert result.scores.mean_accuracy < 0.2
    assert np.unique(next(iter(result.pictures.values()))).tolist() == [2]


def test_preprocessing_comes_from_the_artifact(tiny_folder, source, tmp_path):
    """A model that swallows its normalization predicts what it did with it, and nothing like it without."""
    path = tiny_folder / "preprocessor_config.json"
    keys = json.loads(path.read_text())
    mean, std = (torch.tensor(keys[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    before = _classes(tiny_folder, source)
    model = models.load(tiny_folder)
    first = next(layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
    first.weight.data /= std
    first.bias.data -= (first.weight * mean).sum((1, 2, 3))
    models.save(model, tiny_folder, baseline=None)
    path.write_text(json.dumps({**keys, "do_normalize": False}))
    build(tiny_folder, Recipe("float32"), tmp_path / "artifact", torch.device("cpu"))
    after = _classes(tmp_path / "artifact", source)
    assert (after == before).mean() > 0.8  # the first convolution pads with zeros, which were the mean
    path.write_text(json.dumps(keys))
    assert (_classes(tiny_folder, source) == before).mean() < 0.6


def _classes(folder, source):
    predictions = predict(
        models.load(folder) if folder.name == "tiny" else load_quantized(folder),
        rows(source),
        "fixed-64x64-v1",
        Eval(),
        read_preprocessing(folder),
    )
    return np.concatenate([prediction.classes.numpy().ravel() for prediction in predictions])


def test_labels_without_any_labelled_pixel_are_refused(tiny, source):
    blank = io.BytesIO()
    Image.new("L", (source[0]["width"], source[0]["height"]), 255).save(blank, "PNG")
    with pytest.raises(DataError, match="no labelled pixel"):
        evaluate(tiny, [{**source[0], "annotation": blank.getvalue()}], 1, num_classes=150, protocol="fixed-64x64-v1")


def test_a_reference_for_other_images_is_refused(tiny, source):
    maps = [("other", as_png(np.zeros((3, 3), np.uint8)))]
    with pytest.raises(SegquantError, match="the reference has other where the shards have scene_validation_00000000"):
        evaluate(tiny, rows(source), 5, num_classes=150, protocol="fixed-64x64-v1", reference=maps)
    with pytest.raises(DataError, match="no images"):
        evaluate(tiny, [], 0, num_classes=150, protocol="fixed-64x64-v1")
