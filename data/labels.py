"""The label layout `[pc, x, y, w, h, c]`: checks, image <-> cell coordinates, lists <-> grid.

`pc` is 1 where there is a digit and 0 where there is none; then the other five mean nothing and nothing reads them.
`x, y` is the box's centre and `w, h` its size, (0, 0) the top left corner; `c` is the class.

- Localization, (N, 6): everything in fractions of the image, classes 0 to 9.
- Detection, (N, 2, 3, 6): a cell of the 2x3 grid each; `x, y` in [0, 1] inside the cell, `w, h` in cells. Classes 0, 1.
- Lists: for each image a tensor (k, 6), or a list of k tensors (6,), everything in fractions of the image.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from data.files import DataError

HEIGHT, WIDTH = 48, 60
ROWS, COLUMNS = 2, 3
CLASSES = {"loc": 10, "det": 2}
GRID = {"loc": (), "det": (ROWS, COLUMNS)}
NO_DIGIT = (0.0, -1.0, -1.0, -1.0, -1.0, 1.0)  # what the course's files hold where there is none
ON_BORDER = 1e-4  # of a cell; centres lie on half pixels, fiftieths of a cell


def check_task(task: str) -> None:
    """Raise ValueError unless task is "loc" or "det"."""
    if task not in CLASSES:
        raise ValueError(f'task: expected "loc" or "det", found {task!r}')


def task_of(labels: Tensor) -> str:
    """The task that labels belong to, by their shape: "loc" for (N, 6), "det" for (N, 2, 3, 6). Raises ValueError."""
    for task, grid in GRID.items():
        if labels.shape[1:] == (*grid, 6):
            return task
    raise ValueError(f"labels: expected shape (N, 6) or (N, {ROWS}, {COLUMNS}, 6), found {tuple(labels.shape)}")


def check_split(images: Tensor, labels: Tensor, task: str, where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless images are (N, 1, 48, 60), uint8 or float32 in
    [0, 1], and labels (N, 6) for "loc" or (N, 2, 3, 6) for "det", float32, and every digit's box is inside the image,
    or a pixel outside, and has a class of the task."""
    check_task(task)
    count = len(images) or "at least one"
    for tensor, shape, dtypes in (
        (images, (count, 1, HEIGHT, WIDTH), (torch.uint8, torch.float32)),
        (labels, (count, *GRID[task], 6), (torch.float32,)),
    ):
        if tensor.shape != shape or tensor.dtype not in dtypes:
            name, found = "labels" if tensor is labels else "images", f"{tuple(tensor.shape)} in {tensor.dtype}"
            raise DataError(f"{where}: expected {name} {shape} in {' or '.join(map(str, dtypes))}, found {found}")
    if images.dtype == torch.float32:
        _refuse(~((images >= 0) & (images <= 1)), images, where, "pixels in [0, 1]")  # where NaN is not, as below
    digit, boxes = labels[..., 0] == 1, labels
    _refuse(~digit & (labels[..., 0] != 0), labels[..., 0], where, "pc 0 or 1")
    if task == "det":
        inside = ((labels[..., 1:3] - 0.5).abs() <= 0.5 + ON_BORDER).all(-1)
        _refuse(digit & ~inside, labels[..., 1:3], where, "x, y inside the cell, each in [0, 1]")
        boxes = cells_to_image(labels)
    centre, size, class_id = boxes[..., 1:3], boxes[..., 3:5], boxes[..., 5]
    _refuse(digit & ~(size >= 0).all(-1), size, where, "w, h not below 0")  # 0 is a line one pixel wide
    pixel = 1.001 / boxes.new_tensor((WIDTH, HEIGHT))  # and some rounding
    inside = ((centre - size / 2 >= -pixel) & (centre + size / 2 <= 1 + pixel)).all(-1)
    _refuse(digit & ~inside, boxes[..., 1:5], where, "a box (x, y, w, h) at most a pixel outside the image")
    known = torch.isin(class_id, torch.arange(CLASSES[task]).to(class_id))
    _refuse(digit & ~known, class_id, where, f"a class from 0 to {CLASSES[task] - 1}")


def _refuse(wrong: Tensor, values: Tensor, where: str, expected: str, image: Tensor | None = None) -> None:
    """Raise DataError for the first image with anything wrong, (N, ...), with its values, (N, ...) or (N, ..., k).
    image: (N,), their numbers if not 0, 1, 2 ..."""
    if wrong.any():
        index = tuple(wrong.nonzero()[0])
        found = ", ".join(f"{value:.4g}" for value in values[index].flatten().tolist())
        number = index[0] if image is None else image[index[0]]
        raise DataError(f"{where}: image {number}: expected {expected}, found {found}")


def cells_to_image(grid: Tensor) -> Tensor:
    """Grid labels, or boxes of the same layout, (..., 2, 3, 6), from units of their cell to fractions of the image, in
    the same dtype. Entries that hold no digit are converted too and mean as little as before."""
    column, row = torch.arange(COLUMNS, device=grid.device), torch.arange(ROWS, device=grid.device)[:, None]
    pc, x, y, w, h, c = grid.double().unbind(-1)  # double, so that the only rounding is the last
    return torch.stack((pc, (x + column) / COLUMNS, (y + row) / ROWS, w / COLUMNS, h / ROWS, c), -1).to(grid.dtype)


