"""Studies: what they train, what of it is kept, and what their tables say."""

import functools
import json
from dataclasses import asdict, replace

import pytest
from helpers import SHORT, Tiny, fit

import data
import models
import training
import utils
from scripts import study as command
from training import results, study, tables
from training.study import Trial


@pytest.mark.parametrize("task", ["loc", "det"])
def test_plans_train_what_they_say(task):
    plans = {name: plan(task) for name, plan in study.PLANS.items()}
    assert all(len({trial.id for trial in trials}) == len(trials) for trials in plans.values())
    networks = {name: [trial.network for trial in trials] for name, trials in plans.items()}
    assert networks["longer"] == ([models.SkreNet, models.FloNet] if task == "loc" else [])
    assert set(networks["recipes"]) == set(models.NETWORKS[task])
    again = [(network, replace(training.REFERENCE, shuffle=False), "float32") for network in models.REFERENCE[task]]
    assert [(trial.network, trial.settings, trial.precision) for trial in plans["reproduction"]] == again
    (seeds,) = plans["seeds"]  # the first of them is the run that the notebooks train
    assert (seeds.settings, seeds.seeds[0]) == (training.PROFILES["full"].own, training.OWN.seed)
    whole, *without = plans["ingredients"]
    assert whole.settings == replace(training.OWN, epochs=study.EPOCHS)
    assert all(trial.settings != whole.settings and trial.n_train == study.N_TRAIN for trial in without)
    short, many = {trial.id: trial.settings for trial in without}, len(study.DECISIVE)
    for trial in plans["full_length"][:many]:
        assert (trial.settings, trial.n_train) == (replace(short[trial.id], epochs=training.OWN.epochs), None)
    best = max(training.published_search(task)["trials"][1:], key=lambda trial: trial["mean"] or 0)
    assert plans["full_length"][many].settings == replace(training.OWN, **best["params"])
    own = max(row["val"]["mean"] for row in training.read_rows(task, "seeds"))
    ahead = {row["id"] for row in training.read_rows(task, "full_length") if row["val"]["mean"] > own}
    assert ahead == {trial.id for trial in plans["full_length"][many:] if trial.seeds == study.SEEDS}


def test_what_a_study_examines_is_of_the_best_epochs_weights(sets, tmp_path, monkeypatch):
    val, asked, decode = sets["det"].val, [], utils.decode
    recipe = replace(training.OWN, epochs=4, batch_size=8, width=16)
    run = fit(sets, tmp_path, "det", recipe, models.CompactNet2)
    monkeypatch.setattr(utils, "decode", lambda *given: (asked.append(given[2]), decode(*given))[1])
    examined, outputs = study.examine(run, sets["det"]), utils.infer(run.load(), val.images)
    assert asked == [None, study.NMS_IOU, None]  # map, map_nms, map_unranked
    matches = utils.match(outputs, val.labels)
    assert examined["missed"] == (matches.digit & ~matches.detected).sum()
    assert examined["map"] == utils.mean_average_precision(outputs, val.labels).scores
    assert examined["map_nms"] == utils.mean_average_precision(outputs, val.labels, nms_iou=0.5).scores
    assert examined["map_unranked"]["map"] != examined["map"]["map"]
    assert examined["unrounded_mean"] != run.val["mean"]


def test_the_command_writes_each_row_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNS_DIR", "runs")
    monkeypatch.setattr(data, "load", functools.partial(data.load, source="digits", sizes=(64, 32, 8), folder=tmp_path))
    trials = [Trial(id, id, network, replace(SHORT, epochs=3, learning_rate=0.3), (1, 2))
              for id, network in (("a", Tiny), ("b", models.SimpleNet))]  # fmt: skip
    monkeypatch.setitem(study.PLANS, "seeds", lambda task: trials)
    with pytest.raises(SystemExit):
        command.main(["seeds", "--only", "c"])
    assert "--only: expected one of a, Tiny, b, SimpleNet, found c" in capsys.readouterr().err
    made, conduct = [], study.conduct
    monkeypatch.setattr(study, "conduct", lambda *about: (made.append(about[0].id), conduct(*about))[1])
    for arguments, expected in (
        ("--only=SimpleNet", "bb"),
        ("--only=a", "aa"),
        ("--task=loc", ""),
        ("--again", "aabb"),
    ):
        made.clear()
        command.main(["seeds", "--task=loc", arguments])
        assert "".join(made) == expected
    rows = training.read_rows("loc", "seeds")
    assert [(row["id"], row["seed"]) for row in rows] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert any(row["best_epoch"] < 3 for row in rows)  # else the last epoch's scores would do
    for row in rows:
        best = max(row["curves"]["val_mean"]), row["curves"]["val_mean"][row["best_epoch"] - 1]
        assert best == pytest.approx((row["val"]["mean"],) * 2, abs=1e-5)


