"""Studies: what is to be known of networks and recipes beyond one run of each. They take hours, so `scripts/study.py`
makes them, and the notebooks read what it wrote to figures/studies.json: rows, named by study, id and seed."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

import models
import utils
from data import Splits, files
from training import analysis
from training.progress import Progress
from training.results import best_trials, published_search, summarize
from training.runs import Run, fit
from training.settings import OWN, REFERENCE, Settings

STUDIES = Path("figures") / "studies.json"
SEEDS = (42, 43, 44)
# Of comparisons of which every row is trained from all seeds: few images, seen often enough to be memorised.
N_TRAIN, EPOCHS = 6_000, 20
LONGER = 100  # epochs of SkreNet and FloNet, to see which one is ahead, as the reference's authors ask
SLOW = (models.SkreNet, models.FloNet2)  # from one seed only
DECISIVE = ("sgd", "constant_rate", "no_edge_loss")
AHEAD = (("det", "search_1"),)  # what came out ahead at full length, which further seeds are to confirm
RECIPES = {"ours": "our recipe", "reference": "the reference's recipe", "searched": "the search's best"}
SEARCHED = {"loc": models.FloNet, "det": models.SkreNet2}  # whose own recipe is searched, see `training/search.py`
NMS_IOU = 0.5
CURVES = ("train_mean", "val_mean", "train_loss", "val_loss", "train_reference_mean", "val_reference_mean")
CURVES += ("val_reference_mean_strict", "val_reference_mean_empty", "train_iou", "val_iou", "train_loss_class")


class Trial(NamedTuple):
    """The rows of a study that differ by their seed alone."""

    id: str
    label: str  # in tables
    network: type[nn.Module]
    settings: Settings
    seeds: tuple[int, ...] = (REFERENCE.seed,)
    n_train: int | None = None  # the first so many training images; None for all
    precision: str | None = None  # None for what suits the device


# ---------------------------------------------------------------------------------------------- what is trained


def plan_reproduction(task: str) -> list[Trial]:
    """The reference's networks as the reference trained them, its images unshuffled."""
    recipe = replace(REFERENCE, shuffle=False)
    return [_named(network, recipe)._replace(precision="float32") for network in models.REFERENCE[task]]


def plan_box_weight(task: str) -> list[Trial]:
    """Whether boxes are learnt late because squared errors are small. Localization: their loss times 1 and 10, at the
    reference's rate and, since that is too much for ten times the gradient, at a fifth of it. Detection: their loss
    times 0.15, about what it would be in units of the image, where errors of x are a third and of y half as large."""
    trials = []
    for network, ways, seeds in {
        "loc": (
            (models.FloNet, ((1, 0.05), (1, 0.01), (10, 0.01), (10, 0.05)), SEEDS[:2]),
            (models.SkreNet, ((1, 0.05), (1, 0.01), (10, 0.01)), SEEDS[:1]),
        ),
        "det": ((models.SkreNet2, ((1, 0.05), (0.15, 0.05)), SEEDS[:1]),),
    }[task]:
        for weight, rate in ways:
            recipe = replace(REFERENCE, box_weight=float(weight), learning_rate=rate)
            name = f"{network.__name__}_{weight}_{rate}", f"{network.__name__}, box loss ×{weight}, rate {rate}"
            trials.append(Trial(*name, network, recipe, seeds))
    return trials


def plan_learning_rate(task: str) -> list[Trial]:
    """Localization: what makes SimpleNet diverge: the rate, the order of the images, bfloat16, or chance."""
    trials = []
    for rate, order, precision, seeds in (
        (0.05, "shuffled", "float32", SEEDS), (0.05, "unshuffled", "float32", SEEDS),
        (0.05, "shuffled", "bfloat16", SEEDS), (0.02, "shuffled", "float32", SEEDS[:1]),
        (0.01, "shuffled", "float32", SEEDS[:1]),
    ):  # fmt: skip
        recipe = replace(REFERENCE, learning_rate=rate, shuffle=order == "shuffled")
        name = f"{rate}_{order}_{precision}", f"{rate}, {order}, {precision}"
        trials.append(Trial(*name, models.SimpleNet, recipe, seeds, precision=precision))
    return trials if task == "loc" else []


