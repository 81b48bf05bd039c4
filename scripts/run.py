"""Runs the notebooks from top to bottom with a live progress line, and prints the results.

python scripts/run.py                 executed copies and HTML go under the runs folder
python scripts/run.py localization    one notebook alone
python scripts/run.py --store         publishes: outputs in the notebooks, figures, histories, weights, README's tables
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets.config import Config

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)

import data  # noqa: E402  (the project's modules are found only once its folder is on the path)
import training  # noqa: E402
from data import sources  # noqa: E402
from data.files import atomic_write, load_json  # noqa: E402
from training import tables  # noqa: E402

# Over TCP that is not encrypted, the default, the kernel prints a warning.
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})
# HTML cannot fold away the cell that fetches the modules on Colab.
WITHOUT = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"hide-input"}}})


class LiveClient(NotebookClient):
    """Executes a notebook and shows in a terminal, in one line, what it is doing and how training goes."""

    live = sys.stdout.isatty()

    def show(self, text: str) -> None:
        """Rewrite the live line, if there is a terminal."""
        if self.live:
            print(f"\r\x1b[K{text[: os.get_terminal_size().columns - 1]}", end="", flush=True)

    def process_message(self, msg, cell, cell_index):
        """Show what a kernel's message says of the progress, and pass it on to nbclient."""
        if msg["msg_type"] == "update_display_data":
            text = msg["content"]["data"].get("text/plain", "")
            if "\n" not in text and not text.startswith("<"):
                self.show(text)
        return super().process_message(msg, cell, cell_index)


def execute(path: Path, copy: Path) -> None:
    """Run one notebook. Writes the executed copy, and its HTML beside it, even if a cell fails."""
    notebook, began = nbformat.read(path, as_version=4), time.perf_counter()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # an unfinished copy must not show stored outputs as its own
            cell.outputs, cell.execution_count = [], None
    # A kernel that is asked to stop, and not killed, reports the interruption in twenty lines.
    options = {"kernel_name": "python3", "record_timing": False, "shutdown_kernel": "immediate", "config": ENCRYPTED}
    client = LiveClient(notebook, timeout=None, resources={"metadata": {"path": str(HOME)}}, **options)
    try:
        with client.setup_kernel():
            told = client.wait_for_reply(client.kc.kernel_info())
            notebook.metadata.language_info = told["content"]["language_info"]
            for number, cell in enumerate(notebook.cells):
                if cell.cell_type == "markdown" and (titles := re.findall("^#+ (.*)", cell.source, re.MULTILINE)):
                    client.show(f"{path.name}: {titles[-1]}")
                    if not client.live:
                        print(f"{path.name}: {titles[-1]} ({time.perf_counter() - began:.0f} s)", flush=True)
                client.execute_cell(cell, number, execution_count=client.code_cells_executed + 1)
    finally:
        client.show("")
        html, _ = HTMLExporter(config=WITHOUT).from_notebook_node(notebook)
        for file, text in ((copy, nbformat.writes(notebook) + "\n"), (copy.with_suffix(".html"), html)):
            atomic_write(file, lambda opened, text=text: opened.write(text.encode()))
    print(f"{path.name}: done in {time.perf_counter() - began:.0f} s", flush=True)


def fill_in(path: Path, name: str, text: str) -> None:
    """Replace the text between a file's two comments of that name. Raises ValueError where there are none."""
    content = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: ", f"<!-- end of {name} -->"
    before, opens, rest = content.partition(begin)
    comment, _, rest = rest.partition("-->\n")
    _, closes, after = rest.partition(end)
    if not (opens and closes):
        raise ValueError(f"{path}: expected the comments {begin}... --> and {end}")
    atomic_write(path, lambda file: file.write(f"{before}{begin}{comment}-->\n\n{text}\n\n{end}{after}".encode()))


def update_readme(path: Path, results: dict) -> None:
    """Write the results tables into the README."""
    parts = []
    for task, name in training.NAMES.items():
        if task in results:
            parts += [f"**{name.capitalize()}**", tables.headline(task, results[task])]
    fill_in(path, "results", "\n\n".join(parts))


def check_source() -> None:
    """Raise DataError where DATA_SOURCE or DATA_DIR is wrong, before a kernel starts."""
    source, folder = os.environ.get("DATA_SOURCE"), os.environ.get("DATA_DIR")
    if source and source not in sources.NAMES:
        raise data.DataError(f"DATA_SOURCE: expected one of {', '.join(sources.NAMES)}, found {source!r}")
    course = [path for task in training.NAMES for path in sources.course_files(Path(folder or "").expanduser(), task)]
    if folder and source in (None, "", "course") and not any(path.is_file() for path in course):
        raise data.DataError(f"DATA_DIR: expected a folder with the course's files, found none of them in {folder}")


def main() -> int:
    """Run the notebooks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="publish what the notebooks produce")
    parser.add_argument("notebook", nargs="?", choices=list(training.NAMES.values()), help="by default both")
    chosen = parser.parse_args()
    profile = training.choose_profile()
    training.check_runs_folder()
    check_source()
    if chosen.store and not profile.publishable:
        allowed = [name for name, each in training.PROFILES.items() if each.publishable]
        parser.error(f"--store: expected PROFILE to be one of {', '.join(allowed)}, found {profile.name}")
    os.environ["STORE"] = "yes" if chosen.store else ""  # for the notebooks' kernels, see `Profile.outcome_folder`
    copies = {
        task: training.runs_folder() / profile.name / f"{name}.ipynb"
        for task, name in training.NAMES.items()
        if chosen.notebook in (None, name)
    }
    print(f"profile {profile.name}: {profile.about}", flush=True)
    for copy in copies.values():
        try:
            execute(HOME / copy.name, copy)
        except CellExecutionError as error:
            said = f"{copy.name} failed, {error.ename}: {error.evalue}"
            print(f"{said}\n{copy} shows where, and all that came before", file=sys.stderr)
            return 1
        except (KeyboardInterrupt, DeadKernelError):
            said = f"{copy.name} was stopped, or its kernel died. The same command goes on from there"
            print(f"{said}: finished and half-trained runs are kept in {training.runs_folder()}", file=sys.stderr)
            return 130
        if chosen.store:
            atomic_write(HOME / copy.name, lambda file, copy=copy: file.write(copy.read_bytes()))
    figures = profile.outcome_folder("figures")
    results = load_json(figures / "results.json")
    for task in copies:
        print(f"\n{task}\n{tables.results_table(task, results[task])}")
    if chosen.store:
        update_readme(HOME / "README.md", results)
    print("\nExecuted notebooks, also as HTML:", *copies.values(), sep="\n  ")
    print(f"Figures and results.json: {figures}")
    return 0


if __name__ == "__main__":
    training.guard(main)
