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
    network: type[nn.Module],
    splits: Splits,
    settings: Settings,
    n_train: int | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
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

    While it is trained, the run's folder holds a checkpoint of the last epoch, or where epochs are short of one at most
    SAVED_EVERY seconds ago, complete in itself, and the one before. Killed at any moment, the next call continues after
    the checkpoint's epoch, or the one before's where it has been damaged, and ends with the same history and weights,
    bit for bit on the same machine's CPU. A finished run keeps its history and the weights of its best epoch, and what
    going on takes where the learning rate is constant: then a run of more epochs begins where one of fewer has ended.
    A run that diverges is finished, with the epochs before; only in its first epoch it has nothing to keep.

    Two processes never train one run at once. The second waits for RELEASED_WITHIN seconds and then raises RunInUse:
    a notebook that waited longer would look as if it hung, perhaps for a kernel that was forgotten. Where there are
    no locks, as on some network drives, the two do the same work twice; files are still whole.

    Raises NonFiniteLoss in the first epoch, RunInUse, SaveError (an OSError) where files cannot be written, and
    ReadError where a drive is away; the last checkpoint stays.
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
            state, stored = resume(folder, spec, new)
            if state is None and not (stored or settings.one_cycle):
                state, stored = resume_shorter(spec, new)
            done = len(stored["history"]["seconds"]) if stored else 0
            finished = bool(stored) and state is None
            status = "loaded" if finished else f"continued after epoch {done}" if done else "trained"
            if not finished:
                if not alone:
                    print(f"{folder}: cannot be locked here, so take care not to train this run in two places at once")
                state = state or new()
                stored = _train(state, splits, settings, hooks, spec, stored)
    except files.InUse:
        raise RunInUse(
            f"{folder}: {network.__name__} is being trained by another process. Wait until it has finished or stop it, "
            "then run this again."
        ) from None
    about = (stored[name] for name in ("history", "val_samples", "trained_on"))
    return Run(network, splits.task, settings, spec["n_train"], *about, status, folder / CHECKPOINT)


def _train(
    state: TrainState,
    splits: Splits,
    settings: Settings,
    hooks: Hooks | None,
    spec: dict[str, Any],
    stored: dict | None,
) -> dict[str, Any]:
    """Train what is left, with a checkpoint after each epoch that is due for one. Returns the last checkpoint."""
    folder, hooks = run_folder(spec), hooks or Hooks()
    saved, trained_on = time.monotonic(), _merge(stored["trained_on"] if stored else {}, provenance(spec["precision"]))

    def on_epoch(state: TrainState) -> None:
        nonlocal saved
        if state.epoch == settings.epochs or time.monotonic() - saved >= SAVED_EVERY:
            save_checkpoint(folder, state, spec, trained_on, finished=state.epoch == settings.epochs)
            saved = time.monotonic()
        hooks.on_epoch(state)

    try:
        part = Splits(splits.train[: spec["n_train"]], splits.val, splits.test, splits.source)
        train(state, part, settings, Hooks(hooks.on_step, on_epoch))
    except NonFiniteLoss:  # which the same steps would meet again
        if not state.epoch:
            raise
        save_checkpoint(folder, state, spec, trained_on, finished=True)
    return _content(state, spec, trained_on, finished=True)


