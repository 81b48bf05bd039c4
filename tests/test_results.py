"""What comes out of runs: results.json, the rows of studies, and the tables of both."""

import functools
import threading
import time
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
    assert compared[1] == "**Net1**, selected | 3 | 0.9000 | 0.8800 | 0.8000 | 0.7500 | 0.8500"
    line = "Net0 | 0.9500 | 0.3000 | +0.6500 | 1.00% | 12.00% | 2 of 4 | ×0.25 | ×1.50"
    assert lines_of(tables.fit_table(runs[:1], fits)) == [line]


def test_results_of_two_tasks_saved_at_once_are_both_kept(tmp_path, monkeypatch):
    """Whatever folders their runs are kept in: the lock lies beside the file."""
    reading, save = threading.Event(), results.save_json
    monkeypatch.chdir(tmp_path)
    slow = lambda *about, **more: (reading.set(), time.sleep(0.3), save(*about, **more))  # noqa: E731
    monkeypatch.setattr(results, "save_json", slow)
    monkeypatch.setenv("RUNS_DIR", "a")
    other = threading.Thread(target=results.save_results, args=("figures", "det", {"mean": 0.5}))
    other.start()
    assert reading.wait(60)
    monkeypatch.setenv("RUNS_DIR", "b")
    results.save_results("figures", "loc", {"mean": 0.25})
    other.join()
    assert [results.published_results(task) for task in ("loc", "det")] == [{"mean": 0.25}, {"mean": 0.5}]


def test_results_stand_beside_what_they_are_to_be_set_beside(monkeypatch):
    def network(epochs, asked, device):
        about = {"best_epoch": 3, "epochs": epochs, "settings": {"epochs": asked, "seed": 7}, "n_train": 3000}
        return {**about, "val": SCORES, "trained_on": {"device": device}}

    def scores(iou, *maps):
        return {**SCORES, "iou": iou, **dict(zip(("map", "map50", "map75"), maps))}

    task = {
        "profile": "quick", "source": "mnist", "images": {"train": 12_000}, "selected": "Net",
        "networks": {"Net": network(4, 4, "CPU, 1 thread, then CPU, 2 threads"), "SkreNet2": network(7, 7, "one GPU")},
        "test": scores(0.8, 0.6, 0.95, 0.7), "interval": {name: [SCORES[name] - 0.01, 1.0] for name in SCORES},
        "unrounded": scores(0.77, 0.5, 0.9, 0.65), "others": {"SkreNet2": scores(0.5, 0.4, 0.85, 0.3)},
        "baselines": {name: scores(0.45, 0.2, 0.55, 0.1) for name in results.BASELINES},
    }  # fmt: skip
    rows = [{"settings": {"epochs": epochs, "seed": seed}, "val": {**SCORES, "mean": 0.84 + seed / 100}}
            for epochs, seed in ((4, 0), (4, 2), (60, 1))]  # the last is of another recipe  # fmt: skip
    monkeypatch.setattr(tables, "read_rows", lambda task, study: rows)
    (reference, *_), (others, *_), rest = *results.PUBLISHED["det"], ("bright", "trivial")
    assert [line.rstrip("| ") for line in lines_of(tables.results_table("det", task))] == [
        "**this run: Net**, best epoch 3 of 4, 12,000 images | 0.9000 | 0.8000 | 0.8500 | 0.6000 | 0.9500 | 0.7000",
        "95 % interval over the test images | 0.8900 to 1.0000 | 0.7900 to 1.0000 | 0.8400 to 1.0000",
        "2 seeds, on validation images | 0.9000 to 0.9000 | 0.8000 to 0.8000 | 0.8400 to 0.8600",
        "over cells with a digit only, a miss as IoU 0 | 0.8800 | 0.7500",
        "without rounding edges to whole pixels | 0.9000 | 0.7700 | 0.8500 | 0.5000 | 0.9000 | 0.6500",
        f"{results.BASELINES['visible']} |  | 0.4500 |  | 0.2000 | 0.5500 | 0.1000",  # it is told the class
        "the reference's SkreNet2 here, 7 epochs | 0.9000 | 0.5000 | 0.8500 | 0.4000 | 0.8500 | 0.3000",
        f"{reference} | 0.8767 | 0.7810 | 0.8288", f"{others} | 0.9672 | 0.7715 | 0.8684 | 0.5363 | 0.9394 | 0.5735",
        *(f"{results.BASELINES[name]} | 0.9000 | 0.4500 | 0.8500 | 0.2000 | 0.5500 | 0.1000" for name in rest),
    ]  # fmt: skip
    text = tables.headline("det", task)
    assert "| **Net** | 0.9000 | 0.8000 | 0.8500 | 0.6000 |" in text
    assert (
        " generated from MNIST, CPU; SkreNet2 on one GPU. Less than in the full run: SkreNet2 (7 of 60 epochs" in text
    )
    trials = [{"mean": mean, "params": {"depth": n}} for n, mean in enumerate((0.7, None, 0.5, 0.8, 0.2, 0.6, 0.1))]
    lines = lines_of(training.search_table({"images": 1200, "epochs": 4, "trials": trials}))
    assert lines[2:] == ["validation mean | 0.7000 | 0.8000 | 0.6000 | 0.5000 | 0.2000", "depth | 0 | 3 | 5 | 2 | 4"]


