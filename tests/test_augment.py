"""Moved and stretched images: content and boxes go together, stay inside, and stay what they are."""

import pytest
import torch
from cases import both_tasks, det_labels, digits

from data import augment, labels
from training import Settings
from training.loop import draw_batches


def move(images, targets, max_shift, max_stretch=0.0):
    draws = torch.rand(len(images), 4, generator=torch.Generator().manual_seed(3))
    return augment.move(images, targets, max_shift, max_stretch, draws)


def painted(targets):
    """(N, 1, 48, 60), uint8: 0 outside the boxes, and in each box, its last column and row too, a number per class."""
    rows = (labels.cells_to_image(targets) if targets.ndim == 4 else targets).reshape(len(targets), -1, 6)
    images = torch.zeros(len(targets), 1, 48, 60, dtype=torch.uint8)
    for image, digit in (rows[..., 0] > 0).nonzero().tolist():
        x, y, w, h, class_id = (rows[image, digit, 1:] * torch.tensor((60, 48, 60, 48, 1))).tolist()
        down, across = (slice(round(at - size / 2), round(at + size / 2) + 1) for at, size in ((y, h), (x, w)))
        images[image, 0, down, across] = int(class_id) + 1
    return images


@pytest.mark.parametrize(("max_shift", "max_stretch"), [(8, 0.0), (24, 0.0), (0, 0.3), (8, 0.3)])
@both_tasks
def test_content_and_boxes_change_together_and_stay_inside(task, max_shift, max_stretch):
    targets = digits(task).train.labels
    before = painted(targets)
    torch.testing.assert_close(move(before, targets, 0), (before, targets), rtol=0, atol=1e-6)
    images, found = move(before, targets, max_shift, max_stretch)
    labels.check_split(images, found, task, "moved")
    assert torch.equal(images, painted(found))  # no digit is cut, and none is seen twice
    assert (images != before).flatten(1).any(1).sum() > 200  # nearly all change
    if task == "det":  # digits change cells as lists_to_grid has it
        again = labels.lists_to_grid(labels.grid_to_lists(found)).float()
        torch.testing.assert_close(again, found, rtol=0, atol=1e-5)
        assert max_shift < 24 or (found[..., 0] != targets[..., 0]).any((1, 2)).sum() > 100
    single = targets[..., 0].reshape(len(before), -1).sum(1) == 1
    for dim in (2, 1):
        then, now = ((each[single, 0] > 0).any(dim).sum(1) for each in (before, images))  # rows and columns with ink
        assert ((now - then).abs() <= max_stretch * then + bool(max_stretch)).all()
        for changed in (now > then, now < then):
            assert (changed.sum() > 20) == bool(max_stretch)


@both_tasks
def test_stretching_alone_reaches_the_batches(task):
    train = digits(task).train
    batches = draw_batches(train, Settings(shuffle=False, max_stretch=0.3), epoch=1)
    change = torch.cat([found for _, found in batches])[..., 3:5] - train.labels[..., 3:5]
    assert (change[train.labels[..., 0] == 1].abs() > 0.01).any(1).float().mean() > 0.5


@pytest.mark.parametrize(("step", "x"), [(2, (18 / 20, 10 / 20)), (1, (19 / 20, 11 / 20))])
def test_two_digits_that_would_share_a_cell_stay_apart(step, x):
    """Centres at 18 and 30 pixels, either side of the border at 20: two pixels to the right they would share a cell."""
    grid = det_labels({(0, 0): (1, 18 / 20, 0.5, 0.4, 0.5, 0), (0, 1): (1, 10 / 20, 0.5, 0.4, 0.5, 1)})
    image = torch.arange(48 * 60).reshape(1, 1, 48, 60).float() / 2880
    # One of the 17 steps from -8 to 8 in x; of the 15 from -6 to 8, as boxes reach from 6 to 18, that of 0 in y.
    moved, found = augment.move(image, grid, 8, 0.0, torch.tensor([[(8.5 + step) / 17, 6.5 / 15, 0.5, 0.5]]))
    assert torch.equal(moved[..., 1:], image[..., :-1] if step == 1 else image[..., 1:])
    assert found[0, 0, :, 0].tolist() == [1, 1, 0]
    assert found[0, 0, :2, 1].tolist() == pytest.approx(x)


def test_every_step_is_drawn_and_background_comes_round():
    images = torch.arange(48 * 60, dtype=torch.float32).reshape(1, 1, 48, 60).repeat(2000, 1, 1, 1)
    empty = torch.tensor([labels.NO_DIGIT]).repeat(2000, 1)
    moved, found = move(images, empty, 4)
    assert torch.equal(found, empty)
    corner = moved[:, 0, 0, 0].long()  # what was at (-y, -x) has come to (0, 0)
    y, x = (4 - corner // 60) % 48 - 4, (4 - corner % 60) % 60 - 4
    for steps in (x, y):
        assert torch.bincount(steps + 4, minlength=9).min() > 150  # 222 on average
    for image, before, *step in zip(moved[:20], images, y.tolist(), x.tolist()):
        assert torch.equal(image, before.roll(step, (1, 2)))
