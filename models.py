"""The networks: one class each, the picture's size beside every layer.

All take normalised pictures (N, 1, 48, 60). A localizer returns (N, 15) =
[pc logit, x, y, w, h, ten class logits]; a detector returns (N, 6, 2, 3) =
[pc logit, x, y, w, h, one class logit] for each cell of the 2x3 grid.

Six networks follow the course's reference submission (INF265, project 2, spring 2024); CompactNet and CompactNet2 are
this project's own.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.labels import COLUMNS, HEIGHT, ROWS, WIDTH, to_cells

PICTURE = (1, HEIGHT, WIDTH)  # channel, height, width


def conv(inputs: int, outputs: int, kernel=3, padding: int = 1, norm: bool = False) -> list[nn.Module]:
    """Convolution, batch norm if asked for, ReLU."""
    return [*_conv(inputs, outputs, kernel, padding, norm), nn.ReLU(inplace=True)]


def conv_pool(inputs: int, outputs: int, kernel=3, padding: int = 1, norm: bool = False) -> list[nn.Module]:
    """Convolution, batch norm if asked for, max pooling that halves height and width, rounding down, and ReLU: behind
    the pooling a quarter as many numbers go through it, and the results and gradients are the same."""
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


DISTANCES = 24  # pixels to an edge that a place can name; the largest digits are 34 wide
LEAST_VARIANCE = 0.02  # of a centre, in square pixels: it is never quite known
FAR = 1000.0  # pixels
LOGISTIC = 1.7  # a logistic function so much steeper is nearly the normal distribution's


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution without bias, batch norm, ReLU; stride 2 halves height and width, rounding up."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` blocks, the first of which halves height and width."""
    return nn.Sequential(block(inputs, outputs, stride=2), *(block(outputs, outputs) for _ in range(depth - 1)))


class Backbone(nn.Module):
    """Pictures (N, 1, 48, 60) -> features (N, width, 12, 15), each of which has seen the whole of the largest digit.

    Down to 3x4 for context and up again for place, as in a feature pyramid (Lin et al., 2017). The first step folds
    every 2x2 pixels into four channels, which loses nothing and saves three quarters of the arithmetic.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.stage2 = nn.Sequential(nn.PixelUnshuffle(2), block(4, 32), block(32, 32))  # 48x60 -> 24x30
        self.stage4 = stage(32, width, depth)  # 24x30 -> 12x15
        self.stage8 = stage(width, 2 * width, depth)  # 12x15 -> 6x8
        self.stage16 = stage(2 * width, 2 * width, depth)  # 6x8 -> 3x4
        self.lateral = nn.Conv2d(2 * width, width, 1)  # 6x8
        self.merge = block(width, width)  # 12x15

    def forward(self, pictures: Tensor) -> Tensor:
        quarter = self.stage4(self.stage2(pictures))  # 12x15
        eighth = self.stage8(quarter)  # 6x8
        eighth = eighth + F.interpolate(self.stage16(eighth), size=eighth.shape[-2:])  # 3x4 -> 6x8
        return self.merge(quarter + F.interpolate(self.lateral(eighth), size=quarter.shape[-2:]))  # 6x8 -> 12x15


class Edges(NamedTuple):
    """How likely each edge of a cell's box lies in each column or row of pixels; sums over the last axis are 1."""

    left: Tensor  # (N, rows, columns, 60)
    right: Tensor
    top: Tensor  # (N, rows, columns, 48)
    bottom: Tensor

    def means(self) -> list[Tensor]:
        """Each edge's mean, (N, rows, columns), in pixels."""
        return [(chance * _pixels(chance)).sum(-1) for chance in self]

    def distances(self, means: list[Tensor], power: int) -> list[Tensor]:
        """The mean of each edge's distance from its mean, to a power: the second gives its variance."""
        return [
            (chance * (_pixels(chance) - mean[..., None]).abs() ** power).sum(-1)
            for chance, mean in zip(self, means, strict=True)
        ]


def _pixels(chance: Tensor) -> Tensor:
    """The numbers of the pixels that the last axis stands for, (60,) or (48,)."""
    return torch.arange(chance.shape[-1], device=chance.device, dtype=chance.dtype)


class Answers(NamedTuple):
    """What a `GridNetwork` says in training."""

    outputs: Tensor  # as those of every network
    edges: Edges