@pytest.mark.parametrize("task", ["loc", "det"])
def test_studies_train_what_they_say(task):
    plans = {name: plan(task) for name, plan in study.PLANS.items()}
    assert all(len({trial.id for trial in trials}) == len(trials) for trials in plans.values())
    again = [(network, replace(training.REFERENCE, shuffle=False), "float32") for network in models.REFERENCE[task]]
    assert [(trial.network, trial.settings, trial.precision) for trial in plans["reproduction"]] == again
    (seeds,) = plans["seeds"]  # the first of them is the run that the notebooks train
    assert (seeds.settings, seeds.seeds[0]) == (training.PROFILES["full"].own, training.OWN.seed)
    short, full = ({trial.id: trial.settings for trial in plans[name]} for name in ("ingredients", "full_length"))
    assert len({*short.values()}) == len(short)  # each leaves out something else
    assert {id: full[id] for id in study.DECISIVE} == {id: replace(short[id], epochs=40) for id in study.DECISIVE}
    best = max(training.published_search(task)["trials"][1:], key=lambda trial: trial["mean"] or 0)
    assert full["search_1"] == replace(training.OWN, **best["params"])


def test_what_a_study_examines_is_of_the_best_epochs_weights(sets, tmp_path, monkeypatch):
    val, asked, decode = sets["det"].val, [], utils.decode
    recipe = replace(training.OWN, epochs=4, batch_size=8, width=16)
    run = fit(sets, tmp_path, "det", recipe, models.CompactNet2)
    monkeypatch.setattr(utils, "decode", lambda *given: (asked.append(given), decode(*given))[1])
    examined, network = study.examine(run, sets["det"]), run.load()
    (first, *_), (second, _, nms_iou), (unranked, *_) = asked
    outputs = utils.infer(network, val.images)
    assert [each.equal(outputs) for each in (first, second, unranked)] == [True, True, False]
    for name, given, overlap in (("map", outputs, None), ("map_nms", outputs, 0.5), ("map_unranked", unranked, None)):
        assert examined[name] == utils.mean_average_precision(given, val.labels, nms_iou=overlap).scores
    missed = (val.labels[..., 0].flatten() > 0) & ~utils.match(outputs, val.labels).detected
    assert (nms_iou, examined["missed"]) == (0.5, missed.sum())
    network[1].round_edges = False
    assert examined["unrounded_mean"] == utils.evaluate(network, val)["mean"] != run.val["mean"]


