"""The search: trials are resumable runs, workers share a database, and one that is killed or paused loses nothing."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from helpers import SHORT, Tiny
from optuna.trial import TrialState

import data
import training
from data import DataError
from scripts import search as command
from training import search

HOME = Path(__file__).resolve().parent.parent


class Slow(Tiny):
    """A network each batch of which takes as many seconds as the environment says."""

    def forward(self, images):
        time.sleep(float(os.environ.get("SECONDS", 0)))
        return super().forward(images)


SPACE = search.Space({"learning_rate": search.Log(1e-3, 0.02)}, Slow, SHORT)  # in which no trial diverges


def work(trials):
    """What a worker's process does."""
    torch.set_num_threads(1)
    training.runs.SAVED_EVERY, training.runs.RELEASED_WITHIN = 0.0, 0.5
    folder = training.runs_folder()
    splits = data.load("loc", "digits", sizes=(64, 32, 8), folder=folder, log=lambda text: None)
    training.guard(lambda: search.search(search.open_study("a", beat=1), SPACE, splits, trials))


def worker(trials, seconds):
    code = f"import sys; sys.path[:0] = ['.', 'tests']; import test_search; test_search.work({trials})"
    environment = os.environ | {"SECONDS": str(seconds), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=HOME, env=environment, stdout=subprocess.PIPE, text=True)


def wait_until(condition, *processes):
    end = time.monotonic() + 120
    while not condition():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < end
        time.sleep(0.05)


def states(study):
    return [trial.state.name for trial in study.trials]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of its own; who gives no heartbeat for three seconds loses its trial."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    monkeypatch.delenv("STUDY_DATABASE", raising=False)
    monkeypatch.setattr(training.runs, "SAVED_EVERY", 0.0)
    return search.open_study("a", beat=1)


def after_epoch(monkeypatch, epoch, function):
    """Call a function after an epoch of the next run that is trained, before its end is reported."""

    def fit(network, splits, settings, hooks, n_train):
        def on_epoch(state):
            if state.epoch == epoch:
                function()
            hooks.on_epoch(state)

        monkeypatch.setattr(search, "fit", training.fit)
        return training.fit(network, splits, settings, training.Hooks(on_epoch=on_epoch), n_train=n_train)

    monkeypatch.setattr(search, "fit", fit)


# ---------------------------------------------------------------------------------------------- trials


def test_trials_are_runs_and_those_that_lag_behind_end_early(study, sets, tmp_path, monkeypatch, capsys):
    asked, prune = [], optuna.Trial.should_prune

    def should_prune(trial):
        epoch = max(study.trials[trial.number].intermediate_values) + 1
        asked.append(epoch)
        return prune(trial) or (trial.number == 2 and epoch == 2)

    monkeypatch.setattr(optuna.Trial, "should_prune", should_prune)
    search.search(study, SPACE, sets["loc"], 6, 40)
    assert len(study.trials) == 6
    results = search.export(study, SPACE)
    assert len(results["trials"][2]["epochs"]) == 2
    assert results["importance"] == {"learning_rate": 1.0}
    complete = [row for row in results["trials"] if row["mean"] is not None]
    assert len(list(tmp_path.glob("loc-*/"))) == len(complete)
    for row in complete:
        run = training.fit(Slow, sets["loc"], replace(SHORT, **row["params"]), n_train=40)
        assert (run.status, run.history["val_mean"], run.val["mean"]) == ("loaded", row["epochs"], row["mean"])
    assert "a: 5 of 6 trials done, trial 5 begins" in capsys.readouterr().out
    monkeypatch.setattr(search, "fit", lambda *about: pytest.fail("one more"))
    search.search(study, SPACE, sets["loc"], 6, 40)


def test_a_trial_that_diverges_ends_early(study, sets, tmp_path):
    search.search(study, SPACE._replace(recipe=replace(SHORT, momentum=1e38)), sets["loc"], 1)
    assert states(study) == ["PRUNED"]
    assert not list(tmp_path.glob("loc-*/"))


def test_a_trial_that_is_interrupted_waits_to_go_on(study, sets, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    after_epoch(monkeypatch, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        search.search(study, SPACE, sets["loc"], 1)
    assert states(study) == ["WAITING"]
    search.search(study, SPACE, sets["loc"], 1)
    assert states(study) == ["COMPLETE"]
    assert list(study.trials[0].intermediate_values) == [0, 1, 2, 3]  # those before the interruption too


def test_a_trial_whose_run_is_held_elsewhere_waits(study, sets, monkeypatch, capsys):
    def held(*about, **options):
        monkeypatch.setattr(search, "fit", training.fit)
        raise training.RunInUse

    monkeypatch.setattr(search, "fit", held)
    search.search(study, SPACE, sets["loc"], 2)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[0].params == study.trials[2].params  # another was trained meanwhile
    assert "Trial 0 has to wait, another process is training its run" in capsys.readouterr().out


def test_a_trial_that_has_become_another_workers_is_left_to_it(study, sets, monkeypatch, capsys):
    """As when a worker wakes that was paused: its trial has failed, and a new one of the same parameters waits."""

    def take_away():
        study._storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.FAIL)
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[0])

    after_epoch(monkeypatch, 4, take_away)
    search.search(study, SPACE, sets["loc"], 2)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "Trial 0 is another worker's" in capsys.readouterr().out
    assert len({row["params"]["learning_rate"] for row in search.export(study, SPACE)["trials"]}) == 2


