"""What is measured against each other does the same work, and the page shows what was measured."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import data
import models
import training
import utils

bench = pytest.importorskip("scripts.bench", reason="Windows has no module resource")


@pytest.mark.parametrize(("task", "network"), [("loc", models.SimpleNet), ("det", models.SimpleNet2)])
def test_the_plain_loop_trains_the_same(task, network, tmp_path):
    train = data.load(task, "digits", (48, 1, 1), tmp_path).train
    settings, normalize = training.Settings(batch_size=8, momentum=0.9), utils.Normalize.fit(train.images)
    states = ours, plain, _ = [training.build(network, settings, normalize) for _ in range(3)]
    training.train_epoch(ours, train, settings)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(settings.seed * 100_003 + 1)).tolist()
    bench.plain_epoch(plain, DataLoader(list(zip(train.images, train.labels)), 8, sampler=order), train, settings)
    weights, same, initial = (state.model.state_dict() for state in states)
    torch.testing.assert_close(same, weights, rtol=1e-4, atol=1e-4)
    assert max((weights[name] - initial[name]).abs().max() for name in weights) > 0.01


def test_everything_is_measured_written_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FULL", {"loc": (64, 8, 8), "det": (64, 8, 8)})
    monkeypatch.setattr(models, "NETWORKS", {"loc": (models.CompactNet,), "det": (models.CompactNet2,)})
    small = {"TURNS": 1, "EPOCHS": 1, "IMAGES": 16, "load": functools.partial(bench.load, folder=tmp_path)}
    small |= {name: Path(shutil.copy(getattr(bench, name), tmp_path)) for name in ("RESULTS", "PAGE")}
    for name, value in {**small, "in_process": lambda work, *given: work(*given)}.items():
        monkeypatch.setattr(bench, name, value)
    for measure, least in ((int, 2), (bench.main, 0)):  # as stored, where ours gains; then as measured
        measure()
        results = data.files.load_json(bench.RESULTS)
        assert bench.render(results) in bench.PAGE.read_text(encoding="utf-8")
        assert all(row["ours / plain"] > least for row in results["training"])
