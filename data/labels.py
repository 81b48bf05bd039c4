"""The label layout `[pc, x, y, w, h, c]`: checks, picture <-> cell coordinates, lists -> grid.

`pc` is 1 where there is a digit and 0 where there is none; then the other five mean nothing and nothing reads them.
`x, y` is the box's centre and `w, h` its size, (0, 0) the top left corner; `c` is the class.

- Localization, (N, 6): everything in fractions of the picture, classes 0 to 9.
- Detection, (N, 2, 3, 6): a cell of the 2x3 grid each; `x, y` in [0, 1] inside the cell, `w, h` in cells. Classes 0, 1.
- Lists: for each picture a tensor (k, 6), or a list of k tensors (6,), everything in fractions of the picture.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.files import DataError

HEIGHT, WIDTH = 48, 60
ROWS, COLUMNS = 2, 3
CLASSES = {"loc": 10, "det": 2}
NO_DIGIT = (0.0, -1.0, -1.0, -1.0, -1.0, 1.0)  # what the course's files hold where there is none

# A box may stick out of the picture by rounding: a thousandth of the picture is 0.06 pixels.
TOLERANCE = 1e-3


def check_task(task: str) -> None:
    """Raise ValueError unless task is "loc" or "det"."""
    if task not in CLASSES:
        raise ValueError(f'task: expected "loc" or "det", found {task!r}')


def task_of(labels: Tensor) -> str:
    """The task that labels belong to, by their shape: "loc" for (N, 6), "det" for (N, 2, 3, 6). Raises ValueError."""
    for task, shape in (("loc", (6,)), ("det", (ROWS, COLUMNS, 6))):
        if tuple(labels.shape[1:]) == shape:
            return task
    raise ValueError(f"labels: expected shape (N, 6) or (N, {ROWS}, {COLUMNS}, 6), found {tuple(labels.shape)}")


def _first(wrong: Tensor) -> int:
    """Index of the first picture for which anything is wrong."""
    return int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])


def check_pictures(pictures: Tensor, where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless pictures are (N, 1, 48, 60), N > 0,
    either uint8 or float32 in [0, 1]."""
    if not isinstance(pictures, Tensor):
        raise DataError(f"{where}: expected pictures as a tensor, found {type(pictures).__name__}")
    if len(pictures.shape) > 0 and len(pictures) == 0:
        raise DataError(f"{where}: empty, expected at least one picture")
    if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (1, HEIGHT, WIDTH):
        raise DataError(f"{where}: expected pictures of shape (N, 1, {HEIGHT}, {WIDTH}), found {tuple(pictures.shape)}")
    if pictures.dtype not in (torch.uint8, torch.float32):
        raise DataError(f"{where}: expected pictures in float32 or uint8, found {pictures.dtype}")
    if pictures.dtype == torch.float32:
        low, high = torch.aminmax(pictures)  # NaN if any pixel is NaN
        if not (torch.isfinite(low) and torch.isfinite(high)):
            wrong = ~torch.isfinite(pictures)
            raise DataError(f"{where}: picture {_first(wrong)} has pixels that are NaN or infinite")
        if low < 0 or high > 1:
            wrong = (pictures < 0) | (pictures > 1)
            raise DataError(
                f"{where}: picture {_first(wrong)} has pixels outside [0, 1], the set's range is "
                f"[{low:.4g}, {high:.4g}]"
            )


