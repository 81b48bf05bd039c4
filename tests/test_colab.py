"""Colab, as a new user meets it: a folder that holds nothing but the notebook, and a stand-in for google.colab.

The repository that the set-up cell clones is made of the tracked files as they lie here, commits or not.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from helpers import without_measured
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

import training

HOME = Path(__file__).resolve().parent.parent
NOTEBOOKS = {"loc": "localization.ipynb", "det": "detection.ipynb"}
PLACEHOLDER = "https://github.com/OWNER/REPOSITORY"
MOUNT = "training.prepare_colab(drive)"  # puts Drive at /content/drive, where tests may not write

DRIVE = """
import os

def mount(mount_point):
    os.makedirs(os.path.join(mount_point, "MyDrive"), exist_ok=True)
    print("Mounted at", mount_point)
"""

# What costs time and is tried elsewhere: saving pictures, learning a batch by heart, comparing recipes.
SHORTER = """
import utils
utils.save_figure = lambda figure, *_: __import__("matplotlib.pyplot").pyplot.close(figure)
training.overfit = lambda *_, steps, **__: [0.0] * steps
training.compare_recipes = lambda *_: None
"""

# The second network dies in the middle of its second epoch.
KILL = """
import os, signal
def step(progress, done, whole=training.Progress.step):
    if (progress.name, progress.done, done) == ("FloNet", 1, 2):
        os.kill(os.getpid(), signal.SIGKILL)
    whole(progress, done)
training.Progress.step = step
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for what is large; pytest would keep it for three more sessions."""
    folder = tmp_path_factory.mktemp("colab")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def address(place):
    """The address of a bare clone that holds the tracked files."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, text=True)
    names = [name for name in listed.stdout.split("\0") if name and (HOME / name).is_file()]
    if not names:
        pytest.skip("not a git checkout")
    source, bare = place / "source", place / "repository.git"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(HOME / name, source / name)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A", "-f"], [*who, "commit", "-q", "-m", "as it lies here"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(source), str(bare)], check=True)
    return bare.as_uri()


@pytest.fixture(scope="module")
def environment(place):
    """The environment variables of a kernel or program on the stand-in for Colab."""
    package = place / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "drive.py").write_text(DRIVE)
    names = os.environ.keys() - {"RUNS_DIR", "PYTHONSAFEPATH"}
    # Without a GPU, so that two runs end with the same numbers.
    return {name: os.environ[name] for name in names} | {
        "PYTHONPATH": str(package.parent.parent),
        "PROFILE": "smoke",
        "DATA_SOURCE": "digits",
        "CUDA_VISIBLE_DEVICES": "",
    }


def setup_cell(notebook):
    (cell,) = [cell for cell in notebook.cells if "prepare_colab" in cell.source]
    return cell


def adapt(source, address, drive):
    """The set-up cell with a repository and a place for Drive that exist here."""
    assert source.count(PLACEHOLDER) == 1
    assert source.count(MOUNT) == 1
    return source.replace(PLACEHOLDER, address).replace(MOUNT, f"training.prepare_colab(drive, {str(drive)!r})")


def run_notebook(task, machine, drive, address, environment, then="", short=False):
    """Open the notebook on a new machine, a folder, and run all of it, or with `short` until the results are there.
    Code in `then` follows in the set-up cell. Returns the notebook with its outputs."""
    machine.mkdir()
    notebook = nbformat.read(HOME / NOTEBOOKS[task], as_version=4)
    cell = setup_cell(notebook)
    cell.source = adapt(cell.source, address, drive) + then
    if short:
        last = max(number for number, cell in enumerate(notebook.cells) if "save_results" in cell.source)
        notebook.cells = notebook.cells[: last + 1]
    nbformat.write(notebook, machine / NOTEBOOKS[task])
    client = NotebookClient(notebook, timeout=600, startup_timeout=600, kernel_name="python3")
    client.resources = {"metadata": {"path": str(machine)}}
    client.execute(env=environment)
    return notebook


