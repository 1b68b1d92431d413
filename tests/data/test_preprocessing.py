"""Pixels equal those of transformers' own processors, whatever a model's preprocessor_config.json says."""

import json
import sys

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segquant.base.errors import ModelError
from segquant.data.preprocessing import IMAGENET, PREPROCESSOR, Preprocessing, read_preprocessing
from segquant.data.protocols import model_input

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
HEIGHT, WIDTH = 32, 64
SEGFORMER = "SegformerImageProcessor"


def folder_with(tmp_path, keys, model_type="segformer"):
    (tmp_path / PREPROCESSOR).write_text(json.dumps(keys))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return tmp_path


def by_transformers(keys):
    """The photograph through the processor that the keys name, at the protocol's size and uncropped."""
    kind = getattr(transformers, keys["image_processor_type"] + "Pil")
    sizes = {"size": {"height": HEIGHT, "width": WIDTH}, "do_resize": True, "do_center_crop": False, "do_pad": False}
    processor = kind.from_dict({**keys, **sizes})
    return processor(PHOTO, return_tensors="pt")["pixel_values"][0].float()


numbers = st.floats(0.01, 2.0)
three = st.lists(numbers, min_size=3, max_size=3) | numbers
keys_of_files = st.fixed_dictionaries(
    {"image_processor_type": st.sampled_from([SEGFORMER, "BeitImageProcessor", "MobileNetV2ImageProcessor"])},
    optional={
        "do_rescale": st.booleans(),
        "rescale_factor": st.sampled_from([1 / 255, 2 / 255, 1 / 127.5, 0.25]),
        "do_normalize": st.booleans(),
        "image_mean": three,
        "image_std": three,
        "resample": st.integers(0, 5),
        "do_reduce_labels": st.booleans(),
        "do_center_crop": st.booleans(),
    },
)
flipped = st.fixed_dictionaries(
    {"image_processor_type": st.just("MobileViTImageProcessor")},
    optional={"do_flip_channel_order": st.booleans(), "do_rescale": st.booleans(), "resample": st.integers(0, 5)},
)


@given(keys=keys_of_files | flipped)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pixels_equal_the_processors_to_the_last_bit(keys, tmp_path):
    pixels = model_input(PHOTO, f"fixed-{HEIGHT}x{WIDTH}-v1", read_preprocessing(folder_with(tmp_path, keys)))
    assert torch.equal(pixels, by_transformers(keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"feature_extractor_type": "SegformerFeatureExtractor", "reduce_labels": True, "size": 512, "align": False},
        {"image_processor_type": "SegformerFeatureExtractor", "feature_extractor_type": "SegformerFeatureExtractor"},
        {"image_processor_type": "SegformerImageProcessorFast", "do_reduce_labels": True},
        {"size": {"height": 512, "width": 512}},  # a model's type names the processor where the file does not
    ],
)
def test_the_names_of_older_files_are_understood(keys, tmp_path):
    keys |= {"image_mean": [0.1, 0.2, 0.3], "do_normalize": True}
    pixels = model_input(PHOTO, f"fixed-{HEIGHT}x{WIDTH}-v1", read_preprocessing(folder_with(tmp_path, keys)))
    expected = by_transformers({"image_processor_type": SEGFORMER, "image_mean": [0.1, 0.2, 0.3]})
    assert torch.equal(pixels, expected)


def test_the_models_type_gives_the_defaults_that_a_file_leaves_out(tmp_path):
    preprocessing = read_preprocessing(folder_with(tmp_path, {"size": 256}, "mobilevit"))
    assert preprocessing == Preprocessing((0, 0, 0), (1, 1, 1), channels="BGR", resample="bicubic")


def test_without_a_file_pixels_are_normalized_as_imagenets(tmp_path):
    assert read_preprocessing(tmp_path) is IMAGENET


def test_a_processor_in_a_file_that_artifacts_do_not_have_is_refused(tmp_path):
    (tmp_path / "processor_config.json").write_text('{"image_processor": {}}')
    with pytest.raises(
        ModelError, match="has a processor_config.json but no preprocessor_config.json: write the image"
    ):
        read_preprocessing(tmp_path)


