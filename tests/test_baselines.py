"""Answers without learning: bright patches, always the same, and the oracle's."""

from dataclasses import replace

import pytest
import torch

import utils
from data import Split, labels
from training import baselines
from training.baselines import BrightPatches

PATCHES = BrightPatches(threshold=250, least=10, grow=0, class_id=7)
both_tasks = pytest.mark.parametrize("task", ["loc", "det"])


def black(task):
    return Split(torch.zeros(1, 1, 48, 60), torch.tensor(labels.NO_DIGIT).repeat(1, *labels.GRID[task], 1))


@pytest.mark.parametrize("grow", [0, 1])
def test_the_largest_bright_patch_is_the_digit(grow):
    split = black("loc")
    split.images[0, 0, 10:20, 20:36] = split.images[0, 0, 30:34, 50:55] = 1.0
    split.images[0, 0, :5, :50] = 0.9  # larger, but not bright enough
    found = replace(PATCHES, grow=grow).outputs(split)[0]
    assert (found[0] > 0, found[5:].argmax()) == (True, 7)
    assert found[1:5].tolist() == pytest.approx([27.5 / 60, 14.5 / 48, (15 + 2 * grow) / 60, (9 + 2 * grow) / 48])


def test_in_detection_a_ring_is_a_0_a_bar_a_1_and_a_speck_nothing():
    split = black("det")
    image = split.images[0, 0]
    image[5:15, 5:15] = image[30:44, 48:51] = image[4:7, 30:33] = 1.0
    image[8:12, 8:12] = 0.0
    found = PATCHES.outputs(split)[0]
    assert (found[0] > 0).nonzero().tolist() == [[0, 0], [1, 2]]
    assert (found[5, 0, 0] < 0, found[5, 1, 2] > 0) == (True, True)
    assert found[1:5, 0, 0].tolist() == pytest.approx([9.5 / 20, 9.5 / 24, 9 / 20, 9 / 24])


def test_the_trivial_answer_is_the_commonest_class_in_the_mean_box():
    rows = torch.tensor([(1, 0.2, 0.3, 0.1, 0.2, 3), (1, 0.4, 0.5, 0.3, 0.4, 3), (1, 0.6, 0.7, 0.2, 0.3, 5)])
    train = Split(torch.zeros(4, 1, 48, 60), torch.cat((rows, torch.tensor([labels.NO_DIGIT]))))
    found = baselines.trivial_outputs(train, train[:2])
    assert (found[:, 0] > 0).all()
    assert found[0, 1:5].tolist() == pytest.approx([0.4, 0.5, 0.2, 0.3])
    assert found[:, 5:].argmax(1).tolist() == [3, 3]


@both_tasks
def test_answers_have_a_network_s_layout_and_those_to_all_visible_ink_are_right(task, sets):
    splits = sets[task][0]
    bare = replace(splits.val, visible=splits.val.labels)
    answers = [baselines.trivial_outputs(splits.train, bare), BrightPatches.fit(splits.train).outputs(bare)]
    answers.append(baselines.visible_outputs(bare))
    assert {tuple(found.shape[1:]) for found in answers} == {(15,) if task == "loc" else (6, 2, 3)}
    means = [utils.score(found, bare.labels)["mean"] for found in answers]
    assert means == sorted(means)
    assert means[-1] == pytest.approx(1)
