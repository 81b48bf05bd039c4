"""The label layout: every check with its message, and lists <-> grid, exact in both directions."""

import math
from fractions import Fraction

import pytest
import torch
from cases import det_labels
from hypothesis import given, settings
from hypothesis import strategies as st

from data import augment, labels

WHOLE = (1, 0.5, 0.5, 1, 1, 0)  # a box that fills the image, or the cell
X = torch.zeros(3, 1, 48, 60)


def good_labels(task, **fields):
    """Three labels; the second holds a digit with the given fields changed, in detection in its cell (0, 0)."""
    digit = {"pc": 1.0, "x": 0.5, "y": 0.5, "w": 0.3, "h": 0.3, "c": 1.0} | fields
    if task == "loc":
        return torch.tensor([labels.NO_DIGIT, tuple(digit.values()), WHOLE])
    return det_labels({}, {(0, 0): tuple(digit.values()), (1, 2): WHOLE}, {(1, 1): WHOLE})


def test_good_splits_pass():
    """Whatever the fields of no digit hold; a box may stick out by a pixel, and be a line without a width."""
    for task, value in (("loc", math.nan), ("det", math.inf), ("det", -1e30)):
        targets = good_labels(task, pc=0.0, x=value, y=value, w=value, h=value, c=value)
        labels.check_split(X.byte() + 255, targets, task)
        assert labels.task_of(targets) == task
    labels.check_split(X + 1, good_labels("loc", c=9.0, x=0.5 + 1 / 60, y=0.5 - 1 / 48, w=1.0, h=1.0), "loc")
    labels.check_split(X, good_labels("det", w=0.0, x=0.0, y=1.0), "det")


BOX = r"a box \(x, y, w, h\) at most a pixel outside the image, found"
BAD = [
    ("loc", X.mT, good_labels("loc"), r"expected shape \(3, 1, 48, 60\), found \(3, 1, 60, 48\)"),
    ("loc", X[:2], good_labels("loc"), r"expected shape \(2, 6\), found \(3, 6\)"),
    ("det", X, good_labels("det", c=2.0), "image 1: expected a class from 0 to 1, found 2"),
    ("loc", X, good_labels("loc", x=0.5 + 1.1 / 60, w=1.0), f"image 1: expected {BOX}"),
]
for _value in (math.nan, math.inf, -1e-6, 1.001):
    BAD.append(("loc", X + _value, good_labels("loc"), rf"image 0: expected pixels in \[0, 1\], found {_value:.4g}"))
FIELDS = {
    r"x, y in \[0, 1\], found": [{axis: value} for axis in "xy" for value in (-0.01, 1.01, math.nan, math.inf)],
    "pc 0 or 1, found": [{"pc": value} for value in (0.5, -1.0, 2.0, math.nan)],
    "w, h not below 0, found": [{name: value} for name in "wh" for value in (-0.1, math.nan)],
    "a class from 0 to [19], found": [{"c": value} for value in (-1.0, 10.0, 0.5, math.nan)],
    BOX: [{"x": 0.1, "w": 0.5}, {"x": 0.9, "w": 6.0}, {"y": 0.1, "h": 0.5}, {"y": 0.9, "h": 4.0}],
}
for _message, _cases in FIELDS.items():
    for _task in ("loc", "det"):
        BAD += [(_task, X, good_labels(_task, **fields), f"image 1: expected {_message}") for fields in _cases]


