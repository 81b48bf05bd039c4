"""Training: the same twice, continued as if never interrupted, and never mistaken for another run."""

import importlib.util
import itertools
import json
import math
import pickle
import random
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers import (
    CPU,
    SHORT,
    TINY,
    Tiny,
    Tiny2,
    assert_same_run,
    finished_run,
    fit,
    in_train_epoch,
    interrupt_at,
    never,
    start,
    wait_for,
)
from torch import nn

import data
import models
import training
import utils
from data.files import load_tensors
from data.labels import check_labels
from training import NonFiniteLoss, Settings

SCORES = ("loss", "loss_pc", "loss_box", "loss_class", "accuracy", "iou", "digit_accuracy", "iou_all", "mean")

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")


@pytest.fixture(scope="module")
def undisturbed(sets, tmp_path_factory):
    """A run of each task that nothing happened to."""
    return {task: fit(sets, tmp_path_factory.mktemp("undisturbed"), task) for task in TINY}


# ---------------------------------------------------------------------------------------------- the same twice


@pytest.mark.parametrize("task", ["loc", "det"])
def test_the_same_seed_gives_the_same_run(sets, undisturbed, tmp_path, task):
    torch.manual_seed(123)  # what was drawn before does not matter
    run = fit(sets, tmp_path, task)
    assert run.how == undisturbed[task].how == "trained"
    assert_same_run(run, undisturbed[task])


def test_another_seed_gives_another_run(sets, undisturbed, tmp_path):
    run = fit(sets, tmp_path, settings=replace(SHORT, seed=8))
    assert run.history["train_loss"] != undisturbed["loc"].history["train_loss"]


def test_training_draws_nothing_from_the_global_generator(sets, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(sets, tmp_path, settings=replace(SHORT, epochs=1))
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------- recipes

RECIPE = replace(training.OWN, epochs=4, batch_size=16, seed=7, averaging=0.9, zoom=0.1, noise=0.02)


@pytest.mark.parametrize("task", ["loc", "det"])
def test_the_new_recipe_is_continued_as_if_never_interrupted(sets, tmp_path, task):
    """Schedule, average, AdamW's moments and the shifts come back as well."""
    expected = fit(sets, tmp_path / "undisturbed", task, RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        in_train_epoch(patch, after=interrupt_at(3))
        with pytest.raises(KeyboardInterrupt):
            fit(sets, tmp_path, task, RECIPE)
    run = fit(sets, tmp_path, task, RECIPE)
    assert run.how == "continued after epoch 2"
    assert_same_run(run, expected)


def test_one_cycle_rises_and_falls_to_nothing(sets, tmp_path):
    settings = replace(RECIPE, epochs=10)
    rates = fit(sets, tmp_path, settings=settings).history["learning_rate"]
    assert rates.index(max(rates)) == 1  # after a fifth of the training
    assert max(rates) == pytest.approx(settings.learning_rate, rel=0.05)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < settings.learning_rate / 500


def test_the_averaged_weights_are_those_that_are_kept(sets, tmp_path):
    run = fit(sets, tmp_path, settings=replace(RECIPE, averaging=1.0))
    initial = training.build(Tiny, RECIPE, CPU).model.state_dict()
    last = load_tensors(run.folder / "last.pt")["model"]
    weight = next(name for name in initial if name.endswith("weight"))
    # Decay 1: the average stays what the first step made of the weights, while the model goes on.
    assert not torch.equal(run.best().state_dict()[weight], last[weight])
    assert torch.allclose(run.best().state_dict()[weight], initial[weight], atol=1e-3)


def test_shifted_pictures_come_with_their_labels(sets):
    splits, normal = sets["loc"]
    train = splits.train
    settings = replace(RECIPE, learning_rate=0.0, averaging=0.0, zoom=0.0, noise=0.0)
    trainee = training.build(Tiny, settings, CPU)
    outputs, targets = training.train_epoch(
        trainee, train.pictures, train.labels, normal, "loc", settings, 1, lambda step: None
    )
    assert not torch.equal(targets, train.labels)
    assert torch.equal(targets[:, [0, 3, 4, 5]], train.labels[:, [0, 3, 4, 5]])
    assert not torch.allclose(outputs, utils.predict(trainee.model.train(), train.pictures, normal), atol=1e-4)


def seen_in(epoch, sets, **recipe):
    """The pictures of an epoch, as a network gets them, in the pictures' own order; and the labels."""
    splits, normal = sets["det"]
    train, settings = splits.train, replace(SHORT, learning_rate=0.0, **recipe)

    class Telling(Tiny2):
        def forward(self, pictures):
            shown.append(pictures.detach())
            return super().forward(pictures)

    shown = []
    trainee = training.build(Telling, settings, CPU)
    _, targets = training.train_epoch(
        trainee, train.pictures, train.labels, normal, "det", settings, epoch, lambda step: None
    )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed * 100_003 + epoch))
    pictures = torch.empty_like(torch.cat(shown))
    pictures[order] = torch.cat(shown)
    return pictures, targets


