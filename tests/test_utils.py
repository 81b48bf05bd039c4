"""Normalization, loss, metric, decoding and mAP, against arithmetic done by hand."""

import itertools
import math
from functools import partial

import pytest
import torch
from cases import both_tasks, det_labels, det_outputs, digits, loc_row
from torchmetrics.detection import MeanAveragePrecision

import models
import utils
from data.labels import NO_DIGIT
from training import Settings, analysis
from training.loop import forward_and_loss

LN2, LN3, LN4, LN9 = map(math.log, (2, 3, 4, 9))
FULL_BOX, HALF_BOX = (0.5, 0.5, 0.2, 0.4), (0.5, 0.5, 0.2, 0.2)  # IoU 1/2: 1/2 in common of 1 in all
SHIFTED_BOX = (0.6, 0.5, 0.2, 0.4)  # by half its width: 1/2 in common of 3/2 in all, IoU 1/3
WEIGHTS = {"l1_weight": 2, "giou_weight": 3, "box_weight": 4, "class_weight": 5, "label_smoothing": 0.1}


@pytest.mark.parametrize("kind", ["bytes", "floats", "one pixel off"])
def test_normalize_takes_mean_and_deviation_of_the_images_that_it_is_fit_to(kind):
    images = torch.randint(256, (5000, 1, 3, 4), dtype=torch.uint8)  # more than are summed at a time
    images[4096:] //= 2
    if kind == "one pixel off":
        images[:], images[4999, 0, 1, 2] = 77, 78
    pixels, images = images.double() / 255, images / 255 if kind == "floats" else images
    normalize, std = utils.Normalize.fit(images), pixels.std(correction=0)
    expected = {"mean": pixels.mean(), "std": std}  # part of the state, so that a file of weights holds them
    torch.testing.assert_close(dict(normalize.state_dict()), expected, rtol=1e-6, atol=0, check_dtype=False)
    torch.testing.assert_close(normalize(images).double() * std + pixels.mean(), pixels, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"^images: expected pixels that differ .*, found [\d.]+ everywhere$"):
        utils.Normalize.fit(images[:1, :, :1, :1])


@both_tasks
def test_loss_and_metric_by_hand(task):
    """Six images (cells), the first three with a digit, of the classes 1, 1 and 0."""
    predicted = [(LN3, FULL_BOX, 1), (LN3, SHIFTED_BOX, 0), (-LN3, HALF_BOX, 0)]  # right; wrong class; missed
    predicted += [(0.0, FULL_BOX, 1), (-LN3, FULL_BOX, 0), (LN3, FULL_BOX, 1)]  # two right, and a false positive
    named = {"loc": ([LN9] + [0.0] * 9, [0.0, LN9] + [0.0] * 8), "det": ([-LN3], [LN3])}[task]
    outputs = torch.tensor([(pc, *box, *named[class_id]) for pc, box, class_id in predicted])
    labels = torch.tensor([*((1, *FULL_BOX, class_id) for class_id in (1, 1, 0)), *[NO_DIGIT] * 3])
    if task == "det":
        outputs, labels = outputs.T.reshape(1, 6, 2, 3), labels.reshape(1, 2, 3, 6)
    pc = (3 * (LN4 - LN3) + 2 * LN4 + LN2) / 6  # -ln 3/4, -ln 1/4, -ln 1/2
    box = (0 + 0.1**2 / 4 + 0.2**2 / 4) / 3
    classes, likely, unlikely = (10, LN2, LN2 + LN9) if task == "loc" else (2, LN4 - LN3, LN4)  # 1/2, 1/18; 3/4, 1/4
    for box_weight, class_weight, smoothing in ((1, 1, 0.0), (2, 3, 0.2)):
        share = smoothing / classes  # that each class gets
        right = likely + (classes - 1) * share * (unlikely - likely)
        wrong = unlikely + share * (likely - unlikely)
        terms = [pc, box_weight * box, class_weight * (2 * right + wrong) / 3]
        loss = utils.combined_loss(outputs, labels, utils.squared_error, box_weight, class_weight, smoothing)
        assert torch.stack(loss).tolist() == pytest.approx([sum(terms), *terms], abs=1e-6)
    matches, names = utils.match(outputs, labels), ("accuracy", "iou", "mean", "digit_accuracy", "iou_all")
    scores, nothing = utils.score(outputs, labels), utils.score(outputs - 5, labels)
    assert [scores[name] for name in names] == pytest.approx([3 / 6, 2 / 3, (3 / 6 + 2 / 3) / 2, 1 / 3, 4 / 9])
    assert [nothing[name] for name in names] == [3 / 6, 0, 3 / 12, 0, 0]
    flags = [matches.digit.tolist(), matches.detected.tolist(), matches.correct.tolist()]
    assert flags == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1], [1, 0, 0, 1, 1, 0]]
    assert (matches.class_id.tolist(), matches.true_class_id.tolist()) == ([1, 0, 0, 1, 0, 1], [1, 1, 0, -1, -1, -1])
    assert matches.iou.tolist() == pytest.approx([1, 1 / 3, 1 / 2, 0, 0, 0], abs=1e-6)
    boxes = torch.tensor([(0.5, 0.5, *size) for size in ((-0.2, 0.4), (0.2, -0.4), (-0.2, -0.4), (0.0, 0.0))])
    assert utils.box_ious(boxes, torch.tensor([FULL_BOX] * 3 + [(0.5, 0.5, 0.0, 0.0)])).tolist() == [0] * 4


