"""The networks: sizes, shapes, what they refuse, and what finishes their boxes."""

import math

import pytest
import torch
from torch import nn

import models
from training import Layer, boxes, list_layers

PARAMETERS = {
    models.SkreNet: 38_533_910,
    models.FloNet: 1_101_160,
    models.SimpleNet: 220_410,
    models.SkreNet2: 564_296,
    models.SimpleNet2: 42_281,
    models.FloNet2: 358_061,
    models.CompactNet: 1_497_643,
    models.CompactNet2: 1_496_914,
}
every_network = pytest.mark.parametrize("network", models.LOCALIZERS + models.DETECTORS, ids=lambda each: each.__name__)
LOC, DET = torch.zeros(1, 15), torch.zeros(1, 6, 2, 3)


@every_network
def test_sizes_and_shapes(network):
    with torch.device("meta"):  # without the numbers
        built = network()
        layers = list_layers(built)
        assert built.eval()(torch.zeros(3, 1, 48, 60)).shape == (
            (3, 15) if network in models.LOCALIZERS else (3, 6, 2, 3)
        )
    assert models.count_parameters(built) == sum(layer.parameters for layer in layers) == PARAMETERS[network]
    assert isinstance(list(built.modules())[-1], nn.Conv2d | nn.Linear)  # a ReLU behind it would allow no logit below 0


def test_layers_are_listed_in_order_with_what_they_put_out():
    assert list_layers(models.SimpleNet2()) == [
        Layer("convolution", (3, 3), 1, (10, 48, 60), 1 * 10 * 9 + 10),
        Layer("convolution", (3, 3), 1, (20, 48, 60), 10 * 20 * 9 + 20),
        Layer("max pooling", (2, 2), 2, (20, 24, 30), 0),
        Layer("convolution", (3, 5), 1, (35, 24, 28), 20 * 35 * 15 + 35),
        Layer("max pooling", (2, 2), 2, (35, 12, 14), 0),
        Layer("convolution", (3, 3), 1, (40, 12, 14), 35 * 40 * 9 + 40),
        Layer("batch norm", (), 1, (40, 12, 14), 40 + 40),  # its running mean and variance are not trained
        Layer("max pooling", (2, 2), 2, (40, 6, 7), 0),
        Layer("convolution", (5, 4), 1, (20, 4, 6), 40 * 20 * 20 + 20),
        Layer("max pooling", (2, 2), 2, (20, 2, 3), 0),
        Layer("convolution", (3, 3), 1, (6, 2, 3), 20 * 6 * 9 + 6),
    ]
    assert list_layers(models.CompactNet())[0] == Layer("pixels to channels", (2, 2), 2, (4, 24, 30), 0)
    assert list_layers(models.SimpleNet())[-1] == Layer("linear", (), 1, (15,), 14400 * 15 + 15)


@pytest.mark.parametrize("shape", [(2, 1, 60, 48), (2, 3, 48, 60), (1, 48, 60)], ids=str)
@every_network
def test_images_of_another_shape_are_refused(network, shape):
    with torch.device("meta"), pytest.raises(ValueError, match=rf"^{network.__name__} expects .*48, 60") as refusal:
        network()(torch.zeros(shape))
    assert str(shape) in str(refusal.value)


def test_relu_behind_the_pooling_changes_nothing():
    torch.manual_seed(0)
    images = torch.randn(3, 1, 47, 60)
    written = nn.Sequential(*models.conv_pool(1, 8, norm=True), *models.conv_pool(8, 8, kernel=(3, 5)))
    relu_first = nn.Sequential(*(written[number] for number in (0, 1, 3, 2, 4, 6, 5)))
    assert isinstance(relu_first[2], nn.ReLU)
    found = []
    for layers in (written, relu_first):
        outputs = layers(images)
        found.append([outputs, *torch.autograd.grad(outputs.square().sum(), tuple(written.parameters()))])
    assert all(torch.equal(*pair) and pair[0].any() for pair in zip(*found, strict=True))


def speak(classes, said):
    """What 12x15 places say, (channels, 12, 15), where only some say anything: {(row, column): (certainty, box)}, the
    box in pixels, left, right, top and bottom, without any doubt."""
    values = torch.zeros(1 + classes + 4 * models.DISTANCES, 12, 15)
    values[0] = -30.0
    for (row, column), (certainty, (left, right, top, bottom)) in said.items():
        values[0, row, column] = certainty
        bins = 4 * column + 4 - left, right - 4 * column + 1, 4 * row + 4 - top, bottom - 4 * row + 1
        for edge, place in enumerate(bins):
            values[1 + classes + edge * models.DISTANCES + place, row, column] = 30.0
    return values


def answer(network, values, training=False):
    """The network's answer where its 12x15 places say these values, (channels, 12, 15)."""
    built = network().train(training)
    built.backbone = built.head = nn.Identity()
    built.head.forward = lambda _: values[None]
    found = built(torch.zeros(1, 1, 48, 60))
    return (found.outputs if training else found)[0]


def test_the_surest_place_answers():
    values = speak(10, {(5, 7): (10, (25, 34, 18, 27))})
    values[1:11, 5, 7] = torch.arange(10.0)
    found = answer(models.CompactNet, values).tolist()
    assert found == pytest.approx([10, 29.5 / 60, 22.5 / 48, 9 / 60, 9 / 48, *range(10)], abs=2e-3)


