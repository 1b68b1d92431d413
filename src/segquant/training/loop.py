"""Train a segmentation model from scratch: AdamW, linear warm-up, polynomial decay, mixed precision.

A killed run goes on from its last checkpoint with the samples it would have seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from segquant.config import Train
from segquant.data.images import IGNORE
from segquant.errors import SegquantError
from segquant.files import replacing
from segquant.progress import progress
from segquant.training.data import Crops, class_weights

log = logging.getLogger(__name__)


def learning_rate(step: int, train: Train) -> float:
    """The rate at `step` (from 0): linear warm-up, then (1 - progress) ** power."""
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    return train.lr * (1 - (step - train.warmup) / max(1, train.steps - train.warmup)) ** train.power


def loss_fn(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Weighted mean cross-entropy of logits (B, C, h, w) against labels (B, H, W), 255 ignored.

    Taken at half the label's size, every second pixel: with 150 classes the full size costs as much
    again as the model itself, and two-pixel things are still seen.
    """
    half = labels[:, ::2, ::2]
    logits = F.interpolate(logits.float(), half.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, half, weights, ignore_index=IGNORE)


def train(model: nn.Module, source, train: Train, device: torch.device, checkpoint: Path) -> nn.Module:
    """Train `model` on the labelled `source`, resuming from the file `checkpoint` when there is one.

    Raises SegquantError when the loss stops being finite; the last checkpoint stays.
    """
    model.to(device).train()
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": train.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    )
    torch.manual_seed(train.seed)
    run = f"{train!r} on {len(source)} images of {type(source).__name__}"
    first = _resume(checkpoint, model, optimizer, run)
    weights = class_weights(source, model.config.num_labels, train.balance).to(device)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=train.amp == "bfloat16")

    with progress(total=train.steps, initial=first, desc="train", unit="step") as bar:
        for step, (images, labels) in enumerate(_batches(source, train, first, device), start=first):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, train)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with amp:
                logits = model(images).logits
            loss = loss_fn(logits, labels, weights)
            if not torch.isfinite(loss):
                raise SegquantError(f"the loss is {loss.item()} at step {step}: lower train.lr; {checkpoint} is kept")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), train.clip)
            optimizer.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
            if (step + 1) % train.checkpoint_every == 0 or step + 1 == train.steps:
                _save(checkpoint, model, optimizer, step + 1, run)
    return model.eval()


def _batches(source, train: Train, first: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of every phase in turn, from step `first` on."""
    seen = 0  # samples of the stream that earlier phases took
    for phase in train.phases:
        done = min(first, phase.steps)
        first -= done
        start, stop = seen + done * phase.batch_size, seen + phase.steps * phase.batch_size
        seen = stop
        if start < stop:
            crops = Crops(source, phase.crop, train.scale, train.seed, start, stop - start)
            # A generator of its own: the loader else draws from torch's, which a resumed run must find as it was.
            yield from DataLoader(
                crops,
                phase.batch_size,
                num_workers=train.workers,
                pin_memory=device.type == "cuda",
                generator=torch.Generator(),
            )


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, run: str) -> None:
    state = {
        "step": step, "run": run, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }  # fmt: skip
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state()
    with replacing(path) as part:
        torch.save(state, part)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run: str) -> int:
    if not path.is_file():
        return 0
    start = time.perf_counter()
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["run"] != run:
        raise SegquantError(f"{path} is the checkpoint of another run ({state['run']}): remove it to start anew")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if "cuda_rng" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_rng"])
    log.info("resumed %s at step %d in %.1f s", path, state["step"], time.perf_counter() - start)
    return state["step"]
