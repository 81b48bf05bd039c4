"""Normalization, loss, measure, decoding and mAP, against arithmetic done by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_convert, box_iou

import data
import models
import utils

LN2 = math.log(2)
SHAPES = {"loc": ((15,), (6,)), "det": ((6, 2, 3), (2, 3, 6))}  # of one picture's outputs and labels
CLASS_LOGITS = {"loc": 10, "det": 1}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Small sets of both tasks."""
    folder = tmp_path_factory.mktemp("data")
    return {task: data.load(task, "digits", sizes=(65, 8, 8), folder=folder) for task in ("loc", "det")}


def random_case(task, count=40, share=0.4, seed=0, dtype=torch.float64):
    """Random outputs and labels; about `share` of the pictures (cells) hold a digit."""
    random = torch.Generator().manual_seed(seed)
    outputs = torch.randn(count, *SHAPES[task][0], generator=random, dtype=dtype)
    labels = torch.rand(count, *SHAPES[task][1], generator=random, dtype=dtype)
    labels[..., 0] = (torch.rand(labels.shape[:-1], generator=random) < share).to(dtype)
    labels[..., 3:5] = labels[..., 3:5] * 0.8 + 0.1
    labels[..., 5] = (labels[..., 5] * (10 if task == "loc" else 2)).floor()
    return outputs, labels


def rows(outputs, labels, task):
    """Outputs and labels with a row per picture or cell, one after the other and so without any reshaping."""
    if task == "loc":
        return outputs, labels
    places = [(picture, row, column) for picture in range(len(labels)) for row in range(2) for column in range(3)]
    return (
        torch.stack([outputs[picture, :, row, column] for picture, row, column in places]),
        torch.stack([labels[picture, row, column] for picture, row, column in places]),
    )


def reference_loss(outputs, labels, task):
    """The loss as its definition says it: those with a digit are picked out by a mask."""
    outputs, labels = rows(outputs, labels, task)
    digit = labels[:, 0] == 1
    pc = F.binary_cross_entropy_with_logits(outputs[:, 0], labels[:, 0])
    outputs, labels = outputs[digit], labels[digit]
    box = F.mse_loss(outputs[:, 1:5], labels[:, 1:5])
    if task == "loc":
        category = F.cross_entropy(outputs[:, 5:], labels[:, 5].long())
    else:
        category = F.binary_cross_entropy_with_logits(outputs[:, 5], labels[:, 5])
    return pc + box + category, pc, box, category


def loc_row(pc, box, **logits):
    """Outputs for one picture: class logits are 0 but for those given as c0=..., c1=..."""
    classes = [logits.get(f"c{number}", 0.0) for number in range(10)]
    return torch.tensor([pc, *box, *classes], dtype=torch.float64)


def det_grid(cells, empty):
    """(6 numbers, 2, 3) or, with the numbers last, (2, 3, 6) from {(row, column): six numbers}."""
    grid = torch.tensor(empty, dtype=torch.float64).repeat(2, 3, 1)
    for (row, column), values in cells.items():
        grid[row, column] = torch.tensor(values, dtype=torch.float64)
    return grid


def det_outputs(*pictures, empty=(-5.0, 0.0, 0.0, 0.0, 0.0, 0.0)):
    return torch.stack([det_grid(cells, empty) for cells in pictures]).movedim(-1, 1)


def det_labels(*pictures):
    return torch.stack([det_grid(cells, (0.0, -1.0, -1.0, -1.0, -1.0, 1.0)) for cells in pictures])


# ---------------------------------------------------------------------------------------------- normalization


@pytest.mark.parametrize("task", ["loc", "det"])
def test_normalizer_equals_numpy_over_all_pixels(splits, task):
    pictures = splits[task].train.pictures
    normal = utils.Normalizer.fit(pictures)
    pixels = pictures.numpy().astype(np.float64) / 255
    assert normal.mean == pytest.approx(pixels.mean(), abs=1e-6)
    assert normal.std == pytest.approx(pixels.std(), abs=1e-6)


def test_normalizer_is_exact_over_several_parts():
    """More pictures than are summed at a time, and parts that differ from each other."""
    pictures = torch.zeros(5000, 1, 2, 2)
    pictures[4096:] = 1
    share = (5000 - 4096) / 5000
    normal = utils.Normalizer.fit(pictures)
    assert normal.mean == pytest.approx(share, abs=1e-12)
    assert normal.std == pytest.approx(math.sqrt(share * (1 - share)), abs=1e-12)


def test_normalizer_is_the_same_for_bytes_and_floats(splits):
    pictures = splits["loc"].train.pictures
    assert pictures.dtype == torch.uint8
    floats = pictures.float() / 255
    from_bytes, from_floats = utils.Normalizer.fit(pictures), utils.Normalizer.fit(floats)
    assert (from_bytes.mean, from_bytes.std) == pytest.approx((from_floats.mean, from_floats.std), abs=1e-9)
    torch.testing.assert_close(from_bytes(pictures), from_bytes(floats), rtol=0, atol=1e-6)


