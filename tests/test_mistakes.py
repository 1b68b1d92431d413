"""What a mistake in params.yaml or in the environment prints, in a clone where nothing is built."""

import pytest
import yaml
from clones import copied, sh


@pytest.fixture(scope="module")
def clone(tmp_path_factory, warm):
    folder = tmp_path_factory.mktemp("clone") / "segquant"
    copied(folder, ("float32", "int4"))
    sh(folder, "git add -A && git commit -qm start")
    return folder


def test_a_bad_parameter_ends_in_one_line(clone):
    output = sh(clone, "dvc exp run -S quant.method=nope", code=None)
    assert output.count("error: quant.method 'nope' is unknown: choose one of float32, int4") == 1
    assert "Traceback" not in output and "exited with 2" in output
    sh(clone, "git reset -q --hard")


@pytest.mark.parametrize(
    ("key", "value", "stage", "message"),
    [
        ("eval.batch_size", "none", "data_source", "eval.batch_size must be of type int, not 'none'"),
        (
            "data.source",
            "nowhere",
            "data_source",
            "data source 'nowhere' is not there: give 'scenes', a labelled folder",
        ),
        ("model.source", "owner/none", "baseline", "model 'owner/none' is no folder here and the hub gives none"),
    ],
)
def test_a_bad_parameter_ends_its_stage_in_one_line(clone, key, value, stage, message):
    params = yaml.safe_load((clone / "params.yaml").read_text())
    room, name = key.split(".")
    params[room][name] = value
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    output = sh(clone, f"python -m stages.{stage} --output x", code=2)
    assert output.startswith(f"error: {message}") and output.count("\n") == 1
    assert not (clone / "x").exists()
    sh(clone, "git reset -q --hard")


@pytest.mark.parametrize(
    "stage",
    [
        "prepare_shards --output x/shards",
        "export_onnx --baseline models/baseline --output x",
        "reference --baseline models/baseline --shards data/shards --partial x/partial --output x/reference",
        "quantize --method int4 --baseline models/baseline --shards data/shards --exports models/onnx --trained models/trained "
        "--output x/int4 --times x/int4.json",
        "evaluate --method int4 --artifact models/quantized/int4 --shards data/shards --reference data/reference "
        "--partial x/partial --metrics x/int4.json --classes x/int4.csv --pictures x/pictures",
    ],
)
def test_online_tracking_without_a_key_stops_every_stage_before_any_work(clone, stage):
    output = sh(clone, f"env WANDB_MODE=online WANDB_API_KEY= NETRC=/nonexistent python -m stages.{stage}", code=2)
    assert output == ("error: wandb.mode is online but there is no key: set WANDB_API_KEY, or use wandb.mode=offline\n")
    assert not (clone / "x").exists()


def test_a_stage_given_an_unknown_method_is_one_line(clone):
    assert "error: method 'nope' is unknown: choose from" in sh(
        clone,
        "python -m stages.quantize --method nope --baseline x --shards x --exports x --trained x --output x --times x",
        code=2,
    )
