"""The training loop: AdamW, warm-up and decay, mixed precision, accumulation, averaged weights, several processes.

A killed run resumes from its last checkpoint, with the samples and random numbers of a run that was never stopped.
"""

from __future__ import annotations

import logging
import math
import os
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
from torch.utils.data import DataLoader, Dataset, default_collate

from segquant.base.allocator import keep_freed_memory
from segquant.base.config import Phase, Training
from segquant.base.errors import ConfigError, SegquantError
from segquant.base.files import replacing
from segquant.base.hardware import BFLOAT16, instructions
from segquant.base.progress import progress
from segquant.base.ranks import join, mean, ranks
from segquant.data.palette import palette
from segquant.evaluation.loop import Evaluation

log = logging.getLogger(__name__)
LOG_EVERY = 10  # steps

Samples = Callable[[int, int, int], Dataset]  # (crop, first, length) -> (image, labels) pairs of the sample stream
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]  # (model, images, labels) -> scalar mean loss
Record = Callable[[int, dict[str, float], dict[str, np.ndarray]], None]  # (step, curves, RGB pictures)


def silent(step: int, values: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
    """Record nothing."""


def train(
    model: nn.Module,
    samples: Samples,
    loss: Loss,
    options: Training,
    phases: Sequence[Phase],
    groups: Sequence[dict[str, Any]],
    *,
    checkpoint: Path,
    run: str,
    validate: Callable[[nn.Module], Evaluation] | None = None,
    record: Record = silent,
) -> float:
    """Train `model` in place, on its current device and in its current mode (train or eval).

    `groups` are AdamW's parameter groups; a group without an lr peaks at options.lr. With options.ema the model ends
    with the average of its weights. `validate` runs every options.validate_every steps and after the last one;
    `record` receives the curves and pictures to plot.

    `run` identifies what is trained on what: `train` refuses a checkpoint of another run, or of another number of
    processes. Under torchrun each process takes an equal part of every batch. Parts count by their number of images,
    even if the loss is a mean over labelled pixels.

    Returns the seconds that the run had taken before it was killed, 0.0 for a new run. Raises ConfigError for a batch
    that does not split evenly over the processes, and SegquantError when the loss or its gradient is not finite or the
    GPU runs out of memory; the last checkpoint stays.
    """
    rank, world = ranks()
    training_mode = model.training
    for phase in phases:
        if phase.batch_size % world:
            raise ConfigError(
                f"batch_size {phase.batch_size} does not split evenly over {world} processes: "
                f"choose a multiple of {world}"
            )
    join()
    keep_freed_memory()
    device, total = next(model.parameters()).device, sum(phase.steps for phase in phases)
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    peaks = [group["lr"] for group in optimizer.param_groups]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema)) if options.ema else None
    first_step, seconds_before = _resume(checkpoint, model, optimizer, average, run)
    start = time.perf_counter() - seconds_before
    parallel = DistributedDataParallel(model) if world > 1 else model
    has_bfloat16 = device.type == "cuda" or not BFLOAT16.isdisjoint(instructions())
    amp = torch.autocast(device.type, torch.bfloat16, enabled=options.amp == "bfloat16" and has_bfloat16)
    postfix: dict[str, str] = {}
    losses: deque[float] = deque(maxlen=50)

    with progress(total=total, initial=first_step, desc="train", unit="step", quiet=rank > 0) as bar:
        batches = _batches(samples, options, phases, first_step, device)
        for step, (images, labels) in enumerate(batches, start=first_step):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor(step, total, options)
            torch.manual_seed(int(np.random.SeedSequence([options.seed, step, rank]).generate_state(1)[0]))
            optimizer.zero_grad(set_to_none=True)
            try:
                value = mean(_backward(parallel, loss, images, labels, options.accumulate, amp))
            except torch.OutOfMemoryError as error:
                raise SegquantError(
                    f"out of GPU memory at step {step}: lower batch_size or crop, or raise accumulate; "
                    f"{_checkpoint_state(checkpoint)}"
                ) from error
            norm = nn.utils.clip_grad_norm_(trained, options.clip or math.inf)
            if not math.isfinite(value + norm.item()):
                raise SegquantError(
                    f"the loss is {value} and its gradient norm {norm.item()} at step {step}: lower lr; "
                    f"{_checkpoint_state(checkpoint)}"
                )
            optimizer.step()
            if average:
                average.update_parameters(model)
            losses.append(value)
            postfix["loss"] = f"{np.mean(losses):.4f}"
            done, curves, pictures = step + 1, {}, {}
            if rank == 0 and validate and (done == total or done % options.validate_every == 0):
                evaluation = validate((average.module if average else model).eval())
                model.train(training_mode)
                curves["mean_iou"] = evaluation.scores.mean_iou
                pictures = {name: palette()[classes] for name, classes in evaluation.pictures.items()}
                postfix["mIoU"] = f"{100 * curves['mean_iou']:.2f}"
            if rank == 0 and (curves or done % LOG_EVERY == 0):
                curves |= {"loss": float(np.mean(list(losses)[-LOG_EVERY:])), "lr": optimizer.param_groups[0]["lr"]}
                record(done, curves, pictures)
            bar.set_postfix(postfix)
            bar.update()
            if rank == 0 and (done == total or done % options.checkpoint_every == 0):
                _save(checkpoint, model, optimizer, average, done, _among_processes(run), time.perf_counter() - start)
    if average:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return seconds_before


