"""What networks get wrong, measured on errors that were made on purpose."""

import pytest
import torch
from cases import det_labels, perfect_outputs

import data
import utils
from data.labels import NO_DIGIT
from training import errors

LOC, CELL = (1, 0.5, 0.5, 0.2, 0.5, 3), (1, 0.5, 0.5, 0.6, 1, 1)  # 12 x 24 pixels


@pytest.mark.parametrize("labels", [torch.tensor([LOC, NO_DIGIT]), det_labels({(1, 2): CELL})])
def test_edges_are_compared_in_pixels_where_a_digit_is_found(labels):
    outputs = perfect_outputs(labels)
    columns = 1 if labels.ndim == 2 else 3
    outputs[:, 1] += columns / 60  # a pixel to the right
    outputs[:, 4] += 2 * (1 if columns == 1 else 2) / 48  # a pixel more at the top and at the bottom
    expected = torch.tensor([[1.0, -1, 1, 1]])
    torch.testing.assert_close(errors.edge_errors(outputs, labels), expected, rtol=0, atol=1e-4)
    outputs[:, 0] = -9
    assert errors.edge_errors(outputs, labels).shape == (0, 4)


def test_shares_of_edges_count_those_that_are_right_within_some_pixels():
    found = errors.edge_rows(torch.tensor([[0.0, 1, 2, 3], [0.0, 0, -1, 5]]))
    assert found[0] == ("left", 1.0, 1.0, 1.0, 0.0)
    assert found[2] == ("right", 0.0, 0.5, 1.0, 1.5)
    assert found[4] == ("all", 3 / 8, 5 / 8, 6 / 8, 1.5)


def test_digits_are_counted_by_their_distance_to_a_border():
    near = (1, 0.025, 0.5, 0.6, 1, 1)  # half a pixel right of the border between two cells
    labels = det_labels({(0, 1): near, (1, 2): CELL})
    outputs = perfect_outputs(labels)
    outputs[0, 0, 0, 1] = -9  # missed
    outputs[0, 5, 1, 2] = -9  # taken for a 0
    outputs[0, :, 0, 0] = torch.tensor(
        [9, 0.95, 0.5, 0.6, 1, 9]
    )  # claimed by the other cell, a pixel left of the border
    rows = {name: counts for name, *counts in errors.border_rows(outputs, labels)}
    assert rows["0.5 to below 1 pixels"] == [1, 1, 0, "100.00%", 0]
    assert rows["4 pixels or more"] == [1, 0, 1, "100.00%", 0]
    assert rows["1 to below 2 pixels"] == [0, 0, 0, "0.00%", 1]


def test_distances_to_a_border_are_whole_half_pixels_though_fractions_are_not_exact():
    centres = torch.arange(24, 97) / 2  # 12 to 48 pixels
    labels = data.labels.lists_to_grid([torch.tensor([[1, x / 60, 11.5 / 48, 0.2, 0.25, 0]]) for x in centres])
    found = errors.border_distances(labels)[labels[..., 0].flatten() == 1]
    assert found.tolist() == [min(abs(x - 20), abs(x - 40), 12.5) for x in centres.tolist()]


def test_digits_whose_ink_is_in_pieces_are_counted_apart():
    labels = torch.tensor([LOC, LOC, LOC, NO_DIGIT])
    outputs = perfect_outputs(labels)
    outputs[0, 1] += 8 / 60  # 4 of 20 columns are in both, and both upright edges are off, the left one inwards
    outputs[1, 0] = -9  # missed
    split = data.Split(torch.zeros(4, 1, 48, 60), labels, pieces=torch.tensor([2, 2, 1, 0]))
    assert errors.piece_rows(outputs, split) == [
        ("one piece", 1, "100.00%", pytest.approx(1, abs=1e-4), 0, 0, 0),
        ("several pieces", 2, "50.00%", pytest.approx(0.2, abs=1e-4), 1, 2, 1),
    ]
    assert len(errors.piece_rows(outputs[2:], split[2:])) == 1
    assert not errors.piece_rows(outputs, data.Split(split.images, labels))


def test_calibration_sets_scores_beside_what_is_right():
    labels = torch.tensor([LOC] * 4)
    outputs = perfect_outputs(labels)
    outputs[:, 0] = torch.logit(torch.tensor([0.75, 0.75, 0.75, 0.25]))  # the last is missed, and has no score
    outputs[0, 5:] = outputs[0, 5:].roll(1)
    ((believed, right, count),) = errors.calibration(outputs, labels)
    assert (count, right) == (3, pytest.approx(2 / 3))
    assert believed == pytest.approx(0.75, abs=0.01)


def test_the_commonest_confusions_are_picked_first():
    labels = torch.tensor([(*LOC[:5], class_id) for class_id in (3, 5, 5, 3)])
    outputs = perfect_outputs(labels)
    outputs[1:3, 5:] = outputs[1:3, 5:].roll(1, 1)  # 5 is taken for 6, twice
    outputs[3, 5:] = outputs[3, 5:].roll(-1)
    chosen, said = errors.pick_confused(utils.match(outputs, labels))
    assert chosen.tolist() == [1, 2, 3]
    assert said == ["5 taken for 6", "3 taken for 2"]


def test_the_interval_of_a_score_is_that_of_images_drawn_anew():
    labels = torch.tensor([LOC] * 400)
    outputs = perfect_outputs(labels)
    outputs[:100, 0] = -9
    found = errors.bootstrap(outputs, labels)
    low, high = found["accuracy"]
    assert (low, high) == (pytest.approx(0.75 - 0.0424, abs=0.01), pytest.approx(0.75 + 0.0424, abs=0.01))
    assert found["iou"] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert found["iou_all"] == pytest.approx(found["accuracy"], abs=1e-5)


def test_the_places_of_a_network_are_drawn_over_each_image():
    import models

    split = data.Split(torch.rand(3, 1, 48, 60), torch.tensor([LOC] * 3))
    figure = errors.plot_places(models.CompactNet().eval(), split, utils.Normalizer(0.5, 0.2))
    assert all(len(axes.images) == 2 for axes in figure.axes)
    assert len(figure.axes) == 3
