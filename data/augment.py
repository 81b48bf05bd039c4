"""Moves and stretches training images, boxes included, anew in every epoch; never validation or test images."""

import torch
from torch import Tensor

from data.labels import COLUMNS, HEIGHT, NO_DIGIT, ROWS, WIDTH, find_cell, image_rows, task_of, to_cells


def move(images: Tensor, labels: Tensor, max_shift: int, max_stretch: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Stretch every image's content, and move it by whole pixels, its digits' boxes with it; on the tensors' device.

    images: (N, 1, 48, 60). labels: (N, 6) or (N, 2, 3, 6). max_shift: the most pixels in x and in y. max_stretch:
    width and height are multiplied, each for itself, by between 1 / (1 + max_stretch) and 1 + max_stretch. draws:
    (N, 4) in [0, 1), where in their ranges the two shifts and the two stretches lie.

    Every box stays inside: shifts are drawn from those that leave it there, and a stretch that would not is left out,
    as is all that would get two digits' centres into one cell. Whole columns and rows are repeated or left out, since
    interpolation would change the noise. What leaves on one side re-enters on the other."""
    task = task_of(labels)
    rows = image_rows(labels)  # (N, digits, 6)
    digit, size = rows[..., 0] > 0, rows.new_tensor((WIDTH, HEIGHT))
    center, half = rows[..., 1:3] * size, rows[..., 3:5] * size / 2
    corners = center - half, center + half  # (N, digits, 2)
    lows, highs = (each.round() for each in corners)  # columns and rows that hold ink
    factor = (1 + max_stretch) ** (2 * draws[:, 2:].to(rows) - 1)
    sources, shifts = [], []
    for axis, length in enumerate((WIDTH, HEIGHT)):
        source = _stretch(lows[..., axis], highs[..., axis], digit, factor[:, axis], length)  # (N, length)
        low = (source[:, None] < lows[..., axis, None]).sum(-1)  # (N, digits), the first that shows the digit
        high = (source[:, None] <= highs[..., axis, None]).sum(-1) - 1
        first = (-torch.where(digit, low, length).amin(1)).clamp(-max_shift, 0)  # (N,), to the image's edge
        last = (length - 1 - torch.where(digit, high, 0).amax(1)).clamp(0, max_shift)
        step = (first + (draws[:, axis].to(rows) * (last - first + 1)).floor()).clamp(-max_shift, max_shift).long()
        index = (torch.arange(length, device=step.device) - step[:, None]) % length
        sources.append(source.gather(1, index).long() % length)  # the old column or row that each new one shows
        # by how much each edge moves
        shifts.append((low + step[:, None] - lows[..., axis], high + step[:, None] - highs[..., axis]))
    low, high = (corner + torch.stack(shift, -1) for corner, shift in zip(corners, zip(*shifts)))
    box = torch.cat(((low + high) / 2, high - low), -1) / size.repeat(2)
    moved = rows.clone()
    moved[..., 1:5] = torch.where(digit[..., None], box, rows[..., 1:5])
    number = torch.arange(len(images), device=images.device)[:, None, None]
    changed = images[number, 0, sources[1][:, :, None], sources[0][:, None]][:, None]
    if task == "det":
        moved, crowded = _to_grid(moved)
        crowded = crowded[:, None, None, None]
        changed, moved = (torch.where(crowded, images, changed), torch.where(crowded, labels, moved))
    return changed, moved.reshape(labels.shape)


def _stretch(low: Tensor, high: Tensor, digit: Tensor, factor: Tensor, length: int) -> Tensor:
    """Which of so many old columns (rows) each new one shows, (N, length), when they are stretched by factors (N,)
    about the middle: below 0 and from `length` on those that re-enter. Digits (N, digits) hold ink from `low` to
    `high`; where one would be cut or seen twice, nothing is stretched."""
    before = torch.arange(length, device=low.device, dtype=low.dtype)
    source = ((before + 0.5 - length / 2) / factor[:, None] + length / 2).floor()
    first, last = source[:, :1], source[:, -1:]
    whole, once = (first <= low) & (high <= last), (last - length < low) & (high < length + first)
    fits = (whole & once | ~digit).all(1, keepdim=True)
    return torch.where(fits, source, before)


def _to_grid(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Digits (N, 6, 6) in fractions of the image -> grid labels (N, 2, 3, 6), and (N,) whether two share a cell: as
    `labels.lists_to_grid`, without waiting for the device."""
    column, row = find_cell(rows[..., 1], rows[..., 2])  # (N, 6) each
    cell = torch.where(rows[..., 0] > 0, row * COLUMNS + column, ROWS * COLUMNS).long()  # no digit: a cell cut off
    converted = to_cells(rows, column, row)
    used = torch.zeros(len(rows), ROWS * COLUMNS + 1, device=rows.device).scatter_add_(1, cell, torch.ones_like(row))
    grid = rows.new_tensor(NO_DIGIT).repeat(len(rows), ROWS * COLUMNS + 1, 1)
    grid = grid.scatter(1, cell[..., None].expand_as(converted), converted)[:, :-1]
    return grid.reshape(len(rows), ROWS, COLUMNS, 6), (used[:, :-1] > 1).any(1)
