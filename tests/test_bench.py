"""What is measured against each other does the same work, and what was measured is shown."""

import functools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader

import data
import models
import training
import utils
from scripts import bench


@pytest.mark.parametrize(("task", "network"), [("loc", models.SimpleNet), ("det", models.SimpleNet2)])
def test_the_plain_loop_trains_the_same(task, network, tmp_path):
    train, cpu = data.load(task, "digits", sizes=(48, 1, 1), folder=tmp_path).train, torch.device("cpu")
    normal, settings = (
        utils.Normalizer.fit(train.images),
        training.Settings(batch_size=8, momentum=0.9, precision="float32"),
    )
    ours, theirs = (training.build(network, settings, cpu) for _ in range(2))
    training.train_epoch(ours, train, normal, settings, lambda state, step: None)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(settings.seed * 100_003 + 1)).tolist()
    loader = DataLoader(list(zip(normal(train.images), train.labels)), 8, sampler=order)
    losses = bench.plain_epoch(theirs, loader, settings, cpu)
    torch.testing.assert_close(ours.model.state_dict(), theirs.model.state_dict(), rtol=1e-4, atol=1e-4)
    assert losses[0] != pytest.approx(losses[-1], rel=1e-2)  # they have learnt something


def test_operations_are_two_per_weight_and_place_forwards_and_twice_that_backwards():
    layers = [layer for layer in training.list_layers(models.SimpleNet()) if layer.parameters]
    products = [(each.parameters - each.size[0]) * torch.Size(each.size[1:]).numel() for each in layers]
    assert bench.operations(models.SimpleNet) == 6 * sum(products) - 2 * products[0]  # images have no gradient


@pytest.mark.parametrize("part", bench.PARTS)
def test_a_part_is_measured_and_the_others_stay(part, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_SOURCE", "digits")
    monkeypatch.setattr(data, "FULL", {"loc": (64, 8, 8), "det": (64, 8, 8)})
    monkeypatch.setattr(data, "load", functools.partial(data.load, folder=tmp_path))
    changed = {"IMAGES": 16, "ROUNDS": 1, "SETS": {"loc": (models.SimpleNet,), "det": (models.CompactNet2,)}}
    changed |= {"worker": lambda **_: ThreadPoolExecutor(1), "peak": lambda size, peak=bench.peak: peak(64)}
    changed |= {name: shutil.copy(getattr(bench, name), tmp_path / name) for name in ("RESULTS", "PAGE")}
    for name, value in changed.items():
        monkeypatch.setattr(bench, name, value)
    before = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    bench.main([part])
    after = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    assert [name for name in bench.PARTS if before[name] != after[name]] == [part]
    assert bench.render(after) in bench.PAGE.read_text(encoding="utf-8")


def test_the_page_shows_what_was_measured():
    results = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    assert bench.render(results) in bench.PAGE.read_text(encoding="utf-8")
    for name, each in results["training"]["found"]["networks"].items():
        assert each["ratio"] > 1
        assert max(each["shares"], key=each["shares"].get) == ("linear" if name == "SkreNet" else "convolution")
