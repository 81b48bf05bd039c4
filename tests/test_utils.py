"""Normalization, loss, measure, decoding and mAP, against arithmetic done by hand."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import det_labels, det_outputs, loc_row, perfect_outputs
from torchvision.ops import box_convert, box_iou

import data
import models
import utils
from training import boxes
from training.reference import published_curves, reference_mean

LN2, LN3 = math.log(2), math.log(3)
SHAPES = {"loc": ((15,), (6,)), "det": ((6, 2, 3), (2, 3, 6))}  # of one image's outputs and labels
EMPTY = (0.0, -1.0, -1.0, -1.0, -1.0, 1.0)
MEASURE = ("accuracy", "iou", "mean", "digit_accuracy", "iou_all")
FULL_BOX = (0.5, 0.5, 0.2, 0.4)
SHIFTED_BOX = (0.6, 0.5, 0.2, 0.4)  # by half its width: 1/2 in common of 3/2 in all, IoU 1/3
HALF_BOX = (0.5, 0.5, 0.2, 0.2)  # half as high: 1/2 in common of 1 in all, IoU 1/2

both_tasks = pytest.mark.parametrize("task", ["loc", "det"])


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Small sets of both tasks."""
    folder = tmp_path_factory.mktemp("data")
    return {task: data.load(task, "digits", sizes=(65, 8, 8), folder=folder) for task in ("loc", "det")}


def random_case(task, count=40, share=0.4, seed=0):
    """Random outputs and labels in float64; about `share` of the images (cells) hold a digit."""
    rng = torch.Generator().manual_seed(seed)
    outputs = torch.randn(count, *SHAPES[task][0], generator=rng, dtype=torch.float64)
    labels = torch.rand(count, *SHAPES[task][1], generator=rng, dtype=torch.float64)
    labels[..., 0] = torch.rand(labels.shape[:-1], generator=rng) < share
    labels[..., 3:5] = labels[..., 3:5] * 0.8 + 0.1
    labels[..., 5] = (labels[..., 5] * (10 if task == "loc" else 2)).floor()
    return outputs, labels


def rows(outputs, labels):
    """Outputs and labels with a row per image or cell, one after the other and so without any reshaping."""
    if labels.ndim == 2:
        return outputs, labels
    places = list(itertools.product(range(len(labels)), range(2), range(3)))
    outputs = torch.stack([outputs[image, :, row, column] for image, row, column in places])
    return outputs, torch.stack([labels[place] for place in places])


def masked_loss(outputs, labels):
    """The loss as its definition says it: those with a digit are picked out by a mask."""
    outputs, labels = rows(outputs, labels)
    digit = labels[:, 0] == 1
    pc = F.binary_cross_entropy_with_logits(outputs[:, 0], labels[:, 0])
    outputs, labels = outputs[digit], labels[digit]
    box = F.mse_loss(outputs[:, 1:5], labels[:, 1:5])
    if outputs.shape[1] == 15:
        class_id = F.cross_entropy(outputs[:, 5:], labels[:, 5].long())
    else:
        class_id = F.binary_cross_entropy_with_logits(outputs[:, 5], labels[:, 5])
    return pc + box + class_id, pc, box, class_id


