"""The label layout: every check with its message, and lists <-> grid, exact in both directions."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import DataError
from data.labels import (
    NO_DIGIT,
    cells_to_picture,
    check_labels,
    check_pictures,
    check_split,
    check_task,
    count_digits,
    grid_to_lists,
    lists_to_grid,
)

WHERE = "the file"
# A loaded machine is slow now and then, which says nothing about the code.
unhurried = settings(deadline=None, max_examples=60)


def pictures(count=3, dtype=torch.float32):
    return torch.zeros(count, 1, 48, 60, dtype=dtype)


def loc_labels(*rows):
    return torch.tensor(rows or [(1, 0.5, 0.5, 0.3, 0.4, 7), NO_DIGIT, (1, 0.2, 0.8, 0.2, 0.3, 0)])


def det_labels(**cell):
    """Two pictures; the first has a digit in its cell (0, 0), with the given fields changed, and one in (1, 2)."""
    labels = torch.tensor(NO_DIGIT).repeat(2, 2, 3, 1)
    fields = {"pc": 1.0, "x": 0.5, "y": 0.5, "w": 0.9, "h": 0.8, "c": 1.0} | cell
    labels[0, 0, 0] = torch.tensor(list(fields.values()))
    labels[0, 1, 2] = torch.tensor((1, 0.5, 0.5, 0.9, 0.8, 0))
    labels[1, 1, 1] = torch.tensor((1, 0.1, 0.9, 1.5, 0.2, 0))
    return labels


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["loc", "det"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_good_split_passes(task, dtype):
    labels = loc_labels() if task == "loc" else det_labels()
    check_split(pictures(len(labels), dtype), labels, task, WHERE)


@pytest.mark.parametrize("task", ["", "LOC", "localization", None])
def test_unknown_task_is_refused(task):
    with pytest.raises(ValueError, match='task: expected "loc" or "det"'):
        check_task(task)
    with pytest.raises(ValueError, match='task: expected "loc" or "det"'):
        check_labels(loc_labels(), task, WHERE)


@pytest.mark.parametrize(
    "shape", [(3, 48, 60), (3, 1, 60, 48), (3, 3, 48, 60), (1, 48, 60), (48, 60), (), (3, 1, 2, 3, 4)]
)
def test_pictures_of_wrong_shape(shape):
    with pytest.raises(DataError, match=r"^the file: expected pictures of shape \(N, 1, 48, 60\), found"):
        check_pictures(torch.zeros(shape), WHERE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
def test_pictures_of_wrong_dtype(dtype):
    with pytest.raises(DataError, match=f"^the file: expected pictures in float32 or uint8, found {dtype}"):
        check_pictures(pictures(dtype=dtype), WHERE)


def test_pictures_that_are_no_tensor():
    with pytest.raises(DataError, match=r"^the file: expected pictures as a tensor, found ndarray"):
        check_pictures(pictures().numpy(), WHERE)


@pytest.mark.parametrize("shape", [(0, 1, 48, 60), (0,)])
def test_empty_split(shape):
    with pytest.raises(DataError, match=r"^the file: empty, expected at least one picture"):
        check_split(torch.zeros(shape), torch.zeros(0, 6), "loc", WHERE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pixels_that_are_not_finite(value):
    bad = pictures()
    bad[1, 0, 47, 59] = value
    with pytest.raises(DataError, match=r"^the file: picture 1 has pixels that are NaN or infinite"):
        check_pictures(bad, WHERE)


@pytest.mark.parametrize("value", [-1e-6, 1.0001, 255])
def test_pixels_outside_0_to_1(value):
    bad = pictures()
    bad[2, 0, 0, 0] = value
    with pytest.raises(DataError, match=r"^the file: picture 2 has pixels outside \[0, 1\]"):
        check_pictures(bad, WHERE)


def test_pixels_of_exactly_0_and_1_pass():
    good = pictures()
    good[1] = 1
    check_pictures(good, WHERE)


@pytest.mark.parametrize(
    ("task", "shape", "wanted"),
    [
        ("loc", (3, 5), r"\(N, 6\)"),
        ("loc", (3, 2, 3, 6), r"\(N, 6\)"),
        ("loc", (6,), r"\(N, 6\)"),
        ("loc", (), r"\(N, 6\)"),
        ("det", (3, 6), r"\(N, 2, 3, 6\)"),
        ("det", (3, 3, 2, 6), r"\(N, 2, 3, 6\)"),
        ("det", (2, 3, 6), r"\(N, 2, 3, 6\)"),
        ("det", (3, 2, 3, 5), r"\(N, 2, 3, 6\)"),
    ],
)
def test_labels_of_wrong_shape(task, shape, wanted):
    with pytest.raises(DataError, match=rf"^the file: expected labels of shape {wanted}, found"):
        check_labels(torch.zeros(shape), task, WHERE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
@pytest.mark.parametrize(("task", "labels"), [("loc", loc_labels()), ("det", det_labels())])
def test_labels_of_wrong_dtype(task, labels, dtype):
    with pytest.raises(DataError, match=f"^the file: expected labels in float32, found {dtype}"):
        check_labels(labels.to(dtype), task, WHERE)


def test_labels_that_are_no_tensor():
    with pytest.raises(DataError, match=r"^the file: expected labels as a tensor, found list"):
        check_split(pictures(), loc_labels().tolist(), "loc", WHERE)


@pytest.mark.parametrize(("task", "labels"), [("loc", loc_labels()), ("det", det_labels())])
@pytest.mark.parametrize("more", [-1, 1])
def test_as_many_labels_as_pictures(task, labels, more):
    with pytest.raises(DataError, match=f"^the file: {len(labels) + more} pictures but {len(labels)} labels"):
        check_split(pictures(len(labels) + more), labels, task, WHERE)


# In each, the number of the label that the message must name is 0 for "det" and 1 for "loc".
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pc": 0.5}, "pc is 0.5, expected 0 or 1"),
        ({"pc": -1.0}, "pc is -1, expected 0 or 1"),
        ({"pc": 2.0}, "pc is 2, expected 0 or 1"),
        ({"pc": math.nan}, "pc is nan, expected 0 or 1"),
        ({"w": 0.0}, "w, h is .*, expected both above 0"),
        ({"h": 0.0}, "w, h is .*, expected both above 0"),
        ({"w": -0.1}, "w, h is .*, expected both above 0"),
        ({"h": -0.1}, "w, h is .*, expected both above 0"),
        ({"w": math.nan}, "holds NaN or infinity"),
        ({"h": math.inf}, "holds NaN or infinity"),
        ({"c": math.nan}, "holds NaN or infinity"),
        ({"c": -1.0}, "class is -1, expected one of 0 to"),
        ({"c": 10.0}, "class is 10, expected one of 0 to"),
        ({"c": 0.5}, "class is 0.5, expected one of 0 to"),
        ({"x": 0.1, "w": 0.5}, r"box \(left, top, right, bottom\) = .* is not in \[0, 1\]"),
        ({"y": 0.1, "h": 0.5}, r"box \(left, top, right, bottom\) = .* is not in \[0, 1\]"),
        ({"x": 0.9, "w": 6.0}, r"box \(left, top, right, bottom\) = .* is not in \[0, 1\]"),
        ({"y": 0.9, "h": 4.0}, r"box \(left, top, right, bottom\) = .* is not in \[0, 1\]"),
    ],
)
@pytest.mark.parametrize("task", ["loc", "det"])
def test_a_digit_with_a_bad_field(task, fields, message):
    if task == "det":
        labels, number = det_labels(**fields), 0
    else:
        digit = {"pc": 1.0, "x": 0.5, "y": 0.5, "w": 0.3, "h": 0.3, "c": 3.0} | fields
        labels, number = loc_labels(NO_DIGIT, tuple(digit.values()), (1, 0.5, 0.5, 0.3, 0.3, 3)), 1
    with pytest.raises(DataError, match=f"^the file: label {number}:? {message}"):
        check_labels(labels, task, WHERE)


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_a_centre_outside_its_cell(axis, value):
    with pytest.raises(DataError, match=r"^the file: label 0: x, y is \(.*\), expected inside the cell"):
        check_labels(det_labels(**{axis: value}), "det", WHERE)


@pytest.mark.parametrize(
    "row",
    [(1, -0.2, 0.5, 0.1, 0.1, 3), (1, 0.5, 1.2, 0.1, 0.1, 3), (1, 0.1, 0.5, 0.3, 0.1, 3), (1, 0.5, 0.9, 0.1, 0.3, 3)],
)
def test_a_box_outside_the_picture(row):
    with pytest.raises(DataError, match=r"^the file: label 1: box .* is not in \[0, 1\]"):
        check_labels(loc_labels((1, 0.5, 0.5, 0.3, 0.3, 3), row), "loc", WHERE)


def test_a_box_that_fills_the_picture_passes():
    check_labels(loc_labels((1, 0.5, 0.5, 1, 1, 3)), "loc", WHERE)


def test_classes_of_the_task():
    check_labels(loc_labels((1, 0.5, 0.5, 0.3, 0.3, 9)), "loc", WHERE)
    with pytest.raises(DataError, match="class is 10, expected one of 0 to 9"):
        check_labels(loc_labels((1, 0.5, 0.5, 0.3, 0.3, 10)), "loc", WHERE)
    check_labels(det_labels(c=1.0), "det", WHERE)
    with pytest.raises(DataError, match="class is 2, expected one of 0 to 1"):
        check_labels(det_labels(c=2.0), "det", WHERE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30, 255])
def test_fields_of_no_digit_may_be_anything(value):
    check_labels(loc_labels((0, value, value, value, value, value), (1, 0.5, 0.5, 0.3, 0.3, 3)), "loc", WHERE)
    check_labels(det_labels(pc=0.0, x=value, y=value, w=value, h=value, c=value), "det", WHERE)


# --- cells and fractions of the picture -------------------------------------------------------------------------------


def test_cells_to_picture_by_hand():
    grid = torch.tensor(NO_DIGIT).repeat(1, 2, 3, 1)
    grid[0, 1, 2] = torch.tensor((1, 0.25, 0.5, 0.75, 0.5, 1))
    converted = cells_to_picture(grid)
    assert converted.dtype == torch.float32
    assert converted.shape == grid.shape
    torch.testing.assert_close(converted[0, 1, 2], torch.tensor((1, 0.75, 0.75, 0.25, 0.25, 1)))


def test_lists_to_grid_by_hand():
    boxes = [torch.tensor((1, 0.9, 0.75, 0.1, 0.2, 0)), torch.tensor((1, 0.5, 0.25, 0.2, 0.4, 1))]
    grid = lists_to_grid([[], boxes])
    expected = torch.tensor(NO_DIGIT, dtype=torch.float64).repeat(2, 2, 3, 1)
    expected[1, 1, 2] = torch.tensor((1, 0.7, 0.5, 0.3, 0.4, 0), dtype=torch.float64)
    expected[1, 0, 1] = torch.tensor((1, 0.5, 0.5, 0.6, 0.8, 1), dtype=torch.float64)
    torch.testing.assert_close(grid, expected, rtol=0, atol=1e-6)
    assert [len(boxes) for boxes in grid_to_lists(grid)] == [0, 2]
    # Back in the order of the cells, row by row.
    assert torch.equal(grid_to_lists(grid)[1].float(), torch.stack(boxes[::-1]))


def just_below(value, dtype):
    return float(torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(0.0, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("x", "y", "row", "column", "inside"),
    [
        (0.0, 0.0, 0, 0, (0, 0)),
        (1 / 3, 0.25, 0, 1, (0, 0.5)),
        (2 / 3, 0.25, 0, 2, (0, 0.5)),
        (0.5, 0.5, 1, 1, (0.5, 0)),
        (2 / 3, 0.5, 1, 2, (0, 0)),
        (1.0, 0.25, 0, 2, (1, 0.5)),
        (0.5, 1.0, 1, 1, (0.5, 1)),
        (1.0, 1.0, 1, 2, (1, 1)),
    ],
)
def test_centre_on_a_border(dtype, x, y, row, column, inside):
    """It goes to the right or lower cell, and on the picture's right or bottom edge to the last one."""
    grid = lists_to_grid([[torch.tensor((1, x, y, 0.1, 0.1, 1), dtype=dtype)]])
    assert grid[..., 0].nonzero().tolist() == [[0, row, column]]
    torch.testing.assert_close(grid[0, row, column, 1:3], torch.tensor(inside).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("x", "y", "row", "column"), [(1 / 3, 0.2, 0, 0), (2 / 3, 0.2, 0, 1), (0.5, 0.5, 0, 1), (1.0, 1.0, 1, 2)]
)
def test_centre_just_before_a_border(dtype, x, y, row, column):
    x, y = just_below(x, dtype), just_below(y, dtype)
    grid = lists_to_grid([[torch.tensor((1, x, y, 0.1, 0.1, 1), dtype=dtype)]])
    assert grid[..., 0].nonzero().tolist() == [[0, row, column]]
    assert ((grid[..., 1:3] <= 1) & (grid[..., 1:3] >= 0))[grid[..., 0] == 1].all()


