"""Figures: what is drawn is what the labels and outputs say."""

from types import SimpleNamespace

import matplotlib as mpl
import pytest
import torch
from cases import CELL, LOC, both_tasks, det_labels, digits, perfect_outputs
from matplotlib.colors import to_rgba
from matplotlib.image import imread

import models
import utils
from data import Split, Splits
from data.labels import CLASSES
from training import analysis, plots
from training.loop import SCORES
from training.results import published_curves

mpl.use("Agg")  # no screen
mpl.rcParams["figure.max_open_warning"] = 0


@both_tasks
def test_true_boxes_are_red_and_predicted_ones_blue_after_each_epoch(task):
    part = digits(task).val[:6]
    boxes = sorted(box.tolist() for each in utils.true_boxes(part.labels) for box in each["boxes"])
    for outputs, predicted in ((perfect_outputs(part.labels), boxes), (None, [])):
        patches = [patch for axes in utils.draw_boxes(part, outputs).axes for patch in axes.patches]
        for colour, expected in ((utils.DRAW_TRUE, boxes), (utils.DRAW_PREDICTED, predicted)):
            drawn = [patch for patch in patches if patch.get_edgecolor() == to_rgba(colour)]
            corners = sorted([*patch.get_xy(), *patch.get_corners()[2].tolist()] for patch in drawn)
            torch.testing.assert_close(torch.tensor(corners), torch.tensor(expected), rtol=0, atol=1e-3)
    right, some = perfect_outputs(part.labels)[:2], part[:2]
    run = SimpleNamespace(name="Net", val_samples=[(right - 40).tolist(), right.tolist()])
    titles = [axes.get_title() for axes in plots.plot_samples(run, some, (1, 2, 5, 2)).axes]
    there = some.labels[..., 0].reshape(2, -1).any(1).repeat_interleave(2).tolist()  # after both epochs
    for title, digit, said in zip(titles, there, ("missed", "IoU\N{NO-BREAK SPACE}1.00") * 2, strict=True):
        assert (said in title) == digit


@both_tasks
def test_every_figure_is_labelled_and_wide_enough(task, tmp_path):
    splits, labels, classes = digits(task), digits(task).test.labels, CLASSES[task]
    outputs = perfect_outputs(labels)
    matches, average = utils.match(outputs, labels), utils.mean_average_precision(outputs, labels)
    history = {f"{part}_{name}": [0.1, 0.4, 0.3] for part in ("train", "val") for name in SCORES}
    run = SimpleNamespace(name="Net", history=history, best_epoch=2)
    plots.set_style()
    figures = [plots.plot_history(run), plots.plot_comparison([run, run]), plots.plot_labels(splits)]
    figures += [plots.plot_pixels(splits, utils.Normalize(0.4, 0.2)), plots.plot_by_size(matches, labels)]
    figures += [plots.plot_confusion(analysis.confusion(matches, classes), "confusion")]
    figures += [plots.plot_per_class(analysis.per_class(matches, classes), "classes")]
    figures += [plots.plot_precision_recall({"a": average, "b": average}), plots.plot_errors(outputs, splits.test)]
    figures += [plots.plot_digits_per_image(splits)] if task == "det" else []
    for figure in figures:
        plain = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert all(axes.get_title() and axes.has_data() for axes in plain)
        assert all(axes.get_xlabel() for axes in plain if axes.get_subplotspec().is_last_row())
        assert figure.get_figwidth() * 100 >= 800  # pixels, to be read at half its size
    pixels = imread(plots.save_figure(figures[-1], tmp_path, "figure"))
    assert pixels.shape[1] == figures[-1].get_figwidth() * 100
    assert pixels[..., :3].std() > 0.01  # something is on it


def test_curves_and_searches_are_drawn_as_they_are_stored():
    curves = {name: [0.25, 0.5] for name in ("train_loss", "val_loss", "train_reference_mean")}
    figure = plots.plot_reproduction([{"network": "FloNet", "curves": {**curves, "val_reference_mean": [0.75, 1.0]}}])
    drawn = {line.get_label(): (line.get_linestyle(), list(line.get_ydata())) for line in figure.axes[0].lines}
    assert drawn["validation, here"] == ("-", [0.75, 1.0])
    assert drawn["validation, published"] == ("--", published_curves("FloNet")["val_mean"])
    for network in sum(models.REFERENCE.values(), ()):  # as long as the reference's training
        assert {len(values) for values in published_curves(network.__name__).values()} == {60}
    assert max(published_curves("SkreNet2")["val_mean"]) == pytest.approx(0.8304, abs=1e-4)
    trials = [(1e-3, 0, 0.0, 0.6), (1e-1, 4, 0.2, 0.8), (1e-2, 8, 0.3, None), (1e-2, 8, None, None)]
    trials = [{"params": {"rate": a, "shift": b, "depth": 2}, "ahead": c, "mean": d} for a, b, c, d in trials]
    figure = plots.plot_search({"trials": trials, "importance": {"shift": 0.2, "rate": 0.7, "depth": 0.1}})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.0, 0.2, 0.2, 0.2]  # the best so far
    assert [axes.get_xlabel() for axes in figure.axes] == ["trial", "share of the differences", "rate", "shift"]
    assert [axes.get_xscale() for axes in figure.axes[2:]] == ["log", "linear"]


def test_figures_say_what_is_so():
    model = torch.nn.Sequential(utils.Normalize(0.5, 0.2), models.CompactNet().eval())
    figure = plots.plot_locations(model, Split(torch.rand(3, 1, 48, 60), torch.tensor([LOC] * 3)))
    assert [len(axes.images) for axes in figure.axes] == [2, 2, 2]  # weights over each image
    texts = {text.get_text() for text in plots.plot_diagram(models.CompactNet2()).axes[0].texts}
    assert texts >= {"half size\n32×24×30", "a sixteenth\n160×3×4", "mean over places\n6×2×3"}
    said = [axes.get_xlabel() for axes in plots.plot_iou().axes]
    assert said[0] == "shared 200, covered 600: IoU 0.33"
    assert said[1].endswith(f"IoU {29 * 29 / (2 * 900 - 29 * 29):.2f}")
    for labels in (torch.tensor([LOC] * 2), det_labels({(0, 0): CELL, (1, 2): CELL})):
        figure = plots.plot_by_size(utils.match(perfect_outputs(labels), labels), labels)
        # 12 x 24 pixels have the area of a square of 17, which is in the group of 15 to 18.
        assert [line.get_xydata().tolist() for line in figure.axes[0].lines] == [[[16.5, 1]]] * 2
    five = Split(torch.rand(1, 1, 48, 60), det_labels(dict.fromkeys(((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)), CELL)))
    figure = plots.plot_digits_per_image(Splits(five, five, five, "course"))
    assert [bar.get_height() for bar in figure.axes[0].patches] == 3 * [0, 0, 0, 0, 0, 1]
    figure = plots.plot_grid(torch.rand(1, 48, 60), det_labels({(1, 2): CELL})[0])
    texts = {text.get_position(): text.get_text() for text in figure.axes[1].texts}
    assert texts.pop((50, 36)) == "x = 0.500\ny = 0.500\nw = 0.600\nh = 1.000\nc = 1"
    assert list(texts.values()) == ["no digit"] * 5
