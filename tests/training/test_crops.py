import io

import numpy as np
import pytest
import torch
from PIL import Image

from segquant.base.errors import ConfigError
from segquant.data.images import decode_annotation, decode_image
from segquant.data.preprocessing import IMAGENET, Preprocessing
from segquant.data.protocols import resize
from segquant.data.sources import open_source
from segquant.training.data import Crops, class_weights, crop_size


@pytest.fixture
def source():
    return open_source("scenes", "train", 4)


def test_a_crop_is_a_pure_function_of_its_position_in_the_stream(source):
    whole = Crops(source, 64, (1.0, 1.4), seed=0, first=0, length=9)
    later = Crops(source, 64, (1.0, 1.4), seed=0, first=6, length=3)
    for i in range(3):
        for a, b in zip(whole[6 + i], later[i]):
            assert torch.equal(a, b)
    image, labels = whole[0]
    assert image.shape == (3, 64, 64) and labels.shape == (64, 64) and labels.dtype == torch.int64
    with pytest.raises(IndexError):
        later[3]


def test_an_epoch_visits_every_image_once(source):
    visited = []

    class Spy:
        def __len__(self):
            return 4

        def __getitem__(self, i):
            visited.append(i)
            return source[i]

    crops = Crops(Spy(), 32, (1.0, 1.0), seed=0, first=0, length=4)
    for i in range(4):
        crops[i]
    assert sorted(visited) == [0, 1, 2, 3]


def test_crops_are_windows_of_the_image_at_its_protocols_size(source):
    """Labels are exact windows, mirrored or not; images correlate with theirs, as their light changes."""
    crops = Crops(source, 64, (1.0, 1.0), 0, 0, 8, "fixed-96x128-v1")
    windows = []  # [labels (N, 64, 64), image (N, 64, 64)] of every window, for each image and its mirror image
    for row in (source[i] for i in range(4)):
        labels = Image.fromarray(decode_annotation(row["annotation"])).resize((128, 96), Image.Resampling.NEAREST)
        image = IMAGENET(resize(decode_image(row["image"], "i"), "fixed-96x128-v1")).mean(0)
        parts = [torch.from_numpy(np.array(labels)).long(), image]
        mirrored = [part.flip(1) for part in parts]
        for view in (parts, mirrored):
            windows.append([part.unfold(0, 64, 1).unfold(1, 64, 1).flatten(0, 1) for part in view])
    for i in range(8):
        image, labels = crops[i]
        matches = [
            window_images[n]
            for window_labels, window_images in windows
            for n in (window_labels == labels).flatten(1).all(1).nonzero()[:, 0]
        ]
        assert matches, i
        pairs = [torch.stack([image.mean(0).flatten(), match.flatten()]) for match in matches]
        assert max(float(torch.corrcoef(pair)[0, 1]) for pair in pairs) > 0.8


def test_without_labels_every_pixel_is_ignored(source):
    rows = [{**source[0], "annotation": None}]
    image, labels = Crops(rows, 32, (1.0, 1.0), 0, 0, 1)[0]
    assert image.shape == (3, 32, 32) and bool((labels == 255).all())


def test_crops_use_the_models_normalization():
    grey = Image.new("RGB", (40, 40), (51, 51, 51))
    row = {"image": _png(grey), "annotation": None, "id": "grey"}
    half = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    image, _ = Crops([row], 32, (1.0, 1.0), 0, 0, 1, preprocessing=half)[0]
    plain, _ = Crops([row], 32, (1.0, 1.0), 0, 0, 1, preprocessing=Preprocessing((0.0,) * 3, (1.0,) * 3))[0]
    assert torch.allclose(image, (plain - 0.5) / 0.25, atol=1e-6)
    assert not torch.allclose(image, IMAGENET(grey)[:, :32, :32])


def _png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_rare_classes_weigh_more(source):
    weights = class_weights(source, 150, 0.5)
    assert weights.shape == (150,) and weights.min() >= 0.2 and weights.max() <= 5
    assert weights[149] == 1  # absent
    assert len(set(weights.tolist())) > 5
    assert torch.equal(class_weights(source, 150, 0.0), torch.ones(150))


def test_only_scenes_stay_in_memory(source):
    """Scenes take long to draw; the photographs of a large data set would fill the memory."""
    scenes = Crops(source, 64, (1.0, 1.0), 0, 0, 4)
    photographs = Crops([source[i] for i in range(4)], 64, (1.0, 1.0), 0, 0, 4)
    for i in range(4):
        assert torch.equal(scenes[i][0], photographs[i][0])
    assert len(scenes._rows) == 4 and not photographs._rows


@pytest.mark.parametrize(
    "crop, protocol, expected",
    [
        (None, "fixed-96x128-v1", 96),
        (None, "aligned-512-v1", 512),
        (64, "fixed-96x128-v1", 64),
        (120, "fixed-96x128-v1", 120),
    ],
)
def test_the_crop_defaults_to_the_models_input(crop, protocol, expected):
    assert crop_size(crop, protocol, (0.9, 1.3)) == expected


def test_a_crop_larger_than_every_image_is_one_line():
    message = (
        r"crop 512 is larger than fixed-256x256-v1's images \(256 pixels, enlarged 1.3 times\): choose at most 332"
    )
    with pytest.raises(ConfigError, match=message):
        crop_size(512, "fixed-256x256-v1", (0.9, 1.3))
