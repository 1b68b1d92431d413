import copy
import dataclasses
import time
from argparse import Namespace

import pytest
import yaml
from conftest import ROOT
from ruamel.yaml import YAML

from segquant.base import config
from segquant.base.errors import ConfigError
from segquant.base.yaml_file import read_yaml
from segquant.commands.sensitivity import _settings


@pytest.fixture
def tree():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def test_the_committed_params_are_valid():
    params = config.load(ROOT / "params.yaml")
    assert params.quant.methods["int4"].group_size == 32
    assert params.speed.input_size == (256, 256)
    assert params.train.phases[0].crop == 128


AUTO = ("quant", "methods", "auto")
PACKED = ("quant", "packed", "int2_static")
FLOATS = {"from": "int2", "engine": "onnxruntime"}


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
        (("train", "phases"), [], "train.phases must be a list with at least one entry, not []"),
        (("train", "phases", 0, "crop"), 8, "train.phases[0].crop must be at least 32, not 8"),
        (("train", "lr"), float("nan"), "train.lr must be a finite number, not nan"),
        (("quant", "methods"), {"int8": {"weights": "int8"}}, "quant.methods lacks float32"),
        (
            ("quant", "methods", "float32"),
            {"weights": "int8"},
            "quant.methods has another float32 than {weights: float",
        ),
        (("quant", "methods", "float32"), {"weights": "bfloat16"}, "quant.methods has another float32 than {weights"),
        (
            ("quant", "methods", "float32"),
            {"engine": "onnxruntime", "weights": "float32"},
            "quant.methods has another float32 than {weights: float32}",
        ),
        (("quant", "methods", "a/b"), {"weights": "int8"}, "quant.methods has 'a/b': use letters"),
        (("speed", "input_size"), [32, 99999999], "speed.input_size[1] must be at most 8192, not 99999999"),
        (("speed", "batch_sizes"), [1, 100000], "speed.batch_sizes[1] must be at most 4096, not 100000"),
        (("data", "shard_mb"), 1e305, "data.shard_mb must be at most 10000, not 1e+305"),
        (("data", "label_values"), {"٣": 0}, "data.label_values has '٣': use stored values 0 to 255"),
        (("data", "label_values"), {"9" * 5000: 0}, "data.label_values has '9"),
        (("speed", "input_size"), [0, 512], "speed.input_size[0] must be at least 32, not 0"),
        (("protocol",), "fixed", "protocol 'fixed' is unknown: choose aligned-512-v1 or fixed-HxW-v1"),
        (("data", "label_map"), "map.yaml", "data.label_map 'map.yaml' must be by_position or lie in data/label_maps/"),
        (("quant", "methods"), {}, "quant.methods must be a mapping with at least one entry"),
        (("modle",), {}, "params.yaml has an unknown key 'modle': allowed are model, data"),
        (
            ("quant", "methods", "int4", "algorithm"),
            "awq",
            "int4.algorithm 'awq' is unknown: choose one of affine, hqq, gptq",
        ),
        (("quant", "methods", "int4", "weights"), "int5", "int4.weights 'int5' is unknown: choose one of float32"),
        (("quant", "methods", "int4", "layers"), "head", "int4.layers must be all, linear or a list of name patt"),
        (("quant", "methods", "int4", "layers"), [3], "int4.layers[0] must be of type string, not 3"),
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
        (("eval", "batch_size"), 3.0, "eval.batch_size must be of type int, not 3.0"),
        (("eval", "compile"), 1, "eval.compile must be of type bool, not 1"),
        (("distill", "scale"), [1.5, 0.75], "distill.scale has the smaller factor last, [1.5, 0.75]: give it first"),
        (("train", "ema"), 1, "train.ema must be at most 0.99999, not 1"),
        (("eval",), [4], "eval must be a mapping of batch_size, device, pictures"),
        (("speed", "input_size"), [256, 256, 256], "speed.input_size must be a list of 2 values, not [256, 256, 256]"),
        (("speed", "batch_sizes"), 4, "speed.batch_sizes must be a list, not 4"),
        (("data", "ignore"), [0, 256], "data.ignore[1] must be at most 255, not 256"),
        (("data", "images"), "*.png", "data: images and annotations are two patterns of one pair: give both or none"),
        (("quant", "methods"), 4, "quant.methods must be a mapping, not 4"),
        (("quant", "methods", "truth"), {"weights": "int8"}, "quant.methods has 'truth', the name of another picture"),
        (
            ("quant", "methods", "int4", "ranges"),
            6,
            "quant.methods.int4.ranges must be float16 or bits such as {scale: 6, zero: 6}, not 6",
        ),
        (
            ("quant", "methods", "int4", "ranges"),
            {"scale": 0, "zero": 6},
            "quant.methods.int4.ranges.scale must be at least 1, not 0",
        ),
        (("quant", "methods", "int4", "ranges"), {"scale": 6}, "quant.methods.int4.ranges lacks the key 'zero'"),
        (
            ("quant", "methods", "int4", "small_layers", "bits"),
            5,
            "small_layers.bits '5' is unknown: choose one of 2, 3",
        ),
        (("quant", "methods", "int4"), None, "quant.methods.int4 must be a mapping of weights, group_size"),
        (("quant", "methods", "int4", "engine"), "tflite", "int4 has an unknown key 'group_size': allowed are engine,"),
        (
            ("quant", "methods", "int8_static", "engine"),
            "tflite",
            "quant.methods.int8_static.engine 'tflite' is unknown: choose one of onnxruntime, openvino",
        ),
        (
            ("quant", "methods", "int8_static", "algorithm"),
            "nncf",
            "quant.methods.int8_static: algorithm nncf on onnxruntime takes engine openvino",
        ),
        (
            ("quant", "methods", "int8_static_qat", "train", "ema"),
            0.9,
            "quant.methods.int8_static_qat.train: train of a graph takes no ema",
        ),
        (AUTO, {"weights": "auto"}, "quant.methods.auto: weights auto need a budget: give megabytes or points, one of"),
        (AUTO + ("points",), 1.0, "quant.methods.auto: weights auto need a budget: give megabytes or points, one of"),
        (AUTO + ("megabytes",), -1.0, "quant.methods.auto.megabytes must be at least 0, not -1"),
        (AUTO + ("bits",), [2, 5], "quant.methods.auto.bits[1] '5' is unknown: choose one of 2, 3, 4, 8"),
        (AUTO + ("bits",), [2, 2], "quant.methods.auto.bits has a value twice: 2, 2"),
        (AUTO + ("group_sizes",), [], "quant.methods.auto.group_sizes must be a list with at least one entry, not []"),
        (
            AUTO + ("group_size",),
            32,
            "quant.methods.auto has an unknown key 'group_size': allowed are weights, megabytes",
        ),
        (("eval", "bad\nkey"), 1, "eval has an unknown key 'bad\\nkey': allowed are"),
        (
            PACKED + ("from",),
            "nope",
            "quant.packed has int2_static from 'nope', no method with codes and float activations: choose one of float8, int8, int4",
        ),
        (
            PACKED + ("from",),
            "float32",
            "quant.packed has int2_static from 'float32', no method with codes and float activations: choose one of float8, int8, int4",
        ),
        (
            PACKED + ("from",),
            "int8_dynamic",
            "quant.packed has int2_static from 'int8_dynamic', no method with codes and float activations: choose one of float8, int8, int4",
        ),
        (
            PACKED + ("from",),
            "int8_static",
            "quant.packed has int2_static from 'int8_static', no method with codes and float activations: choose one of float8, int8, int4",
        ),
        (
            PACKED + ("from",),
            "int4_static",
            "quant.packed has int2_static from 'int4_static', no method with codes and float activations: choose one of float8, int8, int4",
        ),
        (
            PACKED + ("source",),
            "int2",
            "quant.packed.int2_static has an unknown key 'source': allowed are from, engine,",
        ),
        (PACKED, {"engine": "onnxruntime"}, "quant.packed.int2_static lacks the key 'from'"),
        (PACKED + ("engine",), "openvino", "quant.packed.int2_static: on openvino, activations are float: onnxruntime"),
        (
            PACKED + ("compute",),
            "bfloat16",
            "int2_static: on onnxruntime, compute is float32: openvino alone has others",
        ),
        (
            PACKED,
            FLOATS | {"calibration": {}},
            "int2_static: on onnxruntime, there is no calibration: activations stay",
        ),
        (("quant", "packed", "int4"), FLOATS, "quant.packed has 'int4', as methods has: choose another name"),
        (("quant", "packed", "a/b"), FLOATS, "quant.packed has 'a/b': use letters"),
        (("quant", "packed", "photo"), FLOATS, "quant.packed has 'photo', the name of another picture of the report"),
        (("quant", "methods", "x"), FLOATS, "quant.methods.x has an unknown key 'from': allowed are engine, weights,"),
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


