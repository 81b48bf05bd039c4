"""What comes out of a task: results.json, the tables made of it, others' published figures, what curves say."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

import models
from data import DataError
from data.files import load_json, load_pickle, save_json, save_pickle
from training.runs import Run, check_history
from training.settings import NAMES, Settings

# Published test figures, to set beside ours: [name, accuracy, IoU, mean]. They are of the course's own files, and the
# reference's accuracy counts a missed digit as right. The reference is the course's submission with the networks of
# models.py; the best of the others is, figure by figure, the best of fourteen public submissions.
PUBLISHED = {
    "loc": [
        ("reference submission: SkreNet, 60 epochs", 0.926364, 0.726757, 0.82656),
        ("best of fourteen public submissions, over pictures with a digit", 0.9353, 0.7127, 0.8168),
    ],
    "det": [
        ("reference submission: SkreNet2, 60 epochs", 0.876732, 0.780962, 0.828847),
        ("best of fourteen public submissions, over cells with a digit", 0.9672, 0.7715, 0.8684),
    ],
}

# Beside them for detection: [name, mAP@[.50:.95], mAP@.50, mAP@.75], again figure by figure the best of the fourteen.
PUBLISHED_MAP = ("best of fourteen public submissions", 0.5363, 0.9394, 0.5735)

# What networks are set beside, see `training/baselines.py`.
BASELINES = {
    "visible": "an oracle: the box around the digit's visible ink",
    "bright": "nothing learnt: patches of bright pixels",
    "trivial": "nothing seen: the mean box, the commonest class",
}


# ---------------------------------------------------------------------------------------------- what is kept


def published_results(task: str) -> dict[str, Any] | None:
    """What figures/results.json holds of a task; None where there is nothing."""
    return load_json(Path("figures") / "results.json").get(task)


def save_results(folder: Path, task: str, results: dict[str, Any]) -> None:
    """Put a task's results into results.json in the folder; the other task's stay as they are."""
    path = Path(folder) / "results.json"
    save_json(path, {**load_json(path), task: results}, indent=1, sort_keys=True)


def summarize(run: Run) -> dict[str, Any]:
    """What is told of a run, as plain values."""
    return {
        "parameters": models.count_parameters(run.network()),
        "pictures": run.pictures,
        "best_epoch": run.best_epoch,
        "epochs": len(run.history["seconds"]),
        "seconds": round(run.seconds, 1),
        "settings": asdict(run.settings),
        "trained_on": run.trained_on,
        "train": run.train,
        "val": run.val,
        "diverged": diverged(run.history),
    }


def save_histories(runs: Sequence[Run], path: Path) -> None:
    """Pickle the runs' histories, and what they were made with, by the network's name: plain values only."""
    kept = ("history", "pictures", "trained_on")
    save_pickle(
        path,
        {run.name: {"settings": asdict(run.settings), **{name: getattr(run, name) for name in kept}} for run in runs},
    )


def load_published(network: type[nn.Module], task: str) -> Run:
    """The published run of a network; with its weights if they were published. Raises DataError where there is none."""
    path = Path("histories") / f"{NAMES[task]}.pkl"
    found = load_pickle(path).get(network.__name__)
    if found is None:
        raise DataError(f"{path}: holds no history of {network.__name__}")
    check_history(found["history"], str(path))
    found["settings"] = Settings(**found["settings"])
    weights = Path("weights") / f"{NAMES[task]}.pt"
    own = issubclass(network, models.GridNetwork)
    return Run(network, task, **found, status="published", weights=weights if own else None)


# ---------------------------------------------------------------------------------------------- what curves say


def select_best(runs: Sequence[Run]) -> Run:
    """The run with the highest validation mean accuracy in its best epoch; the first of equals."""
    if not runs:
        raise ValueError("runs: expected at least one, found none")
    return max(runs, key=lambda run: run.val["mean"])


def diverged(history: dict[str, list[float]]) -> bool:
    """Whether training itself got worse: it ended with a higher loss on training pictures than it had in the epoch in
    which validation loss was lowest, and with a validation loss higher by over a tenth. Overfitting is the opposite."""
    train, val = history["train_loss"], history["val_loss"]
    lowest = val.index(min(val))
    return train[-1] > train[lowest] and val[-1] > 1.1 * val[lowest]


def diagnose(run: Run) -> str:
    """What a run's curves say about under- and overfitting, in two lines."""
    train, val, losses = run.train["mean"], run.val["mean"], run.history["val_loss"]
    epochs, lowest = len(losses), losses.index(min(losses)) + 1
    said = f"{run.name}: mean {train:.4f} on training, {val:.4f} on validation pictures, gap {train - val:+.4f};\n"
    said += f"    validation loss lowest in epoch {lowest} of {epochs}"
    if lowest >= 0.9 * epochs:
        return said + ": still falling, training longer would help."
    rise = losses[-1] / losses[lowest - 1] - 1
    if diverged(run.history):
        return said + f", {rise:.0%} higher in the last, and training loss rose as well: training diverged."
    return said + f", {rise:.0%} higher in the last: " + ("overfitting." if rise > 0.1 else "hardly any overfitting.")