def test_normalized_pictures_have_mean_0_and_deviation_1(splits):
    pictures = splits["loc"].train.pictures
    normalized = utils.Normalizer.fit(pictures)(pictures)
    assert normalized.dtype == torch.float32
    assert normalized.double().mean().item() == pytest.approx(0, abs=1e-5)
    assert normalized.double().std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_normalizer_uses_the_same_two_numbers_for_other_pictures(splits):
    train, val = splits["loc"].train.pictures, splits["loc"].val.pictures
    normal = utils.Normalizer.fit(train)
    pixels, known = val.numpy() / 255, train.numpy() / 255
    np.testing.assert_allclose(normal(val).numpy(), (pixels - known.mean()) / known.std(), atol=1e-5)


def test_normalizing_leaves_the_pictures_as_they_are():
    pictures = torch.rand(2, 1, 48, 60)
    before = pictures.clone()
    utils.Normalizer(0.5, 0.1)(pictures)
    assert torch.equal(pictures, before)


@pytest.mark.parametrize("value", [0, 77, 249, 253, 255])
def test_constant_bytes_cannot_be_normalized(value):
    with pytest.raises(ValueError, match="differ"):
        utils.Normalizer.fit(torch.full((3, 1, 48, 60), value, dtype=torch.uint8))


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_constant_floats_cannot_be_normalized(value):
    with pytest.raises(ValueError, match="differ"):
        utils.Normalizer.fit(torch.full((7, 1, 48, 60), value))


# ---------------------------------------------------------------------------------------------- loss


def test_loss_of_localization_by_hand():
    outputs = torch.stack(
        [
            loc_row(0.0, (0.6, 0.5, 0.4, 0.4)),  # sigmoid(0) = 1/2; all ten classes alike: 1/10 each
            loc_row(math.log(3), (9.0, 9.0, 9.0, 9.0), c4=9.0),  # sigmoid(ln 3) = 3/4; no digit, the rest is free
            loc_row(-math.log(3), (1.5, 1.5, 1.2, 1.2), c0=math.log(9)),  # sigmoid = 1/4; class 0: 9 / (9 + 9) = 1/2
        ]
    )
    labels = torch.tensor([[1, 0.5, 0.5, 0.2, 0.4, 3], [0, -1, -1, -1, -1, 1], [1, 0.5, 0.5, 0.2, 0.2, 0]]).double()
    found = utils.combined_loss(outputs, labels, "loc")
    pc = (LN2 + 2 * LN2 + 2 * LN2) / 3  # -ln 1/2, -ln(1 - 3/4), -ln 1/4
    box = ((0.1**2 + 0 + 0.2**2 + 0) / 4 + (1 + 1 + 1 + 1) / 4) / 2
    category = (math.log(10) + LN2) / 2
    assert found.pc.item() == pytest.approx(pc, abs=1e-6)
    assert found.box.item() == pytest.approx(box, abs=1e-6)
    assert found.category.item() == pytest.approx(category, abs=1e-6)
    assert found.total.item() == pytest.approx(pc + box + category, abs=1e-6)