def test_a_method_may_be_called_as_a_folder_of_the_results_is(tree):
    names = ("data", "reference", "report", "selected", "shards", "speed")
    tree["quant"]["methods"] |= {name: {"weights": "int8"} for name in names}
    assert set(names) <= set(config.build(config.Params, tree).quant.methods)


@pytest.mark.parametrize(
    ("key", "kind"), [("8", "8, which YAML reads as a number"), ("true", "True, which YAML reads as a truth value")]
)
def test_a_methods_name_that_is_no_text_is_refused_as_dvc_makes_no_stage_of_it(key, kind, tmp_path):
    text, path = (ROOT / "params.yaml").read_text(), tmp_path / "params.yaml"
    path.write_text(text.replace("\n    int8:", f"\n    {key}: {{weights: int8}}\n    int8:", 1))
    assert path.read_text() != text
    with pytest.raises(ConfigError, match=f"^quant.methods has {kind}: quote it, or choose a word$"):
        config.load(path)
    path.write_text(path.read_text().replace(f"\n    {key}: {{", f'\n    "{key}": {{'))
    assert config.load(path).quant.methods[key].weights == "int8"
    path.write_text(text.replace("\n  packed:", f"\n  packed:\n    {key}: {{from: int4, engine: onnxruntime}}", 1))
    with pytest.raises(ConfigError, match=f"^quant.packed has {kind}: quote it, or choose a word$"):
        config.load(path)


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


