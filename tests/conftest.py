"""Shared fixtures. Everything runs offline."""

from __future__ import annotations

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers with two threads each would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "real"


def pytest_collection_modifyitems(items):
    """What takes longest first, so that two workers end together."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


def pytest_collection_finish():
    gc.freeze()  # torch, transformers and dvc are looked through by no collection from here on


@pytest.fixture(scope="session")
def real() -> Path:
    """Real weights and photographs, where this machine has them."""
    if not REAL.is_dir():
        pytest.skip(f"needs the real weights and photographs in {REAL.relative_to(ROOT.parent)} beside the repository")
    return REAL


def ade20k_folder(root: Path, split: str, count: int) -> Path:
    """Pictures of noise with labels 0 to 150, laid out as in the official archive."""
    rng = np.random.default_rng(0)
    for i in range(count):
        for kind, suffix, shape in (("images", "jpg", (30, 40, 3)), ("annotations", "png", (30, 40))):
            path = root / kind / split / f"ADE_{split}_{i:08d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 151, shape, np.uint8)).save(path)
    return root


def small_segformer(classes: int = 150, stages: int = 4):
    """A small random SegFormer, in eval mode. With two stages torch.export is done with it in half the time."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=stages,
        depths=[1] * stages,
        hidden_sizes=[32] * stages,
        num_attention_heads=[1] * stages,
        sr_ratios=[8, 4, 2, 1][-stages:],
        decoder_hidden_size=32,
        num_labels=classes,
    )
    return SegformerForSemanticSegmentation(config).eval()


@pytest.fixture
def tiny():
    return small_segformer()


@pytest.fixture
def tiny_folder(tiny, tmp_path) -> Path:
    from segquant import models

    models.save(tiny, tmp_path / "tiny")
    return tmp_path / "tiny"
