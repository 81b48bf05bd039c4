"""Figures and the choice of examples: what is drawn is what the labels and outputs say."""

from types import SimpleNamespace

import matplotlib as mpl
import pytest
import torch
from cases import det_labels, perfect_outputs
from matplotlib.colors import to_rgba
from matplotlib.image import imread

import data
import models
import utils
from data.labels import CLASSES, NO_DIGIT
from training import errors, plots, study
from training.loop import REFERENCE_MEAN, SCORES
from training.reference import published_curves

mpl.use("Agg")  # no screen
mpl.rcParams["figure.max_open_warning"] = 0
COLUMNS = [f"{part}_{name}" for part in ("train", "val") for name in (*SCORES, REFERENCE_MEAN)]
LOC, CELL = (1, 0.5, 0.5, 0.2, 0.5, 3), (1, 0.5, 0.5, 0.6, 1, 1)  # 12 x 24 pixels


def titles_of(figure):
    return [axes.get_title().replace("\N{NO-BREAK SPACE}", " ") for axes in figure.axes]


@pytest.fixture(scope="module", params=["loc", "det"])
def splits(request, tmp_path_factory):
    return data.load(request.param, "digits", sizes=(60, 30, 30), folder=tmp_path_factory.mktemp("data"))


@pytest.fixture
def faulty():
    """Six images, outputs that go wrong in each way, and both compared."""
    labels = torch.tensor([(*LOC[:5], class_id) for class_id in (3, 3, 5, 3)] + [NO_DIGIT] * 2)
    outputs = perfect_outputs(labels)
    outputs[1, 5:] = outputs[1, 5:].roll(1)  # 3 is taken for 4
    outputs[2, 0] = -5.0  # 5 is missed
    outputs[3, 1] = 0.65  # by three quarters of its width: 1/4 in common of 7/4, IoU 1/7
    outputs[4, 0], outputs[4, 5] = 5.0, 9.0  # false positive, a 0
    return data.Split(torch.rand(6, 1, 48, 60), labels), outputs, utils.match(outputs, labels)


@pytest.mark.parametrize("with_outputs", [True, False])
def test_true_boxes_are_red_and_predicted_ones_blue(splits, with_outputs):
    part = splits.val[:12]
    figure = utils.draw_boxes(part, perfect_outputs(part.labels) if with_outputs else None)
    boxes = sorted(box.tolist() for each in utils.true_boxes(part.labels) for box in each["boxes"])
    for colour, expected in ((utils.TRUE, boxes), (utils.PREDICTED, boxes if with_outputs else [])):
        drawn = [patch for axes in figure.axes for patch in axes.patches if patch.get_edgecolor() == to_rgba(colour)]
        corners = sorted([*patch.get_xy(), *patch.get_corners()[2].tolist()] for patch in drawn)
        torch.testing.assert_close(torch.tensor(corners), torch.tensor(expected), rtol=0, atol=1e-3)


def test_failures_are_named_each_as_one_kind(faulty):
    split, outputs, matches = faulty
    titles = titles_of(utils.draw_boxes(split, outputs))
    assert titles == ["IoU 1.00", "wrong class,\nIoU 1.00", "missed", "IoU 0.14", "false positive", "none, right"]
    kinds = {name: kind.nonzero().flatten().tolist() for name, kind in utils.failures(matches).items()}
    assert kinds == {"missed": [2], "false positive": [4], "wrong class": [1], "poor box": [3]}
    assert utils.pick_failures(matches, 6, 4).tolist() == [2, 4, 1, 3]
    # Where failures do not fill the places, the poorest boxes do; images without a found digit never.
    assert sorted(utils.pick_failures(matches, 6, 12).tolist()) == [0, 1, 2, 3, 4]


def test_classes_are_counted_true_by_predicted(faulty):
    matrix = utils.confusion(faulty[2], 10)
    assert matrix.nonzero().tolist() == [[3, 3], [3, 4], [5, 10], [10, 0], [10, 10]]
    assert matrix[matrix > 0].tolist() == [2, 1, 1, 1, 1]
    said = utils.describe_confusion(matrix)
    assert said == "missed digits: 1 of 4; false positives: 1 of 2 without a digit\n3 taken for 4: 1 of 3"
    found = [list(row.values()) for row in utils.per_class(faulty[2], 10)]
    assert found[3] == ["3", 3, pytest.approx(2 / 3), 1, pytest.approx((1 + 1 + 1 / 7) / 3)]
    assert [found[5], found[10]] == [["5", 1, 0, 0, None], ["none", 2, 0.5, 0.5, None]]


def test_examples_are_the_first_of_each_kind_and_each_once():
    labels = torch.tensor([*((*LOC[:5], class_id) for class_id in (5, 3, 3, 3)), NO_DIGIT])
    assert utils.pick_examples(labels, 2).tolist() == [1, 2, 0, 4]
    labels = det_labels({(0, 0): (*CELL[:5], 0), (1, 2): CELL}, *[{(0, 1): CELL}] * 3)
    assert utils.pick_examples(labels, 2).tolist() == [0, 1, 2]
    assert utils.pick_by_count(labels, 2).tolist() == [1, 2, 0]


