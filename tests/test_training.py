"""Training: the same twice, continued as if never interrupted, and never mistaken for another run."""

import itertools
import math
import re
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import CPU, NEVER, RICH, SHORT, Tiny, Tiny2, call_in, evaluate, fit, interrupted, same_run

import data
import models
import training
import utils
from data import DataError, files
from training import Hooks, NonFiniteLoss, loop, runs
from training.progress import Progress

pytestmark = pytest.mark.usefixtures("one_core")
spoil = partial(call_in, step=2, function=lambda state: state.model[1][2].bias.data.fill_(math.nan))
build = partial(loop.build, normalize=utils.Normalize())
RECIPES = [("loc", SHORT), ("det", SHORT), ("loc", RICH), ("det", RICH)]


@pytest.fixture(scope="module")
def undisturbed(sets, tmp_path_factory):
    """A run of each task and recipe that nothing happened to."""
    return {key: fit(sets, tmp_path_factory.mktemp("undisturbed"), *key) for key in RECIPES}


@pytest.mark.parametrize(("epoch", "step"), [(1, 3), (2, 1), (4, 2)])
@pytest.mark.parametrize(("task", "recipe"), RECIPES)
def test_runs_are_continued_and_loaded(sets, undisturbed, tmp_path, monkeypatch, task, recipe, epoch, step):
    trained, devices, drawn_from = [], iter("AB"), torch.get_rng_state()
    monkeypatch.setattr(runs, "provenance", lambda precision: {"device": next(devices), "torch": "3.0"})
    interrupted(sets, tmp_path, epoch, task, recipe, step)
    run = fit(sets, tmp_path, task, recipe, hooks=Hooks(on_epoch=lambda state: trained.append(state.epoch)))
    loaded = fit(sets, tmp_path, task, recipe, hooks=NEVER)
    assert torch.equal(torch.get_rng_state(), drawn_from)  # nothing is drawn from there
    assert trained == list(range(epoch, recipe.epochs + 1))
    assert run.status == (f"continued after epoch {epoch - 1}" if epoch > 1 else "trained")
    assert run.trained_on == {"device": "A, then B" if epoch > 1 else "B", "torch": "3.0"}
    assert (loaded.status, loaded.history, loaded.trained_on) == ("loaded", run.history, run.trained_on)
    for each in (run, loaded):
        same_run(each, undisturbed[task, recipe])


def test_scores_are_of_the_images_trained_on_and_of_equal_epochs_the_first_is_best(sets, tmp_path):
    fixed = fit(sets, tmp_path, settings=replace(SHORT, learning_rate=0.0), n_train=24)
    assert (fixed.status, fixed.best_epoch) == ("trained", 1)
    assert fixed.train == pytest.approx(evaluate(fixed.load(CPU), sets["loc"].train[:24]), abs=1e-5)
    assert fixed.load(CPU)[0].mean == utils.Normalize.fit(sets["loc"].train.images).mean  # of all images


def test_weights_and_every_epochs_order_and_moves_follow_from_the_seed(sets):
    def drawn(epoch, recipe=SHORT, **changes):
        batches = list(loop.make_batches(sets["loc"].train, replace(recipe, **changes), epoch))
        assert [len(images) for images, _ in batches] == [16, 16, 16, 16, 8]
        images, labels = map(torch.cat, zip(*batches))
        return list(zip(images.flatten(1).sum(1).tolist(), labels.tolist()))

    orders = [drawn(1, shuffle=False), drawn(1), drawn(2), drawn(1, seed=8)]
    assert [label for _, label in orders[0]] == sets["loc"].train.labels.tolist()
    assert all(sorted(each) == sorted(orders[0]) for each in orders)  # each image once
    moves = [sorted(drawn(epoch, RICH)) for epoch in (1, 2)]
    moves += [sorted(drawn(1, RICH, **{name: 0})) for name in ("max_shift", "max_stretch")]
    assert all(first != second for first, second in itertools.combinations((*orders, *moves), 2))
    assert (drawn(2), sorted(drawn(2, RICH))) == (orders[2], moves[1])
    weights = [build(Tiny, replace(SHORT, seed=seed)).model.state_dict()["1.2.weight"] for seed in (7, 8, 7)]
    assert [torch.equal(weights[0], each) for each in weights] == [True, False, True]


