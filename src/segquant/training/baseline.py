"""Make the built-in baseline: train a SegFormer-B0, save it in fp16, score it, and write its model card."""

from __future__ import annotations

from pathlib import Path

import torch

from segquant import models
from segquant.config import Params
from segquant.data.sources import open_source, rows
from segquant.evaluation.loop import evaluate
from segquant.files import replacing, write_json, write_text
from segquant.training.loop import train

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-segmentation
---
# segquant's SegFormer-B0, trained on: {source}

A SegFormer-B0 (the configuration of `nvidia/segformer-b0-finetuned-ade-512-512`) trained from random weights on the
data below and on nothing else, so that the benchmark runs where there is no model hub. Of its {classes} classes it has
seen {known}. (`scenes` are the procedural pictures of `src/segquant/data/scenes`: it knows nothing of photographs.)

| | |
|---|---|
| data | {source}, split {split}, {images} images |
| steps | {phases} |
| optimizer | AdamW, highest rate {lr}, {warmup} steps of warm-up, polynomial decay of power {power}, seed {seed} |
| made by | `{command}` |
| stored as | fp16 (loaded as float32) |

On the first {n} images of the split {validation}, protocol {protocol}, as stored:
mean IoU {miou:.4f}, mean accuracy {macc:.4f}, overall accuracy {oacc:.4f}.
"""


def make_baseline(params: Params, output: str | Path, checkpoint: str | Path, command: str) -> None:
    """Train, save to the folder `output` (whole or not at all), and write metrics.json and README.md into it."""
    options, data = params.train, params.data
    device = models.device(params.eval.device)
    source = open_source(data, data.train_split, options.images)
    torch.manual_seed(options.seed)
    model = train(models.new_segformer_b0(source.classes), source, options, device, Path(checkpoint))
    validation = open_source(data, data.validation_split, options.validation_images)
    with replacing(output) as part:
        models.save(model, part, torch.float16, size=options.phases[-1].crop)
        result = evaluate(
            models.load(part).to(device),
            rows(validation),
            len(validation),
            num_classes=len(validation.classes),
            protocol=params.protocol,
            settings=params.eval,
            normalization=models.normalization(part),
        )
        scores = result.scores
        write_json(
            part / "metrics.json",
            {
                "mean_iou": scores.mean_iou,
                "mean_accuracy": scores.mean_accuracy,
                "overall_accuracy": scores.overall_accuracy,
                "n_images": result.n_images,
                "protocol": params.protocol,
            },
        )
        card = CARD.format(
            source=data.source,
            split=data.train_split,
            images=f"{len(source):,}",
            phases="; then ".join(f"{p.steps} of {p.batch_size} crops of {p.crop}x{p.crop}" for p in options.phases),
            lr=options.lr,
            warmup=options.warmup,
            power=options.power,
            seed=options.seed,
            command=command,
            classes=len(validation.classes),
            known=int((scores.pixels > 0).sum()),
            n=result.n_images,
            validation=data.validation_split,
            protocol=params.protocol,
            miou=scores.mean_iou,
            macc=scores.mean_accuracy,
            oacc=scores.overall_accuracy,
        )
        write_text(part / "README.md", card)
    Path(checkpoint).unlink()  # the next run is another one
