"""Colab, as a new user meets it: a folder that holds nothing but the notebook, and stand-ins for google.colab."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import venv
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from urllib.parse import quote

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

import models
import training
from data.sources import course_files
from training import colab

HOME = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/someone/name"  # what git is sent elsewhere for
BRANCH = "hand-in/2026"
# google.colab, by module. What the user answers stands in the environment.
STAND_INS = {
    "drive": """
        import os
        def mount(to):
            if "DRIVE" not in os.environ:
                raise ValueError("mount failed")
            os.makedirs(to, exist_ok=True)
            if not os.path.exists(f"{to}/MyDrive"):
                os.symlink(os.environ["DRIVE"], f"{to}/MyDrive")
            print("Mounted at", to)
    """,
    "files": """
        import os, shutil
        def upload():
            if "UPLOAD" in os.environ:
                shutil.copy(os.environ["UPLOAD"], ".")
    """,
    "_message": """
        import json, os
        def blocking_request(kind, request, timeout_sec):
            if kind == "get_ipynb" and request == "" and timeout_sec > 0 and "METADATA" in os.environ:
                return {"ipynb": {"metadata": json.loads(os.environ["METADATA"])}}
    """,
}
# What costs time and is tried elsewhere: saving images, learning a batch by heart, comparing recipes.
SHORTER = """
import utils
training.Lab.save_figure = lambda lab, figure, name: utils.plt.close(figure)
training.Lab.overfit = lambda *_, steps, **__: [0.0] * steps
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
def source(place):
    """A repository that holds the files as they lie here, but for large ones, committed or not."""
    without = (".git", ".venv", "runs", "made", "MNIST", "*.pt", "*cache*", "published-*")
    source = shutil.copytree(HOME, place / "source", ignore=shutil.ignore_patterns(*without))
    commit(source, BRANCH)
    return source


def commit(folder, branch):
    """Make a folder a repository, with its files in this branch, which is not the one that git takes by default."""
    author = "-c user.name=t -c user.email=t -c commit.gpgsign=false"
    for command in (
        f"init -q -b {branch}",
        "add -A",
        f"{author} commit -q -m test",
        "symbolic-ref HEAD refs/heads/main",
    ):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)


def opened_from(repository, branch=BRANCH, folder=""):
    """The notebook's address on GitHub, and an environment in which git finds the repository there."""
    names = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf"}
    return f"{ADDRESS}/blob/{branch}/{folder}localization.ipynb", {**names, "GIT_CONFIG_VALUE_0": ADDRESS}


def in_provenance(address):
    """The notebook's metadata where it was copied to Drive from the address."""
    return {"METADATA": json.dumps({"colab": {"provenance": [{"file_id": address, "timestamp": 1}]}})}