@pytest.mark.parametrize(("task", "images", "targets", "message"), BAD)
def test_bad_images_and_labels_are_refused(task, images, targets, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        labels.check_split(images, targets, task)


def box(x=0.5, y=0.5, w=0.1, pc=1):
    return torch.tensor((pc, x, y, w, 0.1, 1), dtype=torch.float64)


# A centre, its cell, where it is in that; a digit that can be in that cell alone, and the first one's cell beside it.
@pytest.mark.parametrize(("center", "cell", "inside", "other", "free"), [
    ((1 / 3, 0.25), (0, 1), (0, 0.5), (0.5, 0.25), (0, 0)),
    ((0.5, 0.5), (1, 1), (0.5, 0), (0.5, 0.75), (0, 1)),
    ((2 / 3, 0.5), (1, 2), (0, 0), (0.9, 0.9), (0, 2)),
    ((1.0, 0.25), (0, 2), (1, 0.5), None, None),
    ((0.5, 1.0), (1, 1), (0.5, 1), None, None),
    ((1 / 3 - 0.5 / 60, 0.25), (0, 0), (0.975, 0.5), None, None),
])  # fmt: skip
def test_a_centre_on_a_border_is_in_the_right_or_lower_cell_unless_that_is_taken(center, cell, inside, other, free):
    for digit in (box(*center), box(*center).float(), box(*(each - 1e-6 for each in center))):
        grid = labels.lists_to_grid([[digit, box(math.nan, pc=0)]])
        assert grid[..., 0].nonzero().tolist() == [[0, *cell]]
        assert grid[0][cell][1:3].tolist() == pytest.approx(inside, abs=1e-5)
    if other:
        grid = labels.lists_to_grid([[box(*other), box(*center)]])
        assert grid[0, ..., 0].nonzero().tolist() == sorted([[*cell], [*free]])
        torch.testing.assert_close(labels.cells_to_image(grid)[0][free], box(*center))


@pytest.mark.parametrize("others", [[box(0.4, 0.3)], [box(1 / 3, 0.25), box(0.1, 0.25)]])
def test_two_digits_in_a_cell_and_labels_of_no_task_are_refused(others):
    with pytest.raises(ValueError, match=r"^image 2: two digits have their centre in one cell"):
        labels.lists_to_grid([[box(0.1, 0.1), box(0.1, 0.9)], [], [box(0.5, 0.25), *others]])
    with pytest.raises(ValueError, match=r"labels: expected shape .*, found \(3, 2, 2, 6\)"):
        labels.task_of(torch.zeros(3, 2, 2, 6))


def cell_of(box):
    """The cell that holds a box's centre, in exact fractions instead of floats."""
    x, y, rounding = Fraction(box[0]), Fraction(box[1]), Fraction(labels.ON_BORDER)
    return min(math.floor(y * 2 + rounding), 1), min(math.floor(x * 3 + rounding), 2)


share, size = st.floats(0, 1, width=32), st.floats(0, 1, width=32, exclude_min=True)
one_box = st.tuples(share, share, size, size, st.integers(0, 1))


@settings(deadline=None, max_examples=60)  # a loaded machine is slow now and then
@given(st.lists(st.lists(one_box, max_size=6, unique_by=cell_of), max_size=4))
def test_lists_to_grid_and_back_is_exact(drawn):
    lists = [torch.tensor([(1, *box) for box in boxes]).reshape(-1, 6) for boxes in drawn]
    grid = labels.lists_to_grid(lists)
    assert (grid.dtype, grid.shape) == (torch.float64, (len(lists), 2, 3, 6))
    assert torch.equal(grid, labels.lists_to_grid([list(boxes) for boxes in lists]))  # the other form of lists
    assert torch.equal(grid, labels.lists_to_grid(labels.grid_to_lists(grid)))
    for boxes, cells, back in zip(drawn, grid, labels.grid_to_lists(grid)):
        assert {tuple(cell) for cell in cells[..., 0].nonzero().tolist()} == {cell_of(box) for box in boxes}
        for x, y, w, h, c in boxes:
            row, column = cell_of((x, y))
            exact = (1, Fraction(x) * 3 - column, Fraction(y) * 2 - row, Fraction(w) * 3, Fraction(h) * 2, c)
            assert tuple(map(Fraction, cells[row, column].tolist())) == exact
        in_order = [(1, *box) for box in sorted(boxes, key=cell_of)]
        assert torch.equal(back.float(), torch.tensor(in_order).reshape(-1, 6))


def test_same_digits_looks_at_digits_only_and_allows_for_rounding():
    first, second = good_labels("det"), good_labels("det", x=0.5 + 1e-7)
    second[second[..., 0] == 0] = torch.tensor((0, *[math.nan] * 5))
    assert labels.same_digits(first, second)
    for fields in ({"pc": 0.0}, {"x": 0.51}, {"y": 0.51}, {"w": 0.91}, {"h": 0.81}, {"c": 0.0}):
        assert not labels.same_digits(first, good_labels("det", **fields))
        assert not labels.same_digits(good_labels("det", **fields), first)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_centre_on_a_border_is_the_same_digit_in_whichever_cell(row, column):
    """Augmentation moves it to the cell that conversion chooses."""
    converted = labels.lists_to_grid([[box(1 / 3)]])
    grid = det_labels({(row, column): (1, 1 - column, 1 - row, 0.3, 0.2, 1)})
    assert labels.same_digits(grid, converted)
    assert not labels.same_digits(grid, converted + torch.tensor((0, 0.05, 0, 0, 0, 0)))
    _, moved = augment.move(torch.zeros(1, 1, 48, 60), grid, 0, 0.0, torch.zeros(1, 4))
    torch.testing.assert_close(moved[0, 1, 1], converted[0, 1, 1].float(), rtol=0, atol=1e-6)


def test_digits_are_counted_by_cell():
    """Two in one cell, one on the border, which belongs to the right, and an image without any."""
    digits = torch.stack([box(0.1, 0.1), box(0.3, 0.4), box(0.5, 0.9)])
    assert labels.count_digits([digits, torch.empty(0, 6)], 2, 2).tolist() == [[[2, 0], [0, 1]], [[0, 0], [0, 0]]]