def test_loss_of_detection_by_hand():
    ln3 = math.log(3)
    outputs = det_outputs(
        {(0, 1): (ln3, 1.0, 0.5, 1.25, 1.5, ln3), (1, 2): (0.0, 1.5, 1.5, 3.0, 1.0, ln3)},
        empty=(0.0, 7.0, 7.0, 7.0, 7.0, 7.0),  # sigmoid(0) = 1/2; no digit, the rest is free
    )
    labels = det_labels({(0, 1): (1, 0.5, 0.5, 1.25, 1.5, 1), (1, 2): (1, 0.5, 0.5, 1.0, 1.0, 0)})
    found = utils.combined_loss(outputs, labels, "det")
    pc = (4 * LN2 + math.log(4 / 3) + LN2) / 6  # four empty cells, -ln 3/4, -ln 1/2
    box = ((0.5**2 + 0 + 0 + 0) / 4 + (1**2 + 1**2 + 2**2 + 0) / 4) / 2
    category = (math.log(4 / 3) + math.log(4)) / 2  # class 1 with 3/4, class 0 with 1/4
    assert found.pc.item() == pytest.approx(pc, abs=1e-6)
    assert found.box.item() == pytest.approx(box, abs=1e-6)
    assert found.category.item() == pytest.approx(category, abs=1e-6)
    assert found.total.item() == pytest.approx(pc + box + category, abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("task", ["loc", "det"])
def test_loss_equals_picking_the_digits_out(task, share):
    outputs, labels = random_case(task, share=share, seed=1)
    found = utils.combined_loss(outputs, labels, task)
    expected = reference_loss(outputs, labels, task)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("task", ["loc", "det"])
def test_gradients_equal_picking_the_digits_out(task):
    outputs, labels = random_case(task, seed=2)
    gradients = []
    for loss in (utils.combined_loss, reference_loss):
        leaf = outputs.clone().requires_grad_()
        loss(leaf, labels, task)[0].backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_every_cell_is_a_picture_of_its_own():
    """A binary class logit z is the two class logits (0, z), so detection's cells can be put as localization."""
    outputs, labels = random_case("det", seed=3)
    outputs[:, 5] += outputs[:, 5].sign() * 0.01  # away from the line between the classes
    cells, cell_labels = rows(outputs, labels, "det")
    as_loc = torch.cat((cells[:, :5], torch.full((len(cells), 10), -1e4, dtype=cells.dtype)), 1)  # e^-10000 is 0
    as_loc[:, 5], as_loc[:, 6] = 0, cells[:, 5]
    detection, localization = utils.score(outputs, labels, "det"), utils.score(as_loc, cell_labels, "loc")
    assert detection == pytest.approx(localization, rel=1e-6)
    assert detection["loss"] == pytest.approx(utils.combined_loss(as_loc, cell_labels, "loc").total.item(), rel=1e-9)


@pytest.mark.parametrize("filler", [math.nan, 1e9, -1.0, math.inf])
@pytest.mark.parametrize("task", ["loc", "det"])
def test_loss_never_reads_labels_without_a_digit(task, filler):
    outputs, labels = random_case(task, seed=4, dtype=torch.float32)
    other = labels.clone()
    other[..., 1:] = torch.where(labels[..., :1] == 1, labels[..., 1:], filler)
    assert not torch.equal(other, labels)
    found = []
    for each in (labels, other):
        leaf = outputs.clone().requires_grad_()
        loss = utils.combined_loss(leaf, each, task)
        loss.total.backward()
        found.append((torch.stack(loss).detach(), leaf.grad))
    assert torch.isfinite(found[1][0]).all()
    assert torch.isfinite(found[1][1]).all()
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("filler", [math.nan, -1.0])
@pytest.mark.parametrize("task", ["loc", "det"])
def test_loss_without_any_digit_is_finite(task, filler):
    outputs, labels = random_case(task, share=0, seed=5, dtype=torch.float32)
    labels[..., 1:] = filler
    outputs.requires_grad_()
    loss = utils.combined_loss(outputs, labels, task)
    loss.total.backward()
    assert loss.box.item() == 0
    assert loss.category.item() == 0
    presence = outputs[:, 0]
    assert loss.total.item() == pytest.approx(F.softplus(presence).mean().item(), rel=1e-5)  # -ln(1 - sigmoid)
    gradient = outputs.grad.clone()
    torch.testing.assert_close(gradient[:, 0], presence.detach().sigmoid() / presence.numel())
    assert (gradient[:, 1:] == 0).all()


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "expected"),
    [
        ("loc", (4, 14), (4, 6), "(N, 15)"),
        ("loc", (15,), (6,), "(N, 15)"),
        ("loc", (4, 6, 2, 3), (4, 2, 3, 6), "(N, 15)"),
        ("loc", (4, 15), (3, 6), "(4, 6)"),
        ("loc", (4, 15), (4, 5), "(4, 6)"),
        ("det", (4, 15), (4, 6), "(N, 6, 2, 3)"),
        ("det", (4, 10, 2, 3), (4, 2, 3, 6), "(N, 6, 2, 3)"),
        ("det", (4, 6, 3, 2), (4, 2, 3, 6), "(N, 6, 2, 3)"),
        ("det", (4, 6, 2, 3), (4, 6, 2, 3), "(4, 2, 3, 6)"),
        ("det", (4, 6, 2, 3), (3, 2, 3, 6), "(4, 2, 3, 6)"),
        ("det", (4, 6, 2, 3), (24, 6), "(4, 2, 3, 6)"),
    ],
    ids=str,
)
def test_loss_names_the_shape_it_expected(task, outputs, labels, expected):
    with pytest.raises(ValueError, match=task) as refusal:
        utils.combined_loss(torch.zeros(outputs), torch.zeros(labels), task)
    assert expected in str(refusal.value)
    assert str(outputs if "N" in expected else labels) in str(refusal.value)  # and what was found


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="segmentation"):
        utils.combined_loss(torch.zeros(2, 15), torch.zeros(2, 6), "segmentation")


@pytest.mark.parametrize("task", ["loc", "det"])
def test_loss_never_waits_for_the_device(task):
    """Tensors on the meta device have no values, so whatever would have to wait for one (.item(), indexing by a mask,
    a condition) fails; the reference shows that it does."""
    outputs, labels = (tensor.to("meta") for tensor in random_case(task))
    with pytest.raises(NotImplementedError):
        reference_loss(outputs, labels, task)
    outputs.requires_grad_()
    loss = utils.combined_loss(outputs, labels, task)
    loss.total.backward()
    assert outputs.grad.shape == outputs.shape


def test_giou_loss_by_hand():
    """A box of 0.4 x 0.4 beside another, a gap of 0.1 between them: union 0.32, enclosing rectangle 0.9 x 0.4."""
    outputs = loc_row(0.0, (0.8, 0.5, 0.4, 0.4))[None]
    labels = torch.tensor([[1, 0.3, 0.5, 0.4, 0.4, 3]]).double()
    found = utils.combined_loss(outputs, labels, "loc", "giou")
    giou = 0 - (0.36 - 0.32) / 0.36
    assert found.box.item() == pytest.approx(5 * 0.5 + 1 - giou, abs=1e-5)
    squares = utils.combined_loss(outputs, labels, "loc")
    assert found.pc == squares.pc
    assert found.category == squares.category


def test_giou_loss_of_cells_is_that_of_the_picture():
    """The same boxes, once in fractions of the picture and once in units of their cell."""
    outputs, labels = random_case("det", share=0.5, seed=4)
    outputs[:, 3:5] = outputs[:, 3:5].abs() + 0.1
    found = utils.combined_loss(outputs, labels, "det", "giou")
    cells = data.labels.cells_to_picture(outputs.movedim(1, -1)).reshape(-1, 6)
    loc_outputs = torch.cat((cells[:, :5], torch.zeros(len(cells), 10)), 1)
    loc_labels = data.labels.cells_to_picture(labels).reshape(-1, 6)
    expected = utils.combined_loss(loc_outputs, loc_labels, "loc", "giou")
    assert found.box.item() == pytest.approx(expected.box.item(), rel=1e-6)