def printed(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def results(drive):
    """What the run left on Drive, without the times that it took."""
    return without_measured(json.loads((drive / "MyDrive/digit-runs/smoke/figures/results.json").read_text()))


def check_whole_run(notebook, machine, drive, task):
    outputs = setup_cell(notebook).outputs
    assert {output.get("name") for output in outputs} == {"stdout"}  # git and pip are silent
    assert f"Mounted at {drive}\nRuns are kept on Drive" in "".join(output.text for output in outputs)
    assert {path.name for path in machine.iterdir()} == {NOTEBOOKS[task], "digits"}
    assert (machine / "digits/data/made").is_dir()  # the clone's modules were used, from its folder
    assert not (machine / "digits/runs").exists()
    assert set(results(drive)) == {task}


@pytest.fixture(scope="module")
def undisturbed(place, address, environment):
    """Localization, run once from top to bottom without a break: its results."""
    machine, drive = place / "undisturbed", place / "undisturbed-drive"
    notebook = run_notebook("loc", machine, drive, address, environment, SHORTER)
    check_whole_run(notebook, machine, drive, "loc")
    assert "FloNet: trained" in printed(notebook)
    yield results(drive)
    shutil.rmtree(drive)


def test_localization_goes_on_after_a_disconnect_and_ends_with_the_same_results(
    undisturbed, place, address, environment
):
    drive = place / "drive"
    with pytest.raises(DeadKernelError):
        run_notebook("loc", place / "first", drive, address, environment, SHORTER + KILL, short=True)
    assert not (drive / "MyDrive/digit-runs/smoke").exists()  # it did not come to the results
    notebook = run_notebook("loc", place / "second", drive, address, environment, SHORTER, short=True)
    said = printed(notebook)
    assert "SkreNet: loaded" in said
    assert "FloNet: continued after epoch 1" in said
    assert "SimpleNet: trained" in said
    assert results(drive) == undisturbed


def test_detection_runs_from_top_to_bottom(place, address, environment):
    machine, drive = place / "detection", place / "detection-drive"
    notebook = run_notebook("det", machine, drive, address, environment, SHORTER)
    check_whole_run(notebook, machine, drive, "det")


# ------------------------------------------------------------------------------------------- the set-up cell


def run_setup(folder, address, drive, environment, times=1):
    """Run the set-up cell as a program in the folder. The folder itself is not on Python's path, as in Colab once the
    cell has changed to another."""
    source = adapt(setup_cell(nbformat.read(HOME / NOTEBOOKS["loc"], as_version=4)).source, address, drive)
    program = folder.parent / "program" / "setup.py"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"{source}\n" * times + "import data, models, utils\nprint(training.runs_folder())\n")
    return subprocess.run([sys.executable, program], cwd=folder, env=environment, capture_output=True, text=True)


def test_both_notebooks_have_the_same_setup():
    cells = [nbformat.read(HOME / name, as_version=4).cells for name in NOTEBOOKS.values()]
    first, second = (
        [one.source for pair in itertools.pairwise(each) if "prepare_colab" in pair[1].source for one in pair]
        for each in cells
    )
    assert first == second
    assert len(first) == 2


def test_setup_says_what_to_do_where_no_address_is_given(tmp_path, environment):
    folder = tmp_path / "machine"
    folder.mkdir()
    done = run_setup(folder, PLACEHOLDER, tmp_path / "drive", environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ValueError: set REPOSITORY")
    assert list(folder.iterdir()) == []


def test_setup_survives_a_clone_that_is_cut_off_and_being_run_again(tmp_path, address, environment):
    folder, drive = tmp_path / "machine", tmp_path / "drive"
    folder.mkdir()
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text('#!/bin/sh\nfor part; do :; done\nmkdir -p "$part/.git"\ntouch "$part/training.py"\nkill -9 $$\n')
    git.chmod(0o755)
    cut_off = {**environment, "PATH": f"{git.parent}:{environment['PATH']}"}
    done = run_setup(folder, address, drive, cut_off)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"RuntimeError: cannot clone {address}")
    assert len(list(folder.iterdir())) == 1  # what the clone left behind
    done = run_setup(folder, address, drive, environment, times=2)
    assert done.returncode == 0, done.stderr
    runs = drive / "MyDrive" / "digit-runs"
    assert done.stdout.splitlines()[-1] == str(runs)
    assert list(runs.iterdir()) == []
    assert (folder / "digits" / "training.py").is_file()
    # A kernel started anew on the same machine takes the clone that is there.
    done = run_setup(folder, f"{address}-moved", drive, environment)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- Drive


@pytest.fixture
def runs_dir(monkeypatch):
    """The environment variable RUNS_DIR: unset, and as before afterwards."""
    monkeypatch.setenv("RUNS_DIR", "")  # remembers what was there
    monkeypatch.delenv("RUNS_DIR")
    return lambda: os.environ.get("RUNS_DIR")


def decline(mount_point):
    raise ValueError("mount failed")


