"""How like the course's own images generated ones are: what is known of the course's training sets, and ours."""

from collections import namedtuple

import torch
from torch import Tensor

from data import Splits, pixel_moments
from data.labels import HEIGHT, WIDTH, image_rows

BRIGHT = 250  # of 255: 0.98
FOR_NOISE = 4000  # images from which the background's autocorrelation is computed
DISTANCES = (1, 2, 3, 4, 6)  # pixels, at which it is computed

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
    for _px, _value in zip(DISTANCES, _values):
        COURSE[_task][f"autocorrelation of the background, {_px} px"] = (_value, 0.02)

Check = namedtuple("Check", "name course tolerance ours")


def compare(splits: Splits) -> list[Check]:
    """Per figure its name, the course's value, how far that of our training set may be from it, and ours."""
    images, labels = splits.train.images, splits.train.labels
    if images.dtype != torch.uint8:
        images = (images * 255).round().byte()
    rows = image_rows(labels)  # (N, digits, 6)
    digit, size = rows[..., 0] == 1, rows.new_tensor((WIDTH, HEIGHT))
    low = ((rows[..., 1:3] - rows[..., 3:5] / 2) * size).round()  # first column and row with ink, (N, digits, 2)
    high = low + (rows[..., 3:5] * size).round()  # last
    width, height = (high - low)[digit].T
    ours = [moment / 255 for moment in pixel_moments(images)]
    if splits.task == "loc":
        reached = torch.cat((low[digit] == 0, high[digit] == size - 1), 1).double().mean(0)
        bright = (images[:, 0][cover(low, high, digit)] >= BRIGHT).double().mean()
        ours += [rows[..., 3:5].prod(-1)[digit].mean(), width.mean(), height.mean(), *reached, bright]
    else:
        class_id = rows[..., 5][digit]
        ours += [sizes[class_id == number].mean() for number in (0, 1) for sizes in (width, height)]
        ours += [len(width) / len(labels)]
    # The autocorrelation along the rows of pixels that belong to no digit.
    noise = ~cover(low[:FOR_NOISE], high[:FOR_NOISE] + 1, digit[:FOR_NOISE])
    few = images[:FOR_NOISE, 0].float()
    values = torch.where(noise, few - few[noise].mean(), 0.0)
    pairs = [[each[..., px:] * each[..., : WIDTH - px] for each in (values, noise)] for px in (0, *DISTANCES)]
    variance, *covariances = (products.sum() / both.sum() for products, both in pairs)
    ours += [covariance / variance for covariance in covariances]
    course = COURSE[splits.task].items()
    return [Check(name, *figures, float(value)) for (name, figures), value in zip(course, ours, strict=True)]


def cover(low: Tensor, high: Tensor, digit: Tensor) -> Tensor:
    """Which pixels a digit's box covers, (N, 48, 60) bool; each from `low` to below `high`, (N, digits, 2)."""
    x, y = torch.arange(WIDTH), torch.arange(HEIGHT)
    across = (low[..., :1] <= x) & (x < high[..., :1]) & digit[..., None]  # (N, digits, 60)
    down = (low[..., 1:] <= y) & (y < high[..., 1:])
    return (down[..., None] & across[..., None, :]).any(1)
