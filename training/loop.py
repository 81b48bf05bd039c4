"""Builds a network and trains it. Nothing here knows of files or displays: two hooks let others follow."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

import models
import utils
from data import Split, Splits, augment
from training.settings import Settings

SCORES = ("loss", "loss_pc", "loss_box", "loss_class", "accuracy", "iou", "digit_accuracy", "iou_all", "mean")
VAL_SAMPLES = 3  # validation images whose outputs are kept after every epoch, to see boxes develop


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass
class TrainState:
    """A network and all that changes with it while it is trained."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler  # of the learning rate; steps with every batch
    precision: str  # "float32" or "bfloat16", of the convolutions in training
    history: dict[str, list[float]] = field(default_factory=dict)  # a list per column, an entry per epoch
    val_samples: list[list] = field(default_factory=list)  # per epoch the outputs for the first validation images
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # after the best epoch so far, on the CPU

    @property
    def epoch(self) -> int:  # how many are done
        return len(self.history.get("seconds", []))

    def record(self, scores: dict[str, float]) -> None:
        """Add an epoch to the history, and keep its weights if it is the best so far."""
        for name, value in scores.items():
            self.history.setdefault(name, []).append(value)
        if best_epoch(self.history) == self.epoch:
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:  # all that training needs to continue as if it had not stopped
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


class Hooks(NamedTuple):
    """What is called while a network is trained."""

    on_step: Callable[[TrainState, int], None] = lambda state, step: None  # after each batch, with its number from 1
    on_epoch: Callable[[TrainState], None] = lambda state: None  # after each epoch, which the history holds by then


def best_epoch(history: dict[str, list[float]]) -> int:
    """The epoch, counted from 1, with the highest validation mean accuracy; the first of equals."""
    means = history["val_mean"]
    return means.index(max(means)) + 1


def assemble(network: type[nn.Module], settings: Settings, normalize: utils.Normalize) -> nn.Sequential:
    """The network as the settings want it, with new weights: raw images go in, and finished outputs come out."""
    options = {name: getattr(settings, name) for name in getattr(network, "OPTIONS", ())}
    layers = [normalize, network(**options)]
    if settings.round_edges and "round_edges" not in options:
        layers.append(models.BoundedBoxes())  # GIoU has no gradient for boxes of negative size
    return nn.Sequential(*layers)


def build(
    network: type[nn.Module], settings: Settings, normalize: utils.Normalize, n_train: int = 1,
    precision: str = "float32", device: torch.device | str = "cpu",
) -> TrainState:  # fmt: skip
    """The network with its initial weights, which follow from the seed alone, and what trains it on so many images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = assemble(network, settings, normalize)  # on the CPU, so that every device starts from the same weights
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
    schedule: LRScheduler = ConstantLR(optimizer, factor=1.0)
    if settings.one_cycle:
        # OneCycleLR divides by 0 where the rise is one step.
        steps = max(math.ceil(2 / settings.warm_up), settings.epochs * math.ceil(n_train / settings.batch_size))
        schedule = OneCycleLR(optimizer, rate, steps, pct_start=settings.warm_up, cycle_momentum=False)
    return TrainState(model, optimizer, schedule, precision)


def train(state: TrainState, splits: Splits, settings: Settings, hooks: Hooks | None = None) -> dict[str, list[float]]:
    """Train the epochs that the state's history lacks, and return the history: per epoch the seconds, the mean loss
    that was minimized, "train_objective", and `utils.score` and `utils.reference_means` on training images (of the
    outputs that the network was trained on) and validation images. Raises NonFiniteLoss, which spoils the state."""
    hooks = hooks or Hooks()
    device = next(state.model.parameters()).device
    train, val = splits.train.to(device), splits.val.to(device)
    while state.epoch < settings.epochs:
        start = time.perf_counter()
        outputs, labels, objective = train_epoch(state, train, settings, hooks.on_step)
        val_outputs, scores = utils.infer(state.model, val.images), {"train_objective": objective.item()}
        for part, predicted, truth in (("train", outputs, labels), ("val", val_outputs, val.labels)):
            both = utils.score(predicted, truth) | utils.reference_means(predicted, truth)
            scores |= {f"{part}_{name}": value for name, value in both.items()}
        for name, value in scores.items():
            if not math.isfinite(value):  # the last step may have spoilt the weights: never recorded
                raise NonFiniteLoss(f"epoch {state.epoch + 1}: {name} is {value}")
        state.val_samples.append(val_outputs[:VAL_SAMPLES].tolist())
        state.record({**scores, "seconds": time.perf_counter() - start})
        hooks.on_epoch(state)
    return state.history


def train_epoch(
    state: TrainState, train: Split, settings: Settings, on_step: Callable[[TrainState, int], None] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over all images. Returns the outputs that the network was trained on, in that order, their labels, and
    the mean loss. Losses are checked at the end of the epoch, so that no step waits for a GPU."""
    state.model.train()
    losses, outputs, targets = [], [], []
    for step, (images, labels) in enumerate(make_batches(train, settings, state.epoch + 1), 1):
        predicted, loss = forward_and_loss(state.model, images, labels, settings, state.precision)
        state.optimizer.zero_grad()
        loss.total.backward()
        state.optimizer.step()
        state.schedule.step()
        losses.append(torch.stack(loss).detach())
        outputs.append(predicted.detach())
        targets.append(labels)
        if on_step:
            on_step(state, step)
    check_finite(losses, state.epoch + 1)
    return torch.cat(outputs), torch.cat(targets), torch.stack(losses)[:, 0].mean()