@both_tasks
def test_l1_and_giou_by_hand(task):
    """Two boxes apart, union 0.32, enclosing rectangle 0.9 x 0.5; in units of a cell of 1/3 x 1/2 they are the same."""
    case = loc_row(0.0, (0.8, 0.5, 0.4, 0.4))[None], torch.tensor([[1, 0.3, 0.6, 0.4, 0.4, 3]])
    if task == "det":
        case = det_outputs({(0, 2): (0.0, 0.4, 1, 1.2, 0.8, 0)}), det_labels({(0, 2): (1.0, -1.1, 1.2, 1.2, 0.8, 1)})
    l1, giou = 0.5 + 0.1, 0 - (0.45 - 0.32) / 0.45
    other = partial(utils.l1_giou, l1_weight=2, giou_weight=3)
    for loss, expected in ((utils.l1_giou, 5 * l1 + 1 - giou), (other, 2 * l1 + 3 * (1 - giou))):
        assert utils.combined_loss(*case, loss).box.item() == pytest.approx(expected, abs=1e-5)


@both_tasks
def test_edges_cost_the_logarithm_of_the_probability_of_the_true_ones(task):
    """One digit, its edges at 12, 30, 6 and 20; where there is none, edges cost nothing."""
    labels, cell, grid = torch.tensor([(1, 21 / 60, 13 / 48, 18 / 60, 14 / 48, 1), NO_DIGIT]), (0, 0, 0), (1, 1)
    outputs, settings = torch.ones(2, 15), Settings(**WEIGHTS, box_loss="giou", edge_weight=6)
    if task == "det":
        labels, cell, grid = det_labels({(0, 1): (1, 1 / 20, 13 / 24, 18 / 20, 14 / 24, 1)}, {}), (0, 0, 1), (2, 3)
        outputs = torch.ones(2, 6, 2, 3)
    edges = [torch.full((2, *grid, size), 1e-3) for size in (60, 60, 48, 48)]
    for chances, pixel, given in zip(edges, (12, 30, 6, 20), (0.5, 0.25, 1.0, 0.0)):
        chances[cell][pixel] = given
    expected = (LN2 + LN4 + 0 - math.log(utils.LEAST_PROBABILITY)) / 4
    assert utils.edge_loss(edges, labels).item() == pytest.approx(expected, rel=1e-4)
    # Training adds it to the other losses, all with the settings' weights.
    loss = forward_and_loss(lambda _: models.TrainOutputs(outputs, edges), torch.zeros(0), labels, settings)[1]
    others = utils.combined_loss(outputs, labels, partial(utils.l1_giou, l1_weight=2, giou_weight=3), 4, 5, 0.1)
    extra = torch.tensor([6 * expected, 0, 6 * expected, 0])
    torch.testing.assert_close(torch.stack(loss), torch.stack(others) + extra)


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e9])
@both_tasks
def test_without_a_digit_only_pc_is_read_and_learnt_and_the_device_never_waited_for(task, filler):
    labels = digits(task).train.labels[:20]
    outputs, digit = torch.randn(20, 15) if task == "loc" else torch.randn(20, 6, 2, 3), labels[..., 0] == 1
    other, terms = torch.where(digit[..., None] | (torch.arange(6) == 0), labels, filler), []
    for box_loss, given in itertools.product((utils.l1_giou, utils.squared_error), (labels, other, labels * 0)):
        loss = utils.combined_loss(outputs.requires_grad_(), given, box_loss)
        terms.append((*loss, *torch.autograd.grad(loss.total, outputs)))
    torch.testing.assert_close(terms[0::3], terms[1::3], rtol=0, atol=0)
    assert not any(nothing[number] for nothing in terms[2::3] for number in (2, 3))
    assert not terms[1][-1].movedim(1, -1)[~digit][:, 1:].any()
    scores, expected = utils.score(outputs.detach(), other), torch.stack(terms[3][:4]).tolist()
    assert [scores[f"loss{name}"] for name in ("", "_pc", "_box", "_class")] == pytest.approx(expected, rel=1e-5)
    # Tensors on the meta device have no values: whatever would wait for one fails, as indexing by a mask does.
    utils.combined_loss(outputs.detach().to("meta").requires_grad_(), labels.to("meta")).total.backward()


