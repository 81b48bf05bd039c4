"""The networks: sizes, shapes, and what they refuse."""

import math

import pytest
import torch
from torch import nn

import models

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
NAMES = [network.__name__ for network in PARAMETERS]


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(3, 1, 48, 60, generator=torch.Generator().manual_seed(0))


def test_the_table_holds_every_network():
    assert set(PARAMETERS) == {*models.LOCALIZERS, *models.DETECTORS}


@pytest.mark.parametrize("network", PARAMETERS, ids=NAMES)
def test_parameter_count(network):
    with torch.device("meta"):  # sizes without the 147 MB
        built = network()
    assert models.count_parameters(built) == PARAMETERS[network]


def test_count_parameters_counts_what_is_trained():
    # 2*3 weights + 3 biases, and batch norm's 3 + 3, without its running mean and variance
    assert models.count_parameters(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))) == 9 + 6


@pytest.mark.parametrize("network", models.LOCALIZERS, ids=lambda network: network.__name__)
def test_localizers_return_15_numbers(network, pictures):
    assert network()(pictures).shape == (3, 15)


@pytest.mark.parametrize("network", models.DETECTORS, ids=lambda network: network.__name__)
def test_detectors_return_six_numbers_per_cell(network, pictures):
    assert network()(pictures).shape == (3, 6, 2, 3)


@pytest.mark.parametrize("network", models.REFERENCE_DETECTORS, ids=lambda network: network.__name__)
def test_detectors_end_without_activation(network, pictures):
    torch.manual_seed(0)
    built = network()
    assert isinstance(list(built.modules())[-1], nn.Conv2d)
    assert built(pictures).min() < 0  # a ReLU at the end would give no negative logits


@pytest.mark.parametrize("network", models.REFERENCE_LOCALIZERS, ids=lambda network: network.__name__)
def test_localizers_end_with_a_linear_layer(network):
    with torch.device("meta"):
        assert isinstance(list(network().modules())[-1], nn.Linear)


class AsWritten(nn.Module):
    """A network's layers with every ReLU before the pooling, where its definition has it."""

    def __init__(self, network):
        super().__init__()
        layers = list(network.layers)
        for index, layer in enumerate(layers[:-1]):
            if isinstance(layer, nn.MaxPool2d):
                assert isinstance(layers[index + 1], nn.ReLU)
                layers[index : index + 2] = layers[index + 1], layer
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures):
        return self.layers(pictures)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "network", [*models.REFERENCE_LOCALIZERS, *models.REFERENCE_DETECTORS], ids=lambda network: network.__name__
)
def test_pooling_before_the_relu_changes_nothing(network, memory_format, pictures):
    torch.manual_seed(0)
    pooled_first = network()
    as_written = AsWritten(network())
    as_written.load_state_dict(pooled_first.state_dict())  # keys are the same, too
    outputs, gradients = [], []
    for built in (pooled_first, as_written):
        built.to(memory_format=memory_format)
        outputs.append(built(pictures.to(memory_format=memory_format)))
        outputs[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in built.parameters()])
    assert torch.equal(*outputs)
    assert all(map(torch.equal, *gradients))
    assert any(gradient.any() for gradient in gradients[0])


@pytest.mark.parametrize("shape", [(2, 1, 60, 48), (2, 3, 48, 60), (1, 48, 60), (2, 1, 48), (2, 1, 48, 61)], ids=str)
@pytest.mark.parametrize("network", PARAMETERS, ids=NAMES)
def test_pictures_of_another_shape_are_refused(network, shape):
    with torch.device("meta"):
        built = network()
    with pytest.raises(ValueError, match=r"48, 60") as refusal:
        built(torch.zeros(shape, device="meta"))
    assert network.__name__ in str(refusal.value)
    assert str(shape) in str(refusal.value)


