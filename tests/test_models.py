"""The networks: sizes, shapes, what they refuse, and what finishes their boxes."""

import math

import pytest
import torch
from torch import nn

import models
from models import Layer

PARAMETERS = {
    models.SkreNet: 38_533_910,
    models.FloNet: 1_101_160,
    models.SimpleNet: 220_410,
    models.SkreNet2: 564_296,
    models.SimpleNet2: 42_281,
    models.FloNet2: 358_061,
    models.CompactNet: 629_391,
    models.CompactNet2: 628_806,
}
every_network = pytest.mark.parametrize("network", models.LOCALIZERS + models.DETECTORS, ids=lambda each: each.__name__)
LOC, DET = torch.zeros(1, 15), torch.zeros(1, 6, 2, 3)
WIDE = math.log(math.exp(0.8) - 1)  # softplus gives 0.8, a quarter of which is the distance to an edge: 0.2


@every_network
def test_sizes_and_shapes(network):
    with torch.device("meta"):  # without the numbers
        built = network()
        layers = models.list_layers(built)
        assert built(torch.zeros(3, 1, 48, 60)).shape == ((3, 15) if network in models.LOCALIZERS else (3, 6, 2, 3))
    assert models.count_parameters(built) == sum(layer.parameters for layer in layers) == PARAMETERS[network]
    assert isinstance(list(built.modules())[-1], nn.Conv2d | nn.Linear)  # a ReLU behind it would allow no logit below 0
    assert built.training


def test_layers_are_listed_in_order_with_what_they_put_out():
    assert models.list_layers(models.SimpleNet2()) == [
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
    assert models.list_layers(models.CompactNet())[0] == Layer("pixels to channels", (2, 2), 2, (4, 24, 30), 0)
    assert models.list_layers(models.SimpleNet())[-1] == Layer("linear", (), 1, (15,), 14400 * 15 + 15)


@pytest.mark.parametrize("shape", [(2, 1, 60, 48), (2, 3, 48, 60), (1, 48, 60)], ids=str)
@every_network
def test_pictures_of_another_shape_are_refused(network, shape):
    with torch.device("meta"), pytest.raises(ValueError, match=rf"^{network.__name__} expects .*48, 60") as refusal:
        network()(torch.zeros(shape))
    assert str(shape) in str(refusal.value)


def test_relu_behind_the_pooling_changes_nothing():
    torch.manual_seed(0)
    pictures = torch.randn(3, 1, 47, 60)
    written = nn.Sequential(*models.conv_pool(1, 8, norm=True), *models.conv_pool(8, 8, kernel=(3, 5)))
    relu_first = nn.Sequential(*(written[number] for number in (0, 1, 3, 2, 4, 6, 5)))
    assert isinstance(relu_first[2], nn.ReLU)
    found = []
    for layers in (written, relu_first):
        outputs = layers(pictures)
        found.append([outputs, *torch.autograd.grad(outputs.square().sum(), tuple(written.parameters()))])
    assert all(torch.equal(*pair) and pair[0].any() for pair in zip(*found, strict=True))


def answer(network, values):
    """The network's answer where its 12x15 places say these values, (channels, 12, 15)."""
    built = network()
    built.backbone = built.head = nn.Identity()
    built.head.forward = lambda _: values[None]
    return built(torch.zeros(1, 1, 48, 60))[0]


def test_the_surest_place_answers():
    values = torch.full((15, 12, 15), -20.0)
    values[0, 5, 7] = 20.0  # its centre is (7.5 / 15, 5.5 / 12)
    values[1:5, 5, 7] = WIDE
    values[5:, 5, 7] = torch.arange(10.0)
    found = answer(models.CompactNet, values).tolist()
    assert found == pytest.approx([20, 7.5 / 15, 5.5 / 12, 0.4, 0.4, *range(10)], abs=1e-4)


def test_places_that_are_equally_sure_share_the_answer():
    values = torch.full((15, 12, 15), -30.0)
    values[0, 5, 6] = values[0, 5, 8] = 4.0
    values[1:5] = 0.0
    assert answer(models.CompactNet, values)[:2].tolist() == pytest.approx([4 + math.log(2), 7.5 / 15], abs=1e-5)


def test_places_speak_for_their_own_cell():
    values = torch.full((6, 12, 15), -20.0)
    values[1:5] = WIDE
    values[0, 8, 12], values[5, 8, 12] = 20.0, 3.0  # row 1, column 2: places 6 to 11 and 10 to 14
    found = answer(models.CompactNet2, values)
    assert (found[0] > 0).nonzero().tolist() == [[1, 2]]
    assert found[:3, 1, 2].tolist() == pytest.approx([20, 12.5 / 15 * 3 - 2, 8.5 / 12 * 2 - 1], abs=1e-4)
    assert found[3:, 1, 2].tolist() == pytest.approx([0.4 * 3, 0.4 * 2, 3], abs=1e-4)


@pytest.mark.parametrize("network", [models.CompactNet, models.CompactNet2])
def test_own_networks_begin_undecided_and_with_positive_boxes(network):
    torch.manual_seed(0)
    found = network()(torch.randn(3, 1, 48, 60))
    assert (found[:, 3:5] > 0).all()
    assert found[:, 0].sigmoid().sub(0.5).abs().max() < 0.3


@pytest.mark.parametrize(("empty", "place", "size"), [(LOC, (), (60, 48)), (DET, (1, 2), (20, 24))], ids=["loc", "det"])
def test_edges_snap_to_whole_pixels_in_evaluation_only(empty, place, size):
    units, outputs = torch.tensor(size * 2), empty.clone()
    outputs[0, 1:5][(..., *place)] = torch.tensor([10.2, 20.1, 10.9, 15.9]) / units  # edges 4.75, 15.65; 12.15, 28.05
    network = models.PostProcess(nn.Identity(), snap_to_pixels=True, own_cell=False)
    assert network(outputs) is outputs
    found = network.eval()(outputs)[0, 1:5][(..., *place)]
    assert (found * units).tolist() == pytest.approx([10.5, 20, 11, 16], abs=1e-4)


def test_a_cell_leaves_a_centre_outside_it_to_its_neighbour():
    outputs = DET.clone()
    outputs[0, 0], outputs[0, 1:3] = 2.0, 0.5
    outputs[0, 1, 0, 0] = 1.001
    outputs[0, 2, 0, 1], outputs[0, 1, 1, 2] = 0.0, 1.0  # on a border, which may be either cell's
    outputs[0, 2, 0, 2] = -0.1
    outputs[0, 0, 1, 0], outputs[0, 1, 1, 0] = -3.0, 1.5  # nothing there anyway
    network = models.PostProcess(nn.Identity(), snap_to_pixels=False, own_cell=True)
    assert network(outputs) is outputs
    found = network.eval()(outputs)
    outputs[0, 0] = torch.tensor([[-2, 2, -2], [-3, 2, 2]])
    assert torch.equal(found, outputs)


@pytest.mark.parametrize(("empty", "largest"), [(LOC, (1, 1, 1, 1)), (DET, (1, 1, 3, 2))], ids=["loc", "det"])
def test_bounded_boxes_are_no_larger_than_the_picture_and_never_negative(empty, largest):
    for logit, share in ((50.0, 1.0), (0.0, 0.5), (-50.0, 0.0)):
        outputs = empty + logit
        found = models.BoundedBoxes(nn.Identity())(outputs)
        for box in found[0, 1:5].reshape(4, -1).T.tolist():
            assert box == pytest.approx([share * each for each in largest], abs=1e-6)
        assert torch.equal(found[:, [0, 5]], outputs[:, [0, 5]])