# ---------------------------------------------------------------------------------------------- tables


def results_table(task: str, results: dict[str, Any]) -> str:
    """A task's test scores beside the published ones, as a Markdown table; `results` as `Lab.save` writes."""
    test, chosen = results["test"], results["networks"][results["selected"]]
    name, reference = results["reference"]["network"], results["reference"]["test"]
    whole = "pictures" if task == "loc" else "cells"
    names = ("accuracy", "iou", "mean") + (("map", "map50", "map75") if task == "det" else ())
    about = f"{chosen['best_epoch']} of {chosen['epochs']} epochs, {results['pictures']['train']:,} pictures"
    epochs = results["networks"][name]["epochs"]
    rows = [
        (f"**this run: {results['selected']}**, {about}", *(test[name] for name in names)),
        (f"the same, over {whole} with a digit only, a miss as IoU 0", test["digit_accuracy"], test["iou_all"]),
        (f"the reference's best network here, {name}, {epochs} epochs", *(reference[name] for name in names)),
        *PUBLISHED[task],
    ]
    if task == "det":
        rows[-1] += PUBLISHED_MAP[1:]
    for key in (key for key in BASELINES if key in results["baselines"]):
        scores = results["baselines"][key]
        row = (BASELINES[key], *(scores[name] for name in names))
        rows.append((row[0], "", row[2], "", *row[4:]) if key == "visible" else row)  # which is told the class
    header = ("test set", "detection & class accuracy", "box accuracy (IoU)", "mean accuracy")
    header += ("mAP@[.50:.95]", "mAP@.50", "mAP@.75") if task == "det" else ()
    return markdown_table(header, [(*row, *[""] * (len(header) - len(row))) for row in rows])


def compare_runs(runs: Sequence[Run], best: Run) -> str:
    """The scores of several networks, each in its best epoch, as a Markdown table with the chosen one marked."""
    names = ("accuracy", "digit_accuracy", "iou", "iou_all", "mean")
    rows = [
        (
            f"**{run.name}**, selected" if run is best else run.name,
            str(run.best_epoch),
            run.train["mean"],
            *(run.val[name] for name in names),
        )
        for run in runs
    ]
    header = ("network", "best epoch", "training mean", "validation accuracy", "where there is a digit")
    return markdown_table((*header, "IoU", "IoU, a miss as 0", "mean"), rows)


def training_table(results: dict[str, Any]) -> str:
    """How every network of a task was trained, how long that took, and what came of it, as a Markdown table."""
    rows = [
        (
            f"**{name}**" if name == results["selected"] else name,
            run["parameters"],
            run["pictures"],
            run["epochs"],
            f"{run['seconds'] / 60:.1f}",
            run["val"]["accuracy"],
            run["val"]["iou"],
            run["val"]["mean"],
        )
        for name, run in results["networks"].items()
    ]
    header = ("network", "parameters", "training pictures", "epochs", "minutes", "validation accuracy", "IoU", "mean")
    return markdown_table(header, rows)


