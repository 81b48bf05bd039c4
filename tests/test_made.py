"""Full sets made from MNIST: as the course's are known to be, also to networks that have only ever seen those."""

from pathlib import Path

import pytest
import torch

import data
import models
import utils
from data import checks, labels, sources
from training import baselines
from training.reference import reference_mean

pytestmark = pytest.mark.skipif(
    not all(path.is_file() for path in sources.mnist_files(data.FOLDER)),
    reason="MNIST's raw files are not in data/MNIST/raw",
)
TASKS = ("loc", "det")
WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "reference_weights"
COURSE_NORMAL = {"loc": utils.Normalizer(0.4171, 0.2138), "det": utils.Normalizer(0.2989, 0.1967)}


@pytest.fixture(scope="module")
def made():
    return {task: data.load(task, "mnist", log=lambda text: None) for task in TASKS}


def drawn(split):
    """How often each of the source's digits is in a split."""
    return split.digits[split.digits >= 0].bincount(minlength=60_000)


@pytest.mark.parametrize("task", TASKS)
def test_the_training_set_is_like_the_course_s(task, made):
    for split in (made[task].train, made[task].val, made[task].test):
        labels.check_split(split.images, split.labels, task, "made")
    found = checks.compare(made[task])
    assert len(found) == len(checks.COURSE[task])
    assert not [check for check in found if not abs(check.ours - check.course) <= check.tolerance]


def test_digits_are_split_once_and_drawn_as_often_as_they_should(made):
    """Localization draws each once, detection's training set each zero and one three times, out of the same split."""
    (train, val), (more, few) = ([drawn(split) for split in (made[task].train, made[task].val)] for task in TASKS)
    assert (train + val == 1).all()
    assert train.sum() == 54_000
    assert torch.equal(more, 3 * train * (sources.load_mnist(data.FOLDER).train_classes < 2))
    assert (few <= 3 * val).all()


def test_the_box_around_visible_ink_is_as_near_the_true_one_as_it_should(made):
    test = made["loc"].test
    assert utils.score(baselines.visible_outputs(test), test.labels)["iou"] == pytest.approx(0.911, abs=0.004)


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the reference's weights are not there")
@pytest.mark.parametrize(
    ("task", "network", "file", "published", "said"),
    [
        ("det", models.SkreNet2, "SkreNet_2.pt", 0.8304, 0.829),
        ("det", models.SimpleNet2, "SimpleNet_2.pt", 0.7900, 0.794),
        ("loc", models.SimpleNet, "SimpleNet.pt", 0.5232, 0.522),
    ],
)
def test_the_reference_s_networks_score_what_they_scored_on_the_course_s_images(
    task, network, file, published, said, made
):
    """On validation and test images; and on validation images alone what the notebooks say."""
    built, stored = network(), torch.load(WEIGHTS / file, map_location="cpu", weights_only=True)
    state = dict(zip(built.state_dict(), stored.values(), strict=True))  # other names, the same order
    built.load_state_dict(state)  # which compares the shapes
    images, targets = (
        torch.cat([getattr(split, each) for split in (made[task].val, made[task].test)])
        for each in ("images", "labels")
    )
    outputs = utils.infer(built, images, COURSE_NORMAL[task])
    assert reference_mean(outputs, targets) == pytest.approx(published, abs=0.006)
    val = slice(len(made[task].val))
    assert reference_mean(outputs[val], targets[val]) == pytest.approx(said, abs=0.001)