@pytest.mark.parametrize(("function", "shapes", "options", "message"), [
    (utils.combined_loss, ((4, 14), (4, 6)), {}, r"outputs: .*\(N, 15\) or \(N, 6, 2, 3\), found \(4, 14\)"),
    (utils.match, ((4, 6, 2, 3), (4, 6)), {}, r"\(4, 6, 2, 3\) and labels \(4, 6\) do not go together"),
    (lambda zeros: utils.decode(zeros.log() - zeros.log()), ((1, 15),), {}, "outputs: expected finite numbers"),
    (utils.decode, ((1, 15),), {"nms_iou": 1.01}, r"nms_iou: expected a number in \[0, 1\], found 1.01"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(function, shapes, options, message):
    with pytest.raises(ValueError, match=message):
        function(*map(torch.zeros, shapes), **options)


@pytest.mark.parametrize(("outputs", "box", "class_id", "score"), [
    # Cell (1, 2) begins at (40, 24) and is 20 x 24 pixels: centre (50, 30), size (16, 12).
    (det_outputs({(1, 2): (LN3, 0.5, 0.25, 0.8, 0.5, LN4)}), (42, 24, 58, 36), 1, 3 / 4 * 4 / 5),
    (loc_row(LN3, (0.5, 0.5, 0.2, 0.5), c7=LN9)[None], (24, 12, 36, 36), 7, 3 / 4 * 1 / 2),  # class 9/(9 + 9)
    (loc_row(LN3, (0.0, 1.0, 0.5, 0.5), c0=99.0)[None], (0, 36, 15, 48), 0, 3 / 4),  # cut to the image
    (loc_row(LN3, (0.5, 0.5, 3.0, -1.0), c0=99.0)[None], (0, 24, 60, 24), 0, 3 / 4),  # no height, nothing swapped
])  # fmt: skip
def test_decode_by_hand(outputs, box, class_id, score):
    digit = {name: values[0].tolist() for name, values in utils.decode(outputs)[0].items()}
    assert digit == {"boxes": pytest.approx(box, abs=1e-4), "labels": class_id, "scores": pytest.approx(score)}


def test_decode_keeps_what_is_above_the_threshold_best_first_and_of_overlapping_boxes_the_best():
    """Digits that straddle cells. Cell (0, 0) begins at (0, 0), cell (0, 1) at (20, 0), each is 20 x 24."""
    cells = {
        (0, 0): (0.5, 0.9, 0.5, 0.8, 0.5, 9.0),  # class 1, (10, 6, 26, 18)
        (0, 1): (40.0, 0.0, 0.5, 0.8, 0.5, 9.0),  # class 1, (12, 6, 28, 18): IoU 14 / 18 = 0.778 with the first
        (0, 2): (1.0, -0.95, 0.5, 0.8, 0.5, -9.0),  # class 0, (13, 6, 29, 18)
        (1, 0): (0.0, 0.6, 0.5, 0.8, 0.5, -9.0),  # class 0, (4, 30, 20, 42), and no more likely than not
    }
    outputs = det_outputs(cells, {(0, 2): cells[(0, 2)]})
    lefts = {(0.3, None): [12, 13, 10, 4], (0.5, None): [12, 13, 10], (0.7, None): [12, 13], (1.0, None): []}
    lefts |= {(0.5, 0.3): [12, 13], (0.5, 0.77): [12, 13], (0.5, 0.79): [12, 13, 10]}
    for options, expected in lefts.items():
        kept = [each["boxes"][:, 0].round().tolist() for each in utils.decode(outputs, *options)]
        assert kept == [expected, [13] if expected else []]  # another class and another image are left alone
    assert utils.match(outputs, det_labels({}, {})).detected.reshape(2, 6).sum(1).tolist() == [3, 1]  # as from 0.5 on


@pytest.mark.parametrize(("confidence", "height", "expected"), [
    ((20.0, -20.0, -20.0), 0.4, [51 / 101, 51 / 101, 51 / 101]),  # of COCO's recalls 0, 0.01 ... 1, 51 are <= 1/2
    ((20.0, -1.0, -20.0), 0.4, [1, 1, 1]),  # accuracy counts a sigmoid of 0.27 as missed
    ((20.0, 20.0, -20.0), 0.256, [3 / 10, 1, 0]),  # IoU 0.64: the first three of .50, .55 ... .95
    ((-20.0, -20.0, -20.0), 0.4, [0, 0, 0]),
])  # fmt: skip
def test_map_by_hand(confidence, height, expected):
    """Of two digits and an empty image; then of two classes, the second of which is taken for a third."""
    outputs = torch.stack([loc_row(pc, (0.5, 0.5, 0.2, height), c3=40.0) for pc in confidence])
    labels = torch.tensor([(1, *FULL_BOX, 3), (1, *FULL_BOX, 3), NO_DIGIT])
    scores = list(utils.mean_average_precision(outputs, labels).values())
    assert scores == pytest.approx([*expected, expected[0]], abs=1e-6)  # the last is the class's own
    labels[1, 5], outputs = 5, analysis.labels_as_outputs(labels)
    outputs[1, 5 + 7] = 100.0
    scores = utils.mean_average_precision(outputs, labels)
    assert scores == pytest.approx({"map": 0.5, "map50": 0.5, "map75": 0.5, "map_class3": 1, "map_class5": 0})
    assert {*utils.mean_average_precision(outputs, labels * 0).values()} == {0}  # torchmetrics says -1
    labels = det_labels({(1, 2): (1, 0.5, 0.5, 0.6, 1, 1)})
    scores = utils.mean_average_precision(analysis.labels_as_outputs(labels), labels)
    assert scores == pytest.approx({"map": 1, "map50": 1, "map75": 1, "map_class1": 1})


@both_tasks
def test_map_is_that_of_torchmetrics_given_one_image_at_a_time(task):
    """Of boxes on whole pixels, where many an IoU equals one of the thresholds."""
    labels, rng = digits(task).train.labels[:40], torch.Generator().manual_seed(1)
    outputs, plain = analysis.labels_as_outputs(labels), MeanAveragePrecision(class_metrics=True)
    without_digits = utils.mean_average_precision(outputs, torch.zeros_like(labels))
    assert {*without_digits.values()} == {0}  # of which torchmetrics says -1
    for channels, spread in ((slice(0, 1), 20), (slice(1, 5), 0.03)):
        outputs[:, channels] += torch.randn(outputs[:, channels].shape, generator=rng) * spread
    outputs = models.round_boxes(outputs)
    for one, truth in zip(outputs.split(1), labels.split(1)):
        plain.update(utils.decode(one, 0.01), utils.true_boxes(truth))
    summary = {name: value.tolist() for name, value in plain.compute().items()}
    expected = [*(summary[name] for name in ("map", "map_50", "map_75")), *summary["map_per_class"]]
    scores = list(utils.mean_average_precision(outputs, labels).values())
    assert scores == pytest.approx([value for value in expected if value >= 0], abs=1e-6)  # -1: a class without digits


def test_the_reference_s_metric_by_hand():
    """Batches of 64 images and of one, 390 cells. Class 1 is read as 0 but from ten channels, the argmax of five."""
    zero, one = (1, *FULL_BOX, 0), (1, *FULL_BOX, 1)
    labels = det_labels({(0, 1): zero}, {(0, 0): one}, *[{}] * 38, {(1, 2): one}, *[{}] * 23, {(0, 0): zero})
    outputs = analysis.labels_as_outputs(labels)
    outputs[1, 0, 0, 0], outputs[2, 0, 0, 0] = -1.0, 1.0  # missed, and a false positive
    outputs[64, 1, 0, 0] += 0.1  # IoU 1/3
    ten = torch.cat((outputs[:, :5], torch.zeros(65, 5, 2, 3)), 1)
    ten[40, 6, 1, 2] = ten[3, 9, 0, 0] = 1.0  # class 1; and class 4, where there is no digit
    for given, wrong in ((outputs, (2, 3, 3)), (ten, (1, 2, 3))):
        expected = [((390 - count) / 390 + (1 + 1 / 3) / 2) / 2 for count in wrong]
        names = ["reference_mean", "reference_mean_strict", "reference_mean_empty"]
        assert utils.reference_means(given, labels) == pytest.approx(dict(zip(names, expected)), abs=1e-6)
    missed = utils.reference_means(loc_row(-1.0, FULL_BOX, c3=1.0)[None], torch.tensor([(1, *FULL_BOX, 3)]))
    assert missed == {"reference_mean": 0.5, "reference_mean_strict": 0, "reference_mean_empty": 0}
