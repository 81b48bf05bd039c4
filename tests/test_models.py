"""The networks: sizes, shapes, and what they refuse."""

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
