import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from segquant.base.config import Eval
from segquant.base.errors import DataError, SegquantError
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.evaluation import predict as module
from segquant.evaluation.loop import evaluate
from segquant.evaluation.predict import predict

PROTOCOL = "fixed-64x64-v1"


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def row(name, width, height):
    rng = np.random.default_rng(len(name) + width)
    return {
        "id": name,
        "width": width,
        "height": height,
        "image": png(rng.integers(0, 255, (height, width, 3), np.uint8)),
        "annotation": png(np.full((height, width), 3, np.uint8)),
    }


@pytest.fixture
def sizes(monkeypatch, tiny):
    """The shapes of the model's batches, in order."""
    seen, forward = [], module.forward
    monkeypatch.setattr(module, "forward", lambda m, x, *a: (seen.append(tuple(x.shape)), forward(m, x, *a))[1])
    return seen


def test_images_of_one_input_size_share_batches(tiny, sizes):
    mixed = [row(f"{i}", *((40, 32) if i % 2 else (32, 40))) for i in range(10)]
    predictions = list(predict(tiny, mixed, "aligned-512-v1", Eval(batch_size=3)))
    assert [shape[0] for shape in sizes] == [3, 2, 3, 2]
    assert [prediction.index for prediction in predictions] == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    for prediction in predictions:
        height, width = prediction.row["height"], prediction.row["width"]
        assert prediction.row is mixed[prediction.index] and prediction.classes.shape == (height, width)


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_workers_change_nothing(tiny, workers):
    images = [row(f"{i}", 33 + i, 40) for i in range(7)]
    expected = list(predict(tiny, images, PROTOCOL, Eval(batch_size=2, workers=0)))
    predictions = list(predict(tiny, images, PROTOCOL, Eval(batch_size=2, workers=workers)))
    assert all(
        a.index == b.index and torch.equal(a.classes, b.classes) for a, b in zip(predictions, expected, strict=True)
    )


def test_out_of_memory_halves_the_batch_and_continues(tiny, monkeypatch, caplog):
    forward, seen = module.forward, []

    def small(model, inputs, *rest):
        seen.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, inputs, *rest)

    images = [row(f"{i}", 40, 40) for i in range(16)]
    expected = list(predict(tiny, images, PROTOCOL, Eval(batch_size=2)))
    monkeypatch.setattr(module, "forward", small)
    with caplog.at_level(logging.WARNING):
        predictions = list(predict(tiny, images, PROTOCOL, Eval(batch_size=8)))
    assert seen == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert "out of GPU memory with 8 images at a time: continuing with 4" in caplog.text
    assert all(torch.equal(a.classes, b.classes) for a, b in zip(predictions, expected, strict=True))

    def never(model, inputs, *rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "forward", never)
    with pytest.raises(SegquantError, match="one image does not fit into GPU memory: raise eval.max_gpu_memory_gb"):
        list(predict(tiny, images, PROTOCOL, Eval(batch_size=8)))


def broken():
    """Map each defect to a row that has it and the start of the error message."""
    good = row("a", 40, 32)
    return {
        "truncated image": ({**good, "image": good["image"][:100]}, "x.parquet row 1 (a) is not a readable image"),
        "image of another size": ({**good, "width": 41}, "x.parquet row 1 (a) is 40x32 but its row says 41x32"),
        "truncated label": (
            {**good, "annotation": good["annotation"][:20]},
            "x.parquet row 1 (a) has no readable label",
        ),
        "label of another size": (
            {**good, "annotation": png(np.zeros((9, 9), np.uint8))},
            "x.parquet row 1 (a) has a label of 9x9 for an image of 40x32",
        ),
        "id out of range": (
            {**good, "annotation": png(np.full((32, 40), 200, np.uint8))},
            "x.parquet row 1 (a) has class id 200 in its label, but there are 150 classes",
        ),
        "label in colours": (
            {**good, "annotation": png(np.zeros((32, 40, 3), np.uint8))},
            "x.parquet row 1 (a) has a label of 3 channels",
        ),
    }


@pytest.mark.parametrize("defect", broken())
def test_a_broken_row_raises_one_line_or_is_skipped_and_listed(tiny, defect):
    bad, message = broken()[defect]
    mixed = [row("first", 40, 32), bad, row("last", 40, 32)]
    options = {"num_classes": 150, "protocol": PROTOCOL, "origin": "x.parquet"}
    with pytest.raises(DataError) as caught:
        evaluate(tiny, mixed, 3, **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    result = evaluate(tiny, mixed, 3, settings=Eval(on_error="skip"), **options)
    assert result.n_images == 2
    assert len(result.skipped) == 1 and result.skipped[0].startswith(message)
    without = evaluate(tiny, [mixed[0], mixed[2]], 2, **options)
    assert result.scores.overall_accuracy == without.scores.overall_accuracy and without.skipped == []


def test_autocast_and_compile_are_off_by_default(tiny, monkeypatch):
    images = list(rows(open_source("scenes", "validation", 2)))
    options = {"num_classes": 150, "protocol": PROTOCOL}
    types = []
    tiny.decode_head.register_forward_pre_hook(lambda m, args: types.append(args[0][0].dtype))
    evaluate(tiny, images, 2, **options)
    evaluate(tiny, images, 2, settings=Eval(dtype="bfloat16"), **options)
    assert types[0] is torch.float32 and torch.bfloat16 in types  # layer norms may return float32
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    assert module.prepared(tiny, Eval()) is tiny and not compiled
    assert module.prepared(tiny, Eval(compile=True)) is tiny and compiled == [tiny]