@pytest.mark.parametrize("filler", [math.nan, -1.0])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("task", ["loc", "det"])
def test_giou_loss_reads_no_label_without_a_digit_and_has_finite_gradients(task, share, filler):
    outputs, labels = random_case(task, share=share, seed=5)
    labels[..., 1:][labels[..., 0] == 0] = filler
    leaf = outputs.clone().requires_grad_()
    loss = utils.combined_loss(leaf, labels, task, "giou")
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(leaf.grad).all()
    assert share or loss.box == 0


def test_giou_loss_falls_on_the_way_to_the_box():
    labels = torch.tensor([[1, 0.5, 0.5, 0.4, 0.4, 3]]).double()
    losses = [
        utils.combined_loss(loc_row(0.0, (0.5 + away, 0.5, 0.4, 0.4))[None], labels, "loc", "giou").box.item()
        for away in (0.6, 0.5, 0.3, 0.1, 0.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0.0, abs=1e-6)


def test_whole_pixels_are_recognized(splits):
    for task in ("loc", "det"):
        labels = splits[task].train.labels
        assert utils.on_whole_pixels(labels, task)
        moved = labels.clone()
        moved[..., 1] += 0.3 / 60
        assert not utils.on_whole_pixels(moved, task)


# ---------------------------------------------------------------------------------------------- measure

FULL_BOX = (0.5, 0.5, 0.2, 0.4)
SHIFTED_BOX = (0.6, 0.5, 0.2, 0.4)  # by half its width: 1/2 in common of 3/2 in all, IoU 1/3
HALF_BOX = (0.5, 0.5, 0.2, 0.2)  # half as high: 1/2 in common of 1 in all, IoU 1/2


def test_scores_of_localization_by_hand():
    outputs = torch.stack(
        [
            loc_row(2.0, FULL_BOX, c3=4.0),  # right, IoU 1
            loc_row(0.1, SHIFTED_BOX, c5=4.0, c6=5.0),  # found, but called 6: wrong, IoU 1/3
            loc_row(-0.1, FULL_BOX, c2=4.0),  # missed: wrong, though class and box are right
            loc_row(-3.0, FULL_BOX),  # empty and said so: right
            loc_row(0.2, FULL_BOX),  # false alarm: wrong
        ]
    )
    empty = [0, -1, -1, -1, -1, 1]
    labels = torch.tensor([[1, *FULL_BOX, 3], [1, *FULL_BOX, 5], [1, *FULL_BOX, 2], empty, empty]).double()
    found = utils.score(outputs, labels, "loc")
    assert found["accuracy"] == pytest.approx(2 / 5)
    assert found["iou"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-6)
    assert found["mean"] == pytest.approx((2 / 5 + 2 / 3) / 2, abs=1e-6)
    assert found["digit_accuracy"] == pytest.approx(1 / 3)
    assert found["iou_all"] == pytest.approx((1 + 1 / 3 + 0) / 3, abs=1e-6)
    matches = utils.match(outputs, labels, "loc")
    assert matches.digit.tolist() == [True, True, True, False, False]
    assert matches.found.tolist() == [True, True, False, False, True]
    assert matches.category.tolist()[:3] == [3, 6, 2]
    assert matches.true_category.tolist() == [3, 5, 2, -1, -1]
    assert matches.right.tolist() == [True, False, False, True, False]
    assert matches.iou.tolist() == pytest.approx([1, 1 / 3, 1, 0, 0], abs=1e-6)


def test_scores_of_detection_by_hand():
    outputs = det_outputs(
        {
            (0, 0): (1.0, *FULL_BOX, 2.0),  # class 1, right, IoU 1
            (0, 1): (1.0, *HALF_BOX, -2.0),  # class 0, right, IoU 1/2
            (0, 2): (1.0, *SHIFTED_BOX, -2.0),  # class 1 called 0: wrong, IoU 1/3
            (1, 0): (-1.0, *FULL_BOX, -2.0),  # missed: wrong
            (1, 1): (-1.0, *FULL_BOX, 2.0),  # empty and said so: right
            (1, 2): (1.0, *FULL_BOX, 2.0),  # false alarm: wrong
        }
    )
    classes = {(0, 0): 1, (0, 1): 0, (0, 2): 1, (1, 0): 0}
    labels = det_labels({cell: (1, *FULL_BOX, category) for cell, category in classes.items()})
    found = utils.score(outputs, labels, "det")
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["iou"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=1e-6)
    assert found["mean"] == pytest.approx((3 / 6 + 11 / 18) / 2, abs=1e-6)
    assert found["digit_accuracy"] == pytest.approx(2 / 4)
    assert found["iou_all"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 0) / 4, abs=1e-6)
    assert utils.match(outputs, labels, "det").right.tolist() == [True, True, False, False, True, False]


@pytest.mark.parametrize("task", ["loc", "det"])
def test_the_loss_is_scored_with_its_terms(task):
    outputs, labels = random_case(task)
    found = utils.score(outputs, labels, task)
    expected = [term.item() for term in reference_loss(outputs, labels, task)]
    assert [found[name] for name in ("loss", "loss_pc", "loss_box", "loss_class")] == pytest.approx(expected)


