"""What a notebook shows in Markdown: tables of results and studies, and source."""

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import models
from training.results import BASELINES, PUBLISHED, best_trials, loss_ends, published_curves, published_results
from training.runs import Run
from training.settings import PROFILES, Settings
from training.study import PLANS, read_rows


def results_table(task: str, results: dict[str, Any]) -> str:
    """A task's test scores beside the published ones, as a Markdown table; `results` as `Lab.save` writes."""
    name, networks, test = results["selected"], results["networks"], results["test"]
    whole = "images" if task == "loc" else "cells"
    names = ("accuracy", "iou", "mean", "map", "map50", "map75")

    def row(said: str, scores: dict[str, float], names: Sequence[str] = names) -> tuple[Any, ...]:
        return (said, *(scores.get(each, "") for each in names))

    chosen = networks[name]
    about = f"best epoch {chosen['best_epoch']} of {chosen['epochs']}, {results['images']['train']:,} images"
    rows = [row(f"**this run: {name}**, {about}", test)]
    ranges = [f"{low:.4f} to {high:.4f}" for low, high in (results["interval"][each] for each in names[:3])]
    rows.append(("95 % interval over the test images", *ranges, "", "", ""))
    same = [
        row for row in read_rows(task, "seeds") if {**row["settings"], "seed": 0} == {**chosen["settings"], "seed": 0}
    ]
    if len(same) > 1:
        columns = [[each["val"][score] for each in same] for score in names[:3]]
        ranges = [f"{min(column):.4f} to {max(column):.4f}" for column in columns]
        rows.append((f"{len(same)} seeds, on validation images", *ranges, "", "", ""))
    rows.append(
        row(f"over {whole} with a digit only, a miss as IoU 0", test, ("digit_accuracy", "iou_all", "", "", "", ""))
    )
    rows.append(row("without rounding edges to whole pixels", results["unrounded"]))
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


def fit_table(runs: Sequence[Run], fits: dict[str, dict[str, float]]) -> str:
    """How well networks fit their training images, as a Markdown table. Both splits are scored alike, after the best
    epoch; of the losses in the history the table says how they have changed since validation loss was lowest.

    fits: each network's scores on training images, see `Lab.score_fit`.
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


def settings_table(recipes: dict[str, Settings]) -> str:
    """Recipes side by side, by their names: those settings in which one of them differs from the defaults, and the
    epochs, the rate and the batch."""
    columns = {name: asdict(each) for name, each in recipes.items()}
    always = ("epochs", "batch_size", "learning_rate", "optimizer", "box_loss")
    default = asdict(Settings())
    names = [
        name for name in default if name in always or any(each[name] != default[name] for each in columns.values())
    ]
    rows = [(name.replace("_", " "), *(str(each[name]) for each in columns.values())) for name in names]
    return markdown_table(("setting", *columns), rows)


def headline(task: str, results: dict[str, Any]) -> str:
    """The result in four rows of Markdown, the selected network, the reference's best one here and as published, and
    bright patches; and how large a run they come from."""
    names, chosen = ("accuracy", "iou", "mean", "map"), results["selected"]
    reference = [each.__name__ for each in models.REFERENCE[task] if each.__name__ in results["others"]]
    best = max(reference, key=lambda name: results["networks"][name]["val"]["mean"], default=None)
    rows = [(f"**{chosen}**", *(results["test"][name] for name in names))]
    if best:
        rows.append((f"the reference's {best}, here", *(results["others"][best][name] for name in names)))
    said, *published = PUBLISHED[task][0]
    rows.append((said, *published, ""))
    rows.append(("bright patches", *(results["baselines"]["bright"][name] for name in names)))
    source = {
        "course": "the course's files",
        "mnist": "images generated from MNIST",
        "digits": "images generated from scikit-learn's digits",
    }
    said = f"Profile `{results['profile']}` on {source[results['source']]}, {devices(results)}."
    if shorter := trained_less(task, results):
        said += f" Less than in the full run: {', '.join(shorter)}."
    table = markdown_table(("test set", "accuracy", "IoU", "mean", "mAP@[.50:.95]"), rows)
    return f"{table}\n\n{said}"


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
    """The networks that were trained for fewer epochs, or on fewer images, than in the full profile; of each, how
    much."""
    full, said = PROFILES["full"], []
    for network in models.NETWORKS[task]:
        epochs = (full.own if network is models.OURS[task] else full.settings).epochs
        run = results["networks"].get(network.__name__)
        asked = run["settings"]["epochs"] if run else epochs
        if run and (asked < epochs or run["n_train"] < full.sizes[task][0]):
            said.append(f"{network.__name__} ({asked} of {epochs} epochs, {run['n_train']:,} images)")
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


def source_of(*pieces: Callable) -> str:
    """The source of functions, methods and classes, as a block of code in Markdown."""
    return "```python\n" + "\n\n".join(textwrap.dedent(inspect.getsource(piece)) for piece in pieces) + "```"


# ---------------------------------------------------------------------------------------------- studies


def study_table(task: str, name: str) -> str:
    """The table of a published study, see `training/study.py`, with its size and the command that makes it."""
    study = "ingredients" if name == "ranking" else name
    rows = read_rows(task, study)
    if name == "full_length":
        whole = [{**row, "id": "all"} for row in read_rows(task, "seeds")]
        rows = [*whole, *rows] if whole else []
    command = f"`python scripts/study.py {study} --task {task}`"
    if not rows:
        return f"*Not part of the published run: {command} makes it.*"
    epochs = " or ".join(dict.fromkeys(str(row["settings"]["epochs"]) for row in rows))
    places = dict.fromkeys(part for row in rows for part in device_of(row).split(", then "))
    said = f"{rows[0]['n_train']:,} training images, {epochs} epochs, scores on validation images"
    return (
        f"*{said}; trained on {' and '.join(places)}; {command}*\n\n{TABLES.get(name, scores_table)(task, study, rows)}"
    )


def by_id(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of a study by their id, a row per seed, in the order in which the ids come first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    return groups


def mean_of(rows: Sequence[dict[str, Any]], name: str, part: str = "val") -> float:
    """The mean of a score over several rows."""
    return sum(row[part][name] for row in rows) / len(rows)


def spread(rows: Sequence[dict[str, Any]]) -> str:
    """The range of the validation means of several rows."""
    means = [row["val"]["mean"] for row in rows]
    return f"{min(means):.4f} to {max(means):.4f}" if len(means) > 1 else ""


def labels_of(task: str, study: str) -> dict[str, str]:
    """What tables call the rows of a study, by their id."""
    return {trial.id: trial.label for trial in PLANS[study](task)}


def filled_table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table without the columns in which there is nothing."""
    kept = [number for number in range(len(header)) if any(line[number] != "" for line in lines)]
    header, *lines = ([line[number] for number in kept] for line in (header, *lines))
    return markdown_table(header, lines)


