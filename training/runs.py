"""Runs on disk: checkpoints, and going on after an interruption."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import utils
from data import DataError, Splits, files
from training.keys import describe_run, identity, provenance, run_folder
from training.loop import (
    REFERENCE_MEAN,
    SCORES,
    Hooks,
    NonFiniteLoss,
    TrainState,
    best_epoch,
    build,
    keep_freed_memory,
    train,
)
from training.settings import Settings, choose_device
from training.weights import load_weights

CHECKPOINT, PREVIOUS = "checkpoint.pt", "previous.pt"
SAVED_EVERY = 30.0  # seconds at least between two checkpoints, so that a network drive keeps up
RELEASED_WITHIN = 10.0  # seconds until a process that is being stopped, as a kernel in its restart, is surely dead
WRITTEN_WITHIN = 3600.0  # seconds in which any checkpoint is written, on the slowest of drives


class RunInUse(RuntimeError):
    """Another process is training the same run."""


@dataclass(frozen=True)
class Run:
    """A finished training run of one network."""

    network: type[nn.Module]
    task: str
    settings: Settings
    pictures: int  # how many it was trained on
    history: dict[str, list[float]]  # a list per column, an entry per epoch
    watched: list[list]  # per epoch the outputs for the first validation pictures
    trained_on: dict[str, str]  # versions and device of the process that trained it, see `provenance`
    status: str  # "trained", "continued after epoch k", "loaded" or "published"
    weights: Path | None  # a file that `load_weights` reads; None where they were not published

    @property
    def name(self) -> str:
        return self.network.__name__

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
        """Scores on the training pictures during the best epoch, measured on the weights as they changed."""
        return scores_of(self.history, "train")

    @property
    def val(self) -> dict[str, float]:
        """Scores on the validation pictures after the best epoch."""
        return scores_of(self.history, "val")

    def load(self, device: torch.device | None = None) -> nn.Module:
        """The network with the weights of its best epoch, in evaluation mode. Raises DataError where their file has
        been damaged since, or is not there."""
        if self.weights is None:
            raise DataError(f"{self.name}: no weights of it were published")
        network = load_weights(self.weights, self.network).network
        return network.to(device or choose_device(), memory_format=torch.channels_last)


def scores_of(history: dict[str, list[float]], part: str) -> dict[str, float]:
    """A history's scores of the part "train" or "val" in the best epoch."""
    return {name: history[f"{part}_{name}"][best_epoch(history) - 1] for name in SCORES}


# ---------------------------------------------------------------------------------------------- train, go on or load


def fit(
    network: type[nn.Module],
    splits: Splits,
    normal: utils.Normalizer,
    settings: Settings,
    hooks: Hooks | None = None,
) -> Run:
    """Train a network, or continue or load the run that did; only one with the same settings, data and code counts.

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
    about = describe_run(network, splits, normal, settings)
    folder = run_folder(about)
    keep_freed_memory()
    try:
        with files.lock(folder / ".lock", RELEASED_WITHIN) as alone:
            # With the lock no other process is writing; without it one may be.
            files.remove_leftovers(folder, 0.0 if alone else WRITTEN_WITHIN)
            new = partial(build, network, settings, choose_device(), len(splits.train))
            state, trained_on, finished = resume(folder, about, new)
            if not state.epoch and not settings.one_cycle:
                state, trained_on = resume_shorter(about, new)
            done = state.epoch
            status = "loaded" if finished else f"continued after epoch {done}" if done else "trained"
            if not finished:
                if not alone:
                    print(f"{folder}: cannot be locked here, so take care not to train this run in two places at once")
                trained_on = _merge(trained_on, provenance())
                try:
                    train(state, splits, normal, settings, _with_checkpoints(hooks, folder, about, trained_on))
                except NonFiniteLoss:  # which the same steps would meet again
                    if not state.epoch:
                        raise
                    save_checkpoint(folder, state, about, trained_on, finished=True)
    except files.InUse:
        raise RunInUse(
            f"{folder}: {network.__name__} is being trained by another process. Wait until it has finished or stop it, "
            "then run this again."
        ) from None
    weights = folder / CHECKPOINT
    told = (state.history, state.watched, trained_on, status, weights)
    return Run(network, splits.task, settings, len(splits.train), *told)


def _merge(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Of a run that was continued elsewhere: what both places had in common, and what came then."""
    parts = {name: [*before.get(name, value).split(", then "), value] for name, value in now.items()}
    return {name: ", then ".join(dict.fromkeys(values)) for name, values in parts.items()}


def _with_checkpoints(hooks: Hooks | None, folder: Path, about: dict[str, Any], trained_on: dict[str, str]) -> Hooks:
    """The hooks, and before them a checkpoint after each epoch that is due for one."""
    hooks = hooks or Hooks()
    saved = time.monotonic()

    def on_epoch(state: TrainState) -> None:
        nonlocal saved
        finished = state.epoch == about["settings"]["epochs"]
        if finished or time.monotonic() - saved >= SAVED_EVERY:
            save_checkpoint(folder, state, about, trained_on, finished)
            saved = time.monotonic()
        hooks.on_epoch(state)

    return Hooks(hooks.on_step, on_epoch)


