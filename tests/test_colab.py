"""Colab, as a new user meets it: a folder that holds nothing but the notebook, and a stand-in for google.colab."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

import models
import training
from training import colab

HOME = Path(__file__).resolve().parent.parent
PLACEHOLDER = "https://github.com/OWNER/REPOSITORY"
MOUNT = "training.prepare_colab(drive)"  # puts Drive at /content/drive, where tests may not write
DRIVE = 'import os\ndef mount(to): os.makedirs(f"{to}/MyDrive", exist_ok=True); print("Mounted at", to)\n'
# What costs time and is tried elsewhere: saving pictures, learning a batch by heart, comparing recipes.
SHORTER = """
import utils
utils.save_figure = lambda figure, *_: __import__("matplotlib.pyplot").pyplot.close(figure)
training.Lab.overfit = lambda *_, steps, **__: [0.0] * steps
training.Lab.compare_recipes = lambda *_: None
"""
# The second network dies in the middle of its second epoch.
KILL = """
import os, signal
training.runs.SAVED_EVERY = 0.0
def fit(network, splits, normal, settings, hooks, whole=training.lab.fit):
    def on_step(state, step):
        if (network.__name__, state.epoch, step) == ("FloNet", 1, 2):
            os.kill(os.getpid(), signal.SIGKILL)
    return whole(network, splits, normal, settings, hooks._replace(on_step=on_step))
training.lab.fit = fit
"""
LACKING = ("torchmetrics", "lightning-utilities", "pycocotools")
PINS = dict(re.findall(r"^([\w-]+)==([\w.]+)", (HOME / "requirements.txt").read_text(encoding="utf-8"), re.M))
pytestmark = pytest.mark.skipif(shutil.which("git") is None or os.name == "nt", reason="Colab is a Unix with git")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for what is large; pytest would keep it for three more sessions."""
    folder = tmp_path_factory.mktemp("colab")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def address(place):
    """The address of a repository that holds the files as they lie here, but for large ones, committed or not."""
    without = (".git", ".venv", "runs", "made", "MNIST", "*.pt", "*cache*", "published-*")
    source = shutil.copytree(HOME, place / "source", ignore=shutil.ignore_patterns(*without))
    for command in ("init -q", "add -A", "-c user.name=t -c user.email=t -c commit.gpgsign=false commit -q -m test"):
        subprocess.run(["git", *command.split()], cwd=source, check=True)
    return source.as_uri()


