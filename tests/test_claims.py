"""What the notebooks say of the stored run in words, held against its numbers."""
# ruff: noqa: E501 (a claim is a line)

import json
import re
from pathlib import Path

import nbformat
import pytest

import training
from data import files

HOME = Path(__file__).resolve().parent.parent
RESULTS = json.loads((HOME / "figures" / "results.json").read_text(encoding="utf-8"))
CELLS = {task: nbformat.read(HOME / f"{name}.ipynb", as_version=4).cells for task, name in training.NAMES.items()}
TEXTS = {
    task: re.sub(r"\s+", " ", " ".join(cell.source for cell in cells if cell.cell_type == "markdown"))
    for task, cells in CELLS.items()
}
PRINTED = {
    task: "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))
    for task, cells in CELLS.items()
}


def found(task):
    return RESULTS[task]


def history(task, network):
    return files.load_pickle(HOME / "histories" / f"{training.NAMES[task]}.pkl")[network]["history"]


def wrong(task, network, part):
    """Percent of the digits, with one decimal."""
    return round(100 * (1 - found(task)["networks"][network][part]["digit_accuracy"]), 1)


def fit(task, network, part, name="iou"):
    return found(task)["networks"][network][part][name]


def ends(task, network):
    return found(task)["networks"][network]["ends"]


def snapping(task):
    return round(found(task)["test"]["iou"] - found(task)["unsnapped"]["iou"], 3)


def ahead(task, own):
    others = [run["val"]["mean"] for name, run in found(task)["networks"].items() if name != own]
    return history(task, own)["val_mean"][0] > max(others)


def missed(first, last=None):
    return sum(row[2] for row in found("det")["borders"][first:last])


def older(task, network):
    """Whether a network was trained before pictures were stretched and labels smoothed."""
    settings = found(task)["networks"][network]["settings"]
    return settings["max_shift"] > 0 and not settings.get("max_stretch") and not settings["label_smoothing"]


skre, flo, simple = (history("loc", name) for name in ("SkreNet", "FloNet", "SimpleNet"))


def near(value, said, digits=2):
    return round(value, digits) == said


def behind(epochs):
    """How far FloNet's best validation mean within so many epochs is behind SkreNet's."""
    return max(skre["val_mean"][:epochs]) - max(flo["val_mean"][:epochs])


def weights(name):
    return found("loc")["networks"][name]["parameters"]


def trials(task):
    return training.published_search(task)["trials"]


def ahead_of_hand(task):
    """How far the best trial of the search is ahead of the recipe by hand."""
    by_hand, *others = (trial["mean"] for trial in trials(task) if trial["mean"] is not None)
    return max(others) - by_hand