def test_every_figure_is_labelled_and_wide_enough(splits, tmp_path):
    labels, classes = splits.test.labels, CLASSES[splits.task]
    matches = utils.match(perfect_outputs(labels), labels)
    run = SimpleNamespace(name="Net", history={name: [0.1, 0.4, 0.3] for name in COLUMNS}, best_epoch=2)
    figures = [plots.plot_history(run), plots.plot_comparison([run, run]), utils.plot_labels(splits)]
    matrix, normal = utils.confusion(matches, classes), utils.Normalizer(0.4, 0.2)
    figures += [utils.plot_confusion(matrix, "confusion"), utils.plot_pixels(splits, normal)]
    figures += [utils.plot_per_class(utils.per_class(matches, classes), "classes"), utils.plot_by_size(matches, labels)]
    average = utils.mean_average_precision(perfect_outputs(labels), labels)
    figures += [utils.plot_precision_recall({"a": average, "b": average})]
    figures += [errors.plot_errors(perfect_outputs(labels), splits.test)]
    if splits.task == "det":
        figures += [utils.plot_digits_per_image(splits)]
    for number, figure in enumerate(figures):
        plain = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        lowest = [axes for axes in plain if axes.get_subplotspec().is_last_row()]
        assert all(axes.get_title() for axes in plain)
        assert all(axes.get_xlabel() for axes in lowest)
        utils.save_figure(figure, tmp_path, f"figure{number}")
        pixels = imread(tmp_path / f"figure{number}.png")
        assert pixels.shape[1] >= 800  # to be read at half its size
        assert pixels[..., :3].std() > 0.01  # something is on it


def lines(axes):
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


def test_published_curves_are_dashed_beside_ours():
    curves = {name: [0.25, 0.5] for name in study.CURVES}
    figure = plots.plot_reproduction([{"network": "FloNet", "curves": {**curves, "val_reference_mean": [0.75, 1.0]}}])
    drawn = lines(figure.axes[0])
    assert drawn["validation, here"] == [0.75, 1.0]
    assert drawn["validation, published"] == published_curves("FloNet")["val_mean"]
    assert {line.get_linestyle() for line in figure.axes[0].lines if "published" in line.get_label()} == {"--"}


def test_a_search_is_drawn_trial_by_trial_and_over_what_matters_most():
    def trial(rate, shift, ahead, mean):
        return {"params": {"rate": rate, "shift": shift, "depth": 2}, "ahead": ahead, "mean": mean}

    trials = [trial(1e-3, 0, 0.0, 0.6), trial(1e-1, 4, 0.2, 0.8), trial(1e-2, 8, 0.3, None), trial(1e-2, 8, None, None)]
    figure = plots.plot_search({"trials": trials, "importance": {"shift": 0.2, "rate": 0.7, "depth": 0.1}})
    assert lines(figure.axes[0])["best so far"] == [0.0, 0.2, 0.2, 0.2]
    assert [axes.get_xlabel() for axes in figure.axes] == ["trial", "share of the differences", "rate", "shift"]
    assert [axes.get_xscale() for axes in figure.axes[2:]] == ["log", "linear"]


def test_boxes_are_shown_as_they_were_after_each_epoch(splits):
    labels = splits.val[:2].labels
    right, wrong = perfect_outputs(labels), perfect_outputs(labels)
    wrong[:, 0] = -9
    run = SimpleNamespace(name="Net", watched=[wrong.tolist(), right.tolist()])
    figure = plots.plot_watched(run, splits.val, (1, 2, 5, 2))
    titles = titles_of(figure)
    digits = labels.reshape(2, -1, 6)[..., 0].sum(1) > 0
    assert len(titles) == 4  # two images after two epochs
    for number, there in enumerate(digits.tolist()):
        assert ("missed" in titles[2 * number], "IoU 1.00" in titles[2 * number + 1]) == (there, there)


def test_a_network_is_drawn_with_the_sizes_it_has():
    texts = [text.get_text() for text in plots.plot_diagram(models.CompactNet2()).axes[0].texts]
    for part in ("half size\n32×24×30", "a sixteenth\n160×3×4", "mean over places\n6×2×3"):
        assert part in texts


def test_iou_is_drawn_and_right():
    said = [axes.get_xlabel() for axes in plots.plot_iou().axes]
    assert said[0] == "shared 200, covered 600: IoU 0.33"
    assert said[1].endswith(f"IoU {29 * 29 / (2 * 900 - 29 * 29):.2f}")


@pytest.mark.parametrize("labels", [torch.tensor([LOC] * 2), det_labels({(0, 0): CELL, (1, 2): CELL})])
def test_digits_are_grouped_by_size_in_pixels(labels):
    """12 x 24 pixels have the area of a square of 17, which is in the group of 15 to 18."""
    figure = utils.plot_by_size(utils.match(perfect_outputs(labels), labels), labels)
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines] == [[[16.5, 1]]] * 2


def test_images_with_more_than_four_digits_are_counted_too():
    five = det_labels({(row, column): CELL for row in (0, 1) for column in (0, 1, 2) if row + column < 3})
    split = data.Split(torch.rand(1, 1, 48, 60), five)
    figure = utils.plot_digits_per_image(data.Splits(split, split, split, "course"))
    assert [bar.get_height() for bar in figure.axes[0].patches] == 3 * [0, 0, 0, 0, 0, 1]


def test_the_grid_is_drawn_with_its_cells_labels():
    figure = utils.plot_grid(torch.rand(1, 48, 60), det_labels({(1, 2): CELL})[0])
    texts = {text.get_position(): text.get_text() for text in figure.axes[1].texts}
    assert texts.pop((50, 36)) == "x = 0.500\ny = 0.500\nw = 0.600\nh = 1.000\nc = 1"
    assert list(texts.values()) == ["no digit"] * 5
