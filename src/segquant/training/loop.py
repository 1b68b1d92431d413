"""The training loop: AdamW, warm-up and decay, mixed precision, accumulation, averaged weights, several processes.

A killed run goes on from its last checkpoint with the samples and the random numbers that it would have had.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from segquant.config import Phase, Training
from segquant.data.palette import palette
from segquant.errors import ConfigError, SegquantError
from segquant.evaluation.loop import Evaluation
from segquant.files import replacing
from segquant.progress import progress
from segquant.ranks import join, mean, ranks

log = logging.getLogger(__name__)
LOG_EVERY = 10  # steps

Samples = Callable[[int, int, int], Dataset]  # (crop, first, length) -> (image, labels) of a stream's samples
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]  # (model, images, labels) -> a mean
Record = Callable[[int, dict[str, float], dict[str, np.ndarray]], None]  # (step, curves, pictures in RGB)


def silent(step: int, values: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
    """Record nothing."""


def train(
    model: nn.Module,
    samples: Samples,
    loss: Loss,
    options: Training,
    phases: Sequence[Phase],
    *,
    checkpoint: Path,
    run: str,
    groups: Sequence[dict[str, Any]] | None = None,
    validate: Callable[[nn.Module], Evaluation] | None = None,
    record: Record = silent,
) -> nn.Module:
    """Train `model` in the mode it is in (train or eval), where it is; give it back, its weights averaged if asked.

    `groups` are AdamW's parameter groups, each with its highest lr; by default all parameters, norms and biases
    without weight decay. `run` says what is trained on what: the file `checkpoint` of another run is refused.
    `validate` is called every options.validate_every steps and at the end, `record` with what there is to plot.
    Under torchrun each process takes an equal part of every batch. Raises SegquantError when loss or gradient stop
    being finite; the last checkpoint stays.
    """
    (rank, world), mode = ranks(), model.training
    join()
    device, total = next(model.parameters()).device, sum(phase.steps for phase in phases)
    optimizer = torch.optim.AdamW(groups or decayed(model, options.weight_decay), lr=options.lr)
    peaks = [group["lr"] for group in optimizer.param_groups]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema)) if options.ema else None
    first = _resume(checkpoint, model, optimizer, average, run)
    parallel = DistributedDataParallel(model) if world > 1 else model
    amp = torch.autocast(device.type, torch.bfloat16, enabled=options.amp == "bfloat16")
    shown: dict[str, str] = {}
    losses: deque[float] = deque(maxlen=50)

    with progress(total=total, initial=first, desc="train", unit="step", quiet=rank > 0) as bar:
        for step, (images, labels) in enumerate(_batches(samples, options, phases, first, device), start=first):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor(step, total, options)
            torch.manual_seed(int(np.random.SeedSequence([options.seed, step, rank]).generate_state(1)[0]))
            optimizer.zero_grad(set_to_none=True)
            value, left = 0.0, len(images)
            for some, theirs in zip(images.chunk(options.accumulate), labels.chunk(options.accumulate)):
                left -= len(some)
                with parallel.no_sync() if world > 1 and left else nullcontext():  # the last one sums the gradients
                    with amp:
                        part = loss(parallel, some, theirs) * (len(some) / len(images))
                    part.backward()
                value += part.item()
            value = mean(value)
            norm = nn.utils.clip_grad_norm_(trained, options.clip or math.inf)
            if not math.isfinite(value + norm.item()):
                kept = f"{checkpoint} is kept" if checkpoint.is_file() else "there was no checkpoint yet"
                raise SegquantError(f"the loss is {value}, its gradient {norm.item()} at step {step}: lower lr; {kept}")
            optimizer.step()
            if average:
                average.update_parameters(model)
            losses.append(value)
            shown["loss"] = f"{np.mean(losses):.4f}"
            done, curves, pictures = step + 1, {}, {}
            if rank == 0 and validate and (done == total or done % options.validate_every == 0):
                evaluation = validate((average.module if average else model).eval())
                model.train(mode)
                curves["mean_iou"] = evaluation.scores.mean_iou
                pictures = {name: palette()[classes] for name, classes in evaluation.pictures.items()}
                shown["mIoU"] = f"{100 * curves['mean_iou']:.2f}"
            if rank == 0 and (curves or done % LOG_EVERY == 0):
                curves |= {"loss": float(np.mean(list(losses)[-LOG_EVERY:])), "lr": optimizer.param_groups[0]["lr"]}
                record(done, curves, pictures)
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if rank == 0 and (done == total or done % options.checkpoint_every == 0):
                _save(checkpoint, model, optimizer, average, done, run)
    if average:
        model.load_state_dict(average.module.state_dict())
    return model.eval()


def decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weight decay for matrices and kernels, none for norms and biases."""
    chosen = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in chosen if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0},
    ]


def factor(step: int, total: int, options: Training) -> float:
    """The share of its peak that a learning rate has at `step` (from 0): linear warm-up, then poly or cosine decay."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, total - options.warmup)
    return (1 - done) ** options.power if options.schedule == "poly" else (1 + math.cos(math.pi * done)) / 2


def _batches(
    samples: Samples, options: Training, phases: Sequence[Phase], first: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's part of every batch of every phase in turn, from step `first` on."""
    rank, world = ranks()
    seen = 0  # samples of the stream that earlier phases took
    for phase in phases:
        if phase.batch_size % world:
            raise ConfigError(f"batch_size {phase.batch_size} cannot be shared by {world} processes alike")
        done, share = min(first, phase.steps), phase.batch_size // world
        first -= done
        start, stop = seen + done * phase.batch_size, seen + phase.steps * phase.batch_size
        seen = stop
        if start < stop:
            mine = [
                list(range(at + rank * share, at + (rank + 1) * share))
                for at in range(0, stop - start, phase.batch_size)
            ]
            # A generator of its own: the loader else draws from torch's.
            loader = DataLoader(
                samples(phase.crop, start, stop - start), batch_sampler=mine, num_workers=options.workers,
                pin_memory=device.type == "cuda", generator=torch.Generator(),
            )  # fmt: skip
            for images, labels in loader:
                yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _save(path: Path, model: nn.Module, optimizer, average: nn.Module | None, step: int, run: str) -> None:
    state = {"step": step, "run": run, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if average:
        state["average"] = average.state_dict()
    with replacing(path) as part:
        torch.save(state, part)


def _resume(path: Path, model: nn.Module, optimizer, average: nn.Module | None, run: str) -> int:
    """Load what `_save` wrote, if anything; the number of steps that it had done."""
    if not path.is_file():
        return 0
    start = time.perf_counter()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        other = state["run"]
    except Exception as error:  # torch raises many types for a broken file
        raise SegquantError(f"{path} is no checkpoint of this program: remove it to start anew") from error
    if other != run:
        raise SegquantError(f"{path} is the checkpoint of another run ({other}): remove it to start anew")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average:
        average.load_state_dict(state["average"])
    log.info("resumed %s at step %d in %.1f s", path, state["step"], time.perf_counter() - start)
    return state["step"]