@pytest.mark.parametrize("task", ["loc", "det"])
def test_edges_cost_the_logarithm_of_the_chance_that_the_true_ones_were_given(task):
    """One digit, its edges at 12, 30, 6 and 20; what is said of places without a digit costs nothing."""
    where = (12, 30, 6, 20)
    box = torch.tensor([1, 21 / 60, 13 / 48, 18 / 60, 14 / 48, 1])
    if task == "loc":
        outputs, labels = torch.zeros(2, 15), torch.stack((box, torch.tensor(data.labels.NO_DIGIT)))
    else:
        outputs, labels = torch.zeros(2, 6, 2, 3), torch.tensor(data.labels.NO_DIGIT).repeat(2, 2, 3, 1)
        labels[0, 0, 1] = torch.tensor([1, 21 / 60 * 3 - 1, 13 / 48 * 2, 18 / 60 * 3, 14 / 48 * 2, 1])
    grid = (1, 1) if task == "loc" else (2, 3)
    edges = [torch.full((2, *grid, size), 1e-3) for size in (60, 60, 48, 48)]
    for chance, pixel, given in zip(edges, where, (0.5, 0.25, 1.0, 0.0)):
        chance[(0, 0, 0) if task == "loc" else (0, 0, 1)][pixel] = given
    without = utils.combined_loss(outputs, labels, "giou")
    found = utils.combined_loss(outputs, labels, "giou", edges, utils.LossWeights(edges=2.0))
    expected = (math.log(2) + math.log(4) - math.log(utils.LEAST_CHANCE)) / 4
    assert (found.box - without.box).item() == pytest.approx(2 * expected, rel=1e-4)
    assert (found.total - without.total).item() == pytest.approx(2 * expected, rel=1e-4)
    assert utils.combined_loss(outputs[1:], labels[1:], "giou", [each[1:] for each in edges]).box == 0


@pytest.mark.parametrize(("task", "classes"), [("loc", 10), ("det", 2)])
def test_smoothing_moves_a_share_of_the_class_to_all_classes_alike(task, classes):
    labels = torch.tensor([[1, 0.5, 0.5, 0.5, 0.5, 1]])
    outputs = torch.randn(1, 15 if task == "loc" else 6, generator=torch.Generator().manual_seed(1))
    named = outputs[:, 5:] if task == "loc" else torch.stack((-outputs[:, 5] / 2, outputs[:, 5] / 2), 1)
    share = torch.full((1, classes), 0.2 / classes)
    share[0, 1] += 0.8
    expected = -(share * named.log_softmax(1)).sum()
    if task == "det":
        outputs, labels = outputs[..., None, None].expand(1, 6, 2, 3), labels.expand(1, 2, 3, 6)
    found = utils.combined_loss(outputs, labels, weights=utils.LossWeights(smoothing=0.2))
    assert found.class_id.item() == pytest.approx(expected.item(), rel=1e-5)


def loss_and_gradient(loss, outputs, *rest):
    """(4,) the loss and its terms, and the gradient of the loss in the outputs."""
    leaf = outputs.clone().requires_grad_()
    terms = loss(leaf, *rest)
    terms[0].backward()
    return torch.stack(tuple(terms)).detach(), leaf.grad


@pytest.mark.parametrize("divisor", [1, 255], ids=["bytes", "floats"])
def test_normalizer_takes_mean_and_deviation_of_the_images_it_is_fit_to(splits, divisor):
    parts = splits["loc"].train, splits["loc"].val
    train, val = (part.images if divisor == 1 else part.images / 255 for part in parts)
    before, pixels = val.clone(), train.numpy() / (255 / divisor)
    normal = utils.Normalizer.fit(train)
    assert (normal.mean, normal.std) == pytest.approx((pixels.mean(), pixels.std()), abs=1e-6)
    expected = torch.from_numpy((val.numpy() / (255 / divisor) - pixels.mean()) / pixels.std()).float()
    torch.testing.assert_close(normal(val), expected, rtol=0, atol=1e-5)
    assert torch.equal(val, before)


def test_normalizer_is_exact_over_more_images_than_are_summed_at_a_time():
    images = torch.full((5000, 1, 2, 2), 0.5)
    images[4096:] = 1
    share = (5000 - 4096) / 5000
    normal = utils.Normalizer.fit(images)
    assert (normal.mean, normal.std) == pytest.approx(((1 + share) / 2, math.sqrt(share * (1 - share)) / 2), abs=1e-12)