def plan_recipe(task: str) -> list[Trial]:
    """At full length: every network of the reference with our recipe, one with the best that a search found for it,
    and ours with the reference's."""

    def trial(network: type[nn.Module], id: str, settings: Settings) -> Trial:
        return Trial(f"{network.__name__}_{id}", f"{network.__name__}, {RECIPES[id]}", network, settings)

    trials = []
    for network in models.REFERENCE[task]:
        trials.append(trial(network, "ours", OWN))
        if network is SEARCHED[task]:
            best = best_trials(published_search(task, "reference_search"))[:1]
            trials += [trial(network, "searched", replace(REFERENCE, **each["params"])) for each in best]
    return [*trials, trial(models.OURS[task], "reference", REFERENCE)]


def plan_longer(task: str) -> list[Trial]:
    """Localization: SkreNet and FloNet trained on beyond 60 epochs."""
    networks = (models.SkreNet, models.FloNet) if task == "loc" else ()
    return [_named(network, replace(REFERENCE, epochs=LONGER)) for network in networks]


def plan_seeds(task: str) -> list[Trial]:
    """Our network with its recipe, from several seeds."""
    return [_named(models.OURS[task], OWN)._replace(seeds=SEEDS)]


def plan_ingredients(task: str) -> list[Trial]:
    """Our network and recipe, and the same with one ingredient left out or replaced."""
    recipe = replace(OWN, epochs=EPOCHS)
    sgd = {name: getattr(REFERENCE, name) for name in ("optimizer", "learning_rate", "weight_decay")}
    without = {
        "all": ("the whole recipe", {}),
        "sgd": ("SGD, as the reference's, for AdamW", sgd),
        "no_weight_decay": ("no weight decay", {"weight_decay": 0.0}),
        "constant_rate": ("a constant learning rate", {"one_cycle": False}),
        "squared_error": ("squared errors for L1 and GIoU", {"box_loss": "mse"}),
        "no_edge_loss": ("no cross-entropy of edges", {"edge_weight": 0.0}),
        "no_shift": ("no shifted images", {"max_shift": 0}),
        "no_stretch": ("no stretched images", {"max_stretch": 0.0}),
        "no_smoothing": ("no smoothed class labels", {"label_smoothing": 0.0}),
        "half_width": (f"{OWN.width // 2} channels for {OWN.width}", {"width": OWN.width // 2}),
        "less_depth": (f"{OWN.depth - 1} convolutions at each size for {OWN.depth}", {"depth": OWN.depth - 1}),
    }
    if task == "det":
        without["no_center_gate"] = ("confidence wherever the centre lies", {"center_gate": False})
    network = models.OURS[task]
    return [
        Trial(id, label, network, replace(recipe, **fields), SEEDS, N_TRAIN) for id, (label, fields) in without.items()
    ]


def plan_full_length(task: str) -> list[Trial]:
    """At full length: what brings most, left out once more, wider shifts, and the best trials of the search."""
    trials = [trial for trial in plan_ingredients(task) if trial.id in DECISIVE]
    trials = [each._replace(settings=replace(each.settings, epochs=OWN.epochs), n_train=None) for each in trials]
    if task == "loc":  # whose errors are in naming digits: more places to see each in
        label = f"shifts of up to 16 pixels for {OWN.max_shift}"
        trials.append(Trial("shift_16", label, models.CompactNet, replace(OWN, max_shift=16)))
    for number, trial in enumerate(best_trials(published_search(task)), 1):
        id, settings = f"search_{number}", replace(OWN, **trial["params"])
        seeds = SEEDS if (task, id) in AHEAD else SEEDS[:1]
        trials.append(Trial(id, f"no. {number} of the search", models.OURS[task], settings, seeds))
    return trials


def plan_recipes(task: str) -> list[Trial]:
    """In short: every network with either recipe, what the network brings, and what the recipe."""
    return [
        Trial(f"{network.__name__}_{id}", network.__name__, network, replace(recipe, epochs=EPOCHS),
              SEEDS[:1] if network in SLOW else SEEDS, N_TRAIN)
        for network in models.NETWORKS[task]
        for id, recipe in (("reference", REFERENCE), ("ours", OWN))
    ]  # fmt: skip


def plan_failure(task: str) -> list[Trial]:
    """Detection: why the reference's FloNet2 failed. Each thing that it was blamed on by itself."""
    recipe = replace(REFERENCE, epochs=20)  # in which it has failed or not
    trials = [
        Trial("six_shuffled", "six channels, shuffled", models.FloNet2, recipe),
        Trial("ten_shuffled", "ten channels, shuffled", models.TenChannels, recipe),
        Trial("ten_unshuffled", "ten channels, unshuffled", models.TenChannels, replace(recipe, shuffle=False)),
    ]
    return trials if task == "det" else []


def _named(network: type[nn.Module], settings: Settings) -> Trial:
    return Trial(network.__name__, network.__name__, network, settings)


PLANS = {name.removeprefix("plan_"): plan for name, plan in globals().items() if name.startswith("plan_")}


# ---------------------------------------------------------------------------------------------- what is kept of it


def trials(task: str, study: str) -> list[tuple[Trial, int]]:
    """What is planned: every trial with each of its seeds."""
    return [(trial, seed) for trial in PLANS[study](task) for seed in trial.seeds]


def read_rows(task: str, study: str) -> list[dict[str, Any]]:
    """The rows of a study that have been made, in the plan's order, each with its label; only those that are still the
    plan's: of its network, settings and part of the images."""
    made, rows = files.load_json(STUDIES).get(task, {}).get(study, []), []
    for trial, seed in trials(task, study):
        planned = {"id": trial.id, "seed": seed, "network": trial.network.__name__}
        planned["settings"] = asdict(replace(trial.settings, seed=seed))
        if trial.n_train:
            planned["n_train"] = trial.n_train
        rows += [{**row, "label": trial.label} for row in made if planned.items() <= row.items()]
    return rows


def missing(task: str, study: str) -> list[tuple[Trial, int]]:
    """The trials and seeds of a study of which there is no row, or one of another precision than the plan asks for."""
    made = [(row["id"], row["seed"], row["trained_on"]["precision"]) for row in read_rows(task, study)]
    made += [(id, seed, None) for id, seed, _ in made]  # where any will do
    return [(trial, seed) for trial, seed in trials(task, study) if (trial.id, seed, trial.precision) not in made]


def write_row(task: str, study: str, row: dict[str, Any]) -> None:
    """Put a row into studies.json, in the place of the one with its id and seed."""
    with files.lock(STUDIES, 60):  # others may be writing
        studies = files.load_json(STUDIES)
        rows = studies.setdefault(task, {}).get(study, [])
        others = [each for each in rows if (each["id"], each["seed"]) != (row["id"], row["seed"])]
        studies[task][study] = [*others, row]
        files.save_json(STUDIES, studies)


def conduct(trial: Trial, seed: int, splits: Splits) -> dict[str, Any]:
    """Train, continue or load a trial with one of its seeds. Returns its row."""
    settings = replace(trial.settings, seed=seed)
    with Progress(trial.label, settings, trial.n_train or len(splits.train)) as progress:
        run = fit(trial.network, splits, settings, progress.hooks, n_train=trial.n_train, precision=trial.precision)
    curves = {name: [round(value, 5) for value in run.history[name]] for name in CURVES}
    about = {"id": trial.id, "seed": seed, "network": run.name, **summarize(run)}
    return {**about, "examined": examine(run, splits), "curves": curves}


def examine(run: Run, splits: Splits) -> dict[str, Any]:
    """What histories do not tell of a run's best epoch, on validation images: missed digits and false positives; in
    detection mean average precision, with non-maximum suppression, and of a `GridNetwork` without multiplying
    confidence by the expected IoU."""
    model, val = run.load(), splits.val
    outputs = utils.infer(model, val.images).cpu()
    kinds = analysis.failures(utils.match(outputs, val.labels))
    examined: dict[str, Any] = {kind.replace(" ", "_"): int(kinds[kind].sum()) for kind in ("missed", "false positive")}
    if run.task == "det":
        examined["map"] = utils.mean_average_precision(outputs, val.labels)
        examined["map_nms"] = utils.mean_average_precision(outputs, val.labels, nms_iou=NMS_IOU)
        if isinstance(model[1], models.GridNetwork):
            model[1].iou_quality = False
            unranked = utils.infer(model, val.images).cpu()
            examined["map_unranked"] = utils.mean_average_precision(unranked, val.labels)
    return examined
