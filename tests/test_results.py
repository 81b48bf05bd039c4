"""What comes out of a task: the best run, how losses end, results.json, and the tables."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from training import results, study, study_tables, tables
from training.reference import published_curves

SCORES = {"accuracy": 0.9, "digit_accuracy": 0.88, "iou": 0.8, "iou_all": 0.75, "mean": 0.85}


def run(name="Net", mean=0.85, **history):
    scores = {**SCORES, "mean": mean}
    return SimpleNamespace(name=name, best_epoch=3, train={"mean": 0.95}, val=scores, history=history)


@pytest.fixture
def found():
    """The results of a task, as far as tables read them."""
    network = {"parameters": 42_281, "images": 3000, "best_epoch": 3, "epochs": 4, "seconds": 90, "val": SCORES}
    network["settings"] = {"epochs": 4, "seed": 7}
    return {
        "profile": "quick",
        "source": "mnist",
        "images": {"train": 12_000},
        "networks": {
            "Net": {**network, "trained_on": {"device": "CPU, 1 thread, then CPU, 2 threads"}},
            "SkreNet2": {
                **network,
                "epochs": 7,
                "settings": {**network["settings"], "epochs": 7},
                "trained_on": {"device": "one GPU"},
            },
        },
        "selected": "Net",
        "test": {**SCORES, "map": 0.6, "map50": 0.95, "map75": 0.7},
        "interval": {name: [SCORES[name] - 0.01, SCORES[name] + 0.01] for name in SCORES},
        "unsnapped": {**SCORES, "iou": 0.77, "map": 0.5, "map50": 0.9, "map75": 0.6},
        "others": {"SkreNet2": {**SCORES, "iou": 0.5, "map": 0.4, "map50": 0.8, "map75": 0.3}},
        "baselines": {name: {**SCORES, "map": 0.2, "map50": 0.5, "map75": 0.1} for name in results.BASELINES},
    }


def test_the_best_run_is_the_first_with_the_highest_validation_mean():
    runs = [run(mean=mean) for mean in (0.3, 0.7, 0.7, 0.5)]
    assert results.select_best(runs) is runs[1]
    with pytest.raises(ValueError, match="at least one"):
        results.select_best([])


def test_losses_are_compared_with_those_where_validation_loss_was_lowest():
    history = {"train_loss": [4.0, 2.0, 1.0, 0.5], "val_loss": [3.0, 1.0, 2.0, 1.5]}
    assert results.loss_ends(history) == {"lowest": 2, "train": 0.25, "val": 1.5}


def test_the_fit_is_told_alike_of_training_and_validation_images():
    fit = {"Net": {**SCORES, "mean": 0.95, "digit_accuracy": 0.99}}
    text = tables.fit_table([run(train_loss=[2.0, 1.0], val_loss=[2.0, 3.0])], fit)
    assert "| Net | 0.9500 | 0.8500 | +0.1000 | 1.00% | 12.00% | 1 of 2 | ×0.50 | ×1.50 |" in text


def test_results_of_one_task_leave_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results.published_results("loc") is None
    for task, mean in (("loc", 0.5), ("det", 0.7), ("loc", 0.6)):
        results.save_results("figures", task, {"test": {"mean": mean}})
    assert results.published_results("loc") == {"test": {"mean": 0.6}}
    assert results.published_results("det") == {"test": {"mean": 0.7}}


def test_markdown_aligns_numbers_and_rounds_fractions():
    table = tables.markdown_table(("name", "count", "share"), [("a", 12345, 0.123456), ("b", 1, 1.0)])
    assert table.splitlines() == [
        "| name | count | share |",
        "| --- | ---: | ---: |",
        "| a | 12,345 | 0.1235 |",
        "| b | 1 | 1.0000 |",
    ]


def test_the_headline_is_the_table_and_how_large_the_run_was(found):
    rows = [{"network": "Net", "settings": {"epochs": 4, "seed": seed}, "val": {**SCORES, "mean": 0.84 + seed / 100}}
            for seed in (0, 2)]  # fmt: skip
    seeds = {"seeds": [*rows, {**rows[0], "settings": {"epochs": 60, "seed": 1}}]}  # the last is of another recipe
    text = tables.headline("det", found, seeds)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()[2:] if line.startswith("|")]
    assert [line[0] for line in lines] == [
        "**this run: Net**, best epoch 3 of 4, 12,000 images",
        "95 % interval over the test images",
        "2 seeds, on validation images",
        "over cells with a digit only, a miss as IoU 0",
        "without snapping edges to whole pixels",
        results.BASELINES["visible"],
        "the reference's SkreNet2 here, 7 epochs",
        *(row[0] for row in results.PUBLISHED["det"]),
        *(results.BASELINES[name] for name in ("bright", "trivial")),
    ]
    for part in (
        "12,000 images | 0.9000 | 0.8000 | 0.8500 | 0.6000 | 0.9500 | 0.7000 |",
        "test images | 0.8900 to 0.9100 | 0.7900 to 0.8100 | 0.8400 to 0.8600 |",
        "validation images | 0.9000 to 0.9000 | 0.8000 to 0.8000 | 0.8400 to 0.8600 |",
        "a miss as IoU 0 | 0.8800 | 0.7500 |  |  |  |  |",
        "whole pixels | 0.9000 | 0.7700 | 0.8500 |",
        "visible ink |  | 0.8000 |  | 0.2000 | 0.5000 | 0.1000 |",  # an oracle's accuracy means nothing
        "SkreNet2 here, 7 epochs | 0.9000 | 0.5000 | 0.8500 | 0.4000 | 0.8000 | 0.3000 |",
        "SkreNet2, 60 epochs | 0.8767 | 0.7810 | 0.8288 |  |  |  |",
        "the best of any | 0.9672 | 0.7715 | 0.8684 | 0.5363 | 0.9394 | 0.5735 |",
        "bright pixels | 0.9000 | 0.8000 | 0.8500 | 0.2000 | 0.5000 | 0.1000 |",
        "Profile `quick` on images made from MNIST, CPU; SkreNet2 on one GPU.",
        "Less than in the full run: SkreNet2 (7 of 60 epochs, 3,000 images).",
    ):
        assert part in text
    assert "seeds, on" not in tables.headline("det", found, {})
    whole = {**found["networks"]["SkreNet2"], "settings": {"epochs": 60, "seed": 7}, "images": 27_000}  # it diverged
    assert tables.trained_less("det", {**found, "networks": {"SkreNet2": whole}}) == []


def test_tables_of_networks_mark_the_chosen_one(found):
    runs = [run("Net"), run("SkreNet2", 0.8)]
    lines = tables.compare_runs(runs, runs[0]).splitlines()[2:]
    assert lines[0] == "| **Net**, selected | 3 | 0.9000 | 0.8800 | 0.8000 | 0.7500 | 0.8500 |"
    assert lines[1] == "| SkreNet2 | 3 | 0.9000 | 0.8800 | 0.8000 | 0.7500 | 0.8000 |"
    lines = tables.training_table(found).splitlines()[2:]
    assert lines[0] == "| **Net** | 42,281 | 3,000 | 4 | 1.5 | 0.9000 | 0.8000 | 0.8500 |"
    assert lines[1].startswith("| SkreNet2 | 42,281 | 3,000 | 7 |")
    found["networks"]["SkreNet2"]["settings"]["epochs"] = 60
    assert "| 3,000 | 7, then it diverged |" in tables.training_table(found)
    assert "SkreNet2 here, 7 epochs, then it diverged |" in tables.results_table("det", found, {})


def row(name, network, mean, missed=3):
    """A row of a study, as studies.json holds it."""
    maps = {"map": 0.75, "map50": 0.5, "map75": 0.25}
    ways = {way: {key: value - less for key, value in maps.items()} for way, less in
            (("map", 0), ("map, NMS", 0.125), ("map, unranked", 0.0625))}  # fmt: skip
    about = {"name": name, "network": network, "val": {**SCORES, "mean": mean}, "epochs": 4, "best_epoch": 3}
    about["settings"] = {"epochs": 4}
    curves = {"val_mean": [0.25, mean, 0.5], "val_reference_mean": [0.5, 0.75, 0.5]}
    curves["train_reference_mean"] = [0.5, 0.625, 0.875]
    return {**about, "examined": {"missed": missed, "false positive": 1, **ways}, "curves": curves}


def test_a_study_says_what_of_it_was_left_out_and_how_long_it_would_take(monkeypatch):
    (trial,) = study.plan_seeds("det")
    ours = {
        "seconds": 3600.0,
        "epochs": 2,
        "images": 3000,
        "trained_on": {"device": "one GPU"},
    }  # and 1000 validated, which count half
    found = {"networks": {"CompactNet2": ours}, "images": {"train": 6000, "val": 1000}}
    assert study_tables.hours_of(trial, found) == pytest.approx(3 * trial.settings.epochs * 6500 / 3500 / 2)
    monkeypatch.setattr(study_tables, "published_results", lambda task: found)
    monkeypatch.setattr(study_tables, "published_studies", lambda task: {})
    assert study_tables.study_table("det", "seeds").endswith("seeds --task det` makes it in about 111 h (one GPU).*")
    settings = [asdict(replace(trial.settings, seed=seed)) for seed in trial.seeds]
    rows = [{"name": trial.name, "network": trial.name, "settings": each} for each in settings]
    assert [each.seeds for each in study_tables.lacking("det", "seeds", rows[:1])] == [trial.seeds[1:]]
    assert study_tables.lacking("det", "seeds", rows) == []
    other = [{**one, "settings": {**one["settings"], "precision": "another"}} for one in rows]  # as another device's is
    assert study_tables.lacking("det", "seeds", other) == []
    other = [*rows[1:], {**rows[0], "settings": {**settings[0], "epochs": 3}}]
    assert [each.seeds for each in study_tables.lacking("det", "seeds", other)] == [trial.seeds[:1]]
    left = study_tables.lacking("det", "recipes", rows)
    begun = [{"name": "ours", "network": "CompactNet2"}]
    said = f"SkreNet2, SimpleNet2, FloNet2, CompactNet2, CompactNet2 from {len(study.SEEDS)} further seeds"
    assert study_tables.what_of(left, begun) == said
    sgd, *others = study.plan_full_length("det")
    begun = [{"name": sgd.name, "network": sgd.network.__name__}]
    said = f"“{sgd.name}” from 1 further seed, “{others[0].name}”"
    assert study_tables.what_of([sgd._replace(seeds=(44,)), others[0]], begun) == said


def test_tables_of_studies_give_means_ranges_and_changes():
    whole = [row("the whole recipe", "Net", mean) for mean in (0.875, 0.9375)]
    rows = [*whole, row("no shifts", "Net", 0.5, missed=7)]
    text = study_tables.ingredients_table(rows)
    assert "| the whole recipe | 2 | 0.9000 | 0.8800 | 0.8000 | 0.9062 | 0.8750 to 0.9375 |  | 3 | 1 | 0.7500 |" in text
    assert "| no shifts | 1 | 0.9000 | 0.8800 | 0.8000 | 0.5000 |  | -0.4062 | 7 | 1 | 0.7500 |" in text
    for part in ("recipe | 0.7500 | 0.5000 | 0.2500 |", "suppression | 0.6250 | 0.3750 | 0.1250 |", "alone | 0.6875 |"):
        assert part in study_tables.ranking_table(rows)
    rows = [row("the reference's recipe", "Net", 0.5), row("ours", "Net", 0.75), row("ours", "Half", 0.75)]
    assert study_tables.recipes_table(rows).splitlines()[2:] == ["| Net | 1 | 0.5000 | 0.7500 | +0.2500 |"]


def test_runs_of_full_length_are_held_against_the_seeds(monkeypatch):
    seed, without = (
        {**row(name, "Net", mean), "images": 9, "trained_on": {"device": f"{name} GPU"}}
        for name, mean in (("Net", 0.875), ("no shifts", 0.5))
    )
    kept = {"seeds": [seed], "full_length": [without]}
    monkeypatch.setattr(study_tables, "published_studies", lambda task: kept)
    monkeypatch.setattr(study_tables, "lacking", lambda *plan: [])
    said, _, _, _, *lines = study_tables.study_table("det", "full_length").splitlines()
    assert said.endswith("trained on Net GPU and no shifts GPU*")
    assert [line.split(" | ")[0] for line in lines] == ["| the whole recipe", "| no shifts"]
    assert " | -0.3750 | " in lines[1]
    del kept["seeds"]  # not made yet
    assert study_tables.study_table("det", "full_length") == ""


def test_tables_of_training_again_and_longer_set_epochs_beside_each_other():
    published = published_curves("FloNet")
    best = max(published["val_mean"])
    epoch = published["val_mean"].index(best)
    text = study_tables.reproduction_table([row("FloNet", "FloNet", 0.7)], {"FloNet": {"val": {"mean": 0.8}}})
    theirs = f"| FloNet | {best:.4f} | {epoch + 1} | {published['train_mean'][epoch]:.4f}"
    assert text.splitlines()[2] == f"{theirs} | 0.7500 | 2 | 0.6250 | 0.7000 | 0.8000 |"
    assert study_tables.longer_table([row("FloNet", "FloNet", 0.75)], (1, 3, 9)).splitlines()[2:] == [
        "| FloNet | 0.2500 | 0.7500 | 2 of 3 |"  # nothing of nine epochs
    ]
    diverged = {**row("FloNet", "FloNet", 0.75), "settings": {"epochs": 60}}
    assert study_tables.longer_table([diverged]).endswith("| 2 of 3, then it diverged |")
    ten = row("ten", "TenChannels", 0.7)
    ten["examined"]["reference mean, ten channels"] = 0.625
    assert study_tables.failure_table([row("six", "FloNet2", 0.7), ten]).splitlines()[2:] == [
        "| six | 4 | 3 | 0.9000 | 0.8000 | 0.7000 | 0.5000 |  |",
        "| ten | 4 | 3 | 0.9000 | 0.8000 | 0.7000 | 0.5000 | 0.6250 |",
    ]


def test_the_table_of_a_search_sets_the_best_trials_beside_the_recipe_by_hand():
    means = (0.75, None, 0.5, 0.875, 0.25, 0.625, 0.125)
    trials = [{"mean": mean, "params": {"depth": n, "learning_rate": 0.004}} for n, mean in enumerate(means)]
    said, _, *lines = study_tables.search_table({"images": 1200, "epochs": 4, "trials": trials}).splitlines()
    assert said == "*7 trials of 4 epochs on 1,200 training images, 1 of them ended early because they fell behind*"
    named = [f"no. {number} of the search" for number in range(1, results.BEST + 1)]
    assert lines[0] == f"|  | by hand | {' | '.join(named)} |"
    assert lines[2:] == [
        "| validation mean | 0.7500 | 0.8750 | 0.6250 | 0.5000 | 0.2500 |",
        "| depth | 0 | 3 | 5 | 2 | 4 |",
        "| learning rate | 0.004 | 0.004 | 0.004 | 0.004 | 0.004 |",
    ]
    trials[0]["mean"] = None
    found = study_tables.search_table({"images": 1200, "epochs": 4, "trials": trials})
    assert "| validation mean | ended early |" in found


def test_scores_are_printed_with_their_names(found, capsys):
    tables.print_scores(run(), {**found["test"], "map_class1": 0.5})
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    said = {line[0]: line[-1].strip() for line in lines}
    assert (said["network"], said["epoch"], said["test: mean accuracy"]) == ("Net", "3", "0.8500")
    assert (said["test: mAP@.50"], said["test: AP@[.50:.95] of class 1"]) == ("0.9500", "0.5000")
