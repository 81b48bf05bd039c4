"""Runs on disk: what makes two runs the same, checkpoints, resuming after an interruption, and weights for use."""

import ast
import ctypes
import hashlib
import inspect
import json
import platform
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import nn

import models
import utils
from data import DataError, Splits, augment, files
from training import loop
from training.loop import SCORES, Hooks, NonFiniteLoss, TrainState, assemble, best_epoch, build, train
from training.settings import Settings, choose_device, choose_precision, runs_folder

CHECKPOINT, PREVIOUS = "checkpoint.pt", "previous.pt"
SAVED_EVERY = 30.0  # seconds at least between two checkpoints, so that a network drive keeps up
RELEASED_WITHIN = 10.0  # seconds until a process that is being stopped, as a kernel in its restart, is surely dead
RunInUse = files.InUse  # another process is training the same run


def code_of(*parts: Any) -> str:
    """A hash of modules without what changes no result: comments, docstrings, imports, and what draws or plots."""
    no_result, bare = re.compile(r"import |from |(def |\()?(draw|plot)_", re.IGNORECASE), ""
    for part in parts:
        tree = ast.parse(inspect.getsource(part))
        tree.body = [node for node in tree.body if not no_result.match(ast.unparse(node))]
        for node in ast.walk(tree):
            match node:
                case ast.AST(body=[ast.Expr(value=ast.Constant()), *rest]):
                    node.body = rest
        bare += ast.dump(tree)
    return hashlib.sha256(bare.encode()).hexdigest()


CODE = code_of(models, utils, augment, loop)  # as it was imported, should a file be edited while a process trains