@pytest.mark.parametrize("value", [0, 77, 255, 0.0, 0.3])
def test_images_of_one_value_cannot_be_normalized(value):
    dtype = torch.uint8 if isinstance(value, int) else torch.float32
    with pytest.raises(ValueError, match="differ"):
        utils.Normalizer.fit(torch.full((7, 1, 48, 60), value, dtype=dtype))


def test_loss_of_localization_by_hand():
    outputs = [
        loc_row(0.0, (0.6, 0.5, 0.4, 0.4)),  # sigmoid(0) = 1/2; all ten classes alike: 1/10 each
        loc_row(LN3, (9.0, 9.0, 9.0, 9.0), c4=9.0),  # sigmoid(ln 3) = 3/4; no digit, the rest is free
        loc_row(-LN3, (1.5, 1.5, 1.2, 1.2), c0=math.log(9)),  # sigmoid = 1/4; class 0: 9 / (9 + 9) = 1/2
    ]
    labels = torch.tensor([[1, 0.5, 0.5, 0.2, 0.4, 3], EMPTY, [1, 0.5, 0.5, 0.2, 0.2, 0]])
    pc = (LN2 + 2 * LN2 + 2 * LN2) / 3  # -ln 1/2, -ln(1 - 3/4), -ln 1/4
    box = ((0.1**2 + 0 + 0.2**2 + 0) / 4 + (1 + 1 + 1 + 1) / 4) / 2
    class_id = (math.log(10) + LN2) / 2
    found = torch.stack(utils.combined_loss(torch.stack(outputs), labels))
    assert found.tolist() == pytest.approx([pc + box + class_id, pc, box, class_id], abs=1e-6)


def test_loss_of_detection_by_hand():
    outputs = det_outputs(
        {(0, 1): (LN3, 1.0, 0.5, 1.25, 1.5, LN3), (1, 2): (0.0, 1.5, 1.5, 3.0, 1.0, LN3)},
        empty=(0.0, 7.0, 7.0, 7.0, 7.0, 7.0),  # sigmoid(0) = 1/2; no digit, the rest is free
    )
    labels = det_labels({(0, 1): (1, 0.5, 0.5, 1.25, 1.5, 1), (1, 2): (1, 0.5, 0.5, 1.0, 1.0, 0)})
    pc = (4 * LN2 + math.log(4 / 3) + LN2) / 6  # four empty cells, -ln 3/4, -ln 1/2
    box = ((0.5**2 + 0 + 0 + 0) / 4 + (1**2 + 1**2 + 2**2 + 0) / 4) / 2
    class_id = (math.log(4 / 3) + math.log(4)) / 2  # class 1 with 3/4, class 0 with 1/4
    found = torch.stack(utils.combined_loss(outputs, labels))
    assert found.tolist() == pytest.approx([pc + box + class_id, pc, box, class_id], abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (loc_row(0.0, (0.8, 0.5, 0.4, 0.4))[None], torch.tensor([[1, 0.3, 0.5, 0.4, 0.4, 3]])),
        (det_outputs({(0, 2): (0.0, 0.4, 1, 1.2, 0.8, 0)}), det_labels({(0, 2): (1.0, -1.1, 1, 1.2, 0.8, 1)})),
    ],
    ids=["loc", "det"],
)
def test_giou_loss_by_hand(outputs, labels):
    """A box of 0.4 x 0.4 beside another, a gap of 0.1 between them: union 0.32, enclosing rectangle 0.9 x 0.4. In
    units of a cell of 1/3 x 1/2 it is the same."""
    found, squares = utils.combined_loss(outputs, labels, "giou"), utils.combined_loss(outputs, labels)
    giou = 0 - (0.36 - 0.32) / 0.36
    assert found.box.item() == pytest.approx(5 * 0.5 + 1 - giou, abs=1e-5)
    assert (found.pc, found.class_id) == (squares.pc, squares.class_id)


