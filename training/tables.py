"""Numbers in rows, each row a dict by column, and their formatting as Markdown in one place."""

import inspect
import itertools
import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import models
from training.results import BASELINES, PUBLISHED, best_trials, loss_ends, published_curves, published_results
from training.runs import Run
from training.settings import Settings
from training.study import RECIPES, read_rows

Row = dict[str, Any]
SCORES = {"accuracy": "accuracy", "iou": "IoU", "mean": "mean"}
PRECISIONS = {"map": "mAP@[.50:.95]", "map50": "mAP@.50", "map75": "mAP@.75"}
IMAGES = {
    "course": "images of the course",
    "mnist": "images generated from MNIST",
    "digits": "images generated from scikit-learn's digits",
}
LAST = 10  # epochs whose mean says how good a network is without the luck of its best epoch


def markdown_table(rows: Sequence[Row], columns: dict[str, str] | None = None, digits: int = 3) -> str:
    """A table in Markdown: texts to the left, numbers to the right, fractions with so many digits. columns: key ->
    heading, by default the first row's keys. Columns in which no row has anything are left out."""
    columns = columns or {key: key for key in rows[0]}
    columns = {key: said for key, said in columns.items() if any(row.get(key) not in (None, "") for row in rows)}

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.{digits}f}"
        return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    sides = ["---:" if any(isinstance(row.get(key), (int, float)) for row in rows) else "---" for key in columns]
    lines = [list(columns.values()), sides, *([cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def source_of(*pieces: Callable) -> str:
    """The source of functions, methods and classes, as a block of code in Markdown."""
    return "```python\n" + "\n\n".join(textwrap.dedent(inspect.getsource(piece)) for piece in pieces) + "```"


# ---------------------------------------------------------------------------------------------- a task's results


def headline(task: str, results: Row) -> str:
    """The result in four rows of Markdown, and what run they come from. `results` as `Lab.save` returns them."""
    rows = [row for row in result_rows(task, results) if row["id"] in ("ours", "reference", "published", "bright")]
    table = markdown_table(rows, {"name": "test set", **SCORES, "map": "mAP"})
    trained = {name: device_of(run) for name, run in results["networks"].items()}
    own = trained[results["selected"]]
    others = "".join(f"; {name} on {device}" for name, device in trained.items() if device != own)
    return f"{table}\n\nProfile `{results['profile']}` on {IMAGES[results['source']]}, {own}{others}."


def results_table(task: str, results: Row) -> str:
    """A task's test scores and what they are set beside, as a Markdown table."""
    return markdown_table(result_rows(task, results), {"name": "test set", **SCORES, **PRECISIONS})


def result_rows(task: str, results: Row) -> list[Row]:
    """The same in rows: "id", "name" and the scores."""
    networks, test, whole = results["networks"], results["test"], "images" if task == "loc" else "cells"
    known = [each.__name__ for each in models.REFERENCE[task] if each.__name__ in results["others"]]
    rows = [{"id": "ours", "name": f"**{results['selected']}**", **test}]
    interval = {name: "{:.3f} to {:.3f}".format(*results["interval"][name]) for name in SCORES}
    rows.append({"id": "interval", "name": "95 % interval over the test images", **interval})
    strict = {"accuracy": test["digit_accuracy"], "iou": test["iou_all"]}
    rows.append({"id": "strict", "name": f"over {whole} with a digit, a miss as IoU 0", **strict})
    rows.append({"id": "unrounded", "name": "edges not rounded", **results["unrounded"]})
    if visible := results["baselines"].get("visible"):  # which is told everything but the box
        scores = {name: value for name, value in visible.items() if name not in ("accuracy", "mean")}
        rows.append({"id": "visible", "name": "the box around the visible ink", **scores})
    if known:
        best = max(known, key=lambda name: networks[name]["val"]["mean"])
        rows.append({"id": "reference", "name": f"the reference's {best}, trained here", **results["others"][best]})
    rows.append({"id": "published", "name": "the reference, as published", **PUBLISHED[task]})
    return [*rows, {"id": "bright", "name": BASELINES["bright"], **results["baselines"]["bright"]}]


def device_of(run: Row) -> str:
    """What a run was trained on, however many threads of a CPU it was; `run` as `summarize` gives it."""
    parts = run["trained_on"]["device"].split(", then ")
    return ", then ".join(dict.fromkeys("CPU" if part.startswith("CPU") else part for part in parts))


def compare_runs(runs: Sequence[Run], best: Run) -> str:
    """Validation scores of networks in their best epochs, as a Markdown table with the selected one marked."""
    columns = {"name": "network", "epoch": "best epoch", "accuracy": "validation accuracy"}
    columns |= {"digit_accuracy": "over digits", "iou": "IoU", "iou_all": "IoU, a miss as 0", "mean": "mean"}
    names = {run.name: f"**{run.name}**, selected" if run is best else run.name for run in runs}
    return markdown_table([{"name": names[run.name], "epoch": run.best_epoch, **run.val} for run in runs], columns)


def fit_table(runs: Sequence[Run], fits: dict[str, dict[str, float]]) -> str:
    """How well networks fit their training images, as a Markdown table. fits: see `Lab.score_fit`."""
    rows = []
    for run in runs:
        parts, ends = {"training": fits[run.name], "validation": run.val}, loss_ends(run.history)
        row = {"network": run.name, **{f"mean, {part}": scores["mean"] for part, scores in parts.items()}}
        row |= {f"digits wrong, {part}": f"{1 - scores['digit_accuracy']:.1%}" for part, scores in parts.items()}
        row["lowest validation loss in epoch"] = ends["lowest"]
        rows.append({**row, "validation loss since then": f"×{ends['val']:.2f}"})
    return markdown_table(rows)


def settings_table(recipes: dict[str, Settings]) -> str:
    """Recipes side by side, by their names: the main settings, and those in which one differs from the defaults."""
    columns, default = {name: asdict(each) for name, each in recipes.items()}, asdict(Settings())
    always = ("epochs", "batch_size", "learning_rate", "optimizer", "box_loss")
    names = [each for each in default if each in always or any(one[each] != default[each] for one in columns.values())]
    rows = [{"setting": f"`{each}`", **{name: str(one[each]) for name, one in columns.items()}} for each in names]
    return markdown_table(rows)


# ---------------------------------------------------------------------------------------------- studies


def study_table(task: str, name: str) -> str:
    """The table of a published study, see `training/study.py`, with its size and the command that makes it."""
    study = "ingredients" if name == "ranking" else name
    rows, lines = read_rows(task, study), STUDY_ROWS.get(name, score_rows)(task, study)
    command = f"`python scripts/study.py {study} --task {task}`"
    if not lines:
        return f"*Not part of the published run: {command} makes it.*"
    images, epochs = {f"{row['n_train']:,}" for row in rows}, {str(row["settings"]["epochs"]) for row in rows}
    places = dict.fromkeys(part for row in rows for part in device_of(row).split(", then "))
    said = f"{' or '.join(sorted(images))} training images, {' or '.join(sorted(epochs))} epochs, validation scores; "
    return f"*{said}trained on {' and '.join(places)}; {command}*\n\n{markdown_table(lines, digits=4)}"


def by_id(task: str, study: str) -> dict[str, list[Row]]:
    """The rows of a study by their id, a row per seed, in the plan's order."""
    return {id: [*rows] for id, rows in itertools.groupby(read_rows(task, study), lambda row: row["id"])}


def mean_of(rows: Sequence[Row], name: str) -> float:
    """The mean of a validation score over several rows."""
    return statistics.mean(row["val"][name] for row in rows)


def mean_scores(rows: Sequence[Row]) -> Row:
    """Accuracy, IoU and their mean, means over several rows, by their headings."""
    return {said: mean_of(rows, key) for key, said in SCORES.items()}


def change(rows: Sequence[Row], base: Sequence[Row]) -> tuple[float, float]:
    """How far the validation mean of some rows is above others', and its standard error, NaN for a single seed."""
    means = [[row["val"]["mean"] for row in each] for each in (rows, base)]
    errors = [statistics.variance(each) / len(each) if len(each) > 1 else float("nan") for each in means]
    return statistics.mean(means[0]) - statistics.mean(means[1]), sum(errors) ** 0.5


def last_mean(row: Row, end: int | None = None) -> float:
    """The mean of the validation mean over the LAST epochs, or those before the end given."""
    return statistics.mean(row["curves"]["val_mean"][:end][-LAST:])


def mean_curve(rows: Sequence[Row], name: str) -> list[float]:
    """A column of the rows' "curves", epoch by epoch its mean over them, as far as all of them go."""
    return [statistics.mean(values) for values in zip(*(row["curves"][name] for row in rows))]


def score_rows(task: str, study: str) -> list[Row]:
    """Scores in the best epoch, means over the seeds, and what is left of the mean over the last ten epochs."""
    rows = []
    for mine in by_id(task, study).values():
        epochs = [
            f"{row['epochs']}{', then it diverged' * (row['epochs'] < row['settings']['epochs'])}" for row in mine
        ]
        row = {"run": mine[0]["label"], "seeds": len(mine), "epochs": "; ".join(dict.fromkeys(epochs))}
        row |= mean_scores(mine)
        rows.append({**row, "mean, last ten epochs": statistics.mean(map(last_mean, mine))})
    return rows


def full_recipe_rows(task: str, study: str) -> list[Row]:
    """Networks at full length with another recipe than their own, each after the published run with its own."""
    own, rows = (published_results(task) or {}).get("networks", {}), []
    for name, mine in itertools.groupby(read_rows(task, study), key=lambda row: row["network"]):
        recipe = RECIPES["ours" if name == models.OURS[task].__name__ else "reference"]
        first = [{"label": f"{name}, {recipe}", **own[name]}] if name in own else []
        for row in (*first, *mine):
            rows.append({"run": row["label"], "best epoch": row["best_epoch"], **mean_scores([row])})
    return rows


def ingredient_rows(task: str, study: str) -> list[Row]:
    """What each ingredient brings, means over the seeds, beside the whole recipe; nothing before that is there."""
    groups, rows = by_id(task, study), []
    whole = read_rows(task, "seeds") if study == "full_length" else groups.pop("all", [])
    for mine in [whole, *groups.values()] if whole else []:
        label = "the whole recipe" if mine is whole else mine[0]["label"]
        row = {"recipe": label, "seeds": len(mine), **mean_scores(mine)}
        difference, error = change(mine, whole)
        row["change"] = "" if mine is whole else f"{difference:+.4f}" + f" ± {error:.4f}" * (len(mine) > 1)
        maps = [each["examined"]["map"]["map"] for each in mine if "map" in each["examined"]]
        rows.append({**row, "mAP": statistics.mean(maps) if maps else None})
    return rows


def ranking_rows(task: str, study: str) -> list[Row]:
    """Detection: average precision of the boxes as they are, after non-maximum suppression, and with confidence that is
    not multiplied by the expected IoU; means over the seeds."""
    ways = {"map": "", "map_nms": ", non-maximum suppression", "map_unranked": ", ranked by confidence alone"}
    rows, groups = [], by_id(task, study)
    for mine in (groups[id] for id in ("all", "no_center_gate") if id in groups):
        for way, said in ways.items():
            values = [row["examined"][way] for row in mine]
            means = {name: statistics.mean(each[key] for each in values) for key, name in PRECISIONS.items()}
            rows.append({"boxes": mine[0]["label"] + said, **means})
    return rows


def recipe_rows(task: str, study: str) -> list[Row]:
    """Every network with either recipe, validation means over the seeds."""
    rows, groups = [], by_id(task, study)
    for network in dict.fromkeys(row["network"] for mine in groups.values() for row in mine):
        pair = [groups.get(f"{network}_{recipe}") for recipe in ("reference", "ours")]
        if all(pair):
            old, new = (mean_of(each, "mean") for each in pair)
            row = {"network": network, "seeds": len(pair[0]), "the reference's recipe": old, "ours": new}
            rows.append({**row, "difference": f"{new - old:+.4f}"})
    return rows


def reproduction_rows(task: str, study: str) -> list[Row]:
    """The reference's networks as published and trained here in its way, best validation means by its notebook's
    metric and over the last epochs; and by ours, unshuffled and shuffled."""
    shuffled, rows = (published_results(task) or {}).get("networks", {}), []
    for row in read_rows(task, study):
        published, curve = published_curves(row["network"])["val_mean"], row["curves"]["val_reference_mean"]
        line: Row = {"network": row["network"], "published": max(published), "here": max(curve)}
        line["published, last ten"] = statistics.mean(published[-LAST:])
        line["here, last ten"] = statistics.mean(curve[-LAST:])
        here = shuffled.get(row["network"])
        rows.append({**line, "our metric": row["val"]["mean"], "shuffled": here["val"]["mean"] if here else None})
    return rows


def longer_rows(task: str, study: str) -> list[Row]:
    """Training on: the best validation mean within so many epochs, and the mean over the last ten of them."""
    rows = []
    for row in read_rows(task, study):
        line: Row = {"network": row["network"]}
        for end in (60, row["epochs"]):
            line[f"best of {end} epochs"] = max(row["curves"]["val_mean"][:end])
            line[f"mean of epochs {end - LAST + 1} to {end}"] = last_mean(row, end=end)
        rows.append(line)
    return rows


def failure_rows(task: str, study: str) -> list[Row]:
    """FloNet2 in several ways: validation scores by our metric, and the mean by the reference's, the class read as 0
    or, of ten channels, as an argmax over the last five."""
    rows = []
    for row in read_rows(task, study):
        line = {"FloNet2": row["label"], "best epoch": row["best_epoch"], **mean_scores([row])}
        line["by the reference's metric"] = row["curves"]["val_reference_mean"][row["best_epoch"] - 1]
        rows.append({**line, "its class read over all channels": row["examined"].get("reference_mean_ten")})
    return rows


STUDY_ROWS: dict[str, Callable[[str, str], list[Row]]] = {
    "ingredients": ingredient_rows,
    "full_length": ingredient_rows,
    "ranking": ranking_rows,
    "recipe": full_recipe_rows,
    "recipes": recipe_rows,
    "reproduction": reproduction_rows,
    "longer": longer_rows,
    "failure": failure_rows,
}


def search_table(search: Row | None) -> str:
    """The recipe by hand, a search's first trial, and its best ones: validation mean and parameters, a column each."""
    if search is None:
        return "*Not part of the published run: `python scripts/search.py` makes it.*"
    by_hand, best = search["trials"][0], best_trials(search)
    trials = {"by hand": by_hand, **{f"no. {number}": trial for number, trial in enumerate(best, 1)}}
    rows = [{"": "validation mean", **{name: f"{trial['mean']:.4f}" for name, trial in trials.items()}}]
    rows += [{"": f"`{key}`", **{name: f"{trial['params'][key]:.3g}" for name, trial in trials.items()}}
             for key in by_hand["params"]]  # fmt: skip
    early = sum(trial["mean"] is None for trial in search["trials"])
    said = f"{len(search['trials'])} trials of {search['epochs']} epochs on {search['images']:,} training images"
    return f"*{said}, {early} of them ended early because they fell behind*\n\n{markdown_table(rows)}"
