"""The tables of published studies, see `training/study.py`, in Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from training.reference import published_curves
from training.results import best_trials, published_results, published_studies
from training.study import PLANS, RECIPES, Trial, row_identity
from training.tables import device_of, ending, markdown_table


def study_table(task: str, name: str) -> str:
    """The table of a published study, see `training/study.py`, with its size, and what of it has not been made."""
    kept = "ingredients" if name == "ranking" else name
    studies = published_studies(task)
    made = rows = studies.get(kept, [])
    if made and name == "full_length":
        whole = [{**row, "name": "the whole recipe"} for row in studies.get("seeds", [])]
        rows = [*whole, *made] if whole else []
    lines = []
    if rows:
        epochs = " or ".join(dict.fromkeys(str(row["settings"]["epochs"]) for row in rows))
        said = f"{rows[0]['pictures']:,} training pictures, {epochs} epochs, scores on validation pictures"
        places = dict.fromkeys(part for row in rows for part in device_of(row).split(", then "))
        lines.append(f"*{said}; trained on {' and '.join(places)}*")
        if name == "reproduction":
            lines.append(reproduction_table(rows, published_results(task)["networks"]))
        else:
            lines.append(STUDIES[name](rows))
    if left := lacking(task, kept, made):
        published = published_results(task)["networks"]
        hours = sum(hours_of(trial, published_results(task)) for trial in left)
        takes = f"{hours:.0f} h" if hours >= 1 else f"{60 * hours:.0f} minutes"
        devices = ", ".join(dict.fromkeys(device_of(published[like(trial, published)]) for trial in left))
        command = f"`python scripts/study.py {kept} --task {task}`"
        what = f": {what_of(left, made)}" if made else ""
        lines.append(f"*Not part of the published run{what}. {command} makes it in about {takes} ({devices}).*")
    return "\n\n".join(lines)


def lacking(task: str, name: str, rows: Sequence[dict[str, Any]]) -> list[Trial]:
    """The trials of a study, each with those of its seeds of which there is no row with its settings."""
    made = [row_identity(**row) for row in rows]

    def is_lacking(trial: Trial, seed: int) -> bool:
        settings = asdict(replace(trial.settings, seed=seed))
        return row_identity(trial.name, trial.network.__name__, settings) not in made

    trials = PLANS[name](task)
    left = [trial._replace(seeds=tuple(each for each in trial.seeds if is_lacking(trial, each))) for trial in trials]
    return [trial for trial in left if trial.seeds]


def what_of(left: Sequence[Trial], rows: Sequence[dict[str, Any]]) -> str:
    """What is lacking of a study that has begun: its trials, and of those with a run how many further seeds."""
    begun, names = {(row["name"], row["network"]) for row in rows}, []
    for trial in left:
        network, seeds = trial.network.__name__, len(trial.seeds)
        more = f" from {seeds} further seed{'s' * (seeds > 1)}" if (trial.name, network) in begun else ""
        names.append((network if trial.name in RECIPES else f"“{trial.name}”") + more)
    return ", ".join(dict.fromkeys(names))


def hours_of(trial: Trial, results: dict[str, Any]) -> float:
    """How long a trial would take at the pace at which the published run trained its network. Validation, forward only,
    counts a picture half."""
    run, val = results["networks"][like(trial, results["networks"])], results["pictures"]["val"] / 2
    pace = run["seconds"] / run["epochs"] / (run["pictures"] + val)
    pictures = trial.pictures or results["pictures"]["train"]
    return len(trial.seeds) * trial.settings.epochs * (pictures + val) * pace / 3600


def like(trial: Trial, networks: dict[str, Any]) -> str:
    """The network, of those that were published, that a trial's network is or is derived from."""
    return next(each.__name__ for each in trial.network.__mro__ if each.__name__ in networks)


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


