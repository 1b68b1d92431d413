"""Shared fixtures. Everything runs offline."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers with two threads each would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "real"


@pytest.fixture(scope="session")
def real() -> Path:
    """Real weights and photographs, where this machine has them."""
    if not REAL.is_dir():
        pytest.skip(f"needs the real weights and photographs in {REAL.relative_to(ROOT.parent)} beside the repository")
    return REAL


def small_segformer():
    """A small random SegFormer with 150 classes, in eval mode."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[32, 32, 32, 32], num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=32, num_labels=150,
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config).eval()


@pytest.fixture
def tiny():
    return small_segformer()


@pytest.fixture
def tiny_folder(tiny, tmp_path) -> Path:
    from segquant import models

    models.save(tiny, tmp_path / "tiny")
    return tmp_path / "tiny"
