import pytest
import torch

from segquant.data.calibration import calibration_batch, spread
from segquant.data.images import decode_image
from segquant.data.preprocessing import IMAGENET
from segquant.data.protocols import resize
from segquant.data.rows import rows
from segquant.data.sources import open_source


@pytest.mark.parametrize(("count", "indices"), [(1, [0]), (3, [0, 2, 4]), (6, range(6)), (99, range(6))])
def test_images_are_evenly_spread_model_inputs(count, indices):
    source = open_source("scenes", "train", 6)
    assert spread(6, count) == list(indices)
    batch = calibration_batch([source[i] for i in indices], "fixed-64x96-v1")
    assert batch.shape == (len(indices), 3, 64, 96)
    for image, i in zip(batch, indices, strict=True):
        row = source[i]
        assert torch.equal(image, IMAGENET(resize(decode_image(row["image"], row["id"]), "fixed-64x96-v1")))


def test_images_are_resized_to_the_most_common_size():
    source = list(rows(open_source("scenes", "train", 12)))
    sizes = {resize(decode_image(row["image"], row["id"]), "aligned-512-v1").size for row in source}
    assert len(sizes) > 1, "the test needs scenes of different sizes"
    batch = calibration_batch(source, "aligned-512-v1")
    assert len(batch) == 12 and (batch.shape[3], batch.shape[2]) in sizes