class GridNetwork(nn.Module):
    """One digit per cell of a grid of rows x columns, found by letting every place of the picture speak.

    Each of the backbone's 12x15 places says how surely the digit of its cell has its centre about there, which class it
    is, and for each edge of its box how likely it lies 0, 1, 2 ... pixels away, from two inwards to 21 outwards: edges
    lie on whole pixels, and a faint one has several likely places (distributions as in generalised focal loss, Li et
    al., 2020). A cell's answer is the mean over its places, weighted by the softmax of their certainty. So the same
    weights find a digit wherever it lies, as in FCOS (Tian et al., 2019), but no rule has to assign boxes to places:
    the loss reaches the certainties too.

    Presence is the log-sum-exp of the certainties; among several cells, times the probability that the centre lies in
    this one. In training `Answers` are returned. In evaluation outputs alone, and the presence is the lower the less
    sure the edges are, so that good boxes rank first; but for that it never falls below one half.
    """

    bounded = True  # boxes need no further squashing
    claims = False  # whether presence asks for the centre to be in the cell
    ranks = True  # whether presence is lowered, in evaluation, by the IoU that is expected
    width = 80  # channels at a quarter of the picture's size, and twice as many below it
    depth = 3  # convolutions at each of the sizes

    def __init__(self, rows: int, columns: int, classes: int):
        super().__init__()
        self.rows, self.columns, self.classes = rows, columns, classes
        self.backbone = Backbone(self.width, self.depth)
        self.head = nn.Conv2d(self.width, 1 + classes + 4 * DISTANCES, 1)  # 12x15
        nn.init.zeros_(self.head.bias)
        places = 12 * 15 // (rows * columns)
        nn.init.constant_(self.head.bias[:1], -math.log(places))  # every presence begins at about one half
        self.register_buffer("across", reach(15, WIDTH), persistent=False)
        self.register_buffer("down", reach(12, HEIGHT), persistent=False)

    def cells(self, pictures: Tensor) -> tuple[Tensor, Tensor, Edges]:
        """Presence logits (N, rows, columns), class logits (N, rows, columns, classes), and edges."""
        check_pictures(self, pictures)
        found = self.head(self.backbone(pictures)).float()  # (N, 1 + classes + 4 * DISTANCES, 12, 15)
        found = found.unflatten(3, (self.columns, -1)).unflatten(2, (self.rows, -1))
        found = found.permute(0, 2, 4, 3, 5, 1)  # (N, rows, columns, places down, places across, ...)
        certainty, category, edges = found.split((1, self.classes, 4 * DISTANCES), -1)
        certainty = certainty.flatten(3)  # (N, rows, columns, places)
        weight = certainty.softmax(-1).view(found.shape[:-1])
        category = torch.einsum("nrcyx,nrcyxk->nrck", weight, category)
        likely = edges.unflatten(-1, (4, DISTANCES)).softmax(-1)
        across, down = self.across.unflatten(1, (self.columns, -1)), self.down.unflatten(1, (self.rows, -1))
        sides = torch.einsum("nrcyx,nrcyxed->nrcexd", weight, likely[..., :2, :])
        sides = torch.einsum("nrcexd,ecxdp->nrcep", sides, across)  # (N, rows, columns, 2, 60)
        ends = torch.einsum("nrcyx,nrcyxed->nrceyd", weight, likely[..., 2:, :])
        ends = torch.einsum("nrceyd,erydp->nrcep", ends, down)  # (N, rows, columns, 2, 48)
        return certainty.logsumexp(-1), category, Edges(*sides.unbind(-2), *ends.unbind(-2))

    def forward(self, pictures: Tensor) -> Tensor | Answers:
        presence, category, edges = self.cells(pictures)
        left, right, top, bottom = means = edges.means()
        if self.claims:
            presence = self.claim(presence, means, edges.distances(means, 2))
        if self.ranks and not self.training:
            presence = rank(presence, means, edges.distances(means, 1))
        box = ((left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT)
        outputs = torch.cat((torch.stack((presence, *box), -1), category), -1)  # (N, rows, columns, 5 + classes)
        outputs = self.lay_out(outputs)
        return Answers(outputs, edges) if self.training else outputs

    def lay_out(self, cells: Tensor) -> Tensor:
        """Answers (N, rows, columns, 5 + classes), boxes in fractions of the picture -> outputs of the task."""
        raise NotImplementedError

    def claim(self, presence: Tensor, means: list[Tensor], variances: list[Tensor]) -> Tensor:
        """Logits of a digit in sight, its edges' means and variances -> logits of a digit in sight whose centre lies in
        this cell."""
        log_inside = torch.zeros_like(presence)
        for axis, (size, count) in enumerate(((WIDTH, self.columns), (HEIGHT, self.rows))):
            first, second = 2 * axis, 2 * axis + 1
            centre = (means[first] + means[second]) / 2
            spread = ((variances[first] + variances[second]) / 4 + LEAST_VARIANCE).sqrt()
            # Centres lie on half pixels. One on a border belongs to the right or lower cell, see `labels.find_cell`.
            borders = torch.arange(count + 1, device=centre.device) * (size / count) - 0.25
            borders[0], borders[-1] = -FAR, FAR
            borders = borders[:, None] if axis else borders  # along the rows, or along the columns
            for distance in (centre - borders[:-1], borders[1:] - centre):
                log_inside = log_inside + F.logsigmoid(LOGISTIC * distance / spread)
        # The logit of sigmoid(presence) * inside, without leaving the logarithms.
        log_outside = torch.log(-torch.expm1(log_inside.clamp(max=-1e-6)))
        return presence + log_inside - F.softplus(presence + log_outside)


def rank(presence: Tensor, means: list[Tensor], errors: list[Tensor]) -> Tensor:
    """Logits of presence, edges' means and the errors to be expected in them -> logits of presence times about the IoU
    to be expected; where a digit is found, what it has above one half. The IoU: of each side, its length over itself
    and the errors at its two ends."""
    left, right, top, bottom = means
    width, height = (right - left).clamp(min=1), (bottom - top).clamp(min=1)
    expected = width / (width + errors[0] + errors[1]) * height / (height + errors[2] + errors[3])
    chance = presence.sigmoid()
    return torch.logit(torch.where(chance > 0.5, 0.5 + (chance - 0.5) * expected, chance * expected), eps=1e-6)


def reach(places: int, size: int) -> Tensor:
    """(2, places, DISTANCES, size): 1 for the pixel, of `size` in a row, that lies so far before (behind) the middle of
    one of the places, four pixels each; 0 for all others. What lies beyond the picture's edge counts for the edge."""
    middle, distance = 4 * torch.arange(places)[:, None], torch.arange(DISTANCES) - 2  # small boxes lie to one side
    pixels = torch.stack((middle + 2 - distance, middle + 1 + distance)).clamp(0, size - 1)
    return F.one_hot(pixels, size).float()


class CompactNet(GridNetwork):
    """Localization: the whole picture is the one cell."""

    def __init__(self):
        super().__init__(1, 1, 10)

    def lay_out(self, cells: Tensor) -> Tensor:
        return cells.flatten(1)  # (N, 1, 1, 15) -> (N, 15)


class CompactNet2(GridNetwork):
    """Detection: the same, for each cell of the 2x3 grid."""

    claims = True

    def __init__(self):
        super().__init__(ROWS, COLUMNS, 1)

    def lay_out(self, cells: Tensor) -> Tensor:
        column, row = (torch.arange(count, device=cells.device) for count in (COLUMNS, ROWS))
        return to_cells(cells, column, row[:, None]).movedim(-1, 1)  # (N, 2, 3, 6) -> (N, 6, 2, 3)


REFERENCE_LOCALIZERS: tuple[type[nn.Module], ...] = (SkreNet, FloNet, SimpleNet)
REFERENCE_DETECTORS: tuple[type[nn.Module], ...] = (SkreNet2, SimpleNet2, FloNet2)
LOCALIZERS = (*REFERENCE_LOCALIZERS, CompactNet)
DETECTORS = (*REFERENCE_DETECTORS, CompactNet2)
NETWORKS = {"loc": LOCALIZERS, "det": DETECTORS}  # this project's last


def count_parameters(network: nn.Module) -> int:
    """Number of trained weights and biases (batch norm's running statistics are not trained)."""
    return sum(parameter.numel() for parameter in network.parameters())