def test_networks_and_optimizers_are_what_the_settings_say(sets):
    for recipe, *last in ((SHORT,), (RICH, models.BoundedBoxes)):
        assert [*map(type, build(models.SimpleNet, recipe).model)] == [utils.Normalize, models.SimpleNet, *last]
    network = build(models.CompactNet2, replace(RICH, width=8, center_gate=False)).model[1]
    assert (network.head.in_channels, network.center_gate, network.round_edges) == (8, False, True)
    (group,) = build(Tiny, replace(SHORT, weight_decay=0.25)).optimizer.param_groups
    assert [group[name] for name in ("lr", "momentum", "weight_decay")] == [0.02, 0.9, 0.25]
    state = build(models.SimpleNet2, RICH)  # AdamW: biases and batch norm do not decay
    decay = {p.ndim > 1: group["weight_decay"] for group in state.optimizer.param_groups for p in group["params"]}
    assert decay == {True: RICH.weight_decay, False: 0.0}
    rates, hooks = [], Hooks(on_step=lambda state, step: rates.append(state.schedule.get_last_lr()[0]))
    loop.train(build(Tiny, RICH, n_train=72), sets["loc"], RICH, hooks)  # four epochs of five steps
    assert rates[:-1] == sorted(rates[:2]) + sorted(rates[2:-1], reverse=True)  # the last is not used
    assert (rates[2], rates[18]) == (pytest.approx(RICH.learning_rate, rel=0.01), pytest.approx(0, abs=1e-6))
    for name, value in {"optimizer": "adam", "box_loss": "iou"}.items():
        with pytest.raises(ValueError, match=f"^{name}: expected .*, found {value!r}$"):
            replace(SHORT, **{name: value})


@pytest.mark.parametrize(("task", "recipe"), RECIPES)
def test_loaded_weights_give_the_scores_and_samples_of_the_best_epoch(sets, undisturbed, tmp_path, task, recipe):
    run, val = undisturbed[task, recipe], sets[task].val
    assert run.val["mean"] == max(run.history["val_mean"])
    training.save_weights(run.weights, tmp_path / "weights.pt")
    saved = training.load_weights(tmp_path / "weights.pt", run.network)
    assert (saved.name, saved.task, saved.source, saved.epoch) == (run.name, task, "digits", run.best_epoch)
    assert saved.validation == run.val
    for network in (run.load(CPU), saved.network):
        assert not network.training
        assert evaluate(network, val) == pytest.approx(run.val, abs=1e-5)
    samples = utils.infer(network, val.images)[: loop.VAL_SAMPLES]
    torch.testing.assert_close(torch.tensor(run.val_samples[run.best_epoch - 1]), samples, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_that_of_the_convolutions_in_training(sets, tmp_path, precision):
    def watch(state):
        state.model[1][1].register_forward_hook(lambda conv, _, output: seen.add((conv.training, output.dtype)))

    seen = set()
    run = fit(sets, tmp_path, "det", hooks=call_in(1, 1, watch), precision=precision)
    assert seen == {(True, getattr(torch, precision)), (False, torch.float32)}
    assert run.trained_on["precision"] == files.load_tensors(run.weights)["spec"]["precision"] == precision


def test_what_is_not_finite_is_never_saved_and_a_run_ends_with_the_epochs_before(sets, undisturbed, tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"^epoch 1, step 3: .*: total nan, pc nan, box nan, classification nan$"):
        fit(sets, tmp_path, hooks=spoil(1))
    with pytest.raises(NonFiniteLoss, match="epoch 1: val_loss is"):  # after one huge step, whose loss is still finite
        fit(sets, tmp_path, settings=replace(SHORT, epochs=1, batch_size=1000, learning_rate=1e38))
    assert not list(tmp_path.rglob("*.pt"))
    run, whole = fit(sets, tmp_path, hooks=spoil(3)), undisturbed["loc", SHORT]
    assert (run.status, run.diverged, whole.diverged) == ("trained", True, False)
    assert run.history["val_loss"] == whole.history["val_loss"][:2]
    loaded = same_run(fit(sets, tmp_path, hooks=NEVER), run)  # the same steps would lead there again
    assert (loaded.status, loaded.diverged) == ("loaded", True)


def test_one_checkpoint_each_half_minute_and_one_at_the_end(sets, tmp_path, monkeypatch):
    """Epochs of twelve seconds: after 36, after 72, and the last. A finished run keeps weights and history only."""

    def stored():
        return [(len(each["val_samples"]), *each) for each in map(files.load_tensors, tmp_path.rglob("*.pt"))]

    there = []
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: 12 * len(there)))
    hooks = Hooks(on_epoch=lambda state: there.append(sorted(epoch for epoch, *_ in stored())))
    training.fit(Tiny, sets["loc"], replace(RICH, epochs=8), hooks)
    assert there == [[], [], [], [4], [4], [4], [4, 7], [4, 7]]
    assert stored() == [(8, "spec", "trained_on", "history", "val_samples", "weights", "finished")]


@pytest.mark.parametrize(("source", "same", "other"), [
    ("DRAW_A, plot_b, x = 1, 2, 3", "import math\nfrom math import pi\ndef draw_c(): return 1  # a comment", "a = 1"),
    ("def f(x=1): return x", '"""Words."""\ndef f(x=1):\n    """Words."""\n    return x', "def f(x=2): return x"),
])  # fmt: skip
def test_the_key_is_of_what_decides_numbers(monkeypatch, source, same, other):
    monkeypatch.setattr(runs.inspect, "getsource", str)
    assert runs.code_of(source) == runs.code_of(same) != runs.code_of(other)


