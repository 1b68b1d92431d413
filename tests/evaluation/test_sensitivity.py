import csv
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchao.quantization as ao
from torch import nn

from segquant.base.config import Sensitivity
from segquant.base.errors import ConfigError, DataError
from segquant.data.images import decode_annotation, decode_image
from segquant.data.preprocessing import IMAGENET
from segquant.data.protocols import resize
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.evaluation.sensitivity import COLUMNS, sensitivity, to_csv
from segquant.report.layers import chart

PROTOCOL = "fixed-64x96-v1"


@pytest.fixture(scope="module")
def scenes():
    return list(rows(open_source("scenes", "validation", 3)))


def _measure(model, scenes, bits):
    settings = Sensitivity(tuple(bits), group_size=16, algorithm="affine")
    model.requires_grad_(False)
    return sensitivity(model, scenes, settings, num_classes=150, protocol=PROTOCOL, preprocessing=IMAGENET)


def _plain_miou(logits, scenes):
    hit, union = np.zeros(150), np.zeros(150)
    for image_logits, row in zip(logits, scenes, strict=True):
        label = decode_annotation(row["annotation"])
        upsampled = F.interpolate(image_logits[None], label.shape, mode="bilinear", align_corners=False)[0]
        prediction = upsampled.argmax(0).numpy()
        valid = label != 255
        for c in range(150):
            hit[c] += ((prediction == c) & (label == c) & valid).sum()
            union[c] += (((prediction == c) | (label == c)) & valid).sum()
    return 100 * np.nanmean(hit[union > 0] / union[union > 0])


def test_the_cost_of_a_layer_equals_that_of_quantizing_it_by_hand(tiny, scenes):
    name, bits = "segformer.stages.1.blocks.0.mlp.fc1", 2
    costs = {(row["module"], row["bits"]): row for row in _measure(tiny, scenes, [bits])}
    inputs = [IMAGENET(resize(decode_image(row["image"], row["id"]), PROTOCOL))[None] for row in scenes]
    with torch.inference_mode():
        exact = [tiny(image).logits[0] for image in inputs]
    config = ao.IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=ao.PerGroup(16))
    ao.quantize_(tiny, config, filter_fn=lambda _module, full: full == name)
    with torch.inference_mode():
        changed = [tiny(image).logits[0] for image in inputs]
    power, noise = (sum(float(x.square().sum()) for x in xs) for xs in (exact, [a - b for a, b in zip(exact, changed)]))
    assert costs[name, bits]["snr_db"] == pytest.approx(10 * math.log10(power / noise), abs=0.1)  # float16 scales
    loss = _plain_miou(exact, scenes) - _plain_miou(changed, scenes)
    assert costs[name, bits]["mean_iou_loss"] == pytest.approx(loss, abs=0.05)


def test_a_group_size_that_fits_no_layer_is_refused(tiny, scenes):
    settings = Sensitivity((2,), group_size=11, algorithm="affine")
    with pytest.raises(ConfigError, match="group_size 11 divides the inputs of no layer: choose 8, 16 or 32"):
        sensitivity(tiny, scenes, settings, num_classes=150, protocol=PROTOCOL, preprocessing=IMAGENET)


def test_no_readable_image_is_one_line(tiny):
    with pytest.raises(DataError, match="there is no readable image to score on: see the images that were skipped"):
        _measure(tiny, [], (2,))


def test_a_label_of_no_class_is_one_line(tiny, scenes):
    """Its pixel would count towards nothing."""
    settings = Sensitivity((8,), group_size=16, algorithm="affine")
    with pytest.raises(DataError, match="has class id .* in its label, but there are 3 classes"):
        sensitivity(tiny, scenes, settings, num_classes=3, protocol=PROTOCOL, preprocessing=IMAGENET)


def test_every_layer_is_measured_at_every_width_and_the_model_is_unchanged(tiny, scenes):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    costs = _measure(tiny, scenes, [2, 8])
    expected = {
        name: m.weight.numel()
        for name, m in tiny.named_modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)
    }
    for bits in (2, 8):
        assert {row["module"]: row["parameters"] for row in costs if row["bits"] == bits} == expected
    noise = {(row["module"], row["bits"]): row["snr_db"] for row in costs}
    assert all(noise[name, 8] > noise[name, 2] + 10 for name in expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())

    table = list(csv.DictReader(io.StringIO(to_csv(costs))))
    assert list(table[0]) == list(COLUMNS) and len(table) == len(costs)
    picture = chart(costs)
    assert picture.startswith("<svg") and all(name in picture for name in expected) and "2 bits" in picture