def find_cell(x: Tensor, y: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> tuple[Tensor, Tensor]:
    """Column and row of the cell that a centre, in fractions of the image, belongs to; float, in the tensors' shape. A
    centre on a border belongs to the right or lower cell, on the image's right or bottom edge to the last."""
    column, row = ((value * count + ON_BORDER).floor() for value, count in ((x, columns), (y, rows)))
    return column.clamp(0, columns - 1), row.clamp(0, rows - 1)


def to_cells(boxes: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Boxes (..., 6) from fractions of the image to units of the cells in those columns and rows, (...)."""
    pc, x, y, w, h, c = boxes.unbind(-1)
    return torch.stack((pc, x * COLUMNS - column, y * ROWS - row, w * COLUMNS, h * ROWS, c), -1)


def lists_to_grid(lists: Sequence[Tensor] | Sequence[Sequence[Tensor]], where: str = "lists") -> Tensor:
    """Lists of boxes in fractions of the image -> grid labels, (N, 2, 3, 6), float64, which holds the cell units of
    float32 boxes without rounding, so that `grid_to_lists` gives the very same boxes back.

    A digit goes to the cell that `find_cell` says, or, where that is taken and its centre lies on the border, to the
    one on the other side. Entries with pc 0 are passed over. Raises DataError that names the image where two digits
    share a cell all the same, a centre is outside the image, or an entry is not six numbers.
    """
    image = torch.tensor([number for number, boxes in enumerate(lists) for _ in boxes], dtype=torch.long)
    entries = [box for boxes in lists for box in boxes]
    for number, entry in zip(image.tolist(), entries, strict=True):
        if getattr(entry, "shape", None) != (6,):
            raise DataError(f"{where}: image {number}: expected boxes of six numbers, found {entry}")
    boxes = torch.stack(entries).double() if entries else torch.zeros(0, 6, dtype=torch.float64)
    digit = boxes[:, 0] == 1
    _refuse(~digit & (boxes[:, 0] != 0), boxes[:, 0], where, "pc 0 or 1", image)
    boxes, image = boxes[digit], image[digit]
    x, y = boxes[:, 1:3].T
    _refuse(~((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)), boxes, where, "a centre inside the image", image)
    column, row = find_cell(x, y)
    cells, counts = torch.stack((image, row, column), 1).unique(dim=0, return_counts=True)
    for number in cells[counts > 1, 0].unique().int().tolist():
        mine = image == number
        shifts = itertools.product((0, 2 * ON_BORDER / COLUMNS), (0, 2 * ON_BORDER / ROWS))
        sides = torch.stack([torch.stack(find_cell(x[mine] - dx, y[mine] - dy), 1) for dx, dy in shifts], 1)
        options = [dict.fromkeys(map(tuple, each)) for each in sides.tolist()]  # each digit's cells, without repetition
        free = (chosen for chosen in itertools.product(*options) if len(set(chosen)) == len(chosen))
        chosen = next(free, None) if len(options) <= ROWS * COLUMNS else None
        if chosen is None:
            raise DataError(f"{where}: image {number}: two digits have their centre in one cell, which can hold one")
        column[mine], row[mine] = torch.tensor(chosen, dtype=column.dtype).T
    grid = torch.tensor(NO_DIGIT, dtype=torch.float64).repeat(len(lists), ROWS, COLUMNS, 1)
    grid[image, row.long(), column.long()] = to_cells(boxes, column, row)
    return grid


def grid_to_lists(grid: Tensor) -> list[Tensor]:
    """Grid labels (N, 2, 3, 6) -> for each image its digits (k, 6) in fractions of the image, in the order of
    their cells (row by row), in the grid's dtype."""
    rows = cells_to_image(grid).flatten(1, 2)  # (N, 6, 6)
    digit = rows[..., 0] == 1
    return list(rows[digit].split(digit.sum(1).tolist()))


def same_digits(first: Tensor, second: Tensor) -> bool:
    """Whether two sets of grid labels (N, 2, 3, 6) hold the same digits in every image, to float32 rounding: in the
    same cells, or, where a centre lies on a border, in those on either side of it."""
    one, other = (cells_to_image(grid.double()).flatten(1, 2) for grid in (first, second))  # (N, 6, 6)
    one, other = (torch.where(rows[..., :1] == 1, rows, -1.0) for rows in (one, other))
    near = ((one[:, :, None] - other[:, None]).abs() < 1e-5).all(-1)  # (N, 6, 6), each with each
    as_many = torch.equal((one[..., 0] == 1).sum(1), (other[..., 0] == 1).sum(1))
    return as_many and bool(near.any(2).all() and near.any(1).all())


def count_digits(lists: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """How many digits (k, 6) of each image, in its fractions, have their centres in each cell of a grid: (N, rows,
    columns) int64. Borders as in `find_cell`."""
    image = torch.repeat_interleave(torch.arange(len(lists)), torch.tensor([*map(len, lists)]))
    column, row = find_cell(*torch.cat([*lists])[:, 1:3].double().T, rows, columns)
    counts = torch.zeros(len(lists), rows, columns, dtype=torch.long)
    return counts.index_put_((image, row.long(), column.long()), torch.tensor(1), accumulate=True)
