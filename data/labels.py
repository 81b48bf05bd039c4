"""The label layout `[pc, x, y, w, h, c]`: checks, image <-> cell coordinates, lists <-> grid.

`pc` is 1 where there is a digit and 0 where there is none; then the other five mean nothing and nothing reads them.
`x, y` is the box's centre and `w, h` its size, (0, 0) the top left corner; `c` is the class.

- Localization, (N, 6): everything in fractions of the image, classes 0 to 9.
- Detection, (N, 2, 3, 6): a cell of the 2x3 grid each; `x, y` in [0, 1] inside the cell, `w, h` in cells. Classes 0, 1.
- Lists: for each image a tensor (k, 6), or a list of k tensors (6,), everything in fractions of the image."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

HEIGHT, WIDTH = 48, 60
ROWS, COLUMNS = 2, 3
CLASSES = {"loc": 10, "det": 2}
GRID = {"loc": (), "det": (ROWS, COLUMNS)}
NO_DIGIT = (0.0, -1.0, -1.0, -1.0, -1.0, 1.0)  # what the course's files hold where there is none
ON_BORDER = 1e-4  # of a cell; centres lie on half pixels, fiftieths of a cell


def task_of(labels: Tensor) -> str:
    """The task that labels belong to, by their shape: "loc" for (N, 6), "det" for (N, 2, 3, 6). Raises ValueError."""
    for task, grid in GRID.items():
        if labels.shape[1:] == (*grid, 6):
            return task
    raise ValueError(f"labels: expected shape (N, 6) or (N, {ROWS}, {COLUMNS}, 6), found {tuple(labels.shape)}")


def check_split(images: Tensor, labels: Tensor, task: str) -> None:
    """Raise ValueError unless images are (N, 1, 48, 60), uint8 or in [0, 1], and labels (N, 6) for "loc" or
    (N, 2, 3, 6) for "det", each digit's numbers in their ranges."""
    for tensor, shape in ((images, (1, HEIGHT, WIDTH)), (labels, (*GRID[task], 6))):
        if tensor.shape != (len(images), *shape):
            raise ValueError(f"expected shape {(len(images), *shape)}, found {tuple(tensor.shape)}")
    pc, centre, digit = labels[..., 0], labels[..., 1:3], labels[..., 0] == 1
    boxes = cells_to_image(labels) if task == "det" else labels
    middle, size, class_id = boxes[..., 1:3], boxes[..., 3:5], boxes[..., 5]
    pixel = 1.001 / boxes.new_tensor((WIDTH, HEIGHT))  # and some rounding
    inside = (middle - size / 2 >= -pixel) & (middle + size / 2 <= 1 + pixel)
    known = torch.isin(class_id, torch.arange(CLASSES[task]).to(class_id))
    for wrong, values, expected in (  # NaN is nowhere inside
        (~((images >= 0) & (images <= (255 if images.dtype == torch.uint8 else 1))), images, "pixels in [0, 1]"),
        (~digit & (pc != 0), pc, "pc 0 or 1"),
        (digit & ~((centre - 0.5).abs() <= 0.5 + ON_BORDER).all(-1), centre, "x, y in [0, 1]"),
        (digit & ~(size >= 0).all(-1), size, "w, h not below 0"),  # 0 is a line one pixel wide
        (digit & ~inside.all(-1), boxes[..., 1:5], "a box (x, y, w, h) at most a pixel outside the image"),
        (digit & ~known, class_id, f"a class from 0 to {CLASSES[task] - 1}"),
    ):
        if wrong.any():
            first = tuple(wrong.nonzero()[0])
            found = ", ".join(f"{value:.4g}" for value in values[first].flatten().tolist())
            raise ValueError(f"image {first[0]}: expected {expected}, found {found}")


def cells_to_image(grid: Tensor) -> Tensor:
    """Grid labels, or boxes laid out so, (..., 2, 3, 6), from units of their cell to fractions of the image."""
    column, row = torch.arange(COLUMNS, device=grid.device), torch.arange(ROWS, device=grid.device)[:, None]
    pc, x, y, w, h, c = grid.double().unbind(-1)  # double, so that the only rounding is the last
    return torch.stack((pc, (x + column) / COLUMNS, (y + row) / ROWS, w / COLUMNS, h / ROWS, c), -1).to(grid.dtype)


def image_rows(labels: Tensor) -> Tensor:
    """Labels of either task -> a row per image, (N, 1, 6), or per cell, (N, 6, 6), in fractions of the image."""
    return labels[:, None] if task_of(labels) == "loc" else cells_to_image(labels).flatten(1, 2)


