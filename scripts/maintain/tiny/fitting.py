"""The training loop that both parts share: data-parallel on the CPU, averaged weights, checkpoints.

Everything random is drawn from the seed and the number of the step, so a resumed run goes on as if it had never
stopped, and a second run from nothing has the same losses.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffopt.machine.files import file_that_appears_whole, write_text

Batch = dict[str, Tensor]  # first dimension: pictures


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    steps: int
    batch: int
    peak_rate: float  # of AdamW
    warmup: int = 100  # steps in which the rate rises to its peak
    horizon: int | None = None  # steps in which it would fall to 2 % as a cosine; None: all steps
    cooldown: int = 0  # the last steps, in which it falls to nothing linearly as well
    weight_decay: float = 1e-2
    average: float = 0.998  # how much of the averaged weights each step keeps
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup)
        wave = 0.51 + 0.49 * math.cos(math.pi * min(1.0, step / (self.horizon or self.steps)))
        fall = min(1.0, (self.steps - step) / self.cooldown) if self.cooldown else 1.0
        return self.peak_rate * rise * wave * fall


@dataclass(frozen=True)
class Machine:
    """Where to compute. Each shard takes its part of the batch in a thread of its own, with one CPU thread.

    That needs one meeting of the threads per step instead of one per operation, which is what makes two threads slow
    on a busy machine. The number of shards changes the rounding of a gradient, so it belongs to what is reproducible.
    """

    device: str = "cpu"
    shards: int = 2


def fit(
    name: str,
    model: nn.Module,
    draw: Callable[[int, torch.Generator], Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    schedule: Schedule,
    machine: Machine,
    folder: Path,
    every: int = 100,
) -> nn.Module:
    """Train ``model`` and return a copy with the averaged weights; continues from ``folder/NAME.pt``.

    ``draw(step, generator)`` makes a batch on the CPU and ``loss`` its mean loss. A line per ``every`` steps is
    printed, each step's loss goes to ``folder/NAME_losses.json`` with every checkpoint.
    """
    state = _State(model.to(machine.device).train(), schedule, machine, folder / f"{name}.pt")
    state.resume()
    started, first = time.monotonic(), state.step
    with ThreadPoolExecutor(machine.shards) as threads:
        while state.step < schedule.steps:
            generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + state.step)
            state.advance(draw(state.step, generator), loss, threads)
            if state.step % every == 0 or state.step == schedule.steps:
                recent = state.losses[-every:]
                pace = (time.monotonic() - started) / (state.step - first)
                left = (schedule.steps - state.step) * pace / 60
                print(
                    f"{name} {state.step:6d}/{schedule.steps} loss {sum(recent) / len(recent):.5f} "
                    f"{pace:.3f} s/step, {left:.0f} min left",
                    flush=True,
                )
            if state.step % (5 * every) == 0 or state.step == schedule.steps:
                state.save()
    return state.averaged


class _State:
    """Weights, their average, the optimizer and the losses so far."""

    def __init__(self, model: nn.Module, schedule: Schedule, machine: Machine, file: Path) -> None:
        self.schedule, self.machine, self.file = schedule, machine, file
        self.model, self.averaged = model, copy.deepcopy(model).eval().requires_grad_(False)
        self.replicas = [model, *(_replica(model) for _ in range(machine.shards - 1))]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=schedule.peak_rate, betas=(0.9, 0.99), weight_decay=schedule.weight_decay
        )
        self.step, self.losses = 0, list[float]()

    def advance(self, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor], threads: ThreadPoolExecutor) -> None:
        """One optimizer step on the mean loss over the shards."""
        parts = _split(batch, self.machine)
        jobs = [
            threads.submit(_gradient, replica, part, loss, self.machine)
            for replica, part in zip(self.replicas, parts, strict=True)
        ]
        self.losses.append(sum(job.result() for job in jobs) / len(jobs))
        for replica in self.replicas[1:]:
            others = [p for p in replica.parameters() if p.requires_grad]
            for own, other in zip(self.parameters, others, strict=True):
                if own.grad is not None and other.grad is not None:
                    own.grad += other.grad
        for own in self.parameters:
            if own.grad is not None:
                own.grad /= len(self.replicas)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        self.optimizer.step()
        keep = min(self.schedule.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - keep)
        self.step += 1

    def save(self) -> None:
        """Write the checkpoint whole or not at all, and the losses beside it."""
        data = {
            "step": self.step,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with file_that_appears_whole(self.file) as file:
            torch.save(data, file)
        losses = self.file.with_name(f"{self.file.stem}_losses.json")
        write_text(losses, json.dumps([round(value, 6) for value in self.losses]) + "\n")

    def resume(self) -> None:
        if not self.file.exists():
            return
        data = torch.load(self.file, map_location=self.machine.device, weights_only=True)
        self.step, self.losses = data["step"], data["losses"]
        self.model.load_state_dict(data["model"])
        self.averaged.load_state_dict(data["averaged"])
        self.optimizer.load_state_dict(data["optimizer"])


def _replica(model: nn.Module) -> nn.Module:
    """A copy that shares the weights and has gradients of its own."""
    replica = copy.deepcopy(model)
    for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
        own.data = shared.data
    return replica


def _split(batch: Batch, machine: Machine) -> list[Batch]:
    parts = {key: value.to(machine.device).chunk(machine.shards) for key, value in batch.items()}
    return [{key: parts[key][shard] for key in parts} for shard in range(machine.shards)]


def _gradient(model: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor], machine: Machine) -> float:
    model.zero_grad(set_to_none=True)
    with torch.autocast(machine.device, torch.bfloat16):
        value = loss(model, batch)
    value.backward()  # type: ignore[no-untyped-call]
    return value.item()
