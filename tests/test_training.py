"""Training: the same twice, continued as if never interrupted, and never mistaken for another run."""

import itertools
import math
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import CPU, NEVER, RICH, SHORT, Tiny, Tiny2, call_in, fit, interrupted, same_run

import data
import models
import training
import utils
from data import DataError, augment, files
from training import Hooks, NonFiniteLoss, loop, results, runs

pytestmark = pytest.mark.usefixtures("one_core")
spoil = partial(call_in, step=2, function=lambda state: state.model[1][2].bias.data.fill_(math.nan))
RECIPES = [("loc", SHORT), ("det", SHORT), ("loc", RICH), ("det", RICH)]


@pytest.fixture(scope="module")
def undisturbed(sets, tmp_path_factory):
    """A run of each task and recipe that nothing happened to."""
    return {key: fit(sets, tmp_path_factory.mktemp("undisturbed"), *key) for key in RECIPES}


@pytest.mark.parametrize(("epoch", "step"), [(1, 3), (2, 1), (4, 2)])
@pytest.mark.parametrize(("task", "recipe"), RECIPES)
def test_runs_are_continued_and_loaded(sets, undisturbed, tmp_path, monkeypatch, task, recipe, epoch, step):
    torch.manual_seed(123)  # what was drawn before does not matter, and nothing is drawn from there
    expected, trained, devices = torch.rand(3), [], iter("AB")
    torch.manual_seed(123)
    monkeypatch.setattr(runs, "provenance", lambda precision: {"device": next(devices), "torch": "3.0"})
    interrupted(sets, tmp_path, epoch, task, recipe, step)
    run = fit(sets, tmp_path, task, recipe, hooks=Hooks(on_epoch=lambda state: trained.append(state.epoch)))
    loaded = fit(sets, tmp_path, task, recipe, hooks=NEVER)
    assert torch.equal(torch.rand(3), expected)
    assert trained == list(range(epoch, recipe.epochs + 1))
    assert run.status == (f"continued after epoch {epoch - 1}" if epoch > 1 else "trained")
    assert run.trained_on == {"device": "A, then B" if epoch > 1 else "B", "torch": "3.0"}
    assert (loaded.status, loaded.history, loaded.trained_on) == ("loaded", run.history, run.trained_on)
    for each in (run, loaded):
        same_run(each, undisturbed[task, recipe])


def test_a_longer_run_goes_on_from_the_shorter_one_that_got_furthest(sets, tmp_path):
    two, three, five, seven = (replace(SHORT, epochs=epochs) for epochs in (2, 3, 5, 7))
    interrupted(sets, tmp_path, 2, settings=five)
    for recipe in (two, three):
        fit(sets, tmp_path, settings=recipe)
    run = fit(sets, tmp_path, settings=seven)
    assert run.status == "continued after epoch 3"
    same_run(run, fit(sets, tmp_path / "whole", settings=seven))
    fixed = fit(sets, tmp_path, settings=replace(seven, learning_rate=0.0), n_train=24)
    assert fixed.status == "trained"  # there is no other of so many images, whose scores are the network's
    assert fixed.train == pytest.approx(utils.evaluate(fixed.load(CPU), sets["loc"].train[:24]), abs=1e-5)
    assert fixed.load(CPU)[0].mean == utils.Normalize.fit(sets["loc"].train.images).mean  # of all images
    # Weights that were dropped, and a learning rate that comes down to nothing earlier, are of no use for that.
    runs.drop_weights(fit(sets, tmp_path / "dropped").weights)
    assert fit(sets, tmp_path / "dropped", settings=five).status == "trained"
    interrupted(sets, tmp_path / "cycle", 3, settings=RICH)
    assert fit(sets, tmp_path / "cycle", settings=replace(RICH, epochs=5), precision="bfloat16").status == "trained"


def build(network=Tiny, recipe=SHORT, **options):
    return loop.build(network, recipe, utils.Normalize(), **options)