@pytest.fixture
def in_session():
    """A function: an environment in which the session says that the notebook was opened from an address."""
    servers = []

    def serve(address):
        class Sessions(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/api/sessions" else 404)
                self.end_headers()
                sessions = [{"path": "fileId=1a2b"}, {"path": f"fileId={quote(address, safe='')}", "name": "x"}]
                self.wfile.write(json.dumps(sessions).encode())

            log_message = print

        servers.append(HTTPServer(("127.0.0.1", 0), Sessions))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        port = servers[-1].server_port
        return {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": str(port), "no_proxy": "127.0.0.1"}

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def environment(place):
    """The environment variables of a kernel on the stand-in for Colab, whose Drive is empty."""
    package = place / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    for name, text in STAND_INS.items():
        (package / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    (package / "__init__.py").touch()
    (place / "drive").mkdir()
    # One core and no GPU, so that two runs end with the same numbers.
    given = {"PROFILE": "smoke", "DATA_SOURCE": "digits", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    given |= {"PYTHONPATH": str(package.parent.parent), "RUNS_DIR": "", "DATA_DIR": "", "DRIVE": str(place / "drive")}
    return os.environ | given


def read(task):
    """A task's notebook, and of its set-up the text, the cell that gets the modules, and the one that uses them."""
    notebook = nbformat.read(HOME / f"{training.NAMES[task]}.ipynb", as_version=4)
    (number,) = [number for number, cell in enumerate(notebook.cells) if "prepare_colab" in cell.source]
    return notebook, *notebook.cells[number - 2 : number + 1]


def sources_on(machine, finds, uses):
    """The two cells' sources, with Drive in the machine's folder and not in /content, where tests may not write."""
    drive = machine / "drive"
    assert finds.source.count('"/content/drive"') == uses.source.count("prepare_colab()") == 1
    source = uses.source.replace("prepare_colab()", f"prepare_colab({str(drive)!r})")
    return finds.source.replace('"/content/drive"', repr(str(drive))), source


def run_notebook(task, machine, environment, then=""):
    """Open the notebook on a machine, a folder, and run all of it, the set-up twice, as users do, and then `then`.
    Returns what was printed."""
    machine.mkdir(exist_ok=True)
    notebook, _, finds, uses = read(task)
    finds.source, uses.source = sources_on(machine, finds, uses)
    uses.source = f"{uses.source}\n{uses.source}\n{then}"
    client = NotebookClient(notebook, timeout=600, startup_timeout=600, kernel_name="python3")
    client.resources = {"metadata": {"path": str(machine)}}
    client.execute(env=environment)
    printed = "".join(output.get("text", "") for each in notebook.cells for output in each.get("outputs", []))
    assert f"Mounted at {machine}/drive\nRuns are kept on Drive" in printed
    assert {output.get("name") for output in (*finds.outputs, *uses.outputs)} == {"stdout"}  # git and pip are silent
    assert not (machine / "digits/runs").exists()
    return printed


def run_setup(machine, environment, patience=20, then=lambda: None):
    """Run the set-up on a machine, a folder, as in a new kernel, twice, as users do, and then call `then`. Returns the
    modules' folder."""
    machine.mkdir(exist_ok=True)
    finds, uses = sources_on(machine, *read("loc")[2:])
    assert finds.count(", 20  #") == 1
    finds, names = finds.replace(", 20  #", f", {patience}  #"), {}
    ours = {"google", "training", "data", "models", "utils"}
    environment = {"RUNS_DIR": "", "DATA_DIR": "", **environment}
    with mock.patch.dict(sys.modules), mock.patch.dict(os.environ, environment), pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
            del sys.modules[name]
        patch.chdir(machine)
        elsewhere = [path for path in sys.path if Path(path).resolve() != HOME]  # pytest is pointed there
        patch.setattr(sys, "path", [str(machine), environment.get("PYTHONPATH", ""), *elsewhere])
        for source in (finds, uses, finds, uses):
            exec(source, names)
        assert Path(sys.modules["training"].__file__).resolve().parent.parent == Path.cwd()
        then()
        return Path.cwd()


def test_localization_goes_on_after_a_disconnect_as_if_nothing_was(
    place, source, environment, in_session, one_core, monkeypatch
):
    address, redirected = opened_from(source)
    environment = {**environment, **redirected, **in_session(address)}
    with pytest.raises(DeadKernelError):
        run_notebook("loc", place / "first", environment, SHORTER + KILL)
    printed = run_notebook("loc", place / "second", environment, SHORTER)
    for said in ("SkreNet: loaded", "FloNet: continued after epoch 1", "SimpleNet: trained", "CompactNet: trained"):
        assert said in printed
    assert (place / "second/digits/data/made").is_dir()  # the clone's modules were used, from its folder
    found = json.loads((place / "drive/digit-runs/smoke/figures/results.json").read_text(encoding="utf-8"))
    for name, value in {**environment, "RUNS_DIR": str(place / "undisturbed")}.items():
        monkeypatch.setenv(name, value)
    (run,) = training.open_lab("loc").train([models.FloNet])
    assert [found["loc"]["networks"]["FloNet"][part] for part in ("train", "val")] == [run.train, run.val]


def write_foreign(folder):
    """What is called like ours and is not."""
    for name in ("training", "digits"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ValueError('not ours')", encoding="utf-8")
    with zipfile.ZipFile(folder / "foreign.zip", "w") as archive:
        archive.writestr("training/colab.py", "")
    return folder


def write_outline(folder):
    """What makes a folder ours."""
    for name in ("training/__init__.py", "training/colab.py", "data/sources.py", "models.py", "utils.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("def prepare_colab(mount_point): pass", encoding="utf-8")
    (folder / "requirements.txt").touch()


@pytest.mark.parametrize("way", ["session", "provenance", "zip", "drive", "upload"])
def test_modules_come_each_way_and_again_after_a_disconnect(way, tmp_path, source, environment, in_session):
    packed, drive, machines = tmp_path / "name-main.zip", tmp_path / "drive", [tmp_path / "first", tmp_path / "second"]
    for folder in (drive, *machines):
        write_foreign(folder)
    address, redirected = opened_from(source)
    told = {"UPLOAD": str(packed)} if way == "upload" else {}
    if way in ("session", "provenance"):
        told = redirected | (in_session(address) if way == "session" else in_provenance(address))
    elif way == "drive":
        shutil.copytree(source, drive / "Courses" / "second hand-in")
    else:
        subprocess.run(["git", "archive", "--prefix=name-main/", "-o", packed, BRANCH], cwd=source, check=True)
    if way == "zip":
        shutil.copy(packed, machines[0])
        shutil.copy(packed, machines[1])
    environment = {**environment, "DRIVE": str(drive)}
    expected = [drive / "Courses/second hand-in"] * 2 if way == "drive" else [each / "digits_" for each in machines]

    def runs():
        return Path(os.environ["RUNS_DIR"])

    assert run_setup(machines[0], environment | told, then=lambda: (runs() / "a run").touch()) == expected[0]
    (machines[0] / packed.name).unlink(missing_ok=True)
    # In a new kernel on the same machine nothing is fetched again; a new machine has nothing.
    for machine, given, folder in ((machines[0], {}, expected[0]), (machines[1], told, expected[1])):
        assert run_setup(machine, environment | given, then=lambda: (runs() / "a run").stat()) == folder
    assert not list(tmp_path.glob("*/tmp*"))


def test_a_branch_may_be_followed_by_folders(tmp_path, environment):
    write_outline(tmp_path / "source" / "two" / "folders")
    commit(tmp_path / "source", BRANCH)
    address, redirected = opened_from(tmp_path / "source", folder="two/folders/")
    told = {**environment, **redirected, **in_provenance(address)}
    assert run_setup(tmp_path / "machine", told) == tmp_path / "machine" / "digits"


def test_setup_survives_a_clone_that_is_cut_off(tmp_path, source, environment):
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text("#!/bin/sh\nmkdir -p all/.git all/training\nkill -9 $$\n", encoding="utf-8")
    git.chmod(0o755)
    address, redirected = opened_from(source)
    environment = {**environment, **redirected, **in_provenance(address)}
    with pytest.raises(FileNotFoundError, match=f"cannot clone {ADDRESS}, "):
        run_setup(tmp_path / "machine", {**environment, "PATH": f"{git.parent}:{environment['PATH']}"})
    assert [path.name for path in (tmp_path / "machine").iterdir()] == ["drive"]
    assert run_setup(tmp_path / "machine", environment) == tmp_path / "machine" / "digits"


def test_where_no_modules_are_found_it_is_said_what_was_tried(tmp_path, environment):
    """Of each way, whatever is in it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "env").symlink_to(shutil.which("env"))
    drive, declined = tmp_path / "drive", {name: value for name, value in environment.items() if name != "DRIVE"}
    write_outline(drive / "deep")
    address, away = opened_from(tmp_path / "private")
    elsewhere = {**declined, "PYTHONPATH": ""}
    for number, (given, patience, said) in enumerate((
        (declined, 20, ("from before: none", "GitHub: the notebook was not opened from there", "notebook: none")),
        (declined, 20, ("Drive: mount failed", "upload: none", "Put the project's zip beside")),
        ({**declined, **away, **in_provenance(address)}, 20, (f"cannot clone {ADDRESS}, is it private? (fatal: ",)),
        ({**declined, **in_provenance(address), "PATH": str(tmp_path / "bin")}, 20, ("git", "No such file")),
        ({**environment, "DRIVE": str(drive)}, 0, ("Drive: not found in 0 seconds",)),
        ({**environment, "KAGGLE_KERNEL_RUN_TYPE": "Batch"}, 20, ("Drive: not on Kaggle", "upload: not on Kaggle")),
        (elsewhere, 20, ("GitHub: only on Colab", "Drive: only on Colab", "upload: only on Colab")),
    )):  # fmt: skip
        machine = tmp_path / str(number)
        with pytest.raises(FileNotFoundError) as caught:
            run_setup(machine, given, patience)
        assert [piece for piece in said if piece not in str(caught.value)] == [], caught.value
    (machine / "cut off.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"cut off\.zip is damaged \(File is not a zip file\)"):
        run_setup(machine, elsewhere)


def test_setup_does_nothing_where_the_modules_lie_and_colab_is_not(source, environment, capsys):
    before = {**os.environ, **environment, "PYTHONPATH": ""}

    def then():
        assert dict(os.environ) == before
        assert sys.path[:2] == [str(source), ""]

    assert run_setup(source, before, then=then) == source
    assert not any(capsys.readouterr())


def test_both_notebooks_have_the_same_setup_of_three_lines():
    setups = []
    for task in training.NAMES:
        notebook, *cells = read(task)
        setups.append([(cell.source, cell.metadata) for cell in cells])
        about = notebook.metadata
        assert (about.accelerator, about.colab.toc_visible) == ("GPU", True)
    assert setups[0] == setups[1]
    _, (finds, folded), (uses, _) = setups[0]
    assert finds.startswith("# @title ")
    assert folded.cellView == "form"
    assert len([line for line in uses.splitlines() if line]) == 3


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SOAK"), reason="in `make soak`; detection's set-up is that of localization")
def test_detection_runs_from_top_to_bottom(place, source, environment, in_session):
    address, redirected = opened_from(source)
    run_notebook("det", place / "third", {**environment, **redirected, **in_session(address)}, SHORTER)


def decline(mount_point):
    raise ValueError("mount failed")


def set_up(monkeypatch, mount, point):
    """Call `prepare_colab` where google.colab is there, with this function to mount Drive."""
    package = SimpleNamespace(drive=SimpleNamespace(mount=mount))
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace(colab=package))
    monkeypatch.setitem(sys.modules, "google.colab", package)
    colab.prepare_colab(point)


def test_runs_are_kept_on_drive_where_that_can_be(tmp_path, monkeypatch, capsys):
    """It may be declined, taken on second thought, and lost again; a folder of one's own is respected."""
    monkeypatch.setenv("RUNS_DIR", "")
    monkeypatch.setenv("DATA_SOURCE", "digits")
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
        set_up(monkeypatch, mount, point)
        assert os.environ.get("RUNS_DIR") == expected
        assert said in capsys.readouterr().out
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    set_up(monkeypatch, lambda to: pytest.fail("Kaggle was asked for Drive"), tmp_path)
    assert capsys.readouterr().out == f"No Drive (Kaggle has none): {lost}\n"
    assert "RUNS_DIR" not in os.environ


def test_the_courses_files_are_found_beside_the_notebook_and_on_drive(tmp_path, monkeypatch, capsys):
    start, point = tmp_path / "content", tmp_path / "content" / "drive"
    names = [path.name for path in course_files(start, "det")]

    def put(folder, *names):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).touch()
        return folder

    def found(mount=print, given=""):
        monkeypatch.setenv("DATA_DIR", given)
        set_up(monkeypatch, mount, point)
        return os.environ["DATA_DIR"] and Path(os.environ["DATA_DIR"])

    monkeypatch.setenv("RUNS_DIR", "")
    monkeypatch.setenv("DATA_SOURCE", "")
    monkeypatch.setattr(colab, "FOLDER", tmp_path / "project" / "data")
    put(point / "MyDrive" / "a part of them", names[0])
    assert found() == ""
    assert "nor found on Drive in 20 s" in capsys.readouterr().out
    on_drive = put(point / "MyDrive" / "Course" / "hand-in 2" / "files", *names)
    assert found(decline) == ""
    assert found() == on_drive
    assert f"The course's files are taken from {on_drive}." in capsys.readouterr().out
    monkeypatch.setattr(colab, "LONGEST_SEARCH", -1.0)
    assert found() == on_drive  # as noted
    on_drive.rename(on_drive.with_name("moved"))
    assert found() == ""
    for folder in (start, start / "data", colab.FOLDER):  # each before the others, and though some are not there yet
        put(folder, names[0])
        assert found() == folder
    assert found(given="elsewhere") == Path("elsewhere")
    monkeypatch.setenv("DATA_SOURCE", "mnist")
    assert found() == ""


def write_wheel(folder, name, version):
    """A wheel that pip takes: nothing but a wish for a newer torch."""
    about = f"{name.replace('-', '_')}-{version}"
    needs = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: torch>=99\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{about}-py3-none-any.whl", "w") as archive:
        for part, text in (("METADATA", needs), ("WHEEL", tags), ("RECORD", "")):
            archive.writestr(f"{about}.dist-info/{part}", text)


def test_modules_and_tables_do_without_what_colab_lacks_and_the_notebooks_do_not_install():
    """Optuna, which only the search needs."""
    code = (
        "import sys; sys.modules['optuna'] = None; import training; print(training.study_table('det', 'full_length'))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, encoding="utf-8")
    assert told.returncode == 0, told.stderr
    assert "no. 1 of the search" in told.stdout


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
