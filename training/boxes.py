"""What is put around a network for the sake of its boxes."""

import torch
from torch import Tensor, nn

from data.labels import COLUMNS, HEIGHT, ROWS, WIDTH
from models import Answers


class BoundedBoxes(nn.Module):
    """A network with a sigmoid on its boxes, in training too: no box is negative or larger than the picture."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        outputs = self.network(pictures).float()  # in training it may be bfloat16, too coarse for a sigmoid
        columns, rows = grid_size(outputs)
        x, y, width, height = outputs[:, 1:5].sigmoid().unbind(1)
        boxes = torch.stack((x, y, width * columns, height * rows), 1)
        return torch.cat((outputs[:, :1], boxes, outputs[:, 5:]), 1)


class PostProcess(nn.Module):
    """A network whose boxes are snapped to whole pixels, where labels have their edges: in evaluation only, since
    rounding has no gradient."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor | Answers:
        outputs = self.network(pictures)
        return outputs if self.training else self.finish(outputs)

    @staticmethod
    def finish(outputs: Tensor) -> Tensor:
        """Outputs (N, 15) or (N, 6, 2, 3), as the network gives them -> the same, every edge on the nearest pixel."""
        columns, rows = grid_size(outputs)
        x, y, width, height = outputs[:, 1:5].unbind(1)
        x, width = snap(x, width, WIDTH // columns)  # a cell is a whole number of pixels
        y, height = snap(y, height, HEIGHT // rows)
        return torch.cat((outputs[:, :1], torch.stack((x, y, width, height), 1), outputs[:, 5:]), 1)


def snap(centre: Tensor, extent: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Centres and extents along one axis, in a unit of so many pixels -> those with both ends on the nearest pixel."""
    low, high = (((centre + sign * extent / 2) * pixels).round() / pixels for sign in (-1, 1))
    return (low + high) / 2, high - low


def grid_size(outputs: Tensor) -> tuple[int, int]:
    """Columns and rows of the grid in whose cells boxes are measured: that of detection, or one cell, the picture."""
    return (COLUMNS, ROWS) if outputs.ndim == 4 else (1, 1)
