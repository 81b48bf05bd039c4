"""The label layout: every check with its message, and lists <-> grid, exact in both directions."""

import math
from fractions import Fraction

import pytest
import torch
from cases import det_labels
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, augment, labels
from data.labels import NO_DIGIT

WHERE = "the file"
WHOLE = (1, 0.5, 0.5, 1, 1, 0)  # a box that fills the image, or the cell
OUTSIDE = r"box \(left, top, right, bottom\) = .* is more than a pixel outside"
both_tasks = pytest.mark.parametrize("task", ["loc", "det"])


def good_labels(task, **fields):
    """Three labels; the second holds a digit with the given fields changed, in detection in its cell (0, 0)."""
    digit = {"pc": 1.0, "x": 0.5, "y": 0.5, "w": 0.3, "h": 0.3, "c": 1.0} | fields
    if task == "loc":
        return torch.tensor([NO_DIGIT, tuple(digit.values()), WHOLE])
    return det_labels({}, {(0, 0): tuple(digit.values()), (1, 2): WHOLE}, {(1, 1): WHOLE})


def images(count=3, dtype=torch.float32, value=1):
    """Images; the second has the value as its last pixel."""
    made = torch.zeros(count, 1, 48, 60, dtype=dtype)
    made[1, 0, 47, 59] = value
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@both_tasks
def test_good_splits_pass(task, dtype):
    labels.check_split(images(dtype=dtype), good_labels(task), task, WHERE)
    assert labels.task_of(good_labels(task)) == task


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(0, 1, 48, 60), "empty, expected at least one image"),
        (torch.zeros(3, 1, 60, 48), r"expected images of shape \(N, 1, 48, 60\), found \(3, 1, 60, 48\)"),
        (images(dtype=torch.float64), "expected images in float32 or uint8, found torch.float64"),
        (images(value=math.nan), "image 1 has pixels that are NaN or infinite"),
        (images(value=-1e-6), r"expected pixels in \[0, 1\], found -1e-06 to 0"),
        (images(value=1.001), r"expected pixels in \[0, 1\], found 0 to 1.001"),
    ],
)
def test_bad_images_are_refused(bad, message):
    with pytest.raises(DataError, match=f"^the file: {message}"):
        labels.check_images(bad, WHERE)


@pytest.mark.parametrize(
    ("task", "bad", "message"),
    [
        ("loc", torch.zeros(3, 5), r"expected labels of shape \(N, 6\), found \(3, 5\)"),
        ("loc", good_labels("det"), r"expected labels of shape \(N, 6\), found \(3, 2, 3, 6\)"),
        ("det", torch.zeros(2, 3, 6), r"expected labels of shape \(N, 2, 3, 6\), found \(2, 3, 6\)"),
        ("det", good_labels("det").long(), "expected labels in float32, found torch.int64"),
    ],
)
def test_labels_of_another_kind_are_refused(task, bad, message):
    with pytest.raises(DataError, match=f"^the file: {message}"):
        labels.check_labels(bad, task, WHERE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(({"pc": value}, f"pc is {value:g}, expected 0 or 1") for value in (0.5, -1.0, 2.0, math.nan)),
        *(({name: -0.1}, "w, h is .*, expected neither below 0") for name in "wh"),
        *(({name: math.nan}, "holds NaN or infinity") for name in "whc"),
        *(({"c": value}, f"class is {value:g}, expected one of 0 to") for value in (-1.0, 10.0, 0.5)),
        *(({"x": x, "w": w}, OUTSIDE) for x, w in ((0.1, 0.5), (0.9, 6.0))),
        *(({"y": y, "h": h}, OUTSIDE) for y, h in ((0.1, 0.5), (0.9, 4.0))),
    ],
)
@both_tasks
def test_a_digit_with_a_bad_field_is_refused(task, fields, message):
    with pytest.raises(DataError, match=f"^the file: label 1:? {message}"):
        labels.check_labels(good_labels(task, **fields), task, WHERE)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_centre_outside_its_cell_is_refused(axis, value):
    with pytest.raises(DataError, match=r"^the file: label 1: x, y is \(.*\), expected inside the cell"):
        labels.check_labels(good_labels("det", **{axis: value}), "det", WHERE)


def test_limits():
    """Of classes; and a box may stick out by a pixel, and be a line without a width."""
    labels.check_labels(good_labels("loc", c=9.0, x=0.5 + 1 / 60, y=0.5 - 1 / 48, w=1.0, h=1.0), "loc", WHERE)
    labels.check_labels(good_labels("det", w=0.0), "det", WHERE)
    with pytest.raises(DataError, match=OUTSIDE):
        labels.check_labels(good_labels("loc", x=0.5 + 1.1 / 60, w=1.0, h=1.0), "loc", WHERE)
    with pytest.raises(DataError, match="class is 2, expected one of 0 to 1"):
        labels.check_labels(good_labels("det", c=2.0), "det", WHERE)


