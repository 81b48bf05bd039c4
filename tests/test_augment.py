"""Shifted and zoomed pictures: content and boxes move together, stay inside, and stay what they are."""

import pytest
import torch

import data
import utils
from data import augment, labels

TASKS = ("loc", "det")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {task: data.load(task, "digits", sizes=(300, 1, 1), folder=folder).train for task in TASKS}


def rows(grid, task):
    """Every digit's label in fractions of the picture, (N, digits, 6)."""
    return (labels.cells_to_picture(grid) if task == "det" else grid).reshape(len(grid), -1, 6)


def shifted(part, task, most, seed=0):
    random = torch.rand(len(part.pictures), 2, generator=torch.Generator().manual_seed(seed))
    return augment.shift(part.pictures, part.labels, task, most, random)


def corners(row):
    """Left, top, right, bottom in pixels of a digit's label."""
    x, y, w, h = (row[1:5] * torch.tensor((60.0, 48, 60, 48))).tolist()
    return [round(value) for value in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]


@pytest.mark.parametrize("task", TASKS)
def test_content_moves_with_its_boxes(sets, task):
    part = sets[task]
    pictures, found = shifted(part, task, 8)
    moved = 0
    for number, (before, after) in enumerate(zip(rows(part.labels, task), rows(found, task), strict=True)):
        old = sorted(corners(row) for row in before if row[0] == 1)
        new = sorted(corners(row) for row in after if row[0] == 1)
        assert len(old) == len(new)
        for (left, top, right, bottom), (left2, top2, right2, bottom2) in zip(old, new, strict=True):
            crop = part.pictures[number, 0, top:bottom, left:right]
            assert torch.equal(crop, pictures[number, 0, top2:bottom2, left2:right2])
            moved += (left, top) != (left2, top2)
            assert max(abs(left - left2), abs(top - top2)) <= 8
    assert moved > 250  # nearly all


@pytest.mark.parametrize("task", TASKS)
def test_shifted_labels_pass_all_checks(sets, task):
    pictures, found = shifted(sets[task], task, 24)
    labels.check_split(pictures, found, task, "shifted")
    assert torch.equal(found[..., 0].sum(), sets[task].labels[..., 0].sum())
    assert pictures.dtype == torch.uint8


def test_digits_change_cells_as_lists_to_grid_has_it(sets):
    _, found = shifted(sets["det"], "det", 24)
    crossed = (found[..., 0] != sets["det"].labels[..., 0]).any((1, 2))
    assert crossed.sum() > 100
    again = labels.lists_to_grid(labels.grid_to_lists(found)).float()
    digit = found[..., 0] == 1
    assert torch.equal(again[..., 0], found[..., 0])
    torch.testing.assert_close(again[digit], found[digit], rtol=0, atol=1e-5)


def test_two_digits_that_would_share_a_cell_stay_apart():
    """Centres at 18 and 30 pixels, either side of the border at 20: two pixels to the right they would share a cell."""
    lists = [[torch.tensor([1, x / 60, 0.25, 8 / 60, 0.25, category]) for x, category in ((18, 0), (30, 1))]]
    grid = labels.lists_to_grid(lists).float()
    picture = torch.arange(48 * 60).reshape(1, 1, 48, 60).float() / 2880
    still = 6.5 / 15  # boxes reach from 6 to 18 pixels in y: of the 15 steps from -6 to 8 the one of 0
    # Of the 17 steps from -8 to 8 in x the one of 2 pixels, and of 1 pixel.
    unchanged, found = augment.shift(picture, grid, "det", 8, torch.tensor([[10.5 / 17, still]]))
    assert torch.equal(unchanged, picture)
    assert torch.equal(found, grid)
    moved, found = augment.shift(picture, grid, "det", 8, torch.tensor([[9.5 / 17, still]]))
    assert torch.equal(moved[..., 1:], picture[..., :-1])
    assert found[0, 0, :, 0].tolist() == [1, 1, 0]
    assert found[0, 0, 0, 1].item() == pytest.approx(19 / 20)


def test_what_leaves_on_one_side_comes_in_on_the_other():
    picture = torch.arange(60.0).expand(1, 1, 48, 60) / 60
    empty = torch.tensor([labels.NO_DIGIT])
    moved, found = augment.shift(picture, empty, "loc", 3, torch.tensor([[0.999, 0.5]]))
    assert (moved[0, 0, 0] * 60).round().tolist() == [57, 58, 59, *range(57)]
    assert torch.equal(found, empty)


