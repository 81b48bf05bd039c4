"""Shifts training pictures, boxes included, anew in every epoch; never validation or test pictures."""

import torch
from torch import Tensor

from data.labels import COLUMNS, HEIGHT, NO_DIGIT, ROWS, WIDTH, cells_to_picture, find_cell, task_of, to_cells


def shift(pictures: Tensor, labels: Tensor, max_shift: int, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Move every picture's content by up to `max_shift` whole pixels in x and y, its digits' boxes with it.

    pictures: (N, 1, 48, 60). labels: (N, 6) or (N, 2, 3, 6). draws: (N, 2) in [0, 1), where between the furthest
    left (up) and the furthest right (down) that leaves every box inside. The shift is circular: background pixels
    that leave on one side re-enter on the other. Where two digits would get their centres into one cell, the picture
    stays as it is. Whole pixels, since interpolation would change the noise. Returns new tensors on the same device.
    """
    task = task_of(labels)
    rows = (cells_to_picture(labels) if task == "det" else labels).reshape(len(labels), -1, 6)  # (N, digits, 6)
    digit, size = rows[..., :1] > 0, rows.new_tensor((WIDTH, HEIGHT))
    centre, half = rows[..., 1:3] * size, rows[..., 3:5] * size / 2
    low = torch.where(digit, (centre - half).round(), size).amin(1)  # (N, 2), the picture's leftmost (topmost) edge
    high = torch.where(digit, (centre + half).round(), 0.0).amax(1)
    first, last = (-low).clamp(-max_shift, 0), (size - 1 - high).clamp(0, max_shift)  # `high` still holds ink
    step = (first + (draws.to(size) * (last - first + 1)).floor()).clamp(-max_shift, max_shift)
    moved = rows.clone()
    moved[..., 1:3] = torch.where(digit, rows[..., 1:3] + (step / size)[:, None], rows[..., 1:3])
    shifted = _roll(pictures, step.long())
    if task == "det":
        moved, crowded = _to_grid(moved)
        crowded = crowded[:, None, None, None]
        shifted, moved = (torch.where(crowded, pictures, shifted), torch.where(crowded, labels, moved))
    return shifted, moved.reshape(labels.shape)


def _roll(pictures: Tensor, step: Tensor) -> Tensor:
    """Every picture (N, 1, 48, 60) rolled by its own step (N, 2), pixels to the right and down."""
    x, y = step[:, 0, None], step[:, 1, None]
    rows = (torch.arange(HEIGHT, device=step.device) - y) % HEIGHT  # (N, 48): where each row comes from
    columns = (torch.arange(WIDTH, device=step.device) - x) % WIDTH  # (N, 60)
    number = torch.arange(len(pictures), device=step.device)[:, None, None]
    return pictures[number, 0, rows[:, :, None], columns[:, None]][:, None]


def _to_grid(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Digits (N, 6, 6) in fractions of the picture -> grid labels (N, 2, 3, 6), and (N,) whether two share a cell.

    `labels.lists_to_grid` without its checks and without waiting for the device.
    """
    column, row = find_cell(rows[..., 1], rows[..., 2])  # (N, 6) each
    cell = torch.where(rows[..., 0] > 0, row * COLUMNS + column, ROWS * COLUMNS).long()  # no digit: a cell cut off
    converted = to_cells(rows, column, row)
    used = torch.zeros(len(rows), ROWS * COLUMNS + 1, device=rows.device).scatter_add_(1, cell, torch.ones_like(row))
    grid = rows.new_tensor(NO_DIGIT).repeat(len(rows), ROWS * COLUMNS + 1, 1)
    grid = grid.scatter(1, cell[..., None].expand_as(converted), converted)[:, :-1]
    return grid.reshape(len(rows), ROWS, COLUMNS, 6), (used[:, :-1] > 1).any(1)