def test_what_is_not_of_one_task_or_not_of_one_length_is_refused():
    with pytest.raises(ValueError, match='task: expected "loc" or "det", found \'LOC\''):
        labels.check_labels(good_labels("loc"), "LOC", WHERE)
    with pytest.raises(DataError, match=r"^the file: 4 images but 3 labels"):
        labels.check_split(images(4), good_labels("loc"), "loc", WHERE)
    with pytest.raises(ValueError, match=r"labels: expected shape .*, found \(3, 2, 2, 6\)"):
        labels.task_of(torch.zeros(3, 2, 2, 6))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30, 255])
@both_tasks
def test_fields_of_no_digit_may_be_anything(task, value):
    labels.check_labels(good_labels(task, pc=0.0, x=value, y=value, w=value, h=value, c=value), task, WHERE)


def test_cells_to_image_by_hand():
    converted = labels.cells_to_image(det_labels({(1, 2): (1, 0.25, 0.5, 0.75, 0.5, 1)}))
    assert (converted.dtype, converted.shape) == (torch.float32, (1, 2, 3, 6))
    assert converted[0, 1, 2].tolist() == pytest.approx([1, 0.75, 0.75, 0.25, 0.25, 1])


def test_lists_to_grid_by_hand():
    """Entries without a digit are passed over; back in the order of the cells, row by row."""
    nothing = torch.tensor((0, *[math.nan] * 5))
    boxes = [torch.tensor((1, 0.9, 0.75, 0.1, 0.2, 0)), nothing, torch.tensor((1, 0.5, 0.25, 0.2, 0.4, 1))]
    grid = labels.lists_to_grid([[], boxes, torch.empty(0, 6)])
    expected = det_labels({}, {(1, 2): (1, 0.7, 0.5, 0.3, 0.4, 0), (0, 1): (1, 0.5, 0.5, 0.6, 0.8, 1)}, {})
    torch.testing.assert_close(grid, expected.double(), rtol=0, atol=1e-6)
    back = labels.grid_to_lists(grid)
    assert [tuple(each.shape) for each in back] == [(0, 6), (2, 6), (0, 6)]
    assert torch.equal(back[1].float(), torch.stack(boxes[::-2]))
    assert (tuple(labels.lists_to_grid([]).shape), labels.grid_to_lists(labels.lists_to_grid([]))) == ((0, 2, 3, 6), [])