def _merge(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Of a run that was continued elsewhere: what both places had in common, and what came then."""
    parts = {name: [*before.get(name, value).split(", then "), value] for name, value in now.items()}
    return {name: ", then ".join(dict.fromkeys(values)) for name, values in parts.items()}


def _content(state: TrainState, spec: dict[str, Any], trained_on: dict[str, str], finished: bool) -> dict[str, Any]:
    """All that going on takes; of a finished run whose learning rate has come down to nothing, or that has diverged,
    all that using it takes."""
    over = finished and (spec["settings"]["one_cycle"] or state.epoch < spec["settings"]["epochs"])
    return {
        "spec": spec,
        "trained_on": trained_on,
        "history": state.history,
        "val_samples": state.val_samples,
        "weights": state.best_weights,
        "finished": finished,
        "state": None if over else state.state_dict(),
    }


def save_checkpoint(
    folder: Path, state: TrainState, spec: dict[str, Any], trained_on: dict[str, str], finished: bool
) -> None:
    """Write the checkpoint. The one before is kept until the run is finished. Raises SaveError."""
    content = _content(state, spec, trained_on, finished)
    files.save_tensors(folder / CHECKPOINT, content, keep=None if finished else folder / PREVIOUS)
    if finished:
        (folder / PREVIOUS).unlink(missing_ok=True)


def resume(
    folder: Path, spec: dict[str, Any], new: Callable[[], TrainState], mend: bool = True
) -> tuple[TrainState | None, dict[str, Any] | None]:
    """The state that the run's checkpoint holds, None where the run is finished, and the checkpoint; two times None
    where there is none. A damaged one is said, and the one before used, which with `mend` takes its place.

    Raises ReadError where files are there but the system does not let them be read, and SaveError.
    """
    checkpoint, damage = folder / CHECKPOINT, []
    for path in (checkpoint, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            stored = read_checkpoint(path, spec)
            state = None if stored["finished"] else restore(new(), stored, path)
        except files.ReadError:
            raise
        except DataError as error:
            damage.append(str(error))
            continue
        if damage:
            done = len(stored["history"]["seconds"])
            print(f"{spec['network']}: goes back to the end of epoch {done}, a file cannot be used: {damage[0]}")
            try:
                if mend:
                    path.replace(checkpoint)  # else the damaged one would be kept as the one before
            except OSError as error:
                raise files.SaveError(f"{checkpoint}: cannot be written, {error.strerror}") from error
        return state, stored
    if damage:
        print(f"{spec['network']}: starts anew, the run before cannot be used: {damage[0]}")
    return None, None


def restore(state: TrainState, stored: dict[str, Any], path: Path) -> TrainState:
    """The state with what a checkpoint holds. Raises DataError where it does not fit."""
    try:
        state.load_state_dict(stored["state"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # which say it in many lines
        raise DataError(f"{path}: does not fit ({type(error).__name__})") from error
    state.history, state.val_samples, state.best_weights = (
        stored[name] for name in ("history", "val_samples", "weights")
    )
    return state


def resume_shorter(
    spec: dict[str, Any], new: Callable[[], TrainState]
) -> tuple[TrainState | None, dict[str, Any] | None]:
    """As `resume`, of that run which got furthest of those that differ from this one by fewer epochs alone. One that
    diverged, or whose weights were dropped, cannot be gone on with."""
    best: dict[str, Any] | None = None
    for epochs in range(spec["settings"]["epochs"] - 1, 0, -1):
        if best and len(best["history"]["seconds"]) >= epochs:
            break
        shorter = {**spec, "settings": {**spec["settings"], "epochs": epochs}}
        path = run_folder(shorter) / CHECKPOINT
        with contextlib.suppress(DataError):  # there is none, or another process is at it
            stored = read_checkpoint(path, shorter)
            done = len(stored["history"]["seconds"])
            if stored["state"] and (best is None or done > len(best["history"]["seconds"])):
                best = stored
    return (restore(new(), best, run_folder(spec)), best) if best else (None, None)


def read_checkpoint(path: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """What `save_checkpoint` wrote. Raises DataError where it is damaged, or of another run."""
    stored = files.load_tensors(path)
    if not isinstance(stored, dict) or stored.get("spec") != spec:
        raise DataError(f"{path}: expected a checkpoint of this run, found something else")
    check_history(stored.get("history"), str(path))
    return stored


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
        if "spec" in stored:
            stored = {**stored, **stored["spec"], "epoch": best_epoch(stored["history"])}
            stored["validation"] = scores_of(stored["history"], "val")
        name, task, settings, weights = (stored[key] for key in ("network", "task", "settings", "weights"))
        about = (stored[key] for key in ("source", "epoch", "validation"))
    except (KeyError, TypeError):
        raise DataError(f"{path}: expected what save_weights writes, found something else") from None
    known = [network] if network else models.NETWORKS.get(task, ()) if isinstance(task, str) else ()
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
