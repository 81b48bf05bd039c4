"""Colab, as a new user meets it: a folder that holds nothing but the notebook, and a stand-in for google.colab."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from unittest import mock
from urllib.parse import quote

import nbformat
import pytest

import training
from data.sources import course_files
from training import colab

HOME = Path(__file__).resolve().parent.parent
TITLE = "# @title Set-up: finds the modules (nothing to read or to change here)\n"
REFUSAL = "No modules (private repository?): put the project's zip beside the notebook, run again."
GITHUB = "https://github.com/"
FILES, TEXT = ("training/__init__.py", "training/colab.py"), "ORIGIN = {!r}\ndef prepare_colab(to): pass\n"
PLACES = ["beside", "digits", "session", "provenance", "zip", "upload"]  # where modules are looked for
# What is answered stands in the environment; it lacks what nobody answers.
STAND_IN = """
import os, shutil
from types import SimpleNamespace
def mount(to, force_remount=False):
    print("asked mount" + " by force" * force_remount)
    answer = os.environ["DRIVE"]
    if force_remount or not os.path.lexists(f"{to}/MyDrive"):
        shutil.rmtree(to, ignore_errors=True)
        os.makedirs(to)
        os.symlink(answer, f"{to}/MyDrive")
def upload():
    print("asked upload")
    return {os.path.basename(shutil.copy(path, ".")): b"" for path in [os.environ.get("UPLOAD")] if path}
def blocking_request(kind, request="", timeout_sec=5):
    print("asked", kind)
    address = f"https://github.com/some/{os.environ['COPIED']}/blob/hand-in/folder/x.ipynb"
    return {"ipynb": {"metadata": {"colab": {"provenance": [{"file_id": address, "timestamp": 1}]}}}}
drive, files, _message = (SimpleNamespace(**{each.__name__: each}) for each in (mount, upload, blocking_request))
"""
# Each network is trained for two epochs. The process dies in the second network's second.
KILL = """
import itertools, os
training.runs.SAVED_EVERY, epochs, whole = 0.0, itertools.count(1), training.loop.train_epoch
training.loop.train_epoch = lambda *inputs: whole(*inputs) if next(epochs) < 4 else os.kill(os.getpid(), 9)
"""
TRAIN = "import models; training.open_lab('loc').train([models.SimpleNet, models.FloNet])"
whole_unix = os.name != "nt" and shutil.which("git") and shutil.which("curl")
pytestmark = pytest.mark.skipif(not whole_unix, reason="Colab is a Unix with git and curl")


def write_project(folder, origin):
    """All that the cell knows of the project. Returns the folder."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(TEXT.format(origin), encoding="utf-8")
    return folder


