"""The search: trials are resumable runs, workers share a database, and one that is killed loses nothing."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from helpers import SHORT, Tiny

import data
import models
import training
from scripts import search as command
from training import search

HOME = Path(__file__).resolve().parent.parent
WORKER = """
import pathlib, sys, time, torch
sys.path[:0] = [".", "tests"]
import data, training, utils
from dataclasses import replace
from helpers import SHORT, Tiny
from training import runs, search

class Slow(Tiny):
    def forward(self, images):
        time.sleep(float(sys.argv[4]))
        return super().forward(images)

torch.set_num_threads(1)
runs.SAVED_EVERY = 0.0
splits = data.load("loc", "digits", sizes=(64, 32, 8), folder=pathlib.Path(sys.argv[2]), log=lambda text: None)
study = search.open_study("tiny", sys.argv[1], beat=1)
propose = lambda trial: (Slow, replace(SHORT, learning_rate=trial.suggest_float("learning_rate", 1e-3, 0.02, log=True)))
search.search(study, int(sys.argv[3]), propose, splits, utils.Normalizer.fit(splits.train.images))
"""


def propose(trial):
    """Rates at which no trial diverges: close to 0.1 one does, and where it is the first, none has what to be ahead
    of."""
    return Tiny, replace(SHORT, learning_rate=trial.suggest_float("learning_rate", 1e-3, 0.02, log=True))


def worker(url, folder, trials, seconds=0.0):
    """A process that takes part in a study, each batch of which takes so many seconds."""
    command = [sys.executable, "-c", WORKER, url, str(folder), str(trials), str(seconds)]
    environment = os.environ | {"RUNS_DIR": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=HOME, env=environment, stdout=subprocess.PIPE, encoding="utf-8")


@pytest.fixture(scope="module")
def postgres():
    """The address of a PostgreSQL of its own, on a free port, where Debian's package is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) or [Path(shutil.which("pg_ctl") or "")]
    if not found[-1].is_file():
        pytest.skip("PostgreSQL is not installed")
    import pwd  # Windows has none

    root = os.geteuid() == 0  # as whom it does not run
    as_user = {"user": "postgres"} if root else {}
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if root:
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pg_ctl, where = str(found[-1]), str(folder / "data")
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **as_user}
    subprocess.run([pg_ctl, "-D", where, "-o", "-U digits -A trust --no-sync", "initdb"], **quiet)
    options = f"-p {port} -h 127.0.0.1 -k '' -F"
    subprocess.run([pg_ctl, "-D", where, "-o", options, "-l", str(folder / "log"), "-w", "start"], **quiet)
    yield f"postgresql+psycopg://digits@127.0.0.1:{port}/postgres"
    subprocess.run([pg_ctl, "-D", where, "-m", "immediate", "stop"], **quiet)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres")