def scores_table(task: str, study: str, rows: Sequence[dict[str, Any]]) -> str:
    """Scores on validation images, means over the seeds, a line for each id."""
    labels, lines = labels_of(task, study), []
    for id, mine in by_id(rows).items():
        scores = [mean_of(mine, each) for each in ("accuracy", "iou", "mean")]
        epochs = " to ".join(dict.fromkeys(f"{row['epochs']}{ending(row)}" for row in mine))
        lines.append((labels[id], len(mine), epochs, *scores, spread(mine)))
    return filled_table(
        (study.replace("_", " "), "seeds", "epochs", "accuracy", "IoU", "mean", "over the seeds"), lines
    )


def ingredients_table(task: str, study: str, rows: Sequence[dict[str, Any]]) -> str:
    """What each ingredient brings: scores on validation images, means over the seeds; the first id is the whole
    recipe."""
    labels, lines = labels_of(task, study), []
    groups = by_id(rows)
    whole = mean_of(next(iter(groups.values())), "mean")
    for id, mine in groups.items():
        scores = [mean_of(mine, each) for each in ("accuracy", "digit_accuracy", "iou", "mean")]
        counts = [f"{mean_of(mine, each, 'examined'):.0f}" for each in ("missed", "false_positive")]
        label = labels.get(id, "the whole recipe")
        line = (label, len(mine), *scores, spread(mine), f"{scores[-1] - whole:+z.4f}" if lines else "", *counts)
        maps = [row["examined"]["map"]["map"] for row in mine if "map" in row["examined"]]
        lines.append(line + ((sum(maps) / len(maps),) if maps else ()))
    header = ("recipe", "seeds", "accuracy", "over digits", "IoU", "mean", "over the seeds", "change", "missed")
    header += ("false positives", "mAP")
    return filled_table(header[: len(lines[0])], lines)


def ranking_table(task: str, study: str, rows: Sequence[dict[str, Any]]) -> str:
    """Detection: the boxes that cells give as they are, after non-maximum suppression, and with confidence that is not
    multiplied by the expected IoU: average precision on validation images, means over the seeds."""
    ways = {"map": "", "map_nms": ", non-maximum suppression", "map_unranked": ", ranked by confidence alone"}
    names, lines = ("map", "map50", "map75"), []
    labels, groups = labels_of(task, "ingredients"), by_id(rows)
    for id in ("all", "no_center_gate"):
        for way, said in ways.items() if id in groups else ():
            values = [[row["examined"][way][each] for each in names] for row in groups[id]]
            lines.append((labels[id] + said, *(sum(column) / len(column) for column in zip(*values, strict=True))))
    return markdown_table(("boxes", "mAP@[.50:.95]", "mAP@.50", "mAP@.75"), lines)