def row(id, network="Net", mean=0.5, seed=1, settings=SHORT, precision="float32"):
    """A row of a study, as studies.json holds it."""
    curves = {"val_mean": [0.25, mean, 0.5, 0.5], "val_reference_mean": [0.5, 0.75, 0.5, 0.5]}
    curves["train_reference_mean"] = [0.5, 0.625, 0.875, 0.875]
    ways = {way: {"map": 0.75 - less, "map50": 0.5 - less, "map75": 0.25 - less}
            for way, less in (("map", 0), ("map_nms", 0.125), ("map_unranked", 0.0625))}  # fmt: skip
    about = {"id": id, "seed": seed, "network": network, "n_train": 9, "epochs": 4, "best_epoch": 2, "curves": curves}
    about |= {"settings": asdict(replace(settings, seed=seed)), "trained_on": {"device": "x", "precision": precision}}
    about["val"] = {"accuracy": 0.9, "digit_accuracy": 0.88, "iou": 0.8, "mean": mean}
    return {**about, "examined": {"missed": 3, "false_positive": 1, **ways}}


def test_rows_are_those_of_the_plan(tmp_path, monkeypatch, capsys):
    def write(rate, mean, seed, precision="float32"):
        settings = replace(SHORT, learning_rate=rate)
        trial = Trial("a", "A", Tiny, settings, (1, 2), precision="float32")
        monkeypatch.setitem(study.PLANS, "box_weight", lambda task: [trial])
        study.write_row(*about, row("a", "Tiny", mean, seed, settings, precision))
        return tables.study_table(*about).splitlines()[-1], [seed for _, seed in study.missing(*about)]

    monkeypatch.chdir(tmp_path)
    about = "loc", "box_weight"
    assert write(0.5, 0.25, 1) == ("| A | 1 | 4 | 0.9000 | 0.8000 | 0.2500 |", [2])
    assert write(0.5, 0.75, 2) == ("| A | 2 | 4 | 0.9000 | 0.8000 | 0.5000 | 0.2500 to 0.7500 |", [])
    assert capsys.readouterr().out == ""
    assert write(0.25, 0.125, 1) == ("| A | 1 | 4 | 0.9000 | 0.8000 | 0.1250 |", [2])  # the plan has been edited
    assert capsys.readouterr().out == "box_weight, loc: a, seed 2 is not the plan's any more and is dropped\n"
    # In its place; of another precision than the plan asks for it is shown, and yet to be made.
    assert write(0.25, 0.875, 1, "bfloat16") == ("| A | 1 | 4 | 0.9000 | 0.8000 | 0.8750 |", [1, 2])
    study.STUDIES.write_text(json.dumps({"loc": {"box_weight": [{"id": "a"}]}}), encoding="utf-8")
    with pytest.raises(data.DataError, match=r"^figures.studies\.json: expected rows of the study box_weight, found"):
        study.read_rows(*about)


def test_tables_of_studies_give_means_ranges_and_changes(monkeypatch):
    rows = [row("all", mean=0.875), row("all", mean=0.9375, seed=2), row("no_shift")]
    assert tables.ingredients_table("det", "ingredients", rows).splitlines()[2:] == [
        "| the whole recipe | 2 | 0.9000 | 0.8800 | 0.8000 | 0.9062 | 0.8750 to 0.9375 |  | 3 | 1 | 0.7500 |",
        "| no shifted images | 1 | 0.9000 | 0.8800 | 0.8000 | 0.5000 |  | -0.4062 | 3 | 1 | 0.7500 |",
    ]
    means = [line.split(" | ")[1] for line in tables.ranking_table("det", "ingredients", rows).splitlines()[2:]]
    assert means == ["0.7500", "0.6250", "0.6875"]  # as they are, after suppression, ranked by confidence alone
    rows = [row("Net_reference"), row("Net_ours", mean=0.75), row("Half_ours", "Half")]
    assert tables.recipes_table("det", "recipes", rows).splitlines()[2:] == ["| Net | 1 | 0.5000 | 0.7500 | +0.2500 |"]
    published = {"val_mean": [0.125, 0.375], "train_mean": [0.25, 0.5]}
    monkeypatch.setattr(tables, "published_curves", lambda network: published)
    monkeypatch.setattr(tables, "published_results", lambda task: {"networks": {"Net": {"val": {"mean": 0.8}}}})
    lines = tables.reproduction_table("loc", "reproduction", [row("Net", mean=0.7)]).splitlines()
    assert lines[2] == "| Net | 0.3750 | 2 | 0.5000 | 0.7500 | 2 | 0.6250 | 0.7000 | 0.8000 |"
    rows = [row("Net", mean=0.75, settings=settings) for settings in (SHORT, training.REFERENCE)]
    lines = [f"| Net | 0.2500 | 0.7500 | 2 of 4{end} |" for end in ("", ", then it diverged")]
    assert tables.longer_table("loc", "longer", rows, (1, 3, 9)).splitlines()[2:] == lines  # nothing of nine epochs
    lines = tables.failure_table("det", "failure", [row("six_shuffled")]).splitlines()
    assert lines[2] == "| six channels, shuffled | 4 | 2 | 0.9000 | 0.8000 | 0.5000 | 0.7500 |"
    made = {"seeds": [row("CompactNet2", mean=0.875)], "full_length": [row("sgd")]}
    monkeypatch.setattr(tables, "read_rows", lambda task, name: made[name])
    assert " | -0.3750 | " in tables.study_table("det", "full_length").splitlines()[-1]
    made["seeds"] = []  # not made yet
    assert tables.study_table("det", "full_length").startswith("*Not part of the published run")
