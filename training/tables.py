"""The tables of a task's results, in Markdown."""

from collections.abc import Sequence
from typing import Any

import models
from training.results import BASELINES, PUBLISHED, loss_ends
from training.runs import Run
from training.settings import PROFILES


def results_table(task: str, results: dict[str, Any], studies: dict[str, Any]) -> str:
    """A task's test scores beside the published ones, as a Markdown table; `results` as `Lab.save` writes, `studies` as
    `published_studies` gives."""
    name, networks, test = results["selected"], results["networks"], results["test"]
    whole = "pictures" if task == "loc" else "cells"
    names = ("accuracy", "iou", "mean", "map", "map50", "map75")

    def row(said: str, scores: dict[str, float], names: Sequence[str] = names) -> tuple[Any, ...]:
        return (said, *(scores.get(each, "") for each in names))

    chosen = networks[name]
    about = f"best epoch {chosen['best_epoch']} of {chosen['epochs']}, {results['pictures']['train']:,} pictures"
    rows = [row(f"**this run: {name}**, {about}", test)]
    ranges = [f"{low:.4f} to {high:.4f}" for low, high in (results["interval"][each] for each in names[:3])]
    rows.append(("95 % interval over the test pictures", *ranges, "", "", ""))
    same = [each for each in studies.get("seeds", ()) if each["network"] == name]
    seeds = [each["val"] for each in same if {**each["settings"], "seed": 0} == {**chosen["settings"], "seed": 0}]
    if len(seeds) > 1:
        columns = [[scores[each] for scores in seeds] for each in names[:3]]
        ranges = [f"{min(column):.4f} to {max(column):.4f}" for column in columns]
        rows.append((f"{len(seeds)} seeds, on validation pictures", *ranges, "", "", ""))
    rows.append(
        row(f"over {whole} with a digit only, a miss as IoU 0", test, ("digit_accuracy", "iou_all", "", "", "", ""))
    )
    rows.append(row("without snapping edges to whole pixels", results["unsnapped"]))
    baselines = dict(results["baselines"])
    if "visible" in baselines:  # which is told the class
        scores = baselines.pop("visible")
        rows.append(row(BASELINES["visible"], scores, ("", "iou", "", *names[3:])))
    for other in (each.__name__ for each in models.NETWORKS[task]):  # a file may hold them in another order
        if other in results["others"]:
            said = f"the reference's {other} here, {networks[other]['epochs']} epochs{ending(networks[other])}"
            rows.append(row(said, results["others"][other]))
    for said, *scores in PUBLISHED[task]:
        rows.append((said, *scores, *[""] * (6 - len(scores))))
    rows += [row(BASELINES[key], scores) for key, scores in baselines.items()]
    header = ("test set", "detection & class accuracy", "box accuracy (IoU)", "mean accuracy")
    return markdown_table((*header, "mAP@[.50:.95]", "mAP@.50", "mAP@.75"), rows)


def compare_runs(runs: Sequence[Run], best: Run) -> str:
    """The scores of several networks, each in its best epoch, as a Markdown table with the chosen one marked."""
    names = ("accuracy", "digit_accuracy", "iou", "iou_all", "mean")
    rows = [
        (
            f"**{run.name}**, selected" if run is best else run.name,
            str(run.best_epoch),
            *(run.val[name] for name in names),
        )
        for run in runs
    ]
    header = ("network", "best epoch", "validation accuracy", "where there is a digit")
    return markdown_table((*header, "IoU", "IoU, a miss as 0", "mean"), rows)


def training_table(results: dict[str, Any]) -> str:
    """How every network of a task was trained, how long that took, and what came of it, as a Markdown table."""
    rows = [
        (
            f"**{name}**" if name == results["selected"] else name,
            run["parameters"],
            run["pictures"],
            f"{run['epochs']}{ending(run)}" if ending(run) else run["epochs"],
            f"{run['seconds'] / 60:.1f}",
            run["val"]["accuracy"],
            run["val"]["iou"],
            run["val"]["mean"],
        )
        for name, run in results["networks"].items()
    ]
    header = ("network", "parameters", "training pictures", "epochs", "minutes", "validation accuracy", "IoU", "mean")
    return markdown_table(header, rows)


def fit_table(runs: Sequence[Run], fits: dict[str, dict[str, float]]) -> str:
    """How well networks fit their training pictures, as a Markdown table. Both splits are scored alike, after the best
    epoch; of the losses in the history the table says how they have changed since validation loss was lowest.

    fits: each network's scores on training pictures, see `Lab.score_fit`.
    """
    rows = []
    for run in runs:
        fit, val, ends = fits[run.name], run.val, loss_ends(run.history)
        errors = (f"{1 - scores['digit_accuracy']:.2%}" for scores in (fit, val))
        rows.append((run.name, fit["mean"], val["mean"], f"{fit['mean'] - val['mean']:+.4f}", *errors))
        rows[-1] += (
            f"{ends['lowest']} of {len(run.history['val_loss'])}",
            f"×{ends['train']:.2f}",
            f"×{ends['val']:.2f}",
        )
    header = (
        "network",
        "mean, training",
        "mean, validation",
        "gap",
        "digits wrong, training",
        "digits wrong, validation",
    )
    header += ("lowest validation loss in epoch", "training loss since then", "validation loss since then")
    return markdown_table(header, rows)


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


def headline(task: str, results: dict[str, Any], studies: dict[str, Any]) -> str:
    """The result in a few lines of Markdown: the table, and how large a run it comes from."""
    source = {
        "course": "the course's files",
        "mnist": "pictures made from MNIST",
        "digits": "pictures made from scikit-learn's digits",
    }
    said = f"Profile `{results['profile']}` on {source[results['source']]}, {devices(results)}."
    if shorter := trained_less(task, results):
        said += f" Less than in the full run: {', '.join(shorter)}."
    return f"{results_table(task, results, studies)}\n\n{said}"


def devices(results: dict[str, Any]) -> str:
    """What the selected network was trained on, and which of the others were trained on something else."""
    trained = {name: device_of(run) for name, run in results["networks"].items()}
    own = trained[results["selected"]]
    return "; ".join([own, *(f"{name} on {device}" for name, device in trained.items() if device != own)])


def device_of(run: dict[str, Any]) -> str:
    """What a run was trained on, however many threads of a CPU it was; `run` as `summarize` gives it."""
    parts = run["trained_on"]["device"].split(", then ")
    return ", then ".join(dict.fromkeys("CPU" if part.startswith("CPU") else part for part in parts))


def trained_less(task: str, results: dict[str, Any]) -> list[str]:
    """The networks that were trained for fewer epochs, or on fewer pictures, than in the full profile; of each, how
    much."""
    full, said = PROFILES["full"], []
    for network in models.NETWORKS[task]:
        epochs = (full.own if issubclass(network, models.GridNetwork) else full.settings).epochs
        run = results["networks"].get(network.__name__)
        asked = run["settings"]["epochs"] if run else epochs
        if run and (asked < epochs or run["pictures"] < full.sizes[task][0]):
            said.append(f"{network.__name__} ({asked} of {epochs} epochs, {run['pictures']:,} pictures)")
    return said


def ending(run: dict[str, Any]) -> str:
    """What is to be said after a run's epochs where it diverged before it had all; `run` as `summarize` gives it."""
    return ", then it diverged" if run["epochs"] < run["settings"]["epochs"] else ""


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown: texts to the left, numbers to the right, fractions with four decimals."""

    def cell(value: Any) -> str:
        return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    sides = ["---:" if rows and isinstance(value, (int, float)) else "---" for value in (rows[0] if rows else header)]
    lines = [header, sides, *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
