"""The label layout `[pc, x, y, w, h, c]`: checks, image <-> cell coordinates, lists -> grid.

`pc` is 1 where there is a digit and 0 where there is none; then the other five mean nothing and nothing reads them.
`x, y` is the box's centre and `w, h` its size, (0, 0) the top left corner; `c` is the class.

- Localization, (N, 6): everything in fractions of the image, classes 0 to 9.
- Detection, (N, 2, 3, 6): a cell of the 2x3 grid each; `x, y` in [0, 1] inside the cell, `w, h` in cells. Classes 0, 1.
- Lists: for each image a tensor (k, 6), or a list of k tensors (6,), everything in fractions of the image.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data.files import DataError

HEIGHT, WIDTH = 48, 60
ROWS, COLUMNS = 2, 3
CLASSES = {"loc": 10, "det": 2}
GRID = {"loc": (), "det": (ROWS, COLUMNS)}
NO_DIGIT = (0.0, -1.0, -1.0, -1.0, -1.0, 1.0)  # what the course's files hold where there is none

MOST_OUTSIDE = 0.001  # share of pixels outside [0, 1] that is a slip; more is another scale
ON_BORDER = 1e-4  # of a cell; centres lie on half pixels, fiftieths of a cell


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
    """Index of the first image for which anything is wrong."""
    return int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])


def mend_images(images: Tensor, where: str, notes: list[str]) -> Tensor:
    """Images as `check_images` wants them, where they are nearly so: without a channel, of another type of number,
    a few pixels outside [0, 1]. What was mended is added to the notes."""
    if images.ndim == 3:
        notes.append("images without a channel got one")
        images = images[:, None]
    if images.dtype not in (torch.uint8, torch.float32):
        if images.is_complex():
            raise DataError(f"{where}: expected pixels that are real numbers, found {images.dtype}")
        notes.append(f"images in {images.dtype} converted")
        floats = images.float()
        whole = not images.is_floating_point() and images.dtype != torch.bool
        images = images.byte() if whole and ((floats >= 0) & (floats <= 255)).all() else floats
    if images.dtype == torch.float32 and torch.isfinite(images).all():
        outside = (images < 0) | (images > 1)
        share = outside.float().mean().item()
        if share > MOST_OUTSIDE:
            raise DataError(f"{where}: expected pixels in [0, 1], but {share:.0%} of them are outside")
        if share:
            count = int(outside.flatten(1).any(1).sum())
            notes.append(f"pixels outside [0, 1] in {count:,} image{'s' * (count > 1)}, clipped")
            images = images.clamp(0, 1)
    return images


def mend_labels(labels: Tensor, task: str, where: str, notes: list[str]) -> Tensor:
    """Labels as `check_labels` wants them, where they are nearly so: of another type of number, or with NaN where
    nothing is read. What was mended is added to the notes. Raises DataError for another task's."""
    for other in CLASSES:
        if other != task and tuple(labels.shape[1:]) == (*GRID[other], 6):
            raise DataError(f"{where}: labels of shape {tuple(labels.shape)} belong to the other task")
    if labels.dtype != torch.float32:
        notes.append(f"labels in {labels.dtype} converted")
        labels = labels.float()
    empty = labels[..., :1] == 0
    if (empty & labels.isnan()).any():
        notes.append("NaN in labels without a digit replaced")
        labels = torch.where(empty, labels.new_tensor(NO_DIGIT), labels)
    return labels