def mount_read_only(mount_point):
    Path(mount_point).mkdir()
    (Path(mount_point) / "MyDrive").write_text("a file, so that nobody can write below it, root neither")


@pytest.mark.parametrize("mount", [decline, mount_read_only])
def test_runs_stay_on_the_machine_without_a_usable_drive(mount, tmp_path, runs_dir, capsys):
    training.prepare_colab(SimpleNamespace(mount=mount), tmp_path / "drive")
    said = capsys.readouterr().out
    assert said.startswith("No Drive (")
    assert said.endswith("runs are kept on this machine only and are lost with it.\n")
    assert runs_dir() is None
    assert training.runs_folder() == Path("runs")


def test_drive_may_be_taken_on_second_thought_and_lost_again(tmp_path, runs_dir):
    mounted = []
    for mount, expected in (
        (decline, None),
        (mounted.append, str(tmp_path / "MyDrive" / "digit-runs")),
        (mounted.append, str(tmp_path / "MyDrive" / "digit-runs")),
        (decline, None),
    ):
        training.prepare_colab(SimpleNamespace(mount=mount), tmp_path)
        assert runs_dir() == expected
    assert mounted == [str(tmp_path)] * 2


def test_a_runs_folder_of_ones_own_is_respected(tmp_path, runs_dir, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "mine"))
    training.prepare_colab(SimpleNamespace(mount=decline), tmp_path / "drive")
    assert runs_dir() == str(tmp_path / "mine")
    assert "as RUNS_DIR says" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- packages


def write_wheel(folder, name, version, needs=()):
    """A wheel that pip takes, with nothing in it but a module that holds its version."""
    information = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{information}/METADATA": "\n".join(
            ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            + [f"Requires-Dist: {need}" for need in needs]
        ),
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            record += f"{path},sha256={digest},{len(text)}\n"
        archive.writestr(f"{information}/RECORD", f"{record}{information}/RECORD,,\n")


@pytest.fixture
def colab_packages(tmp_path, monkeypatch):
    """pip works on an environment that has this one's torch and nothing else, from an index with a newer torch.
    Gives the index's folder, and a function that says which versions the environment has."""
    index, target = tmp_path / "index", tmp_path / "environment"
    index.mkdir()
    venv.create(target, with_pip=False)
    torch = importlib.metadata.version("torch")
    for name, value in {
        "PIP_PYTHON": str(target / "bin" / "python"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    write_wheel(index, "torch", torch)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"torch=={torch}"], check=True)
    write_wheel(index, "torch", "99.0")
    write_wheel(index, "pycocotools", pinned("pycocotools"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("torchmetrics", "pycocotools") else find(name, *rest),
    )
    (packages,) = target.glob("lib/python*/site-packages")
    return index, lambda: {
        found.metadata["Name"]: found.version for found in importlib.metadata.distributions(path=[str(packages)])
    }


def pinned(name):
    """The version that requirements.txt names."""
    (line,) = [line for line in (HOME / "requirements.txt").read_text().splitlines() if line.startswith(f"{name}==")]
    return line.split("#")[0].split("==")[1].strip()


def test_what_is_lacking_is_installed_in_the_versions_of_the_requirements(colab_packages, capsys):
    index, installed = colab_packages
    before = installed()
    write_wheel(index, "torchmetrics", pinned("torchmetrics"), ["torch>=2.0", "lightning-utilities"])
    write_wheel(index, "torchmetrics", "99.0")
    write_wheel(index, "lightning_utilities", "0.15")
    training.install_lacking(("torchmetrics", "pycocotools"))
    expected = {"torchmetrics": pinned("torchmetrics"), "pycocotools": pinned("pycocotools")}
    assert installed() == {**before, **expected, "lightning_utilities": "0.15"}
    assert before["torch"] == importlib.metadata.version("torch")
    assert f"installing torchmetrics=={pinned('torchmetrics')}" in capsys.readouterr().out


def test_torch_stays_as_it_is_even_where_a_package_wants_another(colab_packages):
    index, installed = colab_packages
    before = installed()
    write_wheel(index, "torchmetrics", pinned("torchmetrics"), ["torch>=99"])
    with pytest.raises(RuntimeError, match=r"pip cannot install torchmetrics, pycocotools:\n(.|\n)*torch>=99"):
        training.install_lacking(("torchmetrics", "pycocotools"))
    assert installed() == before


def test_nothing_is_installed_where_nothing_is_lacking(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    training.install_lacking(("json", "torch"))
