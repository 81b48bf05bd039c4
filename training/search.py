"""The search for hyperparameters: Optuna proposes, `fit` trains, the validation mean accuracy decides.

Every worker, on one machine or on several, is the same call of `search` on the same database. Each trial is a run like
any other, so that a worker that is killed loses nothing: its trial is taken up again, by whoever is free, where its
run stopped.
"""

import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import TrialState
from torch import nn

from data import Splits
from training.keys import describe_run, run_folder
from training.loop import Hooks, NonFiniteLoss, TrainState
from training.runs import RunInUse, fit
from training.settings import Settings, runs_folder
from training.study import build_trial
from training.weights import drop_weights
from utils import Normalizer

BEAT = 30  # seconds between two signs of life of a worker
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
WIDEST = {2: 96, 3: 80, 4: 64}  # channels by depth, within 1.5 million parameters
Propose = Callable[[optuna.Trial], tuple[type[nn.Module], Settings]]


def propose_own(network: type[nn.Module], own: Settings) -> Propose:
    """What the search varies of a `GridNetwork` and its recipe, within 1.5 million parameters."""

    def propose(trial: optuna.Trial) -> tuple[type[nn.Module], Settings]:
        params = {
            "depth": trial.suggest_int("depth", 2, 4),
            "width": trial.suggest_int("width", 48, 96, step=16),
            "learning_rate": trial.suggest_float("learning_rate", 2e-3, 1.2e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-2, 0.5, log=True),
            "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128]),
            "warm_up": trial.suggest_float("warm_up", 0.1, 0.4),
            "l1_weight": trial.suggest_float("l1_weight", 1, 10, log=True),
            "giou_weight": trial.suggest_float("giou_weight", 0.3, 3, log=True),
            "edge_weight": trial.suggest_float("edge_weight", 0.2, 2, log=True),
            "class_weight": trial.suggest_float("class_weight", 0.5, 2, log=True),
            "label_smoothing": trial.suggest_float("label_smoothing", 0, 0.15),
            "max_shift": trial.suggest_int("max_shift", 4, 16, step=4),
            "max_stretch": trial.suggest_float("max_stretch", 0, 0.3),
        }
        return build_trial(network, own, _as_built(params))

    return propose


def by_hand(network: type[nn.Module], own: Settings) -> dict[str, Any]:
    """The parameters that `propose_own` would have to propose for a network and recipe as they are."""
    names = "learning_rate weight_decay batch_size warm_up l1_weight giou_weight edge_weight class_weight"
    recipe = {name: getattr(own, name) for name in (*names.split(), "label_smoothing", "max_shift", "max_stretch")}
    return {"depth": network.depth, "width": network.width, **recipe}


def database() -> str:
    """The address of the database that the workers share: what the environment variable STUDY_DATABASE holds, such as
    postgresql+psycopg://user:password@host/name; by default SQLite in the runs folder, for one machine."""
    folder = runs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return os.environ.get("STUDY_DATABASE") or f"sqlite:///{folder / 'study.db'}"


