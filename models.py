"""The networks: one class each, the image's size beside every layer.

All take normalized images (N, 1, 48, 60), see `utils.Normalize`. A localizer returns (N, 15) = [pc logit, x, y, w, h,
ten class logits]; a detector (N, 6, 2, 3) = [pc logit, x, y, w, h, one class logit] for each cell of the 2x3 grid. Six
follow the course's reference submission (INF265, project 2, spring 2024); CompactNet and CompactNet2 are our own.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.labels import COLUMNS, HEIGHT, ROWS, WIDTH, to_cells

IMAGE = (1, HEIGHT, WIDTH)  # channel, height, width


def conv(inputs: int, outputs: int, kernel=3, padding: int = 1, norm: bool = False) -> list[nn.Module]:
    """Convolution, whose kernel is square or (height, width), batch norm if asked for, ReLU."""
    batch_norm = [nn.BatchNorm2d(outputs)] if norm else []
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), *batch_norm, nn.ReLU(inplace=True)]


def conv_pool(inputs: int, outputs: int, kernel=3, padding: int = 1, norm: bool = False) -> list[nn.Module]:
    """Convolution, batch norm if asked for, max pooling that halves height and width, rounding down, and ReLU: behind
    the pooling for a quarter of the work and the same results and gradients."""
    *layers, relu = conv(inputs, outputs, kernel, padding, norm)
    return [*layers, nn.MaxPool2d(2, 2), relu]


def linear(inputs: int, outputs: int) -> list[nn.Module]:
    """Hidden fully connected layer with ReLU."""
    return [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]


def check_images(network: nn.Module, images: Tensor) -> None:
    """Raise ValueError unless images are (N, 1, 48, 60)."""
    if tuple(images.shape[1:]) != IMAGE:
        raise ValueError(f"{type(network).__name__} expects images of shape (N, 1, 48, 60), got {tuple(images.shape)}")


class Network(nn.Module):
    """A plain stack of layers that refuses images of another shape."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        check_images(self, images)
        return self.layers(images)


class SkreNet(Network):  # localization, large: nearly all of its 38.5 million weights are in the first linear layer
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


class FloNet(Network):  # localization, medium: one more pooling than SkreNet, and a linear part 35 times smaller
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


class SimpleNet(Network):  # localization, the baseline: four narrow convolutions and a single linear layer
    def __init__(self):
        super().__init__(
            *conv(1, 3),  # 48x60
            *conv_pool(3, 10),  # 48x60 -> 24x30
            *conv(10, 15),  # 24x30
            *conv(15, 20),  # 24x30
            nn.Flatten(),  # 20 * 24 * 30 = 14400
            nn.Linear(14400, 15),
        )


class SkreNet2(Network):  # detection, large: eleven convolutions down to the 2x3 grid
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


class SimpleNet2(Network):  # detection, the baseline: six convolutions
    def __init__(self):
        super().__init__(
            *conv(1, 10),  # 48x60
            *conv_pool(10, 20),  # 48x60 -> 24x30
            *conv_pool(20, 35, kernel=(3, 5)),  # 24x30 -> 24x28 -> 12x14
            *conv_pool(35, 40, norm=True),  # 12x14 -> 6x7
            *conv_pool(40, 20, kernel=(5, 4)),  # 6x7 -> 4x6 -> 2x3
            nn.Conv2d(20, 6, 3, padding=1),  # 2x3
        )


class FloNet2(Network):  # detection, medium: wide convolutions at full size, large kernels without padding after them
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


class TenChannels(FloNet2):  # as the reference built it, with ten channels at the end; loss and metric read six
    def __init__(self):
        super().__init__()
        self.layers[-1] = nn.Conv2d(15, 10, 4, padding=1)  # 3x4 -> 2x3


