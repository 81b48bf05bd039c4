"""The search for hyperparameters: Optuna proposes, `fit` trains, the validation mean accuracy decides.

Every worker, on one machine or on several, makes the same call of `search` with the same database. A trial is a run
like any other: when its worker is killed, paused or cut off, another goes on with it from the run's checkpoint.
"""

import contextlib
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from data import DataError, Splits
from training.loop import Hooks, NonFiniteLoss, TrainState
from training.runs import RunInUse, drop_weights, fit, run_folder, run_spec
from training.settings import Settings, runs_folder

BEAT = 30  # seconds between a worker's heartbeats; after three times as long without one its trial is free
RACE, PATIENCE = 10, 300  # seconds to keep trying: to open a database, which others may be creating, and to use it
WIDEST = {2: 96, 3: 80, 4: 64}  # channels by depth, within 1.5 million parameters
Int, Float, Choice = IntDistribution, FloatDistribution, CategoricalDistribution
Log = partial(FloatDistribution, log=True)


class Space(NamedTuple):
    """What a search varies: some settings of a network's recipe, within ranges."""

    ranges: dict[str, BaseDistribution]
    network: type[nn.Module]
    recipe: Settings

    @property
    def by_hand(self) -> dict[str, Any]:
        """The parameters of the recipe as it is."""
        return {name: getattr(self.recipe, name) for name in self.ranges}


# Each is called with a network and its recipe.
propose_own = partial(Space, {
    "depth": Int(2, 4), "width": Int(48, 96, step=16), "learning_rate": Log(2e-3, 1.2e-2),
    "weight_decay": Log(1e-2, 0.5), "batch_size": Choice((32, 64, 128)), "warm_up": Float(0.1, 0.4),
    "l1_weight": Log(1, 10), "giou_weight": Log(0.3, 3), "edge_weight": Log(0.2, 2), "class_weight": Log(0.5, 2),
    "label_smoothing": Float(0, 0.15), "max_shift": Int(4, 16, step=4), "max_stretch": Float(0, 0.3),
})  # fmt: skip
propose_reference = partial(Space, {
    "learning_rate": Log(1e-3, 0.2), "momentum": Float(0, 0.95),
    "batch_size": Choice((16, 32, 64, 128)), "box_weight": Log(1, 100),
})  # fmt: skip


def as_built(params: dict[str, Any]) -> dict[str, Any]:
    """Proposed parameters with the width that a network of their depth gets."""
    return params | {"width": min(params["width"], WIDEST[params["depth"]])} if "width" in params else params


class Storage(optuna.storages.RDBStorage):
    """Optuna's, in which a heartbeat that fails is skipped, and is not the last."""

    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(StorageInternalError):
            super().record_heartbeat(trial_id)


def patiently(call: Callable[..., Any], *arguments: Any, seconds: int = PATIENCE) -> Any:
    """Call what needs the database, again while that fails, and say so on one line. Raises DataError in the end."""
    end, said = time.monotonic() + seconds, seconds < PATIENCE
    while True:
        try:
            return call(*arguments)
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError, AssertionError) as error:
            while error.__cause__:  # the driver's words are the clearest
                error = error.__cause__
            reason = str(error).partition("\n")[0] or "its tables are incomplete"
        if time.monotonic() > end:
            raise DataError(f"STUDY_DATABASE: cannot be used, tried for {seconds} seconds: {reason}")
        if not said:
            print(f"STUDY_DATABASE: cannot be used, trying again for {seconds} seconds: {reason}", flush=True)
        said = True
        time.sleep(0.5)


