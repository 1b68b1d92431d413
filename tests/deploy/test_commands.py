"""`segquant pt2e`, `evaluate` and `export onnx` as a user runs them."""

import json

import onnx
import pytest
import yaml
from conftest import ade20k_folder, small_segformer
from forked import errors, segquant
from PIL import Image

from segquant import models
from segquant.base.errors import UnavailableError
from segquant.cli import parser
from segquant.commands import pt2e


@pytest.fixture
def tiny_folder(tmp_path):
    models.save(small_segformer(stages=1), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.slow
def test_pt2e_makes_scores_and_times_an_int8_onnx_file(tiny_folder, quick, tmp_path):
    for name in ("one", "two"):
        ade20k_folder(tmp_path / name, "validation", 2)
    done = segquant(
        "pt2e",
        "--params",
        quick,
        "--model",
        tiny_folder,
        "--data",
        tmp_path / "one",
        "--data",
        tmp_path / "two",
        "--split",
        "validation",
        "--train-split",
        "validation",
        "--protocol",
        "fixed-64x64-v1",
        "--epochs",
        1,
        "--num-calibration-samples",
        2,
        "--num-samples-per-dataset",
        1,
        "--output",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results) == ["one", "two"]
    for methods in results.values():
        assert list(methods) == ["float32", "onnx_float32", "int8_static", "int8_static_qat"]
        assert {result["n_images"] for result in methods.values()} == {1}
        assert methods["onnx_float32"]["agreement"] == 1.0 and methods["int8_static"]["agreement"] > 0.9
        assert methods["int8_static_qat"]["algorithm"] == "qat" and methods["int8_static"]["algorithm"] == "pt2e"
        assert methods["int8_static"]["quantize"]["calibration_images"] == 2
        assert methods["int8_static"]["speed"]["engine"] == "onnxruntime"
        assert methods["int8_static"]["size_bytes"] < 0.5 * methods["onnx_float32"]["size_bytes"]
    path = tmp_path / "out" / "artifacts" / "int8_static_qat" / "model.onnx"
    assert f"ONNX: {path}" in done.stdout
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)

    options = ("--data", tmp_path / "one", "--split", "validation", "--protocol", "fixed-64x64-v1", "--limit", 1)
    for engine in ("onnxruntime", "openvino"):
        done = segquant("evaluate", path, *options, "--engine", engine, "--json")
        assert done.returncode == 0, done.stderr
        scored = json.loads(done.stdout)
        assert scored["engine"].startswith(engine) and scored["n_images"] == 1
        if engine == "onnxruntime":
            assert scored["mean_iou"] == results["one"]["int8_static_qat"]["mean_iou"]
    plain = segquant("evaluate", path, *options).stdout
    assert f"{path}: mIoU " in plain and "(fixed-64x64-v1, 1 images, onnxruntime" in plain
    done = segquant("evaluate", path, *options[:4], "--protocol", "fixed-100x64-v1")
    assert done.returncode == 2 and "graphs take heights and widths in multiples of 32" in errors(done)[-1]


