"""Fixtures that several tests share."""

import multiprocessing
import os
import tempfile

import pytest
import torch

import data
import utils


@pytest.fixture(scope="module")
def one_core():
    """Bit for bit holds for a CPU; and batches this small lose much to threads where the processor is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """Splits of both tasks, each with its normalizer."""
    folder = tmp_path_factory.mktemp("data")
    sizes = {"loc": (72, 40, 8), "det": (40, 24, 8)}
    splits = {task: data.load(task, "digits", sizes[task], folder, log=lambda text: None) for task in sizes}
    return {task: (each, utils.Normalizer.fit(each.train.images)) for task, each in splits.items()}


@pytest.fixture(scope="session")
def processes():
    """New processes from one that has imported PyTorch and done nothing else: quick, and safe to fork."""
    # The server's socket lies in the folder for temporary files, whose name may be too long for that.
    short = len(os.fsencode(tempfile.gettempdir())) < 60
    context = multiprocessing.get_context("forkserver" if short else "spawn")
    context.set_forkserver_preload(["training", "pytest"])
    return context
