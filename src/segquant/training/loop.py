"""The training loop: AdamW, warm-up and decay, mixed precision, accumulation, averaged weights, several processes.

A killed run goes on from its last checkpoint with the samples and the random numbers that it would have had.
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
    groups: Sequence[dict[str, Any]],
    *,
    checkpoint: Path,
    run: str,
    validate: Callable[[nn.Module], Evaluation] | None = None,
    record: Record = silent,
) -> float:
    """Train `model` in the mode it is in (train or eval), where it is; its weights are averaged in the end if asked.

    `groups` are AdamW's parameter groups, each with its highest lr. `run` says what is trained on what: the file
    `checkpoint` of another run, or of another number of processes, is refused. `validate` is called every
    options.validate_every steps and at the end, `record` with what there is to plot. Under torchrun each process
    takes an equal part of every batch; of a loss that is a mean of labelled pixels, each part's counts by its images.
    Gives the seconds that it had taken before it was killed, if it was. Raises SegquantError when loss or gradient stop
    being finite or the GPU's memory does not suffice; the last checkpoint stays.
    """
    (rank, world), mode = ranks(), model.training
    for phase in phases:
        if phase.batch_size % world:
            raise ConfigError(f"batch_size {phase.batch_size} cannot be shared by {world} processes alike")
    join()
    keep_freed_memory()
    device, total = next(model.parameters()).device, sum(phase.steps for phase in phases)
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    peaks = [group["lr"] for group in optimizer.param_groups]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema)) if options.ema else None
    first, before = _resume(checkpoint, model, optimizer, average, run)
    start = time.perf_counter() - before
    parallel = DistributedDataParallel(model) if world > 1 else model
    native = device.type == "cuda" or not BFLOAT16.isdisjoint(instructions())
    amp = torch.autocast(device.type, torch.bfloat16, enabled=options.amp == "bfloat16" and native)
    shown: dict[str, str] = {}
    losses: deque[float] = deque(maxlen=50)

    with progress(total=total, initial=first, desc="train", unit="step", quiet=rank > 0) as bar:
        for step, (images, labels) in enumerate(_batches(samples, options, phases, first, device), start=first):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor(step, total, options)
            torch.manual_seed(int(np.random.SeedSequence([options.seed, step, rank]).generate_state(1)[0]))
            optimizer.zero_grad(set_to_none=True)
            try:
                value = mean(_backward(parallel, loss, images, labels, options.accumulate, amp))
            except torch.OutOfMemoryError as error:
                advice = "lower batch_size or crop, or raise accumulate"
                raise SegquantError(f"out of GPU memory at step {step}: {advice}; {_kept(checkpoint)}") from error
            norm = nn.utils.clip_grad_norm_(trained, options.clip or math.inf)
            if not math.isfinite(value + norm.item()):
                found = f"the loss is {value}, its gradient {norm.item()} at step {step}"
                raise SegquantError(f"{found}: lower lr; {_kept(checkpoint)}")
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
            bar.set_postfix(shown)
            bar.update()
            if rank == 0 and (done == total or done % options.checkpoint_every == 0):
                _save(checkpoint, model, optimizer, average, done, _among_processes(run), time.perf_counter() - start)
    if average:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    return before


def _backward(
    model: nn.Module, loss: Loss, images: torch.Tensor, labels: torch.Tensor, parts: int, amp: torch.autocast
) -> float:
    """Add a batch's gradients to those of the parameters, worked through in so many parts; its loss."""
    value, left = 0.0, len(images)
    for some, theirs in zip(images.chunk(parts), labels.chunk(parts)):
        left -= len(some)
        shared = isinstance(model, DistributedDataParallel)
        with model.no_sync() if shared and left else nullcontext():  # the last one sums the ranks' gradients
            with amp:
                part = loss(model, some, theirs) * (len(some) / len(images))
            part.backward()
        value += part.item()
    return value


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
                _Told(samples(phase.crop, start, stop - start)),
                batch_sampler=mine,
                num_workers=min(options.workers, os.cpu_count() or 1),
                collate_fn=_collate,
                pin_memory=device.type == "cuda",
                generator=torch.Generator(),
            )
            for batch in loader:
                if isinstance(batch, SegquantError):
                    raise batch
                images, labels = batch
                yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class _Told(Dataset):
    """Samples, or the error of a broken one: raised in a worker process, it would come out with a traceback in it."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __getitem__(self, index: int) -> Any:
        try:
            return self.samples[index]
        except SegquantError as error:
            return error


def _collate(batch: list[Any]) -> Any:
    broken = next((sample for sample in batch if isinstance(sample, SegquantError)), None)
    return broken or default_collate(batch)


def _kept(checkpoint: Path) -> str:
    return f"{checkpoint} is kept" if checkpoint.is_file() else "there was no checkpoint yet"


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
    """Say that a killed training will go on from its checkpoint, once `first` is done, which takes long.

    Raises SegquantError for the checkpoint of another run, and for a file that is none.
    """
    state = _held(path, run)
    if state:
        log.info("%s: training goes on at step %d, once %s", path, state["step"], first)


def _held(path: Path, run: str) -> dict[str, Any] | None:
    """What `_save` wrote for the training `run`, None where there is no file; raises as `announce`."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        other = state["run"]
    except Exception as error:  # torch raises many types for a broken file
        raise _broken(path) from error
    if other != _among_processes(run):
        raise SegquantError(f"{path} is the checkpoint of another run ({other}): remove it to start anew")
    return state


def _among_processes(run: str) -> str:
    world = ranks()[1]
    return f"{run}, {world} processes" if world > 1 else run


def _resume(path: Path, model: nn.Module, optimizer, average: nn.Module | None, run: str) -> tuple[int, float]:
    """Load what `_save` wrote, if anything; the steps that were done, and the seconds that they took."""
    state = _held(path, run)
    if not state:
        return 0, 0.0
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
        log.info("resumed %s at step %d", path, state["step"])
        return state["step"], state["seconds"]
    except Exception as error:  # state dicts that do not fit raise many types
        raise _broken(path) from error


def _broken(path: Path) -> SegquantError:
    return SegquantError(f"{path} is no checkpoint of this program: remove it to start anew")
