"""Training: the same twice, continued as if never interrupted, and never mistaken for another run."""

import ast
import inspect
import itertools
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import CodeType, SimpleNamespace

import pytest
import torch
from helpers import CPU, NEVER, RICH, SHORT, Tiny, Tiny2, assert_same_run, call_in, fit, interrupted

import data
import models
import training
import utils
from data import DataError, augment, files, labels
from training import Hooks, NonFiniteLoss, Settings, boxes, keys, loop, plots, results, runs, weights
from training.progress import Progress

pytestmark = pytest.mark.usefixtures("one_core")
RECIPES = [("loc", SHORT), ("det", SHORT), ("loc", RICH), ("det", RICH)]


@pytest.fixture(scope="module")
def undisturbed(sets, tmp_path_factory):
    """A run of each task and recipe that nothing happened to."""
    return {key: fit(sets, tmp_path_factory.mktemp("undisturbed"), *key) for key in RECIPES}


@pytest.mark.parametrize(("epoch", "step"), [(1, 3), (2, 1), (4, 2)])
@pytest.mark.parametrize(("task", "recipe"), RECIPES)
def test_runs_are_continued_and_loaded(sets, undisturbed, tmp_path, task, recipe, epoch, step):
    torch.manual_seed(123)  # what was drawn before does not matter, and nothing is drawn from there
    expected = torch.rand(3)
    torch.manual_seed(123)
    interrupted(sets, tmp_path, epoch, task, recipe, step)
    trained = []
    run = fit(sets, tmp_path, task, recipe, hooks=Hooks(on_epoch=lambda state: trained.append(state.epoch)))
    assert torch.equal(torch.rand(3), expected)
    assert trained == list(range(epoch, recipe.epochs + 1))
    assert run.status == (f"continued after epoch {epoch - 1}" if epoch > 1 else "trained")
    assert_same_run(run, undisturbed[task, recipe])
    loaded = fit(sets, tmp_path, task, recipe, hooks=NEVER)
    assert (loaded.status, loaded.history) == ("loaded", run.history)  # "seconds" too
    assert_same_run(loaded, run)


def order_of(seed, epoch):
    """The order in which an epoch goes through images that carry their number in every pixel and in their labels."""
    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 48, 60)
    numbered = data.Split(images, torch.arange(50.0)[:, None].repeat(1, 6))
    batches = list(loop.draw_batches(numbered, replace(SHORT, seed=seed), epoch))
    assert [len(images) for images, _ in batches] == [16, 16, 16, 2]
    order = torch.cat([found for _, found in batches])[:, 5]
    assert torch.equal(torch.cat([images for images, _ in batches])[:, 0, 0, 0], order)
    return order.int().tolist()


def test_weights_and_the_order_of_every_epoch_follow_from_the_seed():
    orders = [order_of(seed, epoch) for seed, epoch in ((1, 1), (1, 2), (1, 3), (2, 1))]
    assert all(sorted(order) == list(range(50)) for order in orders)  # each once
    assert len({tuple(range(50)), *map(tuple, orders)}) == 5
    assert order_of(1, 2) == orders[1]
    weights = [loop.build(Tiny, replace(SHORT, seed=seed), CPU).model.layers[2].weight for seed in (7, 8)]
    assert not torch.equal(*weights)


def test_unshuffled_images_come_as_they_are_stored(sets):
    train = sets["loc"][0].train
    for epoch in (1, 2):
        batches = list(loop.draw_batches(train, replace(SHORT, shuffle=False), epoch))
        assert torch.equal(torch.cat([images for images, _ in batches]), train.images)


