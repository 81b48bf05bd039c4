"""What comes out of a task: results.json and histories, written and read, and others' published figures."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from data import FOLDER, DataError
from data.files import load_json, load_pickle, lock, save_json, save_pickle
from training.runs import Run
from training.settings import NAMES, Settings

BEST = 4  # trials of a search that are shown, and trained at full length, beside the recipe by hand

# Published test figures of the reference, the course's submission with the networks of models.py, on the course's own
# files; its report's accuracy counts a missed digit as wrong, and reads every class in detection as 0.
PUBLISHED = {
    "loc": {"accuracy": 0.926364, "iou": 0.726757, "mean": 0.82656},
    "det": {"accuracy": 0.876732, "iou": 0.780962, "mean": 0.828847},
}

# What networks are set beside, see `training/analysis.py`.
BASELINES = {
    "visible": "the box around the digit's visible ink",
    "bright": "bright patches: nothing learnt",
}


def published_results(task: str) -> dict[str, Any] | None:
    """What figures/results.json holds of a task; None where there is nothing."""
    return load_json(Path("figures") / "results.json").get(task)


def published_search(task: str, name: str = "search") -> dict[str, Any] | None:
    """What figures/ holds of a task's search for hyperparameters; its names are those of `training/search.py`."""
    return load_json(Path("figures") / f"{name}.json").get(task)


def best_trials(search: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The best finished trials of a search, as search.json holds it, best first, but for the recipe by hand."""
    ended = [trial for trial in search["trials"][1:] if trial["mean"] is not None] if search else []
    return sorted(ended, key=lambda trial: -trial["mean"])[:BEST]


def save_results(folder: Path, task: str, results: dict[str, Any]) -> None:
    """Put a task's results into results.json in the folder; the other task's stay as they are."""
    path = Path(folder) / "results.json"
    with lock(path, 60):  # the other notebook may be writing its own
        save_json(path, {**load_json(path), task: results}, indent=1, sort_keys=True)


def summarize(run: Run) -> dict[str, Any]:
    """What is told of a run, as plain values."""
    about = {name: getattr(run, name) for name in ("parameters", "n_train", "best_epoch", "trained_on", "train", "val")}
    about |= {"settings": asdict(run.settings), "epochs": len(run.history["seconds"]), "seconds": round(run.seconds, 1)}
    return {**about, "ends": loss_ends(run.history)}


def save_histories(runs: Sequence[Run], path: Path) -> None:
    """Pickle the runs' histories, and what they were made with, by the network's name: plain values only."""
    kept = ("history", "val_samples", "n_train", "trained_on")
    about = {run.name: {name: getattr(run, name) for name in kept} | {"settings": asdict(run.settings)} for run in runs}
    save_pickle(path, about)


def load_published(network: type[nn.Module], task: str) -> Run:
    """The published run of a network; with its weights if they were published. Raises DataError where there is none."""
    path = Path("histories") / f"{NAMES[task]}.pkl"
    stored = load_pickle(path)
    weights = Path("weights") / f"{network.__name__}.pt"
    try:
        about = {**stored[network.__name__], "status": "published", "weights": weights if weights.is_file() else None}
        return Run(network, task, **{**about, "settings": Settings(**about["settings"])})
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: holds no history of {network.__name__}") from error


def published_curves(network: str) -> dict[str, list[float]]:
    """The published "train_mean", "val_mean", "train_loss" and "val_loss" of a network of the reference's."""
    return load_json(FOLDER / "reference_curves.json")[network]


def select_best(runs: Sequence[Run]) -> Run:
    """The run with the highest validation mean accuracy in its best epoch; the first of equals."""
    return max(runs, key=lambda run: run.val["mean"])


def loss_ends(history: dict[str, list[float]]) -> dict[str, float]:
    """The epoch of the lowest validation loss, "lowest", and how many times as high the losses on "train" and "val"
    images are in the end. Where a network overfits, the first has fallen and the second risen."""
    losses = {part: history[f"{part}_loss"] for part in ("train", "val")}
    lowest = losses["val"].index(min(losses["val"]))
    return {"lowest": lowest + 1, **{part: values[-1] / values[lowest] for part, values in losses.items()}}
