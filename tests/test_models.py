"""The networks: sizes, shapes, what they refuse, what ours make of their votes, and what becomes of boxes."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

import models
import utils
from models import OFFSETS, CompactNet, CompactNet2

TWO = {(5, 6): (4, (20, 16, 30, 28)), (5, 8): (4 + math.log(3), (21, 16, 33, 28))}  # with weights of 1/4 and 3/4
PARAMETERS = {
    "SkreNet": 38_533_910, "FloNet": 1_101_160, "SimpleNet": 220_410, "CompactNet": 1_497_643,
    "SkreNet2": 564_296, "SimpleNet2": 42_281, "FloNet2": 358_061, "CompactNet2": 1_496_914, "TenChannels": 359_025,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_and_shapes(name):
    network = getattr(models, name)().eval()
    shape = (10, 2, 3) if name == "TenChannels" else (15,) if type(network) in models.NETWORKS["loc"] else (6, 2, 3)
    assert network(torch.zeros(2, 1, 48, 60)).shape[1:] == shape
    assert models.count_parameters(network) == PARAMETERS[name]
    assert isinstance(list(network.modules())[-1], nn.Conv2d | nn.Linear)  # a ReLU behind it would allow no logit < 0
    with pytest.raises(ValueError, match=rf"^{name} expects .*48, 60\), got \(2, 1, 60, 48\)$"):
        network(torch.zeros(2, 1, 60, 48))


def vote(classes, said):
    """Votes, (1, channels, 12, 15), for boxes in pixels: {(row, column): (certainty, (left, top, right, bottom))}."""
    votes = torch.zeros(1, 1 + classes + 4 * OFFSETS, 12, 15)
    votes[:, 0] = -30.0
    for (row, column), (certainty, (left, top, right, bottom)) in said.items():
        votes[0, 0, row, column] = certainty
        offsets = 4 * column + 4 - left, right - 4 * column + 1, 4 * row + 4 - top, bottom - 4 * row + 1
        for edge, offset in enumerate(offsets):
            votes[0, 1 + classes + edge * OFFSETS + min(offset, OFFSETS - 1), row, column] = 30.0
    return votes


def predict(network, votes, training=False):
    """The network's outputs, (1, 15) or (1, 6, 2, 3), where its locations vote like this."""
    built = network().train(training)
    built.backbone, built.head.forward = nn.Identity(), lambda _: votes
    outputs = built(torch.zeros(1, 1, 48, 60))
    return outputs.outputs if training else outputs


@pytest.mark.parametrize(("network", "said", "confidence", "box"), [
    (CompactNet, {(0, 14): (5, (50, -30, 80, 9))}, 5, (50, 0, 59, 9)),  # edges beyond the image count for its own
    (CompactNet2, {(8, 12): (5, (45, 26, 54, 41))}, 5, (45, 26, 54, 41)),  # in the last cell
    (CompactNet, TWO, 4 + math.log(4), (20.75, 16, 32.25, 28)),
])  # fmt: skip
def test_the_most_certain_locations_predict_for_their_cell(network, said, confidence, box):
    votes = vote(classes := 10 if network is CompactNet else 1, said)
    for location in said:
        votes[0, 1 : 1 + classes, *location] = torch.arange(3.0, 3 + classes)
    for training, expected in ((False, [*map(round, box)]), (True, box)):
        outputs = predict(network, votes, training)
        assert [each["boxes"].tolist() for each in utils.decode(outputs)] == [[pytest.approx(expected, abs=2e-3)]]
    cell = outputs[0] if outputs.ndim == 2 else outputs[0, :, 1, 2]
    assert cell[[0, *range(5, 5 + classes)]].tolist() == pytest.approx([confidence, *range(3, 3 + classes)], abs=2e-3)


