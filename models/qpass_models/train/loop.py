"""The training loop: steps, the average of the weights, checkpoints to resume from, a log."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from qpass.errors import ModelError
from qpass.files import write_file
from qpass.progress import Progress
from qpass.sampling import generator
from qpass_models.train.cifar10 import Pictures
from qpass_models.train.jobs import Job
from qpass_models.train.state import State

WARM_UP = 200  # steps


@attrs.frozen(kw_only=True)
class Budget:
    """How long to train: `steps`, or `minutes` where they end sooner; minutes count over all resumed parts."""

    steps: int
    minutes: float | None = None

    def spent(self, step: int, seconds: float) -> float:
        """The share that is used up, 0 to 1; the learning rate follows it."""
        timed = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / self.steps, timed))


def rate_at(spent: float, warm: float) -> float:
    """The learning rate's factor: a linear warm-up, then level, then down to 0 over the last 30 %.

    >>> [rate_at(s, warm=1.0) for s in (0.0, 0.5, 0.7, 0.85, 1.0)]
    [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    return round(min(warm, 1.0, max(0.0, (1 - spent) / 0.3)), 12)


def train(
    job: Job, state: State, pictures: Pictures, budget: Budget, *,
    folder: Path, compiled: bool, progress: Progress, keep_every: float = 120.0,
) -> State:  # fmt: skip
    """Train until the budget is spent, resuming from `folder/state.pt` and leaving it there."""
    device, settings = pictures.images.device, state.settings
    kept, log = folder / "state.pt", folder / "log.jsonl"
    if kept.is_file():
        state.restore(kept, device)
        progress.say(f"resuming at step {state.step}, after {state.seconds / 60:.1f} minutes of training")
    first = time.monotonic() - state.seconds
    saved, losses = time.monotonic(), []
    network: Any = torch.compile(state.network, dynamic=False) if compiled else state.network
    with progress.task(f"train {job.name}", budget.steps) as task:
        task.skip(state.step)
        while (spent := budget.spent(state.step, time.monotonic() - first)) < 1:
            factor = rate_at(spent, warm=(state.step + 1) / WARM_UP)
            for group in state.optimizer.param_groups:
                group["lr"] = settings.rate * factor
            source = _source(settings.seed, state.step, device)
            with torch.autocast(device.type, torch.bfloat16):
                loss = job.loss(network, pictures, settings.batch, source)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.average.update(state.network, state.step)
            losses.append(loss.detach())
            state.step += 1
            task.advance()
            if time.monotonic() - saved > keep_every or budget.spent(state.step, time.monotonic() - first) >= 1:
                state.seconds = time.monotonic() - first
                state.loss = float(torch.stack(losses).mean())
                if not torch.isfinite(torch.tensor(state.loss)):
                    raise ModelError(f"the loss is {state.loss} at step {state.step}; try a lower --rate")
                write_file(kept, state.dump())
                line = {"step": state.step, "seconds": round(state.seconds), "loss": round(state.loss, 5)}
                write_file(log, (log.read_text() if log.is_file() else "") + json.dumps(line) + "\n")
                progress.say(f"  step {state.step}: loss {state.loss:.5f}, {state.seconds / 60:.1f} minutes")
                saved, losses = time.monotonic(), []
    return state


def _source(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The randomness of one step, whatever came before it: a resumed training draws what an unbroken one would."""
    start = generator(seed, "train", step).initial_seed()
    return torch.Generator(device).manual_seed(start)