def test_zoomed_pictures_come_with_their_labels(sets):
    splits, _ = sets["det"]
    _, targets = seen_in(1, sets, zoom=0.3)
    assert not torch.equal(targets, splits.train.labels)
    check_labels(targets, "det", "zoomed")
    assert utils.on_whole_pixels(targets, "det")
    assert not torch.equal(targets, seen_in(2, sets, zoom=0.3)[1])
    assert torch.equal(targets, seen_in(1, sets, zoom=0.3)[1])


def test_noise_is_fresh_in_every_epoch_and_as_strong_as_told(sets):
    _, normal = sets["det"]
    quiet, _ = seen_in(1, sets)
    first, targets = seen_in(1, sets, noise=0.1)
    second, _ = seen_in(2, sets, noise=0.1)
    for noise in ((first - quiet) * normal.std, (second - quiet) * normal.std):
        assert noise.mean().item() == pytest.approx(0, abs=2e-3)
        assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert (first - second).std() > 0.1 / normal.std
    assert torch.equal(targets, sets["det"][0].train.labels)
    assert torch.equal(first, seen_in(1, sets, noise=0.1)[0])


def test_other_recipes_are_other_runs(sets, tmp_path):
    settings = replace(SHORT, epochs=1)
    folders = {fit(sets, tmp_path, settings=settings).folder}
    changes = (
        {"optimizer": "adamw"},
        {"weight_decay": 0.1},
        {"one_cycle": True},
        {"bounded_boxes": True},
        {"box_loss": "giou"},
        {"whole_pixels": True},
        {"own_cell": True},
        {"shift": 2},
        {"zoom": 0.1},
        {"noise": 0.1},
        {"averaging": 0.5},
    )
    for change in changes:
        run = fit(sets, tmp_path, settings=replace(settings, **change))
        assert run.how == "trained"
        folders.add(run.folder)
    assert len(folders) == 1 + len(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adam"}, "optimizer: expected one of sgd, adamw, found 'adam'"),
        ({"box_loss": "iou"}, "box_loss: expected one of mse, giou, found 'iou'"),
        ({"epochs": 0}, "epochs: expected a number at least 1, found 0"),
        ({"batch_size": 0}, "batch_size: expected a number at least 1, found 0"),
        ({"shift": 25}, r"shift: expected a number in \[0, 24\], found 25"),
        ({"zoom": 0.6}, r"zoom: expected a number in \[0, 0.5\], found 0.6"),
        ({"noise": -1}, r"noise: expected a number in \[0, 1\], found -1"),
        ({"averaging": -0.1}, r"averaging: expected a number in \[0, 1\], found -0.1"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **change)


class Fixed(nn.Module):
    """A network that always gives the same outputs."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, pictures):
        return self.outputs.expand(len(pictures), *self.outputs.shape[1:])


def finished(outputs, training_mode=False, **what):
    options = {"bounded": False, "whole_pixels": False, "own_cell": False, **what}
    network = training.FinishedBoxes(Fixed(outputs), **options).train(training_mode)
    return network(torch.zeros(2, 1, 48, 60))[0]


def test_edges_are_rounded_to_whole_pixels_in_evaluation_only():
    outputs = torch.zeros(1, 15)
    outputs[0, 1:5] = torch.tensor([30.2 / 60, 20.1 / 48, 10.9 / 60, 15.9 / 48])  # edges 24.75, 35.65; 12.15, 28.05
    found = finished(outputs, whole_pixels=True)
    assert found[1:5].tolist() == pytest.approx([30.5 / 60, 20 / 48, 11 / 60, 16 / 48])
    assert torch.equal(finished(outputs, True, whole_pixels=True), outputs[0])
    cells = torch.zeros(1, 6, 2, 3)
    cells[0, 1:5, 1, 2] = torch.tensor([10.2 / 20, 20.1 / 24, 10.9 / 20, 15.9 / 24])  # 4.75, 15.65; 12.15, 28.05
    found = finished(cells, whole_pixels=True)
    assert found[1:5, 1, 2].tolist() == pytest.approx([10.5 / 20, 20 / 24, 11 / 20, 16 / 24])


def test_a_cell_leaves_a_centre_outside_it_to_its_neighbour():
    cells = torch.zeros(1, 6, 2, 3)
    cells[0, 0] = 2.0
    cells[0, 1:3] = 0.5
    cells[0, 1, 0, 0] = 1.0  # on the right border, which belongs to the neighbour
    cells[0, 2, 0, 1] = 0.0  # on the upper border: its own
    cells[0, 2, 0, 2] = -0.1
    cells[0, 0, 1, 0], cells[0, 1, 1, 0] = -3.0, 1.5  # nothing there anyway
    found = finished(cells, own_cell=True)[0]
    assert found.tolist() == [[-2, 2, -2], [-3, 2, 2]]
    assert torch.equal(finished(cells, True, own_cell=True), cells[0])


def test_bounded_boxes_are_no_larger_than_the_picture():
    for outputs, largest in ((torch.full((1, 15), 50.0), (1, 1, 1, 1)), (torch.full((1, 6, 2, 3), 50.0), (1, 1, 3, 2))):
        found = finished(outputs, bounded=True)
        assert found[1:5].reshape(4, -1)[:, 0].tolist() == pytest.approx(largest)
        found = finished(-outputs, bounded=True)
        assert found[1:5].abs().max() < 1e-6
        assert torch.equal(found[5:], -outputs[0, 5:])


def test_networks_with_positive_boxes_get_no_second_bound():
    assert isinstance(training.assemble(models.SkreNet, training.OWN), training.FinishedBoxes)
    assert training.assemble(models.SkreNet, training.OWN).bounded
    assert not training.assemble(models.CompactNet, training.OWN).bounded
    assert isinstance(training.assemble(models.CompactNet, SHORT), models.CompactNet)


@pytest.mark.parametrize("task", ["loc", "det"])
def test_the_ablation_goes_from_the_reference_to_our_recipe(task):
    networks = models.LOCALIZERS if task == "loc" else models.DETECTORS
    profile = training.PROFILES["full"]
    trials = training.plan_ablation(networks[0], networks[-1], task, profile)
    epochs = profile.study.epochs
    assert (trials[0].network, trials[0].settings) == (networks[0], replace(training.REFERENCE, epochs=epochs))
    kept = [trial for trial in trials if not trial.name.startswith("tried")]
    assert kept[-1].network is networks[-1]
    differing = {"own_cell"} if task == "loc" else set()
    ours, theirs = asdict(kept[-1].settings), asdict(replace(profile.own, epochs=epochs))
    assert {name for name in ours if ours[name] != theirs[name]} == differing
    assert trials[: len(kept)] == kept
    for trial, changed in zip(trials[len(kept) :], ("zoom", "noise", "averaging"), strict=True):
        tried = asdict(trial.settings)
        assert {name for name in tried if tried[name] != ours[name]} == {changed}
    assert all(len(trial.seeds) >= 2 for trial in trials[-5:])
    for before, after in itertools.pairwise(trials):
        assert (before.network, before.settings) != (after.network, after.settings)


def test_recipes_are_tried_out_on_a_part_of_the_pictures(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    splits, normal = sets["loc"]
    study = training.Study(32, 1, (1, 2))
    profile = replace(training.PROFILES["smoke"], study=study, caps={"Tiny": 24})
    found = training.compare_recipes((Tiny, models.SimpleNet), splits, normal, "loc", profile)
    rows = found["ablation"]
    assert [row["network"] for row in rows] == ["Tiny"] * 4 + ["SimpleNet"] * 6
    assert [row["pictures"] for row in rows] == [24] * 4 + [32] * 6
    assert [len(row["seeds"]) for row in rows] == [1] * 4 + [2] * 6
    assert all(set(scores) == set(SCORES) for row in rows for scores in row["seeds"])
    pairs = [("Tiny", "reference"), ("Tiny", "new"), ("SimpleNet", "reference"), ("SimpleNet", "new")]
    assert [(row["network"], row["name"]) for row in found["comparison"]] == pairs
    text = utils.study_tables(found, None)
    assert "SimpleNet for Tiny" in text
    assert f"{rows[0]['seeds'][0]['mean']:.4f}" in text
    assert training.compare_recipes((Tiny,), splits, normal, "loc", replace(profile, study=None)) is None
    assert "none is published" in utils.study_tables(None, None)
    assert "published run" in utils.study_tables(None, found)


# ---------------------------------------------------------------------------------------------- what is published


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder of its own, where published files may be written."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_published_runs_are_what_was_saved(sets, elsewhere):
    run = fit(sets, elsewhere / "runs")
    splits, normal = sets["loc"]
    training.save_histories([run], training.PUBLISHED_HISTORIES["loc"])
    training.save_weights(run, splits, normal, training.PUBLISHED_WEIGHTS["loc"])
    found = training.load_published(Tiny, "loc")
    assert found.how == "published"
    assert (found.history, found.pictures, found.settings) == (run.history, run.pictures, run.settings)
    weights, expected = found.best(CPU).state_dict(), run.best(CPU).state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    with pytest.raises(data.DataError, match=r"localization\.pkl: holds no history of Tiny2"):
        training.load_published(Tiny2, "loc")
    with pytest.raises(data.DataError, match=r"localization\.pt: expected weights of Tiny2, found those of Tiny"):
        training.load_weights(Tiny2(), "Tiny2", training.PUBLISHED_WEIGHTS["loc"])


def test_the_published_profile_trains_nothing(sets, elsewhere, monkeypatch, capsys):
    run = fit(sets, elsewhere / "runs")
    splits, normal = sets["loc"]
    training.save_histories([run], training.PUBLISHED_HISTORIES["loc"])
    results = {"reference": {"test": {"mean": 0.25}}, "study": {"ablation": []}, "selected": "Tiny"}
    utils.save_results(elsewhere / "figures", "loc", results)
    in_train_epoch(monkeypatch, before=never)
    profile = training.PROFILES["published"]
    found = training.fit_all([Tiny], splits, normal, "loc", profile, SHORT)
    assert "Tiny: published, 72 pictures" in capsys.readouterr().out
    assert training.compare_recipes([Tiny], splits, normal, "loc", profile) == results["study"]
    other = replace(found[0], history=run.history)
    assert training.score_baseline(other, found[0], {"mean": 1.0}, splits, normal, profile) == {"mean": 0.25}
    assert training.score_baseline(found[0], found[0], {"mean": 1.0}, splits, normal, profile) == {"mean": 1.0}
    found = training.summarize(profile, splits, normal, found, found[0], {}, found[0], {}, None)
    assert found == results


# ---------------------------------------------------------------------------------------------- load and continue


def test_a_finished_run_is_loaded(sets, tmp_path, monkeypatch):
    first = fit(sets, tmp_path)
    in_train_epoch(monkeypatch, before=never)
    second = fit(sets, tmp_path)
    assert second.how == "loaded"
    assert second.folder == first.folder
    assert second.history == first.history  # "seconds" too
    assert_same_run(second, first)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("epoch", [1, 2, 4])
@pytest.mark.parametrize("task", ["loc", "det"])
def test_an_interrupted_run_is_continued(sets, undisturbed, tmp_path, task, epoch, when):
    """Interrupted before an epoch, or at its end, when the weights have changed but nothing is saved."""
    with pytest.MonkeyPatch.context() as patch:
        in_train_epoch(patch, **{when: interrupt_at(epoch)})
        with pytest.raises(KeyboardInterrupt):
            fit(sets, tmp_path, task)
    run = fit(sets, tmp_path, task)
    assert run.how == (f"continued after epoch {epoch - 1}" if epoch > 1 else "trained")
    assert_same_run(run, undisturbed[task])


def test_only_the_missing_epochs_are_trained(sets, tmp_path):
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        in_train_epoch(patch, before=interrupt_at(3))
        with pytest.raises(KeyboardInterrupt):
            fit(sets, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        in_train_epoch(patch, before=lambda epoch, model: trained.append(epoch))
        fit(sets, tmp_path)
    assert trained == [3, 4]


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    else:  # a bit in the middle of the weights, which leaves a file that can be read
        weights = next(iter(torch.load(path, weights_only=True)["model"].values()))
        content[content.index(weights.contiguous().numpy().tobytes()) + 2] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["last", "best"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_file_means_starting_anew(sets, undisturbed, tmp_path, capsys, how, file):
    first = fit(sets, tmp_path)
    path = first.folder / "last.pt" if file == "last" else training.best_file(first.folder, first.best_epoch)
    damage(path, how)
    if file == "last":
        damage(first.folder / "previous.pt", how)
    capsys.readouterr()
    run = fit(sets, tmp_path)
    said = capsys.readouterr().out
    assert run.how == "trained"
    assert "Tiny" in said
    assert "anew" in said
    assert path.name in said
    assert_same_run(run, undisturbed["loc"])


@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_damaged_history_is_written_again(sets, tmp_path, monkeypatch, how):
    first = fit(sets, tmp_path)
    path = first.folder / "history.pkl"
    path.unlink() if how == "missing" else damage(path, how)
    in_train_epoch(monkeypatch, before=never)
    assert fit(sets, tmp_path).how == "loaded"
    assert pickle.loads(path.read_bytes()) == first.history


# ---------------------------------------------------------------------------------------------- which run is which


@pytest.mark.parametrize(
    "change",
    [{"epochs": 2}, {"batch_size": 8}, {"learning_rate": 0.03}, {"momentum": 0.0}, {"seed": 8}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_another_run(sets, tmp_path, change):
    settings = replace(SHORT, epochs=1)
    first, other = fit(sets, tmp_path, settings=settings), fit(sets, tmp_path, settings=replace(settings, **change))
    assert other.how == "trained"
    assert other.folder != first.folder


@pytest.mark.parametrize("what", ["a pixel", "a label", "a validation pixel", "fewer pictures", "normalization"])
def test_other_data_is_another_run(sets, tmp_path, what):
    settings = replace(SHORT, epochs=1)
    first = fit(sets, tmp_path, settings=settings)
    splits, normal = sets["loc"]
    train = replace(splits.train, pictures=splits.train.pictures.clone(), labels=splits.train.labels.clone())
    val = replace(splits.val, pictures=splits.val.pictures.clone())
    if what == "a pixel":
        train.pictures[3, 0, 5, 5] ^= 1
    elif what == "a label":
        train.labels[(train.labels[:, 0] == 1).nonzero()[0], 1] += 1e-3
    elif what == "a validation pixel":
        val.pictures[3, 0, 5, 5] ^= 1
    elif what == "fewer pictures":
        train = train.head(len(train) - 1)
    else:
        normal = replace(normal, mean=normal.mean + 1e-3)
    other = training.fit(Tiny, replace(splits, train=train, val=val), normal, "loc", settings, tmp_path)
    assert other.how == "trained"
    assert other.folder != first.folder


def test_other_test_pictures_are_the_same_run(sets, tmp_path):
    """No number of a run depends on the test pictures."""
    settings = replace(SHORT, epochs=1)
    fit(sets, tmp_path, settings=settings)
    splits, normal = sets["loc"]
    other = replace(splits, test=splits.test.head(3))
    assert training.fit(Tiny, other, normal, "loc", settings, tmp_path).how == "loaded"


NETWORK = '''
from torch import nn

WIDTH = 180


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs)


class Base(nn.Module):
    """What networks have in common."""

    def forward(self, pictures):
        """Run the layers."""
        return self.layers(pictures)  # (N, 15)


class Network(Base):
    """A network."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), linear(WIDTH, 15))
'''


def network_of(source, folder):
    """The class Network of a module with this source. The file's name differs each time, for Python keeps sources."""
    path = folder / f"network_{len(list(folder.glob('network_*.py')))}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("changing_network", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["changing_network"] = module
    spec.loader.exec_module(module)
    return module.Network


@pytest.fixture
def code_for(tmp_path):
    """`code_of` the class Network, in a module whose source has been changed from `old` to `new`."""

    def code_for(old="", new=""):
        assert old in NETWORK
        return training.code_of(network_of(NETWORK.replace(old, new) if old else NETWORK, tmp_path))

    yield code_for
    sys.modules.pop("changing_network", None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nn.MaxPool2d(4)", "nn.AvgPool2d(4)"),
        ("return nn.Linear(inputs, outputs)", "return nn.Linear(inputs, outputs, bias=False)"),
        ("return self.layers(pictures)", "return self.layers(pictures) * 2"),
        ("WIDTH = 180", "WIDTH = 180.0"),
    ],
    ids=["class", "function it calls", "base class", "constant"],
)
def test_other_code_is_told_apart(code_for, old, new):
    assert code_for(old, new) != code_for()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# (N, 15)", "# fifteen numbers for each picture"),
        ("  # (N, 15)", ""),
        ('"""A network."""', '"""A network, said\n    in more words."""'),
        ('"""Run the layers."""', '"""Run all layers."""'),
        ("\n\n\nclass Base", "\n\nclass Base"),
        ('        """Run the layers."""\n', ""),
        ("        super().__init__()", '        """Build the layers."""\n        super().__init__()'),
    ],
    ids=[
        "comment changed",
        "comment removed",
        "class docstring changed",
        "method docstring changed",
        "blank line removed",
        "docstring removed",
        "docstring added",
    ],
)
def test_other_words_are_the_same_code(code_for, old, new):
    assert code_for(old, new) == code_for()


def test_other_code_of_the_same_network_is_another_run(sets, tmp_path):
    settings = replace(SHORT, epochs=1)
    runs = []
    for layer in ("nn.MaxPool2d(4)", "nn.AvgPool2d(4)", "nn.MaxPool2d(4)"):
        network = network_of(NETWORK.replace("nn.MaxPool2d(4)", layer), tmp_path)
        runs.append(fit(sets, tmp_path / "runs", settings=settings, network=network))
    sys.modules.pop("changing_network")
    assert [run.how for run in runs] == ["trained", "trained", "loaded"]
    assert runs[0].folder != runs[1].folder
    assert runs[0].name == runs[1].name


def test_another_network_is_another_run(sets, tmp_path):
    settings = replace(SHORT, epochs=1)
    first = fit(sets, tmp_path, settings=settings, network=models.SimpleNet)
    second = fit(sets, tmp_path, settings=settings)
    assert second.how == "trained"
    assert second.folder != first.folder
    assert {first.folder.name.rsplit("-", 1)[0], second.folder.name.rsplit("-", 1)[0]} == {"loc-SimpleNet", "loc-Tiny"}


def test_the_folder_says_what_the_run_is(undisturbed):
    described = json.loads((undisturbed["det"].folder / "run.json").read_text())
    assert (described["network"], described["task"]) == ("Tiny2", "det")
    assert described["settings"] == asdict(SHORT)


# ---------------------------------------------------------------------------------------------- what a run holds


@pytest.mark.parametrize("task", ["loc", "det"])
def test_the_history_is_a_plain_pickle(undisturbed, task):
    run = undisturbed[task]
    history = pickle.loads((run.folder / "history.pkl").read_bytes())
    assert history == run.history
    columns = {f"{part}_{name}" for part in ("train", "val") for name in SCORES} | {"learning_rate", "seconds"}
    assert set(history) == columns
    assert type(history) is dict
    for values in history.values():
        assert type(values) is list
        assert len(values) == SHORT.epochs
        assert all(type(value) is float and math.isfinite(value) for value in values)


def test_the_best_epoch_is_the_first_with_the_highest_validation_mean(undisturbed):
    history = {"val_mean": [0.1, 0.4, 0.3, 0.4], "train_mean": [0.9, 0.1, 0.2, 0.3], "seconds": [1.0] * 4}
    assert training.best_epoch(history) == 2
    run = replace(undisturbed["loc"], history=history)
    assert run.best_epoch == 2
    assert run.val == {"mean": 0.4}
    assert run.train == {"mean": 0.1}


@pytest.mark.parametrize("task", ["loc", "det"])
def test_the_best_weights_give_the_scores_of_the_best_epoch(sets, undisturbed, task):
    splits, normal = sets[task]
    run = undisturbed[task]
    network = run.best()
    assert not network.training
    assert utils.evaluate(network, splits.val, normal, task) == pytest.approx(run.val, abs=1e-5)


def test_the_weights_of_the_best_epoch_are_kept(sets, tmp_path, monkeypatch):
    """Every epoch but the second ends with a network that finds nothing; the second with one that finds a digit of
    average place and size everywhere, which is not much, and better."""
    splits, normal = sets["loc"]
    labels = splits.train.labels
    average_box = labels[labels[:, 0] == 1, 1:5].mean(0)

    def set_weights(epoch, model):
        last = model.layers[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias[0] = 1 if epoch == 2 else -1
            last.bias[1:5] = average_box

    in_train_epoch(monkeypatch, after=set_weights)
    run = fit(sets, tmp_path)
    assert run.best_epoch == 2
    assert run.val["mean"] == max(run.history["val_mean"]) > run.history["val_mean"][-1]
    assert run.val["iou"] > 0.05
    assert utils.evaluate(run.best(), splits.val, normal, "loc") == pytest.approx(run.val, abs=1e-5)
    assert run.best().layers[-1].bias[0].item() == 1
    assert load_tensors(run.folder / "last.pt")["model"]["layers.2.bias"][0].item() == -1
    assert [path.name for path in run.folder.glob("best-*.pt")] == ["best-002.pt"]


def numbered(count):
    """Pictures that carry their number in every pixel, and labels without digits."""
    pictures = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 48, 60).contiguous()
    return pictures, torch.tensor([[0.0, -1, -1, -1, -1, 1]]).repeat(count, 1)


def order_of(seed, epoch, count=50):
    """The order in which an epoch goes through numbered pictures."""
    seen = []

    class Watching(Tiny):
        def forward(self, pictures):
            seen.extend((pictures[:, 0, 0, 0] * 255).round().int().tolist())
            return super().forward(pictures)

    settings = replace(SHORT, seed=seed, learning_rate=0.0)
    trainee = training.build(Watching, settings, CPU)
    same = utils.Normalizer(0.0, 1.0)
    training.train_epoch(trainee, *numbered(count), same, "loc", settings, epoch, lambda step: None)
    return seen


def test_pictures_are_shuffled_anew_in_every_epoch():
    orders = [order_of(seed, epoch) for seed, epoch in ((1, 1), (1, 2), (1, 3), (2, 1))]
    assert all(sorted(order) == list(range(50)) for order in orders)  # each once
    assert list(range(50)) not in orders
    assert len(set(map(tuple, orders))) == 4
    assert order_of(1, 2) == orders[1]


def test_training_outputs_are_returned_in_the_pictures_order(sets):
    splits, normal = sets["loc"]
    settings = replace(SHORT, learning_rate=0.0)
    trainee = training.build(Tiny, settings, CPU)
    train, steps = splits.train, []
    outputs, targets = training.train_epoch(
        trainee, train.pictures, train.labels, normal, "loc", settings, 1, steps.append
    )
    assert targets is train.labels
    assert steps == [1, 2, 3, 4, 5]  # 72 pictures by 16
    torch.testing.assert_close(outputs, utils.predict(trainee.model, train.pictures, normal), rtol=1e-5, atol=1e-6)


def test_training_scores_are_those_of_the_training_pictures(sets, tmp_path):
    splits, normal = sets["loc"]
    run = fit(sets, tmp_path, settings=replace(SHORT, learning_rate=0.0, epochs=1))
    assert run.train == pytest.approx(utils.evaluate(run.best(), splits.train, normal, "loc"), abs=1e-5)


def test_a_small_set_can_be_overfitted(tmp_path):
    splits = data.load("loc", "digits", sizes=(256, 8, 8), folder=tmp_path)
    normal = utils.Normalizer.fit(splits.train.pictures)
    settings = Settings(epochs=12, batch_size=16, learning_rate=0.01, momentum=0.9)
    run = training.fit(models.SimpleNet, splits, normal, "loc", settings, tmp_path)
    losses = run.history["train_loss"]
    assert losses[-1] < losses[0] / 3
    assert run.history["train_accuracy"][0] < 0.3
    assert run.history["train_accuracy"][-1] > 0.9


@pytest.mark.parametrize("task", ["loc", "det"])
def test_one_batch_can_be_learnt_by_heart(sets, task):
    splits, normal = sets[task]
    network = models.SimpleNet if task == "loc" else models.SimpleNet2
    batch = splits.train.head(8)
    losses = training.overfit(network, batch.pictures, batch.labels, normal, task, Settings(), CPU, steps=30)
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2


# ---------------------------------------------------------------------------------------------- non-finite losses


def fail_at(step, value):
    """A fault that sets all of the outputs to `value` in the given training step, counted from 1 over all epochs."""
    steps = iter(range(1, 1_000_000))

    def fault(network, outputs):
        return outputs * value if next(steps) == step else outputs

    return fault


def test_a_network_that_breaks_stops_the_run_and_can_be_repaired(sets, undisturbed, tmp_path):
    """72 pictures by 16 are 5 steps an epoch, so step 13 is the third of epoch 3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tiny, "fault", fail_at(13, math.nan))
        with pytest.raises(NonFiniteLoss) as stopped:
            fit(sets, tmp_path)
    message = str(stopped.value)
    assert "Tiny" in message
    assert "epoch 3" in message
    assert "step 3" in message
    assert all(f"{term} nan" in message for term in ("total", "pc", "box", "category"))
    run = fit(sets, tmp_path)
    assert run.how == "continued after epoch 2"
    assert_same_run(run, undisturbed["loc"])


def test_an_infinite_label_stops_the_run(sets, tmp_path):
    """Such labels do not pass `data.load`'s checks, but splits can be made without it."""
    splits, normal = sets["loc"]
    labels = splits.train.labels.clone()
    labels[(labels[:, 0] == 1).nonzero()[5, 0], 2] = math.inf
    broken = replace(splits, train=replace(splits.train, labels=labels))
    settings = replace(SHORT, batch_size=len(labels))  # so it is in step 1
    with pytest.raises(NonFiniteLoss) as stopped:
        training.fit(Tiny, broken, normal, "loc", settings, tmp_path)
    message = str(stopped.value)
    assert "Tiny, epoch 1, step 1:" in message
    assert "box inf" in message
    assert "pc inf" not in message
    assert "pc nan" not in message
    assert not list(tmp_path.rglob("last.pt"))


def test_weights_that_became_infinite_are_never_saved(sets, tmp_path):
    """One step an epoch, and a huge one: epoch 1's training loss is still finite, its weights are not. What is saved
    would be broken for ever, and with the last epoch broken the run would end as if nothing had happened."""
    settings = replace(SHORT, epochs=1, batch_size=1000, learning_rate=1e38)
    with pytest.raises(NonFiniteLoss):
        fit(sets, tmp_path, settings=settings)
    assert not list(tmp_path.rglob("last.pt"))


# ---------------------------------------------------------------------------------------------- profiles and folders


@pytest.mark.parametrize("name", ["full", "quick", "smoke"])
def test_the_environment_names_the_profile(monkeypatch, name):
    monkeypatch.setenv("PROFILE", name)
    assert training.choose_profile().name == name


@pytest.mark.parametrize(("gpu", "name"), [(True, "full"), (False, "quick")])
@pytest.mark.parametrize("environment", [None, ""])
def test_the_profile_follows_from_the_device(monkeypatch, environment, gpu, name):
    monkeypatch.delenv("PROFILE", raising=False)
    if environment is not None:
        monkeypatch.setenv("PROFILE", environment)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert training.choose_profile().name == name


def test_unknown_profiles_are_refused(monkeypatch):
    monkeypatch.setenv("PROFILE", "fast")
    with pytest.raises(ValueError, match=r"PROFILE.*quick.*'fast'"):
        training.choose_profile()


def test_the_full_profile_is_the_recipe_of_the_reference():
    full = training.PROFILES["full"]
    assert full.settings == Settings(epochs=60, batch_size=64, learning_rate=0.05, momentum=0.0, seed=42)
    assert full.sizes == {"loc": (59_400, 6_600, 11_000), "det": (26_874, 2_967, 4_981)}


def test_the_environment_names_the_runs_folder(sets, tmp_path, monkeypatch):
    monkeypatch.delenv("RUNS_DIR", raising=False)
    assert training.runs_folder() == Path("runs")
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "elsewhere"))
    assert training.runs_folder() == tmp_path / "elsewhere"
    run = fit(sets, None, settings=replace(SHORT, epochs=1))
    assert run.folder.parent == tmp_path / "elsewhere"
    assert (run.folder / "last.pt").is_file()


# ---------------------------------------------------------------------------------------------- killed


def test_killed_at_random_moments_a_run_ends_as_if_undisturbed(processes, killing_ground, tmp_path):
    """Ten times SIGKILL, each at a random moment within the first two epochs after the restart. Counted from the
    last whole epoch, so that a slow machine gets as far as a fast one."""
    stored, expected = killing_ground
    moments, seconds = random.Random(1), min(expected.history["seconds"])
    reached = []
    for _ in range(10):
        process, pipe = start(processes, stored, tmp_path)
        messages = wait_for("started", pipe)
        if moments.random() < 0.5:
            messages.append(pipe.recv())
        process.join(moments.random() * 1.2 * seconds)  # an epoch's "seconds" do not hold the saving
        assert process.is_alive(), "the run was finished before it had been killed ten times"
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        reached.append(messages[-1])
    epochs = [epoch for epoch in reached if epoch != "started"]
    assert epochs == sorted(epochs)  # no epoch that was done is done again
    assert len(set(epochs)) >= 3
    process, pipe = start(processes, stored, tmp_path)
    assert wait_for("finished", pipe)[-1] == "finished"
    process.join(60)
    assert_same_run(finished_run(stored, tmp_path), expected)


def test_killed_while_saving_a_run_ends_as_if_undisturbed(processes, killing_ground, tmp_path):
    """Killed before and after each of the first files that a process puts in place: the rewritten history, the best
    weights, the history and the full state of one epoch and some of the next."""
    stored, expected = killing_ground
    for number in range(1, 6):
        for after in (False, True):
            process, _ = start(processes, stored, tmp_path, (number, after))
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
            if not after:
                assert list(tmp_path.rglob(".*.tmp"))  # left behind, and must not matter
    process, pipe = start(processes, stored, tmp_path)
    assert wait_for("finished", pipe)[-1] == "finished"
    process.join(60)
    assert_same_run(finished_run(stored, tmp_path), expected)