def test_weights_and_every_epochs_order_and_moves_follow_from_the_seed(sets):
    def drawn(epoch, seed=7, recipe=SHORT):
        batches = list(loop.draw_batches(sets["loc"].train, replace(recipe, seed=seed), epoch))
        assert [len(images) for images, _ in batches] == [16, 16, 16, 16, 8]
        return listed(*(torch.cat(parts) for parts in zip(*batches)))

    def listed(images, labels):
        return list(zip(images.flatten(1).sum(1).tolist(), labels.tolist()))

    stored = drawn(1, recipe=replace(SHORT, shuffle=False))
    assert stored == listed(sets["loc"].train.images, sets["loc"].train.labels)
    orders = [stored, drawn(1), drawn(2), drawn(1, seed=8)]
    assert all(sorted(each) == sorted(stored) for each in orders)  # each image once
    moves = [sorted(drawn(epoch, recipe=RICH)) for epoch in (1, 2)]
    for first, second in itertools.combinations((*orders, *moves), 2):
        assert first != second
    assert (drawn(2), sorted(drawn(2, recipe=RICH))) == (orders[2], moves[1])
    weights = [build(recipe=replace(SHORT, seed=seed)).model.state_dict()["1.2.weight"] for seed in (7, 8, 7)]
    assert [torch.equal(weights[0], each) for each in weights] == [True, False, True]


def test_networks_and_optimizers_are_what_the_settings_say(sets):
    for network, recipe, *last in ((models.SimpleNet, SHORT), (models.CompactNet, RICH),
                                   (models.SimpleNet, RICH, models.BoundedBoxes)):  # fmt: skip
        layers = [type(layer) for layer in build(network, recipe).model]
        assert layers == [utils.Normalize, network, *last]
    network = build(models.CompactNet2, replace(RICH, width=8, center_gate=False)).model[1]
    assert (network.head.in_channels, network.center_gate, network.round_edges) == (8, False, True)
    (group,) = build(recipe=replace(SHORT, weight_decay=0.25)).optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (SHORT.learning_rate, SHORT.momentum, 0.25)
    state = build(models.SimpleNet2, RICH)  # AdamW: biases and batch norm do not decay
    decay = {p.ndim > 1: group["weight_decay"] for group in state.optimizer.param_groups for p in group["params"]}
    assert decay == {True: RICH.weight_decay, False: 0.0}

    def on_step(state, step):
        steps.append((state.epoch, step))
        rates.append(state.schedule.get_last_lr()[0])

    steps, rates, epochs = [], [], []
    hooks = Hooks(on_step, lambda state: epochs.append((state.epoch, len(steps))))
    loop.train(build(recipe=RICH, n_train=72), sets["loc"], RICH, hooks)
    assert (steps, epochs) == ([*itertools.product(range(4), range(1, 6))], [(1, 5), (2, 10), (3, 15), (4, 20)])
    assert rates[:-1] == sorted(rates[:2]) + sorted(rates[2:-1], reverse=True)  # the last is not used
    assert (rates[2], rates[-2]) == (pytest.approx(RICH.learning_rate, rel=0.01), pytest.approx(0, abs=1e-6))

    for name, value in {"optimizer": "adam", "box_loss": "iou", "epochs": 0, "warm_up": 0.0}.items():
        with pytest.raises(ValueError, match=f"^{name}: expected .*, found {value!r}$"):
            replace(SHORT, **{name: value})


def test_weights_of_the_first_best_epoch_are_kept():
    state = build()
    for epoch, mean in enumerate((0.1, 0.4, 0.3, 0.4), 1):
        state.model[1][2].bias.data.fill_(epoch)
        state.record({"val_mean": mean, "seconds": 1.0})
    assert loop.best_epoch(state.history) == 2
    assert state.best_weights["1.2.bias"].tolist() == [2.0] * 15