@pytest.mark.parametrize("share", [0.1, 1.0])
@both_tasks
def test_loss_and_gradients_equal_picking_the_digits_out(task, share):
    case = random_case(task, share=share, seed=1)
    expected = loss_and_gradient(masked_loss, *case)
    torch.testing.assert_close(loss_and_gradient(utils.combined_loss, *case), expected, rtol=1e-9, atol=1e-12)
    scores = utils.score(*case)
    names = ("loss", "loss_pc", "loss_box", "loss_class")
    assert [scores[name] for name in names] == pytest.approx(expected[0].tolist())


@pytest.mark.parametrize("share", [0.4, 0.0])
@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e9])
@pytest.mark.parametrize("box_loss", utils.BOX_LOSSES)
@both_tasks
def test_without_a_digit_only_pc_is_read_and_learnt(task, box_loss, filler, share):
    outputs, labels = random_case(task, share=share, seed=4)
    other = labels.clone()
    other[..., 1:] = torch.where(labels[..., :1] == 1, labels[..., 1:], filler)
    terms, gradient = loss_and_gradient(utils.combined_loss, outputs, other, box_loss)
    expected = loss_and_gradient(utils.combined_loss, outputs, labels, box_loss)
    assert all(map(torch.equal, (terms, gradient), expected))
    pc = F.softplus(outputs[:, 0]).mean().item()  # -ln(1 - sigmoid)
    assert share or terms.tolist() == pytest.approx([pc, pc, 0, 0])
    assert utils.score(outputs, other) == utils.score(outputs, labels)
    gradient, labels = rows(gradient, labels)
    assert not gradient[labels[:, 0] == 0, 1:].any()


@both_tasks
def test_loss_never_waits_for_the_device(task):
    """Tensors on the meta device have no values: whatever would wait for one fails, as indexing by a mask does."""
    outputs, labels = (tensor.to("meta") for tensor in random_case(task))
    with pytest.raises(NotImplementedError):
        masked_loss(outputs, labels)
    outputs.requires_grad_()
    utils.combined_loss(outputs, labels).total.backward()
    assert outputs.grad.shape == outputs.shape


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ((4, 14), (4, 6), r"outputs: expected shape \(N, 15\) or \(N, 6, 2, 3\), found \(4, 14\)"),
        ((15,), (6,), r"outputs: .* found \(15,\)"),
        ((4, 15), (4, 5), r"labels: expected shape \(N, 6\) or \(N, 2, 3, 6\), found \(4, 5\)"),
        ((4, 15), (3, 6), r"\(4, 15\) and labels \(3, 6\) do not go together"),
        ((4, 6, 2, 3), (4, 6), r"\(4, 6, 2, 3\) and labels \(4, 6\) do not go together"),
    ],
    ids=str,
)
def test_shapes_of_no_task_and_of_two_are_refused(outputs, labels, message):
    with pytest.raises(ValueError, match=message):
        utils.combined_loss(torch.zeros(outputs), torch.zeros(labels))


def test_scores_of_localization_by_hand():
    outputs = [
        loc_row(2.0, FULL_BOX, c3=4.0),  # right, IoU 1
        loc_row(0.1, SHIFTED_BOX, c5=4.0, c6=5.0),  # found, but called 6: wrong, IoU 1/3
        loc_row(-0.1, FULL_BOX, c2=4.0),  # missed: wrong, though class and box are right
        loc_row(-3.0, FULL_BOX),  # empty and said so: right
        loc_row(0.2, FULL_BOX),  # false positive: wrong
        loc_row(0.0, FULL_BOX),  # empty, and a digit is not more likely than none: right
    ]
    outputs = torch.stack(outputs)
    labels = torch.tensor([*((1, *FULL_BOX, class_id) for class_id in (3, 5, 2)), EMPTY, EMPTY, EMPTY])
    found = utils.score(outputs, labels)
    assert [found[name] for name in MEASURE] == pytest.approx([3 / 6, 2 / 3, (3 / 6 + 2 / 3) / 2, 1 / 3, 4 / 9])
    matches = utils.match(outputs, labels)
    assert matches.digit.nonzero().flatten().tolist() == [0, 1, 2]
    assert matches.found.nonzero().flatten().tolist() == [0, 1, 4]
    assert matches.right.nonzero().flatten().tolist() == [0, 3, 5]
    assert matches.class_id.tolist()[:3] == [3, 6, 2]
    assert matches.true_class_id.tolist() == [3, 5, 2, -1, -1, -1]
    assert matches.iou.tolist() == pytest.approx([1, 1 / 3, 1, 0, 0, 0], abs=1e-6)