@pytest.mark.parametrize(
    ("x", "y", "row", "column", "inside"),
    [
        (1 / 3, 0.25, 0, 1, (0, 0.5)),
        (0.5, 0.5, 1, 1, (0.5, 0)),
        (2 / 3, 0.5, 1, 2, (0, 0)),
        (1.0, 0.25, 0, 2, (1, 0.5)),
        (0.5, 1.0, 1, 1, (0.5, 1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_centre_on_a_border_belongs_to_the_right_or_lower_cell_if_there_is_one(dtype, x, y, row, column, inside):
    grid = labels.lists_to_grid([[torch.tensor((1, x, y, 0.1, 0.1, 1), dtype=dtype)]])
    assert grid[..., 0].nonzero().tolist() == [[0, row, column]]
    assert grid[0, row, column, 1:3].tolist() == pytest.approx(inside, abs=1e-6)


def test_a_centre_half_a_pixel_before_a_border_belongs_to_the_cell_before_but_rounding_moves_none():
    borders = torch.tensor((1 / 3, 2 / 3, 1.0))
    for before, columns in ((0.5 / 60, [0, 1, 2]), (1e-6, [1, 2, 2])):
        assert labels.find_cell(borders - before, borders)[0].tolist() == columns


def box(x=0.5, y=0.5, w=0.1, pc=1):
    return torch.tensor((pc, x, y, w, 0.1, 1))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([box(0.5, 0.25), box(0.4, 0.3)], "two digits have their centre in one cell"),
        *(([box(x, y)], "has no centre inside") for x, y in ((-0.01, 0.5), (1.01, 0.5), (0.5, -0.01), (0.5, 1.01))),
        ([box(1 / 3, 0.25), box(0.5, 0.25), box(0.1, 0.25)], "two digits have their centre in one cell"),
        ([box(1 / 3, 0.5)] * 40, "two digits have their centre in one cell"),
        ([box(w=math.inf)], "has no centre inside the image"),
        ([box(pc=0.5)], "pc is 0.5, expected 0 or 1"),
        ([box()[:5]], r"expected boxes of six numbers, found \(5,\)"),
        ([tuple(box())], "expected boxes of six numbers, found tuple"),
    ],
)
def test_lists_that_are_no_labels_are_refused(entries, message):
    good = [box(0.1, 0.1), box(0.1, 0.9)]
    with pytest.raises(DataError, match=f"^the file: image 2: .*{message}"):
        labels.lists_to_grid([good, [], entries, good], WHERE)


def cell_of(box):
    """The cell that holds a box's centre, in exact fractions instead of floats."""
    x, y, rounding = Fraction(box[0]), Fraction(box[1]), Fraction(labels.ON_BORDER)
    return min(math.floor(y * 2 + rounding), 1), min(math.floor(x * 3 + rounding), 2)


share, size = st.floats(0, 1, width=32), st.floats(0, 1, width=32, exclude_min=True)
one_box = st.tuples(share, share, size, size, st.integers(0, 1))


@settings(deadline=None, max_examples=60)  # a loaded machine is slow now and then
@given(st.lists(st.lists(one_box, max_size=6, unique_by=cell_of), min_size=1, max_size=4))
def test_lists_to_grid_and_back_is_exact(drawn):
    lists = [torch.tensor([(1, *box) for box in boxes]).reshape(-1, 6) for boxes in drawn]
    grid = labels.lists_to_grid(lists)
    assert grid.dtype == torch.float64
    assert torch.equal(grid, labels.lists_to_grid([list(boxes) for boxes in lists]))  # the other form of lists
    for boxes, cells in zip(drawn, grid, strict=True):
        assert {tuple(cell) for cell in cells[..., 0].nonzero().tolist()} == {cell_of(box) for box in boxes}
        for x, y, w, h, c in boxes:
            row, column = cell_of((x, y))
            exact = (1, Fraction(x) * 3 - column, Fraction(y) * 2 - row, Fraction(w) * 3, Fraction(h) * 2, c)
            assert tuple(map(Fraction, cells[row, column].tolist())) == exact
    assert torch.equal(labels.lists_to_grid(labels.grid_to_lists(grid)), grid)
    for found, boxes in zip(labels.grid_to_lists(grid), drawn, strict=True):
        in_order = [(1, *box) for box in sorted(boxes, key=cell_of)]
        assert torch.equal(found.float(), torch.tensor(in_order).reshape(-1, 6))


def test_same_digits_looks_at_digits_only_and_allows_for_rounding():
    first, second = good_labels("det"), good_labels("det", x=0.5 + 1e-7)
    second[second[..., 0] == 0] = torch.tensor((0, *[math.nan] * 5))
    assert labels.same_digits(first, second)
    for fields in ({"pc": 0.0}, {"x": 0.51}, {"y": 0.51}, {"w": 0.91}, {"h": 0.81}, {"c": 0.0}):
        assert not labels.same_digits(first, good_labels("det", **fields))
        assert not labels.same_digits(good_labels("det", **fields), first)


@pytest.mark.parametrize(
    ("on_border", "other", "cell", "free"),
    [((1 / 3, 0.25), (0.5, 0.25), (0, 1), (0, 0)), ((0.5, 0.5), (0.5, 0.75), (1, 1), (0, 1))],
)
def test_a_centre_on_a_border_makes_room_for_a_digit_that_can_be_nowhere_else(on_border, other, cell, free):
    grid = labels.lists_to_grid([[box(*on_border)], [box(*other), box(*on_border)]])
    assert grid[0, ..., 0].nonzero().tolist() == [[*cell]]
    assert grid[1, ..., 0].nonzero().tolist() == sorted([[*cell], [*free]])
    torch.testing.assert_close(labels.cells_to_image(grid)[1][free], box(*on_border).double())


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_centre_on_a_border_is_the_same_digit_in_whichever_cell(row, column):
    """Augmentation moves it to the cell that conversion chooses."""
    converted = labels.lists_to_grid([[torch.tensor((1, 1 / 3, 0.5, 0.1, 0.1, 1))]])
    assert converted[..., 0].nonzero().tolist() == [[0, 1, 1]]
    grid = det_labels({(row, column): (1, 1 - column, 1 - row, 0.3, 0.2, 1)})
    assert labels.same_digits(grid, converted)
    assert not labels.same_digits(grid, converted + torch.tensor((0, 0.05, 0, 0, 0, 0)))
    _, found = augment.move(torch.zeros(1, 1, 48, 60), grid, 0, 0.0, torch.zeros(1, 4))
    torch.testing.assert_close(found[0, 1, 1], converted[0, 1, 1].float(), rtol=0, atol=1e-6)


def test_digits_are_counted_by_cell():
    """Two in one cell, one on the border, which belongs to the right, and an image without any."""
    digits = torch.stack([box(0.1, 0.1), box(0.3, 0.4), box(0.5, 0.9)])
    assert labels.count_digits([digits, torch.empty(0, 6)], 2, 2).tolist() == [[[2, 0], [0, 1]], [[0, 0], [0, 0]]]
