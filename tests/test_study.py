"""Studies of full length: what they train, and what they write down."""

import functools
import itertools
import json
from dataclasses import replace

import pytest
import torch
from helpers import SHORT, Tiny

import data
import models
import training
import utils
from scripts import study as command
from training import study
from training.reference import reference_mean


@pytest.mark.parametrize("task", ["loc", "det"])
def test_plans_train_what_they_say(task):
    reference = {"loc": models.REFERENCE_LOCALIZERS, "det": models.REFERENCE_DETECTORS}[task]
    for trial in study.plan_reproduction(task):
        assert trial.settings == replace(training.REFERENCE, shuffle=False)
    assert {trial.network for trial in study.plan_reproduction(task)} == set(reference)
    asked = {"loc": [models.FloNet], "det": []}[task]
    assert [trial.network for trial in study.plan_longer(task)] == asked
    for trial in study.plan_longer(task):
        assert trial.settings == replace(training.PROFILES["full"].settings, epochs=trial.settings.epochs)
    for trial in study.plan_seeds(task):  # the first of them is the run that the notebooks train
        assert (trial.settings, trial.seeds[0]) == (training.PROFILES["full"].own, training.OWN.seed)
    whole, *without = study.plan_ingredients(task)
    assert whole.settings == replace(training.OWN, epochs=study.EPOCHS)
    for trial in without:
        assert (trial.settings, trial.network) != (whole.settings, whole.network)
        assert (trial.seeds, trial.images) == (study.SEEDS, study.IMAGES)
        training.assemble(trial.network, trial.settings)
    named = {trial.name: trial for trial in without}
    plan, many = study.plan_full_length(task), len(study.DECISIVE)
    decisive, searched = plan[:many], plan[many:]
    for trial in decisive:
        short = named[trial.name]
        assert (trial.settings, trial.images) == (replace(short.settings, epochs=training.OWN.epochs), None)
    assert {trial.name for trial in decisive} == set(study.DECISIVE)
    found = max(training.published_search(task)["trials"][1:], key=lambda each: each["mean"] or 0)["params"]
    first = searched[0]
    assert (first.settings.learning_rate, first.network.width) == (found["learning_rate"], found["width"])
    assert first.settings.epochs == training.OWN.epochs
    published = training.published_studies(task)
    best = max(row["val"]["mean"] for row in published["seeds"])
    ahead = {row["name"] for row in published["full_length"] if row["val"]["mean"] > best}
    assert ahead == {trial.name for trial in searched if trial.seeds == study.SEEDS}
    assert {trial.network for trial in study.plan_recipes(task)} == {*reference, whole.network}
    assert all(issubclass(trial.network, models.FloNet2) for trial in study.plan_failure(task))


def test_flonet2_with_ten_channels_gives_six():
    network = study.TenChannels()
    assert network.layers[-1].weight.shape[0] == 10
    assert network(torch.zeros(2, 1, 48, 60)).shape == (2, 6, 2, 3)


def test_a_class_read_over_ten_channels_changes_the_accuracy_alone():
    outputs = torch.randn(3, 10, 2, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(data.labels.NO_DIGIT).repeat(3, 2, 3, 1)
    labels[:, 0] = torch.tensor([1, 0.5, 0.5, 0.5, 0.5, 0])
    labels[:, 1, 0] = torch.tensor([1, 0.5, 0.5, 0.5, 0.5, 1])
    right = {False: 0, True: 0}
    for image, row, column in itertools.product(range(3), range(2), range(3)):
        pc, *_, class_id = labels[image, row, column]
        cell = outputs[image, :, row, column]
        for ten in right:
            named = cell[5:].argmax() if ten else 0
            right[ten] += int(cell[0] <= 0 or (pc == 1 and named == class_id))
    change = study.read_ten(outputs, labels) - reference_mean(outputs[:, :6], labels)
    assert right[False] != right[True]
    assert change == pytest.approx((right[True] - right[False]) / 18 / 2)


def test_what_a_study_examines_is_of_the_best_epochs_weights(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    splits, normal = sets["det"]
    run = training.fit(study.Unclaimed, splits, normal, replace(training.OWN, epochs=1))
    found = study.examine(run, splits, normal)
    outputs = utils.infer(run.load(), splits.val.images, normal)
    matches = utils.match(outputs, splits.val.labels)
    assert found["missed"] == (matches.digit & ~matches.found).sum()
    assert found["map"] == utils.mean_average_precision(outputs, splits.val.labels).scores
    assert found["map, NMS"] == utils.mean_average_precision(outputs, splits.val.labels, nms_iou=0.5).scores
    assert found["map, unranked"]["map"] != found["map"]["map"]
    assert found["unsnapped mean"] != run.val["mean"]


def test_the_command_writes_down_each_run_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("DATA_SOURCE", "digits")
    monkeypatch.setattr(data, "load", functools.partial(data.load, sizes=(64, 32, 8), folder=tmp_path))
    monkeypatch.setattr(command, "RESULTS", tmp_path / "studies.json")
    other = type("Other", (Tiny,), {"__module__": __name__})
    plan = [(name, network) for name in ("a", "b") for network in (Tiny, other)]
    trials = [study.Trial(*each, replace(SHORT, epochs=2), (1, 2)) for each in plan]
    monkeypatch.setitem(study.PLANS, "seeds", lambda task: trials)
    with pytest.raises(SystemExit):
        command.main(["seeds", "--only", "c"])
    assert "--only: expected one of a, Tiny, Other, b, found c" in capsys.readouterr().err
    made = []
    monkeypatch.setattr(command, "write_down", lambda *row, keep=command.write_down: (made.append(row[2]), keep(*row)))
    for arguments, expected in ((["--only", "b"], 4), ([], 4), ([], 0), (["--only", "a", "--again"], 4)):
        made.clear()
        command.main(["seeds", "--task", "loc", *arguments])
        assert len(made) == expected
        assert ("nothing is lacking" in capsys.readouterr().out) == (not expected)
    found = json.loads((tmp_path / "studies.json").read_text(encoding="utf-8"))
    assert found.keys() == {"loc"}
    rows = found["loc"]["seeds"]
    command.write_down("seeds", "loc", {**rows[0], "settings": {**rows[0]["settings"], "precision": "another"}})
    assert len(json.loads((tmp_path / "studies.json").read_text(encoding="utf-8"))["loc"]["seeds"]) == len(rows)
    found = [(row["name"], row["network"], row["settings"]["seed"]) for row in rows]
    assert found == [(name, network.__name__, seed) for name, network in plan for seed in (1, 2)]
    for row in rows:
        assert row["val"]["mean"] == pytest.approx(max(row["curves"]["val_mean"]), abs=1e-5)
        assert {len(values) for values in row["curves"].values()} == {2}