@pytest.mark.parametrize("interrupted_in", [None, 6])
def test_more_epochs_go_on_where_fewer_have_ended(sets, tmp_path, interrupted_in):
    """Where the learning rate is constant; a run whose weights were dropped is of no use for that."""
    whole = fit(sets, tmp_path / "whole", settings=replace(SHORT, epochs=7))
    for epochs in (2, 4):
        fit(sets, tmp_path / "parts", settings=replace(SHORT, epochs=epochs))
    if interrupted_in:
        interrupted(sets, tmp_path / "parts", interrupted_in, settings=replace(SHORT, epochs=7))
    trained = []
    hooks = Hooks(on_epoch=lambda state: trained.append(state.epoch))
    run = fit(sets, tmp_path / "parts", settings=replace(SHORT, epochs=7), hooks=hooks)
    first = interrupted_in or 5
    assert (trained, run.status) == (list(range(first, 8)), f"continued after epoch {first - 1}")
    assert_same_run(run, whole)
    assert fit(sets, tmp_path / "parts", settings=SHORT, hooks=NEVER).status == "loaded"

    weights.drop_weights(fit(sets, tmp_path / "dropped").weights)
    assert fit(sets, tmp_path / "dropped", settings=replace(SHORT, epochs=5)).status == "trained"
    fit(sets, tmp_path / "cycle", settings=RICH)
    assert fit(sets, tmp_path / "cycle", settings=replace(RICH, epochs=5)).status == "trained"


def test_one_cycle_rises_and_falls_to_nothing(undisturbed):
    rates = undisturbed["loc", RICH].history["learning_rate"]
    assert rates == sorted(rates, reverse=True)  # the rise is over within the first epoch of four
    assert 0.9 * RICH.learning_rate < rates[0] < RICH.learning_rate
    assert rates[-1] < RICH.learning_rate / 50


def test_weights_decay_and_biases_do_not():
    state = loop.build(models.SimpleNet2, RICH, CPU)
    decay = {p.ndim > 1: group["weight_decay"] for group in state.optimizer.param_groups for p in group["params"]}
    assert decay == {True: RICH.weight_decay, False: 0.0}


def test_training_images_are_shifted_anew_in_every_epoch(sets):
    train = sets["loc"][0].train
    drawn = [torch.cat([found for _, found in loop.draw_batches(train, RICH, epoch)]) for epoch in (1, 1, 2)]
    assert torch.equal(*drawn[:2])
    places = [{tuple(row) for row in found[:, 1:3].tolist()} for found in (train.labels, *drawn[1:])]
    assert places[0] != places[1] != places[2]


def test_networks_are_assembled_as_the_settings_say():
    net = loop.assemble(models.SkreNet, RICH)
    assert isinstance(net, boxes.PostProcess)
    assert isinstance(net.network, boxes.BoundedBoxes)
    assert isinstance(loop.assemble(models.CompactNet, RICH).network, models.CompactNet)  # needs no second bound
    assert isinstance(loop.assemble(models.SkreNet, SHORT), models.SkreNet)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", "adam"),
        ("box_loss", "iou"),
        ("epochs", 0),
        ("batch_size", 0),
        ("max_shift", 25),
        ("max_stretch", 1.5),
        ("warm_up", 0.0),
    ],
)
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, found {value!r}$"):
        replace(SHORT, **{name: value})


# ---------------------------------------------------------------------------------------------- the loop


def test_progress_says_how_long_it_will_take(monkeypatch):
    said, progress = [], Progress("Net", replace(SHORT, epochs=3), 99)
    progress.display, progress.began = SimpleNamespace(update=said.append), 100.0
    for seconds, left in ((49.9, "1:40 left"), (29.9, "1:00 left")):  # for one epoch, with two to go
        monkeypatch.setattr(time, "perf_counter", lambda now=100 + seconds: now)
        progress._show(SimpleNamespace(epoch=1, history={}), 0)
        assert repr(said[-1]).endswith(left)


def test_hooks_are_called_in_order_with_the_state(sets):
    state, called = loop.build(Tiny, SHORT, CPU), []
    hooks = Hooks(
        lambda found, step: called.append((found is state, state.epoch, f"step {step}")),
        lambda found: called.append((found is state, len(state.history["val_mean"]), "done")),
    )
    assert loop.train(state, *sets["loc"], replace(SHORT, epochs=2), hooks) is state.history
    steps = [(True, done, f"step {step}") for done in (0, 1) for step in range(1, 6)]  # 72 images by 16
    assert called == [*steps[:5], (True, 1, "done"), *steps[5:], (True, 2, "done")]