def test_empty_lists_give_six_empty_cells():
    expected = torch.tensor(NO_DIGIT, dtype=torch.float64).repeat(3, 2, 3, 1)
    assert torch.equal(lists_to_grid([[], torch.empty(0, 6), torch.empty(0)]), expected)
    assert [tuple(boxes.shape) for boxes in grid_to_lists(expected)] == [(0, 6)] * 3


def test_no_pictures_give_no_grid_and_no_lists():
    grid = lists_to_grid([])
    assert tuple(grid.shape) == (0, 2, 3, 6)
    assert grid_to_lists(grid) == []


def test_entries_without_digit_are_passed_over():
    digit = torch.tensor((1, 0.5, 0.25, 0.2, 0.4, 1))
    nothing = torch.tensor((0, math.nan, math.nan, math.nan, math.nan, math.nan))
    assert torch.equal(lists_to_grid([[nothing, digit, torch.tensor(NO_DIGIT)]]), lists_to_grid([[digit]]))


@pytest.mark.parametrize(
    "second", [(1, 0.4, 0.3, 0.1, 0.1, 0), (1, 0.5, 0.25, 0.2, 0.4, 1), (1, 1 / 3 + 1e-6, 0.0, 0.1, 0.1, 0)]
)
def test_two_digits_in_a_cell(second):
    good = [torch.tensor((1, 0.1, 0.1, 0.1, 0.1, 0))]
    crowded = [torch.tensor((1, 0.5, 0.25, 0.2, 0.4, 1)), torch.tensor(second)]
    with pytest.raises(DataError, match=r"^the file: picture 2: two digits .* row 0, column 1"):
        lists_to_grid([good, [], crowded, good], WHERE)