def test_trials_are_runs_and_those_that_lag_behind_end_early(sets, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    study = search.open_study("a", search.database())
    asked = []
    prune = optuna.Trial.should_prune

    def should_prune(trial):
        epoch = max(study.trials[trial.number].intermediate_values) + 1
        asked.append(epoch)
        return prune(trial) or (trial.number == 2 and epoch == 2)

    monkeypatch.setattr(optuna.Trial, "should_prune", should_prune)
    search.search(study, 6, propose, *sets["loc"])
    assert search.count_states(study) == {"finished": 6, "running": 0, "waiting": 0}
    assert max(asked) == SHORT.epochs - 1  # a finished trial is never thrown away
    found = search.export(study)
    assert [len(row["epochs"]) for row in found["trials"]][2] == 2
    first = found["trials"][0]["epochs"]
    for row in found["trials"]:
        assert row["ahead"] == row["epochs"][-1] - first[len(row["epochs"]) - 1]
    assert found["importance"] == {"learning_rate": 1.0}
    for values in ([0.5] * 6, [None] * 5 + [0.5]):
        assert search.weigh([trial for trial in study.trials if trial.state in search.FINISHED], values) == {
            "learning_rate": 0.0
        }
    complete = [row for row in found["trials"] if row["mean"] is not None]
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == len(complete)
    for row in complete:
        run = training.fit(Tiny, *sets["loc"], replace(SHORT, **row["params"]))
        assert (run.status, run.history["val_mean"], run.val["mean"]) == ("loaded", row["epochs"], row["mean"])
    best = max(row["mean"] for row in complete)
    assert f"a: 6 of 6 trials, best validation mean {best:.4f}: learning_rate" in capsys.readouterr().out
    search.search(study, 6, lambda trial: pytest.fail("one more"), *sets["loc"])


def test_a_trial_that_diverges_ends_early(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    study = search.open_study("a", search.database())
    search.search(study, 1, lambda trial: (Tiny, replace(SHORT, learning_rate=1e38)), *sets["loc"])
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]


def test_a_trial_that_is_interrupted_waits_to_go_on(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    monkeypatch.setattr(training.runs, "SAVED_EVERY", 0.0)
    study = search.open_study("a", search.database())

    def interrupted(*about):
        def on_epoch(state):
            about[-1].on_epoch(state)
            if state.epoch == 2:
                raise KeyboardInterrupt

        return training.fit(*about[:-1], training.Hooks(on_epoch=on_epoch))

    with monkeypatch.context() as patch:
        patch.setattr(search, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search.search(study, 1, propose, *sets["loc"])
    search.search(study, 1, propose, *sets["loc"])
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert study.trials[0].params == study.trials[1].params
    assert list(study.trials[1].intermediate_values) == [0, 1, 2, 3]  # those before the interruption too


def test_a_trial_that_another_worker_trains_is_left_to_it(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    study = search.open_study("a", search.database())

    def taken(*about):
        monkeypatch.setattr(search, "fit", training.fit)  # the next is free
        raise training.RunInUse

    monkeypatch.setattr(search, "fit", taken)
    search.search(study, 1, propose, *sets["loc"])
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


def test_a_worker_that_is_killed_loses_nothing(url, tmp_path):
    """Its trial is taken up by another, with the same parameters, after the epoch that its run's checkpoint holds."""
    first = worker(url, tmp_path, 2, seconds=0.2)
    study, begun = search.open_study("tiny", url, beat=1), time.monotonic()
    while not (study.trials and len(study.trials[0].intermediate_values) >= 2):
        assert first.poll() is None
        assert time.monotonic() - begun < 120
        time.sleep(0.05)
    first.kill()
    first.wait()
    second = worker(url, tmp_path, 2)
    said, _ = second.communicate(timeout=240)
    assert second.returncode == 0
    assert "tiny: 2 of 2 trials, best validation mean" in said
    again = [trial for trial in study.trials[1:] if trial.params == study.trials[0].params]
    assert study.trials[0].state.name == "FAIL"
    assert [trial.state.name for trial in again] == ["COMPLETE"]
    assert list(again[0].intermediate_values) == [0, 1, 2, 3]
    assert search.count_states(study) == {"finished": 2, "running": 0, "waiting": 0}
    seconds = [
        run["history"]["seconds"] for run in map(training.runs.files.load_tensors, tmp_path.rglob("checkpoint.pt"))
    ]
    assert sum(each[0] > 0.7 for each in seconds) == 1  # its first epoch is the killed worker's, which was slow


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SOAK"), reason="in `make soak`")
def test_two_workers_are_nearly_twice_as_fast(postgres, tmp_path):
    """Counted in epochs, since some trials end early, and which is a matter of chance."""
    rates = []
    for number in (1, 2):
        if "tiny" in optuna.get_all_study_names(postgres):
            optuna.delete_study(study_name="tiny", storage=postgres)
        begun = time.monotonic()
        workers = [worker(postgres, tmp_path / str(number), 40, seconds=0.15) for _ in range(number)]
        assert [each.wait(600) for each in workers] == [0] * number
        taken = time.monotonic() - begun
        trials = search.open_study("tiny", postgres).trials
        rates.append(sum(len(trial.intermediate_values) for trial in trials) / taken)
    assert rates[1] > 1.6 * rates[0], rates


def test_what_is_proposed_can_be_built_and_keeps_within_the_size():
    by_hand = search.by_hand(models.CompactNet, training.OWN)
    for depth, width, expected in ((2, 48, 48), (2, 96, 96), (3, 96, 80), (4, 96, 64)):
        fixed = by_hand | {"depth": depth, "width": width, "batch_size": 32, "max_shift": 12}
        network, settings = search.propose_own(models.CompactNet, training.OWN)(optuna.trial.FixedTrial(fixed))
        assert network.__name__ == f"CompactNetx{expected}x{depth}"
        assert (settings.batch_size, settings.max_shift, settings.snap_to_pixels) == (32, 12, True)
        assert 3e5 < models.count_parameters(network()) < 1.5e6


def test_the_recipe_as_it_is_can_be_proposed():
    fixed = optuna.trial.FixedTrial(search.by_hand(models.CompactNet2, training.OWN))
    network, settings = search.propose_own(models.CompactNet2, training.OWN)(fixed)
    assert settings == training.OWN
    assert models.count_parameters(network()) == models.count_parameters(models.CompactNet2())


def test_the_command_writes_down_what_it_has_found(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("DATA_SOURCE", "digits")
    monkeypatch.setattr(data, "load", functools.partial(data.load, sizes=(64, 32, 8), folder=tmp_path))
    monkeypatch.setattr(command, "RESULTS", tmp_path / "search.json")
    monkeypatch.setattr(command.take_part, "__defaults__", (48, 1))
    with pytest.raises(SystemExit):
        command.main(["loc", "--trials", "0"])
    for trials in (1, 2):
        command.main(["loc", "--trials", str(trials)])
        found = json.loads((tmp_path / "search.json").read_text(encoding="utf-8"))["loc"]
        assert (found["images"], found["epochs"], len(found["trials"])) == (48, 1, trials)
    assert found["trials"][0]["params"].keys() == found["importance"].keys()
    assert found["trials"][0]["params"] == search.by_hand(models.CompactNet, training.OWN)