def test_training_scores_are_those_of_the_training_images(sets, tmp_path):
    splits, normal = sets["loc"]
    run = fit(sets, tmp_path, settings=replace(SHORT, learning_rate=0.0, epochs=1))
    assert run.train == pytest.approx(utils.evaluate(run.load(CPU), splits.train, normal), abs=1e-5)


def test_weights_of_the_first_best_epoch_are_kept():
    state = loop.build(Tiny, SHORT, CPU)
    for epoch, mean in enumerate((0.1, 0.4, 0.3, 0.4), 1):
        state.model.layers[2].bias.data.fill_(epoch)
        state.record({"val_mean": mean, "seconds": 1.0})
    assert loop.best_epoch(state.history) == 2
    assert state.best_weights["layers.2.bias"].tolist() == [2.0] * 15


@pytest.mark.parametrize(("task", "recipe"), RECIPES)
def test_loaded_weights_give_the_scores_of_the_best_epoch(sets, undisturbed, task, recipe):
    splits, normal = sets[task]
    run = undisturbed[task, recipe]
    assert run.val["mean"] == max(run.history["val_mean"])
    network = run.load(CPU)
    assert not network.training
    assert utils.evaluate(network, splits.val, normal) == pytest.approx(run.val, abs=1e-5)


@pytest.mark.parametrize("network", [models.SimpleNet, models.SimpleNet2])
def test_one_batch_can_be_learnt_by_heart(sets, network):
    splits, normal = sets["loc" if network is models.SimpleNet else "det"]
    losses = loop.overfit(network, splits.train[:8], normal, Settings(), steps=30)
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2


def spoil(epoch):
    """Hooks that make a network's weights NaN in an epoch."""
    return call_in(epoch, 2, lambda state: state.model.layers[2].bias.data.fill_(math.nan))


def test_a_network_that_diverges_in_its_first_epoch_stops_the_run(sets, tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"^epoch 1, step 3: .*: total nan, pc nan, box nan, class_id nan$"):
        fit(sets, tmp_path, hooks=spoil(1))
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("every", [0.0, 30.0])  # seconds between checkpoints
def test_a_run_that_diverges_is_finished_with_the_epochs_before(sets, undisturbed, tmp_path, monkeypatch, every):
    monkeypatch.setattr(runs, "SAVED_EVERY", every)
    run, whole = fit(sets, tmp_path, hooks=spoil(3)), undisturbed["loc", SHORT]
    assert (run.status, run.diverged, whole.diverged) == ("trained", True, False)
    assert run.history["val_loss"] == whole.history["val_loss"][:2]
    assert all(torch.isfinite(weight).all() for weight in run.load().state_dict().values())
    loaded = fit(sets, tmp_path, hooks=NEVER)  # the same steps would lead there again
    assert (loaded.status, loaded.diverged, loaded.history) == ("loaded", True, run.history)
    assert [path.name for path in tmp_path.rglob("*.pt")] == ["checkpoint.pt"]
    longer = fit(sets, tmp_path, settings=replace(SHORT, epochs=SHORT.epochs + 1))
    assert (longer.status, longer.diverged) == ("trained", False)  # not from where the other had diverged


def test_weights_and_scores_that_are_not_finite_are_never_saved(sets, tmp_path, monkeypatch):
    """One huge step: the epoch's training loss is still finite, its weights are not. And an IoU of NaN would be the
    best for ever."""
    with pytest.raises(NonFiniteLoss, match="epoch 1: val_loss is"):
        fit(sets, tmp_path, settings=replace(SHORT, epochs=1, batch_size=1000, learning_rate=1e38))
    score = utils.score
    monkeypatch.setattr(utils, "score", lambda *pair: score(*pair) | {"iou": math.nan})
    with pytest.raises(NonFiniteLoss, match="epoch 1: train_iou is nan"):
        fit(sets, tmp_path)
    assert not list(tmp_path.rglob("*.pt"))