def test_only_background_comes_in(sets):
    """Boxes filled with white on black: no white is seen outside the boxes afterwards."""
    for task, part in sets.items():
        for change in (shifted, zoomed):
            flat = data.Split(filled(part.labels, task), part.labels)
            pictures, found = change(flat, task, 8 if change is shifted else 0.3)
            assert torch.equal(pictures, filled(found, task))


def filled(grid, task):
    """Pictures that are white in every box and black elsewhere."""
    pictures = torch.zeros(len(grid), 1, 48, 60)
    for picture, each in zip(pictures, rows(grid, task), strict=True):
        for row in each[each[:, 0] > 0]:
            left, top, right, bottom = corners(row)
            picture[0, top:bottom, left:right] = 1
    return pictures


def test_no_shift_changes_nothing(sets):
    for task in TASKS:
        pictures, found = shifted(sets[task], task, 0)
        assert torch.equal(pictures, sets[task].pictures)
        digit = found[..., 0] == 1
        torch.testing.assert_close(found[digit], sets[task].labels[digit], rtol=0, atol=1e-6)


def test_every_step_is_drawn():
    empty = torch.tensor([labels.NO_DIGIT]).repeat(2000, 1)
    pictures = torch.arange(60.0).expand(2000, 1, 48, 60) / 60
    random = torch.rand(2000, 2, generator=torch.Generator().manual_seed(3))
    moved, _ = augment.shift(pictures, empty, "loc", 4, random)
    steps = 30 - (moved[:, 0, 0, 30] * 60).round()  # far from what has come round
    assert steps.unique().tolist() == list(range(-4, 5))
    assert torch.bincount((steps + 4).long()).min() > 150  # 222 on average


def zoomed(part, task, most, seed=0):
    random = torch.rand(len(part.pictures), generator=torch.Generator().manual_seed(seed))
    return augment.zoom(part.pictures, part.labels, task, most, random)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("most", [0.12, 0.5])
def test_zoomed_labels_pass_all_checks(sets, task, most):
    part = sets[task]
    pictures, found = zoomed(part, task, most)
    labels.check_split(pictures, found, task, "zoomed")
    assert utils.on_whole_pixels(found, task)
    assert torch.equal(found[..., 0].sum(), part.labels[..., 0].sum())
    assert pictures.dtype == torch.uint8
    before, after = (rows(grid, task) for grid in (part.labels, found))
    size = [grid[grid[..., 0] > 0][:, 3:5].prod(1).mean() for grid in (before, after)]
    assert size[1] != size[0]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("random", [0.0, 0.999])
def test_boxes_grow_and_shrink_by_the_factor(task, random):
    row = torch.tensor([[1, 30 / 60, 14 / 48, 16 / 60, 18 / 48, 1]])
    grid = row if task == "loc" else labels.lists_to_grid([[row[0]]]).float()
    _, after = augment.zoom(torch.zeros(1, 1, 48, 60), grid, task, 0.2, torch.tensor([random]))
    left, top, right, bottom = corners(next(each for each in rows(after, task)[0] if each[0] > 0))
    factor = 0.8 + 0.4 * random
    assert right - left == pytest.approx(factor * 16, abs=1)
    assert bottom - top == pytest.approx(factor * 18, abs=1)


def test_no_zoom_changes_nothing(sets):
    for task in TASKS:
        pictures, found = zoomed(sets[task], task, 0.0)
        assert torch.equal(pictures, sets[task].pictures)
        torch.testing.assert_close(found, sets[task].labels, rtol=0, atol=1e-6)


def test_two_digits_that_zooming_would_bring_into_a_cell_stay_apart():
    """Centres at 18 and 22 pixels, either side of the border at 20: shrunk to half about 30 they would be 24 and 26."""
    lists = [[torch.tensor([1, x / 60, 0.25, 2 / 60, 0.25, category]) for x, category in ((18, 0), (22, 1))]]
    grid = labels.lists_to_grid(lists).float()
    picture = torch.rand(1, 1, 48, 60)
    unchanged, found = augment.zoom(picture, grid, "det", 0.5, torch.tensor([0.0]))
    assert torch.equal(unchanged, picture)
    assert torch.equal(found, grid)