def test_other_code_settings_data_and_versions_make_another_run(sets, monkeypatch):
    def folder(network=Tiny, splits=sets["loc"], n_train=None, precision="float32", **changes):
        return runs.run_folder(runs.run_spec(network, splits, replace(SHORT, **changes), n_train, precision))

    named, same = {"optimizer": "adamw", "box_loss": "giou", "warm_up": 0.5}, folder()
    folders = [folder(**{name: named.get(name) or value + 1}) for name, value in asdict(SHORT).items()]
    folders += [same, folder(models.SimpleNet), folder(models.FloNet), folder(Tiny2), folder(splits=sets["det"])]
    folders += [folder(n_train=9), folder(precision="bfloat16"), folder(splits=replace(sets["loc"], source="course"))]
    for owner, name in ((torch, "__version__"), (runs, "CODE")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, "3.0")
            folders.append(folder())
    assert len(set(folders)) == len(folders)
    assert same == folder() == folder(n_train=len(sets["loc"].train))
    assert runs.code_of(models, utils, data.augment, loop) == runs.CODE


@pytest.mark.parametrize(("gpu", "cpu", "precision"), [  # whether a GPU, if any, and the CPU compute with it
    (None, False, "float32"), (None, True, "bfloat16"), (True, False, "bfloat16"), (False, True, "float32"),
])  # fmt: skip
def test_precision_and_profile_follow_from_the_device(sets, monkeypatch, gpu, cpu, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": cpu}, raising=False)
    assert runs.run_spec(Tiny, sets["loc"], SHORT)["precision"] == precision
    assert training.choose_profile().name == ("quick" if gpu is None else "full")


def test_what_a_lab_has_saved_another_reads(sets, tmp_path, monkeypatch, capsys):
    def save(runs):
        return lab.save(runs, [lab.test(run) for run in reversed(runs)], lab.test_baselines(), lab.score_fit(runs))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORE", "yes")
    monkeypatch.setattr(data, "load", lambda task, *about, **named: sets[task])
    networks, recipes = [Tiny, models.CompactNet], {"settings": SHORT, "own": replace(RICH, epochs=1)}
    lab = training.Lab("loc", replace(training.PROFILES["smoke"], publishable=True, caps={"Tiny": 24}, **recipes))
    assert lab.overfit(models.SimpleNet, images=8, steps=40)[-1] < lab.overfit(models.SimpleNet, 8, 1)[0] / 2
    made = lab.train(networks)
    assert re.findall(r"\w+: trained, \d+", capsys.readouterr().out) == ["Tiny: trained, 24", "CompactNet: trained, 72"]
    saved = save(made)
    assert saved["networks"]["Tiny"]["fit"] == evaluate(made[0].load(), sets["loc"].train[:24])
    assert (saved["selected"], [*saved["others"]]) == ("CompactNet", ["Tiny"])
    assert "profile `smoke`" in lab.notice().data
    rows = {(row["noise"], row["network"]): row for row in saved["noise"]}
    assert {name for _, name in rows} == {"CompactNet", "Tiny", "bright patches", "visible ink"}
    assert rows[1.0, "Tiny"].items() >= {name: saved["others"]["Tiny"][name] for name in ("accuracy", "iou")}.items()

    Path("weights/Tiny.pt").unlink()  # as of a network too large
    lab = training.Lab("loc", replace(training.PROFILES["published"], published=("Tiny", "CompactNet", "SimpleNet")))
    read = lab.train(networks)
    with pytest.raises(DataError, match="no weights of it were published"):
        read[0].load()
    with pytest.raises(DataError, match=r"localization\.pkl: holds no history of SimpleNet"):
        lab.train([models.SimpleNet])
    assert {**save(read), "noise": None} == {**saved, "noise": None}  # which takes weights of the reference's best
    assert (lab.notice(), lab.study_figure("box_weight", {}, "")) == (None, None)  # a study without rows
    lab.splits = replace(lab.splits, source="course")
    assert (lab.noise_rows(read), bool(lab.notice())) == ([], True)


def test_progress_is_one_live_line_in_a_terminal_and_nothing_elsewhere(sets, tmp_path, monkeypatch, capsys):
    seconds = itertools.count(1000)
    monkeypatch.setattr(training.progress, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with Progress("Tiny", SHORT, 72) as progress:
            fit(sets, tmp_path / str(terminal), hooks=progress.hooks)
        nothing, *shown = capsys.readouterr().err.split("\r\x1b[K")
        assert (nothing, bool(shown), shown[-1:]) == ("", terminal, [""] * terminal)
    assert shown[0] == "Tiny epoch 1/4, 16/72 images, 0:34 left"  # two seconds for the first 16 of 288
    assert re.fullmatch(r"Tiny epoch 4/4, 0:00 left(, (train|val)_(loss|accuracy|mean) \d\.\d+){4}", shown[-2])