def recipes_table(task: str, study: str, rows: Sequence[dict[str, Any]]) -> str:
    """Every network with either recipe, validation means: what the recipe brings along a row, what the network brings
    down a column."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        groups = by_id([row for row in rows if row["network"] == network])
        if len(groups) == 2:
            old, new = groups.values()
            means = mean_of(old, "mean"), mean_of(new, "mean")
            lines.append(
                (network, len(new), means[0], spread(old), means[1], spread(new), f"{means[1] - means[0]:+.4f}")
            )
    header = ("network", "seeds", "the reference's recipe", "over the seeds", "our recipe", "over the seeds")
    return filled_table((*header, "difference"), lines)


def reproduction_table(task: str, study: str, rows: Sequence[dict[str, Any]]) -> str:
    """The reference's networks as published and as trained here: validation means by the metric of the reference's
    notebook, as published and here, and by ours, as it trained them and with shuffled images."""
    shuffled, lines = (published_results(task) or {}).get("networks", {}), []
    for row in rows:
        curves, published = row["curves"], published_curves(row["network"])
        line = [row["network"] + ending(row)]
        for val, train in (
            (published["val_mean"], published["train_mean"]),
            (curves["val_reference_mean"], curves["train_reference_mean"]),
        ):
            best = max(val)
            line += [best, str(val.index(best) + 1), train[val.index(best)]]
        here = shuffled.get(row["network"])
        lines.append((*line, row["val"]["mean"], here["val"]["mean"] if here else ""))
    header = ("network", "published: best", "epoch", "training mean", "here: best", "epoch", "training mean")
    return markdown_table((*header, "our metric", "our metric, shuffled"), lines)


def longer_table(task: str, study: str, rows: Sequence[dict[str, Any]], marks: Sequence[int] = (60, 100)) -> str:
    """Training on: the best validation mean within so many epochs."""
    lines = []
    for row in rows:
        means = row["curves"]["val_mean"]
        best = [max(means[:mark]) if mark <= len(means) else "" for mark in marks]
        lines.append((row["network"], *best, f"{means.index(max(means)) + 1} of {len(means)}{ending(row)}"))
    return filled_table(("network", *(f"best within {mark} epochs" for mark in marks), "best epoch"), lines)


def failure_table(task: str, study: str, rows: Sequence[dict[str, Any]]) -> str:
    """FloNet2 in several ways: validation scores by our metric, and by the reference's, the class read as 0 or, where
    there are ten channels, as an argmax over the last five."""
    labels, lines = labels_of(task, study), []
    for row in rows:
        scores = [row["val"][each] for each in ("accuracy", "iou", "mean")]
        scores.append(row["curves"]["val_reference_mean"][row["best_epoch"] - 1])
        ten = row["examined"].get("reference_mean_ten", "")
        lines.append((labels[row["id"]], row["epochs"], str(row["best_epoch"]), *scores, ten))
    header = ("FloNet2", "epochs", "best epoch", "accuracy", "IoU", "mean", "by the reference's metric")
    return filled_table((*header, "its class read over all channels"), lines)


def search_table(search: dict[str, Any] | None) -> str:
    """The recipe set by hand and the best that a search found: validation mean and parameters, a column each. `search`
    as search.json holds it, its first trial the one by hand."""
    if search is None:
        return "*Not part of the published run: `python scripts/search.py` makes it.*"
    by_hand, best = search["trials"][0], best_trials(search)

    def column(trial: dict[str, Any]) -> list[str]:
        values = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial["params"].values())
        return ["ended early" if trial["mean"] is None else f"{trial['mean']:.4f}", *values]

    names = ["validation mean", *(name.replace("_", " ") for name in by_hand["params"])]
    columns = map(column, (by_hand, *best))
    numbers = [f"no. {number} of the search" for number in range(1, len(best) + 1)]
    table = markdown_table(("", "by hand", *numbers), list(zip(names, *columns, strict=True)))
    early = sum(trial["mean"] is None for trial in search["trials"])
    return (
        f"*{len(search['trials'])} trials of {search['epochs']} epochs on {search['images']:,} training images, "
        f"{early} of them ended early because they fell behind*\n\n{table}"
    )


TABLES = {
    "ingredients": ingredients_table,
    "full_length": ingredients_table,
    "ranking": ranking_table,
    "recipes": recipes_table,
    "reproduction": reproduction_table,
    "longer": longer_table,
    "failure": failure_table,
}