def test_pt2e_compares_the_graphs_that_its_options_name_with_the_float_ones(monkeypatch, tmp_path):
    runs = []
    monkeypatch.setattr(pt2e, "benchmark", lambda arguments, params, command: runs.append(params.quant.methods))
    common = ["pt2e", "--model", "m", "--data", "scenes", "--split", "validation", "--output", str(tmp_path / "out")]
    for epochs in ("0", "2"):
        options = ["--protocol", "fixed-64x64-v1", "--num-calibration-samples", "7", "--epochs", epochs]
        pt2e.main(parser().parse_args([*common, *options]))
    assert list(runs[0]) == ["float32", "onnx_float32", "int8_static"]
    assert list(runs[1]) == [*runs[0], "int8_static_qat"] and runs[1]["int8_static_qat"].train.epochs == 2
    assert runs[0]["int8_static"].train is None
    assert {methods[name].calibration.images for methods in runs for name in list(methods)[2:]} == {7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pt2e", "--epochs", -1), "--epochs must be at least 0"),
        (("pt2e", "--num-calibration-samples", 0), "--num-calibration-samples must be at least 1"),
        (("pt2e", "--train-split", "nowhere"), "scenes has no split 'nowhere'"),
        (("pt2e", "--num-samples-per-dataset", 0), "--num-samples-per-dataset must be at least 1"),
        (
            ("pt2e", "--protocol", "fixed-360x480-v1"),
            "error: graphs take heights and widths in multiples of 32, not protocol fixed-360x480-v1",
        ),
        (("export", "onnx", "--opset", 99), "opset 99 is unknown"),
        (("export", "onnx", "--opset", 0), "opset 0 is unknown"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, message, tiny_folder, tmp_path):
    common = ["--model", tiny_folder, "--output", tmp_path / "out"]
    data = ["--data", "scenes", "--split", "validation"] if arguments[0] == "pt2e" else []
    done = segquant(*arguments, *common, *data)
    assert done.returncode == 2
    assert len(errors(done)) == 1 and errors(done)[0].startswith("error: ") and message in errors(done)[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("onnx", "--model", "m", "--artifact", "a"), "argument --artifact: not allowed with argument --model"),
        (("onnx",), "one of the arguments --model --artifact is required"),
        (
            ("onnx", "--artifact", "a", "--sha256", "0"),
            "--revision and --sha256 are of a --model from elsewhere: leave them out",
        ),
        (
            ("onnx", "--artifact", "nowhere"),
            "nowhere is not a quantized model: it has no quantization.json; give another folder",
        ),
        (("transformers", "--artifact", "a", "--model", "m"), "unrecognized arguments: --model m"),
        (("transformers", "--artifact", "a", "--classes"), "unrecognized arguments: --classes"),
        (("transformers",), "the following arguments are required: --artifact"),
        (("--format", "onnx", "--model", "m"), "unrecognized arguments: --format"),
    ],
)
def test_each_export_takes_its_own_options_only(arguments, message, tmp_path):
    done = segquant("export", *arguments, "--output", tmp_path / "out")
    assert done.returncode == 2 and errors(done)[-1].endswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_an_export_never_replaces_a_folder(tiny_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("words")
    done = segquant("export", "onnx", "--model", tiny_folder, "--output", tmp_path / "mine")
    assert done.returncode == 2
    assert errors(done) == [f"error: {tmp_path / 'mine'} exists: give a new folder, or remove that one first"]
    assert (tmp_path / "mine" / "thesis").read_text() == "words"


def test_pt2e_without_the_extra_is_one_line(monkeypatch, tmp_path):
    from segquant import cli
    from segquant.engines import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    monkeypatch.setattr(
        "sys.argv",
        ["segquant", "pt2e", "--model", "m", "--data", "d", "--split", "val", "--output", f"{tmp_path / 'out'}"],
    )
    monkeypatch.setattr(cli, "run", lambda main: main())
    with pytest.raises(UnavailableError, match=r"not installed: pip install 'segquant\[onnx\]'"):
        cli.cli()
    assert not (tmp_path / "out").exists()


def test_run_applies_max_drop_to_the_calibration_images(tiny_folder, quick, tmp_path):
    params = yaml.safe_load(quick.read_text())
    params["quant"]["methods"]["onnx_int8"] = {
        "engine": "onnxruntime",
        "weights": "int8",
        "algorithm": "qdq",
        "calibration": {"images": 2},
        "max_drop": 50,
    }
    quick.write_text(yaml.safe_dump(params, sort_keys=False))
    ade20k_folder(tmp_path / "one", "validation", 2)
    for folder in ("validation", "validationannot"):  # CamVid's eleven classes
        (tmp_path / "camvid" / folder).mkdir(parents=True)
        Image.new("L" if "annot" in folder else "RGB", (60, 40), 11 if "annot" in folder else 0).save(
            tmp_path / "camvid" / folder / "a.png"
        )
    options = (
        "run",
        "--params",
        quick,
        "--model",
        tiny_folder,
        "--data",
        tmp_path / "one",
        "--split",
        "validation",
        "--train-split",
        "validation",
        "--protocol",
        "fixed-64x64-v1",
        "--methods",
        "onnx_int8",
        "--output",
        tmp_path / "out",
    )
    done = segquant(*options)
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "out" / "artifacts" / "onnx_int8" / "quantization.json").read_text())
    assert info["float_nodes"] == [] and abs(info["drop"]) <= 50
    done = segquant(*options, "--train-data", tmp_path / "camvid")
    assert (
        done.returncode == 2
        and f"onnx_int8: labels of the classes that are scored are needed, and {tmp_path / 'camvid'} has others"
        in errors(done)[-1]
    )


