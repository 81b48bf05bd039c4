"""The tables that notebooks, README and report show, in Markdown."""

from collections.abc import Sequence
from typing import Any

import models
from training.reference import published_curves
from training.results import BASELINES, PUBLISHED, loss_ends, published_results, published_studies
from training.runs import Run


def results_table(task: str, results: dict[str, Any], studies: dict[str, Any]) -> str:
    """A task's test scores beside the published ones, as a Markdown table; `results` as `Lab.save` writes, `studies` as
    `published_studies` gives."""
    name, networks, test = results["selected"], results["networks"], results["test"]
    whole = "pictures" if task == "loc" else "cells"
    names = ("accuracy", "iou", "mean", "map", "map50", "map75")

    def row(said: str, scores: dict[str, float], names: Sequence[str] = names) -> tuple[Any, ...]:
        return (said, *(scores.get(each, "") for each in names))

    chosen = networks[name]
    about = f"{chosen['best_epoch']} of {chosen['epochs']} epochs, {results['pictures']['train']:,} pictures"
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
            said = f"the reference's {other} here, {networks[other]['epochs']} epochs"
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


# ---------------------------------------------------------------------------------------------- studies


def study_table(task: str, name: str) -> str:
    """The table of a published study, see `training/study.py`, with its size; a note where it has not been made."""
    rows = published_studies(task).get("ingredients" if name == "ranking" else name)
    if not rows:
        return f"*This study has not been made yet: `python scripts/study.py {name} --task {task}`.*"
    said = f"*{rows[0]['pictures']:,} training pictures, {rows[0]['epochs']} epochs, scores on validation pictures*"
    if name == "reproduction":
        return f"{said}\n\n{reproduction_table(rows, published_results(task)['networks'])}"
    return f"{said}\n\n{STUDIES[name](rows)}"