def test_one_checkpoint_each_half_minute_and_one_at_the_end(sets, tmp_path, monkeypatch):
    """Epochs of twelve seconds: after 36, after 72, and the last. A finished run keeps weights and history only."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    clock, saved, there = SimpleNamespace(now=0.0), [], []
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: clock.now))
    save = runs.save_checkpoint
    monkeypatch.setattr(runs, "save_checkpoint", lambda *parts: (saved.append(parts[1].epoch), save(*parts)))

    def on_step(state, step):
        clock.now += 12 * (step == 1)

    hooks = Hooks(on_step, lambda state: there.append({path.name for path in tmp_path.rglob("*.pt")}))
    run = training.fit(Tiny, *sets["loc"], replace(SHORT, epochs=7, one_cycle=True), hooks)
    assert saved == [3, 6, 7]
    assert there[2:] == [{"checkpoint.pt"}] * 3 + [{"checkpoint.pt", "previous.pt"}] + [{"checkpoint.pt"}]
    stored = files.load_tensors(run.weights)
    assert (stored["state"], stored["history"], stored["epoch"]) == (None, run.history, run.best_epoch)
    assert {path.name for path in run.weights.parent.iterdir()} <= {"checkpoint.pt", ".lock"}


# ---------------------------------------------------------------------------------------------- which run is which


def edit(monkeypatch, function, old, new):
    """Change a function's source in its module, for all who hold the function."""
    function = inspect.unwrap(function)
    source, part = inspect.getsource(sys.modules[function.__module__]), inspect.getsource(function)
    assert old in part
    waiting = [compile(source.replace(part, part.replace(old, new)), "edited.py", "exec")]
    while (code := waiting.pop()).co_qualname != function.__qualname__:
        waiting += [value for value in code.co_consts if isinstance(value, CodeType)]
    monkeypatch.setattr(function, "__code__", code)


def digest():
    return keys.code_digest(Tiny2, loop.build, loop.train, *keys.REACHED)


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        (Tiny2.forward, "self.layers(images)", "self.layers(images) * 2"),
        (labels.cells_to_image, "COLUMNS", "ROWS"),  # in data, used by augment, which training uses
        (utils.combined_loss, "square().mean(1)", "square().sum(1)"),
        (utils.infer, "network.eval()", "network.train()"),  # within a decorator
        (boxes.snap, ".round()", ".floor()"),
        (utils.Matches.right.fget, "& (", "| ("),
        (loop.draw_batches, "100_003", "100_004"),
        (utils.Normalizer.__call__, "div_(", "mul_("),  # used of arguments only, as are the next two
        (Settings.loss_weights.fget, "self.l1_weight, self.giou_weight", "self.giou_weight, self.l1_weight"),
        (data.Split.to, "labels=self.labels", "labels=self.images"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_changed_code_makes_another_run(monkeypatch, function, old, new):
    before = digest()
    edit(monkeypatch, function, old, new)
    assert digest() != before


def test_changed_constants_and_defaults_make_another_run(monkeypatch):
    found = [digest()]
    monkeypatch.setattr(utils, "LEAST_CHANCE", 2.0)
    found.append(digest())
    monkeypatch.setitem(labels.CLASSES, "det", 3)
    found.append(digest())
    monkeypatch.setattr(utils.combined_loss, "__defaults__", ("giou",))
    found.append(digest())
    monkeypatch.setattr(Tiny2, "bounded", True, raising=False)
    assert len({*found, digest()}) == 5


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        (utils.score, "# the one point at which the device is waited for", ""),
        (utils.score, "Loss and measure over a whole set", "All that is measured"),
        (augment.move, "crowded", "packed"),
        (utils.combined_loss, "digit", "there"),
        (utils.draw_boxes, "columns", "wide"),
        (plots.plot_history, "figure", "canvas"),
    ],
    ids=["comment", "docstring", "local variable", "variable of a comprehension", "plot", "another plot"],
)
def test_other_words_and_plots_are_the_same_run(monkeypatch, function, old, new):
    before = digest()
    edit(monkeypatch, function, old, new)
    assert digest() == before