# ---------------------------------------------------------------------------------------------- this project's own
OFFSETS = 24  # distances in pixels, from 2 inwards to 21 outwards, at which a location can see an edge; digits reach 34
MIN_VARIANCE = 0.02  # of a centre, in square pixels: it is never known exactly
FAR = 1000.0  # pixels
LOGISTIC = 1.7  # a logistic function this much steeper is close to the normal distribution's


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution without bias, batch norm, ReLU; stride 2 halves height and width, rounding up."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """`depth` blocks, the first of which halves height and width."""
    return nn.Sequential(block(inputs, outputs, stride=2), *(block(outputs, outputs) for _ in range(depth - 1)))


class Backbone(nn.Module):
    """Images (N, 1, 48, 60) -> features (N, width, 12, 15), each of which sees the whole of the largest digit: down to
    3x4 for context and up again for detail, as in a feature pyramid (Lin et al., 2017). First every 2x2 pixels become
    four channels, which loses nothing and saves three quarters of the arithmetic."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.stage2 = nn.Sequential(nn.PixelUnshuffle(2), block(4, 32), block(32, 32))  # 48x60 -> 24x30
        self.stage4 = stage(32, width, depth)  # 24x30 -> 12x15
        self.stage8 = stage(width, 2 * width, depth)  # 12x15 -> 6x8
        self.stage16 = stage(2 * width, 2 * width, depth)  # 6x8 -> 3x4
        self.lateral = nn.Conv2d(2 * width, width, 1)  # 6x8
        self.merge = block(width, width)  # 12x15

    def forward(self, images: Tensor) -> Tensor:
        quarter = self.stage4(self.stage2(images))  # 12x15
        eighth = self.stage8(quarter)  # 6x8
        eighth = eighth + F.interpolate(self.stage16(eighth), size=eighth.shape[-2:])  # 3x4 -> 6x8
        return self.merge(quarter + F.interpolate(self.lateral(eighth), size=quarter.shape[-2:]))  # 6x8 -> 12x15


class Edges(NamedTuple):
    """For each edge of a cell's box, the probability that it lies in each column or row of pixels (sums to 1)."""

    left: Tensor  # (N, rows, columns, 60)
    right: Tensor
    top: Tensor  # (N, rows, columns, 48)
    bottom: Tensor

    def means(self) -> list[Tensor]:
        """Each edge's mean, (N, rows, columns), in pixels."""
        return [(probability * _pixels(probability)).sum(-1) for probability in self]

    def deviations(self, means: list[Tensor], power: int) -> list[Tensor]:
        """The mean absolute deviation of each edge from its mean (power 1), in pixels, or its variance (power 2)."""
        return [
            (probability * (_pixels(probability) - mean[..., None]).abs() ** power).sum(-1)
            for probability, mean in zip(self, means, strict=True)
        ]


def _pixels(probability: Tensor) -> Tensor:  # the columns or rows that the last axis stands for, (60,) or (48,)
    return torch.arange(probability.shape[-1], device=probability.device, dtype=probability.dtype)


class TrainOutputs(NamedTuple):
    """What a `GridNetwork` returns in training."""

    outputs: Tensor  # as those of every network
    edges: Edges