@pytest.fixture(scope="module")
def environment(place):
    """The environment variables of a kernel on the stand-in for Colab."""
    package = place / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "drive.py").write_text(DRIVE, encoding="utf-8")
    # One core and no GPU, so that two runs end with the same numbers.
    given = {"PROFILE": "smoke", "DATA_SOURCE": "digits", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return os.environ | given | {"PYTHONPATH": str(package.parent.parent), "RUNS_DIR": ""}


def read(task):
    """A task's notebook, its set-up cell, and the text before that."""
    notebook = nbformat.read(HOME / f"{training.NAMES[task]}.ipynb", as_version=4)
    ((text, cell),) = [pair for pair in itertools.pairwise(notebook.cells) if MOUNT in pair[1].source]
    return notebook, cell, text


def run_notebook(task, machine, address, environment, then="", whole=True):
    """Open the notebook on a machine, a folder, and run all of it or its set-up cell: that twice, as users do, and then
    `then`. The repository and the place for Drive are such as exist here. Returns what was printed."""
    machine.mkdir(exist_ok=True)
    notebook, cell, _ = read(task)
    assert cell.source.count(PLACEHOLDER) == cell.source.count(MOUNT) == 1
    drive = machine.parent / "drive"
    source = cell.source.replace(PLACEHOLDER, address)
    source = source.replace(MOUNT, f"training.prepare_colab(drive, {str(drive)!r})")
    cell.source = f"{source}\n{source}\n{then}"
    notebook.cells = notebook.cells if whole else [cell]
    client = NotebookClient(notebook, timeout=600, startup_timeout=600, kernel_name="python3")
    client.resources = {"metadata": {"path": str(machine)}}
    client.execute(env=environment)
    printed = "".join(output.get("text", "") for each in notebook.cells for output in each.get("outputs", []))
    assert f"Mounted at {drive}\nRuns are kept on Drive" in printed
    assert {output.get("name") for output in cell.outputs} == {"stdout"}  # git and pip are silent
    assert not (machine / "digits/runs").exists()
    return printed


def test_localization_goes_on_after_a_disconnect_as_if_nothing_was(place, address, environment, one_core, monkeypatch):
    with pytest.raises(DeadKernelError):
        run_notebook("loc", place / "first", address, environment, SHORTER + KILL)
    printed = run_notebook("loc", place / "second", address, environment, SHORTER)
    for said in ("SkreNet: loaded", "FloNet: continued after epoch 1", "SimpleNet: trained", "CompactNet: trained"):
        assert said in printed
    assert (place / "second/digits/data/made").is_dir()  # the clone's modules were used, from its folder
    found = json.loads((place / "drive/MyDrive/digit-runs/smoke/figures/results.json").read_text(encoding="utf-8"))
    for name, value in {**environment, "RUNS_DIR": str(place / "undisturbed")}.items():
        monkeypatch.setenv(name, value)
    (run,) = training.open_lab("loc").train([models.FloNet])
    assert [found["loc"]["networks"]["FloNet"][part] for part in ("train", "val")] == [run.train, run.val]


def test_setup_survives_a_clone_that_is_cut_off_and_a_new_start(tmp_path, address, environment):
    machine, git = tmp_path / "machine", tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_bytes(b'#!/bin/sh\nfor part; do :; done\nmkdir -p "$part/.git" "$part/training"\nkill -9 $$\n')
    git.chmod(0o755)
    cut_off = {**environment, "PATH": f"{git.parent}:{environment['PATH']}"}
    for source, reason in ((PLACEHOLDER, "set REPOSITORY"), (address, f"cannot clone {address}")):
        with pytest.raises(CellExecutionError) as caught:
            run_notebook("loc", machine, source, cut_off, whole=False)
        assert caught.value.evalue.startswith(reason)
    assert len(list(machine.iterdir())) == 1  # what the clone left behind
    for source in (address, f"{address}-moved"):  # the second time the clone is there
        run_notebook("loc", machine, source, environment, whole=False)
    assert list((tmp_path / "drive/MyDrive/digit-runs").iterdir()) == []


def test_both_notebooks_have_the_same_setup():
    (_, *first), (_, *second) = read("loc"), read("det")
    assert [cell.source for cell in first] == [cell.source for cell in second]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SOAK"), reason="in `make soak`; detection's set-up is that of localization")
def test_detection_runs_from_top_to_bottom(place, address, environment):
    run_notebook("det", place / "third", address, environment, SHORTER)


def decline(mount_point):
    raise ValueError("mount failed")


def test_runs_are_kept_on_drive_where_that_can_be(tmp_path, monkeypatch, capsys):
    """It may be declined, taken on second thought, and lost again; a folder of one's own is respected."""
    monkeypatch.setenv("RUNS_DIR", "")
    there, lost = str(tmp_path / "MyDrive" / "digit-runs"), "runs are kept on this machine only and are lost with it."
    (tmp_path / "read-only").mkdir()
    (tmp_path / "read-only" / "MyDrive").touch()  # a file, so that nobody can write below it, root neither
    for mount, point, expected, said in (
        (decline, tmp_path, None, f"No Drive (mount failed): {lost}"),
        (print, tmp_path, there, "Runs are kept on Drive"),
        (print, tmp_path / "read-only", there, "as RUNS_DIR says"),
        (decline, tmp_path, None, lost),
        (print, tmp_path / "read-only", None, lost),
    ):
        colab.prepare_colab(SimpleNamespace(mount=mount), point)
        assert os.environ.get("RUNS_DIR") == expected
        assert said in capsys.readouterr().out


def write_wheel(folder, name, version):
    """A wheel that pip takes: nothing but a wish for a newer torch."""
    about = f"{name.replace('-', '_')}-{version}"
    needs = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: torch>=99\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{about}-py3-none-any.whl", "w") as archive:
        for part, text in (("METADATA", needs), ("WHEEL", tags), ("RECORD", "")):
            archive.writestr(f"{about}.dist-info/{part}", text)


def test_what_is_lacking_is_installed_as_the_requirements_say_and_alone(tmp_path, monkeypatch, capsys):
    """pip works on an empty environment, from a folder that holds newer versions too."""
    venv.create(tmp_path, with_pip=False)
    (packages,) = tmp_path.glob("lib/python*/site-packages")
    python = tmp_path / "bin" / "python"
    for name, value in zip(("PYTHON", "NO_INDEX", "FIND_LINKS", "CONFIG_FILE"), (python, 1, tmp_path, os.devnull)):
        monkeypatch.setenv(f"PIP_{name}", str(value))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.replace("_", "-") in LACKING else name)
    for name in (*LACKING[:2], "torch"):
        write_wheel(tmp_path, name, "99.0")
        write_wheel(tmp_path, name, PINS[name])
    with pytest.raises(RuntimeError, match=rf"pip cannot install {', '.join(LACKING)}:\n(.|\n)*pycocotools=="):
        colab.install_lacking(LACKING)
    assert list(packages.iterdir()) == []
    write_wheel(tmp_path, LACKING[2], PINS[LACKING[2]])
    colab.install_lacking(LACKING)
    assert {path.stem for path in packages.iterdir()} == {f"{name.replace('-', '_')}-{PINS[name]}" for name in LACKING}
    assert f"installing torchmetrics=={PINS['torchmetrics']}" in capsys.readouterr().out
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    colab.install_lacking(("json", "torch"))  # which are there
