"""The networks: one class each, the picture's size beside every layer.

All take normalised pictures (N, 1, 48, 60). A localizer returns (N, 15) =
[pc logit, x, y, w, h, ten class logits]; a detector returns (N, 6, 2, 3) =
[pc logit, x, y, w, h, one class logit] for each cell of the 2x3 grid.

Six networks follow the course's reference submission (INF265, project 2, spring 2024); CompactNet and CompactNet2 are
this project's own. `PostProcess` finishes their boxes in evaluation.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.labels import COLUMNS, HEIGHT, ON_BORDER, ROWS, WIDTH

PICTURE = (1, HEIGHT, WIDTH)  # channel, height, width


def conv(inputs: int, outputs: int, kernel=3, padding: int = 1, norm: bool = False) -> list[nn.Module]:
    """Convolution, batch norm if asked for, ReLU."""
    return [*_conv(inputs, outputs, kernel, padding, norm), nn.ReLU(inplace=True)]


def conv_pool(inputs: int, outputs: int, kernel=3, padding: int = 1, norm: bool = False) -> list[nn.Module]:
    """Convolution, batch norm if asked for, max pooling that halves height and width, rounding down, and ReLU.

    The larger of two numbers is the same before and after ReLU, and so are the gradients; behind the pooling a quarter
    as many numbers go through it.
    """
    return [*_conv(inputs, outputs, kernel, padding, norm), nn.MaxPool2d(2, 2), nn.ReLU(inplace=True)]


def _conv(inputs: int, outputs: int, kernel: int | tuple[int, int], padding: int, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=padding)]
    return [*layers, nn.BatchNorm2d(outputs)] if norm else layers


def linear(inputs: int, outputs: int) -> list[nn.Module]:
    """Hidden fully connected layer with ReLU."""
    return [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]


def check_pictures(network: nn.Module, pictures: Tensor) -> None:
    """Raise ValueError unless pictures are (N, 1, 48, 60)."""
    if tuple(pictures.shape[1:]) != PICTURE:
        raise ValueError(
            f"{type(network).__name__} expects pictures of shape (N, 1, 48, 60), got {tuple(pictures.shape)}"
        )


class Network(nn.Module):
    """A plain stack of layers that refuses pictures of another shape."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        check_pictures(self, pictures)
        return self.layers(pictures)


class SkreNet(Network):
    """Localization, large: nearly all of its 38.5 million weights are in the first linear layer."""

    def __init__(self):
        super().__init__(
            *conv(1, 10),  # 48x60
            *conv_pool(10, 20),  # 48x60 -> 24x30
            *conv_pool(20, 35),  # 24x30 -> 12x15
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
            *conv_pool(10, 20),  # 48x60 -> 24x30
            *conv_pool(20, 35, kernel=(3, 5)),  # 24x30 -> 24x28 -> 12x14
            *conv_pool(35, 40),  # 12x14 -> 6x7
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
            *conv_pool(3, 10),  # 48x60 -> 24x30
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
            *conv_pool(10, 20),  # 48x60 -> 24x30
            *conv(20, 40, norm=True),  # 24x30
            *conv_pool(40, 60, kernel=(3, 5)),  # 24x30 -> 24x28 -> 12x14
            *conv(60, 80),  # 12x14
            *conv_pool(80, 100),  # 12x14 -> 6x7
            *conv(100, 120, kernel=(5, 4), norm=True),  # 6x7 -> 4x6
            *conv_pool(120, 100),  # 4x6 -> 2x3
            *conv(100, 50),  # 2x3
            *conv(50, 20),  # 2x3
            nn.Conv2d(20, 6, 3, padding=1),  # 2x3
        )


class SimpleNet2(Network):
    """Detection, the baseline: six convolutions."""

    def __init__(self):
        super().__init__(
            *conv(1, 10),  # 48x60
            *conv_pool(10, 20),  # 48x60 -> 24x30
            *conv_pool(20, 35, kernel=(3, 5)),  # 24x30 -> 24x28 -> 12x14
            *conv_pool(35, 40, norm=True),  # 12x14 -> 6x7
            *conv_pool(40, 20, kernel=(5, 4)),  # 6x7 -> 4x6 -> 2x3
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
            *conv_pool(75, 50, kernel=4, padding=0),  # 45x57 -> 42x54 -> 21x27
            *conv_pool(50, 50, kernel=4, padding=0, norm=True),  # 21x27 -> 18x24 -> 9x12
            *conv(50, 25, kernel=(3, 4), padding=0),  # 9x12 -> 7x9
            *conv_pool(25, 15, kernel=4),  # 7x9 -> 6x8 -> 3x4
            nn.Conv2d(15, 6, 4, padding=1),  # 3x4 -> 2x3
        )


