"""Changes training pictures a little, boxes included, anew in every epoch; never validation or test pictures."""

import torch
from torch import Tensor

from data.labels import COLUMNS, HEIGHT, NO_DIGIT, ROWS, WIDTH, cells_to_picture


def shift(pictures: Tensor, labels: Tensor, task: str, most: int, random: Tensor) -> tuple[Tensor, Tensor]:
    """Move every picture's content by up to `most` whole pixels in x and y, its digits' boxes with it.

    pictures: (N, 1, 48, 60). labels: (N, 6) or (N, 2, 3, 6). random: (N, 2) in [0, 1), where between the furthest
    left (up) and the furthest right (down) that leaves every box inside. What leaves on one side, which is background
    as no box does, comes in on the other. Where two digits would get their centres into one cell, the picture stays as
    it is. Whole pixels, since interpolation would change the noise. Returns new pictures and labels on the same device.
    """
    rows, digit, _, low, high = _edges(labels, task)
    size = labels.new_tensor((WIDTH, HEIGHT))
    first, last = (-low).clamp(-most, 0), (size - high).clamp(0, most)
    step = (first + (random.to(size) * (last - first + 1)).floor()).clamp(-most, most)  # whole pixels
    moved = rows.clone()
    moved[..., 1:3] = torch.where(digit[..., None], rows[..., 1:3] + (step / size)[:, None], rows[..., 1:3])
    x, y = step.long().unbind(1)
    down = (torch.arange(HEIGHT, device=x.device) - y[:, None]) % HEIGHT  # (N, 48): where each row comes from
    across = (torch.arange(WIDTH, device=x.device) - x[:, None]) % WIDTH  # (N, 60)
    return _finish(pictures, labels, _pick(pictures, down, across), moved, task)


def _pick(pictures: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Pictures (N, 1, 48, 60) made of each one's rows `down` (N, 48) and columns `across` (N, 60)."""
    number = torch.arange(len(pictures), device=pictures.device)[:, None, None]
    return pictures[number, 0, down[:, :, None], across[:, None]][:, None]


def zoom(pictures: Tensor, labels: Tensor, task: str, most: float, random: Tensor) -> tuple[Tensor, Tensor]:
    """Enlarge or shrink every picture's content by a factor from 1 - most to 1 + most, its digits' boxes with it.

    pictures: (N, 1, 48, 60). labels: (N, 6) or (N, 2, 3, 6). random: (N,) in [0, 1), where between the two. About the
    picture's middle, moved from there as far as keeps every box inside; a factor that would make the boxes too large
    for the picture is lowered. Rows and columns that come in from outside are copies of those that no box touches, and
    digits that would share a cell stay as they are. Each new pixel is the old one in its place: the noise keeps its
    strength, and edges lie on whole pixels, as labels have them. Returns new pictures and labels on the same device.
    """
    rows, digit, edges, lows, highs = _edges(labels, task)
    sizes = (WIDTH, HEIGHT)
    factor = 1 + most * (2 * random.to(rows) - 1)
    for low, high, size in zip(lows.T, highs.T, sizes, strict=True):
        factor = torch.minimum(factor, size / (high - low).clamp(min=1))
    moved, sources = rows.clone(), []
    for axis, (edge, low, high, size) in enumerate(zip(edges.unbind(2), lows.T, highs.T, sizes, strict=True)):
        start = (size / 2 + (low - size / 2) * factor).clamp(min=0)
        start = torch.minimum(start, size - (high - low) * factor)  # of the leftmost (topmost) edge, not yet whole
        place = torch.arange(size, device=rows.device) + 0.5
        source = ((place - (start - low * factor)[:, None]) / factor[:, None]).floor()  # (N, size)
        # New pixels before an edge are those that come from before it.
        first, last = (source[:, None] < edge[..., side, None] for side in (0, 1))
        first, last = first.sum(-1), last.sum(-1)  # (N, digits)
        moved[..., 1 + axis] = torch.where(digit, (first + last) / (2 * size), rows[..., 1 + axis])
        moved[..., 3 + axis] = torch.where(digit, (last - first) / size, rows[..., 3 + axis])
        column = torch.arange(size, device=rows.device)
        touched = (digit[..., None] & (edge[..., :1] <= column) & (column < edge[..., 1:])).any(1)  # (N, size)
        free = touched.byte().argsort(dim=1, stable=True)  # first the ones that no box touches
        outside = (source < 0) | (source >= size)
        turn = (outside.cumsum(1) - 1).clamp(min=0) % (~touched).sum(1, keepdim=True).clamp(min=1)
        sources.append(torch.where(outside, free.gather(1, turn), source.long()))
    across, down = sources
    return _finish(pictures, labels, _pick(pictures, down, across), moved, task)


def _edges(labels: Tensor, task: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Where the boxes of labels (N, 6) or (N, 2, 3, 6) begin and end, in whole pixels.

    Returns the digits in fractions of the picture (N, digits, 6); which of them are there (N, digits); their edges
    (N, digits, 2, 2), in x and y, low and high; and the lowest and the highest of each picture's (N, 2) in x and y.
    """
    rows = (cells_to_picture(labels) if task == "det" else labels).reshape(len(labels), -1, 6)
    digit, size = rows[..., 0] > 0, rows.new_tensor((WIDTH, HEIGHT))
    centre, half = rows[..., 1:3], rows[..., 3:5] / 2
    edges = (torch.stack((centre - half, centre + half), -1) * size[:, None]).round()
    low = torch.where(digit[..., None], edges[..., 0], size).amin(1)
    high = torch.where(digit[..., None], edges[..., 1], 0.0).amax(1)
    return rows, digit, edges, low, high


def _finish(pictures: Tensor, labels: Tensor, changed: Tensor, moved: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """The changed pictures, and the digits moved in them as labels; where two share a cell, both are as they were."""
    if task == "det":
        moved, crowded = _to_grid(moved)
        changed = torch.where(crowded[:, None, None, None], pictures, changed)
        moved = torch.where(crowded[:, None, None, None], labels, moved)
    return changed, moved.reshape(labels.shape)


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