def check_labels(labels: Tensor, task: str, where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless labels are (N, 6) for "loc" or (N, 2, 3, 6) for
    "det", float32, and every digit's box lies inside the picture and has a class of the task."""
    check_task(task)
    shape = (6,) if task == "loc" else (ROWS, COLUMNS, 6)
    if not isinstance(labels, Tensor):
        raise DataError(f"{where}: expected labels as a tensor, found {type(labels).__name__}")
    if tuple(labels.shape[1:]) != shape or labels.ndim != len(shape) + 1:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise DataError(f"{where}: expected labels of shape ({wanted}), found {tuple(labels.shape)}")
    if labels.dtype != torch.float32:
        raise DataError(f"{where}: expected labels in float32, found {labels.dtype}")
    pc = labels[..., 0]
    wrong = (pc != 0) & (pc != 1)  # NaN is neither
    if wrong.any():
        raise DataError(f"{where}: label {_first(wrong)}: pc is {pc[wrong][0]:g}, expected 0 or 1")
    if task == "det":
        x, y = labels[..., 1], labels[..., 2]
        wrong = (pc == 1) & ~((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1))
        if wrong.any():
            raise DataError(
                f"{where}: label {_first(wrong)}: x, y is ({x[wrong][0]:g}, {y[wrong][0]:g}), expected inside the "
                "cell, each in [0, 1]"
            )
        labels = cells_to_picture(labels)
    digits = torch.where(pc[..., None] == 1, labels, labels.new_tensor((0, 0.5, 0.5, 1, 1, 0)))
    _check_digits(digits, CLASSES[task], where)


def _check_digits(digits: Tensor, classes: int, where: str) -> None:
    """The checks of one digit each, on labels (N, ..., 6) in fractions of the picture."""
    wrong = ~torch.isfinite(digits)
    if wrong.any():
        raise DataError(f"{where}: label {_first(wrong)} holds NaN or infinity")
    centre, size, category = digits[..., 1:3], digits[..., 3:5], digits[..., 5]
    wrong = (size <= 0).any(-1)
    if wrong.any():
        w, h = size[wrong][0].tolist()
        raise DataError(f"{where}: label {_first(wrong)}: w, h is ({w:g}, {h:g}), expected both above 0")
    corners = torch.cat((centre - size / 2, centre + size / 2), -1)
    wrong = ((corners < -TOLERANCE) | (corners > 1 + TOLERANCE)).any(-1)
    if wrong.any():
        found = ", ".join(f"{value:.3f}" for value in corners[wrong][0].tolist())
        raise DataError(f"{where}: label {_first(wrong)}: box (left, top, right, bottom) = ({found}) is not in [0, 1]")
    wrong = (category < 0) | (category >= classes) | (category != category.round())
    if wrong.any():
        raise DataError(
            f"{where}: label {_first(wrong)}: class is {category[wrong][0]:g}, expected one of 0 to {classes - 1}"
        )


def check_split(pictures: Tensor, labels: Tensor, task: str, where: str) -> None:
    """Both checks, and as many labels as pictures."""
    check_pictures(pictures, where)
    if isinstance(labels, Tensor) and labels.ndim > 0 and len(labels) != len(pictures):
        raise DataError(f"{where}: {len(pictures)} pictures but {len(labels)} labels")
    check_labels(labels, task, where)


def cells_to_picture(grid: Tensor) -> Tensor:
    """Grid labels, or boxes of the same layout, (..., 2, 3, 6), from units of their cell to fractions of the picture.

    Keeps dtype and shape. Entries that hold no digit are converted too and mean as little as before.
    """
    column = torch.arange(COLUMNS, device=grid.device).expand(ROWS, COLUMNS)
    row = torch.arange(ROWS, device=grid.device)[:, None].expand(ROWS, COLUMNS)
    pc, x, y, w, h, c = grid.double().unbind(-1)  # double, so that the only rounding is the last
    converted = ((x + column) / COLUMNS, (y + row) / ROWS, w / COLUMNS, h / ROWS)
    return torch.stack((pc, *converted, c), -1).to(grid.dtype)


def lists_to_grid(lists: Sequence[Tensor] | Sequence[Sequence[Tensor]], where: str = "lists") -> Tensor:
    """Lists of boxes in fractions of the picture -> grid labels, (N, 2, 3, 6), float64.

    A digit goes to the cell that holds its centre; a centre on the border of two cells goes to the right or lower
    one, and on the picture's right or bottom edge to the last one. A picture with an empty list has six empty cells;
    entries with pc 0 are passed over. float64 holds the cell units of float32 boxes without rounding, so that
    `grid_to_lists` gives the very same boxes back.

    Raises DataError that names the picture where two digits share a cell, where a centre lies outside the picture,
    or where an entry is not six finite numbers.
    """
    lengths = torch.tensor([len(boxes) for boxes in lists], dtype=torch.long)
    entries = [box for boxes in lists for box in boxes]
    for number, entry in enumerate(entries):
        if not isinstance(entry, Tensor) or tuple(entry.shape) != (6,):
            picture = int((lengths.cumsum(0) <= number).sum())
            found = tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__
            raise DataError(f"{where}: picture {picture}: expected boxes of six numbers, found {found}")
    boxes = torch.stack(entries).double() if entries else torch.empty(0, 6, dtype=torch.float64)
    picture = torch.repeat_interleave(torch.arange(len(lists)), lengths)
    wrong = (boxes[:, 0] != 0) & (boxes[:, 0] != 1)
    if wrong.any():
        raise DataError(f"{where}: picture {picture[wrong][0]}: pc is {boxes[wrong][0, 0]:g}, expected 0 or 1")
    boxes, picture = boxes[boxes[:, 0] == 1], picture[boxes[:, 0] == 1]
    pc, x, y, w, h, c = boxes.unbind(-1)
    wrong = ~((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1) & torch.isfinite(boxes).all(-1))
    if wrong.any():
        found = [round(value, 4) for value in boxes[wrong][0].tolist()]
        raise DataError(f"{where}: picture {picture[wrong][0]}: box {found} has no centre inside the picture")
    column = (x * COLUMNS).floor().clamp(max=COLUMNS - 1)
    row = (y * ROWS).floor().clamp(max=ROWS - 1)
    place = (picture * ROWS + row.long()) * COLUMNS + column.long()
    crowded = torch.bincount(place, minlength=1) > 1
    if crowded.any():
        first, cell = divmod(int(crowded.nonzero()[0]), ROWS * COLUMNS)
        raise DataError(
            f"{where}: picture {first}: two digits have their centre in the cell of row {cell // COLUMNS}, "
            f"column {cell % COLUMNS}, and a cell can hold one"
        )
    grid = torch.tensor(NO_DIGIT, dtype=torch.float64).repeat(len(lists) * ROWS * COLUMNS, 1)
    grid[place] = torch.stack((pc, x * COLUMNS - column, y * ROWS - row, w * COLUMNS, h * ROWS, c), -1)
    return grid.reshape(len(lists), ROWS, COLUMNS, 6)


def grid_to_lists(grid: Tensor) -> list[Tensor]:
    """Grid labels (N, 2, 3, 6) -> for each picture its digits (k, 6) in fractions of the picture, in the order of
    their cells (row by row), in the grid's dtype."""
    flat = cells_to_picture(grid).reshape(len(grid), ROWS * COLUMNS, 6)
    present = flat[..., 0] == 1
    return list(flat[present].split(present.sum(1).tolist()))


def count_digits(lists: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """How many digits of each picture would have their centres in each cell of a grid: (N, rows, columns).

    lists: for each picture its digits (k, 6) in fractions of the picture.
    """
    lengths = torch.tensor([len(boxes) for boxes in lists])
    boxes = torch.cat(list(lists)).double()
    picture = torch.repeat_interleave(torch.arange(len(lists)), lengths)
    column = (boxes[:, 1] * columns).floor().clamp(max=columns - 1).long()
    row = (boxes[:, 2] * rows).floor().clamp(max=rows - 1).long()
    cells = torch.bincount((picture * rows + row) * columns + column, minlength=len(lists) * rows * columns)
    return cells.reshape(len(lists), rows, columns)