@pytest.mark.parametrize(("task", "recipe"), RECIPES)
def test_loaded_weights_give_the_scores_and_samples_of_the_best_epoch(sets, undisturbed, tmp_path, task, recipe):
    run, val = undisturbed[task, recipe], sets[task].val
    assert run.val["mean"] == max(run.history["val_mean"])
    training.save_weights(run.weights, tmp_path / "weights.pt")
    saved = training.load_weights(tmp_path / "weights.pt", run.network)
    assert (saved.name, saved.task, saved.source) == (run.name, task, "digits")
    assert (saved.epoch, saved.validation) == (run.best_epoch, run.val)
    for network in (run.load(CPU), saved.network):
        assert not network.training
        assert utils.evaluate(network, val) == pytest.approx(run.val, abs=1e-5)
    samples = utils.infer(network, val.images)[: loop.VAL_SAMPLES]
    torch.testing.assert_close(torch.tensor(run.val_samples)[run.best_epoch - 1], samples, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_that_of_the_convolutions_in_training(sets, undisturbed, tmp_path, precision):
    def watch(state):
        state.model[1][1].register_forward_hook(lambda conv, _, output: seen.add((conv.training, output.dtype)))

    seen = set()
    run = fit(sets, tmp_path, "det", hooks=call_in(1, 1, watch), precision=precision)
    assert seen == {(True, getattr(torch, precision)), (False, torch.float32)}
    losses = [each.history["train_objective"][0] for each in (run, undisturbed["det", SHORT])]
    assert (losses[0] == losses[1]) == (precision == "float32")
    assert run.trained_on["precision"] == files.load_tensors(run.weights)["spec"]["precision"] == precision


@pytest.mark.parametrize(("precision", "near"), [("float32", 0.005), ("bfloat16", 0.02)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_thread_agrees_with_two_and_with_a_gpu(sets, device, precision, near):
    """Sums in another order differ in their last bits, and every step makes more of it. These are two."""
    if device == "cuda" and not torch.cuda.device_count():
        pytest.skip("there is no GPU")
    # Slowly: AdamW's first steps are as long as the rate whatever the gradient, so that last bits decide signs.
    recipe, histories = replace(training.OWN, learning_rate=2e-4, width=16, depth=1, epochs=1, batch_size=20), []
    for threads, where in ((2, device), (1, "cpu")):
        torch.set_num_threads(threads)
        state = build(models.CompactNet2, recipe, n_train=40, precision=precision, device=where)
        histories.append(loop.train(state, sets["det"], recipe))
    for name in histories[0].keys() - {"seconds"}:
        assert histories[0][name] == pytest.approx(histories[1][name], rel=near, abs=near), name


def test_importing_asks_no_gpu_anything():
    code = "import torch\ndef ask(*args): raise SystemExit('asked')\n"
    code += "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = ask\nimport predict, training"
    subprocess.run([sys.executable, "-c", code], cwd=Path(training.__file__).parent.parent, check=True, timeout=300)


def test_what_is_not_finite_is_never_saved_and_a_run_finished_with_the_epochs_before(
    sets, undisturbed, tmp_path, monkeypatch
):
    with pytest.raises(NonFiniteLoss, match=r"^epoch 1, step 3: .*: total nan, pc nan, box nan, classification nan$"):
        fit(sets, tmp_path, hooks=spoil(1))
    with pytest.raises(NonFiniteLoss, match="epoch 1: val_loss is"):  # after one huge step, whose loss is still finite
        fit(sets, tmp_path, settings=replace(SHORT, epochs=1, batch_size=1000, learning_rate=1e38))
    monkeypatch.setattr(utils, "score", lambda *pair, score=utils.score: score(*pair) | {"iou": math.nan})
    with pytest.raises(NonFiniteLoss, match="epoch 1: train_iou is nan"):
        fit(sets, tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.pt"))
    run, whole = fit(sets, tmp_path, hooks=spoil(3)), undisturbed["loc", SHORT]
    assert (run.status, run.diverged, whole.diverged) == ("trained", True, False)
    assert run.history["val_loss"] == whole.history["val_loss"][:2]
    loaded = fit(sets, tmp_path, hooks=NEVER)  # the same steps would lead there again
    assert (loaded.status, loaded.diverged, loaded.history) == ("loaded", True, run.history)
    assert loaded.load()  # which refuses weights that are not finite
    assert [path.name for path in tmp_path.rglob("*.pt")] == ["checkpoint.pt"]
    longer = fit(sets, tmp_path, settings=replace(SHORT, epochs=SHORT.epochs + 1))
    assert (longer.status, longer.diverged) == ("trained", False)  # not from where the other had diverged


def test_one_checkpoint_each_half_minute_and_one_at_the_end(sets, tmp_path, monkeypatch):
    """Epochs of twelve seconds: after 36, after 72, and the last. A finished run keeps weights and history only."""

    def on_epoch(state):
        clock.now += 12
        stored = [files.load_tensors(path) for path in sorted(tmp_path.rglob("*.pt"))]
        there.append([len(each["history"]["seconds"]) for each in stored])

    clock, there = SimpleNamespace(now=0.0), []
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: clock.now))
    run = training.fit(Tiny, sets["loc"], replace(RICH, epochs=8), Hooks(on_epoch=on_epoch))
    assert there == [[], [], [], [4], [4], [4], [7, 4], [8]]
    assert files.load_tensors(run.weights)["state"] is None


@pytest.mark.parametrize(("source", "same", "other"), [
    ("x = 1", '"""Words."""\nimport math\nfrom math import pi\nx = 1  # a comment', "x = 2"),
    ("DRAW_A = plot_b = 1\ndef draw_c(): return 1\ndef plot_d(): return 1", "", "DRAW_A = b = 1"),
    ("def f(x=1): return x", 'def f(x=1):\n    """Words."""\n    return x', "def f(x=2): return x"),
    ("class A:\n    def f(self): return g() + h()", 'class A:\n    """Words."""\n    def f(self): return g() + h()',
     "class A:\n    def f(self): return g()"),
])  # fmt: skip
def test_the_key_is_of_what_decides_numbers(source, same, other):
    assert runs.bare_code(source) == runs.bare_code(same) != runs.bare_code(other)


def test_other_code_settings_data_and_versions_make_another_run(sets, monkeypatch):
    def folder(network=Tiny, splits=sets["loc"], n_train=None, precision="float32", **changes):
        return runs.run_folder(runs.run_spec(network, splits, replace(SHORT, **changes), n_train, precision))

    named, recipe = {"optimizer": "adamw", "box_loss": "giou", "warm_up": 0.5}, asdict(SHORT)
    assert "precision" not in recipe  # which is the device's; a recipe is the same everywhere
    folders = [folder(**{name: named.get(name) or value + 1}) for name, value in recipe.items()]
    folders += [folder(), folder(models.SimpleNet), folder(models.FloNet), folder(Tiny2), folder(splits=sets["det"])]
    folders += [folder(n_train=9), folder(precision="bfloat16"), folder(splits=replace(sets["loc"], source="course"))]
    for owner, name in ((torch, "__version__"), (runs, "CODE")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, "3.0")
            folders.append(folder())
    assert len(set(folders)) == len(folders)
    assert folder() == folder(n_train=len(sets["loc"].train)) == folders[len(recipe)]
    assert runs._code_of(models, utils, augment, loop) == runs.CODE


@pytest.mark.parametrize(("gpu", "cpu", "precision"), [  # whether a GPU, if any, and the CPU compute with it
    (None, False, "float32"), (None, True, "bfloat16"), (True, False, "bfloat16"), (False, True, "float32"),
])  # fmt: skip
def test_precision_and_profile_follow_from_the_device(sets, monkeypatch, gpu, cpu, precision):
    monkeypatch.delenv("PROFILE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": cpu}, raising=False)
    assert runs.run_spec(Tiny, sets["loc"], SHORT)["precision"] == precision
    assert training.choose_profile().name == ("quick" if gpu is None else "full")


def test_what_a_lab_has_saved_another_reads(sets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in (("RUNS_DIR", "kept"), ("STORE", "yes")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(data, "load", lambda task, sizes: sets[task])
    small = replace(training.PROFILES["smoke"], publishable=True, settings=SHORT, own=replace(RICH, epochs=1))
    assert replace(small, publishable=False).outcome_folder("figures") == Path("kept/smoke/figures")
    networks, lab = [Tiny, models.CompactNet], training.Lab("loc", replace(small, caps={"Tiny": 24}))
    losses = lab.overfit(models.SimpleNet, images=8, steps=40)
    assert losses[-1] < losses[0] / 2
    made = lab.train(networks)
    said = capsys.readouterr().out
    assert "Tiny: trained, 24 images, best epoch" in said
    assert "CompactNet: trained, 72 images, best epoch 1 of 1" in said
    tests, fits = [lab.test(run) for run in reversed(made)], lab.score_fit(made)
    assert fits["Tiny"] == utils.evaluate(made[0].load(), sets["loc"].train[:24])
    saved = lab.save(made, tests, lab.test_baselines(), fits)
    assert [saved["selected"], saved["test"], saved["others"]["Tiny"]] == [
        "CompactNet",
        *(each.scores for each in tests),
    ]
    assert saved["unrounded"]["iou"] != saved["test"]["iou"]

    monkeypatch.setattr(training.lab, "fit", lambda *about, **named: pytest.fail("trained"))
    Path("weights/Tiny.pt").unlink()  # as of a network too large
    lab = training.Lab("loc", replace(small, published=("Tiny", "CompactNet", "SimpleNet")))
    read = lab.train(networks)
    again = [lab.test(run) for run in reversed(read)]
    assert lab.save(read, again, lab.test_baselines(), lab.score_fit(read)) == saved == results.published_results("loc")
    with pytest.raises(DataError, match="no weights of it were published"):
        read[0].load()
    with pytest.raises(DataError, match=r"localization\.pkl: holds no history of SimpleNet"):
        lab.train([models.SimpleNet])
