"""How alike generated images and the course's own are: what is known of the course's training sets, and the same of ours.

The course's figures were measured on its files, or read off published images of them. `tolerance` is how far a
set of the full size may be from them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data import Splits
from data.labels import HEIGHT, WIDTH, cells_to_image

# How far the mean accuracy of the reference's own trained networks on generated images may be from what they have on the
# course's, by the reference's own measure.
REFERENCE_TOLERANCE = 0.006
BRIGHT = 250  # of 255: 0.98
FOR_NOISE = 4000  # images from which the background's autocorrelation is measured


class Check(NamedTuple):
    """A figure of the course's training set, how far ours may be from it, and ours."""

    name: str
    course: float
    tolerance: float
    ours: float


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
# Autocorrelation of the background at so many pixels.
DISTANCES = (1, 2, 3, 4, 6)


def _distance(px: int) -> str:
    return f"autocorrelation of the background, {px} px"


for _task, _values in (("loc", (0.686, 0.537, 0.361, 0.222, 0.058)), ("det", (0.567, 0.453, 0.314, 0.201, 0.063))):
    COURSE[_task] |= {_distance(px): (value, 0.02) for px, value in zip(DISTANCES, _values, strict=True)}


def compare(splits: Splits) -> list[Check]:
    """The course's training set beside ours."""
    images, labels = splits.train.images, splits.train.labels
    if images.dtype != torch.uint8:
        images = (images * 255).round().byte()
    rows = labels[:, None] if splits.task == "loc" else cells_to_image(labels).flatten(1, 2)  # (N, digits, 6)
    digits = rows[rows[..., 0] == 1]
    size = rows.new_tensor((WIDTH, HEIGHT))
    mean, deviation = moments(images)
    ours = {"mean of all pixels": mean, "standard deviation of all pixels": deviation}
    if splits.task == "loc":
        width, height = (digits[:, 3:5] * size).mean(0).tolist()
        ours |= {"box width, pixels": width, "box height, pixels": height}
        ours["box area, share of the image"] = digits[:, 3:5].prod(1).mean().item()
        low, high = edges(digits)
        reached = torch.cat((low == 0, high == size - 1), 1).float().mean(0).tolist()
        for name, share in zip(("left", "top", "right", "bottom"), reached, strict=True):
            ours[f"boxes that reach the {name} edge"] = share
        inside = cover(rows, last=0)
        ours["pixels in boxes at or above 0.98"] = (images[:, 0][inside] >= BRIGHT).float().mean().item()
    else:
        for class_id, name in enumerate(("zeros", "ones")):
            width, height = (digits[digits[:, 5] == class_id, 3:5] * size).mean(0).tolist()
            ours |= {f"width of {name}, pixels": width, f"height of {name}, pixels": height}
        ours["digits per image"] = len(digits) / len(labels)
    some = slice(FOR_NOISE)
    correlations = autocorrelation(images[some, 0], ~cover(rows[some], last=1))
    ours |= {_distance(px): value for px, value in zip(DISTANCES, correlations, strict=True)}
    return [Check(name, *COURSE[splits.task][name], ours[name]) for name in COURSE[splits.task]]


def moments(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of images (N, 1, 48, 60) uint8, as of [0, 1]."""
    counts = sum(part.flatten().bincount(minlength=256) for part in images.split(4096)).double()
    values, shares = torch.arange(256).double() / 255, counts / counts.sum()
    mean = (shares * values).sum()
    return mean.item(), (shares * (values - mean) ** 2).sum().sqrt().item()


def edges(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (..., 6) in fractions of the image -> first and last column and row with ink, (..., 2) each."""
    size = rows.new_tensor((WIDTH, HEIGHT))
    low = ((rows[..., 1:3] - rows[..., 3:5] / 2) * size).round()
    return low, low + (rows[..., 3:5] * size).round()


def cover(rows: Tensor, last: int) -> Tensor:
    """Which pixels the boxes (N, digits, 6) cover, (N, 48, 60) bool; with last=1 the last column and row as well."""
    low, high = edges(rows)
    covered = torch.zeros(len(rows), HEIGHT, WIDTH, dtype=torch.bool)
    for number in range(rows.shape[1]):
        (left, top), (right, bottom) = (edge[:, number].T[..., None] for edge in (low, high))  # (N, 1) each
        across = (torch.arange(WIDTH) >= left) & (torch.arange(WIDTH) < right + last)
        down = (torch.arange(HEIGHT) >= top) & (torch.arange(HEIGHT) < bottom + last) & (rows[:, number, :1] == 1)
        covered |= down[:, :, None] & across[:, None]
    return covered


def autocorrelation(images: Tensor, noise: Tensor) -> list[float]:
    """Of those pixels of images (N, 48, 60) that are noise, (N, 48, 60) bool, at DISTANCES along a row."""
    values = torch.where(noise, images.float() - images[noise].float().mean(), 0.0)
    variance = values.square().sum() / noise.sum()
    found = []
    for px in DISTANCES:
        pairs = (noise[..., px:] & noise[..., :-px]).sum()
        found.append(((values[..., px:] * values[..., :-px]).sum() / pairs / variance).item())
    return found