def test_the_key_engine_tells_graphs_from_recipes():
    methods = {"float32": {"weights": "float32"}, "graph": {"weights": "float32", "engine": "onnxruntime"}}
    methods = config.build(config.Quant, {"method": "graph", "methods": methods}).methods
    assert methods["float32"] == config.Recipe("float32")
    assert methods["graph"] == config.Graph(engine="onnxruntime", weights="float32")
    assert dataclasses.asdict(methods["graph"]) == {
        "engine": "onnxruntime",
        "weights": "float32",
        "algorithm": "cast",
        "compute": "float32",
        "calibration": None,
        "max_drop": None,
        "ignored_types": (),
        "train": None,
    }


def test_a_class_checks_what_it_is_called_with(tree):
    params = config.build(config.Params, tree)
    for make, message in (
        (lambda: config.Calibration(images=0), "Calibration.images must be at least 1, not 0"),
        (lambda: dataclasses.replace(params.quant, method="nope"), "Quant.method 'nope' is unknown: choose one of"),
        (lambda: dataclasses.replace(params, protocol="fixed"), "protocol 'fixed' is unknown"),
    ):
        with pytest.raises(ConfigError) as error:
            make()
        assert message in str(error.value) and "\n" not in str(error.value)
    assert config.Recipe("int4", layers=["*.fc1"]) == config.Recipe("int4", layers=("*.fc1",))
    assert dataclasses.replace(params.quant) == params.quant


def test_a_recipe_says_how_many_images_it_calibrates_on():
    def images(**keys):
        return config.build(config.Recipe, {"weights": "int4", **keys}).calibration_images

    assert images(algorithm="hqq", calibration={"images": 9}) == 0
    assert images(algorithm="gptq") == 64
    assert images(algorithm="gptq", calibration={"images": 9}) == 9
    assert images(overrides={"decode_head.*": {"algorithm": "gptq"}}) == 64
    recipe = config.build(config.Recipe, {"weights": "int4", "layers": ["*.fc1", "decode_head.*"]})
    assert recipe.layers == ("*.fc1", "decode_head.*")