def find_cell(x: Tensor, y: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> tuple[Tensor, Tensor]:
    """Column and row of the cell that a centre, in fractions of the image, belongs to; float, in the tensors' shape. A
    centre on a border belongs to the right or lower cell, on the image's right or bottom edge to the last."""
    column, row = ((value * count + ON_BORDER).floor() for value, count in ((x, columns), (y, rows)))
    return column.clamp(0, columns - 1), row.clamp(0, rows - 1)


def to_cells(boxes: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Boxes (..., 6) from fractions of the image to units of the cells in those columns and rows, (...)."""
    pc, x, y, w, h, c = boxes.unbind(-1)
    return torch.stack((pc, x * COLUMNS - column, y * ROWS - row, w * COLUMNS, h * ROWS, c), -1)


def lists_to_grid(lists: Sequence[Tensor] | Sequence[Sequence[Tensor]]) -> Tensor:
    """Lists of boxes in fractions of the image -> grid labels, (N, 2, 3, 6), float64, so that `grid_to_lists` gives the
    very same boxes back. A digit goes to the cell that `find_cell` says, or, where that is taken and its centre lies on
    the border, to the one on the other side. Raises ValueError where two digits share a cell all the same."""
    image = torch.tensor([number for number, boxes in enumerate(lists) for _ in boxes], dtype=torch.long)
    boxes = torch.cat([torch.empty(0, 6), *(box[None] for boxes in lists for box in boxes)]).double()  # (M, 6)
    image, boxes = image[boxes[:, 0] == 1], boxes[boxes[:, 0] == 1]
    x, y = boxes[:, 1:3].T
    # The cells that each digit may go to, its own first, (M, 4); on no border they are four times the same.
    shifts = itertools.product((0, 2 * ON_BORDER / COLUMNS), (0, 2 * ON_BORDER / ROWS))
    sides = [find_cell(x - dx, y - dy) for dx, dy in shifts]
    cells = torch.stack([row * COLUMNS + column for column, row in sides], 1).long()
    cell = cells[:, 0].clone()
    taken, counts = torch.stack((image, cell), 1).unique(dim=0, return_counts=True)
    for number in taken[counts > 1, 0].unique().tolist():
        mine = image == number
        options = [dict.fromkeys(each) for each in cells[mine].tolist()]
        free = (chosen for chosen in itertools.product(*options) if len(set(chosen)) == len(chosen))
        if (chosen := next(free, None)) is None:
            raise ValueError(f"image {number}: two digits have their centre in one cell, which can hold one")
        cell[mine] = torch.tensor(chosen)
    grid = torch.tensor(NO_DIGIT, dtype=torch.float64).repeat(len(lists), ROWS * COLUMNS, 1)
    grid[image, cell] = to_cells(boxes, cell % COLUMNS, cell // COLUMNS)
    return grid.unflatten(1, (ROWS, COLUMNS))


def grid_to_lists(grid: Tensor) -> list[Tensor]:
    """Grid labels (N, 2, 3, 6) -> for each image its digits (k, 6) in fractions of the image, cell by cell."""
    rows = image_rows(grid)  # (N, 6, 6)
    digit = rows[..., 0] == 1
    return list(rows[digit].split(digit.sum(1).tolist()))


def same_digits(first: Tensor, second: Tensor) -> bool:
    """Whether two sets of grid labels (N, 2, 3, 6) hold the same digits in every image, to float32 rounding: in the
    same cells, or, where a centre lies on a border, in those on either side of it."""
    one, other = (image_rows(grid.double()) for grid in (first, second))  # (N, 6, 6)
    one, other = (torch.where(rows[..., :1] == 1, rows, -1.0) for rows in (one, other))
    near = ((one[:, :, None] - other[:, None]).abs() < 1e-5).all(-1)  # (N, 6, 6), each with each
    as_many = torch.equal((one[..., 0] == 1).sum(1), (other[..., 0] == 1).sum(1))
    return as_many and bool(near.any(2).all() and near.any(1).all())


def count_digits(lists: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """How many of each image's digits (k, 6) have their centres in each cell of a grid: (N, rows, columns) int64."""
    image = torch.repeat_interleave(torch.arange(len(lists)), torch.tensor([*map(len, lists)]))
    column, row = find_cell(*torch.cat([*lists])[:, 1:3].double().T, rows, columns)
    cell = (image * rows + row.long()) * columns + column.long()
    return cell.bincount(minlength=len(lists) * rows * columns).view(len(lists), rows, columns)
