import copy

import pytest
import yaml
from conftest import ROOT

from segquant.base import config
from segquant.base.config import Train
from segquant.base.errors import ConfigError
from segquant.base.fields import build


@pytest.fixture
def tree():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def test_the_committed_params_are_valid():
    params = config.load(ROOT / "params.yaml")
    assert params.quant.methods["int4"].group_size == 32
    assert params.speed.input_size == (256, 256)
    assert params.train.phases[0].crop == 128


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("quant", "method"), "nope", "quant.method 'nope' is unknown: choose one of float32, bfloat16, float8"),
        (
            ("quant", "methods", "int4", "weights"),
            "int5",
            "quant.methods.int4.weights 'int5' is unknown: choose one of",
        ),
        (
            ("quant", "methods", "int4", "grup_size"),
            8,
            "quant.methods.int4 has an unknown key 'grup_size': allowed are",
        ),
        (("eval", "batch_size"), "8", "eval.batch_size must be of type int, not '8'"),
        (("eval", "batch_size"), True, "eval.batch_size must be of type int, not True"),
        (("eval", "batch_size"), 0, "eval.batch_size must be at least 1, not 0"),
        (("speed", "input_size"), [512], "speed.input_size must be a list of 2 values"),
        (("train", "phases"), [], "train.phases must be a list, not []"),
        (("train", "phases", 0, "crop"), 8, "train.phases[0].crop must be at least 32, not 8"),
        (("train", "lr"), float("nan"), "train.lr must be at least 0.0, not nan"),
        (("quant", "methods"), {"int8": {"weights": "int8"}}, "quant.methods lacks float32"),
        (("quant", "methods", "selected"), {"weights": "int8"}, "quant.methods has 'selected': use letters"),
        (("quant", "methods", "a/b"), {"weights": "int8"}, "quant.methods has 'a/b': use letters"),
        (("speed", "input_size"), [0, 512], "speed.input_size[0] must be at least 32, not 0"),
        (("protocol",), "fixed", "protocol 'fixed' is unknown: choose aligned-512-v1 or fixed-HxW-v1"),
        (("data", "label_map"), "map.yaml", "data.label_map 'map.yaml' must lie in data/label_maps/"),
        (("quant", "methods"), {}, "quant.methods must be a mapping with at least one entry"),
        (("modle",), {}, "params.yaml has an unknown key 'modle': allowed are model, data"),
        (
            ("quant", "methods", "int4", "algorithm"),
            "awq",
            "int4.algorithm 'awq' is unknown: choose one of affine, hqq, gptq",
        ),
        (("quant", "methods", "int4", "weights"), "int5", "int4.weights 'int5' is unknown: choose one of float32"),
        (("quant", "methods", "int4", "layers"), "head", "int4.layers 'head' is unknown: choose one of all, linear"),
        (("quant", "methods", "int4", "layers"), [3], "int4.layers[0] must be of type str, not 3"),
        (("quant", "methods", "int4", "overrides"), {"*": {"bits": 8}}, "overrides.* has an unknown key 'bits'"),
        (
            ("quant", "methods", "int4", "overrides"),
            {"*": {"weights": "float32"}},
            "'float32' is unknown: choose one of",
        ),
        (("quant", "methods", "int4", "calibration"), {"images": 0}, "calibration.images must be at least 1, not 0"),
        (("sensitivity", "bits"), [5], "sensitivity.bits[0] '5' is unknown: choose one of 2, 3, 4, 8"),
        (("sensitivity", "algorithm"), "gptq", "sensitivity.algorithm 'gptq' is unknown: choose one of affine, hqq"),
        (("wandb", "mode"), "on", "wandb.mode 'on' is unknown: choose one of offline, online, disabled"),
    ],
)
def test_a_bad_parameter_is_one_line_that_names_it(tree, path, value, message):
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ConfigError) as error:
        config.build(config.Params, tree)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_and_a_broken_file(tree, tmp_path):
    del tree["model"]["source"]
    with pytest.raises(ConfigError, match="model lacks the key 'source'"):
        config.build(config.Params, tree)
    with pytest.raises(ConfigError, match="does not exist"):
        config.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(tmp_path / "params.yaml")


def test_the_dataclasses_are_frozen():
    params = config.load(ROOT / "params.yaml")
    with pytest.raises(AttributeError):
        params.eval.batch_size = 3


def test_a_recipe_says_how_many_images_it_calibrates_on():
    def images(**keys):
        return config.build(config.Recipe, {"weights": "int4", **keys}).calibration_images

    assert images(algorithm="hqq", calibration={"images": 9}) == 0
    assert images(algorithm="gptq") == 64
    assert images(algorithm="gptq", calibration={"images": 9}) == 9
    assert images(overrides={"decode_head.*": {"algorithm": "gptq"}}) == 64
    recipe = config.build(config.Recipe, {"weights": "int4", "layers": ["*.fc1", "decode_head.*"]})
    assert recipe.layers == ("*.fc1", "decode_head.*")


@pytest.mark.parametrize("text", ["1e-3", "1.5e3", "2E+1", "1.0e-3"])
def test_numbers_with_an_exponent_are_numbers(text):
    """YAML takes some of them for text."""
    options = yaml.safe_load(f"{{phases: [{{steps: 1, crop: 32, batch_size: 1}}], lr: {text}}}")
    assert build(Train, options).lr == float(text)