@pytest.mark.parametrize("task", ["loc", "det"])
def test_nothing_found_gives_iou_0(task):
    outputs, labels = random_case(task)
    outputs[:, 0] = -1
    found = utils.score(outputs, labels, task)
    assert all(math.isfinite(value) for value in found.values())
    assert (found["iou"], found["iou_all"], found["digit_accuracy"]) == (0, 0, 0)
    assert found["accuracy"] == pytest.approx((labels[..., 0] == 0).double().mean().item())
    assert found["mean"] == pytest.approx(found["accuracy"] / 2)


@pytest.mark.parametrize("task", ["loc", "det"])
def test_no_digits_at_all_can_be_scored(task):
    outputs, labels = random_case(task, share=0)
    found = utils.score(outputs, labels, task)
    assert all(math.isfinite(value) for value in found.values())
    assert found["accuracy"] == pytest.approx((outputs[:, 0] <= 0).double().mean().item())
    assert (found["iou"], found["iou_all"], found["digit_accuracy"]) == (0, 0, 0)


def test_a_digit_is_found_above_one_half_only():
    labels = torch.tensor([[1, *FULL_BOX, 0]] * 3)
    outputs = torch.stack([loc_row(logit, FULL_BOX, c0=1.0) for logit in (-1e-3, 0.0, 1e-3)])
    assert utils.match(outputs, labels, "loc").found.tolist() == [False, False, True]


@pytest.mark.parametrize("filler", [math.nan, 1e9, -1.0])
@pytest.mark.parametrize("task", ["loc", "det"])
def test_scores_never_read_labels_without_a_digit(task, filler):
    outputs, labels = random_case(task, seed=6)
    other = labels.clone()
    other[..., 1:] = torch.where(labels[..., :1] == 1, labels[..., 1:], filler)
    assert utils.score(outputs, other, task) == utils.score(outputs, labels, task)
    assert torch.equal(utils.match(outputs, other, task).iou, utils.match(outputs, labels, task).iou)


