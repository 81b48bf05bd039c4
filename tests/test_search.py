"""The search: trials are resumable runs, workers share a database, and one that is stopped or killed loses nothing."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import DEFAULT, Mock

import optuna
import pytest
import sqlalchemy
from helpers import SHORT, Tiny
from optuna.trial import TrialState

import data
import models
import training
from scripts import search as command
from training import search


@pytest.fixture
def study(monkeypatch):
    """A study of one parameter. Who gives no heartbeat for three seconds loses its trial."""
    training.check_runs_folder()
    monkeypatch.setattr(training.runs, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(search, "BEAT", 1)
    return search.open_study("a")


BY_HAND, RANGES = {"learning_rate": 0.02}, {"learning_rate": search.Log(1e-3, 0.02)}  # in which no trial diverges


def run(study, sets, trials, by_hand=BY_HAND, **settings):
    about = {"network": Tiny, "recipe": replace(SHORT, **settings), "ranges": RANGES, "n_train": 40}
    search.run(study, by_hand, partial(search.train, splits=sets["loc"], **about), trials)
    return [trial.state.name for trial in study.trials]


def test_trials_are_runs_and_those_that_lag_behind_are_pruned(study, sets, tmp_path, monkeypatch, capsys):
    assert isinstance(study.pruner, optuna.pruners.MedianPruner)
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 2)
    assert run(study, sets, 4) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert len(list(tmp_path.rglob("checkpoint.pt"))) == 3
    assert "a: 3 of 4 trials done, one begins" in capsys.readouterr().out
    row = search.export(study, BY_HAND)[3]
    loaded = training.fit(Tiny, sets["loc"], replace(SHORT, **row["params"]), n_train=40)
    assert (loaded.status, loaded.history["val_mean"], loaded.val["mean"]) == ("loaded", row["epochs"], row["mean"])
    other = {"learning_rate": 0.01}
    assert len(run(study, sets, 4, other)) == 5  # the recipe by hand is never left out
    monkeypatch.setattr(search, "fit", lambda *about, **more: pytest.fail("one more"))
    run(study, sets, 5, other)


@pytest.mark.parametrize(("momentum", "later"), [(1e38, False), (1e3, True)])  # than in the first epoch
def test_a_trial_that_diverges_is_pruned_and_its_run_removed(momentum, later, study, sets, tmp_path):
    assert run(study, sets, 1, momentum=momentum) == ["PRUNED"]
    assert bool(study.trials[0].intermediate_values) == later
    assert not list(tmp_path.rglob("checkpoint.pt"))


@pytest.mark.parametrize(("lose", "left", "stops"), [
    (Mock(side_effect=KeyboardInterrupt), 2, True),
    (lambda trial: trial.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL) and None, 1, False),
])  # fmt: skip
def test_a_trial_whose_worker_stops_or_was_paused_goes_on(study, sets, monkeypatch, lose, left, stops):
    monkeypatch.setattr(optuna.Trial, "should_prune", lose)
    with pytest.raises(SystemExit, match=r"^Stopped, or paused .* goes on$"):
        run(study, sets, 1)
    until = time.monotonic() + 30
    while stops and not study._storage._get_stale_trial_ids(study._study_id):
        assert time.monotonic() < until
        time.sleep(0.1)  # then the trial is taken up, else the recipe is tried again after another
    asked = []  # after each epoch but the last
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: asked.append(trial.params))
    assert run(study, sets, 1) == ["FAIL", "COMPLETE", "COMPLETE"][: 2 if stops else 3]
    assert asked.count(BY_HAND) == left


def test_a_run_that_another_process_trains_is_left_to_it(study, sets, monkeypatch):
    fit = Mock(wraps=search.fit, side_effect=[training.RunInUse("busy"), DEFAULT, DEFAULT])
    monkeypatch.setattr(search, "fit", fit)
    assert run(study, sets, 1) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_workers_that_start_together_share_a_new_database(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_DATABASE", f"sqlite:///{tmp_path}/{{}}.db?timeout=60")
    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        studies = pool.map(lambda _: (together.wait(), search.open_study("a"))[1], range(2))
        assert [study.trials for study in studies] == [[], []]


def test_a_worker_waits_for_a_database_that_is_away(study, monkeypatch, capsys):
    assert sqlalchemy.event.contains(study._storage._backend.engine, "do_connect", search.wait_for_database)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    dialect = Mock(**{"dbapi.Error": OSError, "connect.side_effect": [OSError, OSError, "connection"]})
    assert search.wait_for_database(dialect, None, [], {}) == "connection"
    assert capsys.readouterr().out == "STUDY_DATABASE: no connection, waiting for up to 300 seconds\n"
    dialect.connect.side_effect = OSError
    with pytest.raises(SystemExit, match="STUDY_DATABASE: no connection for 300 seconds"):
        search.wait_for_database(dialect, None, [], {})


@pytest.mark.parametrize(("name", "recipe"), [("search", training.OWN), ("reference_search", training.REFERENCE)])
def test_the_command_writes_down_the_trials(name, recipe, sets, tmp_path, monkeypatch):
    def fit(network, splits, settings, hooks, n_train):
        """As if the network had been trained: the higher the rate, the better."""
        asked.append((network, n_train, replace(settings, **by_hand)))
        rate = settings.learning_rate
        return SimpleNamespace(history={"val_mean": [0.0, rate]}, val={"mean": rate})

    asked, by_hand = [], {key: getattr(recipe, key) for key in search.SEARCHES[name][2]}
    networks = models.OURS if name == "search" else {"loc": models.FloNet, "det": models.SkreNet2}
    monkeypatch.setattr(data, "load", lambda task: sets[task])
    monkeypatch.setattr(command, "FIGURES", tmp_path)
    monkeypatch.setattr(search, "fit", fit)
    command.main([name, "--images=50", "--epochs=2", "--trials=3"])
    assert asked == [(networks[task], 50, replace(recipe, epochs=2)) for task in ("loc", "det") for _ in range(3)]
    results = data.files.load_json(tmp_path / f"{name}.json")
    assert [(each["images"], each["epochs"]) for each in results.values()] == [(50, 2), (40, 2)]
    first, *rest = results["loc"]["trials"]
    assert first == {"params": by_hand, "epochs": [0, recipe.learning_rate], "mean": recipe.learning_rate}
    assert all(row["mean"] == row["params"]["learning_rate"] != recipe.learning_rate for row in rest)