def check_images(images: Tensor, where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless images are (N, 1, 48, 60), N > 0,
    either uint8 or float32 in [0, 1]."""
    if len(images.shape) > 0 and len(images) == 0:
        raise DataError(f"{where}: empty, expected at least one image")
    if tuple(images.shape[1:]) != (1, HEIGHT, WIDTH):
        raise DataError(f"{where}: expected images of shape (N, 1, {HEIGHT}, {WIDTH}), found {tuple(images.shape)}")
    if images.dtype not in (torch.uint8, torch.float32):
        raise DataError(f"{where}: expected images in float32 or uint8, found {images.dtype}")
    if images.dtype == torch.float32:
        low, high = torch.aminmax(images)  # NaN if any pixel is NaN
        if not (torch.isfinite(low) and torch.isfinite(high)):
            wrong = ~torch.isfinite(images)
            raise DataError(f"{where}: image {_first(wrong)} has pixels that are NaN or infinite")
        if low < 0 or high > 1:
            raise DataError(f"{where}: expected pixels in [0, 1], found {low:.4g} to {high:.4g}")


def check_labels(labels: Tensor, task: str, where: str) -> None:
    """Raise DataError, its message beginning with `where`, unless labels are (N, 6) for "loc" or (N, 2, 3, 6) for
    "det", float32, and every digit's box lies inside the image and has a class of the task."""
    check_task(task)
    shape = (6,) if task == "loc" else (ROWS, COLUMNS, 6)
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
        inside = (x >= -ON_BORDER) & (x <= 1 + ON_BORDER) & (y >= -ON_BORDER) & (y <= 1 + ON_BORDER)
        wrong = (pc == 1) & ~inside
        if wrong.any():
            raise DataError(
                f"{where}: label {_first(wrong)}: x, y is ({x[wrong][0]:g}, {y[wrong][0]:g}), expected inside the "
                "cell, each in [0, 1]"
            )
        labels = cells_to_image(labels)
    digits = torch.where(pc[..., None] == 1, labels, labels.new_tensor((0, 0.5, 0.5, 1, 1, 0)))
    _check_digits(digits, CLASSES[task], where)


def _check_digits(digits: Tensor, classes: int, where: str) -> None:
    """The checks of one digit each, on labels (N, ..., 6) in fractions of the image."""
    wrong = ~torch.isfinite(digits)
    if wrong.any():
        raise DataError(f"{where}: label {_first(wrong)} holds NaN or infinity")
    centre, size, class_id = digits[..., 1:3], digits[..., 3:5], digits[..., 5]
    wrong = (size < 0).any(-1)  # 0 is the size of a line one pixel wide
    if wrong.any():
        w, h = size[wrong][0].tolist()
        raise DataError(f"{where}: label {_first(wrong)}: w, h is ({w:g}, {h:g}), expected neither below 0")
    corners = torch.cat((centre - size / 2, centre + size / 2), -1)
    pixel = 1.001 / digits.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))  # and some rounding
    wrong = ((corners < -pixel) | (corners > 1 + pixel)).any(-1)
    if wrong.any():
        found = ", ".join(f"{value:.3f}" for value in corners[wrong][0].tolist())
        raise DataError(
            f"{where}: label {_first(wrong)}: box (left, top, right, bottom) = ({found}) is more than a pixel outside "
            "[0, 1]"
        )
    wrong = (class_id < 0) | (class_id >= classes) | (class_id != class_id.round())
    if wrong.any():
        raise DataError(
            f"{where}: label {_first(wrong)}: class is {class_id[wrong][0]:g}, expected one of 0 to {classes - 1}"
        )


def check_split(images: Tensor, labels: Tensor, task: str, where: str) -> None:
    """Both checks, and as many labels as images."""
    check_images(images, where)
    if labels.ndim > 0 and len(labels) != len(images):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels")
    check_labels(labels, task, where)


def cells_to_image(grid: Tensor) -> Tensor:
    """Grid labels, or boxes of the same layout, (..., 2, 3, 6), from units of their cell to fractions of the image.

    Keeps dtype and shape. Entries that hold no digit are converted too and mean as little as before.
    """
    column = torch.arange(COLUMNS, device=grid.device).expand(ROWS, COLUMNS)
    row = torch.arange(ROWS, device=grid.device)[:, None].expand(ROWS, COLUMNS)
    pc, x, y, w, h, c = grid.double().unbind(-1)  # double, so that the only rounding is the last
    converted = ((x + column) / COLUMNS, (y + row) / ROWS, w / COLUMNS, h / ROWS)
    return torch.stack((pc, *converted, c), -1).to(grid.dtype)


