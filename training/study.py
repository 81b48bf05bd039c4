"""What is to be known of networks and recipes beyond one run of each: comparisons of runs, each resumable.

They take hours, so Run all does not make them. `scripts/study.py` does, and the notebooks read what it wrote.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

import models
import utils
from data import Splits
from training.boxes import PostProcess
from training.progress import Progress
from training.reference import reference_mean
from training.results import best_trials, published_search, summarize
from training.runs import Run, fit
from training.settings import OWN, REFERENCE, Settings

SEEDS = (42, 43, 44)
# Of comparisons of which every row is trained from all seeds: few pictures, seen often enough to be learnt by heart.
PICTURES, EPOCHS = 6_000, 20
LONGER = 100  # epochs of FloNet, to see whether it overtakes SkreNet, as the reference's authors ask
SLOW = (models.SkreNet, models.FloNet2)  # from one seed only
ALONE = 20  # epochs of FloNet2, in which it has failed or not
DECISIVE = ("SGD, as the reference's, for AdamW", "a constant learning rate", "no cross-entropy of edges")
AHEAD = (("det", "no. 1 of the search"),)  # what came out ahead at full length, which further seeds are to confirm
RECIPES = {"the reference's recipe": REFERENCE, "ours": OWN}
NMS_IOU = 0.5
CURVES = ("train_mean", "val_mean", "train_reference_mean", "val_reference_mean", "train_loss", "val_loss")


class Trial(NamedTuple):
    """A row of a study."""

    name: str
    network: type[nn.Module]
    settings: Settings
    seeds: tuple[int, ...] = (REFERENCE.seed,)
    pictures: int | None = None  # the first so many training pictures; None for all


class Unclaimed(models.CompactNet2):
    """CompactNet2 whose cells do not ask whether the digit they see has its centre in them."""

    claims = False


class TenChannels(models.FloNet2):
    """FloNet2 with ten channels in its last layer, as the reference built it. Only the first six are read."""

    def __init__(self):
        super().__init__()
        self.layers[-1] = nn.Conv2d(15, 10, 4, padding=1)  # 3x4 -> 2x3

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return super().forward(pictures)[:, :6]


# ---------------------------------------------------------------------------------------------- what is trained


def plan_reproduction(task: str) -> list[Trial]:
    """The reference's networks as the reference trained them, its pictures unshuffled."""
    return [Trial(network.__name__, network, replace(REFERENCE, shuffle=False)) for network in _reference(task)]


def plan_longer(task: str) -> list[Trial]:
    """Localization: FloNet, shuffled, trained on beyond 60 epochs."""
    trial = Trial("FloNet", models.FloNet, replace(REFERENCE, epochs=LONGER))
    return [trial] if trial.network in _reference(task) else []


def plan_seeds(task: str) -> list[Trial]:
    """Our network with its recipe, from several seeds."""
    network = models.NETWORKS[task][-1]
    return [Trial(network.__name__, network, OWN, SEEDS)]