def open_study(name: str, beat: int = BEAT) -> optuna.Study:
    """The study of that name, created where there is none, in the database that STUDY_DATABASE names, such as
    postgresql+psycopg://user:password@host/name; by default SQLite in the runs folder, for one machine. Raises
    DataError, without the password, where the address is wrong or the database cannot be used."""
    address = os.environ.get("STUDY_DATABASE") or f"sqlite:///{runs_folder().absolute() / 'study.db'}?timeout=60"
    try:
        if "@" in (sqlalchemy.make_url(address).host or ""):
            raise ValueError
        sqlalchemy.create_engine(address)  # asks for dialect and driver, and connects to nothing yet
    except (sqlalchemy.exc.ArgumentError, ImportError, ValueError) as error:
        wrong = "a bad port, or @ : / in a password for %40 %3A %2F" if isinstance(error, ValueError) else error
        expected = "postgresql+psycopg://user:password@host/name or alike"
        raise DataError(f"STUDY_DATABASE: expected {expected}, found: {wrong}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    warnings.filterwarnings("ignore", "Heartbeat of storage|The reported value is ignored")
    again = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
    beats = {"heartbeat_interval": beat, "grace_period": 3 * beat, "heartbeat_stale_trial_callback": again}
    options = {"study_name": name, "direction": "maximize", "load_if_exists": True}
    options["sampler"] = optuna.samplers.TPESampler(n_startup_trials=8, multivariate=True, constant_liar=True)
    options["pruner"] = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3)
    address = address.replace("{", "{{").replace("}", "}}")  # Optuna would fill in what is in braces
    storage = patiently(partial(Storage, address, {"pool_pre_ping": True}, **beats), seconds=RACE)
    return patiently(partial(optuna.create_study, storage=storage, **options), seconds=RACE)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """A study's finished trials, of equal ones the last: two workers may have taken up the same trial of a third."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return list({str(sorted(trial.params.items())): trial for trial in trials}.values())


def next_trial(study: optuna.Study, space: Space, wanted: int) -> optuna.Trial | None:
    """A trial to train, one that waits or a new one; None while others are busy with as many as are wanted."""
    optuna.storages.fail_stale_trials(study)  # which lets them wait
    study.enqueue_trial(space.by_hand, skip_if_exists=True)
    left = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    running = sum(bool(trial.params) for trial in left)  # one without may have lost its worker before any heartbeat
    return study.ask() if running < wanted or any(trial.state == TrialState.WAITING for trial in left) else None


def search(study: optuna.Study, space: Space, splits: Splits, trials: int, n_train: int | None = None) -> None:
    """Take part in a study until it has so many finished trials, the recipe by hand among them. `n_train` as in `fit`.
    Raises DataError where the database stays away."""
    while len(done := patiently(finished, study)) < trials or space.by_hand not in [trial.params for trial in done]:
        if trial := patiently(next_trial, study, space, trials - len(done)):
            print(f"{study.study_name}: {len(done)} of {trials} trials done, trial {trial.number} begins", flush=True)
            with get_heartbeat_thread(trial._trial_id, study._storage):
                train_trial(study, trial, space, splits, n_train)
        else:
            time.sleep(1)


def train_trial(study: optuna.Study, trial: optuna.Trial, space: Space, splits: Splits, n_train: int | None) -> None:
    """Train a trial to its end, which comes early where it diverges, or does worse than half of those before it did in
    the same epoch. Interrupted, it waits again. It is left alone where another process is training its run, or where it
    is another worker's by now, since this one was paused."""
    params = {name: patiently(trial._suggest, name, values) for name, values in space.ranges.items()}
    settings = replace(space.recipe, **as_built(params))

    def report(history: dict[str, list[float]]) -> bool:
        for step, value in enumerate(history["val_mean"]):  # some may be new, if the run began in another trial
            trial.report(value, step)
        return trial.should_prune()

    def on_epoch(state: TrainState) -> None:
        if patiently(report, state.history) and state.epoch < settings.epochs:
            raise optuna.TrialPruned

    try:
        run = fit(space.network, splits, settings, Hooks(on_epoch=on_epoch), n_train=n_train)
        patiently(report, run.history)
        if run.diverged:
            raise optuna.TrialPruned
        drop_weights(run.weights)
        patiently(partial(study.tell, trial, run.val["mean"], skip_if_finished=True))
    except (optuna.TrialPruned, NonFiniteLoss):
        shutil.rmtree(run_folder(run_spec(space.network, splits, settings, n_train)), ignore_errors=True)
        patiently(partial(study.tell, trial, state=TrialState.PRUNED, skip_if_finished=True))
    except RunInUse:  # not told: without heartbeats it will be waiting
        print(f"Trial {trial.number} has to wait, another process is training its run", flush=True)
    except UpdateFinishedTrialError:
        print(f"Trial {trial.number} is another worker's, this one gave no heartbeat for too long", flush=True)
    except KeyboardInterrupt:
        with contextlib.suppress(StorageInternalError, UpdateFinishedTrialError):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        raise


def export(study: optuna.Study, space: Space) -> dict[str, Any]:
    """What a study has found, as plain values: its trials, the recipe by hand first, and how much each parameter
    matters for how far they are ahead of it, shares of 1 (functional analysis of variance, Hutter et al., 2014).

    Of each trial its parameters, the validation mean of every epoch, the highest ("mean", None where it ended early),
    and by how much it was ahead of the recipe by hand after its last epoch ("ahead", None where that had none).
    """
    done = sorted(patiently(finished, study), key=lambda trial: trial.params != space.by_hand)
    rows, weighed = [], optuna.create_study()  # in memory, for Optuna itself leaves out trials that ended early
    for trial in done:
        params, epochs = as_built(trial.params), [value for _, value in sorted(trial.intermediate_values.items())]
        beside = done[0].intermediate_values.get(len(epochs) - 1)
        ahead = None if beside is None else epochs[-1] - beside
        mean = trial.value if trial.state == TrialState.COMPLETE else None
        rows.append({"params": params, "epochs": epochs, "mean": mean, "ahead": ahead})
        if ahead is not None:
            weighed.add_trial(optuna.create_trial(params=params, distributions=space.ranges, value=ahead))
    shares = dict.fromkeys(space.ranges, 0.0)
    if len({trial.value for trial in weighed.trials}) > 1:
        fanova = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(weighed, evaluator=fanova)
    return {"trials": rows, "importance": {name: float(share) for name, share in shares.items()}}
