"""Moved and stretched images: content and boxes go together, stay inside, and stay what they are."""

import pytest
import torch

import data
from data import augment, labels

both_tasks = pytest.mark.parametrize("task", ["loc", "det"])


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {task: data.load(task, "digits", sizes=(300, 1, 1), folder=folder).train for task in ("loc", "det")}


def moved_by(images, targets, max_shift, max_stretch=0.0, seed=0):
    draws = torch.rand(len(images), 4, generator=torch.Generator().manual_seed(seed))
    return augment.move(images, targets, max_shift, max_stretch, draws)


def painted(targets):
    """(N, 1, 48, 60), uint8: 0 outside the boxes, and in each box, its last column and row too, a number per class."""
    rows = (labels.cells_to_image(targets) if targets.ndim == 4 else targets).reshape(len(targets), -1, 6)
    images = torch.zeros(len(targets), 1, 48, 60, dtype=torch.uint8)
    for image, digits in zip(images, rows, strict=True):
        for _, x, y, w, h, class_id in digits[digits[:, 0] > 0].tolist():
            top, bottom = (round((y + side * h / 2) * 48) for side in (-1, 1))
            left, right = (round((x + side * w / 2) * 60) for side in (-1, 1))
            image[0, top : bottom + 1, left : right + 1] = int(class_id) + 1
    return images


@pytest.mark.parametrize("max_shift", [8, 24])
@both_tasks
def test_content_and_boxes_move_together_and_stay_inside(sets, task, max_shift):
    before = painted(sets[task].labels)
    images, found = moved_by(before, sets[task].labels, max_shift)
    labels.check_split(images, found, task, "shifted")
    assert torch.equal(images, painted(found))
    assert torch.equal(images.flatten(1).sum(1), before.flatten(1).sum(1))  # nothing is lost
    assert (images != before).flatten(1).any(1).sum() > 200  # nearly all move


@pytest.mark.parametrize("max_shift", [0, 8])
@both_tasks
def test_content_and_boxes_are_stretched_together(sets, task, max_shift):
    before, stretch = painted(sets[task].labels), 0.3
    images, found = moved_by(before, sets[task].labels, max_shift, stretch)
    labels.check_split(images, found, task, "stretched")
    assert torch.equal(images, painted(found))  # no digit is cut, and none is seen twice
    for dim in (2, 1):
        then, now = ((each[:, 0] > 0).any(dim).sum(1) for each in (before, images))  # rows and columns with ink
        one = sets[task].labels[..., 0].reshape(len(before), -1).sum(1) == 1
        assert ((now - then).abs() <= stretch * then + 1)[one].all()
        assert (now > then)[one].sum() > 20
        assert (now < then)[one].sum() > 20


@both_tasks
def test_nothing_drawn_changes_nothing(sets, task):
    images, found = moved_by(sets[task].images, sets[task].labels, 0)
    assert torch.equal(images, sets[task].images)
    torch.testing.assert_close(found, sets[task].labels, rtol=0, atol=1e-6)


def test_digits_change_cells_as_lists_to_grid_has_it(sets):
    _, found = moved_by(sets["det"].images, sets["det"].labels, 24)
    assert (found[..., 0] != sets["det"].labels[..., 0]).any((1, 2)).sum() > 100
    again = labels.lists_to_grid(labels.grid_to_lists(found)).float()
    torch.testing.assert_close(again, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("step", "moves"), [(2, False), (1, True)])
def test_two_digits_that_would_share_a_cell_stay_apart(step, moves):
    """Centres at 18 and 30 pixels, either side of the border at 20: two pixels to the right they would share a cell."""
    lists = [[torch.tensor([1, x / 60, 0.25, 8 / 60, 0.25, class_id]) for x, class_id in ((18, 0), (30, 1))]]
    grid = labels.lists_to_grid(lists).float()
    image = torch.arange(48 * 60).reshape(1, 1, 48, 60).float() / 2880
    # One of the 17 steps from -8 to 8 in x; of the 15 from -6 to 8, as boxes reach from 6 to 18, that of 0 in y.
    moved, found = augment.move(image, grid, 8, 0.0, torch.tensor([[(8.5 + step) / 17, 6.5 / 15, 0.5, 0.5]]))
    if moves:
        assert torch.equal(moved[..., 1:], image[..., :-1])
        assert found[0, 0, :, 0].tolist() == [1, 1, 0]
        assert found[0, 0, :2, 1].tolist() == pytest.approx([19 / 20, 11 / 20])
    else:
        assert torch.equal(moved, image)
        assert torch.equal(found, grid)


def test_every_step_is_drawn_and_background_comes_round():
    empty = torch.tensor([labels.NO_DIGIT]).repeat(2000, 1)
    images = torch.arange(48 * 60, dtype=torch.float32).reshape(1, 1, 48, 60).repeat(2000, 1, 1, 1)
    moved, found = moved_by(images, empty, 4, seed=3)
    assert torch.equal(found, empty)
    corner = moved[:, 0, 0, 0].long()  # what was at (-y, -x) has come to (0, 0)
    y, x = (4 - corner // 60) % 48 - 4, (4 - corner % 60) % 60 - 4
    for steps in (x, y):
        counts = torch.bincount(steps + 4)
        assert len(counts) == 9
        assert counts.min() > 150  # 222 on average
    for number in range(20):
        assert torch.equal(moved[number], images[number].roll((y[number].item(), x[number].item()), (1, 2)))