def test_other_settings_data_and_versions_make_another_run(sets, monkeypatch):
    splits, normal = replace(sets["loc"][0], source="course"), sets["loc"][1]

    def folder(network=Tiny, splits=splits, normal=normal, settings=SHORT):
        return keys.run_folder(keys.describe_run(network, splits, normal, settings))

    def changed(part, name):
        tensor = getattr(getattr(splits, part), name).clone()
        tensor[3].view(-1)[2] += 1
        return replace(splits, **{part: replace(getattr(splits, part), **{name: tensor})})

    other = {"optimizer": "adamw", "box_loss": "giou", "precision": "bfloat16", "warm_up": 0.5}
    found = [folder(), folder(models.SimpleNet), folder(splits=replace(splits, train=splits.train[:-1]))]
    found += [folder(splits=changed(*part)) for part in itertools.product(("train", "val"), ("images", "labels"))]
    found += [folder(normal=replace(normal, **{name: 0.25})) for name in ("mean", "std")]
    recipes = [replace(SHORT, **{name: other.get(name) or value + 1}) for name, value in asdict(SHORT).items()]
    found += [folder(settings=recipe) for recipe in recipes]
    with monkeypatch.context() as patch:
        for module, name in ((torch, "__version__"), (utils, "LEAST_CHANCE")):
            patch.setattr(module, name, 3.0)
            found.append(folder())
    assert len(set(found)) == len(found)
    assert folder(splits=changed("test", "images")) == found[0]  # on which no number of a run depends
    assert folder(normal=replace(normal, mean=normal.mean + 1e-9)) == found[0]  # as another processor has it


def test_a_run_tells_where_it_was_trained(sets, tmp_path, monkeypatch):
    def at(device):
        monkeypatch.setattr(runs, "provenance", lambda: {"device": device, "torch": "3.0"})

    at("a CPU")
    interrupted(sets, tmp_path, 3)
    at("a GPU")
    both = {"device": "a CPU, then a GPU", "torch": "3.0"}
    assert fit(sets, tmp_path).trained_on == both
    at("a telephone")
    assert fit(sets, tmp_path).trained_on == both  # loaded


# ---------------------------------------------------------------------------------------------- labs, profiles, studies