class GridNetwork(nn.Module):
    """One digit per cell of a grid of rows x columns; every location of the feature map votes.

    Each of the 12x15 locations predicts how certain it is that its cell's digit is centred near it, class logits, and
    for each edge of the box a distribution over its offset (as in generalized focal loss, Li et al., 2020): a faint
    digit's edge may lie on one of several whole pixels. A cell's prediction is the mean over its locations, weighted by
    the softmax of their certainties. So the same weights find a digit wherever it lies, as in FCOS (Tian et al., 2019),
    but no rule assigns boxes to locations: the loss reaches the certainties too.

    Confidence is the log-sum-exp of the certainties; with `center_gate`, times the probability that the centre lies in
    this cell. In training `TrainOutputs` are returned; in evaluation outputs alone, with confidence multiplied by the
    expected IoU, so that good boxes rank first, and with `round_edges` every edge on the nearest whole pixel.
    """

    OPTIONS = ("width", "depth", "center_gate", "round_edges")  # arguments that a run's settings give
    iou_quality = True  # whether evaluation multiplies confidence by the expected IoU
    rows: int
    columns: int
    classes: int  # how many class logits each cell has

    def __init__(self, width: int = 80, depth: int = 3, center_gate: bool = True, round_edges: bool = True):
        super().__init__()
        cells = self.rows * self.columns
        self.center_gate, self.round_edges = center_gate and cells > 1, round_edges
        self.backbone = Backbone(width, depth)
        self.head = nn.Conv2d(width, 1 + self.classes + 4 * OFFSETS, 1)  # 12x15
        nn.init.zeros_(self.head.bias)
        nn.init.constant_(self.head.bias[:1], -math.log(12 * 15 // cells))  # every confidence begins at about one half
        self.register_buffer("across", offset_table(15, WIDTH), persistent=False)
        self.register_buffer("down", offset_table(12, HEIGHT), persistent=False)

    def cells(self, images: Tensor) -> tuple[Tensor, Tensor, Edges]:
        """Confidence logits (N, rows, columns), class logits (N, rows, columns, classes), and edges; all float32."""
        check_images(self, images)
        votes = self.head(self.backbone(images)).float()  # (N, 1 + classes + 4 * OFFSETS, 12, 15)
        votes = votes.unflatten(3, (self.columns, -1)).unflatten(2, (self.rows, -1))
        votes = votes.permute(0, 2, 4, 3, 5, 1)  # (N, rows, columns, locations down, locations across, ...)
        certainty, classes, offsets = votes.split((1, self.classes, 4 * OFFSETS), -1)
        certainty = certainty.flatten(3)  # (N, rows, columns, locations)
        weight = certainty.softmax(-1).view(*votes.shape[:-1], 1)
        classes = (weight * classes).sum((3, 4))  # (N, rows, columns, classes)
        offsets = weight[..., None] * offsets.unflatten(-1, (4, OFFSETS)).softmax(-1)
        # From offsets to pixels. Left and right do not depend on a location's row, nor top and bottom on its column.
        across, down = self.across.unflatten(1, (self.columns, -1)), self.down.unflatten(1, (self.rows, -1))
        with torch.autocast(votes.device.type, enabled=False):  # bfloat16 would be half a pixel off
            sides = torch.einsum("nrcxed,ecxdp->nrcep", offsets[..., :2, :].sum(3), across)  # (N, rows, columns, 2, 60)
            ends = torch.einsum("nrcyed,erydp->nrcep", offsets[..., 2:, :].sum(4), down)  # (N, rows, columns, 2, 48)
        return certainty.logsumexp(-1), classes, Edges(*sides.unbind(-2), *ends.unbind(-2))

    def forward(self, images: Tensor) -> Tensor | TrainOutputs:
        confidence, classes, edges = self.cells(images)
        left, right, top, bottom = means = edges.means()
        if self.center_gate:
            confidence = self.gate(confidence, means, edges.deviations(means, 2))
        if self.iou_quality and not self.training:
            confidence = multiply_by_expected_iou(confidence, means, edges.deviations(means, 1))
        box = ((left + right) / 2 / WIDTH, (top + bottom) / 2 / HEIGHT, (right - left) / WIDTH, (bottom - top) / HEIGHT)
        outputs = torch.cat((torch.stack((confidence, *box), -1), classes), -1)  # (N, rows, columns, 5 + classes)
        outputs = self.lay_out(outputs)
        if self.training:
            return TrainOutputs(outputs, edges)
        return round_boxes(outputs) if self.round_edges else outputs

    def lay_out(self, cells: Tensor) -> Tensor:
        """Predictions (N, rows, columns, 5 + classes), boxes in fractions of the image -> outputs of the task."""
        raise NotImplementedError

    def gate(self, confidence: Tensor, means: list[Tensor], variances: list[Tensor]) -> Tensor:
        """Logits of a digit in sight, its edges' means and variances -> logits of one centred in this cell."""
        log_inside = torch.zeros_like(confidence)
        for axis, (size, count) in enumerate(((WIDTH, self.columns), (HEIGHT, self.rows))):
            first, second = 2 * axis, 2 * axis + 1
            center = (means[first] + means[second]) / 2
            spread = ((variances[first] + variances[second]) / 4 + MIN_VARIANCE).sqrt()
            # Centres lie on half pixels. One on a border belongs to the right or lower cell, see `labels.find_cell`.
            borders = torch.arange(count + 1, device=center.device) * (size / count) - 0.25
            borders[0], borders[-1] = -FAR, FAR
            borders = borders[:, None] if axis else borders  # along the rows, or along the columns
            for distance in (center - borders[:-1], borders[1:] - center):
                log_inside = log_inside + F.logsigmoid(LOGISTIC * distance / spread)
        # The logit of sigmoid(confidence) * inside, computed from logarithms alone.
        log_outside = torch.log(-torch.expm1(log_inside.clamp(max=-1e-6)))
        return confidence + log_inside - F.softplus(confidence + log_outside)


def multiply_by_expected_iou(confidence: Tensor, means: list[Tensor], deviations: list[Tensor]) -> Tensor:
    """Logits of confidence, edges' means and mean absolute deviations -> logits of confidence times the expected IoU;
    above one half, only what exceeds it. The IoU: each side's length over itself plus its two ends' deviations."""
    left, right, top, bottom = means
    width, height = (right - left).clamp(min=1), (bottom - top).clamp(min=1)
    expected = width / (width + deviations[0] + deviations[1]) * height / (height + deviations[2] + deviations[3])
    chance = confidence.sigmoid()
    return torch.logit(torch.where(chance > 0.5, 0.5 + (chance - 0.5) * expected, chance * expected), eps=1e-6)


def offset_table(locations: int, size: int) -> Tensor:
    """(2, locations, OFFSETS, size): 1 for the pixel, of `size` in a row, at an offset before (after) the middle of a
    location, which is four pixels wide; 0 for all others. Offsets end at the image's edge."""
    middle, offset = 4 * torch.arange(locations)[:, None], torch.arange(OFFSETS) - 2  # small boxes lie to one side
    pixels = torch.stack((middle + 2 - offset, middle + 1 + offset)).clamp(0, size - 1)
    return F.one_hot(pixels, size).float()


class CompactNet(GridNetwork):  # localization: the whole image is the one cell
    rows, columns, classes = 1, 1, 10

    def lay_out(self, cells: Tensor) -> Tensor:
        return cells.flatten(1)  # (N, 1, 1, 15) -> (N, 15)


class CompactNet2(GridNetwork):  # detection: the same, for each cell of the 2x3 grid
    rows, columns, classes = ROWS, COLUMNS, 1

    def lay_out(self, cells: Tensor) -> Tensor:
        column, row = (torch.arange(count, device=cells.device) for count in (COLUMNS, ROWS))
        return to_cells(cells, column, row[:, None]).movedim(-1, 1)  # (N, 2, 3, 6) -> (N, 6, 2, 3)


class BoundedBoxes(nn.Module):
    """The last layer of a reference network under our recipe: a sigmoid on boxes, so that none is negative or larger
    than the image; in evaluation, every edge on the nearest whole pixel."""

    def forward(self, outputs: Tensor) -> Tensor:
        outputs = outputs.float()  # bfloat16 is too coarse for a sigmoid
        columns, rows = grid_size(outputs)
        x, y, width, height = outputs[:, 1:5].sigmoid().unbind(1)
        boxes = torch.stack((x, y, width * columns, height * rows), 1)
        outputs = torch.cat((outputs[:, :1], boxes, outputs[:, 5:]), 1)
        return outputs if self.training else round_boxes(outputs)


def round_boxes(outputs: Tensor) -> Tensor:
    """Outputs (N, 15) or (N, 6, 2, 3) -> the same, every edge on the nearest whole pixel."""
    columns, rows = grid_size(outputs)
    x, y, width, height = outputs[:, 1:5].unbind(1)
    x, width = _round_ends(x, width, WIDTH // columns)  # a cell is a whole number of pixels
    y, height = _round_ends(y, height, HEIGHT // rows)
    return torch.cat((outputs[:, :1], torch.stack((x, y, width, height), 1), outputs[:, 5:]), 1)


def _round_ends(center: Tensor, extent: Tensor, pixels: int) -> tuple[Tensor, Tensor]:  # in units of so many pixels
    low, high = (((center + sign * extent / 2) * pixels).round() / pixels for sign in (-1, 1))
    return (low + high) / 2, high - low


def grid_size(outputs: Tensor) -> tuple[int, int]:
    """Columns and rows of the grid in whose cells boxes are measured: detection's, or one cell, the whole image."""
    return (COLUMNS, ROWS) if outputs.ndim == 4 else (1, 1)


REFERENCE = {"loc": (SkreNet, FloNet, SimpleNet), "det": (SkreNet2, SimpleNet2, FloNet2)}
OURS = {"loc": CompactNet, "det": CompactNet2}
NETWORKS = {task: (*REFERENCE[task], OURS[task]) for task in OURS}


def count_parameters(network: nn.Module) -> int:
    """Number of trained weights and biases (batch norm's running statistics are not trained)."""
    return sum(parameter.numel() for parameter in network.parameters())
