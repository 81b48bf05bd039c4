"""What comes out of a task: the best run, how losses end, results.json, and the tables."""

import threading
import time
from types import SimpleNamespace

import pytest

import training
from training import results, tables

SCORES = {"accuracy": 0.9, "digit_accuracy": 0.88, "iou": 0.8, "iou_all": 0.75, "mean": 0.85}


def test_runs_are_compared_and_the_first_of_the_best_is_selected():
    history = {"train_loss": [4.0, 2.0, 1.0, 0.5], "val_loss": [3.0, 1.0, 2.0, 1.5]}
    runs = [SimpleNamespace(name=f"Net{mean}", best_epoch=3, val={**SCORES, "mean": mean}, history=history)
            for mean in (0.3, 0.85, 0.85)]  # fmt: skip
    assert training.select_best(runs) is runs[1]
    with pytest.raises(ValueError, match="at least one"):
        training.select_best([])
    assert tables.compare_runs(runs, runs[1]).splitlines()[2:4] == [
        "| Net0.3 | 3 | 0.9000 | 0.8800 | 0.8000 | 0.7500 | 0.3000 |",
        "| **Net0.85**, selected | 3 | 0.9000 | 0.8800 | 0.8000 | 0.7500 | 0.8500 |",
    ]
    assert results.loss_ends(history) == {"lowest": 2, "train": 0.25, "val": 1.5}
    text = tables.fit_table(runs[1:2], {"Net0.85": {**SCORES, "mean": 0.95, "digit_accuracy": 0.99}})
    assert text.endswith("| Net0.85 | 0.9500 | 0.8500 | +0.1000 | 1.00% | 12.00% | 2 of 4 | ×0.25 | ×1.50 |")
    table = tables.markdown_table(("name", "count", "share"), [("a", 12345, 0.123456), ("b", 1, 1.0)])
    assert table.splitlines()[1:3] == ["| --- | ---: | ---: |", "| a | 12,345 | 0.1235 |"]


def test_results_of_two_tasks_saved_at_once_are_both_kept(tmp_path, monkeypatch):
    """Whatever folders their runs are kept in: the lock lies beside the file."""
    reading, save = threading.Event(), results.save_json

    def save_slowly(*about, **options):
        reading.set()
        time.sleep(0.3)
        save(*about, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "save_json", save_slowly)
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
        "networks": {"Net": network(4, 4, "CPU, 1 thread, then CPU, 2 threads"), "SkreNet2": network(7, 9, "one GPU")},
        "test": scores(0.8, 0.6, 0.95, 0.7), "interval": {name: [SCORES[name] - 0.01, 1.0] for name in SCORES},
        "unrounded": scores(0.77, 0.5, 0.9, 0.65), "others": {"SkreNet2": scores(0.5, 0.4, 0.85, 0.3)},
        "baselines": {name: scores(0.45, 0.2, 0.55, 0.1) for name in results.BASELINES},
    }  # fmt: skip
    rows = [{"settings": {"epochs": epochs, "seed": seed}, "val": {**SCORES, "mean": 0.84 + seed / 100}}
            for epochs, seed in ((4, 0), (4, 2), (60, 1))]  # the last is of another recipe  # fmt: skip
    monkeypatch.setattr(tables, "read_rows", lambda task, study: rows)
    assert tables.results_table("det", task).splitlines()[2:] == [f"| {line} |" for line in (
        "**this run: Net**, best epoch 3 of 4, 12,000 images | 0.9000 | 0.8000 | 0.8500 | 0.6000 | 0.9500 | 0.7000",
        "95 % interval over the test images | 0.8900 to 1.0000 | 0.7900 to 1.0000 | 0.8400 to 1.0000 |  |  | ",
        "2 seeds, on validation images | 0.9000 to 0.9000 | 0.8000 to 0.8000 | 0.8400 to 0.8600 |  |  | ",
        "over cells with a digit only, a miss as IoU 0 | 0.8800 | 0.7500 |  |  |  | ",
        "without rounding edges to whole pixels | 0.9000 | 0.7700 | 0.8500 | 0.5000 | 0.9000 | 0.6500",
        f"{results.BASELINES['visible']} |  | 0.4500 |  | 0.2000 | 0.5500 | 0.1000",  # it is told the class
        "the reference's SkreNet2 here, 7 epochs, then it diverged "
        "| 0.9000 | 0.5000 | 0.8500 | 0.4000 | 0.8500 | 0.3000",
        f"{results.PUBLISHED['det'][0][0]} | 0.8767 | 0.7810 | 0.8288 |  |  | ",
        f"{results.PUBLISHED['det'][1][0]} | 0.9672 | 0.7715 | 0.8684 | 0.5363 | 0.9394 | 0.5735",
        *(f"{results.BASELINES[name]} | 0.9000 | 0.4500 | 0.8500 | 0.2000 | 0.5500 | 0.1000" for name in ("bright", "trivial")),
    )]  # fmt: skip
    text = tables.headline("det", task)
    assert "| **Net** | 0.9000 | 0.8000 | 0.8500 | 0.6000 |" in text
    assert (
        " generated from MNIST, CPU; SkreNet2 on one GPU. Less than in the full run: SkreNet2 (9 of 60 epochs" in text
    )


def test_the_table_of_a_search_sets_the_best_trials_beside_the_recipe_by_hand():
    trials = [{"mean": mean, "params": {"learning_rate": 0.004, "depth": n}}
              for n, mean in enumerate((0.75, None, 0.5, 0.875, 0.25, 0.625, 0.125))]  # fmt: skip
    said, _, header, _, *lines = training.search_table({"images": 1200, "epochs": 4, "trials": trials}).splitlines()
    assert said == "*7 trials of 4 epochs on 1,200 training images, 1 of them ended early because they fell behind*"
    assert header.startswith("|  | by hand | no. 1 of the search | no. 2 of the search |")
    assert lines[0] == "| validation mean | 0.7500 | 0.8750 | 0.6250 | 0.5000 | 0.2500 |"
    assert lines[1:] == ["| learning rate | 0.004 | 0.004 | 0.004 | 0.004 | 0.004 |", "| depth | 0 | 3 | 5 | 2 | 4 |"]