def test_places_that_are_equally_sure_share_the_answer():
    values = speak(10, {(5, 6): (4, (20, 30, 16, 28)), (5, 8): (4, (24, 40, 16, 28))})
    found = answer(models.CompactNet, values, training=True)
    assert found[:2].tolist() == pytest.approx([4 + math.log(2), 28.5 / 60], abs=1e-4)
    assert found[3].item() == pytest.approx(13 / 60, abs=1e-4)


def test_edges_beyond_the_image_count_for_its_own():
    values = speak(10, {(0, 14): (4, (50, 59, 0, 9))})
    values[11 + 24 : 11 + 48, 0, 14] = values[11 + 48 : 11 + 72, 0, 14] = -30.0
    values[11 + 47, 0, 14] = values[11 + 71, 0, 14] = 30.0  # to the right and above, as far away as can be
    assert answer(models.CompactNet, values)[1:5].tolist() == pytest.approx([54.5 / 60, 4.5 / 48, 9 / 60, 9 / 48])


def test_places_speak_for_their_own_cell():
    values = speak(1, {(8, 12): (20, (45, 54, 26, 41))})  # row 1, column 2: places 6 to 11 and 10 to 14
    values[1, 8, 12] = 3.0
    found = answer(models.CompactNet2, values)
    assert (found[0] > 0).nonzero().tolist() == [[1, 2]]
    assert found[1:3, 1, 2].tolist() == pytest.approx([49.5 / 60 * 3 - 2, 33.5 / 48 * 2 - 1], abs=1e-4)
    assert found[3:, 1, 2].tolist() == pytest.approx([9 / 60 * 3, 15 / 48 * 2, 3], abs=1e-4)


@pytest.mark.parametrize(("left", "inside"), [(10, False), (11, True), (12, True)])
def test_a_cell_claims_a_digit_only_if_its_centre_lies_inside(left, inside):
    """Centres at 19.5, 20 and 20.5, the border at 20. Both cells see the digit, and both are sure of it."""
    said = (8, (left, 29, 6, 15))
    confidence = answer(models.CompactNet2, speak(1, {(2, 4): said, (2, 5): said}))[0]
    assert (confidence[0, :2] > 0).tolist() == [not inside, inside]
    assert (confidence.flatten()[2:] < -5).all()


def test_where_the_centre_may_lie_in_either_cell_their_probabilities_add_up_to_one():
    said = (8, (10, 29, 6, 15))
    values = speak(1, {(2, 4): said, (2, 5): said})
    values[2:26, 2, 4:6] = -30.0
    for column in (4, 5):  # the left edge at 8 or at 13: the centre half a pixel before the border, or two behind it
        values[2 + 4 * column + 4 - 8, 2, column] = values[2 + 4 * column + 4 - 13, 2, column] = 30.0
    first, second = answer(models.CompactNet2, values, training=True)[0, 0, :2].sigmoid().tolist()
    assert first + second == pytest.approx(1, abs=0.01)
    assert 0.1 < first < 0.9


def test_unsure_edges_lower_the_score_and_find_no_less():
    sure = speak(10, {(5, 7): (3, (25, 34, 18, 27))})
    unsure = sure.clone()
    unsure[11:, 5, 7] /= 15
    before, after = (answer(models.CompactNet, values)[0].sigmoid().item() for values in (sure, unsure))
    assert before == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=1e-3)
    assert 0.5 < after < before - 0.1
    for values in (sure, unsure):
        values[0] -= 6
    assert answer(models.CompactNet, unsure)[0] < answer(models.CompactNet, sure)[0] < 0


@pytest.mark.parametrize("network", [models.CompactNet, models.CompactNet2])
def test_own_networks_begin_undecided_and_with_positive_boxes(network):
    torch.manual_seed(0)
    found, edges = network()(torch.randn(3, 1, 48, 60))
    assert (found[:, 3:5] > 0).all()
    assert ((found[:, 0].sigmoid() > 0.1) & (found[:, 0].sigmoid() < 0.8)).all()
    for chance in edges:
        torch.testing.assert_close(chance.sum(-1), torch.ones(chance.shape[:-1]))


@pytest.mark.parametrize(("empty", "place", "size"), [(LOC, (), (60, 48)), (DET, (1, 2), (20, 24))], ids=["loc", "det"])
def test_edges_snap_to_whole_pixels_in_evaluation_only(empty, place, size):
    units, outputs = torch.tensor(size * 2), empty.clone()
    outputs[0, 1:5][(..., *place)] = torch.tensor([10.2, 20.1, 10.9, 15.9]) / units  # edges 4.75, 15.65; 12.15, 28.05
    network = boxes.PostProcess(nn.Identity())
    assert network(outputs) is outputs
    found = network.eval()(outputs)[0, 1:5][(..., *place)]
    assert (found * units).tolist() == pytest.approx([10.5, 20, 11, 16], abs=1e-4)


@pytest.mark.parametrize(("empty", "largest"), [(LOC, (1, 1, 1, 1)), (DET, (1, 1, 3, 2))], ids=["loc", "det"])
def test_bounded_boxes_are_no_larger_than_the_image_and_never_negative(empty, largest):
    for logit, share in ((50.0, 1.0), (0.0, 0.5), (-50.0, 0.0)):
        outputs = empty + logit
        found = boxes.BoundedBoxes(nn.Identity())(outputs)
        for box in found[0, 1:5].reshape(4, -1).T.tolist():
            assert box == pytest.approx([share * each for each in largest], abs=1e-6)
        assert torch.equal(found[:, [0, 5]], outputs[:, [0, 5]])