def _backward(
    model: nn.Module, loss: Loss, images: torch.Tensor, labels: torch.Tensor, parts: int, amp: torch.autocast
) -> float:
    """Accumulate a batch's gradients over `parts` parts, and return the batch's loss."""
    value, remaining = 0.0, len(images)
    for image_part, label_part in zip(images.chunk(parts), labels.chunk(parts)):
        remaining -= len(image_part)
        postpone = isinstance(model, DistributedDataParallel) and remaining > 0
        with model.no_sync() if postpone else nullcontext():  # the last part sums gradients over the ranks
            with amp:
                part_loss = loss(model, image_part, label_part) * (len(image_part) / len(images))
            part_loss.backward()
        value += part_loss.item()
    return value


def decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices and kernels decay, norms and biases do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def factor(step: int, total: int, options: Training) -> float:
    """Learning rate at `step` (from 0) as a share of its peak: linear warm-up, then poly or cosine decay."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, total - options.warmup)
    return (1 - done) ** options.power if options.schedule == "poly" else (1 + math.cos(math.pi * done)) / 2


def _batches(
    samples: Samples, options: Training, phases: Sequence[Phase], first_step: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's part of each batch, phase after phase, from `first_step` on."""
    rank, world = ranks()
    phase_start = 0  # position in the stream of samples
    for phase in phases:
        steps_done = min(first_step, phase.steps)
        first_step -= steps_done
        start = phase_start + steps_done * phase.batch_size
        stop = phase_start = phase_start + phase.steps * phase.batch_size
        if start < stop:
            share = phase.batch_size // world
            rank_batches = [
                list(range(offset + rank * share, offset + (rank + 1) * share))
                for offset in range(0, stop - start, phase.batch_size)
            ]
            loader = DataLoader(
                _ErrorsAsSamples(samples(phase.crop, start, stop - start)),
                batch_sampler=rank_batches,
                num_workers=min(options.workers, os.cpu_count() or 1),
                collate_fn=_collate,
                pin_memory=device.type == "cuda",
                generator=torch.Generator(),  # without it the loader draws from torch's global generator
            )
            for batch in loader:
                if isinstance(batch, SegquantError):
                    raise batch
                images, labels = batch
                yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class _ErrorsAsSamples(Dataset):
    """Samples, or the error of a broken one: a worker process that raises it would add its traceback to the message."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __getitem__(self, index: int) -> Any:
        try:
            return self.samples[index]
        except SegquantError as error:
            return error


def _collate(batch: list[Any]) -> Any:
    error = next((sample for sample in batch if isinstance(sample, SegquantError)), None)
    return error or default_collate(batch)


def _checkpoint_state(checkpoint: Path) -> str:
    return f"{checkpoint} is kept" if checkpoint.is_file() else "there is no checkpoint yet"


def _save(
    path: Path, model: nn.Module, optimizer, average: nn.Module | None, step: int, run: str, seconds: float
) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "run": run,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    if average:
        state["average"] = average.state_dict()
    with replacing(path) as part:
        torch.save(state, part)


def announce(path: Path, run: str, first: str) -> None:
    """Log that a killed training will resume from its checkpoint after slow work, which `first` describes.

    Raises SegquantError for a checkpoint of another run, and for a file that is not a checkpoint.
    """
    state = _read_checkpoint(path, run)
    if state:
        log.info("%s: training will resume at step %d, once %s", path, state["step"], first)


def _read_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    """The state that `_save` wrote for the training `run`, None without a file; raises as `announce` does."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved_run = state["run"]
    except Exception as error:  # torch raises many types for a broken file
        raise _broken(path) from error
    if saved_run != _among_processes(run):
        raise SegquantError(f"{path} is the checkpoint of another run ({saved_run}): remove it to start over")
    return state


def _among_processes(run: str) -> str:
    """`run` with the number of processes, on which dropout and so the weights depend."""
    world = ranks()[1]
    return f"{run}, {world} processes" if world > 1 else run


def _resume(path: Path, model: nn.Module, optimizer, average: nn.Module | None, run: str) -> tuple[int, float]:
    """Load the checkpoint, if there is one. Returns the steps done and the seconds that they took."""
    state = _read_checkpoint(path, run)
    if not state:
        return 0, 0.0
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
        log.info("resumed %s at step %d", path, state["step"])
        return state["step"], state["seconds"]
    except Exception as error:  # load_state_dict raises many types for a state that does not fit
        raise _broken(path) from error


def _broken(path: Path) -> SegquantError:
    return SegquantError(f"{path} is not a readable checkpoint: remove it to start over")
