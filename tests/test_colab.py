"""Colab, as a new user meets it: a folder that holds nothing but the notebook, and a stand-in for google.colab."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
from cases import HOME, NOTEBOOKS

from data.sources import course_files
from training import colab

TITLE = "# @title Set-up: finds the modules (nothing to read or to change here)\n"
REFUSAL = "No modules (private repository?): put the project's zip beside the notebook, run again."
GITHUB = "https://github.com/"
CELL, SAME = (cell for notebook in NOTEBOOKS.values() for cell in notebook.cells if cell.source.startswith(TITLE))
FILES, TEXT = ("training/__init__.py", "training/colab.py"), "ORIGIN = {!r}\ndef prepare_colab(): pass\n"
PLACES = ["beside", "digits", "session", "provenance", "zip", "upload"]  # where modules are looked for
STAND_IN = """# What is answered stands in the environment; it lacks what nobody answers.
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
pytestmark = pytest.mark.skipif(os.name == "nt" or not shutil.which("git"), reason="Colab is a Unix with git")


def write_project(folder, origin):  # all that the cell knows of it
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(TEXT.format(origin), encoding="utf-8")
    return folder


def write_zip(path, content, prefix=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in FILES:
            archive.writestr(prefix + name, content)
    return path


def publish(folder):  # as a repository, in a branch that git does not take by default
    who = "-c user.name=t -c user.email=t -c commit.gpgsign=false"
    for command in ("init -q -b hand-in", "add -A", f"{who} commit -q -m test", "symbolic-ref HEAD refs/heads/main"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)


@pytest.fixture(scope="module")
def on_colab(tmp_path_factory):
    """The environment variables of Colab, in whose place stand google.colab, what git finds instead of GitHub, and a
    curl that says what the session does, SESSION."""
    place = tmp_path_factory.mktemp("colab")
    (place / "google" / "colab").mkdir(parents=True)
    (place / "google" / "colab" / "__init__.py").write_text(STAND_IN, encoding="utf-8")
    (place / "sitecustomize.py").write_text("import google.colab", encoding="utf-8")  # as Colab's kernel has done
    (place / "curl").touch(0o755)
    (place / "curl").write_text('#!/bin/sh\n[ "$2" = http://colab:9000/api/sessions ] && echo "$SESSION"\n')
    write_project(place / "some" / "opened" / "a" / "old", "an older one")
    publish(write_project(place / "some" / "opened" / "a", "session").parent)
    publish(write_project(place / "some" / "copied", "provenance"))
    return {
        "COLAB_JUPYTER_IP": "colab", "KMP_TARGET_PORT": "9000", "PATH": f"{place}:{os.environ['PATH']}",
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{place.as_uri()}/.insteadOf", "GIT_CONFIG_VALUE_0": GITHUB,
        "PYTHONPATH": str(place),
    }  # fmt: skip


def run_cell(machine, told):
    """Run the set-up cell twice, as users do, in a folder. Returns the lines that are printed, the last the origin."""
    code = f"{CELL.source}\n" * 2 + "print(training.ORIGIN)"
    env = os.environ | told | {"PYTHONPATH": f"{machine}:{told.get('PYTHONPATH', '')}"}  # /content comes first on Colab
    done = subprocess.run([sys.executable, "-Pc", code], cwd=machine, env=env, capture_output=True)
    return [line.strip() for line in (done.stdout + done.stderr).decode().splitlines()]


def refuse(machine, told):
    """Whom the cell asks, and what it says of each way that it tried in vain, and no more. It leaves nothing behind."""
    before, lines = sorted(machine.rglob("*")), run_cell(machine, told)
    said = lines[len(lines) - lines[::-1].index(REFUSAL) :]
    assert sorted(machine.rglob("*")) == before
    return [line for line in lines if line not in (REFUSAL, *said)], said


@pytest.mark.parametrize("first", PLACES)
def test_modules_are_taken_from_the_first_place_that_has_them(first, tmp_path, on_colab):
    machine, told, there = tmp_path / "content", {**on_colab}, PLACES[PLACES.index(first) :]
    (write_project(machine, "not ours") / "training" / "colab.py").unlink()
    told["UPLOAD"] = str(write_zip(tmp_path / "c.zip", TEXT.format("upload")))
    if "zip" in there:
        write_zip(machine / "b.zip", TEXT.format("zip"), "../../name-main/")  # what climbs out stays inside
        (machine / "a.zip").write_bytes(b"PK")
    if "provenance" in there:
        told["COPIED"] = "copied"
    if "session" in there:
        told["SESSION"] = "fileId=https%3A%2F%2Fgithub.com%2Fsome%2Fopened%2Fblob%2Fhand-in%2Fa%2Fb.ipynb"
    for place, folder in (("digits", machine / "digits"), ("beside", machine)):
        if place in there:
            write_project(folder, place)
    asked = ["asked get_ipynb", REFUSAL, "asked upload"][: {"digits": 0, "beside": 0, "upload": 3}.get(first, 1)]
    assert run_cell(machine, told) == [*asked, first]
    assert not list(machine.glob("tmp*"))


def test_where_no_modules_are_found_it_is_said_what_was_tried(tmp_path, on_colab):
    """And nobody is asked on Kaggle, whose google.colab nobody answers; nor elsewhere."""
    machine = tmp_path / "content"
    write_project(machine / "tmpcut-off" / "all", "a clone that was cut off together with its kernel")
    assert refuse(machine, on_colab) == (["asked get_ipynb", "asked upload"], [])
    assert refuse(machine, on_colab | {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}) == refuse(machine, {}) == ([], [])
    _, said = refuse(machine, on_colab | {"COPIED": "private"})
    assert re.fullmatch(f"- {GITHUB}some/private: .*(exist|found).*", *said)
    whole = write_zip(tmp_path / "whole.zip", TEXT).read_bytes()
    for name, content in (("1.zip", whole[:100]), ("2.zip", whole.replace(b"ORIGIN", b"origin", 1))):
        (machine / name).write_bytes(content)
    _, said = refuse(machine, on_colab)
    assert re.fullmatch(r"- .*1\.zip: .* not a zip file\n- .*2\.zip: .* Bad CRC-32.*", "\n".join(said))


def test_both_notebooks_have_the_same_short_setup_which_does_nothing_beside_the_modules(monkeypatch, capsys):
    for notebook in NOTEBOOKS.values():
        assert (notebook.metadata.accelerator, notebook.metadata.colab.toc_visible) == ("GPU", True)
    assert (CELL.source, CELL.metadata, CELL.metadata.cellView) == (SAME.source, SAME.metadata, "form")
    assert len(CELL.source.splitlines()) <= 30
    monkeypatch.chdir(HOME)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(os.environ)
    exec(CELL.source, {})
    assert (dict(os.environ), Path.cwd(), *capsys.readouterr()) == (before, HOME, "", "")


def prepare(tmp_path, capsys, **told):
    """Call `prepare_colab` on Colab. Returns RUNS_DIR, DATA_DIR and the lines that are printed."""
    google_colab, home = ModuleType("google.colab"), tmp_path / "content" / "digits"
    exec(STAND_IN, vars(google_colab))
    modules = mock.patch.dict(sys.modules, {"google.colab": google_colab})
    environment = mock.patch.dict(os.environ, {"RUNS_DIR": "", "DATA_DIR": "", "DATA_SOURCE": "", **told})
    with modules, environment, mock.patch.multiple(colab, HOME=home, FOLDER=home / "data", install_missing=str):
        colab.prepare_colab(tmp_path / "content" / "drive")
        return os.environ.get("RUNS_DIR"), os.environ["DATA_DIR"], capsys.readouterr().out.splitlines()


def test_runs_are_kept_on_drive_where_that_can_be(tmp_path, capsys):
    """It may be declined, full, or a mount gone stale; a folder of one's own is respected."""
    there, drive = str(tmp_path / "content" / "drive" / "MyDrive" / "digit-runs"), {"DRIVE": str(tmp_path)}
    kept = "Runs are kept on Drive"
    for told, runs, *said in (
        ({"RUNS_DIR": there}, None, "asked mount", "No Drive ('DRIVE'): runs kept there before are"),
        ({"DRIVE": "/dev/null"}, None, "asked mount", "asked mount by force", "No Drive (/"),  # nobody can write there
        (drive, there, "asked mount", "asked mount by force", kept),  # what is mounted is still the one above
        ({**drive, "RUNS_DIR": there}, there, "asked mount", kept),
        ({**drive, "RUNS_DIR": "mine"}, "mine", "Runs are kept in mine, as RUNS_DIR says"),
        ({**drive, "KAGGLE_KERNEL_RUN_TYPE": "Batch"}, None, "No Drive (Kaggle has none): runs kept there before"),
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
    assert prepare(tmp_path, capsys, DATA_DIR="mine")[1] == "mine"
    assert prepare(tmp_path, capsys, DATA_SOURCE="mnist")[1] == ""
    for path, folder in zip(files, places):
        assert prepare(tmp_path, capsys)[1] == (str(folder) if folder in beside else "")  # Drive is declined
        _, taken, printed = prepare(tmp_path, capsys, **agreed)
        assert (taken, printed[-1]) == (str(folder), f"The course's files are taken from {folder}")
        path.unlink()
    assert prepare(tmp_path, capsys, **agreed)[2][-1].endswith(f"are in none of {', '.join(map(str, places))}")


def test_what_is_missing_is_installed_as_the_requirements_say_and_alone(monkeypatch):
    calls, names = [], ("torchmetrics", "lightning-utilities", "json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "json" else None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append((command[1:], check)))
    colab.install_missing(names)
    colab.install_missing(("json",))  # which is there
    pins = re.findall(rf"^(?:{'|'.join(names)})==[\w.]+", (HOME / "requirements.txt").read_text(encoding="utf-8"), re.M)
    assert (len(pins), calls) == (2, [(["-m", "pip", "install", "--quiet", "--no-deps", *pins], True)])