def test_detection_reads_the_class_from_its_sign():
    logits = torch.tensor([-4.0, -0.1, 0.1, 4.0, 0.6, -0.6]).reshape(1, 2, 3)  # 0.6 would round to 1, 0.1 to 0
    outputs = torch.zeros(1, 6, 2, 3)
    outputs[:, 5] = logits
    labels = torch.rand(1, 2, 3, 6)
    assert utils.match(outputs, labels, "det").category.tolist() == [0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("task", ["loc", "det"])
def test_ious_are_the_diagonal_of_the_full_matrix(task):
    outputs, labels = random_case(task, share=1.0, seed=7)
    outputs, flat = rows(outputs, labels, task)
    outputs[:, 1:5] = flat[:, 1:5] * (0.7 + 0.6 * torch.rand(len(flat), 4, generator=torch.Generator().manual_seed(8)))
    corners = (box_convert(values[:, 1:5], "cxcywh", "xyxy") for values in (outputs, flat))
    expected = box_iou(*corners).diagonal()
    assert expected.max() - expected.min() > 0.3  # boxes that agree and boxes that do not
    torch.testing.assert_close(utils.box_ious(outputs[:, 1:5], flat[:, 1:5]), expected)
    if task == "loc":
        torch.testing.assert_close(utils.match(outputs, labels, task).iou, expected)


@pytest.mark.parametrize("size", [(-0.2, 0.4), (0.2, -0.4), (-0.2, -0.4), (0.0, 0.4), (0.0, 0.0)], ids=str)
def test_boxes_of_negative_size_overlap_nothing(size):
    boxes = torch.tensor([[0.5, 0.5, *size]])
    assert utils.box_ious(boxes, torch.tensor([FULL_BOX])).tolist() == [0]
    labels = torch.tensor([[1, *FULL_BOX, 0]])
    found = utils.score(loc_row(1.0, (0.5, 0.5, *size), c0=1.0)[None].float(), labels, "loc")
    assert (found["iou"], found["accuracy"]) == (0, 1)


def tiny_network(task):
    """In double precision, where batches of another size give the same to 15 digits."""
    torch.manual_seed(0)
    if task == "loc":
        network = nn.Sequential(nn.MaxPool2d(6), nn.Flatten(), nn.Linear(80, 15))
    else:
        network = nn.Sequential(nn.AdaptiveAvgPool2d((2, 3)), nn.BatchNorm2d(1), nn.Conv2d(1, 6, 3, padding=1))
    return network.double()


@pytest.mark.parametrize("task", ["loc", "det"])
def test_scores_do_not_hang_on_the_batch_size(splits, task):
    """Exact over the set: with 65 pictures, means of batch means differ for most batch sizes."""
    network, train = tiny_network(task), splits[task].train
    pictures, normal = train.pictures.double() / 255, utils.Normalizer.fit(train.pictures)
    labels = train.labels.double()
    with torch.no_grad():  # a network that was not trained finds digits nowhere or everywhere: move it between
        presence = utils.predict(network, pictures, normal)[:, 0].flatten().sort().values
        network[-1].bias[0] -= presence[len(presence) // 2 - 1 : len(presence) // 2 + 1].mean()
        network[-1].weight[1:5] *= 0.05  # boxes near the middle, so that some overlap the true ones
        network[-1].bias[1:5] = torch.tensor([0.5, 0.5, 0.4, 0.5])
    outputs = {size: utils.predict(network, pictures, normal, size) for size in (1, 7, 64, 65, 512)}
    scores = {size: utils.score(found, labels, task) for size, found in outputs.items()}
    assert 0 < scores[1]["accuracy"] < 1
    assert 0 < scores[1]["iou_all"] < scores[1]["iou"] < 1
    for each in scores.values():
        assert each == pytest.approx(scores[1], rel=1e-9)
    parts = zip(outputs[7].split(7), labels.split(7), strict=True)
    mean_of_means = np.mean([utils.score(*part, task)["iou"] for part in parts])
    assert mean_of_means != pytest.approx(scores[1]["iou"], rel=1e-4)


def test_predict_evaluates_and_keeps_the_order(splits):
    """Batch norm by its running statistics: each picture's outputs are its own, whatever else is in the batch."""
    torch.manual_seed(0)
    built, train = models.SimpleNet2(), splits["det"].train
    normal = utils.Normalizer.fit(train.pictures)
    built.train()
    found = utils.predict(built, train.pictures, normal, batch_size=7)
    assert not built.training
    for number in (0, 6, 7, 64):
        alone = built(normal(train.pictures[number : number + 1]))
        torch.testing.assert_close(found[number : number + 1], alone.detach(), rtol=1e-4, atol=1e-5)


def test_evaluate_scores_a_split(splits):
    torch.manual_seed(0)
    built, val = models.SimpleNet(), splits["loc"].val
    normal = utils.Normalizer.fit(splits["loc"].train.pictures)
    with torch.no_grad():
        expected = utils.score(built.eval()(normal(val.pictures)), val.labels, "loc")
    assert utils.evaluate(built, val, normal, "loc") == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_select_best_takes_the_highest_validation_mean():
    runs = [SimpleNamespace(val={"mean": mean}) for mean in (0.3, 0.7, 0.7, 0.5)]
    assert utils.select_best(runs) is runs[1]
    with pytest.raises(ValueError, match="at least one"):
        utils.select_best([])


# ---------------------------------------------------------------------------------------------- decoding


def test_decode_detection_by_hand():
    # Cell (1, 2) begins at (40, 24) and is 20 x 24 pixels: centre (50, 30), size (16, 12).
    outputs = det_outputs({(1, 2): (math.log(3), 0.5, 0.25, 0.8, 0.5, math.log(4))})
    (found,) = utils.decode(outputs, "det")
    assert found["boxes"].flatten().tolist() == pytest.approx([42, 24, 58, 36], abs=1e-4)
    assert found["labels"].tolist() == [1]
    assert found["scores"].tolist() == pytest.approx([3 / 4 * 4 / 5], abs=1e-6)


def test_decode_detection_class_0_by_hand():
    outputs = det_outputs({(0, 1): (math.log(3), 0.5, 0.5, 1.0, 1.0, -math.log(4))})  # class 0 with 4/5
    (found,) = utils.decode(outputs, "det")
    assert found["boxes"].flatten().tolist() == pytest.approx([20, 0, 40, 24], abs=1e-4)
    assert found["labels"].tolist() == [0]
    assert found["scores"].tolist() == pytest.approx([3 / 4 * 4 / 5], abs=1e-6)


def test_decode_localization_by_hand():
    outputs = loc_row(math.log(3), (0.5, 0.5, 0.2, 0.5), c7=math.log(9))[None]  # class 7 with 9 / (9 + 9)
    (found,) = utils.decode(outputs, "loc")
    assert found["boxes"].flatten().tolist() == pytest.approx([24, 12, 36, 36], abs=1e-4)
    assert found["labels"].tolist() == [7]
    assert found["scores"].tolist() == pytest.approx([3 / 4 * 1 / 2], abs=1e-6)


def test_decode_cuts_boxes_to_the_picture():
    outputs = torch.stack([loc_row(1.0, (0.0, 1.0, 0.5, 0.5)), loc_row(1.0, (0.5, 0.5, 3.0, -1.0))])
    first, second = utils.decode(outputs, "loc")
    assert first["boxes"].flatten().tolist() == pytest.approx([0, 36, 15, 48], abs=1e-4)
    assert second["boxes"].flatten().tolist() == pytest.approx(
        [0, 24, 60, 24], abs=1e-4
    )  # no height, not a swapped box


def test_true_boxes_by_hand():
    (empty, single) = utils.true_boxes(torch.tensor([[0, math.nan, -1, -1, -1, 1], [1, 0.5, 0.5, 0.2, 0.5, 7]]), "loc")
    assert empty["boxes"].shape == (0, 4)
    assert single["boxes"].flatten().tolist() == pytest.approx([24, 12, 36, 36], abs=1e-4)
    assert single["labels"].tolist() == [7]
    (found,) = utils.true_boxes(
        det_labels({(1, 2): (1, 0.5, 0.25, 0.8, 0.5, 1), (0, 0): (1, 0, 0.5, 0.4, 1, 0)}), "det"
    )
    assert found["boxes"].tolist() == [
        pytest.approx([-4, 0, 4, 24], abs=1e-4),
        pytest.approx([42, 24, 58, 36], abs=1e-4),
    ]
    assert found["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("task", ["loc", "det"])
def test_decode_keeps_what_reaches_the_threshold(task):
    outputs, _ = random_case(task, seed=9)
    outputs[0, 0] = 100.0  # sigmoid is 1 to the last bit
    presence = outputs[:, 0].reshape(len(outputs), -1).sigmoid()
    for threshold in (0, 0.3, 0.5, 0.8, 1):
        counts = [len(found["scores"]) for found in utils.decode(outputs, task, threshold)]
        assert counts == (presence >= threshold).sum(1).tolist()
    assert sum(counts) == presence[0].numel()  # at 1 only the certain ones are left
    everything = sum(len(found["scores"]) for found in utils.decode(outputs, task, 0))
    assert everything == presence.numel()


@pytest.mark.parametrize("threshold", [-0.01, 1.01, math.nan, math.inf])
def test_decode_refuses_thresholds_that_are_no_probabilities(threshold):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        utils.decode(torch.zeros(1, 15), "loc", threshold)


def test_decode_refuses_unknown_tasks():
    with pytest.raises(ValueError, match="segmentation"):
        utils.decode(torch.zeros(1, 15), "segmentation")


def test_decode_sorts_by_score():
    outputs, _ = random_case("det", seed=10)
    for found, numbers in zip(utils.decode(outputs, "det", 0), outputs, strict=True):
        cells = numbers.reshape(6, 6)
        probabilities = [
            sigmoid(pc) * max(sigmoid(z), 1 - sigmoid(z)) for pc, z in zip(cells[0].tolist(), cells[5].tolist())
        ]
        order = sorted(range(6), key=lambda cell: -probabilities[cell])
        assert found["scores"].tolist() == pytest.approx([probabilities[cell] for cell in order])
        assert found["labels"].tolist() == [int(cells[5, cell] > 0) for cell in order]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("task", ["loc", "det"])
def test_decode_of_many_equals_decode_of_each(task):
    outputs, _ = random_case(task, seed=11)
    together = utils.decode(outputs, task, 0.3)
    assert len(together) == len(outputs)
    for number, found in enumerate(together):
        (alone,) = utils.decode(outputs[number : number + 1], task, 0.3)
        assert found["labels"].tolist() == alone["labels"].tolist()
        torch.testing.assert_close(found["boxes"], alone["boxes"])
        torch.testing.assert_close(found["scores"], alone["scores"])


def test_suppression_by_hand():
    """Digits 0 and 1 that straddle cells. Cell (0, 0) begins at (0, 0), cell (0, 1) at (20, 0), each is 20 x 24."""
    cells = {
        (0, 0): (2.0, 0.9, 0.5, 0.8, 0.5, 9.0),  # class 1, (10, 6, 26, 18), the surest
        (0, 1): (1.0, 0.0, 0.5, 0.8, 0.5, 9.0),  # class 1, (12, 6, 28, 18): IoU 14 / 18 with the first
        (0, 2): (0.5, -1.0, 0.5, 0.8, 0.5, -9.0),  # class 0, (12, 6, 28, 18)
    }
    outputs = det_outputs(cells, {(0, 1): cells[(0, 1)]})

    def lefts(found):
        return [[round(left) for left in each["boxes"][:, 0].tolist()] for each in found]

    assert lefts(utils.decode(outputs, "det")) == [[10, 12, 12], [12]]
    for nms_iou in (0.3, 0.77):  # 14 / 18 is 0.778
        found = utils.decode(outputs, "det", nms_iou=nms_iou)
        assert lefts(found) == [[10, 12], [12]]  # another class and another picture are left alone
        assert found[0]["labels"].tolist() == [1, 0]
    assert lefts(utils.decode(outputs, "det", nms_iou=0.79)) == [[10, 12, 12], [12]]


@pytest.mark.parametrize("nms_iou", [-0.01, 1.01, math.nan])
def test_suppression_refuses_what_is_no_iou(nms_iou):
    with pytest.raises(ValueError, match="nms_iou"):
        utils.decode(torch.zeros(1, 15), "loc", nms_iou=nms_iou)


def test_suppression_of_many_equals_suppression_of_each():
    outputs, _ = random_case("det", count=200, seed=12, dtype=torch.float32)
    together, apart = utils.decode(outputs, "det", 0.2, nms_iou=0.1), utils.decode(outputs, "det", 0.2)
    assert sum(len(found["scores"]) for found in together) < sum(len(found["scores"]) for found in apart)
    for number, found in enumerate(together):
        (alone,) = utils.decode(outputs[number : number + 1], "det", 0.2, nms_iou=0.1)
        assert found["labels"].tolist() == alone["labels"].tolist()
        torch.testing.assert_close(found["boxes"], alone["boxes"])


@pytest.mark.parametrize("task", ["loc", "det"])
def test_decode_names_the_shape_it_expected(task):
    with pytest.raises(ValueError, match=r"\(N, ") as refusal:
        utils.decode(torch.zeros(2, 14), task)
    assert "(2, 14)" in str(refusal.value)


# ---------------------------------------------------------------------------------------------- mAP


def perfect_outputs(labels, task):
    """What a network that knows the labels would put out."""
    labels = labels.clone()
    presence = torch.where(labels[..., :1] == 1, 20.0, -20.0)
    if task == "det":
        return torch.cat((presence, labels[..., 1:5], labels[..., 5:] * 40 - 20), -1).movedim(-1, 1)
    return torch.cat((presence, labels[:, 1:5], F.one_hot(labels[:, 5].long().clamp(min=0), 10) * 40.0), 1)


def map_of(outputs, labels, task):
    scores = utils.mean_average_precision(outputs, labels, task).scores
    return {name: scores[name] for name in ("map", "map50", "map75")}


@pytest.mark.parametrize("task", ["loc", "det"])
def test_perfect_predictions_have_map_1(splits, task):
    labels = splits[task].train.labels
    found = map_of(perfect_outputs(labels, task), labels, task)
    assert found == pytest.approx({"map": 1, "map50": 1, "map75": 1}, abs=1e-5)


@pytest.mark.parametrize("task", ["loc", "det"])
def test_no_predictions_have_map_0(splits, task):
    labels = splits[task].train.labels
    outputs = perfect_outputs(labels, task)
    outputs[:, 0] = -20
    assert map_of(outputs, labels, task) == {"map": 0, "map50": 0, "map75": 0}


def test_no_digits_have_map_0():
    """torchmetrics says -1 where there is nothing to find."""
    outputs, labels = random_case("det", count=3, share=0, dtype=torch.float32)
    assert map_of(outputs, labels, "det") == {"map": 0, "map50": 0, "map75": 0}


def test_map_of_one_hit_and_one_miss():
    """Precision is 1 up to recall 1/2 and then 0; of COCO's 101 recalls 0, 0.01, ... 1, 51 are at most 1/2."""
    labels = torch.tensor([[1, *FULL_BOX, 3], [1, *FULL_BOX, 3]])
    outputs = perfect_outputs(labels, "loc")
    outputs[1, 0] = -20
    found = map_of(outputs, labels, "loc")
    assert found == pytest.approx({"map": 51 / 101, "map50": 51 / 101, "map75": 51 / 101}, abs=1e-6)


def test_map_of_a_box_that_is_nearly_right():
    """Box 0.64 times as high: IoU 0.64, enough for the thresholds .50, .55 and .60 of the ten .50, .55 ... .95."""
    labels = torch.tensor([[1, 0.5, 0.5, 0.2, 0.5, 3]])
    outputs = perfect_outputs(labels, "loc")
    outputs[0, 4] = 0.32
    found = map_of(outputs, labels, "loc")
    assert found == pytest.approx({"map": 3 / 10, "map50": 1, "map75": 0}, abs=1e-6)


def test_map_counts_a_surer_false_alarm():
    """The false alarm comes first: precision 0/1, then 1/2 at recall 1, so 1/2 at every recall. Were it the less sure
    of the two, precision would be 1 at every recall."""
    labels = torch.tensor([[1, *FULL_BOX, 3], [0, -1, -1, -1, -1, 1]])
    outputs = perfect_outputs(labels, "loc")
    outputs[1] = loc_row(2.0, FULL_BOX, c3=40.0).float()
    outputs[0, 0] = 1.0
    assert map_of(outputs, labels, "loc")["map"] == pytest.approx(1 / 2, abs=1e-6)
    outputs[0, 0] = 3.0
    assert map_of(outputs, labels, "loc")["map"] == pytest.approx(1, abs=1e-6)


def test_map_is_the_mean_over_classes():
    """Class 1 is found, class 0 is called 1 with less certainty: AP 1 and 0."""
    truth = {(0, 0): (1, *FULL_BOX, 1), (1, 2): (1, *FULL_BOX, 0)}
    said = {(0, 0): (5.0, *FULL_BOX, 5.0), (1, 2): (1.0, *FULL_BOX, 1.0)}
    found = map_of(det_outputs(said).float(), det_labels(truth).float(), "det")
    assert found["map50"] == pytest.approx(1 / 2, abs=1e-6)
    scores, precision = utils.mean_average_precision(det_outputs(said).float(), det_labels(truth).float(), "det")
    assert (scores["map_class0"], scores["map_class1"]) == (0, pytest.approx(1))
    assert precision.shape == (10, 101, 2)
    torch.testing.assert_close(precision[..., 1], torch.ones(10, 101))
    assert (precision[..., 0] == 0).all()


def test_classes_that_do_not_occur_have_no_precision():
    labels = torch.tensor([[1, *FULL_BOX, 3], [1, *FULL_BOX, 5]])
    outputs = perfect_outputs(labels, "loc")
    outputs[1, 0], outputs[1, 5 + 7] = 5.0, 100.0  # class 5 is taken for 7
    scores, precision = utils.mean_average_precision(outputs, labels, "loc")
    assert {name for name in scores if name.startswith("map_class")} == {"map_class3", "map_class5"}
    assert (scores["map_class3"], scores["map_class5"]) == (pytest.approx(1), 0)
    assert precision.isnan().all((0, 1)).nonzero().flatten().tolist() == [0, 1, 2, 4, 6, 7, 8, 9]


def test_map_counts_unsure_boxes_too():
    """A digit with sigmoid(pc) = 0.27, which accuracy counts as missed."""
    labels = torch.tensor([[1, *FULL_BOX, 3]])
    outputs = perfect_outputs(labels, "loc")
    outputs[0, 0] = -1.0
    assert map_of(outputs, labels, "loc")["map"] == pytest.approx(1, abs=1e-6)