def forward_and_loss(
    model: nn.Module, images: Tensor, labels: Tensor, settings: Settings, precision: str = "float32"
) -> tuple[Tensor, utils.Loss]:
    """The outputs, float32, of a network in training for images (B, 1, 48, 60), and their loss."""
    with torch.autocast(images.device.type, torch.bfloat16, precision == "bfloat16"):
        outputs = model(images)
    outputs, edges = outputs if isinstance(outputs, models.TrainOutputs) else (outputs.float(), None)
    box_loss = utils.squared_error
    if settings.box_loss == "giou":
        box_loss = partial(utils.l1_giou, l1_weight=settings.l1_weight, giou_weight=settings.giou_weight)
    weights = settings.box_weight, settings.class_weight, settings.label_smoothing
    loss = utils.combined_loss(outputs, labels, box_loss, *weights)
    if edges is not None:
        extra = settings.edge_weight * utils.edge_loss(edges, labels)
        loss = loss._replace(total=loss.total + extra, box=loss.box + extra)
    return outputs, loss


def make_batches(train: Split, settings: Settings, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, 1, 48, 60) and labels (B, 6) or (B, 2, 3, 6) of each batch. Order, shifts and stretches follow from
    seed and epoch, and are drawn on the CPU, so that every device gets the same."""
    device, count = train.images.device, len(train)
    rng = torch.Generator().manual_seed(settings.seed * 100_003 + epoch)
    order = torch.randperm(count, generator=rng) if settings.shuffle else torch.arange(count)
    draws = torch.rand(count, 4, generator=rng).to(device)
    for index in order.to(device).split(settings.batch_size):
        images, labels = train.images[index], train.labels[index]
        if settings.max_shift or settings.max_stretch:
            images, labels = augment.move(images, labels, settings.max_shift, settings.max_stretch, draws[index])
        yield images, labels


def check_finite(losses: list[Tensor], epoch: int) -> None:
    """Raise NonFiniteLoss for the first step of an epoch whose loss or terms, (4,), are not finite."""
    for step, terms in enumerate(torch.stack(losses).tolist(), 1):
        if not all(map(math.isfinite, terms)):
            named = ", ".join(f"{name} {value:g}" for name, value in zip(utils.Loss._fields, terms))
            raise NonFiniteLoss(f"epoch {epoch}, step {step}: the loss is not finite: {named}")
