"""Changes training pictures a little, boxes included, anew in every epoch; never validation or test pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor

from data.labels import COLUMNS, HEIGHT, NO_DIGIT, ROWS, WIDTH, cells_to_picture


def shift(pictures: Tensor, labels: Tensor, task: str, most: int, random: Tensor) -> tuple[Tensor, Tensor]:
    """Move every picture's content by up to `most` whole pixels in x and y, its digits' boxes with it.

    pictures: (N, 1, 48, 60). labels: (N, 6) or (N, 2, 3, 6). random: (N, 2) in [0, 1), where between the furthest
    left (up) and the furthest right (down) that leaves every box inside. What comes in from outside is the picture
    mirrored at its edge. Where two digits would get their centres into one cell, the picture stays as it is. Whole
    pixels, since interpolation would change the noise. Returns new pictures and labels on the same device.
    """
    count = len(pictures)
    size = labels.new_tensor((WIDTH, HEIGHT))
    rows = (cells_to_picture(labels) if task == "det" else labels).reshape(count, -1, 6)
    digit = rows[..., :1] > 0  # (N, digits, 1)
    low = torch.where(digit, (rows[..., 1:3] - rows[..., 3:5] / 2) * size, size).amin(1).round()  # (N, 2) x, y
    high = torch.where(digit, (rows[..., 1:3] + rows[..., 3:5] / 2) * size, 0.0).amax(1).round()
    first, last = (-low).clamp(-most, 0), (size - high).clamp(0, most)
    step = (first + (random.to(size) * (last - first + 1)).floor()).clamp(-most, most)  # whole pixels
    moved = rows.clone()
    moved[..., 1:3] = torch.where(digit, rows[..., 1:3] + (step / size)[:, None], rows[..., 1:3])
    if task == "det":
        moved, crowded = _to_grid(moved)
        step = torch.where(crowded[:, None], 0.0, step)
        moved = torch.where(crowded[:, None, None, None], labels, moved)
    padded = F.pad(pictures.float(), (most, most, most, most), mode="reflect") if most else pictures.float()
    x, y = step.long().unbind(1)
    down = torch.arange(HEIGHT, device=x.device) + most - y[:, None]  # (N, 48): where each row comes from
    across = torch.arange(WIDTH, device=x.device) + most - x[:, None]  # (N, 60)
    number = torch.arange(count, device=x.device)[:, None, None]
    return padded[number, 0, down[:, :, None], across[:, None]][:, None].to(pictures.dtype), moved.reshape(labels.shape)


def _to_grid(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Digits (N, 6, 6) in fractions of the picture -> grid labels (N, 2, 3, 6), and (N,) whether two share a cell.

    `labels.lists_to_grid` without its checks and without waiting for the device.
    """
    pc, x, y, w, h, category = rows.unbind(-1)  # (N, 6) each
    column, row = (x * COLUMNS).floor().clamp(0, COLUMNS - 1), (y * ROWS).floor().clamp(0, ROWS - 1)
    converted = torch.stack((pc, x * COLUMNS - column, y * ROWS - row, w * COLUMNS, h * ROWS, category), -1)
    cell = torch.where(pc > 0, row * COLUMNS + column, ROWS * COLUMNS).long()  # no digit: a cell that is cut off
    used = torch.zeros(len(rows), ROWS * COLUMNS + 1, device=rows.device).scatter_add_(1, cell, torch.ones_like(pc))
    grid = rows.new_tensor(NO_DIGIT).repeat(len(rows), ROWS * COLUMNS + 1, 1)
    grid = grid.scatter(1, cell[..., None].expand_as(converted), converted)[:, :-1]
    return grid.reshape(len(rows), ROWS, COLUMNS, 6), (used[:, :-1] > 1).any(1)