def run_spec(
    network: type[nn.Module], splits: Splits, settings: Settings, n_train: int | None = None,
    precision: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All that a run's result depends on; runs that differ in any of it are different runs. Arguments as in `fit`."""
    return {
        "network": network.__name__,
        "task": splits.task,
        "settings": asdict(settings),
        "source": splits.source,
        "data": splits.fingerprint,
        "n_train": min(n_train or len(splits.train), len(splits.train)),
        "precision": precision or choose_precision(),
        "code": CODE if network.__module__ == models.__name__ else CODE + code_of(network),
        "torch": str(torch.__version__),
    }


def run_folder(spec: dict[str, Any]) -> Path:
    """The folder of the run that `run_spec` describes."""
    key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    return runs_folder() / f"{spec['task']}-{spec['network']}-{key[:10]}"


def provenance(precision: str | None = None) -> dict[str, str]:
    """The device, precision and versions that a run's numbers are computed with."""
    gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    return {
        "device": f"one {torch.cuda.get_device_name()}" if gpu else f"CPU, {threads} thread{'s' * (threads > 1)}",
        "precision": precision or choose_precision(),
        "python": platform.python_version(),
        **{package.__name__: str(package.__version__) for package in (torch, torchvision, np)},
    }


@dataclass
class Run:
    """A finished training run of one network."""

    network: type[nn.Module]
    task: str
    settings: Settings
    n_train: int  # images it was trained on
    history: dict[str, list[float]]  # a list per column, an entry per epoch
    val_samples: list[list]  # per epoch the outputs for the first validation images
    trained_on: dict[str, str]  # see `provenance`; of a run that was continued elsewhere, both places
    status: str  # "trained", "continued after epoch k", "loaded" or "published"
    weights: Path | None  # a file that `load_weights` reads; None where they were not published

    def __post_init__(self):
        self.name = self.network.__name__
        self.best_epoch = best_epoch(self.history)  # counted from 1
        self.seconds = sum(self.history.get("seconds", []))  # of training
        self.diverged = len(self.history["val_mean"]) < self.settings.epochs  # by a loss that is not finite
        self.train = scores_of(self.history, "train")  # on the training images, as the weights changed
        self.val = scores_of(self.history, "val")  # on the validation images, after the best epoch
        with torch.device("meta"):  # where weights have shapes, and nothing else
            self.parameters = models.count_parameters(assemble(self.network, self.settings, utils.Normalize()))

    def load(self, device: torch.device | None = None) -> nn.Sequential:
        """The network after its best epoch, in evaluation mode; raw images go in. Raises DataError."""
        if self.weights is None:
            raise DataError(f"{self.name}: no weights of it were published")
        network = load_weights(self.weights, self.network).network
        return network.to(device or choose_device(), memory_format=torch.channels_last)


def scores_of(history: dict[str, list[float]], part: str) -> dict[str, float]:
    """A history's scores of the part "train" or "val" in the best epoch."""
    return {name: history[f"{part}_{name}"][best_epoch(history) - 1] for name in SCORES}


def fit(
    network: type[nn.Module], splits: Splits, settings: Settings, hooks: Hooks | None = None, *,
    n_train: int | None = None, precision: str | None = None,
) -> Run:  # fmt: skip
    """Train a network, or continue or load the run that did; only one with the same settings, data and code counts.

    Killed at any moment, the next call ends the same, bit for bit on the same CPU, and repeats SAVED_EVERY seconds or
    one epoch at most. A run that diverges later than in its first epoch is finished, with the epochs before.

    n_train: train on the first so many images; normalization is by all. precision: of the convolutions in training,
    "float32" or "bfloat16". Raises NonFiniteLoss in the first epoch, RunInUse, SaveError and ReadError.
    """
    spec = run_spec(network, splits, settings, n_train, precision)
    folder = run_folder(spec)
    keep_freed_memory()
    with files.lock(folder / CHECKPOINT, RELEASED_WITHIN):
        files.remove_leftovers(folder)
        stored, status = resume(spec), "loaded"
        if not (stored and stored["finished"]):
            status = f"continued after epoch {len(stored['val_samples'])}" if stored else "trained"
            stored = _train(network, splits, hooks or Hooks(), spec, stored)
    about = (stored[name] for name in ("history", "val_samples", "trained_on"))
    return Run(network, splits.task, settings, spec["n_train"], *about, status, folder / CHECKPOINT)


def _train(network: type[nn.Module], splits: Splits, hooks: Hooks, spec: dict, stored: dict | None) -> dict[str, Any]:
    """Train the epochs that a checkpoint's content, if any, leaves to be trained. Returns the last checkpoint's."""
    settings = Settings(**spec["settings"])
    checkpoint, previous, saved = run_folder(spec) / CHECKPOINT, run_folder(spec) / PREVIOUS, time.monotonic()
    normalize, trained_on = utils.Normalize.fit(splits.train.images), provenance(spec["precision"])
    state = build(network, settings, normalize, spec["n_train"], spec["precision"], choose_device())
    if stored:
        state.load_state_dict(stored["state"])
        state.history, state.val_samples, state.best_weights = map(stored.get, ("history", "val_samples", "weights"))
        for name, value in trained_on.items():
            places = [*stored["trained_on"].get(name, value).split(", then "), value]
            trained_on[name] = ", then ".join(dict.fromkeys(places))  # each once
    about = {"spec": spec, "trained_on": trained_on, "history": state.history, "val_samples": state.val_samples}

    def on_epoch(state: TrainState) -> None:
        nonlocal saved
        if time.monotonic() - saved >= SAVED_EVERY:
            now = {"weights": state.best_weights, "finished": False, "state": state.state_dict()}
            files.save_tensors(checkpoint, about | now, keep=previous)
            saved = time.monotonic()
        hooks.on_epoch(state)

    try:
        train(state, replace(splits, train=splits.train[: spec["n_train"]]), settings, Hooks(hooks.on_step, on_epoch))
    except NonFiniteLoss:  # which the same steps would meet again
        if not state.epoch:
            raise
    files.save_tensors(checkpoint, about | {"weights": state.best_weights, "finished": True})
    files.retry(lambda: previous.unlink(missing_ok=True), previous)
    return about


def resume(spec: dict[str, Any]) -> dict[str, Any] | None:
    """A run's checkpoint, or, where it is missing or damaged, the one before; None where there is none."""
    for path in (run_folder(spec) / CHECKPOINT, run_folder(spec) / PREVIOUS):
        try:
            return files.load_tensors(path)
        except files.ReadError:  # the file may be good
            raise
        except DataError as error:
            if path.exists():
                print(f"{spec['network']}: goes back to what was saved before, if anything was: {error}")
    return None


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, whose pages the system would clear for every step: 1.5 times as fast on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        for threshold, size in ((-3, 1 << 30), (-1, (1 << 31) - 1)):  # malloc.h's M_MMAP_ and M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(threshold, size)


class Trained(NamedTuple):
    """A trained network and where it comes from."""

    name: str  # of the network's class
    network: nn.Sequential  # on the CPU, in evaluation mode; raw images go in
    task: str  # "loc" or "det"
    source: str  # of the images that it was trained on: "course", "mnist" or "digits"
    epoch: int
    validation: dict[str, float]  # its scores on the validation images, see `utils.score`
    path: Path


def save_weights(checkpoint: Path, path: Path) -> None:
    """Write the best epoch's weights of a finished run with all that using them takes: tensors and plain values."""
    files.save_tensors(path, _for_use(files.load_tensors(checkpoint)))


def _for_use(stored: dict[str, Any]) -> dict[str, Any]:
    about = {name: stored["spec"][name] for name in ("network", "task", "settings", "source", "n_train")}
    about |= {name: stored[name] for name in ("trained_on", "weights")}
    return {**about, "epoch": best_epoch(stored["history"]), "validation": scores_of(stored["history"], "val")}


def load_weights(path: str | Path, network: type[nn.Module] | None = None) -> Trained:
    """Read what `save_weights` wrote, or a finished run's checkpoint. `network`: its class, by default the one of
    `models` that the file names. Raises DataError where the file is missing, damaged, hostile or does not fit."""
    stored = files.load_tensors(path := Path(path))
    try:
        stored = _for_use(stored) if "spec" in stored else stored
        known = {each.__name__: each for each in ((network,) if network else models.NETWORKS[stored["task"]])}
        model = assemble(known[stored["network"]], Settings(**stored["settings"]), utils.Normalize())
        model.load_state_dict(stored["weights"])  # strict: names and shapes
        about = (stored[name] for name in ("task", "source", "epoch", "validation"))
        return Trained(stored["network"], model.eval(), *about, path)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        wanted = network.__name__ if network else "a network of models.py"
        raise DataError(f"{path}: expected what save_weights writes for {wanted}, found {error!r}") from error
