"""The networks: one class each, the picture's size beside every layer.

All take normalised pictures (N, 1, 48, 60). A localizer returns (N, 15) =
[pc logit, x, y, w, h, ten class logits]; a detector returns (N, 6, 2, 3) =
[pc logit, x, y, w, h, one class logit] for each cell of the 2x3 grid.

The six networks follow the course's reference submission (INF265, project 2, spring 2024).
"""

import torch
from torch import Tensor, nn

PICTURE = (1, 48, 60)  # channel, height, width


def conv(inputs: int, outputs: int, kernel=3, padding: int = 1, norm: bool = False) -> list[nn.Module]:
    """Convolution, batch norm if asked for, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=padding)]
    if norm:
        layers.append(nn.BatchNorm2d(outputs))
    return [*layers, nn.ReLU(inplace=True)]


def pool() -> nn.Module:
    """Max pooling that halves height and width, rounding down."""
    return nn.MaxPool2d(2, 2)


def linear(inputs: int, outputs: int) -> list[nn.Module]:
    """Hidden fully connected layer with ReLU."""
    return [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]


class Network(nn.Module):
    """A plain stack of layers that refuses pictures of another shape."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        if tuple(pictures.shape[1:]) != PICTURE:
            raise ValueError(
                f"{type(self).__name__} expects pictures of shape (N, 1, 48, 60), got {tuple(pictures.shape)}"
            )
        return self.layers(pictures)


class SkreNet(Network):
    """Localization, large: nearly all of its 38.5 million weights are in the first linear layer."""

    def __init__(self):
        super().__init__(
            *conv(1, 10),  # 48x60
            *conv(10, 20),  # 48x60
            pool(),  # 48x60 -> 24x30
            *conv(20, 35),  # 24x30
            pool(),  # 24x30 -> 12x15
            *conv(35, 40),  # 12x15
            nn.Flatten(),  # 40 * 12 * 15 = 7200
            *linear(7200, 5000),
            *linear(5000, 500),
            nn.Linear(500, 15),
        )


class FloNet(Network):
    """Localization, medium: one more pooling than SkreNet, so that the linear part is 35 times smaller."""

    def __init__(self):
        super().__init__(
            *conv(1, 10),  # 48x60
            *conv(10, 20),  # 48x60
            pool(),  # 48x60 -> 24x30
            *conv(20, 35, kernel=(3, 5)),  # 24x30 -> 24x28
            pool(),  # 24x28 -> 12x14
            *conv(35, 40),  # 12x14
            pool(),  # 12x14 -> 6x7
            *conv(40, 50),  # 6x7
            nn.Flatten(),  # 50 * 6 * 7 = 2100
            *linear(2100, 500),
            nn.Linear(500, 15),
        )


class SimpleNet(Network):
    """Localization, the baseline: four narrow convolutions and a single linear layer."""

    def __init__(self):
        super().__init__(
            *conv(1, 3),  # 48x60
            *conv(3, 10),  # 48x60
            pool(),  # 48x60 -> 24x30
            *conv(10, 15),  # 24x30
            *conv(15, 20),  # 24x30
            nn.Flatten(),  # 20 * 24 * 30 = 14400
            nn.Linear(14400, 15),
        )


class SkreNet2(Network):
    """Detection, large: eleven convolutions down to the 2x3 grid."""

    def __init__(self):
        super().__init__(
            *conv(1, 10),  # 48x60
            *conv(10, 20),  # 48x60
            pool(),  # 48x60 -> 24x30
            *conv(20, 40, norm=True),  # 24x30
            *conv(40, 60, kernel=(3, 5)),  # 24x30 -> 24x28
            pool(),  # 24x28 -> 12x14
            *conv(60, 80),  # 12x14
            *conv(80, 100),  # 12x14
            pool(),  # 12x14 -> 6x7
            *conv(100, 120, kernel=(5, 4), norm=True),  # 6x7 -> 4x6
            *conv(120, 100),  # 4x6
            pool(),  # 4x6 -> 2x3
            *conv(100, 50),  # 2x3
            *conv(50, 20),  # 2x3
            nn.Conv2d(20, 6, 3, padding=1),  # 2x3
        )


class SimpleNet2(Network):
    """Detection, the baseline: six convolutions."""

    def __init__(self):
        super().__init__(
            *conv(1, 10),  # 48x60
            *conv(10, 20),  # 48x60
            pool(),  # 48x60 -> 24x30
            *conv(20, 35, kernel=(3, 5)),  # 24x30 -> 24x28
            pool(),  # 24x28 -> 12x14
            *conv(35, 40, norm=True),  # 12x14
            pool(),  # 12x14 -> 6x7
            *conv(40, 20, kernel=(5, 4)),  # 6x7 -> 4x6
            pool(),  # 4x6 -> 2x3
            nn.Conv2d(20, 6, 3, padding=1),  # 2x3
        )


class FloNet2(Network):
    """Detection, medium: wide convolutions at full size, large kernels without padding after them."""

    def __init__(self):
        super().__init__(
            *conv(1, 10),  # 48x60
            *conv(10, 25),  # 48x60
            *conv(25, 50),  # 48x60
            *conv(50, 75),  # 48x60
            *conv(75, 100, norm=True),  # 48x60
            *conv(100, 75, kernel=4, padding=0),  # 48x60 -> 45x57
            *conv(75, 50, kernel=4, padding=0),  # 45x57 -> 42x54
            pool(),  # 42x54 -> 21x27
            *conv(50, 50, kernel=4, padding=0, norm=True),  # 21x27 -> 18x24
            pool(),  # 18x24 -> 9x12
            *conv(50, 25, kernel=(3, 4), padding=0),  # 9x12 -> 7x9
            *conv(25, 15, kernel=4),  # 7x9 -> 6x8
            pool(),  # 6x8 -> 3x4
            nn.Conv2d(15, 6, 4, padding=1),  # 3x4 -> 2x3
        )


LOCALIZERS: tuple[type[Network], ...] = (SkreNet, FloNet, SimpleNet)
DETECTORS: tuple[type[Network], ...] = (SkreNet2, SimpleNet2, FloNet2)


def count_parameters(network: nn.Module) -> int:
    """Number of trained weights and biases (batch norm's running statistics are not trained)."""
    return sum(parameter.numel() for parameter in network.parameters())


def list_layers(network: Network) -> list[tuple[str, str, int]]:
    """Each layer with weights, and each pooling, in order: (description, output size, parameters)."""
    rows, pictures = [], torch.zeros(1, *PICTURE)
    was_training = network.training
    network.eval()  # batch norm has no statistics of a single empty picture
    with torch.inference_mode():
        for layer in network.layers:
            pictures = layer(pictures)
            size = "x".join(map(str, pictures.shape[1:]))
            if isinstance(layer, nn.Conv2d):
                rows.append(
                    (f"convolution {layer.kernel_size[0]}x{layer.kernel_size[1]}", size, count_parameters(layer))
                )
            elif isinstance(layer, nn.Linear):
                rows.append(("linear", size, count_parameters(layer)))
            elif isinstance(layer, nn.BatchNorm2d):
                rows.append(("batch norm", size, count_parameters(layer)))
            elif isinstance(layer, nn.MaxPool2d):
                rows.append(("max pooling 2x2", size, 0))
    network.train(was_training)
    return rows