def filled_table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table without the columns in which there is nothing."""
    kept = [number for number in range(len(header)) if any(line[number] != "" for line in lines)]
    header, *lines = ([line[number] for number in kept] for line in (header, *lines))
    return markdown_table(header, lines)


def ingredients_table(rows: Sequence[dict[str, Any]]) -> str:
    """What each ingredient brings, as a Markdown table: scores on validation pictures, means over the seeds; the first
    of the rows is the whole recipe."""
    groups, lines = by_name(rows), []
    whole = mean_of(next(iter(groups.values())), "mean")
    for name, mine in groups.items():
        scores = [mean_of(mine, each) for each in ("accuracy", "digit_accuracy", "iou", "mean")]
        counts = [f"{mean_of(mine, each, 'examined'):.0f}" for each in ("missed", "false alarm")]
        line = (name, len(mine), *scores, spread(mine), f"{scores[-1] - whole:+z.4f}" if lines else "", *counts)
        maps = [row["examined"]["map"]["map"] for row in mine if "map" in row["examined"]]
        lines.append(line + ((sum(maps) / len(maps),) if maps else ()))
    header = ("recipe", "seeds", "accuracy", "over digits", "IoU", "mean", "over the seeds", "change", "missed")
    header += ("false alarms", "mAP")
    return filled_table(header[: len(lines[0])], lines)


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
    return filled_table(header, lines)


def reproduction_table(rows: Sequence[dict[str, Any]], shuffled: dict[str, Any]) -> str:
    """The reference's networks as published and as trained here, as a Markdown table of validation means. By the
    reference's own measure: published, and here; by ours: as it trained them, and with shuffled pictures.

    shuffled: what results.json holds of the task's networks.
    """
    lines = []
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
    return markdown_table((*header, "our measure", "our measure, shuffled"), lines)


def longer_table(rows: Sequence[dict[str, Any]], marks: Sequence[int] = (60, 100)) -> str:
    """Training on: the best validation mean within so many epochs, as a Markdown table."""
    lines = []
    for row in rows:
        means = row["curves"]["val_mean"]
        best = [max(means[:mark]) if mark <= len(means) else "" for mark in marks]
        lines.append((row["network"], *best, f"{means.index(max(means)) + 1} of {len(means)}{ending(row)}"))
    return filled_table(("network", *(f"best within {mark} epochs" for mark in marks), "best epoch"), lines)


def failure_table(rows: Sequence[dict[str, Any]]) -> str:
    """FloNet2 in several ways, as a Markdown table of validation scores: by our measure, and by the reference's, the
    class read as 0 or, where there are ten channels, as an argmax over the last five."""
    lines = []
    for row in rows:
        scores = [row["val"][each] for each in ("accuracy", "iou", "mean")]
        scores.append(row["curves"]["val_reference_mean"][row["best_epoch"] - 1])
        ten = row["examined"].get("reference mean, ten channels", "")
        lines.append((row["name"], row["epochs"], str(row["best_epoch"]), *scores, ten))
    header = ("FloNet2", "epochs", "best epoch", "accuracy", "IoU", "mean", "by the reference's measure")
    return filled_table((*header, "its class read over all channels"), lines)


def search_table(found: dict[str, Any]) -> str:
    """The recipe set by hand and the best that a search found, as a Markdown table: validation mean and parameters, a
    column each. `found` as search.json holds it, its first trial the one by hand."""
    by_hand, best = found["trials"][0], best_trials(found)

    def column(trial: dict[str, Any]) -> list[str]:
        values = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial["params"].values())
        return ["ended early" if trial["mean"] is None else f"{trial['mean']:.4f}", *values]

    names = ["validation mean", *(name.replace("_", " ") for name in by_hand["params"])]
    columns = map(column, (by_hand, *best.values()))
    table = markdown_table(("", "by hand", *best), list(zip(names, *columns, strict=True)))
    early = sum(trial["mean"] is None for trial in found["trials"])
    return (
        f"*{len(found['trials'])} trials of {found['epochs']} epochs on {found['pictures']:,} training pictures, "
        f"{early} of them ended early because they fell behind*\n\n{table}"
    )


STUDIES = {
    "ingredients": ingredients_table,
    "full_length": ingredients_table,
    "ranking": ranking_table,
    "recipes": recipes_table,
    "longer": longer_table,
    "failure": failure_table,
}
