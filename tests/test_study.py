"""Studies of full length: what they train, and what they write down."""

import functools
import json
from dataclasses import replace

import pytest
from helpers import SHORT, Tiny

import data
import models
import training
from scripts import study as command
from training import study


@pytest.mark.parametrize("task", ["loc", "det"])
def test_plans_train_what_they_say(task):
    reference = {"loc": models.REFERENCE_LOCALIZERS, "det": models.REFERENCE_DETECTORS}[task]
    for trial in study.plan_reproduction(task):
        assert trial.settings == replace(training.REFERENCE, shuffle=False)
    assert {trial.network for trial in study.plan_reproduction(task)} == set(reference)
    assert {trial.network for trial in study.plan_longer(task)} == set(reference) - {models.FloNet2}
    for trial in study.plan_longer(task):
        assert trial.settings == replace(training.PROFILES["full"].settings, epochs=trial.settings.epochs)
    for trial in study.plan_seeds(task):  # the first of them is the run that the notebooks train
        assert (trial.settings, trial.seeds[0]) == (training.PROFILES["full"].own, training.OWN.seed)


def test_the_command_writes_down_each_run_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("DATA_SOURCE", "digits")
    monkeypatch.setattr(data, "load", functools.partial(data.load, sizes=(64, 32, 8), folder=tmp_path))
    monkeypatch.setattr(command, "RESULTS", tmp_path / "studies.json")
    trials = [study.Trial(name, Tiny, replace(SHORT, epochs=2), (1, 2)) for name in ("a", "b")]
    monkeypatch.setitem(study.PLANS, "seeds", lambda task: trials)
    for arguments in (["--only", "b"], [], ["--only", "a"]):
        command.main(["seeds", "--task", "loc", *arguments])
    found = json.loads((tmp_path / "studies.json").read_text(encoding="utf-8"))
    assert found.keys() == {"loc"}
    rows = found["loc"]["seeds"]
    assert sorted((row["name"], row["settings"]["seed"]) for row in rows) == [(n, s) for n in "ab" for s in (1, 2)]
    for row in rows:
        assert row["val"]["mean"] == pytest.approx(max(row["curves"]["val_mean"]), abs=1e-5)
        assert {len(values) for values in row["curves"].values()} == {2}