def test_what_a_lab_has_saved_a_published_lab_reads(sets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNS_DIR", "kept")
    monkeypatch.setattr(data, "load", lambda task, sizes: sets[task][0])
    profile = replace(training.PROFILES["smoke"], submission=True, settings=SHORT, own=RICH)
    profile = replace(profile, caps={"Tiny": 24}, epochs={"CompactNet": 1})
    networks = [Tiny, models.CompactNet]
    for device in ("a CPU", "a telephone"):  # which loads what the CPU has trained
        monkeypatch.setattr(runs, "provenance", lambda device=device: {"device": device})
        lab = training.Lab("loc", profile)
        made = lab.train(networks)
    assert lab.normal == utils.Normalizer.fit(lab.splits.train.images)  # of no other images
    said = capsys.readouterr().out
    assert "Tiny: trained, 24 images, best epoch" in said
    assert "CompactNet: loaded, 72 images, best epoch 1 of 1" in said
    tests, fits = [lab.test(run) for run in reversed(made)], lab.score_fit(made)
    assert fits["Tiny"] == utils.evaluate(made[0].load(), sets["loc"][0].train[:24], lab.normal)
    saved = lab.save(made, tests, lab.test_baselines(), fits)
    assert [each["trained_on"] for each in saved["networks"].values()] == [{"device": "a CPU"}] * 2
    assert (saved["selected"], saved["test"], saved["others"]) == (
        "CompactNet",
        tests[0].scores,
        {"Tiny": tests[1].scores},
    )
    assert saved["unsnapped"]["iou"] != saved["test"]["iou"]
    assert saved == results.published_results("loc")

    monkeypatch.setenv("PROFILE", "published")
    monkeypatch.setattr(training.lab, "fit", lambda *about: pytest.fail("trained"))
    lab = training.open_lab("loc")
    found = lab.train(networks)
    assert "CompactNet: published, 72 images" in capsys.readouterr().out
    for run, before in zip(found, made, strict=True):
        assert (run.history, run.settings, run.trained_on) == (before.history, before.settings, {"device": "a CPU"})
    again = [lab.test(run) for run in reversed(found)]
    assert [each.scores for each in again] == [each.scores for each in tests]
    assert torch.equal(again[0].outputs, tests[0].outputs)
    assert lab.score_fit(found) == fits
    assert lab.save(found, again, {}, fits) == saved
    with pytest.raises(DataError, match="no weights of it were published"):
        found[0].load()
    with pytest.raises(DataError, match=r"localization\.pkl: holds no history of SimpleNet"):
        lab.train([models.SimpleNet])


@pytest.mark.parametrize(("gpu", "name"), [(True, "full"), (False, "quick")])
def test_the_profile_follows_from_the_environment_or_the_device(monkeypatch, gpu, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for environment, expected in (("smoke", "smoke"), ("published", "published"), ("", name)):
        monkeypatch.setenv("PROFILE", environment)
        assert training.choose_profile().name == expected
    monkeypatch.setenv("PROFILE", "fast")
    with pytest.raises(ValueError, match=r"PROFILE.*quick.*'fast'"):
        training.choose_profile()


def test_only_the_submission_goes_where_it_is_published(monkeypatch):
    full = training.PROFILES["full"]
    assert full.settings == Settings(epochs=60, batch_size=64, learning_rate=0.05, momentum=0.0, seed=42)
    monkeypatch.setenv("RUNS_DIR", "elsewhere")
    assert full.outcome_folder("figures") == Path("figures")
    assert training.PROFILES["quick"].outcome_folder("figures") == Path("elsewhere/quick/figures")


def test_saved_weights_are_all_that_using_them_takes(sets, undisturbed, tmp_path):
    normal, run = sets["det"][1], undisturbed["det", RICH]
    training.save_weights(run.weights, tmp_path / "weights.pt")
    found = training.load_weights(tmp_path / "weights.pt", Tiny2)
    assert (found.name, found.task, found.normal, found.source) == ("Tiny2", "det", normal, "digits")
    assert (found.epoch, found.validation) == (run.best_epoch, run.val)
    weights, expected = found.network.state_dict(), run.load(CPU).state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored["weights"], "expected what save_weights writes"),
        (lambda stored: stored | {"network": ["Tiny"]}, "expected Tiny, found"),
        (lambda stored: stored | {"task": {}}, "expected Tiny, found"),
        (lambda stored: stored | {"settings": {"zoom": 1}}, "does not fit Tiny"),
        (lambda stored: stored | {"weights": {}}, "does not fit Tiny"),
        (lambda stored: stored | {"weights": {name: w * math.nan for name, w in stored["weights"].items()}}, "NaN"),
        (lambda stored: stored | {"normalization": {"mean": 0.5, "std": 0.0}}, "no standard deviation"),
    ],
)
def test_weights_that_cannot_be_used_are_named(undisturbed, tmp_path, change, message):
    stored, path = files.load_tensors(undisturbed["loc", SHORT].weights), tmp_path / "weights.pt"
    files.save_tensors(path, change(stored))
    with pytest.raises(DataError, match=message) as stopped:
        training.load_weights(path, Tiny)
    assert str(stopped.value).startswith(f"{path}: ")
    assert "\n" not in str(stopped.value)


def test_outputs_of_the_first_validation_images_are_kept_after_every_epoch(sets, undisturbed):
    (splits, normal), run = sets["loc"], undisturbed["loc", SHORT]
    assert len(run.watched) == len(run.history["seconds"])
    found = utils.infer(run.load(CPU), splits.val.images, normal)[: loop.WATCHED]
    torch.testing.assert_close(torch.tensor(run.watched[run.best_epoch - 1]), found, rtol=1e-4, atol=1e-5)


def test_the_functions_of_the_loop_fit_on_a_screen():
    for node in ast.walk(ast.parse(inspect.getsource(loop))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name
            assert len(node.args.args) + len(node.args.kwonlyargs) <= 5, node.name
