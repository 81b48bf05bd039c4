"""How alike generated images and the course's own are: what is known of the course's training sets, and of ours.

The course's figures were measured on its files, or read off published images of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data import Splits, pixel_moments
from data.labels import HEIGHT, WIDTH, cells_to_image

# How far the mean accuracy of the reference's own trained networks on generated images may be from what they have on
# the course's, by the reference's own metric.
REFERENCE_TOLERANCE = 0.006
BRIGHT = 250  # of 255: 0.98
FOR_NOISE = 4000  # images from which the background's autocorrelation is measured
DISTANCES = (1, 2, 3, 4, 6)  # pixels, at which it is measured

# The course's figures, and how far those of a full set may be from them.
COURSE = {
    "loc": {
        "mean of all pixels": (0.4171, 0.002),
        "standard deviation of all pixels": (0.2138, 0.002),
        "box area, share of the image": (0.0947, 0.0006),
        "box width, pixels": (14.85, 0.15),
        "box height, pixels": (18.05, 0.15),
        "boxes that reach the left edge": (0.008, 0.005),
        "boxes that reach the top edge": (0.058, 0.005),
        "boxes that reach the right edge": (0.014, 0.005),
        "boxes that reach the bottom edge": (0.086, 0.005),
        "pixels in boxes at or above 0.98": (0.191, 0.005),
    },
    "det": {
        "mean of all pixels": (0.2989, 0.002),
        "standard deviation of all pixels": (0.1967, 0.002),
        "width of zeros, pixels": (16.97, 0.2),
        "height of zeros, pixels": (18.10, 0.2),
        "width of ones, pixels": (9.48, 0.2),
        "height of ones, pixels": (17.62, 0.2),
        "digits per image": (1.2748, 0.015),
    },
}
for _task, _values in (("loc", (0.686, 0.537, 0.361, 0.222, 0.058)), ("det", (0.567, 0.453, 0.314, 0.201, 0.063))):
    _names = [f"autocorrelation of the background, {px} px" for px in DISTANCES]
    COURSE[_task] |= {name: (value, 0.02) for name, value in zip(_names, _values, strict=True)}


class Check(NamedTuple):
    """A figure of the course's training set, how far ours may be from it, and ours."""

    name: str
    course: float
    tolerance: float
    ours: float


def compare(splits: Splits) -> list[Check]:
    """The course's training set beside ours."""
    images, labels = splits.train.images, splits.train.labels
    if images.dtype != torch.uint8:
        images = (images * 255).round().byte()
    rows = labels[:, None] if splits.task == "loc" else cells_to_image(labels).flatten(1, 2)  # (N, digits, 6)
    digits = rows[rows[..., 0] == 1]
    width, height = (digits[:, 3:5] * rows.new_tensor((WIDTH, HEIGHT))).T
    ours = [moment / 255 for moment in pixel_moments(images)]
    if splits.task == "loc":
        low, high = edges(digits)
        reached = torch.cat((low == 0, high == high.new_tensor((WIDTH - 1, HEIGHT - 1))), 1)
        bright = images[:, 0][cover(rows, last=0)] >= BRIGHT
        ours += [digits[:, 3:5].prod(1).mean(), width.mean(), height.mean(), *reached.double().mean(0)]
        ours += [bright.double().mean()]
    else:
        ours += [size[digits[:, 5] == class_id].mean() for class_id in (0, 1) for size in (width, height)]
        ours += [len(digits) / len(labels)]
    ours += autocorrelation(images[:FOR_NOISE, 0].float(), ~cover(rows[:FOR_NOISE], last=1))
    course = COURSE[splits.task].items()
    return [Check(name, *figures, float(value)) for (name, figures), value in zip(course, ours, strict=True)]


def edges(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (..., 6) in fractions of the image -> first and last column and row with ink, (..., 2) each."""
    size = rows.new_tensor((WIDTH, HEIGHT))
    low = ((rows[..., 1:3] - rows[..., 3:5] / 2) * size).round()
    return low, low + (rows[..., 3:5] * size).round()


def cover(rows: Tensor, last: int) -> Tensor:
    """Which pixels the boxes (N, digits, 6) cover, (N, 48, 60) bool; with last=1 the last column and row as well."""
    (left, top), (right, bottom) = (edge.unsqueeze(-1).unbind(2) for edge in edges(rows))  # (N, digits, 1) each
    x, y = torch.arange(WIDTH), torch.arange(HEIGHT)
    across, down = (left <= x) & (x < right + last), (top <= y) & (y < bottom + last) & (rows[..., :1] == 1)
    return (down[..., None] & across[..., None, :]).any(1)


def autocorrelation(images: Tensor, noise: Tensor) -> list[Tensor]:
    """Of those pixels of images (N, 48, 60) that are noise, (N, 48, 60) bool, at DISTANCES along a row."""
    values = torch.where(noise, images - images[noise].mean(), 0.0)

    def covariance(px: int) -> Tensor:
        products, pairs = (each[..., px:] * each[..., : WIDTH - px] for each in (values, noise))
        return products.sum() / pairs.sum()

    return [covariance(px) / covariance(0) for px in DISTANCES]