@pytest.mark.parametrize(("lefts", "first"), [((10,), 0.95), ((11,), 0.05), ((12,), 0), ((8, 11), 0.75)])
def test_a_cell_detects_a_digit_only_if_its_centre_lies_inside(lefts, first):
    """Two cells, whose border lies at 20, are certain of a digit, its centre at 19.5, 20, 20.5, or, for all that the
    left edge says, 18.5 or 20: sigmoid(1.7 * 0.5 / sqrt(1.5**2 / 4 + 0.02))."""
    said = (8, (lefts[0], 6, 29, 15))
    votes = vote(1, {(2, 4): said, (2, 5): said})
    for left, column in itertools.product(lefts, (4, 5)):
        votes[0, 2 + 4 * column + 4 - left, 2, column] = 30.0
    confidence = predict(CompactNet2, votes, training=True)[0, 0].flatten().sigmoid()
    assert confidence[:2].tolist() == pytest.approx([first, 1 - first], abs=0.01)
    assert (confidence[2:] < 0.01).all()
    assert (predict(partial(CompactNet2, center_gate=False), votes)[0, 0, 0, :2] > 0).all()


def test_confidence_is_multiplied_by_the_expected_iou_and_stays_above_one_half():
    """Edges at 10, 20, 5 and 25, off by 1, 1, 2 and 3 in the mean: 10/12 of 20/25 is 2/3."""
    means, deviations = ([torch.tensor(float(value)) for value in each] for each in ((10, 20, 5, 25), (1, 1, 2, 3)))
    confidence = models.multiply_by_expected_iou(torch.tensor([0.8, 0.3]).logit(), means, deviations)
    assert confidence.sigmoid().tolist() == pytest.approx([0.5 + 0.3 * 2 / 3, 0.3 * 2 / 3])
    votes = vote(10, {(5, 7): (3, (25, 18, 34, 27))})
    votes[0, 11:, 5, 7] /= 15  # in doubt
    assert 0 < predict(CompactNet, votes)[0, 0] < predict(CompactNet, votes, training=True)[0, 0] - 1


@pytest.mark.parametrize("network", models.OURS.values())
def test_own_networks_begin_undecided_and_their_geometry_is_float32_under_autocast(network):
    torch.manual_seed(0)
    built, votes = network(width=8, depth=1), []
    built.head.register_forward_hook(lambda head, inputs, outputs: votes.append(outputs))
    with torch.autocast("cpu", torch.bfloat16):
        outputs, edges = built(torch.randn(2, 1, 48, 60))
    assert ((outputs[:, 0].sigmoid() > 0.1) & (outputs[:, 0].sigmoid() < 0.8)).all()
    assert (outputs[:, 3:5] > 0).all()
    built.head.forward = lambda _: votes[0].float()  # the same from there on, without autocast
    expected = built(torch.zeros(2, 1, 48, 60))
    torch.testing.assert_close((outputs, *edges), (expected.outputs, *expected.edges), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("shape", "cell", "largest"), [((1, 15), (), (1, 1)), ((1, 6, 2, 3), (1, 2), (3, 2))])
def test_edges_are_rounded_and_boxes_bounded(shape, cell, largest):
    outputs, units = torch.zeros(shape), torch.tensor((60, 48) * 2) / torch.tensor(largest * 2)
    outputs[0, 1:5][(..., *cell)] = torch.tensor([10.2, 20.1, 10.9, 15.4]) / units  # edges 4.75, 15.65; 12.4, 27.8
    rounded, bounded = models.round_boxes(outputs)[0, 1:5][(..., *cell)] * units, models.BoundedBoxes()
    assert rounded.tolist() == pytest.approx([10.5, 20, 11, 16], abs=1e-4)
    for logit, share in ((50.0, 1.0), (0.0, 0.5), (-50.0, 0.0)):
        extreme = bounded(torch.full(shape, logit))
        box = [share, share, *(share * each for each in largest)]
        assert extreme[0, 1:5][(..., *cell)].tolist() == pytest.approx(box, abs=1e-6)
        assert (extreme[:, [0, 5]] == logit).all()
    trained = bounded(outputs)
    assert torch.equal(bounded.eval()(outputs), models.round_boxes(trained))
