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

LN3, LN4 = math.log(3), math.log(4)
TWO = {(5, 6): (4, (20, 16, 30, 28)), (5, 8): (4 + LN3, (21, 16, 33, 28))}  # with weights of 1/4 and 3/4
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
    for wrong in ((2, 1, 60, 48), (2, 3, 48, 60), (1, 48, 60)):
        with pytest.raises(ValueError, match=rf"^{name} expects .*48, 60\), got \({', '.join(map(str, wrong))}\)$"):
            network(torch.zeros(wrong))


def test_relu_behind_the_pooling_changes_nothing():
    conv, norm, pool, relu = models.conv_pool(1, 8, kernel=(3, 5), norm=True)
    images, results = torch.randn(3, 1, 47, 60), []
    for layers in ((conv, norm, pool, relu), (conv, norm, relu, pool)):
        outputs = nn.Sequential(*layers)(images)
        results.append((outputs, *torch.autograd.grad(outputs.square().sum(), (conv.weight, conv.bias, norm.weight))))
    assert isinstance(pool, nn.MaxPool2d)
    torch.testing.assert_close(*results, rtol=0, atol=0)


def vote(classes, said):
    """Votes of the 12x15 locations, (1, channels, 12, 15), where only some say anything: {(row, column): (certainty,
    box)}, the box in pixels, left, top, right and bottom, without any doubt, as far away as can be at most."""
    votes = torch.zeros(1, 1 + classes + 4 * OFFSETS, 12, 15)
    votes[:, 0] = -30.0
    for (row, column), (certainty, (left, top, right, bottom)) in said.items():
        votes[0, 0, row, column] = certainty
        offsets = 4 * column + 4 - left, right - 4 * column + 1, 4 * row + 4 - top, bottom - 4 * row + 1
        for edge, offset in enumerate(offsets):
            votes[0, 1 + classes + edge * OFFSETS + min(offset, OFFSETS - 1), row, column] = 30.0
    return votes


def predict(network, votes, training=False):
    """The network's outputs for one image, (1, 15) or (1, 6, 2, 3), where its locations vote like this."""
    built = network().train(training)
    built.backbone = built.head = nn.Identity()
    built.head.forward = lambda _: votes
    outputs = built(torch.zeros(1, 1, 48, 60))
    return outputs.outputs if training else outputs


@pytest.mark.parametrize(("network", "said", "confidence", "box"), [
    (CompactNet, {(5, 7): (5, (25, 18, 34, 27))}, 5, (25, 18, 34, 27)),
    (CompactNet, {(0, 14): (5, (50, -30, 80, 9))}, 5, (50, 0, 59, 9)),  # edges beyond the image count for its own
    (CompactNet2, {(8, 12): (5, (45, 26, 54, 41))}, 5, (45, 26, 54, 41)),  # in the last cell
    (CompactNet, TWO, 4 + LN4, (20.75, 16, 32.25, 28)),
])  # fmt: skip
def test_the_most_certain_locations_predict_for_their_cell(network, said, confidence, box):
    votes = vote(classes := 10 if network is CompactNet else 1, said)
    for location in said:
        votes[0, 1 : 1 + classes, *location] = torch.arange(3.0, 3 + classes)
    for options, training in (({"round_edges": False}, False), ({}, False), ({}, True)):
        outputs = predict(partial(network, **options), votes, training)
        expected = box if options or training else [*map(round, box)]
        assert [each["boxes"].tolist() for each in utils.decode(outputs)] == [[pytest.approx(expected, abs=2e-3)]]
    cell = outputs[0] if outputs.ndim == 2 else outputs[0, :, 1, 2]
    assert cell[[0, *range(5, 5 + classes)]].tolist() == pytest.approx([confidence, *range(3, 3 + classes)], abs=2e-3)


@pytest.mark.parametrize(("lefts", "first"), [((10,), 0.95), ((11,), 0.05), ((12,), 0), ((8, 11), 0.75)])
def test_a_cell_detects_a_digit_only_if_its_centre_lies_inside(lefts, first):
    """The centre at 19.5, 20, 20.5, or, for all that the left edge says, 18.5 or 20. Two cells, whose border lies at
    20, see the digit, and both are certain of it. The last: sigmoid(1.7 * 0.5 / sqrt(1.5**2 / 4 + 0.02))."""
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
    trained, evaluated = (predict(CompactNet, votes, training)[0, 0].sigmoid() for training in (True, False))
    assert 0.5 < evaluated < trained - 0.1


@pytest.mark.parametrize("network", models.OURS.values())
def test_own_networks_begin_undecided_and_their_geometry_is_float32_under_autocast(network):
    torch.manual_seed(0)
    built, images, kept = network(width=8, depth=1), torch.randn(2, 1, 48, 60), []
    built.head.register_forward_hook(lambda head, inputs, votes: kept.append(votes))
    with torch.autocast("cpu", torch.bfloat16):
        outputs, edges = built(images)
    assert ((outputs[:, 0].sigmoid() > 0.1) & (outputs[:, 0].sigmoid() < 0.8)).all()
    assert (outputs[:, 3:5] > 0).all()
    for probability in edges:
        torch.testing.assert_close(probability.sum(-1), torch.ones(probability.shape[:-1]))
    votes = kept[0].detach().float().requires_grad_()
    built.head.forward = lambda _: votes
    actual, expected = (outputs, *edges), (built(images).outputs, *built.tally(votes)[2])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)  # and of the same type
    losses = (sum(part.square().sum() for part in parts) for parts in (actual, expected))
    half, full = (torch.autograd.grad(*pair)[0] for pair in zip(losses, (kept[0], votes)))
    torch.testing.assert_close(half, full.bfloat16())


@pytest.mark.parametrize(("shape", "cell", "largest"), [((1, 15), (), (1, 1)), ((1, 6, 2, 3), (1, 2), (3, 2))])
def test_edges_are_rounded_and_boxes_bounded(shape, cell, largest):
    outputs, units = torch.zeros(shape), torch.tensor((60, 48) * 2) / torch.tensor(largest * 2)
    outputs[0, 1:5][(..., *cell)] = torch.tensor([10.2, 20.1, 10.9, 15.9]) / units  # edges 4.75, 15.65; 12.15, 28.05
    rounded, bounded = models.round_boxes(outputs)[0, 1:5][(..., *cell)] * units, models.BoundedBoxes()
    assert rounded.tolist() == pytest.approx([10.5, 20, 11, 16], abs=1e-4)
    for logit, share in ((50.0, 1.0), (0.0, 0.5), (-50.0, 0.0)):
        extreme = bounded(torch.full(shape, logit))
        for box in extreme[0, 1:5].reshape(4, -1).T.tolist():
            assert box == pytest.approx([share, share, *(share * each for each in largest)], abs=1e-6)
        assert (extreme[:, [0, 5]] == logit).all()
    in_training = bounded(outputs)
    assert torch.equal(bounded.eval()(outputs), models.round_boxes(in_training))
    assert not torch.equal(bounded(outputs), in_training)
