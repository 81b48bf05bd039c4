"""What comes out of runs: results.json, the rows of studies, and the tables of both."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from helpers import SHORT, Tiny, fit

import data
import models
import training
import utils
from scripts import study as command
from training import results, study, tables
from training.study import Trial

SCORES = {"accuracy": 0.9, "digit_accuracy": 0.88, "iou": 0.8, "iou_all": 0.75, "mean": 0.85}


def lines_of(table):
    return [line.strip("| ") for line in table.splitlines()[2:]]


def test_runs_are_compared_and_the_first_of_the_best_is_selected():
    history = {"train_loss": [4.0, 2.0, 1.0, 0.5], "val_loss": [3.0, 1.0, 2.0, 1.5]}
    runs = [SimpleNamespace(name=f"Net{n}", best_epoch=3, val={**SCORES, "mean": mean}, history=history)
            for n, mean in enumerate((0.3, 0.85, 0.85))]  # fmt: skip
    assert training.select_best(runs) is runs[1]
    compared, fits = lines_of(tables.compare_runs(runs, runs[1])), {"Net0": {"mean": 0.95, "digit_accuracy": 0.99}}
    assert compared[1] == "**Net1**, selected | 3 | 0.900 | 0.880 | 0.800 | 0.750 | 0.850"
    assert lines_of(tables.fit_table(runs[:1], fits)) == ["Net0 | 0.950 | 0.300 | 1.0% | 12.0% | 2 | ×1.50"]
    recipes = tables.settings_table({"a": training.REFERENCE, "b": replace(training.REFERENCE, width=9, momentum=0.9)})
    assert lines_of(recipes)[-2:] == ["`box_loss` | mse | mse", "`width` | 80 | 9"]
    assert "def lines_of(table)" in tables.source_of(lines_of)


def test_results_of_two_tasks_saved_at_once_are_both_kept(tmp_path, monkeypatch):
    save = results.save_json
    slow = lambda *about, **more: (time.sleep(0.5), save(*about, **more))  # noqa: E731  (after it has been read)
    monkeypatch.setattr(results, "save_json", slow)
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        pool.map(lambda task: results.save_results("figures", task, {"mean": 0.5}), ("loc", "det"))
    assert [results.published_results(task) for task in ("loc", "det")] == [{"mean": 0.5}] * 2


def test_results_stand_beside_what_they_are_to_be_set_beside():
    def network(mean, device):
        return {"val": {**SCORES, "mean": mean}, "trained_on": {"device": device}}

    def scores(iou, *maps):
        return {**SCORES, "iou": iou, **dict(zip(("map", "map50", "map75"), maps))}

    task = {
        "profile": "quick", "source": "mnist", "selected": "Net",
        "networks": {"Net": network(0.9, "CPU, 1 thread, then CPU, 2 threads"), "SkreNet2": network(0.8, "one GPU"),
                     "FloNet2": network(0.7, "CPU, 1 thread")},
        "test": scores(0.8, 0.6, 0.95, 0.7), "interval": {name: [SCORES[name] - 0.01, 1.0] for name in SCORES},
        "unrounded": scores(0.77, 0.5, 0.9, 0.65),
        "others": {"FloNet2": scores(0.3, 0.2, 0.1, 0.1), "SkreNet2": scores(0.5, 0.4, 0.85, 0.3)},
        "baselines": {name: scores(0.45, 0.2, 0.55, 0.1) for name in results.BASELINES},
    }  # fmt: skip
    assert [line.rstrip("| ") for line in lines_of(tables.results_table("det", task))] == [
        "**Net** | 0.900 | 0.800 | 0.850 | 0.600 | 0.950 | 0.700",
        "95 % interval over the test images | 0.890 to 1.000 | 0.790 to 1.000 | 0.840 to 1.000",
        "over cells with a digit, a miss as IoU 0 | 0.880 | 0.750",
        "edges not rounded | 0.900 | 0.770 | 0.850 | 0.500 | 0.900 | 0.650",
        "the box around the visible ink |  | 0.450 |  | 0.200 | 0.550 | 0.100",  # it is told the class
        "the reference's SkreNet2, trained here | 0.900 | 0.500 | 0.850 | 0.400 | 0.850 | 0.300",
        "the reference, as published | 0.877 | 0.781 | 0.829",
        "bright patches: nothing learnt | 0.900 | 0.450 | 0.850 | 0.200 | 0.550 | 0.100",
    ]
    text = tables.headline("det", task)
    assert len(lines_of(text)) == 4 + 2  # and a sentence
    assert text.endswith("Profile `quick` on images generated from MNIST, CPU; SkreNet2 on one GPU.")
    trials = [{"mean": mean, "params": {"depth": n}} for n, mean in enumerate((0.7, None, 0.5, 0.8, 0.2, 0.6, 0.1))]
    lines = lines_of(training.search_table({"images": 1200, "epochs": 4, "trials": trials}))
    assert lines[2:] == ["validation mean | 0.7000 | 0.8000 | 0.6000 | 0.5000 | 0.2000", "`depth` | 0 | 3 | 5 | 2 | 4"]


def test_what_a_study_examines_is_of_the_best_epochs_weights(sets, tmp_path, monkeypatch):
    def measure(outputs, labels, nms_iou=None):
        asked.append((outputs, nms_iou))
        return len(asked)

    val, asked = sets["det"].val, []
    run = fit(sets, tmp_path, "det", replace(training.OWN, epochs=4, batch_size=8, width=16), models.CompactNet2)
    monkeypatch.setattr(utils, "mean_average_precision", measure)
    examined, outputs = study.examine(run, sets["det"]), utils.infer(run.load(), val.images)
    asked = [(given.equal(outputs), nms_iou) for given, nms_iou in asked]
    assert asked == [(True, None), (True, 0.5), (False, None)]  # the last without expected IoU
    missed = (val.labels[..., 0].flatten() > 0) & ~utils.match(outputs, val.labels).detected
    assert examined.items() >= {"missed": missed.sum(), "map": 1, "map_nms": 2, "map_unranked": 3}.items()


def test_the_command_writes_each_row_once(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda task: sets[task])
    trials = [Trial(id, id, network, replace(SHORT, epochs=3, learning_rate=0.3), (1, 2))
              for id, network in (("a", Tiny), ("b", models.SimpleNet))]  # fmt: skip
    monkeypatch.setitem(study.PLANS, "seeds", lambda task: trials)
    made, conduct = [], study.conduct
    monkeypatch.setattr(study, "conduct", lambda *about: (made.append(about[0].id), conduct(*about))[1])
    for argument, expected in {"--only=SimpleNet": "bb", "--only=a": "aa", "--task=loc": ""}.items():
        made.clear()
        command.main(["seeds", "--task=loc", argument])
        assert "".join(made) == expected
    rows = training.read_rows("loc", "seeds")
    assert [(row["id"], row["seed"]) for row in rows] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert any(row["best_epoch"] < 3 for row in rows)  # else the last epoch's scores would do
    for row in rows:
        means = row["curves"]["val_mean"]
        assert row["val"]["mean"] == pytest.approx(max(means), abs=1e-5) == pytest.approx(means[row["best_epoch"] - 1])


def row(id, network="Net", mean=0.5, seed=1, settings=SHORT, precision="float32"):
    """A row of a study, as studies.json holds it."""
    curves = {"val_mean": [0.25, mean, 0.5, 0.5], "val_reference_mean": [0.5, 0.75, 0.5, 0.5]}
    curves["train_reference_mean"] = [0.5, 0.625, 0.875, 0.875]
    examined = {way: dict.fromkeys(("map", "map50", "map75"), value)
                for way, value in (("map", 0.75), ("map_nms", 0.625), ("map_unranked", 0.5))}  # fmt: skip
    about = {"id": id, "seed": seed, "network": network, "n_train": 9, "epochs": 4, "best_epoch": 2, "curves": curves}
    about |= {"label": id}  # which `read_rows` adds
    about |= {"settings": asdict(replace(settings, seed=seed)), "trained_on": {"device": "x", "precision": precision}}
    return {**about, "val": {**SCORES, "mean": mean}, "examined": {"missed": 3, "false_positive": 1, **examined}}


def test_rows_are_those_of_the_plan(tmp_path, monkeypatch):
    def write(rate, mean, seed, precision="float32"):
        settings = replace(SHORT, learning_rate=rate)
        trial = Trial("a", "A", Tiny, settings, (1, 2), precision="float32")
        monkeypatch.setitem(study.PLANS, "box_weight", lambda task: [trial])
        study.write_row(*about, row("a", "Tiny", mean, seed, settings, precision))
        return lines_of(tables.study_table(*about))[-1], [seed for _, seed in study.missing(*about)]

    monkeypatch.chdir(tmp_path)
    about = "loc", "box_weight"
    assert write(0.5, 0.25, 1) == ("A | 1 | 4 | 0.9000 | 0.8000 | 0.2500 | 0.3750", [2])
    assert write(0.5, 0.75, 2) == ("A | 2 | 4 | 0.9000 | 0.8000 | 0.5000 | 0.4375", [])
    assert write(0.25, 0.125, 1) == ("A | 1 | 4 | 0.9000 | 0.8000 | 0.1250 | 0.3438", [2])  # the plan has been edited
    # In its place; of another precision than the plan asks for it is shown, and yet to be made.
    assert write(0.25, 0.875, 1, "bfloat16") == ("A | 1 | 4 | 0.9000 | 0.8000 | 0.8750 | 0.5312", [1, 2])


def test_tables_of_studies_give_means_and_changes(monkeypatch):
    monkeypatch.setattr(tables, "published_curves", lambda name: {"val_mean": [0.125, 0.375]})
    own = {"networks": {"Net": {"val": {**SCORES, "mean": 0.8}, "best_epoch": 3}}}
    monkeypatch.setattr(tables, "published_results", lambda task: own)
    whole, without = [row("all", mean=0.875), row("all", mean=0.9375, seed=2)], row("no_shift")
    made = {
        "seeds": whole, "ingredients": [*whole, without, row("no_shift", mean=0.5625)], "full_length": [row("sgd")],
        "recipes": [row("Net_reference"), row("Net_ours", mean=0.75), row("a", "Half")],
        "reproduction": [row("Net", mean=0.7)], "longer": [row("Net", mean=0.75, settings=training.REFERENCE)],
        "failure": [row("six_shuffled")], "box_weight": [], "recipe": [row("sgd", mean=0.75), row("all", "Other")],
    }  # fmt: skip
    monkeypatch.setattr(tables, "read_rows", lambda task, name: made[name])
    for name, last in (
        ("ingredients", "no_shift | 2 | 0.9000 | 0.8000 | 0.5312 | -0.3750 ± 0.0442 | 0.7500"),
        ("full_length", "sgd | 1 | 0.9000 | 0.8000 | 0.5000 | -0.4062 | 0.7500"),
        ("recipes", "Net | 1 | 0.5000 | 0.7500 | +0.2500"),
        ("reproduction", "Net | 0.3750 | 0.7500 | 0.2500 | 0.5625 | 0.7000 | 0.8000"),
        ("longer", "Net | 0.7500 | 0.5000 | 0.7500 | 0.5000"),
        ("failure", "six_shuffled | 2 | 0.9000 | 0.8000 | 0.5000 | 0.7500"),
    ):
        assert lines_of(tables.study_table("det", name))[-1] == last
    assert lines_of(tables.study_table("det", "recipe"))[-3:] == [
        "Net, the reference's recipe | 3 | 0.9000 | 0.8000 | 0.8000",  # of the published run
        "sgd | 2 | 0.9000 | 0.8000 | 0.7500",
        "all | 2 | 0.9000 | 0.8000 | 0.5000",
    ]
    made["ingredients"] += [row("no_center_gate")]
    values = [line.split(" | ")[1] for line in lines_of(tables.study_table("det", "ranking"))[2:]]
    assert values == ["0.7500", "0.6250", "0.5000"] * 2  # as they are, after suppression, ranked by confidence alone
    made["seeds"] = []  # without which nothing at full length has what it is compared with
    for name in ("full_length", "box_weight"):
        assert tables.study_table("det", name).startswith("*Not part of the published run: `python scripts/study")