def plan_ingredients(task: str) -> list[Trial]:
    """Our network and recipe, and the same with one ingredient left out or replaced."""
    network, recipe = models.NETWORKS[task][-1], replace(OWN, epochs=EPOCHS)
    narrow, shallow = (
        type(network.__name__ + name, (network,), {name.lower(): value, "__module__": __name__})
        for name, value in (("Width", network.width // 2), ("Depth", network.depth - 1))
    )
    without = {
        "SGD, as the reference's, for AdamW": {
            name: getattr(REFERENCE, name) for name in ("optimizer", "learning_rate", "weight_decay")
        },
        "no weight decay": {"weight_decay": 0.0},
        "a constant learning rate": {"one_cycle": False},
        "squared errors for L1 and GIoU": {"box_loss": "mse"},
        "no cross-entropy of edges": {"edge_weight": 0.0},
        "no shifted pictures": {"max_shift": 0},
        "no stretched pictures": {"max_stretch": 0.0},
        "no smoothed class labels": {"label_smoothing": 0.0},
    }
    trials = [("the whole recipe", network, {}), *((name, network, fields) for name, fields in without.items())]
    trials += [(f"{narrow.width} channels for {network.width}", narrow, {})]
    trials += [(f"{shallow.depth} convolutions at each size for {network.depth}", shallow, {})]
    if network is models.CompactNet2:
        trials.append(("presence wherever the centre lies", Unclaimed, {}))
    return [Trial(name, each, replace(recipe, **fields), SEEDS, PICTURES) for name, each, fields in trials]


def plan_full_length(task: str) -> list[Trial]:
    """The ingredients that bring most, left out once more, and the best trials of the search: with all pictures and
    epochs."""
    network = models.NETWORKS[task][-1]
    trials = [trial for trial in plan_ingredients(task) if trial.name in DECISIVE]
    trials = [each._replace(settings=replace(each.settings, epochs=OWN.epochs), pictures=None) for each in trials]
    for name, found in best_trials(published_search(task)).items():
        each = build_trial(network, OWN, found["params"])
        trials.append(Trial(name, *each, SEEDS if (task, name) in AHEAD else SEEDS[:1]))
    return trials


def build_trial(network: type[nn.Module], own: Settings, params: dict[str, Any]) -> tuple[type[nn.Module], Settings]:
    """The network of a trial of the search, a `GridNetwork` of another width and depth, and its settings. Without
    Optuna, which the notebooks do not need."""
    recipe = dict(params)
    size = {name: recipe.pop(name) for name in ("width", "depth")}
    return type(f"{network.__name__}x{size['width']}x{size['depth']}", (network,), size), replace(own, **recipe)


def plan_recipes(task: str) -> list[Trial]:
    """Every network with either recipe: what the network brings, and what the recipe."""
    networks = models.NETWORKS[task]
    return [
        Trial(name, network, replace(recipe, epochs=EPOCHS), SEEDS[:1] if network in SLOW else SEEDS, PICTURES)
        for network in networks
        for name, recipe in RECIPES.items()
    ]


def plan_failure(task: str) -> list[Trial]:
    """Detection: why the reference's FloNet2 failed. Each thing that it was blamed on by itself."""
    if task == "loc":
        return []
    recipe = replace(REFERENCE, epochs=ALONE)
    return [
        Trial("six channels, shuffled", models.FloNet2, recipe),
        Trial("ten channels, shuffled", TenChannels, recipe),
        Trial("ten channels, unshuffled", TenChannels, replace(recipe, shuffle=False)),
    ]


def _reference(task: str) -> Sequence[type[nn.Module]]:
    return models.NETWORKS[task][:-1]


PLANS = {
    "ingredients": plan_ingredients,
    "seeds": plan_seeds,  # the whole recipe's rows in the table of "full_length"
    "full_length": plan_full_length,
    "recipes": plan_recipes,
    "reproduction": plan_reproduction,
    "longer": plan_longer,
    "failure": plan_failure,
}

# ---------------------------------------------------------------------------------------------- what is kept of it


def row_identity(name: str, network: str, settings: dict[str, Any], **rest: Any) -> tuple:
    """What makes a row of studies.json the one that it is, of all that it holds. Not the precision, which the device
    chooses: where another would, the row is not lacking."""
    return name, network, {key: value for key, value in settings.items() if key != "precision"}


def conduct(trial: Trial, seed: int, splits: Splits, normal: utils.Normalizer) -> dict[str, Any]:
    """Train, continue or load a trial with one of its seeds. Returns what studies.json keeps of it."""
    settings = replace(trial.settings, seed=seed)
    part = replace(splits, train=splits.train[: trial.pictures])
    with Progress(trial.name, settings, len(part.train)) as progress:
        run = fit(trial.network, part, normal, settings, progress.hooks)
    curves = {name: [round(value, 5) for value in run.history[name]] for name in CURVES}
    about = {"name": trial.name, "network": run.name, **summarize(run)}
    return {**about, "examined": examine(run, splits, normal), "curves": curves}


def examine(run: Run, splits: Splits, normal: utils.Normalizer) -> dict[str, Any]:
    """What histories do not tell of a run's best epoch, on validation pictures: missed digits and false alarms; the
    mean accuracy without snapping, where edges are snapped; in detection mean average precision, with non-maximum
    suppression, and of a `GridNetwork` without lowering presence by the IoU that is expected; of `TenChannels` the mean
    accuracy by the reference's measure, the class read over all of them."""
    model, val = run.load(), splits.val
    outputs = utils.infer(model, val.pictures, normal).cpu()
    matches = utils.match(outputs, val.labels)
    found: dict[str, Any] = {name: int(utils.failures(matches)[name].sum()) for name in ("missed", "false alarm")}
    if isinstance(model, PostProcess):
        model = model.network
        found["unsnapped mean"] = utils.evaluate(model, val, normal)["mean"]
    if isinstance(model, TenChannels):
        found["reference mean, ten channels"] = read_ten(utils.infer(model.layers, val.pictures, normal), val.labels)
    if run.task == "det":
        found["map"] = utils.mean_average_precision(outputs, val.labels).scores
        found["map, NMS"] = utils.mean_average_precision(outputs, val.labels, nms_iou=NMS_IOU).scores
        if isinstance(model, models.GridNetwork):
            model.ranks = False
            unranked = PostProcess.finish(utils.infer(model, val.pictures, normal).cpu())
            found["map, unranked"] = utils.mean_average_precision(unranked, val.labels).scores
    return found


def read_ten(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean accuracy by the reference's measure, see `reference_mean`, where outputs (N, 10, 2, 3) have ten channels
    and the class is an argmax over the last five, as the reference read it, instead of always 0."""
    cells, truth = outputs.movedim(1, -1).reshape(-1, 10), labels.to(outputs).reshape(-1, 6)
    hit, named = (truth[:, 0] > 0) & (cells[:, 0] > 0), cells[:, 5:].argmax(1)
    always_0, here = ((hit & (truth[:, 5] == read)).double().mean() for read in (0, named))
    return reference_mean(outputs[:, :6], labels.to(outputs)) + float(here - always_0) / 2