def test_the_command_writes_each_row_once(sets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNS_DIR", "runs")
    monkeypatch.setattr(data, "load", lambda task: sets[task])
    trials = [Trial(id, id, network, replace(SHORT, epochs=3, learning_rate=0.3), (1, 2))
              for id, network in (("a", Tiny), ("b", models.SimpleNet))]  # fmt: skip
    monkeypatch.setitem(study.PLANS, "seeds", lambda task: trials)
    with pytest.raises(SystemExit):
        command.main(["seeds", "--only", "c"])
    assert "--only: expected one of a, Tiny, b, SimpleNet, found c" in capsys.readouterr().err
    made, conduct = [], study.conduct
    monkeypatch.setattr(study, "conduct", lambda *about: (made.append(about[0].id), conduct(*about))[1])
    for argument, expected in {"--only=SimpleNet": "bb", "--only=a": "aa", "--task=loc": "", "--again": "aabb"}.items():
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
    about |= {"settings": asdict(replace(settings, seed=seed)), "trained_on": {"device": "x", "precision": precision}}
    return {**about, "val": {**SCORES, "mean": mean}, "examined": {"missed": 3, "false_positive": 1, **examined}}


def test_rows_are_those_of_the_plan(tmp_path, monkeypatch, capsys):
    def write(rate, mean, seed, precision="float32"):
        settings = replace(SHORT, learning_rate=rate)
        trial = Trial("a", "A", Tiny, settings, (1, 2), precision="float32")
        monkeypatch.setitem(study.PLANS, "box_weight", lambda task: [trial])
        study.write_row(*about, row("a", "Tiny", mean, seed, settings, precision))
        shown, missing = lines_of(tables.study_table(*about)), [seed for _, seed in study.missing(*about)]
        return shown[-1], missing, capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    about, dropped = ("loc", "box_weight"), "box_weight, loc: a, seed 2 is not the plan's any more and is dropped\n"
    assert write(0.5, 0.25, 1) == ("A | 1 | 4 | 0.9000 | 0.8000 | 0.2500", [2], "")
    assert write(0.5, 0.75, 2) == ("A | 2 | 4 | 0.9000 | 0.8000 | 0.5000 | 0.2500 to 0.7500", [], "")
    assert write(0.25, 0.125, 1) == ("A | 1 | 4 | 0.9000 | 0.8000 | 0.1250", [2], dropped)  # the plan has been edited
    # In its place; of another precision than the plan asks for it is shown, and yet to be made.
    assert write(0.25, 0.875, 1, "bfloat16") == ("A | 1 | 4 | 0.9000 | 0.8000 | 0.8750", [1, 2], "")
    study.STUDIES.write_text('{"loc": {"box_weight": [{"id": "a"}]}}', encoding="utf-8")
    with pytest.raises(data.DataError, match=r"^figures.studies\.json: expected rows of the study box_weight, found"):
        study.read_rows(*about)


def test_tables_of_studies_give_means_ranges_and_changes(monkeypatch):
    monkeypatch.setattr(tables, "published_curves", lambda name: {"val_mean": [0.1, 0.375], "train_mean": [0.25, 0.5]})
    monkeypatch.setattr(tables, "published_results", lambda task: {"networks": {"Net": {"val": {"mean": 0.8}}}})
    whole, without = [row("all", mean=0.875), row("all", mean=0.9375, seed=2)], row("no_shift")
    again = row("Net", mean=0.75, settings=training.REFERENCE)
    for table, task, name, rows, expected in (
        (tables.ingredients_table, "det", "ingredients", [*whole, without],
         ["the whole recipe | 2 | 0.9000 | 0.8800 | 0.8000 | 0.9062 | 0.8750 to 0.9375 |  | 3 | 1 | 0.7500",
          "no shifted images | 1 | 0.9000 | 0.8800 | 0.8000 | 0.5000 |  | -0.4062 | 3 | 1 | 0.7500"]),
        (tables.recipes_table, "det", "recipes", [row("Net_reference"), row("Net_ours", mean=0.75), row("a", "Half")],
         ["Net | 1 | 0.5000 | 0.7500 | +0.2500"]),
        (tables.reproduction_table, "loc", "reproduction", [row("Net", mean=0.7)],
         ["Net | 0.3750 | 2 | 0.5000 | 0.7500 | 2 | 0.6250 | 0.7000 | 0.8000"]),
        (functools.partial(tables.longer_table, marks=(1, 3, 9)), "loc", "longer", [again],
         ["Net | 0.2500 | 0.7500 | 2 of 4, then it diverged"]),
        (tables.failure_table, "det", "failure", [row("six_shuffled")],
         ["six channels, shuffled | 4 | 2 | 0.9000 | 0.8000 | 0.5000 | 0.7500"]),
    ):  # fmt: skip
        assert lines_of(table(task, name, rows)) == expected
    means = [line.split(" | ")[1] for line in lines_of(tables.ranking_table("det", "ingredients", whole))]
    assert means == ["0.7500", "0.6250", "0.5000"]  # as they are, after suppression, ranked by confidence alone
    made = {"seeds": whole, "full_length": [row("sgd")]}
    monkeypatch.setattr(tables, "read_rows", lambda task, name: made[name])
    assert " | -0.4062 | " in lines_of(tables.study_table("det", "full_length"))[-1]
    made["seeds"] = []  # not made yet
    assert tables.study_table("det", "full_length").startswith("*Not part of the published run")