@pytest.mark.parametrize(
    "path", [("train", "lr"), ("quant", "methods", "int2_qat", "train", "lr"), ("review", "max_drop")]
)
def test_infinity_is_no_number(path, tree):
    """JSON has none, so that a recipe with it could not be written down."""
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = float("inf")
    with pytest.raises(ConfigError, match=f"{'.'.join(path)} must be a finite number, not inf"):
        config.build(config.Params, tree)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("-7", -7),
        ("1:30", "1:30"),
        ("1_000", 1000),
        ("yes", "yes"),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-.inf", float("-inf")),
        ("~", None),
        ("", None),
        ("TRUE", True),
        ("0777.", 777.0),
    ],
)
def test_plain_values_are_those_of_yaml_1_2_as_dvc_reads_them(text, value, tmp_path):
    (tmp_path / "a.yaml").write_text(f"key: {text}\n{text or '~'}: 1\n")
    tree = read_yaml(tmp_path / "a.yaml")
    assert repr(tree) == repr({"key": value, (value if text else None): 1})
    assert repr(tree["key"]) == repr(YAML(typ="safe").load(f"key: {text}")["key"])


@pytest.mark.parametrize("text", ["2e-3", "1.5e3", "2E+1", "2.0e-3", "3.e-1"])
def test_numbers_with_an_exponent_are_numbers(text, tmp_path):
    """YAML 1.1 takes some of them for text."""
    params = (ROOT / "params.yaml").read_text().replace("  lr: 0.001 ", f"  lr: {text} ")
    (tmp_path / "params.yaml").write_text(params)
    assert config.load(tmp_path / "params.yaml").train.lr == float(text)


BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "has more than 100,000 values, or 30 levels"),  # 431 bytes took 40 s and 3.4 GB
        ("a: &a [*a]", "has more than 100,000 values, or 30 levels"),
        ("[" * 200 + "]" * 200, "has more than 100,000 values, or 30 levels"),
        ("[" * 5000, "it is nested too deep"),
        ("#" * 1_000_001, "has 1,000,001 characters: at most 1,000,000 work"),
        ("x: !!timestamp 2024-13-45", "is not valid YAML: could not determine a constructor for the tag"),
        ("model: {source: !!binary Zm9v}", "is not valid YAML: could not determine a constructor for the tag"),
        ("model: {source: !!set {a, b}}", "is not valid YAML: could not determine a constructor for the tag"),
        ("x: !!int a", "a value cannot be read: invalid literal"),
        ("? [a]\n: b", "is not valid YAML"),
    ],
)
def test_yaml_that_grows_or_breaks_is_one_line(text, message, tmp_path):
    (tmp_path / "params.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=message) as error:
        config.load(tmp_path / "params.yaml")
    assert time.process_time() - start < 2 and len(str(error.value)) < 1000 and "\n" not in str(error.value)


def test_long_values_and_names_are_cut_in_messages():
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for path, value, message in (
        (("quant", "method"), "x" * 10_000, r"quant.method 'x+\.\.\. is unknown: choose"),
        (("eval", "batch_size"), "x" * 10_000, r"must be of type int, not 'x+\.\.\.$"),
        (("eval", "x" * 10_000), 1, "has an unknown key 'x+"),
        (("quant", "methods", "x" * 65), {"weights": "int8"}, "use letters, digits, _ and -, at most 64"),
    ):
        changed = copy.deepcopy(tree)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ConfigError, match=message) as error:
            config.build(config.Params, changed)
        assert len(str(error.value)) < 1000


def test_a_key_that_stands_twice_is_refused(tmp_path):
    """PyYAML would take the last one."""
    text = (ROOT / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("  limit: 128", "  limit: 4\n  limit: 128"))
    with pytest.raises(ConfigError, match="is not valid YAML: the key 'limit' stands twice, again in line"):
        config.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"label_values": {0: 0, 2: 2, "2": 0}}}, "data.label_values has the keys 2 and '2', which are the"),
        ({"quant": [{"a": 1, None: 2, "null": 3}]}, r"quant\[0\] has the keys None and 'null', which are the same"),
        ({True: 1, "true": 2}, "params.yaml has the keys True and 'true', which are the same: keep one"),
    ],
)
def test_keys_that_are_equal_as_text_are_refused(change, message, tree):
    """The last one won, and the mIoU was wrong."""
    with pytest.raises(ConfigError, match=message):
        config.build(config.Params, {**tree, **change})