def test_more_than_six_digits():
    """Seven digits in six cells: two must share one, and none may be lost silently."""
    seven = torch.tensor([(1, (i % 4 + 0.5) / 4, (i // 4 + 0.5) / 2, 0.1, 0.1, 0) for i in range(7)])
    with pytest.raises(DataError, match=r"^the file: picture 1: two digits"):
        lists_to_grid([seven[:1], seven], WHERE)


def test_six_digits_fill_the_grid():
    six = torch.tensor([(1, (i % 3 + 0.5) / 3, (i // 3 + 0.5) / 2, 0.1, 0.1, i % 2) for i in range(6)])
    grid = lists_to_grid([six])
    assert (grid[..., 0] == 1).all()
    assert torch.equal(grid_to_lists(grid)[0].float(), six)


@pytest.mark.parametrize("field", range(6))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_box_that_is_not_finite(field, value):
    bad = torch.tensor((1, 0.5, 0.25, 0.2, 0.4, 1))
    bad[field] = value
    message = "pc is .*, expected 0 or 1" if field == 0 else "has no centre inside the picture"
    with pytest.raises(DataError, match=f"^the file: picture 1: .*{message}"):
        lists_to_grid([[], [bad]], WHERE)


@pytest.mark.parametrize(("x", "y"), [(-0.01, 0.5), (1.01, 0.5), (0.5, -0.01), (0.5, 1.01)])
def test_a_centre_outside_the_picture(x, y):
    """A negative centre must not end up in cell -1, which is the last one."""
    with pytest.raises(DataError, match=r"^the file: picture 1: .* has no centre inside the picture"):
        lists_to_grid([[], [torch.tensor((1, x, y, 0.2, 0.4, 1))]], WHERE)


@pytest.mark.parametrize("pc", [0.5, 2.0, -1.0])
def test_a_list_entry_whose_pc_is_neither_0_nor_1(pc):
    with pytest.raises(DataError, match=f"^the file: picture 0: pc is {pc:g}, expected 0 or 1"):
        lists_to_grid([[torch.tensor((pc, 0.5, 0.25, 0.2, 0.4, 1))]], WHERE)


@pytest.mark.parametrize(
    "bad",
    [[torch.zeros(5)], [torch.zeros(1, 6)], [torch.tensor(1.0)], [(1, 0.5, 0.5, 0.2, 0.2, 1)], torch.zeros(2, 5), [7]],
)
def test_an_entry_that_is_not_six_numbers(bad):
    good = [torch.tensor((1, 0.5, 0.25, 0.2, 0.4, 1)), torch.tensor((1, 0.1, 0.25, 0.2, 0.4, 1))]
    with pytest.raises(DataError, match=r"^the file: picture 2: expected boxes of six numbers, found"):
        lists_to_grid([good, [], bad, good], WHERE)


def cell_of(box):
    """The cell that holds a box's centre, in exact fractions instead of floats."""
    x, y = Fraction(box[0]), Fraction(box[1])
    return min(math.floor(y * 2), 1), min(math.floor(x * 3), 2)


share = st.floats(0, 1, width=32)
size = st.floats(0, 1, width=32, exclude_min=True)
one_box = st.tuples(share, share, size, size, st.integers(0, 1))
one_picture = st.lists(one_box, max_size=6, unique_by=cell_of)


@unhurried
@given(st.lists(one_picture, min_size=1, max_size=4))
def test_lists_to_grid_and_back_is_exact(drawn):
    lists = [torch.tensor([(1, *box) for box in boxes]).reshape(-1, 6) for boxes in drawn]
    grid = lists_to_grid(lists)
    assert grid.dtype == torch.float64
    for boxes, cells in zip(drawn, grid, strict=True):
        assert {tuple(cell) for cell in cells[..., 0].nonzero().tolist()} == {cell_of(box) for box in boxes}
        for x, y, w, h, c in boxes:
            row, column = cell_of((x, y))
            exact = (1, Fraction(x) * 3 - column, Fraction(y) * 2 - row, Fraction(w) * 3, Fraction(h) * 2, c)
            assert tuple(map(Fraction, cells[row, column].tolist())) == exact
    back = [boxes.float() for boxes in grid_to_lists(grid)]
    for boxes, original in zip(back, drawn, strict=True):
        in_order = sorted(original, key=cell_of)
        assert torch.equal(boxes, torch.tensor([(1, *box) for box in in_order]).reshape(-1, 6))
    assert torch.equal(lists_to_grid(back), grid)


@unhurried
@given(st.lists(one_picture, min_size=1, max_size=4))
def test_both_forms_of_lists_give_the_same(drawn):
    tensors = [torch.tensor([(1, *box) for box in boxes]).reshape(-1, 6) for boxes in drawn]
    assert torch.equal(lists_to_grid(tensors), lists_to_grid([list(boxes) for boxes in tensors]))


# Inside a cell on a grid of 2^-24, as float32 fractions below 1 are; 1 itself belongs to the next cell.
inside_cell = st.integers(0, 2**24 - 1).map(lambda number: number / 2**24)
one_cell = st.none() | st.tuples(inside_cell, inside_cell, st.floats(0, 3, width=32), st.floats(0, 2, width=32), share)


@unhurried
@given(st.lists(st.lists(one_cell, min_size=6, max_size=6), min_size=1, max_size=4))
def test_grid_to_lists_and_back_is_exact(drawn):
    grid = torch.tensor(NO_DIGIT, dtype=torch.float64).repeat(len(drawn), 6, 1)
    for picture, cells in enumerate(drawn):
        for cell, fields in enumerate(cells):
            if fields is not None:
                grid[picture, cell] = torch.tensor((1, *fields), dtype=torch.float64)
    grid = grid.reshape(-1, 2, 3, 6)
    lists = grid_to_lists(grid)
    assert [len(boxes) for boxes in lists] == [sum(cell is not None for cell in cells) for cells in drawn]
    assert torch.equal(lists_to_grid(lists), grid)


# --- the same digits? -------------------------------------------------------------------------------------------------


def test_same_digits_looks_at_digits_only():
    first, second = det_labels(), det_labels()
    second[second[..., 0] == 0] = torch.tensor((0, math.nan, math.nan, math.nan, math.nan, math.nan))
    assert data.same_digits(first, second)


def test_same_digits_allows_for_rounding():
    assert data.same_digits(det_labels(x=0.5), det_labels(x=0.5 + 1e-7))


@pytest.mark.parametrize("fields", [{"pc": 0.0}, {"x": 0.51}, {"y": 0.51}, {"w": 0.91}, {"h": 0.81}, {"c": 0.0}])
def test_other_digits_are_seen(fields):
    assert not data.same_digits(det_labels(), det_labels(**fields))
    assert not data.same_digits(det_labels(**fields), det_labels())


def test_digits_are_counted_by_cell():
    """Two in one cell, one on the border, which belongs to the right, and a picture without any."""
    lists = [torch.tensor([[1, x, y, 0.1, 0.1, 0] for x, y in ((0.1, 0.1), (0.3, 0.4), (0.5, 0.9))]), torch.empty(0, 6)]
    assert count_digits(lists, 2, 2).tolist() == [[[2, 0], [0, 1]], [[0, 0], [0, 0]]]
    assert count_digits(lists, 1, 1).tolist() == [[[3]], [[0]]]


def test_digits_counted_by_cell_are_those_of_the_grid(sets):
    train = sets["det"][0].train
    assert torch.equal(count_digits(train.lists, 2, 3), train.labels[..., 0].long())
