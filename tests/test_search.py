"""The search: trials are resumable runs, workers share a database, and one that is killed or paused loses nothing."""

import functools
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import optuna
import pytest
import torch
from helpers import SHORT, Tiny
from optuna.trial import TrialState

import data
import models
import training
from data import DataError
from scripts import search as command
from training import search


class Slow(Tiny):
    """A network each batch of which takes as many seconds as the environment says."""

    def forward(self, images):
        time.sleep(float(os.environ.get("SECONDS", 0)))
        return super().forward(images)


SPACE = search.Space({"learning_rate": search.Log(1e-3, 0.02)}, Slow, SHORT)  # in which no trial diverges


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of its own; who gives no heartbeat for three seconds loses its trial."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    monkeypatch.delenv("STUDY_DATABASE", raising=False)
    monkeypatch.setattr(training.runs, "SAVED_EVERY", 0.0)
    return search.open_study("a", beat=1)


def states(study):
    return [trial.state.name for trial in study.trials]


def test_trials_are_runs_and_those_that_lag_behind_end_early(study, sets, tmp_path, monkeypatch, capsys):
    def should_prune(trial):  # one at once, and none that has come to its end
        return trial.number == 2 or len(study.trials[trial.number].intermediate_values) == SHORT.epochs

    monkeypatch.setattr(optuna.Trial, "should_prune", should_prune)
    search.search(study, SPACE, sets["loc"], 6, 40)
    assert states(study) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE", "COMPLETE", "COMPLETE"]
    checkpoints = list(tmp_path.rglob("checkpoint.pt"))
    assert [data.files.load_tensors(path)["weights"] for path in checkpoints] == [{}] * 5
    for row in search.export(study, SPACE)["trials"][3:]:
        run = training.fit(Slow, sets["loc"], replace(SHORT, **row["params"]), n_train=40)
        assert (run.status, run.history["val_mean"], run.val["mean"]) == ("loaded", row["epochs"], row["mean"])
    assert "a: 5 of 6 trials done, trial 5 begins" in capsys.readouterr().out
    search.search(study, SPACE._replace(recipe=replace(SHORT, learning_rate=0.01)), sets["loc"], 6, 40)
    assert study.trials[6].params == {"learning_rate": 0.01}  # the recipe by hand is never left out
    monkeypatch.setattr(search, "fit", lambda *about: pytest.fail("one more"))
    search.search(study, SPACE, sets["loc"], 7, 40)


def test_a_trial_that_diverges_ends_early(study, sets, tmp_path, monkeypatch):
    search.search(study, SPACE._replace(recipe=replace(SHORT, momentum=1e38)), sets["loc"], 1)
    monkeypatch.setattr(training.runs.Run, "diverged", True)  # later than in its first epoch
    search.search(study, SPACE, sets["loc"], 2)
    assert states(study) == ["PRUNED", "PRUNED"]
    assert not list(tmp_path.glob("loc-*/"))


def test_a_trial_that_is_interrupted_waits_to_go_on(study, sets, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "should_prune", lambda trial: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            search.search(study, SPACE, sets["loc"], 1)
    assert (states(study), list(study.trials[0].intermediate_values)) == (["WAITING"], [0])
    search.search(study, SPACE, sets["loc"], 1)
    assert (states(study), list(study.trials[0].intermediate_values)) == (["COMPLETE"], [0, 1, 2, 3])


def work(folder, seconds):
    """What a worker's process does."""
    os.environ |= {"RUNS_DIR": str(folder), "SECONDS": str(seconds)}
    torch.set_num_threads(1)
    training.runs.SAVED_EVERY, training.runs.RELEASED_WITHIN = 0.0, 0.5
    splits = data.load("loc", "digits", (64, 32, 8), folder, log=lambda text: None)
    search.search(search.open_study("a", beat=1), SPACE, splits, 2)


@pytest.mark.parametrize("stop", ["SIGTERM", "SIGSTOP"])
def test_a_worker_that_is_killed_or_paused_loses_nothing(study, tmp_path, processes, request, stop):
    """Its trial is taken up by another, with the same parameters, after the epoch that its run's checkpoint holds; a
    paused one's when it wakes and lets go of the run."""
    if not hasattr(signal, stop):
        pytest.skip("Windows pauses no process")

    def wait_until(condition):
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)

    first, second = (processes.Process(target=work, args=(tmp_path, each), daemon=True) for each in (0.2, 0.0))
    first.start()
    request.addfinalizer(first.kill)  # else a paused one would outlive a failure
    wait_until(lambda: study.trials and len(study.trials[0].intermediate_values) >= 2)
    os.kill(first.pid, getattr(signal, stop))
    second.start()
    if stop == "SIGSTOP":
        wait_until(lambda: states(study).count("FAIL") > 1 and "COMPLETE" in states(study))  # the run is held
        os.kill(first.pid, signal.SIGCONT)
    first.join(120)
    second.join(120)
    assert (first.exitcode, second.exitcode) == (0 if stop == "SIGSTOP" else -signal.SIGTERM, 0)
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    again = [list(trial.intermediate_values) for trial in complete if trial.params == SPACE.by_hand]
    assert (states(study)[0], again) == ("FAIL", [[0, 1, 2, 3]])
    histories = [data.files.load_tensors(path)["history"] for path in tmp_path.rglob("checkpoint.pt")]
    assert sum(history["seconds"][0] > 0.7 for history in histories) == 1  # the first epoch is the first worker's