def test_two_files_that_differ_are_refused_as_transformers_takes_the_second(tmp_path):
    folder_with(tmp_path, {"image_mean": [0, 0, 0]})
    keys = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": keys}))
    assert read_preprocessing(tmp_path).mean == (0, 0, 0)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**keys, "image_mean": [1, 1, 1]}}))
    with pytest.raises(ModelError, match="the image_processor in processor_config.json differ, and transformers takes"):
        read_preprocessing(tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"resample": True}, "resample must be the number of one of Pillow's filters, 0 to 5, not True"),
        ({"resample": 0.0}, "resample must be the number of one of Pillow's filters, 0 to 5, not 0.0"),
        ({"image_mean": None}, "image_mean must be three finite numbers, not null"),
        ({"image_mean": "0.5"}, 'image_mean must be three finite numbers, not "0.5"'),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be three finite numbers"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean must be three finite numbers"),
        ({"image_mean": [0.5, 0.5, True]}, "image_mean must be three finite numbers"),
        ({"image_std": [0, 0, 0]}, "image_std must be three numbers above 0"),
        ({"image_std": [0.5, 0.5, float("inf")]}, "image_std must be three numbers above 0"),
        ({"image_std": [0.5, 0.5, 1e-300]}, "make pixels that float32 cannot hold"),
        ({"image_std": 1e308}, "make pixels that float32 cannot hold"),
        ({"image_mean": 1e308}, "make pixels that float32 cannot hold"),
        ({"rescale_factor": 1e300}, "make pixels that float32 cannot hold"),
        ({"image_mean": [0.5] * 1000}, r"image_mean must be three finite numbers, not \[0.5, .{80,95}\.\.\.$"),
        ({"rescale_factor": 0}, "rescale_factor must be a number above 0, not 0"),
        ({"rescale_factor": "1/255"}, 'rescale_factor must be a number above 0, not "1/255"'),
        ({"rescale_factor": None}, "rescale_factor must be a number above 0, not null"),
        ({"resample": 9}, "resample must be the number of one of Pillow's filters, 0 to 5, not 9"),
        ({"image_processor_type": "NewImageProcessor"}, "names the processor NewImageProcessor, which is none of"),
        ({"image_processor_type": 0}, "names the processor 0, which is none of"),
        ({"image_processor_type": ""}, "names the processor , which is none of"),
        ({"image_processor_type": {}}, "names the processor {}, which is none of"),
        ({"image_processor_type": "SegformerForSemanticSegmentation"}, "names the processor Segformer"),
        ({"image_processor_type": "MobileViTImageProcessor", "do_normalize": True}, "does more to pixels than"),
        ([1], "is not a JSON object"),
    ],
)
def test_a_file_that_cannot_be_followed_whole_is_one_line(keys, message, tmp_path):
    keys = {"image_processor_type": SEGFORMER, **keys} if isinstance(keys, dict) else keys
    with pytest.raises(ModelError, match=message) as caught:
        read_preprocessing(folder_with(tmp_path, keys))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("named", [True, False])
def test_a_processor_that_reads_other_files_is_not_built(named, tmp_path, monkeypatch):
    """OneFormer's opens what `repo_path` and `class_info_file` name, or asks the hub for it."""
    (tmp_path / "secret.json").write_text('{"0": {"isthing": 1, "name": "secret"}}')
    keys = {"repo_path": str(tmp_path), "class_info_file": "secret.json", "num_text": 1}
    keys |= {"image_processor_type": "OneFormerImageProcessor"} if named else {}
    opened = []
    sys.addaudithook(lambda event, details: opened.append(str(details[0])) if event == "open" else None)
    folder = folder_with(tmp_path, keys, "oneformer")
    with pytest.raises(ModelError, match="OneFormerImageProcessor, which is none of|names no image_processor_type"):
        read_preprocessing(folder)
    assert str(tmp_path / "secret.json") not in opened


@pytest.mark.parametrize("keys", [{"image_std": [1e-46] * 3}, {"rescale_factor": 1e37}, {"rescale_factor": 1e300}])
def test_numbers_that_overflow_are_refused_without_warnings(keys, tmp_path, recwarn):
    with pytest.raises(ModelError, match="float32 cannot hold|cannot be followed"):
        read_preprocessing(folder_with(tmp_path, {"image_processor_type": SEGFORMER, **keys}))
    assert [str(warning.message) for warning in recwarn] == []


def test_a_processor_that_does_more_than_it_says_is_refused(tmp_path, monkeypatch):
    kind = transformers.SegformerImageProcessorPil
    rescale = kind.rescale
    monkeypatch.setattr(kind, "rescale", lambda self, image, scale, **kwargs: rescale(self, image, scale) ** 2.2)
    with pytest.raises(ModelError, match="SegformerImageProcessorPil does more to pixels"):
        read_preprocessing(folder_with(tmp_path, {"image_processor_type": SEGFORMER}))


@given(mean=three, std=three, scale=numbers, channels=st.sampled_from(["RGB", "BGR"]), resample=st.integers(0, 5))
def test_metadata_of_graphs_say_all_of_it(mean, std, scale, channels, resample):
    preprocessing = Preprocessing(mean, std, scale, channels, Image.Resampling(resample).name.lower())
    assert Preprocessing.from_json(json.dumps({**preprocessing.to_json(), "multiple_of": 32})) == preprocessing
