"""What networks get wrong, measured on errors that were made on purpose, and what they are set beside."""

from dataclasses import replace

import pytest
import torch
from cases import CELL, LOC, both_tasks, det_labels, digits

import utils
from data import Split
from data.labels import GRID, NO_DIGIT, lists_to_grid
from training import analysis
from training.analysis import BrightPatches, labels_as_outputs


def test_failures_are_named_counted_and_picked():
    labels = torch.tensor([(*LOC[:5], class_id) for class_id in (3, 3, 5, 3)] + [NO_DIGIT] * 2)
    outputs = labels_as_outputs(labels)
    outputs[1, 5:] = outputs[1, 5:].roll(1)  # 3 is taken for 4
    outputs[2, 0] = -5.0  # 5 is missed
    outputs[3, 1] = 0.65  # by three quarters of its width: 1/4 in common of 7/4, IoU 1/7
    outputs[4, 0], outputs[4, 5] = 5.0, 9.0  # false positive, a 0
    notes, matches = utils.draw_notes(outputs, labels), utils.match(outputs, labels)
    expected = ["IoU 1.00", "wrong class, IoU 1.00", "missed", "IoU 0.14", "false positive", "none, right"]
    assert [note.replace("\N{NO-BREAK SPACE}", " ") for note in notes] == expected
    kinds = {name: kind.nonzero().flatten().tolist() for name, kind in analysis.failures(matches).items()}
    assert kinds == {"missed": [2], "false positive": [4], "wrong class": [1], "poor box": [3]}
    assert analysis.pick_failures(matches, 6, 4).tolist() == [2, 4, 1, 3]
    # Where there are too few failures, the poorest boxes; never an image without a digit that is detected.
    assert sorted(analysis.pick_failures(matches, 6, 12).tolist()) == [0, 1, 2, 3, 4]
    matrix = analysis.confusion(matches, 10)
    counts = {(3, 3): 2, (3, 4): 1, (5, 10): 1, (10, 0): 1, (10, 10): 1}
    assert {tuple(cell): int(matrix[tuple(cell)]) for cell in matrix.nonzero().tolist()} == counts
    three, five = (list(row.values()) for row in analysis.class_rows(outputs, Split(torch.zeros(6, 1, 48, 60), labels)))
    assert three == pytest.approx(["3", 3, 12, 24, 0, 2 / 3, (1 + 1 + 1 / 7) / 3])
    assert five == pytest.approx(["5", 1, 12, 24, 1, 0, 0])


def test_examples_are_the_first_of_each_kind_and_each_once():
    labels = torch.tensor([*((*LOC[:5], class_id) for class_id in (5, 3, 3, 3)), NO_DIGIT])
    grid = det_labels({(0, 0): (*CELL[:5], 0), (1, 2): CELL}, *[{(0, 1): CELL}] * 3)
    assert analysis.pick_examples(labels, 2).tolist() == [1, 2, 0, 4]
    assert analysis.pick_examples(grid, 2).tolist() == [1, 2, 0]
    images = torch.full((5, 1, 48, 60), 0.25)
    images[:, :, 12:36, 24:36] += torch.tensor([0.1, 0.7, 0.3, 0.5, 0.0]).view(-1, 1, 1, 1)  # where the digit is
    assert analysis.pick_clear_and_faint(Split(images, labels)).tolist() == [1, 0]
    assert analysis.pick_clear_and_faint(Split(images[:4], grid)).tolist() == [0, 0]  # the one with several digits


@pytest.mark.parametrize(("labels", "columns"), [(torch.tensor([LOC, NO_DIGIT]), 1), (det_labels({(1, 2): CELL}), 3)])
def test_edges_are_compared_in_pixels_where_a_digit_is_detected(labels, columns):
    outputs = labels_as_outputs(labels)
    outputs[:, 1] += columns / 60  # a pixel to the right
    outputs[:, 4] += (columns + 1) / 2 * 2 / 48  # a pixel more at the top and at the bottom
    expected = torch.tensor([[1.0, -1, 1, 1]])
    torch.testing.assert_close(analysis.edge_errors(outputs, labels), expected, rtol=0, atol=1e-4)
    assert analysis.edge_errors(outputs - 40, labels).shape == (0, 4)
    rows = analysis.edge_rows(torch.tensor([[0.0, 1, 2, 3], [0.0, 0, -1, 5]]))  # within 0, 1 and 2 pixels; the mean
    left, _, right, _, every = (list(row.values()) for row in rows)
    assert (left, right) == (["left", 1.0, 1.0, 1.0, 0.0], ["right", 0.0, 0.5, 1.0, 1.5])
    assert every == ["all", 3 / 8, 5 / 8, 6 / 8, 1.5]


def test_digits_are_counted_by_their_distance_to_a_border():
    labels = det_labels({(0, 1): (1, 0.025, 0.5, 0.6, 1, 1), (1, 2): CELL})  # half a pixel right of a border; far away
    outputs = labels_as_outputs(labels)
    outputs[0, 0, 0, 1] = outputs[0, 5, 1, 2] = -9  # the one missed, the other taken for a 0
    outputs[0, :, 0, 0] = torch.tensor([9, 0.95, 0.5, 0.6, 1, 9])  # false positive, a pixel left of the border
    rows = {name: counts for name, *counts in (row.values() for row in analysis.border_rows(outputs, labels))}
    assert rows["0.5 to below 1 pixels"] == [1, 1, 0, 0]
    assert rows["4 pixels or more"] == [1, 0, 1, 0]
    assert rows["1 to below 2 pixels"] == [0, 0, 0, 1]
    centres = torch.arange(24, 97) / 2  # 12 to 48 pixels; whole half pixels, though fractions are not exact
    labels = lists_to_grid([torch.tensor([[1, x / 60, 11.5 / 48, 0.2, 0.25, 0]]) for x in centres])
    distances = analysis.border_distances(labels)[labels[..., 0].flatten() == 1]
    assert distances.tolist() == [min(abs(x - 20), abs(x - 40), 12.5) for x in centres.tolist()]