def test_workers_that_start_together_share_a_new_database(tmp_path, monkeypatch):
    for number in range(4):
        monkeypatch.setenv("STUDY_DATABASE", f"sqlite:///{tmp_path}/{number}.db?timeout=60")
        together = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            studies = pool.map(lambda _, start=together: (start.wait(), search.open_study("a"))[1], range(2))
            assert [study.trials for study in studies] == [[], []]


def test_a_worker_waits_for_a_database_that_is_away(study, sets, monkeypatch, capsys):
    engine, failures = study._storage._backend.engine, 3 * [sqlite3.OperationalError("gone\nfor good")]
    connect, main = engine.dialect.connect, threading.main_thread()

    def away(*about, **options):
        if failures and threading.current_thread() is main:
            raise failures.pop()
        return connect(*about, **options)

    monkeypatch.setattr(engine.dialect, "connect", away)
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: engine.dispose())  # to be connected with anew
    search.search(study, SPACE, sets["loc"], 1)
    assert (states(study), failures) == (["COMPLETE"], [])
    assert "\nSTUDY_DATABASE: cannot be used, trying again for 300 seconds: gone\n" in capsys.readouterr().out
    failures += 3 * [sqlite3.OperationalError("gone")]
    engine.dispose()
    with pytest.raises(DataError, match="STUDY_DATABASE: cannot be used, tried for 0 seconds: gone"):
        search.patiently(search.finished, study, seconds=0)


def test_a_wrong_address_is_told_in_one_line_without_the_password(study, monkeypatch):
    monkeypatch.setattr(search, "RACE", 0)
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    for address, reason in {
        "oracel://me:secret@host/a": "oracel",
        "me:secret@host": "parse",
        "postgresql+psycopg://me:secret/a": "a bad port",
        "postgresql+psycopg://me:my@secret@host/a": "@ : / in a password",
        "postgresql+psycopg://me:secret@host/a": "psycopg",
        "sqlite:///no/such/folder/a.db": "unable to open database file",
    }.items():
        monkeypatch.setenv("STUDY_DATABASE", address)
        with pytest.raises(SystemExit, match=f"^STUDY_DATABASE: .*{reason}.*$") as ended:
            training.guard(lambda: command.main(["loc"]))
        assert "secret" not in str(ended.value)


def test_what_is_proposed_can_be_built_and_keeps_within_the_size():
    space = search.propose_own(models.CompactNet, training.OWN)
    for depth, width, built in ((2, 48, 48), (2, 96, 96), (3, 96, 80), (4, 96, 64)):
        params = search.as_built(space.by_hand | {"depth": depth, "width": width})
        assert replace(training.OWN, **params) == replace(training.OWN, depth=depth, width=built)
        assert 3e5 < models.count_parameters(models.CompactNet(built, depth)) < 1.5e6
    for each in (space, search.propose_reference(models.FloNet, training.REFERENCE)):
        optuna.create_trial(params=each.by_hand, distributions=each.ranges, value=0)  # within the ranges


def test_the_recipe_by_hand_comes_first_and_what_was_built_is_weighed():
    space, study = (
        search.propose_own(models.CompactNet, replace(training.OWN, depth=4, width=64)),
        optuna.create_study(),
    )

    def add(*epochs, state=TrialState.COMPLETE, **params):
        about = {"value": max(epochs), "intermediate_values": dict(enumerate(epochs)), "state": state}
        study.add_trial(optuna.create_trial(params=space.by_hand | params, distributions=space.ranges, **about))

    for rate, width in ((0.003, 64), (0.005, 80), (0.007, 96), (0.009, 64)):  # all of which become 64
        add(0.5, 0.6 + width / 1000, learning_rate=rate, width=width)
    add(0.75, state=TrialState.PRUNED, learning_rate=0.01)
    add(0.5, 0.625)
    add(0.5, 0.625)  # taken up by two workers
    results = search.export(study, space)
    assert [row["params"]["learning_rate"] for row in results["trials"]] == [0.004, 0.003, 0.005, 0.007, 0.009, 0.01]
    assert {row["params"]["width"] for row in results["trials"]} == {64}
    assert results["trials"][0] == {"params": space.by_hand, "epochs": [0.5, 0.625], "mean": 0.625, "ahead": 0}
    assert (results["trials"][5]["mean"], results["trials"][5]["ahead"]) == (None, 0.25)
    assert [name for name, share in results["importance"].items() if share > 1e-9] == ["learning_rate"]


def test_the_command_writes_down_what_it_has_found(study, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_SOURCE", "digits")
    monkeypatch.setattr(data, "load", functools.partial(data.load, sizes=(64, 32, 8), folder=tmp_path))
    for name, value in {"RESULTS": tmp_path / "search.json", "IMAGES": 48, "EPOCHS": 1}.items():
        monkeypatch.setattr(command, name, value)
    for wrong in (["loc", "--trials", "0"], ["loc", "--network", "FloNet2"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(wrong)
    own, reference = (search.propose_own, training.OWN), (search.propose_reference, training.REFERENCE)
    for name, about, (propose, recipe) in (("loc", [], own), ("SimpleNet", ["--network", "SimpleNet"], reference)):
        assert command.main(["loc", *about, "--trials", "1"]) == 0
        result = json.loads((tmp_path / "search.json").read_text(encoding="utf-8"))[name]
        by_hand = propose(None, recipe).by_hand
        assert (result["images"], result["epochs"], result["trials"][0]["params"]) == (48, 1, by_hand)
        assert result["importance"] == dict.fromkeys(by_hand, 0.0)
    assert json.loads((tmp_path / "search.json").read_text(encoding="utf-8")).keys() == {"loc", "SimpleNet"}
