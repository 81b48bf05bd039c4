"""Builds a network and trains it. Nothing here knows of files or displays: what is told meanwhile goes to two hooks."""

import ctypes
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

import models
import utils
from data import Split, Splits, augment
from training.boxes import BoundedBoxes, PostProcess
from training.reference import reference_mean
from training.settings import Settings

SCORES = ("loss", "loss_pc", "loss_box", "loss_class", "accuracy", "iou", "digit_accuracy", "iou_all", "mean")
WATCHED = 3  # validation pictures whose outputs are kept after every epoch, to see boxes develop
REFERENCE_MEAN = "reference_mean"  # the mean accuracy by the reference's own measure, in a column of its own


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass
class TrainState:
    """A network and all that changes with it while it is trained."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler | None  # steps with every batch
    history: dict[str, list[float]] = field(default_factory=dict)  # a list per column, an entry per epoch
    watched: list[list] = field(default_factory=list)  # per epoch the outputs for the first WATCHED validation pictures
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # after the best epoch so far, on the CPU

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history.get("seconds", []))

    def record(self, scores: dict[str, float]) -> None:
        """Add an epoch to the history, and keep its weights if it is the best so far."""
        for name, value in scores.items():
            self.history.setdefault(name, []).append(value)
        if best_epoch(self.history) == self.epoch:
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on as if it had not stopped."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])


class Hooks(NamedTuple):
    """What is called while a network is trained."""

    on_step: Callable[[TrainState, int], None] = lambda state, step: None  # after each batch, with its number from 1
    on_epoch: Callable[[TrainState], None] = lambda state: None  # after each epoch, which the history holds by then


def best_epoch(history: dict[str, list[float]]) -> int:
    """The epoch, counted from 1, with the highest validation mean accuracy; the first of equals."""
    means = history["val_mean"]
    return means.index(max(means)) + 1


def assemble(network: type[nn.Module], settings: Settings) -> nn.Module:
    """The network as the settings want it, with new weights."""
    model = network()
    if settings.bounded_boxes and not getattr(model, "bounded", False):
        model = BoundedBoxes(model)
    return PostProcess(model) if settings.snap_to_pixels else model


def build(network: type[nn.Module], settings: Settings, device: torch.device, pictures: int = 1) -> TrainState:
    """The network with its initial weights, which follow from the seed alone, and what trains it on so many
    pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = assemble(network, settings)  # on the CPU, so that every device starts from the same weights
    model.to(device, memory_format=torch.channels_last)  # 1.3 times as fast in training on a CPU
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), rate, momentum=settings.momentum, weight_decay=decay, fused=True
        )
    else:
        groups = [{"params": [p for p in model.parameters() if p.ndim > 1]}]
        groups += [{"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, rate, weight_decay=decay, fused=True)
    schedule = None
    if settings.one_cycle:
        # OneCycleLR divides by 0 where the rise is one step.
        steps = max(math.ceil(2 / settings.warm_up), settings.epochs * math.ceil(pictures / settings.batch_size))
        schedule = OneCycleLR(optimizer, rate, steps, pct_start=settings.warm_up, cycle_momentum=False)
    return TrainState(model, optimizer, schedule)


def train(
    state: TrainState, splits: Splits, normal: utils.Normalizer, settings: Settings, hooks: Hooks | None = None
) -> dict[str, list[float]]:
    """Train the epochs that the state's history lacks, and return the history: per epoch the learning rate, the
    seconds, and the scores (see `utils.score`) on training and validation pictures.

    Training scores are those of the outputs that the network was trained on, while its weights changed. Raises
    NonFiniteLoss, which leaves the state spoilt.
    """
    hooks = hooks or Hooks()
    device = next(state.model.parameters()).device
    train, val = splits.train.to(device), splits.val.to(device)
    while state.epoch < settings.epochs:
        began = time.perf_counter()
        outputs, labels = train_epoch(state, train, normal, settings, hooks.on_step)
        found, scores = utils.infer(state.model, val.pictures, normal), {}
        for part, answers, truth in (("train", outputs, labels), ("val", found, val.labels)):
            scores |= {f"{part}_{name}": value for name, value in utils.score(answers, truth).items()}
            scores[f"{part}_{REFERENCE_MEAN}"] = reference_mean(answers, truth)
        for name, value in scores.items():
            if not math.isfinite(value):  # the last step may have spoilt the weights: never recorded
                raise NonFiniteLoss(f"epoch {state.epoch + 1}: {name} is {value}")
        rate = state.optimizer.param_groups[0]["lr"]
        state.watched.append(found[:WATCHED].tolist())
        state.record({**scores, "learning_rate": rate, "seconds": time.perf_counter() - began})
        hooks.on_epoch(state)
    return state.history


def train_epoch(
    state: TrainState,
    train: Split,
    normal: utils.Normalizer,
    settings: Settings,
    on_step: Callable[[TrainState, int], None],
) -> tuple[Tensor, Tensor]:
    """One pass over all pictures. Returns the outputs that the network gave when it was trained on them, in that
    order, and their labels. On a GPU the losses stay there until the end, where a bad one is then found."""
    state.model.train()
    losses, outputs, targets = [], [], []
    for step, (pictures, labels) in enumerate(draw_batches(train, settings, state.epoch + 1), 1):
        found, loss = find_and_compare(state.model, normal(pictures), labels, settings)
        state.optimizer.zero_grad()
        loss.total.backward()
        state.optimizer.step()
        if state.schedule:
            state.schedule.step()
        losses.append(torch.stack(loss).detach())
        outputs.append(found.detach())
        targets.append(labels)
        if found.device.type == "cpu":
            check_finite(losses[-1:], state.epoch + 1, step)
        on_step(state, step)
    check_finite(losses, state.epoch + 1, 1)
    return torch.cat(outputs), torch.cat(targets)


def find_and_compare(
    model: nn.Module, pictures: Tensor, labels: Tensor, settings: Settings
) -> tuple[Tensor, utils.Loss]:
    """The outputs of a network in training for normalised pictures (B, 1, 48, 60), and their loss."""
    with torch.autocast(pictures.device.type, torch.bfloat16, settings.precision == "bfloat16"):
        found = model(pictures.contiguous(memory_format=torch.channels_last))
    outputs, edges = found if isinstance(found, models.Answers) else (found.float(), None)
    return outputs, utils.combined_loss(outputs, labels, settings.box_loss, edges, settings.loss_weights)


def draw_batches(train: Split, settings: Settings, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures (B, 1, 48, 60) and labels (B, 6) or (B, 2, 3, 6) of each batch, in an order and with shifts and
    stretches that are drawn from seed and epoch: on the CPU, so that every device gets the same."""
    device = train.pictures.device
    rng = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
    order = torch.randperm(len(train), generator=rng) if settings.shuffle else torch.arange(len(train))
    order = order.to(device)
    moves = settings.max_shift or settings.max_stretch
    draws = torch.rand(len(train), 4, generator=rng).to(device) if moves else None
    for index in order.split(settings.batch_size):
        pictures, labels = train.pictures[index], train.labels[index]
        if draws is not None:
            pictures, labels = augment.move(pictures, labels, settings.max_shift, settings.max_stretch, draws[index])
        yield pictures, labels


def check_finite(losses: list[Tensor], epoch: int, first: int) -> None:
    """Raise NonFiniteLoss for the first step whose loss or terms, (4,), are not finite; steps count from `first`."""
    wrong = ~torch.isfinite(torch.stack(losses)).all(1)
    if wrong.any():
        bad = int(wrong.nonzero()[0])
        terms = ", ".join(f"{name} {value:g}" for name, value in zip(utils.Loss._fields, losses[bad].tolist()))
        raise NonFiniteLoss(f"epoch {epoch}, step {first + bad}: the loss is not finite: {terms}")


def overfit(
    network: type[nn.Module], batch: Split, normal: utils.Normalizer, settings: Settings, steps: int
) -> list[float]:
    """Sanity check: the loss before each of `steps` steps of Adam on one batch. It should come down to little."""
    keep_freed_memory()
    device = batch.pictures.device
    model = build(network, settings, device).model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # gets there in fewer steps than plain SGD
    pictures, losses = normal(batch.pictures), []
    for _ in range(steps):
        loss = find_and_compare(model, pictures, batch.labels, settings)[1].total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step instead of giving it back to the system, which would have to
    clear every page of every activation and gradient again: training on a CPU is up to 1.5 times as fast."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