def test_scores_of_detection_by_hand():
    cells = {
        (0, 0): (1.0, *FULL_BOX, 0.1),  # class 1, as its probability is above 1/2: right, IoU 1
        (0, 1): (1.0, *HALF_BOX, -0.1),  # class 0, right, IoU 1/2
        (0, 2): (1.0, *SHIFTED_BOX, -2.0),  # class 1 called 0: wrong, IoU 1/3
        (1, 0): (-1.0, *FULL_BOX, -2.0),  # missed: wrong
        (1, 1): (-1.0, *FULL_BOX, 2.0),  # empty and said so: right
        (1, 2): (1.0, *FULL_BOX, 2.0),  # false positive: wrong
    }
    labels = det_labels(
        {(number // 3, number % 3): (1, *FULL_BOX, class_id) for number, class_id in enumerate((1, 0, 1, 0))}
    )
    outputs, overlap = det_outputs(cells), 1 + 1 / 2 + 1 / 3
    found = utils.score(outputs, labels)
    expected = [3 / 6, overlap / 3, (3 / 6 + overlap / 3) / 2, 2 / 4, overlap / 4]
    assert [found[name] for name in MEASURE] == pytest.approx(expected)
    matches = utils.match(outputs, labels)
    assert matches.class_id.tolist() == [1, 0, 0, 0, 1, 1]
    assert matches.right.tolist() == [True, True, False, False, True, False]


@pytest.mark.parametrize(("share", "confidence"), [(0.4, -1.0), (0.0, 1.0), (0.0, -1.0)])
@both_tasks
def test_iou_is_0_where_nothing_is_found_or_nothing_there(task, share, confidence):
    outputs, labels = random_case(task, share=share)
    outputs[:, 0] = confidence
    found = utils.score(outputs, labels)
    assert all(math.isfinite(value) for value in found.values())
    assert (found["iou"], found["iou_all"], found["digit_accuracy"]) == (0, 0, 0)
    assert found["accuracy"] == pytest.approx((labels[..., 0] == 0).double().mean().item() if confidence < 0 else 0)
    assert found["mean"] == pytest.approx(found["accuracy"] / 2)


def test_ious_are_those_of_torchvision():
    truth = random_case("loc", share=1.0, seed=7)[1][:, 1:5]
    boxes = truth * (0.7 + 0.6 * torch.rand(truth.shape, generator=torch.Generator().manual_seed(8)))
    expected = box_iou(*(box_convert(values, "cxcywh", "xyxy") for values in (boxes, truth))).diagonal()
    assert expected.max() - expected.min() > 0.3  # boxes that agree and boxes that do not
    torch.testing.assert_close(utils.box_ious(boxes, truth), expected)


def test_boxes_of_negative_size_overlap_nothing():
    boxes = torch.tensor([(0.5, 0.5, *size) for size in ((-0.2, 0.4), (0.2, -0.4), (-0.2, -0.4), (0.0, 0.0))])
    assert utils.box_ious(boxes, torch.tensor([FULL_BOX] * 4)).tolist() == [0] * 4


def test_outputs_hang_neither_on_the_batch_size_nor_on_the_others_in_the_batch(splits):
    torch.manual_seed(0)
    network, train = models.SimpleNet2().train(), splits["det"].train  # with batch norm
    normal = utils.Normalizer.fit(train.images)
    found = utils.infer(network, train.images, normal, batch_size=7)
    assert not network.training
    with torch.no_grad():
        alone = torch.cat([network(normal(image[None])) for image in train.images])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert utils.evaluate(network, train, normal) == pytest.approx(utils.score(alone, train.labels), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "box", "class_id", "score"),
    [
        # Cell (1, 2) begins at (40, 24) and is 20 x 24 pixels: centre (50, 30), size (16, 12).
        (det_outputs({(1, 2): (LN3, 0.5, 0.25, 0.8, 0.5, math.log(4))}), (42, 24, 58, 36), 1, 3 / 4 * 4 / 5),
        (det_outputs({(0, 1): (LN3, 0.5, 0.5, 1.0, 1.0, -math.log(4))}), (20, 0, 40, 24), 0, 3 / 4 * 4 / 5),
        # Class 7 with 9 / (9 + 9).
        (loc_row(LN3, (0.5, 0.5, 0.2, 0.5), c7=math.log(9))[None], (24, 12, 36, 36), 7, 3 / 4 * 1 / 2),
        (loc_row(LN3, (0.0, 1.0, 0.5, 0.5), c0=99.0)[None], (0, 36, 15, 48), 0, 3 / 4),  # cut to the image
        (loc_row(LN3, (0.5, 0.5, 3.0, -1.0), c0=99.0)[None], (0, 24, 60, 24), 0, 3 / 4),  # no height, nothing swapped
    ],
    ids=["class 1", "class 0", "loc", "cut", "negative"],
)
def test_decode_by_hand(outputs, box, class_id, score):
    (found,) = utils.decode(outputs)
    assert found["boxes"].tolist() == [pytest.approx(box, abs=1e-4)]
    assert found["labels"].tolist() == [class_id]
    assert found["scores"].tolist() == pytest.approx([score], abs=1e-6)


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 1])
@both_tasks
def test_decode_keeps_what_reaches_the_threshold_best_first(task, threshold):
    outputs, _ = random_case(task, seed=9)
    outputs[0, 0] = 100.0  # sigmoid is 1 to the last bit
    for found, numbers in zip(utils.decode(outputs, threshold), outputs, strict=True):
        expected = []
        for cell in numbers.reshape(-1, numbers[0].numel()).T:
            probabilities = cell[5:].softmax(0) if task == "loc" else torch.stack((-cell[5], cell[5])).sigmoid()
            if cell[0].sigmoid() >= threshold:
                score, class_id = probabilities.max(0)
                expected.append(((cell[0].sigmoid() * score).item(), class_id.item()))
        expected.sort(reverse=True)
        assert found["scores"].tolist() == pytest.approx([score for score, _ in expected])
        assert found["labels"].tolist() == [class_id for _, class_id in expected]
        assert found["boxes"].shape == (len(expected), 4)