def test_evaluate_of_a_missing_onnx_file_is_one_line(tmp_path):
    done = segquant("evaluate", tmp_path / "no.onnx", "--data", "scenes", "--split", "validation")
    assert done.returncode == 2 and errors(done) == [f"error: {tmp_path / 'no.onnx'} is not there: give an ONNX file"]


def test_export_onnx_writes_both_precisions_and_prints_their_difference(tiny_folder, tmp_path):
    done = segquant("export", "onnx", "--model", tiny_folder, "--output", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["float32"]["difference"] < 1e-4
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["export.json", "float16.onnx", "float32.onnx"]


def test_evaluate_on_no_image_is_refused(tmp_path):
    done = segquant("evaluate", tmp_path / "a.onnx", "--data", "scenes", "--split", "validation", "--limit", 0)
    assert done.returncode == 2 and errors(done) == ["error: --limit must be at least 1, not 0"]


def test_run_builds_the_artifact_whose_codes_a_packed_method_takes(tiny_folder, quick, tmp_path):
    params = yaml.safe_load(quick.read_text())
    codes = {"weights": "int4", "group_size": 8}
    params["quant"] |= {"methods": {"float32": {"weights": "float32"}, "codes": codes}, "method": "codes"}
    params["quant"]["packed"] = {"graph": {"from": "codes", "engine": "onnxruntime"}}
    quick.write_text(yaml.safe_dump(params, sort_keys=False))
    data = ["--data", ade20k_folder(tmp_path / "one", "validation", 2), "--split", "validation"]
    options = ("run", "--params", quick, "--model", tiny_folder, *data, "--protocol", "fixed-64x64-v1")
    done = segquant(*options, "--methods", "graph", "--output", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results) == ["graph"] and results["graph"]["speed"]["engine"] == "onnxruntime"
    artifacts = sorted(path.name for path in (tmp_path / "out/artifacts").iterdir())
    assert artifacts == ["codes", "float32", "graph"]
    metadata = {
        entry.key: entry.value for entry in onnx.load(tmp_path / "out/artifacts/graph/model.onnx").metadata_props
    }
    recipe = json.loads((tmp_path / "out/artifacts/codes/quantization.json").read_text())["recipe"]
    assert json.loads(metadata["recipe"]) == recipe
    both = segquant(*options, "--methods", "graph,codes", "--output", tmp_path / "both")
    assert both.returncode == 0, both.stderr
    results = json.loads((tmp_path / "both/results.json").read_text())
    assert list(results) == ["graph", "codes"]
    assert results["graph"]["mean_iou"] == pytest.approx(results["codes"]["mean_iou"], abs=1e-6)


def test_nothing_is_exported_into_what_is_read(tiny_folder):
    done = segquant("export", "onnx", "--model", tiny_folder, "--output", tiny_folder / "onnx")
    assert done.returncode == 2 and not (tiny_folder / "onnx").exists()
    assert errors(done) == [
        f"error: --output {tiny_folder / 'onnx'} and {tiny_folder}, which is read, contain one another: give another "
        "--output"
    ]