@pytest.mark.parametrize("network", PARAMETERS, ids=NAMES)
def test_the_list_of_layers_is_complete(network):
    built = network()
    layers = models.list_layers(built)
    assert sum(parameters for _, _, parameters in layers) == PARAMETERS[network]
    if network in (models.CompactNet, models.CompactNet2):
        assert layers[0] == ("2x2 pixels to channels", "4x24x30", 0)
        assert layers[-1][1] == ("15x12x15" if network in models.LOCALIZERS else "6x12x15")
    else:
        assert layers[0][:2] == ("convolution 3x3", f"{built.layers[0].out_channels}x48x60")
        assert layers[-1][1] == ("15" if network in models.LOCALIZERS else "6x2x3")
    assert built.training


# ---------------------------------------------------------------------------------------------- our own networks


OWN = (models.CompactNet, models.CompactNet2)


@pytest.mark.parametrize("network", OWN)
def test_own_networks_are_small(network):
    size = sum(value.numel() * value.element_size() for value in network().state_dict().values())
    assert size <= 6 * 2**20
    assert PARAMETERS[network] <= 1_500_000


def with_places(network, values):
    """The network with a backbone that leaves the head's outputs to be these, (channels, 12, 15)."""
    built = network()
    built.backbone = nn.Identity()
    built.head = nn.Identity()
    built.head.forward = lambda _: values[None]
    return built.eval()


def test_the_surest_place_answers():
    values = torch.full((15, 12, 15), -20.0)
    values[0, 5, 7] = 20.0  # sure at the place whose centre is (7.5 / 15, 5.5 / 12)
    wide = math.log(math.exp(0.8) - 1)  # softplus gives 0.8, a quarter of which is the distance: 0.2
    values[1:5, 5, 7] = wide
    values[5:, 5, 7] = torch.arange(10.0)
    found = with_places(models.CompactNet, values)(torch.zeros(1, 1, 48, 60))[0]
    assert found[0].item() == pytest.approx(20.0, abs=1e-4)
    assert found[1:5].tolist() == pytest.approx([7.5 / 15, 5.5 / 12, 0.4, 0.4], abs=1e-5)
    assert found[5:].tolist() == pytest.approx(range(10), abs=1e-4)


def test_places_speak_for_their_own_cell():
    values = torch.full((6, 12, 15), -20.0)
    wide = math.log(math.exp(0.8) - 1)
    values[1:5] = wide
    values[0, 8, 12] = 20.0  # row 1, column 2: places 6 to 11 and 10 to 14
    values[5, 8, 12] = 3.0
    found = with_places(models.CompactNet2, values)(torch.zeros(1, 1, 48, 60))[0]
    assert (found[0] > 0).nonzero().tolist() == [[1, 2]]
    x, y, w, h, category = found[1:, 1, 2].tolist()
    assert (x, y) == pytest.approx((12.5 / 15 * 3 - 2, 8.5 / 12 * 2 - 1), abs=1e-5)
    assert (w, h) == pytest.approx((0.4 * 3, 0.4 * 2), abs=1e-5)
    assert category == pytest.approx(3.0, abs=1e-4)


def test_two_places_that_are_equally_sure_share_the_answer():
    values = torch.full((15, 12, 15), -30.0)
    values[0, 5, 6] = values[0, 5, 8] = 4.0
    values[1:5] = 0.0
    found = with_places(models.CompactNet, values)(torch.zeros(1, 1, 48, 60))[0]
    assert found[0].item() == pytest.approx(4.0 + math.log(2), abs=1e-5)
    assert found[1].item() == pytest.approx(7.5 / 15, abs=1e-5)


@pytest.mark.parametrize("network", OWN)
def test_own_boxes_are_positive_from_the_start(network, pictures):
    torch.manual_seed(0)
    found = network()(pictures)
    assert (found[:, 3:5] > 0).all()
    assert found[:, 0].sigmoid().sub(0.5).abs().max() < 0.3  # about one half


def test_both_own_networks_have_the_same_backbone():
    shapes = [{name: value.shape for name, value in network().backbone.state_dict().items()} for network in OWN]
    assert shapes[0] == shapes[1]