def find_cell(x: Tensor, y: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> tuple[Tensor, Tensor]:
    """Column and row of the cell that a centre, in fractions of the image, belongs to; float, in the tensors' shape.

    A centre on the border of two cells belongs to the right or lower one, and on the image's right or bottom edge to
    the last.
    """
    column, row = ((value * count + ON_BORDER).floor() for value, count in ((x, columns), (y, rows)))
    return column.clamp(0, columns - 1), row.clamp(0, rows - 1)


def to_cells(boxes: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Boxes (..., 6) from fractions of the image to units of the cells in those columns and rows, (...)."""
    pc, x, y, w, h, c = boxes.unbind(-1)
    return torch.stack((pc, x * COLUMNS - column, y * ROWS - row, w * COLUMNS, h * ROWS, c), -1)


def assign_cells(boxes: Tensor, image: Tensor, where: str = "lists") -> tuple[Tensor, Tensor]:
    """Columns and rows (M,) of digits (M, 6), in fractions of the image, that lie in the images (M,).

    As `find_cell` says, unless that cell is taken and the one on the border's other side is free. Raises DataError
    that names the image where two digits share a cell all the same.
    """
    column, row = find_cell(boxes[:, 1], boxes[:, 2])
    place = (image * ROWS + row.long()) * COLUMNS + column.long()
    crowded = torch.bincount(place, minlength=1) > 1
    for number in (crowded.nonzero()[:, 0] // (ROWS * COLUMNS)).unique().tolist():
        mine = (image == number).nonzero()[:, 0]
        options = [
            list(itertools.product(_sides(x * COLUMNS, COLUMNS), _sides(y * ROWS, ROWS)))
            for x, y in boxes[mine, 1:3].tolist()
        ]
        free = (cells for cells in itertools.product(*options) if len(set(cells)) == len(cells))
        cells = next(free, None) if len(mine) <= ROWS * COLUMNS else None
        if cells is None:
            raise DataError(f"{where}: image {number}: two digits have their centre in one cell, which can hold one")
        column[mine], row[mine] = torch.tensor(cells, dtype=column.dtype).T
    return column, row


def _sides(value: float, count: int) -> list[int]:
    """The columns (rows) that a centre may belong to, in units of a cell: two on a border, the right (lower) first."""
    after, before = math.floor(value + ON_BORDER), math.ceil(value - ON_BORDER) - 1
    return list(dict.fromkeys(min(max(side, 0), count - 1) for side in (after, before)))


def lists_to_grid(lists: Sequence[Tensor] | Sequence[Sequence[Tensor]], where: str = "lists") -> Tensor:
    """Lists of boxes in fractions of the image -> grid labels, (N, 2, 3, 6), float64.

    A digit goes to the cell that holds its centre, see `assign_cells`. An image with an empty list has six empty
    cells; entries with pc 0 are passed over. float64 holds the cell units of float32 boxes without rounding, so that
    `grid_to_lists` gives the very same boxes back.

    Raises DataError that names the image where two digits share a cell, where a centre lies outside the image,
    or where an entry is not six finite numbers.
    """
    lengths = torch.tensor([len(boxes) for boxes in lists], dtype=torch.long)
    entries = [box for boxes in lists for box in boxes]
    for number, entry in enumerate(entries):
        if not isinstance(entry, Tensor) or tuple(entry.shape) != (6,):
            image = int((lengths.cumsum(0) <= number).sum())
            found = tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__
            raise DataError(f"{where}: image {image}: expected boxes of six numbers, found {found}")
    boxes = torch.stack(entries).double() if entries else torch.empty(0, 6, dtype=torch.float64)
    image = torch.repeat_interleave(torch.arange(len(lists)), lengths)
    wrong = (boxes[:, 0] != 0) & (boxes[:, 0] != 1)
    if wrong.any():
        raise DataError(f"{where}: image {image[wrong][0]}: pc is {boxes[wrong][0, 0]:g}, expected 0 or 1")
    boxes, image = boxes[boxes[:, 0] == 1], image[boxes[:, 0] == 1]
    x, y = boxes[:, 1], boxes[:, 2]
    wrong = ~((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1) & torch.isfinite(boxes).all(-1))
    if wrong.any():
        found = [round(value, 4) for value in boxes[wrong][0].tolist()]
        raise DataError(f"{where}: image {image[wrong][0]}: box {found} has no centre inside the image")
    column, row = assign_cells(boxes, image, where)
    grid = torch.tensor(NO_DIGIT, dtype=torch.float64).repeat(len(lists), ROWS, COLUMNS, 1)
    grid[image, row.long(), column.long()] = to_cells(boxes, column, row)
    return grid


def grid_to_lists(grid: Tensor) -> list[Tensor]:
    """Grid labels (N, 2, 3, 6) -> for each image its digits (k, 6) in fractions of the image, in the order of
    their cells (row by row), in the grid's dtype."""
    flat = cells_to_image(grid).reshape(len(grid), ROWS * COLUMNS, 6)
    present = flat[..., 0] == 1
    return list(flat[present].split(present.sum(1).tolist()))


def same_digits(first: Tensor, second: Tensor) -> bool:
    """Whether two sets of grid labels (N, 2, 3, 6) hold the same digits in every image, to float32 rounding: in the
    same cells, or, where a centre lies on a border, in those on either side of it."""
    if first.shape != second.shape:
        return False
    sets = []
    for grid in (first, second):
        rows = cells_to_image(grid.double()).flatten(1, 2)  # (N, 6, 6)
        sets.append(torch.where(rows[..., :1] == 1, rows, -1.0))
    near = ((sets[0][:, :, None] - sets[1][:, None]).abs() < 1e-5).all(-1)  # (N, 6, 6), each with each
    counts = [(each[..., 0] == 1).sum(1) for each in sets]
    return bool(torch.equal(*counts) and near.any(2).all() and near.any(1).all())


def count_digits(lists: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """How many digits of each image would have their centres in each cell of a grid: (N, rows, columns).

    lists: for each image its digits (k, 6) in fractions of the image. Borders as in `find_cell`.
    """
    lengths = torch.tensor([len(boxes) for boxes in lists])
    boxes = torch.cat(list(lists)).double()
    image = torch.repeat_interleave(torch.arange(len(lists)), lengths)
    column, row = find_cell(boxes[:, 1], boxes[:, 2], rows, columns)
    place = (image * rows + row.long()) * columns + column.long()
    cells = torch.bincount(place, minlength=len(lists) * rows * columns)
    return cells.reshape(len(lists), rows, columns)