@pytest.mark.parametrize("pause", [False, True])
def test_a_worker_that_is_killed_or_paused_loses_nothing(study, tmp_path, pause):
    """Its trial is taken up by another, with the same parameters, after the epoch that its run's checkpoint holds; a
    paused one's when it wakes and lets go of the run."""
    if pause and not hasattr(signal, "SIGSTOP"):
        pytest.skip("Windows pauses no process")
    first = worker(2, seconds=0.2)
    wait_until(lambda: study.trials and len(study.trials[0].intermediate_values) >= 2, first)
    first.send_signal(signal.SIGSTOP if pause else signal.SIGTERM)
    second = worker(2, seconds=0)
    if pause:
        wait_until(lambda: states(study)[0] == "FAIL" and "COMPLETE" in states(study), second)
        first.send_signal(signal.SIGCONT)
        said, _ = first.communicate(timeout=120)
        assert "Trial 0 is another worker's, this one gave no heartbeat for too long" in said
    said, _ = second.communicate(timeout=120)
    assert (first.wait(), second.returncode) == (0 if pause else -signal.SIGTERM, 0)
    assert ("Trial 1 has to wait, another process is training its run" in said) == pause
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    again = [trial for trial in complete if trial.params == SPACE.by_hand]
    assert [list(trial.intermediate_values) for trial in again] == [[0, 1, 2, 3]]
    assert "RUNNING" not in states(study)
    histories = [data.files.load_tensors(path)["history"] for path in tmp_path.rglob("checkpoint.pt")]
    assert sum(history["seconds"][0] > 0.7 for history in histories) == 1  # the first epoch is the first worker's


# ---------------------------------------------------------------------------------------------- the database


def test_workers_that_start_together_share_a_new_database(tmp_path, monkeypatch):
    for number in range(4):
        monkeypatch.setenv("STUDY_DATABASE", f"sqlite:///{tmp_path}/{number}.db?timeout=60")
        together = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            studies = pool.map(lambda _, wait=together: wait.wait() + 1 and search.open_study("a"), range(2))
            assert [study.trials for study in studies] == [[], []]


def test_a_worker_waits_for_a_database_that_is_away(study, sets, monkeypatch, capsys):
    engine = study._storage._backend.engine
    connect, times = engine.dialect.connect, iter(range(3))

    def away(*about, **options):
        if next(times, None) is None:
            return connect(*about, **options)
        raise sqlite3.OperationalError("not there\nat all")

    def lose():
        engine.dispose()
        monkeypatch.setattr(engine.dialect, "connect", away)

    after_epoch(monkeypatch, 2, lose)
    search.search(study, SPACE, sets["loc"], 1)
    assert states(study) == ["COMPLETE"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["STUDY_DATABASE: cannot be used, trying again for 300 seconds: not there"]
    monkeypatch.setattr(search.patiently, "__kwdefaults__", {"seconds": 0})
    times = iter(range(10))
    engine.dispose()
    with pytest.raises(DataError, match="^STUDY_DATABASE: cannot be used, tried for 0 seconds: not there$"):
        search.search(study, SPACE, sets["loc"], 2)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("oracel://me:secret@host/a", "oracel"),
        ("me:secret@host", "parse"),
        ("postgresql+psycopg://me:secret/a", "a bad port"),
        ("postgresql+psycopg://me:my@secret@host/a", "@ : / in a password"),
        ("postgresql+psycopg://me:secret@host/a", "psycopg"),
        ("sqlite:///no/such/folder/secret/../a.db", "unable to open database file"),
    ],
)
def test_a_wrong_address_is_said_in_one_line_without_the_password(tmp_path, monkeypatch, address, reason):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("STUDY_DATABASE", address)
    if reason == "psycopg":
        monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setattr(search, "RACE", 0)
    with pytest.raises(SystemExit) as ended:
        training.guard(lambda: command.main(["loc"]))
    assert str(ended.value).startswith("STUDY_DATABASE: ")
    assert reason in str(ended.value)
    assert not {"\n", "secret"} & set(str(ended.value).split())
