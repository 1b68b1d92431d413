"""What trials work on: a tiny random model, photographs with labels, artifacts, a graph, and a small clone."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from faults.trial import forked

ROOT = Path(__file__).resolve().parents[2]
SPLIT = "validation"
PROTOCOL = "fixed-64x64-v1"
METHODS = {
    "int8": {"weights": "int8"},
    "linear": {"weights": "int8", "layers": "linear"},
    "int4": {"weights": "int4", "group_size": 16},
    "int2": {"weights": "int2", "group_size": 16, "algorithm": "gptq", "calibration": {"images": 2}},
    "float8": {"weights": "float8"},
}
LAYOUT = {"classes": "ade20k", "reduce_labels": False}
ENVIRONMENT = {
    **os.environ,
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # as many threads on every start: the number decides how sums are rounded
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": f"{ROOT / 'src'}",
    "WANDB_MODE": "disabled",
}


class Place:
    """Folders and files for trials below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model, self.data, self.artifacts, self.graph = (
            root / name for name in ("model", "data", "artifacts", "graph/float32.onnx")
        )
        self.params, self.clone = root / "params.yaml", root / "clone"

    def build(self) -> None:
        """Make all but the clone, once. Raises RuntimeError where a part cannot be built."""
        if self.graph.exists():
            return
        ended = forked(self._build, self.root / "build", limit=600)
        if ended.code:
            raise RuntimeError(f"the workplace cannot be built: {ended.stderr}")

    def _build(self) -> None:
        from segquant import models
        from segquant.base import config
        from segquant.deploy.onnx_export import write_exports
        from segquant.quant.build import build

        shutil.copytree(ROOT / "data/label_maps", self.root / "data/label_maps")
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["protocol"] = PROTOCOL
        params["quant"] |= {"methods": {"float32": {"weights": "float32"}, **METHODS}, "packed": {}}
        params["data"] |= {"source": str(self.data), **LAYOUT}
        params["model"]["source"] = str(self.model)
        params["speed"] = {"input_size": [64, 64], "batch_sizes": [1], "runs": 2, "warmup": 1}
        params["sensitivity"] |= {"bits": [2], "images": 1}
        self.params.write_text(yaml.safe_dump(params, sort_keys=False))
        tiny_model(self.model)
        _photographs(self.data, self.model)
        import torch

        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        for name, recipe in config.load(self.params).quant.methods.items():
            calibration = images if recipe.calibration_images else None
            build(self.model, recipe, self.artifacts / name, models.device("cpu"), calibration)
        write_exports(self.model, self.graph.parent)

    def fill_clone(self) -> None:
        """Clone the repository's last commit, and cut its pipeline to two methods, four images and the tiny model."""
        subprocess.run(["git", "clone", "-q", ROOT, self.clone], check=True)
        for lock in (self.clone / "dvc.lock", self.clone / "stages/dvc.lock"):
            lock.unlink()
        params = yaml.safe_load((self.clone / "params.yaml").read_text())
        methods = {name: params["quant"]["methods"][name] for name in ("float32", "int8")}
        params["quant"] |= {"methods": methods, "packed": {}, "method": "int8"}
        params["model"]["source"] = "models/tiny"
        params["data"]["limit"], params["protocol"], params["eval"]["pictures"] = 4, PROTOCOL, 1
        params["speed"] = {"input_size": [64, 64], "batch_sizes": [1], "runs": 2, "warmup": 1}
        (self.clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        shutil.copytree(self.model, self.clone / "models/tiny")


def tiny_model(folder: Path, stages: int = 2) -> None:
    """Write a SegFormer of random weights, 150,000 in two stages, with the classes of the built-in model."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from segquant import models

    torch.manual_seed(0)
    config = SegformerConfig.from_pretrained(
        ROOT / "models/scenes-b0",
        num_encoder_blocks=stages,
        depths=[1] * stages,
        hidden_sizes=[32] * stages,
        num_attention_heads=[1] * stages,
        patch_sizes=[7, 3][:stages],
        strides=[4, 2][:stages],
        sr_ratios=[8, 4][:stages],
        mlp_ratios=[4, 4][:stages],
        decoder_hidden_size=64,
    )
    model = SegformerForSemanticSegmentation(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # which would be 0, and tiny once trained
            torch.nn.init.normal_(parameter, std=0.02)
    model.decode_head.classifier.weight.data *= 30  # many classes are predicted, and not one by its bias
    models.save(model, folder)


def _photographs(folder: Path, model: Path) -> None:
    """Built-in scenes of 80x64 pixels as JPEG and PNG. The labels are what the model predicts, but for each fifth
    column: a mistake that changes predictions changes every score a lot."""
    from segquant import models
    from segquant.base.config import Eval
    from segquant.data.sources import open_source
    from segquant.evaluation.predict import predict, prepared

    network = prepared(models.load(model), Eval())
    for split in ("train", SPLIT):
        source = open_source("scenes", split, 3)
        for number in range(3):
            row = source[number]
            image, label = (Image.open(io.BytesIO(row[key])) for key in ("image", "annotation"))
            path = folder / "images" / split / f"{number}.{'png' if number == 1 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").resize((80, 64)).save(path)
            rows = [row | {"image": path.read_bytes(), "width": 80, "height": 64}]
            (prediction,) = predict(network, rows, PROTOCOL, Eval(workers=0))
            classes = prediction.classes.numpy().astype(np.uint8)
            classes[:, ::5] = np.asarray(label.resize((80, 64), Image.Resampling.NEAREST))[:, ::5]
            path = folder / "annotations" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(classes).save(path)