# ---------------------------------------------------------------------------------------------- this project's own


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution without bias, batch norm, ReLU; stride 2 halves height and width, rounding up."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Backbone(nn.Module):
    """Pictures (N, 1, 48, 60) -> features (N, 64, 12, 15), each of which has seen the whole of the largest digit.

    Down to 3x4 for context and up again for place, as in a feature pyramid (Lin et al., 2017). Nothing works at full
    size: the first step folds every 2x2 pixels into four channels, which loses nothing and saves three quarters of
    the arithmetic.
    """

    def __init__(self):
        super().__init__()
        self.stage2 = nn.Sequential(nn.PixelUnshuffle(2), block(4, 32), block(32, 32))  # 48x60 -> 24x30
        self.stage4 = nn.Sequential(block(32, 64, stride=2), block(64, 64))  # 24x30 -> 12x15
        self.stage8 = nn.Sequential(block(64, 128, stride=2), block(128, 128))  # 12x15 -> 6x8
        self.stage16 = nn.Sequential(block(128, 128, stride=2), block(128, 128))  # 6x8 -> 3x4
        self.lateral = nn.Conv2d(128, 64, 1)  # 6x8
        self.merge = block(64, 64)  # 12x15

    def forward(self, pictures: Tensor) -> Tensor:
        quarter = self.stage4(self.stage2(pictures))  # 12x15
        eighth = self.stage8(quarter)  # 6x8
        eighth = eighth + F.interpolate(self.stage16(eighth), size=eighth.shape[-2:])  # 3x4 -> 6x8
        return self.merge(quarter + F.interpolate(self.lateral(eighth), size=quarter.shape[-2:]))  # 6x8 -> 12x15