@pytest.mark.parametrize("name", ["threshold", "nms_iou"])
def test_decode_refuses_what_it_cannot_take(name):
    for value in (-0.01, 1.01, math.nan):
        with pytest.raises(ValueError, match=rf"{name}: expected a number in \[0, 1\]"):
            utils.decode(torch.zeros(1, 15), **{name: value})
    with pytest.raises(ValueError, match="finite"):
        utils.decode(torch.full((1, 15), math.nan))
    with pytest.raises(ValueError, match=r"\(2, 14\)"):
        utils.decode(torch.zeros(2, 14))


def test_suppression_by_hand():
    """Digits 0 and 1 that straddle cells. Cell (0, 0) begins at (0, 0), cell (0, 1) at (20, 0), each is 20 x 24."""
    cells = {
        (0, 0): (2.0, 0.9, 0.5, 0.8, 0.5, 9.0),  # class 1, (10, 6, 26, 18), the surest
        (0, 1): (1.0, 0.0, 0.5, 0.8, 0.5, 9.0),  # class 1, (12, 6, 28, 18): IoU 14 / 18 with the first
        (0, 2): (0.5, -1.0, 0.5, 0.8, 0.5, -9.0),  # class 0, (12, 6, 28, 18)
    }
    outputs = det_outputs(cells, {(0, 2): cells[(0, 2)]})
    # Another class and another image are left alone; 14 / 18 is 0.778.
    for nms_iou, expected in ((None, [10, 12, 12]), (0.3, [10, 12]), (0.77, [10, 12]), (0.79, [10, 12, 12])):
        lefts = [found["boxes"][:, 0].round().tolist() for found in utils.decode(outputs, nms_iou=nms_iou)]
        assert lefts == [expected, [12]]


