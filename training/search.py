"""The search for hyperparameters: Optuna proposes, `fit` trains, the best epoch's validation mean accuracy decides.
Workers share a study. A trial is a resumable run: where its worker is stopped, another one goes on with it."""

import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from torch import nn

import models
from data import DataError, Splits
from training.loop import Hooks, NonFiniteLoss, TrainState
from training.runs import Run, RunInUse, fit, run_folder, run_spec
from training.settings import OWN, REFERENCE, Settings, runs_folder
from training.study import SEARCHED

BEAT, AWAY = 30, 300  # seconds: between a worker's heartbeats, of which it may miss three; to wait for a database
Int, Float, Log = IntDistribution, FloatDistribution, partial(FloatDistribution, log=True)
RANGES = {
    "depth": Int(2, 4), "width": Int(48, 96, step=16), "learning_rate": Log(2e-3, 1.2e-2),
    "weight_decay": Log(1e-2, 0.5), "batch_size": CategoricalDistribution((32, 64, 128)), "warm_up": Float(0.1, 0.4),
    "l1_weight": Log(1, 10), "giou_weight": Log(0.3, 3), "edge_weight": Log(0.2, 2), "class_weight": Log(0.5, 2),
    "label_smoothing": Float(0, 0.15), "max_shift": Int(4, 16, step=4), "max_stretch": Float(0, 0.3),
}  # fmt: skip
REFERENCE_RANGES = {
    "learning_rate": Log(1e-3, 0.2), "momentum": Float(0, 0.95), "box_weight": Log(1, 100),
    "batch_size": CategoricalDistribution((16, 32, 64, 128)),
}  # fmt: skip
SEARCHES = {  # the networks by task, their recipe, and what of it is varied
    "search": (models.OURS, OWN, RANGES),
    "reference_search": (SEARCHED, REFERENCE, REFERENCE_RANGES),
}


def open_study(name: str, tries: int = 5) -> optuna.Study:
    """Open or create a study in STUDY_DATABASE, by default SQLite in the runs folder. Raises DataError."""
    address = os.environ.get("STUDY_DATABASE") or f"sqlite:///{runs_folder().absolute() / 'study.db'}?timeout=60"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", "Argument|Retry|The reported value is ignored")  # experimental; reported before
    try:
        storage = optuna.storages.RDBStorage(
            address.replace("{", "{{").replace("}", "}}"), {"pool_pre_ping": True},  # Optuna fills in {}
            heartbeat_interval=BEAT, grace_period=3 * BEAT,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )  # fmt: skip
        sqlalchemy.event.listen(storage.engine, "do_connect", wait_for_database)
        return optuna.create_study(
            study_name=name, storage=storage, direction="maximize", load_if_exists=True,
            sampler=optuna.samplers.TPESampler(n_startup_trials=8, multivariate=True, constant_liar=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),
        )  # fmt: skip
    except Exception as error:  # every driver has its own
        if tries:  # others that start at the same time may be creating the tables
            time.sleep(1)
            return open_study(name, tries - 1)
        expected = "postgresql+psycopg://user:password@host/name, in a password %40 %3A %2F for @ : /"
        found = type(error).__name__  # whose text could hold the password
        raise DataError(f"STUDY_DATABASE: expected an address such as {expected}, found {found}") from None


def wait_for_database(dialect: sqlalchemy.Dialect, record: Any, arguments: list, options: dict) -> Any:
    """Connect for SQLAlchemy, as often as it takes. Raises SystemExit, which Optuna lets pass, after AWAY seconds."""
    for second in range(AWAY):
        try:
            return dialect.connect(*arguments, **options)
        except dialect.dbapi.Error:
            if second == 0:
                print(f"STUDY_DATABASE: no connection, waiting for up to {AWAY} seconds", flush=True)
            time.sleep(1)
    raise SystemExit(f"STUDY_DATABASE: no connection for {AWAY} seconds")


def finished(study: optuna.Study, by_hand: dict[str, Any]) -> list[FrozenTrial]:
    """The finished trials, the recipe by hand first; of equal ones, by two workers, the last."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return sorted({str(each.params): each for each in trials}.values(), key=lambda each: each.params != by_hand)


def run(study: optuna.Study, by_hand: dict[str, Any], train: Callable[[optuna.Trial], float], trials: int) -> None:
    """Train until so many trials are finished, the recipe by hand among them."""
    while len(done := finished(study, by_hand)) < trials or done[0].params != by_hand:
        study.enqueue_trial(by_hand, skip_if_exists=len(done) < trials)  # else its worker may be lost
        print(f"{study.study_name}: {len(done)} of {trials} trials done, one begins", flush=True)
        study.optimize(train, n_trials=1, catch=RunInUse)


def train(
    trial: optuna.Trial, network: type[nn.Module], recipe: Settings, ranges: dict[str, BaseDistribution],
    splits: Splits, n_train: int,
) -> float:  # fmt: skip
    """Train a trial and return its best validation mean accuracy; or prune it, and remove its run."""
    settings = replace(recipe, **{name: trial._suggest(name, values) for name, values in ranges.items()})

    def report(run: TrainState | Run) -> None:
        for epoch, value in enumerate(run.history["val_mean"]):  # some may be another process's
            trial.report(value, epoch)
        if epoch + 1 < settings.epochs and (isinstance(run, Run) or trial.should_prune()):
            raise optuna.TrialPruned

    try:
        run = fit(network, splits, settings, Hooks(on_epoch=report), n_train=n_train)
        report(run)
        return run.val["mean"]
    except (optuna.TrialPruned, NonFiniteLoss) as error:
        shutil.rmtree(run_folder(run_spec(network, splits, settings, n_train)), ignore_errors=True)
        raise optuna.TrialPruned from error
    except (KeyboardInterrupt, optuna.exceptions.UpdateFinishedTrialError):  # Optuna would not have it retried
        raise SystemExit("Stopped, or paused until another worker took over. The same command goes on") from None


def export(study: optuna.Study, by_hand: dict[str, Any]) -> list[dict[str, Any]]:
    """Each trial's parameters, validation means, and the highest of them, None where it was pruned."""
    rows = []
    for trial in finished(study, by_hand):
        epochs = [value for _, value in sorted(trial.intermediate_values.items())]
        mean = trial.value if trial.state == TrialState.COMPLETE else None
        rows.append({"params": trial.params, "epochs": epochs, "mean": mean})
    return rows