class GridNetwork(nn.Module):
    """One digit per cell of a grid of rows x columns, found by letting every place of the picture speak.

    Each of the backbone's 12x15 places says how surely the digit of its cell has its centre there, how far the box's
    four edges lie from it, and which class it is. A cell's answer is the mean over its places, weighted by the softmax
    of that certainty; its presence logit is their log-sum-exp. So the same weights find a digit wherever it lies, as
    in FCOS (Tian et al., 2019), but there is one box per cell and no suppression, and training needs no rule that
    assigns boxes to places: the loss of the cell's answer reaches the certainties too. Widths and heights are positive.
    """

    bounded = True  # boxes need no further squashing

    def __init__(self, rows: int, columns: int, classes: int):
        super().__init__()
        self.rows, self.columns = rows, columns
        self.backbone = Backbone()
        self.head = nn.Conv2d(64, 5 + classes, 1)  # 12x15
        nn.init.zeros_(self.head.bias)
        places = 12 * 15 // (rows * columns)
        nn.init.constant_(self.head.bias[:1], -math.log(places))  # every presence begins at about one half
        y, x = torch.meshgrid((torch.arange(12) + 0.5) / 12, (torch.arange(15) + 0.5) / 15, indexing="ij")
        self.register_buffer("centres", torch.stack((x, y)), persistent=False)  # (2, 12, 15), fractions of the picture

    def cells(self, pictures: Tensor) -> Tensor:
        """(N, rows, columns, 5 + classes): logits, and boxes in fractions of the picture."""
        check_pictures(self, pictures)
        found = self.head(self.backbone(pictures)).float()  # (N, 5 + classes, 12, 15)
        distances = F.softplus(found[:, 1:5]) / 4  # to the left, top, right and bottom edge
        low, high = self.centres - distances[:, :2], self.centres + distances[:, 2:]
        values = torch.cat((found[:, :1], (low + high) / 2, high - low, found[:, 5:]), 1)
        count, channels = values.shape[:2]
        values = values.reshape(count, channels, self.rows, 12 // self.rows, self.columns, 15 // self.columns)
        values = values.permute(0, 2, 4, 1, 3, 5).flatten(4)  # (N, rows, columns, 5 + classes, places)
        certainty = values[..., :1, :]
        answers = (values[..., 1:, :] * certainty.softmax(-1)).sum(-1)
        return torch.cat((certainty.logsumexp(-1), answers), -1)


class CompactNet(GridNetwork):
    """Localization: the whole picture is the one cell."""

    def __init__(self):
        super().__init__(1, 1, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.cells(pictures).flatten(1)  # (N, 1, 1, 15) -> (N, 15)


class CompactNet2(GridNetwork):
    """Detection: the same, for each cell of the 2x3 grid."""

    def __init__(self):
        super().__init__(2, 3, 1)
        row, column = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
        zero = torch.zeros(2, 3)
        # pc, x, y, w, h, class: from fractions of the picture to units of the cell
        self.register_buffer("scale", torch.tensor((1.0, 3, 2, 3, 2, 1)), persistent=False)
        self.register_buffer("offset", torch.stack((zero, column, row, zero, zero, zero), -1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        return (self.cells(pictures) * self.scale - self.offset).movedim(-1, 1)  # (N, 2, 3, 6) -> (N, 6, 2, 3)


# ---------------------------------------------------------------------------------------------- what finishes boxes


class BoundedBoxes(nn.Module):
    """A network with a sigmoid on its boxes, in training too: no box is negative or larger than the picture."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        outputs = self.network(pictures).float()  # in training layers may give bfloat16, too coarse for boxes
        columns, rows = grid_size(outputs)
        largest = per_channel(outputs, (columns, rows))
        boxes = outputs[:, 1:3].sigmoid(), outputs[:, 3:5].sigmoid() * largest
        return torch.cat((outputs[:, :1], *boxes, outputs[:, 5:]), 1)


class PostProcess(nn.Module):
    """A network whose answers are finished in evaluation; in training it is the network alone.

    snap_to_pixels: every edge is moved to the nearest border between pixels, where labels have theirs. Not in
    training, since rounding has no gradient.
    own_cell: the presence of a digit whose centre the cell itself puts outside the cell is turned into absence, p into
    1 - p: the neighbour answers for it.
    """

    def __init__(self, network: nn.Module, snap_to_pixels: bool, own_cell: bool):
        super().__init__()
        self.network = network
        self.snap_to_pixels, self.own_cell = snap_to_pixels, own_cell

    def forward(self, pictures: Tensor) -> Tensor:
        outputs = self.network(pictures)
        return outputs if self.training else self.finish(outputs)

    def finish(self, outputs: Tensor) -> Tensor:
        """Outputs (N, 15) or (N, 6, 2, 3), as the network gives them -> the same, finished."""
        presence, centre, size = outputs[:, :1], outputs[:, 1:3], outputs[:, 3:5]
        if self.snap_to_pixels:
            columns, rows = grid_size(outputs)
            pixels = per_channel(outputs, (WIDTH / columns, HEIGHT / rows))  # a cell is a whole number of them
            low, high = (((centre + sign * size / 2) * pixels).round() / pixels for sign in (-1, 1))
            centre, size = (low + high) / 2, high - low
        if self.own_cell:
            # A centre on a border may be either cell's, see `labels.assign_cells`.
            inside = ((centre > -ON_BORDER) & (centre < 1 + ON_BORDER)).all(1, keepdim=True)
            presence = torch.where(inside, presence, -presence.abs())
        return torch.cat((presence, centre, size, outputs[:, 5:]), 1)


def grid_size(outputs: Tensor) -> tuple[int, int]:
    """Columns and rows of the grid in whose cells boxes are measured: that of detection, or one cell, the picture."""
    return (COLUMNS, ROWS) if outputs.ndim == 4 else (1, 1)


def per_channel(outputs: Tensor, pair: tuple[float, float]) -> Tensor:
    """Two numbers, for x and y, in a shape that goes with outputs (N, 2) or (N, 2, 2, 3)."""
    return outputs.new_tensor(pair).view(1, 2, *[1] * (outputs.ndim - 2))


REFERENCE_LOCALIZERS: tuple[type[nn.Module], ...] = (SkreNet, FloNet, SimpleNet)
REFERENCE_DETECTORS: tuple[type[nn.Module], ...] = (SkreNet2, SimpleNet2, FloNet2)
LOCALIZERS = (*REFERENCE_LOCALIZERS, CompactNet)
DETECTORS = (*REFERENCE_DETECTORS, CompactNet2)


def count_parameters(network: nn.Module) -> int:
    """Number of trained weights and biases (batch norm's running statistics are not trained)."""
    return sum(parameter.numel() for parameter in network.parameters())


class Layer(NamedTuple):
    """A layer with weights, or one that changes the picture's size."""

    kind: str  # "convolution", "linear", "batch norm", "max pooling", "pixels to channels"
    kernel: tuple[int, ...]  # height and width, () where it has none
    stride: int
    size: tuple[int, ...]  # of its output: channels, height, width; or how many numbers
    parameters: int

    def __str__(self) -> str:
        """A line of a listing: "convolution 3x3, stride 2 -> 64x12x15       18,432"."""
        kernel, size = "x".join(map(str, self.kernel)), "x".join(map(str, self.size))
        stride = f", stride {self.stride}" if self.kind == "convolution" and self.stride > 1 else ""
        return f"{f'{self.kind} {kernel}{stride}':26s} -> {size:10s}{self.parameters:>12,}"


KINDS = {
    nn.Conv2d: "convolution",
    nn.Linear: "linear",
    nn.BatchNorm2d: "batch norm",
    nn.MaxPool2d: "max pooling",
    nn.PixelUnshuffle: "pixels to channels",
}


def list_layers(network: nn.Module) -> list[Layer]:
    """The layers of a network that are of one of the KINDS, in order."""
    layers = []

    def note(layer: nn.Module, _: tuple, output: Tensor) -> None:
        kernel = getattr(layer, "kernel_size", getattr(layer, "downscale_factor", ()))
        kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else kernel[0] if kernel else 1
        size = tuple(output.shape[1:])
        layers.append(Layer(KINDS[type(layer)], kernel, stride, size, count_parameters(layer)))

    hooks = [layer.register_forward_hook(note) for layer in network.modules() if type(layer) in KINDS]
    was_training = network.training
    network.eval()  # batch norm has no statistics of a single empty picture
    try:
        with torch.inference_mode():
            network(torch.zeros(1, *PICTURE))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return layers
