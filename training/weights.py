"""The weights of a finished run, for use: written and read."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import models
import utils
from data import DataError, files
from training.loop import assemble
from training.settings import Settings

WEIGHTS = ("network", "task", "settings", "source", "pictures", "normalization", "weights", "epoch", "validation")
WEIGHTS += ("trained_on",)


@dataclass(frozen=True)
class Trained:
    """A trained network and all that using it takes."""

    name: str  # of the network's class
    network: nn.Module  # on the CPU, in evaluation mode
    task: str  # "loc" or "det"
    normal: utils.Normalizer
    source: str  # of the pictures that it was trained on: "course", "mnist" or "digits"
    epoch: int
    validation: dict[str, float]  # its scores on the validation pictures, see `utils.score`
    path: Path


def drop_weights(checkpoint: Path) -> None:
    """Keep only the history of a run: comparing recipes needs no more, and SkreNet's weights take 150 MB."""
    files.save_tensors(checkpoint, {**files.load_tensors(checkpoint), "weights": {}, "state": None})


def save_weights(checkpoint: Path, path: Path) -> None:
    """Write the best epoch's weights of a finished run with all that using them takes: tensors and plain values."""
    stored = files.load_tensors(checkpoint)
    files.save_tensors(path, {name: stored[name] for name in WEIGHTS})


def load_weights(path: str | Path, network: type[nn.Module] | None = None) -> Trained:
    """Read a file that `save_weights` wrote, or the checkpoint of a finished run. Nothing in it can run code.

    network: its class, by default the one in `models` that has the name in the file. Raises DataError that names the
    file where it is missing, damaged or hostile, or does not fit the network.
    """
    path = Path(path)
    stored = files.load_tensors(path)
    if not isinstance(stored, dict) or not set(WEIGHTS) <= stored.keys():
        raise DataError(f"{path}: expected what save_weights writes, found something else")
    name, task = stored["network"], stored["task"]
    ours = models.LOCALIZERS if task == "loc" else models.DETECTORS if task == "det" else ()
    known = [network] if network else ours
    found = next((each for each in known if each.__name__ == name), None)
    if found is None or not ours:
        expected = ", ".join(each.__name__ for each in known) or "a network of one of the tasks"
        raise DataError(f"{path}: expected {expected}, found {name!r} for {task!r}")
    try:
        model = assemble(found, Settings(**stored["settings"]))
        model.load_state_dict(stored["weights"])  # strict: names and shapes
        normal = utils.Normalizer(**stored["normalization"])
        usable = 0 < normal.std < math.inf and math.isfinite(normal.mean)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise DataError(f"{path}: does not fit {name}: {' '.join(str(error).split())}") from error
    if not usable or not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise DataError(f"{path}: holds a number that is NaN or infinite, or no standard deviation")
    return Trained(name, model.eval(), task, normal, stored["source"], stored["epoch"], stored["validation"], path)