def write_zip(path, content, *names):
    """A zip, which is returned, with these files, all of one content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def publish(folder):
    """Make a folder a repository, its files in a branch that git does not take by default."""
    who = "-c user.name=t -c user.email=t -c commit.gpgsign=false"
    for command in ("init -q -b hand-in", "add -A", f"{who} commit -q -m test", "symbolic-ref HEAD refs/heads/main"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)


@pytest.fixture(scope="module")
def on_colab(tmp_path_factory):
    """The environment variables of Colab. The folder PLACE holds the stand-in, what git finds instead of GitHub, and
    what the session says if it is asked at the port SESSION."""
    place = tmp_path_factory.mktemp("colab")
    for name, text in (
        ("google/colab/__init__.py", STAND_IN),
        ("sitecustomize.py", "import sys, google.colab; sys.modules['optuna'] = None"),  # which Colab lacks
        ("api/sessions", json.dumps([{"path": quote(f"fileId={GITHUB}some/opened/blob/hand-in/a/b.ipynb", safe="")}])),
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    write_project(place / "some" / "opened" / "a" / "old", "an older one")
    publish(write_project(place / "some" / "opened" / "a", "session").parent)
    publish(write_project(place / "some" / "copied", "provenance"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=place)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = {"COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": "1", "SESSION": str(server.server_port)}
        told |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{place.as_uri()}/.insteadOf", "no_proxy": "*"}
        yield {**told, "GIT_CONFIG_VALUE_0": GITHUB, "PYTHONPATH": str(place), "PLACE": str(place)}
        server.shutdown()
    shutil.rmtree(place)  # pytest would keep it for three more sessions


def read(task):
    """A task's notebook and its set-up cell."""
    notebook = nbformat.read(HOME / f"{training.NAMES[task]}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if cell.source.startswith(TITLE)]
    return notebook, cell


def run_cell(machine, told, then="print(training.ORIGIN)"):
    """Run the set-up cell twice, as users do, in a folder, and then this code. Returns the lines that are printed."""
    drive = str(machine / "drive")  # not in /content, where tests may not write
    code = f"{read('loc')[1].source}\n".replace("prepare_colab()", f"prepare_colab({drive!r})") * 2 + then
    env = os.environ | told | {"PYTHONPATH": f"{machine}:{told.get('PYTHONPATH', '')}"}  # /content comes first on Colab
    done = subprocess.run([sys.executable, "-Pc", code], cwd=machine, env=env, capture_output=True)
    return [line.strip() for line in (done.stdout + done.stderr).decode().splitlines()]


def refuse(machine, told):
    """Whom the cell asks, and what it says of each way that it tried in vain, and no more. It leaves nothing behind."""
    before, lines = sorted(machine.rglob("*")), run_cell(machine, told)
    said = lines[len(lines) - lines[::-1].index(REFUSAL) :]
    asked = [line for line in lines if line not in (REFUSAL, *said)]
    assert sorted(machine.rglob("*")) == before
    return asked, said


@pytest.mark.parametrize("first", PLACES)
def test_modules_are_taken_from_the_first_place_that_has_them(first, tmp_path, on_colab):
    machine, told, there = tmp_path / "content", {**on_colab}, PLACES[PLACES.index(first) :]
    (write_project(machine, "not ours") / "training" / "colab.py").unlink()
    told["UPLOAD"] = str(write_zip(tmp_path / "c.zip", TEXT.format("upload"), *FILES))
    if "zip" in there:
        write_zip(machine / "b.zip", TEXT.format("zip"), *(f"name-main/{name}" for name in FILES))
        (machine / "a.zip").write_bytes(b"PK")
    told |= {"COPIED": "copied"} if "provenance" in there else {}
    told["KMP_TARGET_PORT"] = told["SESSION" if "session" in there else "KMP_TARGET_PORT"]
    for place, folder in (("digits", machine / "digits"), ("beside", machine)):
        if place in there:
            write_project(folder, place)
    asked = ["asked get_ipynb", REFUSAL, "asked upload"][: {"digits": 0, "beside": 0, "upload": 3}.get(first, 1)]
    assert run_cell(machine, told) == [*asked, first]
    assert not list(machine.glob("tmp*"))


def test_where_no_modules_are_found_it_is_said_what_was_tried(tmp_path, on_colab):
    """And nobody is asked on Kaggle, whose google.colab nobody answers; nor elsewhere."""
    machine, both = tmp_path / "content", ["asked get_ipynb", "asked upload"]
    write_project(machine / "tmpcut-off" / "all", "a clone that was cut off together with its kernel")
    assert refuse(machine, on_colab) == (both, [])
    assert refuse(machine, on_colab | {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}) == refuse(machine, {}) == ([], [])
    told = on_colab | {"COPIED": "private"}
    asked, said = refuse(machine, told)
    assert asked == both
    assert re.fullmatch(f"- {GITHUB}some/private: .*(exist|found).*", *said)
    (tmp_path / "git").write_text(
        "#!/bin/sh\nmkdir -p all/training\ntouch all/training/colab.py\nkill -9 $$\n", encoding="utf-8"
    )
    (tmp_path / "git").chmod(0o755)
    told["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    assert refuse(machine, told) == (both, [f"- {GITHUB}some/private: no modules"])


def test_nothing_outside_what_was_unpacked_is_taken_or_moved(tmp_path, on_colab):
    """By a repository or a zip; and nothing of a zip that is damaged."""
    machine, linked = tmp_path / "content", Path(on_colab["PLACE"], "some", "linked")
    outside, link = write_project(tmp_path / "outside", "outside"), zipfile.ZipInfo("project")
    linked.mkdir()
    (linked / "project").symlink_to(outside)
    publish(linked)
    link.external_attr = 0o120777 << 16
    write_zip(machine / "1.zip", str(outside), link)
    whole = write_zip(tmp_path / "whole.zip", TEXT, *FILES).read_bytes()
    (machine / "2.zip").write_bytes(whole[:100])
    (machine / "3.zip").write_bytes(whole.replace(b"ORIGIN", b"origin", 1))
    asked, said = refuse(machine, on_colab | {"COPIED": "linked"})
    patterns = "some/linked: no modules", "1.zip: no modules", "2.zip: .* not a zip file", "3.zip: .* Bad CRC-32"
    assert asked == ["asked get_ipynb"]
    assert all(re.match(f"- .*{pattern}", line) for pattern, line in zip(patterns, said, strict=True)), said
    for kind, prefix in (("absolute", f"{outside}/"), ("above", "../../outside/")):
        write_zip(tmp_path / kind / "hostile.zip", TEXT.format("inside"), *(prefix + name for name in FILES))
        assert run_cell(tmp_path / kind, {}) == ["inside"]
    assert "'outside'" in (outside / FILES[0]).read_text(encoding="utf-8")


def test_both_notebooks_have_the_same_short_setup_which_does_nothing_beside_the_modules(monkeypatch, capsys):
    (notebook, cell), (other, same) = map(read, training.NAMES)
    for each in (notebook, other):
        assert (each.metadata.accelerator, each.metadata.colab.toc_visible) == ("GPU", True)
    assert (cell.source, cell.metadata, cell.metadata.cellView) == (same.source, same.metadata, "form")
    assert len(cell.source.splitlines()) <= 30
    monkeypatch.chdir(HOME)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(os.environ)
    exec(cell.source, {})
    assert (dict(os.environ), Path.cwd(), *capsys.readouterr()) == (before, HOME, "", "")


def test_training_goes_on_after_a_disconnect(tmp_path, on_colab):
    place, printed = Path(on_colab["PLACE"]), []
    without = shutil.ignore_patterns(".git", ".venv", "runs", "made", "MNIST", "*.pt", "*cache*")
    publish(shutil.copytree(HOME, place / "some" / "project", ignore=without))
    told = on_colab | {"COPIED": "project", "DRIVE": str(place), "RUNS_DIR": "", "DATA_DIR": "", "PROFILE": "smoke"}
    told |= {"DATA_SOURCE": "digits", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for machine, code in ((tmp_path / "first", KILL + TRAIN), (tmp_path / "second", TRAIN)):
        machine.mkdir()
        printed = run_cell(machine, told, code)
    for said in ("asked mount", "Runs are kept on Drive", "SimpleNet: loaded", "FloNet: continued after epoch 1"):
        assert any(line.startswith(said) for line in printed), printed
    assert not (tmp_path / "second" / "digits" / "runs").exists()


def prepare(tmp_path, capsys, **told):
    """Call `prepare_colab` on Colab. Returns RUNS_DIR, DATA_DIR and the lines that are printed."""
    google_colab, home = ModuleType("google.colab"), tmp_path / "content" / "digits"
    exec(STAND_IN, vars(google_colab))
    modules = mock.patch.dict(sys.modules, {"google.colab": google_colab})
    environment = mock.patch.dict(os.environ, {"RUNS_DIR": "", "DATA_DIR": "", "DATA_SOURCE": "", **told})
    with modules, environment, mock.patch.multiple(colab, HOME=home, FOLDER=home / "data"):
        colab.prepare_colab(tmp_path / "content" / "drive")
        return os.environ.get("RUNS_DIR"), os.environ["DATA_DIR"], capsys.readouterr().out.splitlines()


def test_runs_are_kept_on_drive_where_that_can_be(tmp_path, capsys):
    """It may be declined, full, or a mount gone stale; a folder of one's own is respected."""
    there, drive = str(tmp_path / "content" / "drive" / "MyDrive" / "digit-runs"), {"DRIVE": str(tmp_path)}
    kept, lost = "Runs are kept on Drive", "runs that earlier sessions kept there are not used,"
    for told, runs, *said in (
        ({}, None, "asked mount", f"No Drive ('DRIVE'): {lost}", "and runs are kept on this machine only"),
        ({"RUNS_DIR": there}, None, "asked mount", f"No Drive ('DRIVE'): {lost}"),
        ({"DRIVE": "/dev/null"}, None, "asked mount", "asked mount by force", "No Drive (/"),  # nobody can write there
        (drive, there, "asked mount", "asked mount by force", kept),  # what is mounted is still the one above
        ({**drive, "RUNS_DIR": there}, there, "asked mount", kept),
        ({**drive, "RUNS_DIR": "mine"}, "mine", "Runs are kept in mine, as RUNS_DIR says"),
        ({**drive, "KAGGLE_KERNEL_RUN_TYPE": "Batch"}, None, f"No Drive (Kaggle has none): {lost}"),
    ):
        now, _, printed = prepare(tmp_path, capsys, **told)
        assert (now, [line[: len(start)] for line, start in zip(printed, said)]) == (runs, said)


def test_the_courses_files_are_looked_for_in_named_places_in_this_order(tmp_path, capsys):
    content, drive = tmp_path / "content", tmp_path / "content" / "drive" / "MyDrive"
    beside = [content / "digits" / "data", content / "digits", content / "data", content]
    places, agreed = [*beside, drive, drive / "data", drive / "digit-data"], {"DRIVE": str(tmp_path / "drive")}
    (tmp_path / "drive").mkdir()
    prepare(tmp_path, capsys, **agreed)
    files = [course_files(folder, ("loc", "det")[number % 2])[-1] for number, folder in enumerate(places)]
    for path in (*files, drive / "Course" / files[0].name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert prepare(tmp_path, capsys, **agreed, DATA_DIR="mine")[1] == "mine"
    assert prepare(tmp_path, capsys, **agreed, DATA_SOURCE="mnist")[1] == ""
    for path, folder in zip(files, places):
        assert prepare(tmp_path, capsys)[1] == (str(folder) if folder in beside else "")  # Drive is declined
        _, taken, printed = prepare(tmp_path, capsys, **agreed)
        assert (taken, printed[-1]) == (str(folder), f"The course's files are taken from {folder}.")
        path.unlink()
    assert prepare(tmp_path, capsys, **agreed)[2][-1].endswith(f"are in none of {', '.join(map(str, places))}.")


def test_what_is_missing_is_installed_as_the_requirements_say_and_alone(monkeypatch, capsys):
    calls, done = [], subprocess.CompletedProcess((), 1, "Looking", "ERROR: no such version")
    names = ("torchmetrics", "lightning-utilities", "pycocotools", "json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "json" else None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command) or done)
    with pytest.raises(RuntimeError, match=r"pip cannot install .*, pycocotools:\nLooking(.|\n)*no such version"):
        colab.install_missing(names)
    pins = re.findall(rf"^(?:{'|'.join(names)})==[\w.]+", (HOME / "requirements.txt").read_text(encoding="utf-8"), re.M)
    pip = "-m pip install --disable-pip-version-check --no-deps"
    assert (len(pins), calls) == (3, [[sys.executable, *pip.split(), *pins]])
    done.returncode = 0
    colab.install_missing(names)
    colab.install_missing(("json",))  # which is there
    assert (len(calls), capsys.readouterr().out) == (2, f"installing {' '.join(pins)}\n" * 2)
