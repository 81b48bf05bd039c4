"""Fixtures that several tests share."""

import matplotlib.pyplot as plt
import pytest
import torch

import data


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """Runs lie in a folder of the test's own, nothing else that a user may have set counts; no figure stays open."""
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    for name in ("DATA_DIR", "DATA_SOURCE", "PROFILE", "STORE", "STUDY_DATABASE"):
        monkeypatch.setenv(name, "")
    yield
    plt.close("all")


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
    """Splits of both tasks."""
    folder, sizes = tmp_path_factory.mktemp("data"), {"loc": (72, 40, 8), "det": (40, 24, 8)}
    return {task: data.load(task, "digits", sizes[task], folder, log=lambda text: None) for task in sizes}
