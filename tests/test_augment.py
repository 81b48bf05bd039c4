"""Moved and stretched images: content and boxes go together, stay inside, and stay what they are."""

import pytest
import torch
from cases import both_tasks, digits

from data import augment, labels


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
    images, moved = move(before, targets, max_shift, max_stretch)
    labels.check_split(images, moved, task)
    assert torch.equal(images, painted(moved))  # no digit is cut, and none is seen twice
    assert (images != before).flatten(1).any(1).sum() > 200  # nearly all change
    if task == "det":  # digits change cells as lists_to_grid has it, and no two come into one
        again = labels.lists_to_grid(labels.grid_to_lists(moved)).float()
        torch.testing.assert_close(again, moved, rtol=0, atol=1e-5)
        assert max_shift < 24 or (moved[..., 0] != targets[..., 0]).any((1, 2)).sum() > 100
    single = targets[..., 0].reshape(len(before), -1).sum(1) == 1
    for dim in (2, 1):
        then, now = ((each[single, 0] > 0).any(dim).sum(1) for each in (before, images))  # rows and columns with ink
        assert ((now - then).abs() <= max_stretch * then + bool(max_stretch)).all()
        for changed in (now > then, now < then):
            assert (changed.sum() > 20) == bool(max_stretch)


def test_every_step_is_drawn_and_background_comes_round():
    images = torch.arange(48 * 60, dtype=torch.float32).reshape(1, 1, 48, 60).repeat(2000, 1, 1, 1)
    moved, _ = move(images, torch.tensor([labels.NO_DIGIT]).repeat(2000, 1), 4)
    corner = moved[:, 0, 0, 0].long()  # what was at (-y, -x) has come to (0, 0)
    y, x = (4 - corner // 60) % 48 - 4, (4 - corner % 60) % 60 - 4
    for steps in (x, y):
        assert torch.bincount(steps + 4, minlength=9).min() > 150  # 222 on average
    for image, *step in zip(moved[:20], y.tolist(), x.tolist()):
        assert torch.equal(image, images[0].roll(step, (1, 2)))
