"""Fixtures that the tests of training and of faults share."""

import multiprocessing

import pytest
import torch
from helpers import CPU, LONG, finished_run, start, wait_for

import data
import training
import utils


@pytest.fixture(scope="module")
def one_thread():
    """Batches this small gain nothing from threads, and lose much to them where the processor is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Bit for bit holds for a CPU."""
    monkeypatch.setattr(training, "choose_device", lambda: CPU)


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """Splits of both tasks, each with its normalizer."""
    folder = tmp_path_factory.mktemp("data")
    splits = {
        "loc": data.load("loc", "digits", sizes=(72, 40, 8), folder=folder),
        "det": data.load("det", "digits", sizes=(40, 24, 8), folder=folder),
    }
    return {task: (each, utils.Normalizer.fit(each.train.pictures)) for task, each in splits.items()}


@pytest.fixture(scope="session")
def processes():
    """New processes from one that has imported PyTorch and done nothing else: quick, and safe to fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training", "pytest"])
    return context


@pytest.fixture(scope="session")
def killing_ground(sets, processes, tmp_path_factory):
    """The data as a file, and a run in a process that was left alone."""
    folder = tmp_path_factory.mktemp("killed")
    splits, _ = sets["loc"]
    stored = folder / "splits.pt"
    torch.save([[part.pictures, part.labels] for part in (splits.train, splits.val, splits.test)], stored)
    process, pipe = start(processes, stored, folder / "undisturbed")
    messages = wait_for("finished", pipe)
    process.join(60)
    assert messages == ["started", *range(1, LONG.epochs + 1), "finished"]
    return stored, finished_run(stored, folder / "undisturbed")
