"""Which change brings what, and what else is to be known of the networks: comparisons of runs, each resumable."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

import models
import utils
from data import Splits
from training.progress import Progress
from training.results import summarize
from training.runs import fit
from training.settings import OWN, REFERENCE, Profile, Settings
from training.weights import drop_weights


class Trial(NamedTuple):
    """A row of a comparison of recipes."""

    name: str
    network: type[nn.Module]
    settings: Settings
    seeds: tuple[int, ...]


def plan_ablation(start: type[nn.Module], own: type[nn.Module], task: str, profile: Profile) -> list[Trial]:
    """From a network with the reference's recipe to this project's, one change at a time."""
    study, network, settings = profile.study, start, replace(REFERENCE, epochs=profile.study.epochs)
    trials = [Trial(f"{start.__name__}, the reference's recipe", network, settings, study.seeds[:1])]
    for name, fields in (
        ("+ AdamW, one cycle of the learning rate", ("optimizer", "learning_rate", "weight_decay", "one_cycle")),
        ("+ boxes bounded by a sigmoid", ("bounded_boxes",)),
        ("+ L1 and GIoU for squared errors", ("box_loss",)),
        (f"+ {own.__name__} for {start.__name__}", ()),
        ("+ edges snapped to whole pixels", ("snap_to_pixels",)),
        ("+ pictures shifted anew in every epoch", ("max_shift",)),
    ):
        network = own if not fields else network
        settings = replace(settings, **{field: getattr(profile.own, field) for field in fields})
        trials.append(Trial(name, network, settings, study.seeds if network is own else study.seeds[:1]))
    return trials


def plan_comparison(networks: Sequence[type[nn.Module]], profile: Profile) -> list[Trial]:
    """Every network with either recipe."""
    study = profile.study
    return [
        Trial(name, network, replace(settings, epochs=study.epochs), study.seeds[:1])
        for network in networks
        for name, settings in (("reference", REFERENCE), ("new", profile.own))
    ]


def try_out(
    trials: Sequence[Trial], splits: Splits, normal: utils.Normalizer, profile: Profile
) -> list[dict[str, Any]]:
    """Train each trial with each of its seeds on the study's pictures, and score it on validation pictures.

    Returns a dict per trial: name, network, pictures, epochs, and seeds, a list of validation scores in the best epoch.
    """
    rows = []
    for trial in trials:
        count = min(profile.study.pictures, profile.caps.get(trial.network.__name__, len(splits.train)))
        part = replace(splits, train=splits.train[:count], val=splits.val[: profile.study.pictures])
        scores = []
        for seed in trial.seeds:
            settings = replace(trial.settings, seed=seed)
            with Progress(trial.network.__name__, settings, len(part.train), quiet=True) as progress:
                run = fit(trial.network, part, normal, settings, progress.hooks)
            if run.status != "loaded":
                drop_weights(run.weights)
            scores.append(run.val)
        row = {"name": trial.name, "network": trial.network.__name__, "pictures": len(part.train)}
        rows.append({**row, "epochs": trial.settings.epochs, "seeds": scores})
    return rows


def compare_recipes(
    networks: Sequence[type[nn.Module]], splits: Splits, normal: utils.Normalizer, profile: Profile
) -> dict[str, list[dict[str, Any]]] | None:
    """The ablation from the first network to the last, and all of them with either recipe, in rows as `try_out` gives
    them; None where the profile has no study."""
    if profile.study is None:
        return None
    plans = {
        "ablation": plan_ablation(networks[0], networks[-1], splits.task, profile),
        "comparison": plan_comparison(networks, profile),
    }
    return {name: try_out(trials, splits, normal, profile) for name, trials in plans.items()}


# ---------------------------------------------------------------------------------------------- studies of full length

LONGER = {"SkreNet": 100, "FloNet": 200, "SimpleNet": 200, "SkreNet2": 200, "SimpleNet2": 200}  # epochs
CURVES = ("train_mean", "val_mean", "train_reference_mean", "val_reference_mean", "train_loss", "val_loss")


def plan_reproduction(task: str) -> list[Trial]:
    """The reference's networks as the reference trained them, its pictures unshuffled."""
    return [Trial(network.__name__, network, replace(REFERENCE, shuffle=False), (42,)) for network in _reference(task)]


def plan_longer(task: str) -> list[Trial]:
    """The reference's networks, shuffled, trained on beyond 60 epochs."""
    return [
        Trial(network.__name__, network, replace(REFERENCE, epochs=LONGER[network.__name__]), (42,))
        for network in _reference(task)
        if network.__name__ in LONGER
    ]


def plan_seeds(task: str) -> list[Trial]:
    """Our network with its recipe, from three seeds."""
    network = models.NETWORKS[task][-1]
    return [Trial(network.__name__, network, OWN, (42, 43, 44))]


def _reference(task: str) -> Sequence[type[nn.Module]]:
    return models.NETWORKS[task][:-1]


PLANS = {"reproduction": plan_reproduction, "seeds": plan_seeds, "longer": plan_longer}


def conduct(trials: Sequence[Trial], splits: Splits, normal: utils.Normalizer) -> list[dict[str, Any]]:
    """Train, continue or load each trial with each of its seeds, on all training pictures; a row per run."""
    rows = []
    for trial in trials:
        for seed in trial.seeds:
            settings = replace(trial.settings, seed=seed)
            with Progress(trial.name, settings, len(splits.train)) as progress:
                run = fit(trial.network, splits, normal, settings, progress.hooks)
            curves = {name: [round(value, 5) for value in run.history[name]] for name in CURVES}
            rows.append({"name": trial.name, "network": run.name, **summarize(run), "curves": curves})
    return rows
