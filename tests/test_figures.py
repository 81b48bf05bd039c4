"""Figures: what is drawn is what the labels, outputs and rows say."""

import matplotlib as mpl
import pytest
import torch
from cases import CELL, LOC, both_tasks, det_labels, digits
from helpers import SHORT
from matplotlib.colors import to_rgba

import models
import utils
from data import Split
from training import analysis, plots
from training.loop import SCORES, assemble
from training.results import published_curves
from training.runs import Run

mpl.use("Agg")  # no screen


def line(axes, number=0):
    return axes.lines[number].get_xydata().tolist()


@both_tasks
def test_true_boxes_are_red_and_predicted_ones_blue(task):
    part = digits(task).val[:6]
    boxes = sorted(box.tolist() for each in utils.true_boxes(part.labels) for box in each["boxes"])
    for outputs, predicted in ((analysis.labels_as_outputs(part.labels), boxes), (None, [])):
        figure = plots.add_grid(utils.draw_boxes(part, outputs))
        assert [len(axes.lines) for axes in figure.axes if axes.images] == [3] * 6  # the borders of six cells
        patches = [patch for axes in figure.axes for patch in axes.patches]
        for colour, expected in ((utils.DRAW_TRUE, boxes), (utils.DRAW_PREDICTED, predicted)):
            drawn = [patch for patch in patches if patch.get_edgecolor() == to_rgba(colour)]
            corners = sorted([*patch.get_xy(), *patch.get_corners()[2].tolist()] for patch in drawn)
            torch.testing.assert_close(torch.tensor(corners), torch.tensor(expected), rtol=0, atol=1e-3)


def test_beliefs_about_edges_stand_along_the_sides_of_the_image():
    """Above it the left and right one, beside it the top and bottom one, each as likely as the network says."""
    part = digits("loc").val
    model = assemble(models.CompactNet, SHORT, utils.Normalize(0.5, 0.2)).eval()
    torch.nn.init.constant_(model[1].head.bias[:1], 9.0)  # sure of a digit
    left, _, _, bottom = (each[0, 0, 0] for each in analysis.edge_probabilities(model, part.images[:1]))
    assert [each.sum().item() for each in (left, bottom)] == pytest.approx([1, 1], abs=1e-5)
    (panel,) = plots.plot_edges(model, part[:1]).subfigs
    above, _, _, beside = panel.axes
    assert above.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(left.max().item())
    assert beside.collections[1].get_paths()[0].vertices[:, 0].max() == pytest.approx(bottom.max().item())
    box = utils.true_boxes(part[:1].labels)[0]["boxes"]
    assert [x for x, _ in line(above)] == box[0, [0, 2]].tolist()
    assert [y for _, y in line(beside)] == box[0, [1, 3]].tolist()


def test_curves_are_of_a_run_and_its_objective_means_over_seeds_or_beside_the_published_ones():
    history = {f"{part}_{name}": [0.1, 0.4] for part in ("train", "val") for name in SCORES}
    history["train_objective"] = [0.5, 0.6]
    run = Run(models.CompactNet, "loc", SHORT, 9, history, [], {}, "trained", None)
    loss, _, iou = plots.plot_curves([run]).axes
    assert [line(loss, -1), line(iou, 1)] == [[[1, 0.5], [2, 0.6]], [[1, 0.1], [2, 0.4]]]
    name, curve = "SkreNet", {"val_reference_mean": [0.5, 0.25], "val_loss": [2.0, 4.0]}
    rows = [{"network": name, "curves": curve}, {"network": name, "curves": {"val_loss": [4.0, 8.0, 1.0]}}]
    (axes,) = plots.plot_study({"a": rows}, {"val_loss": "loss"}).axes
    assert line(axes) == [[1, 3], [2, 6]]
    (axes,) = plots.plot_reproduction(rows[:1]).axes
    assert [label.get_text() for label in axes.figure.legends[0].texts] == ["here", "published"]
    assert [len(line(axes, 0)), line(axes, 1)[0][1]] == [2, published_curves(name)["val_mean"][0]]
    assert [plots.plot_reproduction([]).axes[0].lines[:], plots.plot_recipes([]).axes[0].lines[:]] == [[], []]
    rows = [{"network": "A", "the reference's recipe": 0.5, "ours": 0.75}]
    assert [line(plots.plot_recipes(rows).axes[0], number) for number in (1, 2)] == [[[0.5, 0]], [[0.75, 0]]]
    rows = [{"noise": noise, "network": "A", "accuracy": 1 - noise, "iou": 0.5} for noise in (0.5, 1.0)]
    assert line(plots.plot_noise(rows).axes[0]) == [[0.5, 0.5], [1, 0]]


def test_diagrams_of_networks_and_grids_say_what_is_so():
    texts = {text.get_text() for text in plots.plot_diagram(models.CompactNet2()).axes[0].texts}
    assert texts >= {"half size\n32×24×30", "a sixteenth\n160×3×4", "weighted mean\n6×2×3"}
    for labels in (torch.tensor([LOC] * 2), det_labels({(0, 0): CELL, (1, 2): CELL})):
        split = Split(torch.zeros(len(labels), 1, 48, 60), labels)
        visible = utils.match(analysis.labels_as_outputs(labels), labels)
        edges, sizes, *_ = plots.plot_errors(analysis.labels_as_outputs(labels), split, visible).axes
        assert [0, 1] in line(edges)  # every edge is right to the pixel
        # 12 x 24 pixels have the area of a square of 17, which is in the group of 15 to 18.
        assert [line(sizes, number) for number in range(3)] == [[[16.5, pytest.approx(1)]]] * 3
    figure = plots.plot_grid(torch.rand(1, 48, 60), det_labels({(1, 2): CELL})[0])
    texts = {text.get_position(): text.get_text() for text in figure.axes[1].texts}
    assert texts.pop((50, 36)) == "x = 0.50\ny = 0.50\nw = 0.60\nh = 1.00\nc = 1"
    assert list(texts.values()) == ["no digit"] * 5