def test_boxes_are_counted_by_objects_whatever_cell_they_come_from():
    labels = det_labels({(0, 1): CELL, (1, 2): CELL}, {})
    outputs = labels_as_outputs(labels)
    outputs[0, 5, 1, 2] = -9  # taken for a 0: false, and a digit is missed
    outputs[0, :, 0, 2] = torch.tensor([9, -0.5, 0.5, 0.6, 1, 9])  # the first digit again, from the next cell
    outputs[1, :, 0, 0] = torch.tensor([9, 0.5, 0.5, 0.6, 1, 9])  # where there is none
    rows = [[*row.values()] for row in analysis.object_rows({"Net": outputs}, labels)]
    ways = ["by cells", "", 2, 0], ["by objects", 1, 3, 1], ["by objects, after NMS", 1, 2, 1]
    assert rows == [["Net", *counts] for counts in ways]


def test_digits_whose_ink_is_in_pieces_are_counted_apart():
    labels = torch.tensor([LOC, LOC, LOC, NO_DIGIT])
    outputs = labels_as_outputs(labels)
    outputs[0, 1:5] += torch.tensor((0, 2 / 48, -8 / 60, 4 / 48))  # both sides four pixels inwards, four more below
    outputs[1, 0] = -9  # missed
    split = Split(torch.zeros(4, 1, 48, 60), labels, pieces=torch.tensor([2, 2, 1, 0]))
    whole, several = analysis.piece_rows(outputs, split)
    assert list(whole.values()) == ["one piece", 1, pytest.approx(1, abs=1e-4), 0, 0, 0]
    assert list(several.values()) == ["several pieces", 2, pytest.approx(4 * 24 / (12 * 24 + 4 * 4)), 1, 3, 2]
    assert not analysis.piece_rows(outputs, replace(split, pieces=None))


def test_scores_are_set_beside_what_is_right_and_have_the_interval_of_images_drawn_anew():
    labels = torch.tensor([LOC] * 400)
    outputs = labels_as_outputs(labels)
    outputs[:, 0] = torch.logit(torch.tensor([0.25] * 100 + [0.75] * 300))  # a quarter is missed
    intervals, half = analysis.bootstrap(outputs, labels), 1.96 * (0.75 * 0.25 / 400) ** 0.5
    limits = pytest.approx([0.75 - half, 0.75 + half], abs=0.003)  # of 90 % it would be 0.007 less
    assert intervals["accuracy"] == limits
    assert intervals["iou"] == pytest.approx([1, 1], abs=1e-5)
    for name, total, share in (("iou_all", 0, 1), ("digit_accuracy", 0, 1), ("mean", 1, 2)):
        assert intervals[name] == pytest.approx([(total + each) / share for each in intervals["accuracy"]], abs=1e-5)


@pytest.mark.parametrize("grow", [0, 1])
def test_bright_patches_by_hand(grow):
    """The largest is the digit; in detection a ring is a 0, a bar a 1, and a speck nothing."""
    loc, det = (Split(torch.zeros(2, 1, 48, 60), torch.tensor(NO_DIGIT).repeat(2, *GRID[task], 1)) for task in GRID)
    patches = BrightPatches(threshold=250, least=10, grow=grow, class_id=7)
    loc.images[:, 0, 10:20, 20:36] = loc.images[:, 0, 30:34, 50:55] = 1.0
    loc.images[:, 0, :5, :50] = 0.9  # larger, but not bright enough
    digit, same = patches.outputs(loc)  # images are told apart
    assert torch.equal(digit, same)
    assert (digit[0] > 0, digit[5:].argmax()) == (True, 7)
    assert digit[1:5].tolist() == pytest.approx([27.5 / 60, 14.5 / 48, (15 + 2 * grow) / 60, (9 + 2 * grow) / 48])
    image = det.images[0, 0]
    image[5:15, 5:15] = image[30:44, 48:51] = image[4:7, 30:33] = 1.0
    image[8:12, 8:12] = 0.0
    cells, _ = patches.outputs(det)
    assert (cells[0] > 0).nonzero().tolist() == [[0, 0], [1, 2]]
    assert (cells[5, 0, 0] < 0, cells[5, 1, 2] > 0) == (True, True)
    assert cells[1:5, 0, 0].tolist() == pytest.approx([9.5 / 20, 9.5 / 24, (9 + 2 * grow) / 20, (9 + 2 * grow) / 24])


@both_tasks
def test_baselines_have_a_network_s_layout_and_all_visible_ink_is_right(task):
    train, val = digits(task).train, digits(task).val
    val = replace(val, visible=val.labels)
    each = BrightPatches.fit(train).outputs(val), labels_as_outputs(val.visible)
    assert {tuple(outputs.shape[1:]) for outputs in each} == {(15,) if task == "loc" else (6, 2, 3)}
    means = [utils.score(outputs, val.labels)["mean"] for outputs in each]
    assert 0.2 < means[0] < means[1] == pytest.approx(1)
