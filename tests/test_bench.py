"""What is measured against each other does the same work, and what was measured is shown."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import CPU
from torch.utils.data import DataLoader

import models
import training
import utils
from scripts import bench


@pytest.mark.parametrize("task", ["loc", "det"])
def test_the_plain_loop_has_the_same_losses(sets, task, monkeypatch):
    """Both loops, one in channels-last and one in contiguous tensors, on the same pictures in the same order."""
    splits, normal = sets[task]
    network = {"loc": models.SimpleNet, "det": models.SimpleNet2}[task]
    settings = training.Settings(epochs=1, batch_size=8, learning_rate=0.02, momentum=0.9)
    ours, theirs = (training.build(network, settings, CPU) for _ in range(2))
    theirs.model.to(memory_format=torch.contiguous_format)

    losses = []
    original = utils.combined_loss
    monkeypatch.setattr(utils, "combined_loss", lambda *inputs: losses.append(original(*inputs)) or losses[-1])
    training.train_epoch(ours, splits.train.pictures, splits.train.labels, normal, task, settings, 1, lambda step: None)
    monkeypatch.undo()

    count = len(splits.train)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed * 100_003 + 1)).tolist()
    listed = list(zip(normal(splits.train.pictures), splits.train.labels, strict=True))
    expected = bench.plain_epoch(theirs, DataLoader(listed, 8, sampler=order), task, settings, CPU)
    assert [loss.total.item() for loss in losses] == pytest.approx(expected, rel=1e-4)
    assert expected[0] != pytest.approx(expected[-1], rel=1e-2)  # they have learnt something
    for name, value in theirs.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", [*models.LOCALIZERS, *models.DETECTORS])
def test_operations_are_those_of_the_layers(network):
    """Forwards two per weight and place; backwards twice that, but for the first layer, whose input has no gradient."""
    model, expected = network(), 0

    def note(layer, inputs, output):
        nonlocal expected
        macs = layer.weight.numel() * (output[0, 0].numel() if output.ndim == 4 else 1)
        expected += macs * (4 if first is layer else 6)

    layers = [layer for layer in model.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    first = layers[0]
    for layer in layers:
        layer.register_forward_hook(note)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, 48, 60))
    assert bench.operations(network) == pytest.approx(expected, rel=0.01)


def test_the_peak_is_of_one_product_done_in_two_ways():
    product, convolution = (way() for way in bench.large_product(64))
    torch.testing.assert_close(convolution[0].flatten(1).T, product)


def test_a_race_ends_at_the_goal_or_when_time_is_up(sets):
    splits, _ = sets["loc"]
    settings = replace(training.REFERENCE, epochs=3)
    reached = bench.race(models.SimpleNet, settings, splits, goal=0.0001, minutes=5)
    assert reached["epochs"] < 3 or reached["highest"] >= 0.0001
    assert bench.race(models.SimpleNet, settings, splits, goal=2.0, minutes=0)["epochs"] == 0
    assert bench.race(models.SimpleNet, settings, splits, goal=2.0, minutes=5)["epochs"] == 3


def test_a_race_that_was_not_won_is_no_ratio():
    def entry(theirs, ours):
        return {
            "races": [
                {"network": name, "goal": 0.8, "seconds": seconds, "epochs": 3, "highest": highest}
                for name, seconds, highest in (("SkreNet", 100.0, theirs), ("CompactNet", 20.0, ours))
            ]
        }

    text = bench.accuracy_tables({"loc": entry(0.9, 0.9), "det": entry(0.5, 0.9)})
    assert "| CompactNet | 5.0 |" in text
    assert "| CompactNet | > 5.0 |" in text
    assert "not in 100 s" in text


def test_what_was_published_has_been_measured():
    path = bench.HOME / "figures" / "bench.json"
    found = {part: each["found"] for part, each in json.loads(path.read_text()).items()}
    assert set(found) == set(bench.PARTS)
    networks = found["training"]["networks"]
    assert list(networks) == [network.__name__ for network in (*models.LOCALIZERS, *models.DETECTORS)]
    for each in networks.values():
        rates = each["pictures_per_second"]
        assert each["ratio"] == pytest.approx(rates["ours"] / rates["plain"])
        assert sum(each["shares"].values()) == pytest.approx(1)
        assert 0 < each["share_of_peak"] < 1
    texts = {part: tables(found[part]) for part, (_, _, tables) in bench.PARTS.items()}
    readme = (bench.HOME / "README.md").read_text()
    assert all(texts[part] in readme for part in bench.IN_README)
    # Memory stays what it was after the second epoch, and fits four GB.
    for each in found["growth"]["epochs"]:
        assert max(each["memory"]) < 1.05 * each["memory"][1]
    for each in (*found["growth"]["epochs"], *found["growth"]["notebooks"].values()):
        assert each["peak_memory"]["ram"] < 4


def test_unknown_parts_are_refused():
    done = subprocess.run([sys.executable, "scripts/bench.py", "speed"], capture_output=True, text=True, cwd=bench.HOME)
    assert done.returncode == 2
    assert "expected some of training, data, growth, start, accuracy, found speed" in done.stderr
