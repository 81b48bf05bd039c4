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


simple, flo = history("loc", "SimpleNet"), fit("loc", "FloNet", "val", "accuracy")
CLAIMS = [
    ("loc", "SkreNet, which had 12,000 pictures", found("loc")["networks"]["SkreNet"]["pictures"] == 12_000),
    ("loc", "FloNet overfits from its seventh epoch on", ends("loc", "FloNet")["lowest"] == 7),
    ("loc", "training loss has halved since, validation loss doubled", 0.4 < ends("loc", "FloNet")["train"] < 0.6),
    ("loc", "validation loss doubled", 1.8 < ends("loc", "FloNet")["val"] < 2.2),
    ("loc", "It names 92 % of the validation digits", round(fit("loc", "FloNet", "val", "digit_accuracy"), 2) == 0.92),
    ("loc", "its boxes stay at an IoU of 0.49", round(fit("loc", "FloNet", "val"), 2) == 0.49),
    ("loc", "box loss rises fivefold", 4.5 < simple["train_loss_box"][-1] / simple["train_loss_box"][3] < 5.5),
    ("loc", "IoU comes down from 0.39 to 0.18", [round(simple["train_iou"][each], 2) for each in (3, -1)] == [0.39, 0.18]),
    ("loc", "less than a hundredth of the class loss", simple["train_loss_box"][3] < simple["train_loss_class"][3] / 100),
    ("loc", "its training pictures were moved and not stretched, its labels not smoothed", older("loc", "CompactNet")),
    ("loc", "names 1.1 % of its training digits wrongly", wrong("loc", "CompactNet", "fit") == 1.1),
    ("loc", "and 2.1 % of the validation digits", wrong("loc", "CompactNet", "val") == 2.1),
    ("loc", "0.920 on training and 0.916 on validation pictures", (
        round(fit("loc", "CompactNet", "fit"), 3), round(fit("loc", "CompactNet", "val"), 3)) == (0.920, 0.916)),
    ("loc", "CompactNet is ahead after its first epoch", ahead("loc", "CompactNet")),
    ("loc", "no network of the reference has an IoU above 0.5 in its best epoch", all(
        run["val"]["iou"] < 0.5 for name, run in found("loc")["networks"].items() if name != "CompactNet")),
    ("loc", "finds all but two of the 10,000 digits, and no digit in any of the 1,000 empty",
        "missed digits: 2 of 10,000; false alarms: 0 of 1,000" in PRINTED["loc"]),
    ("loc", "Its boxes are better than those around the visible ink",
        found("loc")["test"]["iou"] > found("loc")["baselines"]["visible"]["iou"]),
    ("loc", "worth 0.017 of IoU", snapping("loc") == 0.017),
    ("loc", "less than a third of our network's average precision at an IoU of 0.50",
        found("loc")["others"]["FloNet"]["map50"] < found("loc")["test"]["map50"] / 3),
    ("loc", "Two edges in three are right to the pixel", round(found("loc")["edges"][4][1], 1) == 0.7),
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
    said = "This run is older than the recipe" in (HOME / "README.md").read_text(encoding="utf-8")
    assert said == older("loc", "CompactNet") == older("det", "CompactNet2")
