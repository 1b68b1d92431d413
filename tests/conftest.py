"""Shared fixtures. All tests run offline."""

from __future__ import annotations

import gc
import os
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers with two threads each would compete for the cores
    os.environ["OMP_NUM_THREADS"] = "1"

gc.disable()  # until all is imported: a collection would look through what imports add, and free nothing

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import yaml  # noqa: E402
from filelock import FileLock  # noqa: E402
from PIL import Image  # noqa: E402

from segquant.base.repository import open_repository  # noqa: E402
from segquant.warm import SOCKET, forks  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # whose parts tests use
REAL = ROOT.parent / "shared" / "real"
LONGEST = (  # each with those that run TOGETHER with it
    "test_pipeline.py",
    "test_cli.py",
    "test_graphs.py",
    "test_qat.py",
    "test_families.py",
    "test_auto.py",
    "test_build_packed.py",
    "test_artifacts.py",
    "test_failures.py",
    "test_resume.py",
)

# Each file, and the one on whose worker it runs: both fork one process, whose imports take 5 s, of `warm` or `forked`.
TOGETHER = {
    "test_mistakes.py": "test_pipeline.py",
    "test_warm.py": "test_pipeline.py",
    "test_commands.py": "test_cli.py",
    "test_compare.py": "test_cli.py",
    "test_hostile_text.py": "test_cli.py",
    "test_output.py": "test_cli.py",
    "test_predict_command.py": "test_cli.py",
}


def pytest_collection_modifyitems(items):
    """Run the longest files first, so that two workers finish at the same time."""

    def place(item):
        file = first_of(item.nodeid)
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)


def first_of(nodeid: str) -> str:
    """The name of a test's file, or of the one that it runs TOGETHER with."""
    name = Path(nodeid.split("::")[0]).name
    return TOGETHER.get(name, name)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """--dist loadfile, which runs a file on one worker, for the files that are TOGETHER too."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        _split_scope = staticmethod(first_of)

    return Scheduling(config, log)


def pytest_collection_finish():
    gc.freeze()  # later collections skip what the imports added
    gc.set_threshold(10_000, 20, 20)  # they take 2 % of the time by default
    gc.enable()


@pytest.fixture(autouse=True)
def another_process():
    """What a process knows of the hub, the next test's does not."""
    open_repository.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def scenes_drawn_once():
    """A scene is drawn once, for all tests that read it: tests/data/test_scenes.py shows that it would be the same."""
    from segquant.data import sources

    drawn = cache(sources.scenes.sample)
    again = SimpleNamespace(SIZES=sources.scenes.SIZES, sample=lambda *which: dict(drawn(*which)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "scenes", again)
        yield


@pytest.fixture(scope="session")
def real() -> Path:
    """Real weights and photographs; skips the test where this machine has none."""
    if not REAL.is_dir():
        pytest.skip(f"needs the real weights and photographs in {REAL.relative_to(ROOT.parent)} beside the repository")
    return REAL


@pytest.fixture(scope="session")
def warm():
    """The environment in which stages are forks, as in `make repro`. From the first test that asks for it to the last
    one, `clones.sh` runs them there."""
    from clones import ENV

    with forks(ENV) as environment:
        ENV.update(environment)
        yield environment
        ENV.pop(SOCKET, None)


def ade20k_folder(root: Path, split: str, count: int) -> Path:
    """Write noise images with labels 0 to 150 in the layout of the official archive; return `root`."""
    rng = np.random.default_rng(0)
    for i in range(count):
        for kind, suffix, shape in (("images", "jpg", (30, 40, 3)), ("annotations", "png", (30, 40))):
            path = root / kind / split / f"ADE_{split}_{i:08d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 151, shape, np.uint8)).save(path)
    return root


def small_segformer(classes: int = 150, stages: int = 2, **others):
    """A small random SegFormer in eval mode. With each stage more, an export to ONNX takes 3 s longer.

    `others` are further keys of its configuration.
    """
    import torch  # not for the process that only hands tests to workers
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    options = {
        "num_encoder_blocks": stages,
        "depths": [1] * stages,
        "hidden_sizes": [32] * stages,
        "num_attention_heads": [1] * stages,
        "sr_ratios": [4, 2, 2, 1][-stages:],
        "decoder_hidden_size": 32,
        "num_labels": classes,
    }
    config = SegformerConfig(**options | others)
    return SegformerForSemanticSegmentation(config).eval()


@pytest.fixture(scope="session")
def exported_model(tmp_path_factory) -> Path:
    """A folder with `model`, of two stages, and `onnx`, what `export_onnx` makes of it: once for all workers."""
    from segquant import models
    from segquant.deploy.onnx_export import export_onnx

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / "exported.lock"):
        if not (root / "exported").exists():
            models.save(small_segformer(stages=2), root / "exporting/model")
            export_onnx(root / "exporting/model", root / "exporting/onnx")
            (root / "exporting").rename(root / "exported")
    return root / "exported"


@pytest.fixture
def tiny():
    return small_segformer()


@pytest.fixture
def tiny_folder(tiny, tmp_path) -> Path:
    from segquant import models

    models.save(tiny, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def quick(tmp_path) -> Path:
    """The repository's params.yaml with a short measurement of speed."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["speed"] = {"input_size": [64, 64], "batch_sizes": [1], "runs": 2, "warmup": 1}
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return path