def save_checkpoint(
    folder: Path, state: TrainState, about: dict[str, Any], trained_on: dict[str, str], finished: bool
) -> None:
    """Write all that going on takes; of a finished run whose learning rate has come down to nothing, or that has
    diverged, all that using it takes. The checkpoint before is kept until the run is finished. Raises SaveError."""
    over = about["settings"]["one_cycle"] or state.epoch < about["settings"]["epochs"]
    content = {
        **about,
        "weights": state.best_weights,
        "epoch": best_epoch(state.history),
        "validation": scores_of(state.history, "val"),
        "trained_on": trained_on,
        "history": state.history,
        "watched": state.watched,
        "state": None if finished and over else state.state_dict(),
    }
    files.save_tensors(folder / CHECKPOINT, content, keep=None if finished else folder / PREVIOUS)
    if finished:
        (folder / PREVIOUS).unlink(missing_ok=True)


def resume(
    folder: Path, about: dict[str, Any], new: Callable[[], TrainState], mend: bool = True
) -> tuple[TrainState, dict[str, str], bool]:
    """The state that the run's checkpoint holds, or the one before where that is damaged, which is said and, with
    `mend`, takes its place; `new()` where there is none. With it, the provenance of the training until then, and
    whether the run is finished.

    Raises ReadError where files are there but the system does not let them be read, and SaveError.
    """
    checkpoint, damage = folder / CHECKPOINT, []
    for path in (checkpoint, folder / PREVIOUS):
        if not path.exists():
            continue
        state = new()
        try:
            stored = read_checkpoint(path, about)
            if stored["state"] is not None:
                state.load_state_dict(stored["state"])
        except files.ReadError:
            raise
        except DataError as error:
            damage.append(str(error))
            continue
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # from loading the state, in many lines
            damage.append(f"{path}: does not fit ({type(error).__name__})")
            continue
        state.history, state.watched, state.best_weights = stored["history"], stored["watched"], stored["weights"]
        if damage:
            print(
                f"{about['network']}: goes back to the end of epoch {state.epoch}, a file cannot be used: {damage[0]}"
            )
            try:
                if mend:
                    path.replace(checkpoint)  # else the damaged one would be kept as the one before
            except OSError as error:
                raise files.SaveError(f"{checkpoint}: cannot be written, {error.strerror}") from error
        return state, stored["trained_on"], stored["state"] is None or state.epoch == about["settings"]["epochs"]
    if damage:
        print(f"{about['network']}: starts anew, the run before cannot be used: {damage[0]}")
    return new(), {}, False


def resume_shorter(about: dict[str, Any], new: Callable[[], TrainState]) -> tuple[TrainState, dict[str, str]]:
    """The state of the longest run that differs from this one by fewer epochs alone, and with it the provenance;
    `new()` where there is none. A run that diverged cannot be gone on with."""
    for epochs in range(about["settings"]["epochs"] - 1, 0, -1):
        shorter = {**about, "settings": {**about["settings"], "epochs": epochs}}
        folder = run_folder(shorter)
        if (folder / CHECKPOINT).exists():
            state, trained_on, finished = resume(folder, shorter, new, mend=False)  # another may be training it
            diverged = finished and state.epoch < epochs
            if state.epoch and state.best_weights and not diverged:  # without weights they were dropped
                return state, trained_on
    return new(), {}


def read_checkpoint(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What `save_checkpoint` wrote. Raises DataError where it is damaged, or of another run."""
    stored = files.load_tensors(path)
    wanted = {*about, "weights", "epoch", "validation", "trained_on", "history", "watched", "state"}
    if not isinstance(stored, dict) or stored.keys() != wanted:
        raise DataError(f"{path}: expected a checkpoint, found something else")
    try:
        theirs = identity(stored)
    except (AttributeError, TypeError):
        raise DataError(f"{path}: expected a checkpoint, found something else") from None
    for name, value in identity(about).items():
        if theirs[name] != value:
            raise DataError(f"{path}: is of another run, its {name} differs")
    check_history(stored["history"], str(path))
    check_watched(stored["watched"], stored["history"], str(path))
    return stored


def check_history(history: Any, where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless history is a dict with the columns that `train`
    writes: lists of finite floats, each as long as the others, at least one."""
    columns = {f"{part}_{name}" for part in ("train", "val") for name in SCORES} | {"learning_rate", "seconds"}
    added = {f"{part}_{REFERENCE_MEAN}" for part in ("train", "val")}
    if not isinstance(history, dict) or not columns <= history.keys() <= columns | added:
        raise DataError(f"{where}: expected a history of {len(columns)} columns, found something else")
    lists = all(type(values) is list and values for values in history.values())
    if not lists or len({len(values) for values in history.values()}) > 1:
        raise DataError(f"{where}: expected the history's columns to be lists of one length")
    if not all(type(value) is float and math.isfinite(value) for values in history.values() for value in values):
        raise DataError(f"{where}: expected finite numbers in the history, found others")


def check_watched(watched: Any, history: dict[str, list[float]], where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless there are outputs of each epoch of the history."""
    try:
        fits = torch.tensor(watched).shape[0] == len(history["seconds"])
    except (TypeError, ValueError, RuntimeError, IndexError):
        fits = False
    if not fits:
        raise DataError(f"{where}: expected outputs of as many epochs as the history has, found something else")
