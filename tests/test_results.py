"""What comes out of a task: the best run, what curves say, results.json, and the tables."""

from types import SimpleNamespace

import pytest

from training import results

SCORES = {"accuracy": 0.9, "digit_accuracy": 0.88, "iou": 0.8, "iou_all": 0.75, "mean": 0.85}


def run(name="Net", mean=0.85, **history):
    scores = {**SCORES, "mean": mean}
    return SimpleNamespace(name=name, best_epoch=3, train={"mean": 0.95}, val=scores, history=history)


@pytest.fixture
def found():
    """The results of a task, as far as tables read them."""
    network = {"parameters": 42_281, "pictures": 3000, "best_epoch": 3, "epochs": 4, "seconds": 90, "val": SCORES}
    return {
        "profile": "quick",
        "source": "mnist",
        "pictures": {"train": 12_000},
        "networks": {"Net": {**network, "trained_on": {"device": "CPU, 2 threads"}}, "Other": {**network, "epochs": 7}},
        "selected": "Net",
        "test": {**SCORES, "map": 0.6, "map50": 0.95, "map75": 0.7},
        "reference": {"network": "Other", "test": {**SCORES, "iou": 0.5, "map": 0.4, "map50": 0.8, "map75": 0.3}},
        "baselines": {name: {**SCORES, "map": 0.2, "map50": 0.5, "map75": 0.1} for name in results.BASELINES},
    }


def test_the_best_run_is_the_first_with_the_highest_validation_mean():
    runs = [run(mean=mean) for mean in (0.3, 0.7, 0.7, 0.5)]
    assert results.select_best(runs) is runs[1]
    with pytest.raises(ValueError, match="at least one"):
        results.select_best([])


@pytest.mark.parametrize(
    ("train_loss", "val_loss", "said"),
    [
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0], "lowest in epoch 3 of 3: still falling, training longer would help."),
        ([3.0, 2.0, 1.0, 0.5], [3.0, 1.0, 1.5, 1.5], "lowest in epoch 2 of 4, 50% higher in the last: overfitting."),
        ([3.0, 2.0, 1.0, 0.5], [3.0, 1.0, 1.05, 1.01], "1% higher in the last: hardly any overfitting."),
        ([2.4, 1.0, 1.7, 2.6], [2.2, 0.5, 2.6, 2.6], "420% higher in the last, and training loss rose as well: "),
        ([2.4, 1.0, 1.01, 1.01], [2.2, 0.5, 0.5, 0.51], "2% higher in the last: hardly any overfitting."),
    ],
)
def test_curves_tell_underfitting_overfitting_and_divergence_apart(train_loss, val_loss, said):
    history = {"train_loss": train_loss, "val_loss": val_loss}
    text = results.diagnose(run(mean=0.75, **history))
    assert "mean 0.9500 on training, 0.7500 on validation pictures, gap +0.2000;" in text
    assert said in text
    assert results.diverged(history) == ("training diverged" in text) == ("rose as well" in said)


def test_results_of_one_task_leave_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results.published_results("loc") is None
    for task, mean in (("loc", 0.5), ("det", 0.7), ("loc", 0.6)):
        results.save_results("figures", task, {"test": {"mean": mean}})
    assert results.published_results("loc") == {"test": {"mean": 0.6}}
    assert results.published_results("det") == {"test": {"mean": 0.7}}


def test_markdown_aligns_numbers_and_rounds_fractions():
    table = results.markdown_table(("name", "count", "share"), [("a", 12345, 0.123456), ("b", 1, 1.0)])
    assert table.splitlines() == [
        "| name | count | share |",
        "| --- | ---: | ---: |",
        "| a | 12,345 | 0.1235 |",
        "| b | 1 | 1.0000 |",
    ]


def test_the_headline_is_the_table_and_how_large_the_run_was(found):
    text = results.headline(found, "det")
    assert "Net**, 3 of 4 epochs, 12,000 pictures | 0.9000 | 0.8000 | 0.8500 | 0.6000 | 0.9500 | 0.7000 |" in text
    assert "| the same, over cells with a digit only, a miss as IoU 0 | 0.8800 | 0.7500 |  |" in text
    assert "network here, Other, 7 epochs | 0.9000 | 0.5000 | 0.8500 | 0.4000 | 0.8000 | 0.3000 |" in text
    assert "SkreNet2, 60 epochs | 0.8767 | 0.7810 | 0.8288 |  |" in text
    assert "cells with a digit | 0.9672 | 0.7715 | 0.8684 | 0.5363 | 0.9394 | 0.5735 |" in text
    assert "visible ink |  | 0.8000 |  | 0.2000 | 0.5000 | 0.1000 |" in text  # an oracle's accuracy means nothing
    assert "bright pixels | 0.9000 | 0.8000 | 0.8500 | 0.2000 | 0.5000 | 0.1000 |" in text
    assert "Profile `quick` on pictures made from MNIST, CPU, 2 threads. **This is not the full run**" in text
    assert "not the full run" not in results.headline({**found, "profile": "full"}, "loc")


def test_tables_of_networks_mark_the_chosen_one(found):
    runs = [run("Net"), run("Other", 0.8)]
    lines = results.compare_runs(runs, runs[0]).splitlines()[2:]
    assert lines[0] == "| **Net**, selected | 3 | 0.9500 | 0.9000 | 0.8800 | 0.8000 | 0.7500 | 0.8500 |"
    assert lines[1] == "| Other | 3 | 0.9500 | 0.9000 | 0.8800 | 0.8000 | 0.7500 | 0.8000 |"
    lines = results.training_table(found).splitlines()[2:]
    assert lines[0] == "| **Net** | 42,281 | 3,000 | 4 | 1.5 | 0.9000 | 0.8000 | 0.8500 |"
    assert lines[1].startswith("| Other | 42,281 | 3,000 | 7 |")


def test_tables_of_a_study_give_means_ranges_and_changes():
    def trial(network, name, *means):
        seeds = [{**SCORES, "mean": mean} for mean in means]
        return {"network": network, "name": name, "pictures": 3000, "epochs": 4, "seeds": seeds}

    study = {
        "ablation": [trial("Old", "reference", 0.5), trial("New", "+ AdamW", 0.7, 0.8)],
        "comparison": [trial("Old", "reference", 0.5), trial("Old", "new", 0.625)],
    }
    text = results.study_tables(study, None)
    assert "3,000 training pictures, 4 epochs" in text
    assert "| reference | 1 | 0.9000 | 0.8000 | 0.5000 |  |  |" in text
    assert "| + AdamW | 2 | 0.9000 | 0.8000 | 0.7500 | 0.7000 to 0.8000 | +0.2500 |" in text
    assert "| Old | 3,000 | 0.5000 | 0.6250 | +0.1250 |" in text
    assert results.study_tables(None, study).endswith(text)
    assert "none is published" in results.study_tables(None, None)


def test_scores_are_printed_with_their_names(found, capsys):
    results.print_scores(run(), {**found["test"], "map_class1": 0.5})
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    said = {line[0]: line[-1].strip() for line in lines}
    assert (said["network"], said["epoch"], said["test: mean accuracy"]) == ("Net", "3", "0.8500")
    assert (said["test: mAP@.50"], said["test: AP@[.50:.95] of class 1"]) == ("0.9500", "0.5000")