def open_study(name: str, url: str, beat: int = BEAT) -> optuna.Study:
    """The study of that name, which is made where there is none. Raises optuna.exceptions.StorageInternalError where
    the database cannot be reached."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # `search` tells on its one line
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # A trial whose worker gives no sign of life any more waits for another, with what it has reported.
        again = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
        storage = RDBStorage(
            url, wait, heartbeat_interval=beat, grace_period=3 * beat, heartbeat_stale_trial_callback=again
        )
        sampler = optuna.samplers.TPESampler(n_startup_trials=8, multivariate=True, constant_liar=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3)
    return optuna.create_study(
        study_name=name, storage=storage, direction="maximize", load_if_exists=True, sampler=sampler, pruner=pruner
    )


def search(
    study: optuna.Study,
    trials: int,
    propose: Propose,
    splits: Splits,
    normal: Normalizer,
) -> None:
    """Take part in a study until it has so many finished trials, and tell on one line how it stands.

    propose: gives a trial's network and settings, see `propose_own`. A trial that does worse than half of those before
    it did in the same epoch ends there, as does one that diverges.
    """

    def objective(trial: optuna.Trial) -> float:
        network, settings = propose(trial)
        reported = set(study.trials[trial.number].intermediate_values)  # by a worker that was killed

        def report(history: dict[str, list[float]]) -> None:
            for step, value in enumerate(history["val_mean"]):  # its run may have begun in another trial
                if step not in reported:
                    trial.report(value, step)
                    reported.add(step)

        def on_epoch(state: TrainState) -> None:
            report(state.history)
            if state.epoch < settings.epochs and trial.should_prune():
                raise optuna.TrialPruned

        try:
            run = fit(network, splits, normal, settings, Hooks(on_epoch=on_epoch))
            report(run.history)
            if run.diverged:
                raise optuna.TrialPruned
        except (optuna.TrialPruned, NonFiniteLoss):
            shutil.rmtree(run_folder(describe_run(network, splits, normal, settings)), ignore_errors=True)
            raise optuna.TrialPruned from None
        except KeyboardInterrupt:
            study.enqueue_trial(trial.params)  # else it would count as failed
            raise
        drop_weights(run.weights)
        return run.val["mean"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        while (states := count_states(study))["finished"] < trials:
            if states["finished"] + states["running"] < trials or states["waiting"]:
                study.optimize(objective, n_trials=1, catch=RunInUse)  # another has proposed the same
                print(tell(study, trials))
            else:
                time.sleep(1)  # others are busy with the last trials; if one dies, its trial will be waiting
            fail_stale_trials(study)


def count_states(study: optuna.Study) -> dict[str, int]:
    """How many trials are finished, running and waiting."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return {
        "finished": sum(state in FINISHED for state in states),
        "running": states.count(TrialState.RUNNING),
        "waiting": states.count(TrialState.WAITING),
    }


def tell(study: optuna.Study, trials: int) -> str:
    """How a study stands, on one line."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    line = f"{study.study_name}: {count_states(study)['finished']} of {trials} trials"
    if not done:
        return line
    best = max(done, key=lambda trial: trial.value)
    chosen = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in best.params.items()
    )
    return f"{line}, best validation mean {best.value:.4f}: {chosen}"


def export(study: optuna.Study) -> dict[str, Any]:
    """What a study has found, as plain values: its trials, and how much each parameter matters.

    Of each trial its parameters, the validation mean of every epoch, the highest ("mean", None where it was ended
    early), and by how much it was ahead of the first trial in its last epoch ("ahead", None where it had none). The
    first is the recipe by hand; measured from it, trials that were ended early say something as well.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state in FINISHED]
    # The first may have been taken up again under another number, or be another worker's still.
    by_hand = next((trial for trial in trials if trial.params == study.trials[0].params), trials[0])
    trials = [by_hand, *(trial for trial in trials if trial is not by_hand)]
    rows = []
    for trial in trials:
        epochs = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        beside = by_hand.intermediate_values.get(len(epochs) - 1)
        rows.append(
            {
                "params": _as_built(trial.params),
                "epochs": epochs,
                "mean": trial.value if trial.state == TrialState.COMPLETE else None,
                "ahead": None if beside is None else epochs[-1] - beside,
            }
        )
    return {"trials": rows, "importance": weigh(trials, [row["ahead"] for row in rows])}


def _as_built(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with the width that a network of that depth was given."""
    return params | {"width": min(params["width"], WIDEST[params["depth"]])} if "width" in params else params


def weigh(trials: Sequence[optuna.trial.FrozenTrial], values: Sequence[float | None]) -> dict[str, float]:
    """How much each parameter matters for the values of trials, shares of 1 (functional analysis of variance, Hutter
    et al., 2014); 0 where no two values differ."""
    study = optuna.create_study()  # in memory: Optuna itself leaves out all trials that were ended early
    for trial, value in zip(trials, values, strict=True):
        if value is not None:
            study.add_trial(optuna.create_trial(params=trial.params, distributions=trial.distributions, value=value))
    if len({trial.value for trial in study.trials}) < 2:
        return dict.fromkeys(trials[0].params, 0.0)
    found = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(value) for name, value in found.items()}
