"""The built-in baseline: train a SegFormer-B0 from random weights, save it in fp16, score it and write its card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segquant import models
from segquant.base.config import Params, Phase, Training
from segquant.base.files import digest, replacing, sha256, write_json, write_text
from segquant.base.hub import files
from segquant.base.ranks import ranks
from segquant.base.text import in_markdown
from segquant.data.fingerprint import fingerprint
from segquant.data.label_map import class_names, match_classes
from segquant.data.preprocessing import IMAGENET, Preprocessing
from segquant.data.sources import open_source
from segquant.evaluation.loop import Evaluation, evaluate
from segquant.training.data import Crops, class_weights
from segquant.training.loop import Record, decayed, train
from segquant.training.losses import cross_entropy

TEXT = """A SegFormer-B0 (the configuration of `nvidia/segformer-b0-finetuned-ade-512-512`) trained from random
weights on the data below and on nothing else, so that the benchmark runs where there is no model hub. {known} of its
{classes} classes occur in the images that it was scored on. (`scenes` are the procedural pictures of
`src/segquant/scenes`: it knows nothing of photographs.)"""
CARD = """---
license: {license}
library_name: transformers
pipeline_tag: image-segmentation
---
# {title}

{text}

| | |
|---|---|
| data | {source}, split {split}, {images:,} images |
| steps | {steps} |
| optimizer | AdamW, highest rate {lr}, {warmup} steps of warm-up, {schedule} decay, seed {seed} |
| made by | `dvc repro models/dvc.yaml:{stage}` (frozen: `dvc unfreeze models/dvc.yaml:{stage}` before) |
| stored as | fp16 (loaded as float32) |

On the first {n_images} images of the split {validation}, protocol {protocol}, as stored:
mean IoU {mean_iou:.4f}, mean accuracy {mean_accuracy:.4f}, overall accuracy {overall_accuracy:.4f}.
"""


def make_baseline(params: Params, output: str | Path, checkpoint: str | Path, record: Record) -> None:
    """Train the baseline, and save it to the folder `output` (whole or not at all) with metrics.json and README.md."""
    options, data = params.train, params.data
    source = open_source(data, data.train_split, options.images)
    torch.manual_seed(options.seed)
    model = models.new_segformer_b0(source.classes).to(models.device(params.eval.device))
    weights = class_weights(source, model.config.num_labels, options.balance).to(model.device)
    validation = open_source(data, data.validation_split, options.validation_images)
    label_map = match_classes(class_names(model.config), validation.classes, data.label_map)
    score = scorer(params, validation, validation.classes, IMAGENET, label_map)

    def samples(crop: int, first: int, length: int) -> Crops:
        return Crops(source, crop, (1.0, options.scale), options.seed, first, length)

    def loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(images).logits, labels, weights)

    train(
        model,
        samples,
        loss,
        options,
        options.phases,
        decayed(model, options.weight_decay),
        checkpoint=Path(checkpoint),
        run=training_name(params, options),
        validate=score,
        record=record,
    )
    publish(
        model,
        output,
        checkpoint,
        score,
        params,
        options,
        options.phases,
        len(source),
        stage="train",
        license="apache-2.0",
        title=f"segquant's SegFormer-B0, trained on: {data.source}",
        text=TEXT,
    )


def training_name(params: Params, options: Training, *folders: Path) -> str:
    """Name a training by its kind, its data and a digest of everything its result depends on.

    `folders` hold the models that it starts from or learns from.
    """
    weights = [sha256(path) for folder in folders for path in files(folder)]
    inputs = [options.result(), asdict(params.data), fingerprint(params.data), params.protocol, weights]
    return f"{type(options).__name__.lower()} on {params.data.source} [{digest(inputs)[:16]}]"


def scorer(
    params: Params,
    validation: Sequence[dict],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    label_map: np.ndarray | None,
) -> Callable[[nn.Module], Evaluation]:
    """A function that evaluates a model on the rows `validation`, whose labels are of `classes`.

    `label_map` leads from the model's classes to these; None if they are the same.
    """

    def score(model: nn.Module) -> Evaluation:
        rows = (validation[i] for i in range(len(validation)))
        return evaluate(
            model,
            rows,
            len(validation),
            num_classes=len(classes),
            protocol=params.protocol,
            settings=replace(params.eval, dtype="float32"),  # autocast is for methods' scores, which name it
            preprocessing=preprocessing,
            label_map=label_map,
            pictures=params.eval.pictures,
            desc="validate",
        )

    return score


def publish(
    model: nn.Module,
    output: str | Path,
    checkpoint: str | Path,
    score: Callable[[nn.Module], Evaluation],
    params: Params,
    options: Training,
    phases: Sequence[Phase],
    images: int,
    preprocessor: str | Path | None = None,
    **card: str,
) -> None:
    """Save a trained model in fp16 with its metrics and its card, and remove its checkpoint; under torchrun on rank 0.

    `images` is the number of training images; `preprocessor` is the folder of a model whose input normalization this
    one shares; `card` fills the card's `stage`, `license`, `title` and `text`.
    """
    if ranks()[0]:
        return
    with replacing(output) as part:
        models.save(model, part, torch.float16, size=phases[-1].crop, baseline=preprocessor)
        result = score(models.load(part).to(model.device))
        metrics = {
            "mean_iou": result.scores.mean_iou,
            "mean_accuracy": result.scores.mean_accuracy,
            "overall_accuracy": result.scores.overall_accuracy,
            "n_images": result.n_images,
            "protocol": params.protocol,
        }
        write_json(part / "metrics.json", metrics)
        present = result.scores.pixels > 0
        data = {"source": params.data.source, "split": params.data.train_split}
        words = {**data, "validation": params.data.validation_split, "title": card.pop("title")}
        steps = "; then ".join(f"{p.steps} of {p.batch_size} crops of {p.crop}x{p.crop}" for p in phases)
        text = card.pop("text").format(classes=len(present), known=int(present.sum()), **asdict(options))
        fields = {**asdict(options), **metrics, **card, "images": images, "steps": steps, "text": text}
        fields |= {key: in_markdown(value) for key, value in words.items()}
        write_text(part / "README.md", CARD.format(**fields))
    Path(checkpoint).unlink()  # so that the next run starts over