CLAIMS = [
    ("loc", "none is named wrongly after the best epoch", fit("loc", "SkreNet", "fit", "digit_accuracy") == fit("loc", "FloNet", "fit", "digit_accuracy") == 1),
    ("loc", "of the validation digits 7.7 % and 5.3 % are", (wrong("loc", "SkreNet", "val"), wrong("loc", "FloNet", "val")) == (7.7, 5.3)),
    ("loc", "has risen since epoch 13 and 14", (ends("loc", "SkreNet")["lowest"], ends("loc", "FloNet")["lowest"]) == (13, 14)),
    ("loc", "by a sixth and by a third", near(ends("loc", "SkreNet")["val"], 1.17) and near(ends("loc", "FloNet")["val"], 1.31)),
    ("loc", "IoU is no more than 0.77 and 0.69", near(fit("loc", "SkreNet", "fit"), 0.77) and near(fit("loc", "FloNet", "fit"), 0.69)),
    ("loc", "on validation pictures 0.73 and 0.68", near(fit("loc", "SkreNet", "val"), 0.73) and near(fit("loc", "FloNet", "val"), 0.68)),
    ("loc", "a hundredth or two of the class loss", all(
        0.01 < run["train_loss_box"][4] / run["train_loss_class"][4] < 0.025 for run in (skre, flo))),
    ("loc", "SkreNet's IoU on training pictures falls from 0.48 to 0.36",
        near(max(skre["train_iou"][:5]), 0.48) and near(min(skre["train_iou"][5:]), 0.36)),
    ("loc", "Only when all of them are known, in epoch 13, is the box loss the larger of the two", [
        box > name for box, name in zip(skre["train_loss_box"][10:14], skre["train_loss_class"][10:14])] == [False, False, True, True]
        and skre["train_digit_accuracy"][12] > 0.999),
    ("loc", "the box loss rises fivefold", 4.5 < simple["train_loss_box"][9] / simple["train_loss_box"][2] < 5.5),
    ("loc", "IoU comes down from 0.38 to 0.18", near(simple["train_iou"][2], 0.38) and near(simple["train_iou"][9], 0.18)),
    ("loc", "in the eleventh the loss is no longer a number", len(simple["val_loss"]) == 10),
    ("loc", "presence stays near 0.05 on validation pictures", near(history("loc", "CompactNet")["val_loss_pc"][-1], 0.05)),
    ("loc", "names 0.5 % of its training digits wrongly", wrong("loc", "CompactNet", "fit") == 0.5),
    ("loc", "and 1.5 % of the validation digits", wrong("loc", "CompactNet", "val") == 1.5),
    ("loc", "0.926 on training and 0.922 on validation pictures",
        near(fit("loc", "CompactNet", "fit"), 0.926, 3) and near(fit("loc", "CompactNet", "val"), 0.922, 3)),
    ("loc", "both losses are lowest in the last epoch", ends("loc", "CompactNet")["lowest"] == 40),
    ("loc", "CompactNet is ahead of all others after its first epoch", ahead("loc", "CompactNet")),
    ("loc", "with an IoU of 0.68 and 0.73 for 0.92", near(fit("loc", "CompactNet", "val"), 0.92)),
    ("loc", "FloNet names digits best, and SkreNet places them best", all(
        max(("SkreNet", "FloNet", "SimpleNet"), key=lambda name: fit("loc", name, "val", score)) == best
        for score, best in (("digit_accuracy", "FloNet"), ("iou", "SkreNet")))),
    ("loc", "Here are twenty trials in which Optuna varied thirteen of its numbers", (
        len(trials("loc")), len(trials("loc")[0]["params"])) == (20, 13)),
    ("loc", "by more than chance moves a score on so many pictures", 0 < ahead_of_hand("loc") < 0.001),
    ("loc", "a third more weights than FloNet, a twenty-sixth of SkreNet's", near(
        weights("CompactNet") / weights("FloNet"), 1.4, 1) and round(weights("SkreNet") / weights("CompactNet")) == 26),
    ("loc", "finds all but two of the 10,000 digits, and no digit in any of the 1,000 empty",
        "missed digits: 2 of 10,000; false alarms: 0 of 1,000" in PRINTED["loc"]),
    ("loc", "the name, of 1.7 % of the digits", near(100 * (1 - found("loc")["test"]["digit_accuracy"]), 1.7, 1)),
    ("loc", "Its boxes are better than those around the visible ink",
        found("loc")["test"]["iou"] > found("loc")["baselines"]["visible"]["iou"]),
    ("loc", "worth 0.017 of IoU", snapping("loc") == 0.017),
    ("loc", "a mean of 0.830 for 0.827", near(found("loc")["others"]["SkreNet"]["mean"], 0.830, 3)
        and near(training.results.PUBLISHED["loc"][0][3], 0.827, 3)),
    ("loc", "an average precision of 0.87 to our 0.98",
        near(found("loc")["others"]["SkreNet"]["map50"], 0.87) and near(found("loc")["test"]["map50"], 0.98)),
    ("loc", "it is 0.24 to our 0.95", near(found("loc")["others"]["SkreNet"]["map75"], 0.24) and near(found("loc")["test"]["map75"], 0.95)),
    ("loc", "Seven edges in ten are right to the pixel", near(found("loc")["edges"][4][1], 0.71)),
    ("loc", "SkreNet's class loss goes from 0.34 to 0.40", near(skre["val_loss_class"][12], 0.34) and near(skre["val_loss_class"][53], 0.40)),
    ("loc", "from 0.0033 to 0.0010, for an IoU from 0.55 to 0.73", near(skre["val_loss_box"][12], 0.0033, 4)
        and near(skre["val_loss_box"][53], 0.0010, 4) and near(skre["val_iou"][12], 0.55) and near(skre["val_iou"][53], 0.73)),
    ("loc", "it is 0.017 behind after 40 epochs, and 0.014 after 60", near(behind(40), 0.017, 3) and near(behind(60), 0.014, 3)),
    ("loc", "better than either by more than 0.12",
        found("loc")["test"]["mean"] - max(found("loc")["others"][name]["mean"] for name in ("SkreNet", "FloNet")) > 0.12),
    ("loc", "has an IoU of 0.91 on the test pictures", near(found("loc")["baselines"]["visible"]["iou"], 0.91)),
    ("loc", "0.84 where they find one", near(found("loc")["baselines"]["bright"]["iou"], 0.84)),
    ("det", "1.6 % wrong against 3.7 %", (wrong("det", "SkreNet2", "fit"), wrong("det", "SkreNet2", "val")) == (1.6, 3.7)),
    ("det", "poor on both, with an IoU of 0.64", {round(fit("det", "SkreNet2", part), 2) for part in ("fit", "val")} == {0.64}),
    ("det", "validation loss is still falling", ends("det", "SkreNet2")["lowest"] == ends("det", "SimpleNet2")["lowest"] == 10),
    ("det", "FloNet2, which had a thousand pictures", found("det")["networks"]["FloNet2"]["pictures"] == 1000),
    ("det", "its training pictures were only moved", older("det", "CompactNet2")),
    ("det", "an IoU of 0.925 against 0.918", (
        round(fit("det", "CompactNet2", "fit"), 3), round(fit("det", "CompactNet2", "val"), 3)) == (0.925, 0.918)),
    ("det", "CompactNet2 is ahead after its first epoch", ahead("det", "CompactNet2")),
    ("det", "finds and names 98.6 % of the digits", round(100 * found("det")["test"]["digit_accuracy"], 1) == 98.6),
    ("det", "Its boxes are 0.006 short of the oracle's",
        round(found("det")["baselines"]["visible"]["iou"] - found("det")["test"]["iou"], 3) == 0.006),
    ("det", "and its mAP is higher", found("det")["test"]["map"] > found("det")["baselines"]["visible"]["map"]),
    ("det", "worth 0.020 of IoU", snapping("det") == 0.020),
    ("det", "above the reference's published mean as well",
        found("det")["baselines"]["bright"]["mean"] > training.results.PUBLISHED["det"][0][3]),
    ("det", "Three edges in four are right to the pixel", round(found("det")["edges"][4][1], 2) == 0.75),
    ("det", "Of the 83 missed digits 80 have their centre within two pixels", (missed(0), missed(0, 3)) == (83, 80)),
    ("det", "no digit further than four pixels from one is missed", missed(4) == 0),
]  # fmt: skip


@pytest.mark.parametrize(("task", "words", "holds"), CLAIMS, ids=[claim[1] for claim in CLAIMS])
def test_what_is_said_of_the_stored_run_holds(task, words, holds):
    assert words in TEXTS[task], "no longer said: take the claim out here"
    assert holds


def test_the_readme_says_so_while_the_stored_run_is_older_than_the_recipe():
    said = "Detection's run is older than the recipe" in (HOME / "README.md").read_text(encoding="utf-8")
    assert said == older("det", "CompactNet2")
