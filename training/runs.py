"""Runs on disk: what makes two runs the same, checkpoints, going on after an interruption, and weights for use."""

import ast
import contextlib
import ctypes
import hashlib
import inspect
import itertools
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

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
WRITTEN_WITHIN = 3600.0  # seconds in which any checkpoint is written, on the slowest of drives


class RunInUse(RuntimeError):
    """Another process is training the same run."""


# ---------------------------------------------------------------------------------------------- which run is which


def bare_code(source: str) -> str:
    """A module's code without what decides no number: comments, docstrings, imports, and what is named `draw_...` or
    `plot_...`, in small letters or capitals."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not _decides_nothing(node)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return ast.dump(tree)


def _decides_nothing(node: ast.stmt) -> bool:
    targets = getattr(node, "targets", [])
    names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    names += [node.name] if isinstance(node, ast.FunctionDef) else []
    drawing = names and all(name.lower().startswith(("draw_", "plot_")) for name in names)
    return bool(drawing) or isinstance(node, (ast.Import, ast.ImportFrom))


def _code_of(*parts: ModuleType | type) -> str:
    return hashlib.sha256("".join(bare_code(inspect.getsource(part)) for part in parts).encode()).hexdigest()


CODE = _code_of(models, utils, augment, loop)  # as it was imported, should a file be edited while a process trains


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
        "code": CODE if network.__module__ == models.__name__ else CODE + _code_of(network),
        "torch": str(torch.__version__),
    }


def run_folder(spec: dict[str, Any]) -> Path:
    """Where the run that `run_spec` describes is kept."""
    key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    return runs_folder() / f"{spec['task']}-{spec['network']}-{key[:10]}"


def provenance(precision: str | None = None) -> dict[str, str]:
    """Versions of what a run's numbers depend on, and the device and precision that they are computed with."""
    gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    return {
        "device": f"one {torch.cuda.get_device_name()}" if gpu else f"CPU, {threads} thread{'s' * (threads > 1)}",
        "precision": precision or choose_precision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


# ---------------------------------------------------------------------------------------------- train, go on or load


@dataclass(frozen=True)
class Run:
    """A finished training run of one network."""

    network: type[nn.Module]
    task: str
    settings: Settings
    n_train: int  # images it was trained on
    history: dict[str, list[float]]  # a list per column, an entry per epoch
    val_samples: list[list]  # per epoch the outputs for the first validation images
    trained_on: dict[str, str]  # versions, device and precision of the process that trained it, see `provenance`
    status: str  # "trained", "continued after epoch k", "loaded" or "published"
    weights: Path | None  # a file that `load_weights` reads; None where they were not published

    @property
    def name(self) -> str:
        return self.network.__name__

    @property
    def parameters(self) -> int:
        """How many weights and biases are trained."""
        return models.count_parameters(assemble(self.network, self.settings, utils.Normalize()))

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, with the highest validation mean accuracy; the first of equals."""
        return best_epoch(self.history)

    @property
    def diverged(self) -> bool:
        """Whether the training ended before its time, in an epoch whose loss was not finite."""
        return len(self.history["seconds"]) < self.settings.epochs

    @property
    def seconds(self) -> float:
        """How long the training took."""
        return sum(self.history["seconds"])

    @property
    def train(self) -> dict[str, float]:
        """Scores on the training images during the best epoch, measured on the weights as they changed."""
        return scores_of(self.history, "train")

    @property
    def val(self) -> dict[str, float]:
        """Scores on the validation images after the best epoch."""
        return scores_of(self.history, "val")

    def load(self, device: torch.device | None = None) -> nn.Sequential:
        """The network with the weights of its best epoch, in evaluation mode; raw images go in. Raises DataError where
        their file has been damaged since, or is not there."""
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

    n_train: on the first so many training images, by default all; normalization is by all of them. precision: of the
    convolutions in training, "float32" or "bfloat16", by default what suits the device.

    While it is trained, the run's folder holds a checkpoint at most SAVED_EVERY seconds or one epoch old, and the one
    before. Killed at any moment, the next call continues from the last, or from the one before where that is damaged,
    and ends with the same history and weights, bit for bit on the same machine's CPU. A finished run keeps its history
    and best weights, and, where the learning rate is constant, what a run of more epochs needs to go on from there. A
    run that diverges after its first epoch is finished, with the epochs before.

    Raises NonFiniteLoss in the first epoch; RunInUse where another process still trains this run after RELEASED_WITHIN
    seconds (without locks, as on some network drives, both do the same work); SaveError (an OSError) where files cannot
    be written, and ReadError where a drive is away: the last checkpoint stays.
    """
    spec = run_spec(network, splits, settings, n_train, precision)
    folder = run_folder(spec)
    keep_freed_memory()

    def new() -> TrainState:
        normalize = utils.Normalize.fit(splits.train.images)
        return build(network, settings, normalize, spec["n_train"], spec["precision"], choose_device())

    try:
        with files.lock(folder / CHECKPOINT, RELEASED_WITHIN) as alone:
            # With the lock no other process is writing; without it one may be.
            files.remove_leftovers(folder, 0.0 if alone else WRITTEN_WITHIN)
            stored, state = resume(folder, spec, new)
            status = "loaded"
            if stored is None or not stored["finished"]:
                if not alone:
                    print(f"{folder}: cannot be locked here, so take care not to train this run in two places at once")
                if stored is None and not settings.one_cycle:
                    stored, state = resume_shorter(spec, new)
                status = f"continued after epoch {state.epoch}" if state else "trained"
                stored = _train(state or new(), splits, settings, hooks, spec, stored["trained_on"] if stored else {})
    except files.InUse:
        raise RunInUse(
            f"{folder}: {network.__name__} is being trained by another process. Wait until it has finished or stop it, "
            "then run this again."
        ) from None
    about = (stored[name] for name in ("history", "val_samples", "trained_on"))
    return Run(network, splits.task, settings, spec["n_train"], *about, status, folder / CHECKPOINT)


def _train(
    state: TrainState, splits: Splits, settings: Settings, hooks: Hooks | None, spec: dict[str, Any],
    before: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Train what is left, with a checkpoint after each epoch that is due for one. Returns the last checkpoint.

    before: where the epochs that are done were trained, see `provenance`.
    """
    hooks, saved = hooks or Hooks(), time.monotonic()
    trained_on = {  # of a run that was continued elsewhere: what both places had in common, and what came then
        name: ", then ".join(dict.fromkeys([*before.get(name, value).split(", then "), value]))
        for name, value in provenance(spec["precision"]).items()
    }

    def on_epoch(state: TrainState) -> None:
        nonlocal saved
        finished = state.epoch == settings.epochs
        if finished or time.monotonic() - saved >= SAVED_EVERY:
            save_checkpoint(run_folder(spec), state, spec, trained_on, finished)
            saved = time.monotonic()
        hooks.on_epoch(state)

    part = Splits(splits.train[: spec["n_train"]], splits.val, splits.test, splits.source)
    try:
        train(state, part, settings, Hooks(hooks.on_step, on_epoch))
    except NonFiniteLoss:  # which the same steps would meet again
        if not state.epoch:
            raise
        save_checkpoint(run_folder(spec), state, spec, trained_on, finished=True)
    return {"history": state.history, "val_samples": state.val_samples, "trained_on": trained_on}


def save_checkpoint(
    folder: Path, state: TrainState, spec: dict[str, Any], trained_on: dict[str, str], finished: bool
) -> None:
    """Write all that going on takes; of a finished run whose learning rate has come down to nothing, or that has
    diverged, all that using it takes. The checkpoint before is kept until the run is finished. Raises SaveError."""
    over = finished and (spec["settings"]["one_cycle"] or state.epoch < spec["settings"]["epochs"])
    content = {
        "spec": spec,
        "trained_on": trained_on,
        "history": state.history,
        "val_samples": state.val_samples,
        "weights": state.best_weights,
        "finished": finished,
        "state": None if over else state.state_dict(),
    }
    previous = folder / PREVIOUS
    files.save_tensors(folder / CHECKPOINT, content, keep=None if finished else previous)
    if finished:
        files.retry(lambda: previous.unlink(missing_ok=True), previous)


def resume(
    folder: Path, spec: dict[str, Any], new: Callable[[], TrainState]
) -> tuple[dict[str, Any] | None, TrainState | None]:
    """The run's checkpoint and the state in it, see `read_checkpoint`; two times None where there is none. A damaged
    one is said, and the one before takes its place.

    Raises ReadError where files are there but the system does not let them be read, and SaveError.
    """
    checkpoint, damage = folder / CHECKPOINT, []
    for path in (checkpoint, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            stored, state = read_checkpoint(path, spec, new)
        except files.ReadError:
            raise
        except DataError as error:
            damage.append(error)
            continue
        if damage:
            done = len(stored["history"]["seconds"])
            print(f"{spec['network']}: goes back to the end of epoch {done}, a file cannot be used: {damage[0]}")
            with contextlib.suppress(FileNotFoundError):  # another process was quicker, where there are no locks
                files.retry(partial(path.replace, checkpoint), checkpoint)  # else the damaged one would be kept
        return stored, state
    if damage:
        print(f"{spec['network']}: starts anew, the run before cannot be used: {damage[0]}")
    return None, None


def resume_shorter(
    spec: dict[str, Any], new: Callable[[], TrainState]
) -> tuple[dict[str, Any] | None, TrainState | None]:
    """As `resume`, of that run which got furthest of those that differ from this one by fewer epochs alone. One that
    diverged, or whose weights were dropped, holds no state to go on with."""
    best: tuple[dict[str, Any] | None, TrainState | None] = None, None
    for epochs in range(1, spec["settings"]["epochs"]):
        shorter = {**spec, "settings": {**spec["settings"], "epochs": epochs}}
        with contextlib.suppress(DataError):  # there is none, or it cannot be used
            stored, state = read_checkpoint(run_folder(shorter) / CHECKPOINT, shorter, new)
            if state and (best[1] is None or state.epoch > best[1].epoch):
                best = stored, state
    return best


def read_checkpoint(
    path: Path, spec: dict[str, Any], new: Callable[[], TrainState]
) -> tuple[dict[str, Any], TrainState | None]:
    """What `save_checkpoint` wrote, and the state that it holds, if any. Raises DataError where the file is missing,
    damaged, or of another run."""
    stored, state = files.load_tensors(path), None
    names = ("spec", "trained_on", "history", "val_samples", "weights", "finished", "state")
    if not isinstance(stored, dict) or stored.get("spec") != spec or not stored.keys() >= set(names):
        raise DataError(f"{path}: expected a checkpoint of this run, found something else")
    check_history(stored["history"], str(path))
    if stored["state"] is not None:
        state = new()
        try:
            state.load_state_dict(stored["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # which say it in many lines
            raise DataError(f"{path}: does not fit ({type(error).__name__})") from error
        state.history, state.val_samples = stored["history"], stored["val_samples"]
        state.best_weights = stored["weights"]
    return stored, state


def check_history(history: Any, where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless history is a dict of lists of finite floats, of one
    length above 0, with the columns that `train` writes."""
    columns = {f"{part}_{name}" for part in ("train", "val") for name in SCORES} | {"seconds"}
    try:
        (length,) = {len(values) for values in history.values()}
        fits = columns <= history.keys() and length and all(map(math.isfinite, itertools.chain(*history.values())))
    except (AttributeError, TypeError, ValueError):
        fits = False
    if not fits:
        raise DataError(f"{where}: expected a history of {len(columns)} columns or more, found something else")


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step instead of giving it back to the system, which would have to
    clear every page of every activation and gradient again: training on a CPU is up to 1.5 times as fast."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


# ---------------------------------------------------------------------------------------------- weights for use


@dataclass(frozen=True)
class Trained:
    """A trained network and where it comes from."""

    name: str  # of the network's class
    network: nn.Sequential  # on the CPU, in evaluation mode; raw images go in
    task: str  # "loc" or "det"
    source: str  # of the images that it was trained on: "course", "mnist" or "digits"
    epoch: int
    validation: dict[str, float]  # its scores on the validation images, see `utils.score`
    path: Path


def drop_weights(checkpoint: Path) -> None:
    """Keep only the history of a run: comparing recipes needs no more, and SkreNet's weights take 150 MB."""
    files.save_tensors(checkpoint, {**files.load_tensors(checkpoint), "weights": {}, "state": None})


def save_weights(checkpoint: Path, path: Path) -> None:
    """Write the best epoch's weights of a finished run with all that using them takes: tensors and plain values."""
    stored = files.load_tensors(checkpoint)
    about = {name: stored["spec"][name] for name in ("network", "task", "settings", "source", "n_train")}
    history = stored["history"]
    about |= {"epoch": best_epoch(history), "validation": scores_of(history, "val"), "trained_on": stored["trained_on"]}
    files.save_tensors(path, {**about, "weights": stored["weights"]})


def load_weights(path: str | Path, network: type[nn.Module] | None = None) -> Trained:
    """Read a file that `save_weights` wrote, or the checkpoint of a finished run. Nothing in it can run code.

    network: its class, by default the one in `models` that has the name in the file. Raises DataError that names the
    file where it is missing, damaged or hostile, or does not fit the network.
    """
    path = Path(path)
    stored = files.load_tensors(path)
    try:
        if "spec" in stored.keys():  # noqa: SIM118  (a list or tensor has none)
            check_history(stored["history"], str(path))
            stored = {**stored, **stored["spec"], "epoch": best_epoch(stored["history"])}
            stored["validation"] = scores_of(stored["history"], "val")
        name, task, settings, weights = (stored[key] for key in ("network", "task", "settings", "weights"))
        about = [stored[key] for key in ("source", "epoch", "validation")]
    except (AttributeError, KeyError, TypeError):
        raise DataError(f"{path}: expected what save_weights writes, found something else") from None
    known = models.NETWORKS.get(task, ()) if isinstance(task, str) else ()
    known = [network] if network and known else known
    wanted = next((each for each in known if each.__name__ == name), None)
    if wanted is None:
        expected = ", ".join(each.__name__ for each in known) or "a network of one of the tasks"
        raise DataError(f"{path}: expected {expected}, found {name!r} for {task!r}")
    try:
        model = assemble(wanted, Settings(**settings), utils.Normalize())
        model.load_state_dict(weights)  # strict: names and shapes
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise DataError(f"{path}: does not fit {name}: {' '.join(str(error).split())}") from error
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()) or not model[0].std > 0:
        raise DataError(f"{path}: holds a number that is NaN or infinite, or no standard deviation")
    return Trained(name, model.eval(), task, *about, path)