def by_name(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of a study by their name, a row per seed, in the order in which the names come first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return groups


def mean_of(rows: Sequence[dict[str, Any]], name: str, part: str = "val") -> float:
    """The mean of a score over several rows."""
    return sum(row[part][name] for row in rows) / len(rows)


def spread(rows: Sequence[dict[str, Any]]) -> str:
    """The range of the validation means of several rows."""
    means = [row["val"]["mean"] for row in rows]
    return f"{min(means):.4f} to {max(means):.4f}" if len(means) > 1 else ""


def ingredients_table(rows: Sequence[dict[str, Any]]) -> str:
    """What each ingredient brings, as a Markdown table: scores on validation pictures, means over the seeds; the first
    of the rows is the whole recipe."""
    groups, lines = by_name(rows), []
    whole = mean_of(next(iter(groups.values())), "mean")
    for name, mine in groups.items():
        scores = [mean_of(mine, each) for each in ("accuracy", "digit_accuracy", "iou", "mean")]
        counts = [f"{mean_of(mine, each, 'examined'):.0f}" for each in ("missed", "false alarm")]
        line = (name, len(mine), *scores, spread(mine), f"{scores[-1] - whole:+.4f}" if lines else "", *counts)
        maps = [row["examined"]["map"]["map"] for row in mine if "map" in row["examined"]]
        lines.append(line + ((sum(maps) / len(maps),) if maps else ()))
    header = ("recipe", "seeds", "accuracy", "over digits", "IoU", "mean", "over the seeds", "change", "missed")
    header += ("false alarms", "mAP")
    return markdown_table(header[: len(lines[0])], lines)


def ranking_table(rows: Sequence[dict[str, Any]]) -> str:
    """Detection: the boxes that cells give, kept as they are, after non-maximum suppression, and ranked without the IoU
    that is expected, as a Markdown table: average precision on validation pictures, means over the seeds."""
    ways = {"map": "", "map, NMS": ", non-maximum suppression", "map, unranked": ", ranked by presence alone"}
    names, lines = ("map", "map50", "map75"), []
    groups = by_name(rows)
    for name in (next(iter(groups)), "presence wherever the centre lies"):
        for way, said in ways.items() if name in groups else ():
            values = [[row["examined"][way][each] for each in names] for row in groups[name]]
            lines.append((name + said, *(sum(column) / len(column) for column in zip(*values, strict=True))))
    return markdown_table(("boxes", "mAP@[.50:.95]", "mAP@.50", "mAP@.75"), lines)


def recipes_table(rows: Sequence[dict[str, Any]]) -> str:
    """Every network with either recipe, as a Markdown table of validation means: what the recipe brings along a row,
    what the network brings down a column."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        groups = by_name([row for row in rows if row["network"] == network])
        if len(groups) == 2:
            old, new = groups.values()
            means = mean_of(old, "mean"), mean_of(new, "mean")
            lines.append(
                (network, len(new), means[0], spread(old), means[1], spread(new), f"{means[1] - means[0]:+.4f}")
            )
    header = (
        "network",
        "seeds",
        "the reference's recipe",
        "over the seeds",
        "our recipe",
        "over the seeds",
        "difference",
    )
    return markdown_table(header, lines)


def reproduction_table(rows: Sequence[dict[str, Any]], shuffled: dict[str, Any]) -> str:
    """The reference's networks as published and as trained here, as a Markdown table of validation means. By the
    reference's own measure: published, and here; by ours: as it trained them, and with shuffled pictures.

    shuffled: what results.json holds of the task's networks.
    """
    lines = []
    for row in rows:
        curves, published = row["curves"], published_curves(row["network"])
        line = [row["network"]]
        for val, train in (
            (published["val_mean"], published["train_mean"]),
            (curves["val_reference_mean"], curves["train_reference_mean"]),
        ):
            best = max(val)
            line += [best, str(val.index(best) + 1), train[val.index(best)]]
        here = shuffled.get(row["network"])
        lines.append((*line, row["val"]["mean"], here["val"]["mean"] if here else ""))
    header = ("network", "published: best", "epoch", "training", "here: best", "epoch", "training")
    return markdown_table((*header, "our measure", "our measure, shuffled"), lines)


def longer_table(rows: Sequence[dict[str, Any]], marks: Sequence[int] = (60, 100, 200)) -> str:
    """Training on: the best validation mean within so many epochs, as a Markdown table."""
    lines = []
    for row in rows:
        means = row["curves"]["val_mean"]
        best = [max(means[:mark]) if mark <= len(means) else "" for mark in marks]
        lines.append((row["network"], *best, f"{means.index(max(means)) + 1} of {len(means)}"))
    return markdown_table(("network", *(f"best within {mark} epochs" for mark in marks), "best epoch"), lines)


def failure_table(rows: Sequence[dict[str, Any]]) -> str:
    """FloNet2 in several ways, as a Markdown table of validation scores."""
    lines = [
        (
            row["name"],
            row["epochs"],
            str(row["best_epoch"]),
            *(row["val"][each] for each in ("accuracy", "iou", "mean")),
        )
        for row in rows
    ]
    return markdown_table(("FloNet2", "epochs", "best epoch", "accuracy", "IoU", "mean"), lines)


STUDIES = {
    "ingredients": ingredients_table,
    "ranking": ranking_table,
    "recipes": recipes_table,
    "longer": longer_table,
    "failure": failure_table,
}


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
    device = results["networks"][results["selected"]]["trained_on"]["device"]
    said = f"Profile `{results['profile']}` on {source[results['source']]}, {device}."
    if results["profile"] != "full":
        said += (
            " **This is not the full run** of 60 epochs over all pictures, with which the published figures compare."
        )
    return f"{results_table(task, results, studies)}\n\n{said}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown: texts to the left, numbers to the right, fractions with four decimals."""

    def cell(value: Any) -> str:
        return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    sides = ["---:" if rows and isinstance(value, (int, float)) else "---" for value in (rows[0] if rows else header)]
    lines = [header, sides, *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