@pytest.mark.parametrize(
    "protocol",
    [
        f"fixed-{'9' * 5000}x64-v1",
        "fixed-99999999x64-v1",
        "fixed-20000x20000-v1",
        "fixed-64x8193-v1",
        "fixed-31x64-v1",
        "fixed-064x64-v1",
        "fixed-６４x64-v1",
    ],
)
def test_a_protocol_has_plain_sizes_with_a_bound(protocol):
    """They were an error of int(), gigabytes of memory, or a protocol of its own."""
    with pytest.raises(ConfigError, match="is unknown: choose aligned-512-v1 or fixed-HxW-v1") as error:
        config.check_protocol(protocol)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("protocol", ["aligned-512-v1", "fixed-32x8192-v1", "fixed-384x512-v1"])
def test_known_protocols_pass(protocol):
    assert config.check_protocol(protocol) == protocol


@pytest.mark.parametrize("bits", ["²", "２", "9" * 5000, "5", "", "2,²"])
def test_widths_on_the_command_line_are_plain_numbers(bits, tree):
    params = config.build(config.Params, tree)
    with pytest.raises(ConfigError, match=r"sensitivity.bits\[\d\] .* is unknown: choose one of 2, 3, 4, 8"):
        _settings(params, Namespace(bits=bits or " ", limit=None))
    assert _settings(params, Namespace(bits="2, 8", limit=None)).bits == (2, 8)


@pytest.mark.parametrize("methods", ["{<<: *a, <<: {y: 1}}", "{<<: {x: 1, x: 2}}", "{<<: [*a, {x: 1, x: 2}]}"])
def test_a_key_that_a_merge_repeats_is_refused(methods, tmp_path):
    """The last one won."""
    (tmp_path / "p.yaml").write_text(f"a: &a {{x: 1}}\nb: {methods}\n")
    with pytest.raises(yaml.YAMLError, match="the key '(<<|x)' stands twice, again in line 2"):
        read_yaml(tmp_path / "p.yaml")


def test_what_two_merges_share_is_no_repeat(tmp_path):
    (tmp_path / "p.yaml").write_text("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b}\nd: {<<: [*b, *a], x: 3}\n")
    assert read_yaml(tmp_path / "p.yaml") == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 2}, "d": {"x": 3}}


@pytest.mark.parametrize(
    ("text", "key"), [('"na\\ud800me"', "data.classes"), ('{"na\\ud800me": 1}', "a key of data.classes")]
)
def test_half_of_a_character_names_its_key(text, key, tmp_path):
    """It was a character of a file that nobody has."""
    (tmp_path / "p.yaml").write_text(f"data:\n  classes: {text}\n")
    with pytest.raises(ConfigError, match=f"^{key} has half of a character, 'na.+ud800me': write the whole one"):
        config.load(tmp_path / "p.yaml")


def test_keys_may_be_merged_from_an_anchor(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    recipe = "{weights: int8, algorithm: affine}"
    merged = text.replace(f"    int8: {recipe}", f"    int8: &int8 {recipe}\n    fine: {{<<: *int8, weights: int4}}")
    (tmp_path / "params.yaml").write_text(merged)
    methods = config.load(tmp_path / "params.yaml").quant.methods
    assert (methods["int8"].weights, methods["fine"].weights) == ("int8", "int4")


def test_a_packed_method_is_a_mapping_again(tree):
    quant = config.build(config.Params, tree).quant
    assert quant.packed["int2_static"].source == "int2_qat"
    assert config.as_mapping(quant.packed["int2_static"]) == tree["quant"]["packed"]["int2_static"] | {
        "compute": "float32",
        "calibration": None,
        "train": config.as_mapping(config.Finetune(epochs=4)),
    }
    assert list(quant.recipes) == [*tree["quant"]["methods"], *tree["quant"]["packed"]]


def test_what_a_run_needs_comes_first(tree):
    quant = config.build(config.Params, tree).quant
    assert list(quant.needed(quant.choose(["int2_static"]))) == ["float32", "int2_qat", "int2_static"]
    assert list(quant.needed(quant.choose(["int2_static", "int2_qat"]))) == ["float32", "int2_qat", "int2_static"]
    assert list(quant.needed(quant.choose(["int4"]))) == ["float32", "int4"]