def test_true_boxes_by_hand():
    empty, single = utils.true_boxes(torch.tensor([EMPTY, (1, 0.5, 0.5, 0.2, 0.5, 7)]))
    assert (empty["boxes"].shape, single["labels"].tolist()) == ((0, 4), [7])
    assert single["boxes"].tolist() == [pytest.approx((24, 12, 36, 36), abs=1e-4)]
    (found,) = utils.true_boxes(det_labels({(1, 2): (1, 0.5, 0.25, 0.8, 0.5, 1), (0, 0): (1, 0, 0.5, 0.4, 1, 0)}))
    assert found["boxes"].tolist() == [pytest.approx(box, abs=1e-4) for box in ((-4, 0, 4, 24), (42, 24, 58, 36))]
    assert found["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(("x", "whole"), [(0.5, True), (0.505, False)])  # of 60 pixels, or of a cell's 20
def test_whole_pixels_are_recognized(x, whole):
    assert utils.on_whole_pixels(torch.tensor([EMPTY, (1, x, 0.5, 0.2, 0.5, 7)])) == whole
    assert utils.on_whole_pixels(det_labels({(1, 2): (1, x, 0.25, 0.8, 0.5, 1)})) == whole


def map_of(outputs, labels):
    return list(utils.mean_average_precision(outputs, labels).scores.values())[:3]


@both_tasks
def test_map_is_1_for_perfect_predictions_and_0_without_any_and_without_digits(splits, task):
    labels = splits[task].train.labels
    outputs = perfect_outputs(labels)
    assert map_of(outputs, labels) == pytest.approx([1, 1, 1], abs=1e-5)
    outputs[:, 0] = -20
    assert map_of(outputs, labels) == [0, 0, 0]
    assert map_of(perfect_outputs(labels), torch.zeros_like(labels)) == [0, 0, 0]  # torchmetrics says -1


@pytest.mark.parametrize(
    ("confidence", "height", "expected"),
    [
        # Precision is 1 up to recall 1/2 and then 0; of COCO's 101 recalls 0, 0.01, ... 1, 51 are at most 1/2.
        ((20.0, -20.0, -20.0), 0.4, (51 / 101, 51 / 101, 51 / 101)),
        ((20.0, -1.0, -20.0), 0.4, (1, 1, 1)),  # accuracy counts a sigmoid of 0.27 as missed
        ((20.0, 20.0, -20.0), 0.256, (3 / 10, 1, 0)),  # IoU 0.64: the first three of .50, .55 ... .95
        ((1.0, 1.5, 2.0), 0.4, (2 / 3, 2 / 3, 2 / 3)),  # precision 0/1, 1/2, 2/3, so 2/3 at every recall
        ((3.0, 3.5, 2.0), 0.4, (1, 1, 1)),  # the false positive comes after all has been found
    ],
    ids=["a miss", "unsure", "nearly right", "a surer false positive", "a less sure one"],
)
def test_map_of_two_digits_and_an_empty_image_by_hand(confidence, height, expected):
    outputs = torch.stack([loc_row(pc, (0.5, 0.5, 0.2, height), c3=40.0) for pc in confidence])
    labels = torch.tensor([(1, *FULL_BOX, 3), (1, *FULL_BOX, 3), EMPTY])
    assert map_of(outputs, labels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("snapped", [True, False])  # IoUs of whole-pixel boxes lie on thresholds
@both_tasks
def test_map_is_the_same_for_images_side_by_side_as_one_by_one(splits, task, snapped, monkeypatch):
    labels = splits[task].train.labels[:40]
    outputs = perfect_outputs(labels)
    rng = torch.Generator().manual_seed(1)
    outputs[:, 0] += torch.randn(outputs[:, 0].shape, generator=rng) * 20
    outputs[:, 1:5] += torch.randn(outputs[:, 1:5].shape, generator=rng) * 0.03
    outputs = boxes.PostProcess.finish(outputs) if snapped else outputs
    joined = utils.mean_average_precision(outputs, labels)
    monkeypatch.setattr(utils, "JOINED", 1)
    assert utils.mean_average_precision(outputs, labels).scores == joined.scores
    assert 0.1 < joined.scores["map"] < 0.9


def test_map_is_the_mean_over_the_classes_that_occur():
    labels = torch.tensor([[1, *FULL_BOX, 3], [1, *FULL_BOX, 5]])
    outputs = perfect_outputs(labels)
    outputs[1, 5 + 7] = 100.0  # class 5 is taken for 7
    scores, precision = utils.mean_average_precision(outputs, labels)
    assert scores == pytest.approx({"map": 0.5, "map50": 0.5, "map75": 0.5, "map_class3": 1, "map_class5": 0})
    assert precision.shape == (10, 101, 10)
    assert (precision[..., 5] == 0).all()
    assert precision.isnan().all((0, 1)).nonzero().flatten().tolist() == [0, 1, 2, 4, 6, 7, 8, 9]


def test_the_reference_s_own_measure():
    """Three batches of 64: in the first one digit of two is found, with an IoU of 1/3, and rightly named; in the second
    one is missed, which counts as right, and one is found where none is; in the third nothing is found."""
    labels = torch.tensor(data.labels.NO_DIGIT).repeat(192, 1)
    labels[[0, 1, 64]] = torch.tensor([1, 0.5, 0.5, 0.4, 0.4, 3])
    outputs = torch.zeros(192, 15)
    outputs[:, 0] = -1.0
    outputs[:, 1:5] = torch.tensor([0.7, 0.5, 0.4, 0.4])
    outputs[:, 5 + 3] = 1.0
    outputs[[0, 65], 0] = 1.0
    assert reference_mean(outputs, labels) == pytest.approx((191 / 192 + 1 / 3) / 2)
    outputs[66, 0], labels[66] = 1.0, torch.tensor([1, 0.7, 0.5, 0.4, 0.4, 4])  # found, with another name
    assert reference_mean(outputs, labels) == pytest.approx((190 / 192 + (1 / 3 + 1) / 2) / 2)
    assert reference_mean(torch.full((2, 15), -1.0), labels[:2]) == 0.5  # finite


def test_in_detection_the_reference_reads_every_class_as_0():
    labels = det_labels({(0, 1): (1, 0.5, 0.5, 0.4, 0.4, 0), (1, 2): (1, 0.5, 0.5, 0.4, 0.4, 1)})
    assert reference_mean(perfect_outputs(labels), labels) == pytest.approx((5 / 6 + 1) / 2)


def test_the_reference_s_curves_are_as_long_as_its_training():
    for network in (*models.REFERENCE_LOCALIZERS, *models.REFERENCE_DETECTORS):
        curves = published_curves(network.__name__)
        assert {name: len(values) for name, values in curves.items()} == dict.fromkeys(curves, 60)
    assert max(published_curves("SkreNet2")["val_mean"]) == pytest.approx(0.8304, abs=1e-4)