def ablation_table(rows: Sequence[dict[str, Any]]) -> str:
    """Trials as `study.try_out` gives them, as a Markdown table: validation scores, with their range where there
    is more than one seed, and what each change has brought to the row above."""
    lines, before = [], None
    for row in rows:
        means = [scores["mean"] for scores in row["seeds"]]
        mean = sum(means) / len(means)
        line = [row["name"], len(means)]
        line += [sum(scores[name] for scores in row["seeds"]) / len(means) for name in ("accuracy", "iou")]
        line += [mean, f"{min(means):.4f} to {max(means):.4f}" if len(means) > 1 else ""]
        lines.append((*line, f"{mean - before:+.4f}" if before is not None else ""))
        before = mean
    header = ("recipe", "seeds", "validation accuracy", "IoU", "mean", "over the seeds", "change")
    return markdown_table(header, lines)


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """Validation means of every network with either recipe, as a Markdown table: what the recipe brings along a row,
    what the network brings down a column."""
    means = {(row["network"], row["name"]): row["seeds"][0]["mean"] for row in rows}
    lines = []
    for name, pictures in {row["network"]: row["pictures"] for row in rows}.items():
        old, new = means[name, "reference"], means[name, "new"]
        lines.append((name, pictures, old, new, f"{new - old:+.4f}"))
    header = ("network", "training pictures", "mean, reference's recipe", "mean, new recipe", "difference")
    return markdown_table(header, lines)


def study_tables(study: dict[str, Any] | None, published: dict[str, Any] | None) -> str:
    """Both tables of a comparison of recipes, in Markdown, with what they were trained on; without a study those of
    the published one, if there is one."""
    said = ""
    if study is None:
        study = published
        if study is None:
            return "*This profile makes no comparison of recipes, and none is published.*"
        said = "*This profile makes no comparison of recipes; this is that of the published run.*\n\n"
    first = study["ablation"][0]
    size = f"{first['pictures']:,} training pictures, {first['epochs']} epochs, scores on the validation pictures"
    return (
        f"{said}**One change at a time** ({size}; the mean over the seeds)\n\n{ablation_table(study['ablation'])}\n\n"
        f"**Network and recipe** (the same size)\n\n{comparison_table(study['comparison'])}"
    )


def print_scores(run: Run, test: dict[str, float]) -> None:
    """The block that ends both notebooks' story: the chosen network and its scores on the test set."""
    lines = [
        ("network", run.name),
        ("epoch", run.best_epoch),
        ("validation mean accuracy", run.val["mean"]),
        ("test: detection & class accuracy", test["accuracy"]),
        ("test: box accuracy (IoU)", test["iou"]),
        ("test: mean accuracy", test["mean"]),
        ("test: accuracy where there is a digit", test["digit_accuracy"]),
        ("test: IoU, a missed digit as 0", test["iou_all"]),
    ]
    names = {"map": "mAP@[.50:.95]", "map50": "mAP@.50", "map75": "mAP@.75"}
    for name, value in test.items():
        if name.startswith("map"):
            lines.append((f"test: {names.get(name, f'AP@[.50:.95] of class {name[-1]}')}", value))
    for name, value in lines:
        print(f"{name:40s}{value:.4f}" if isinstance(value, float) else f"{name:40s}{value}")


def headline(results: dict[str, Any], task: str) -> str:
    """The result in a few lines of Markdown: the table, and how large a run it comes from."""
    source = {
        "course": "the course's files",
        "mnist": "pictures made from MNIST",
        "digits": "pictures made from scikit-learn's digits",
    }
    device = results["networks"][results["selected"]]["trained_on"]["device"]
    said = f"Profile `{results['profile']}` on {source[results['source']]}, {device}."
    if results["profile"] != "full":
        said += (
            " **This is not the full run** of 60 epochs over all pictures, with which the published figures compare."
        )
    return f"{results_table(task, results)}\n\n{said}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown: texts to the left, numbers to the right, fractions with four decimals."""

    def cell(value: Any) -> str:
        return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    sides = ["---:" if rows and isinstance(value, (int, float)) else "---" for value in (rows[0] if rows else header)]
    lines = [header, sides, *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
