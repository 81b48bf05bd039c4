"""Runs the notebooks from top to bottom with a live progress line, and prints the results. Executed copies and HTML go
under the runs folder; with --store the notebooks, figures, histories, weights and READMEs are published."""

import argparse
import base64
import os
import re
import sys
from html import escape
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets.config import Config

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))
os.chdir(HOME)

import training  # noqa: E402  (the project's modules are found only once its folder is on the path)
from data import files  # noqa: E402

ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})  # else the kernel prints a warning
HTML = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"hide-input"}}})  # which folds nothing


class LiveClient(NotebookClient):
    """Executes a notebook and shows in a terminal, in one line, what it is doing and how training goes."""

    def show(self, text: str) -> None:
        """Rewrite a terminal's live line."""
        if sys.stdout.isatty():
            print(f"\r\x1b[K{text[: os.get_terminal_size().columns - 1]}", end="", flush=True)

    def process_message(self, msg, cell, cell_index):
        """Show what a kernel's message says of the progress, and pass it on to nbclient."""
        text = msg["content"].get("data", {}).get("text/plain", "")
        if msg["msg_type"] == "update_display_data" and "\n" not in text and not text.startswith("<"):
            self.show(text)
        return super().process_message(msg, cell, cell_index)


def execute(path: Path, copy: Path) -> None:
    """Run one notebook. Writes the executed copy, and its HTML beside it, even if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # an unfinished copy must not show stored outputs as its own
            cell.outputs, cell.execution_count = [], None
    # A kernel that is asked to stop, and not killed, reports the interruption in twenty lines.
    options = {"kernel_name": "python3", "record_timing": False, "shutdown_kernel": "immediate", "config": ENCRYPTED}
    client = LiveClient(notebook, resources={"metadata": {"path": str(HOME)}}, **options)
    try:
        with client.setup_kernel():  # by hand, for on Ctrl+C `client.execute` fails in a way of its own
            for number, cell in enumerate(notebook.cells):
                if cell.cell_type == "markdown" and (titles := re.findall("^#+ (.*)", cell.source, re.MULTILINE)):
                    client.show("")
                    print(f"{path.name}: {titles[-1]}", flush=True)
                client.execute_cell(cell, number, execution_count=client.code_cells_executed + 1)
            notebook.metadata.language_info = client.wait_for_reply(client.kc.kernel_info())["content"]["language_info"]
    finally:
        client.show("")
        write(copy, nbformat.writes(notebook) + "\n")
        html, _ = HTMLExporter(config=HTML).from_notebook_node(notebook)
        for alt in re.findall('"alt": "(.*)"', nbformat.writes(notebook)):  # of figures, which nbconvert leaves out
            html = html.replace("No description has been provided for this image", escape(alt), 1)
        style = "<style>pre, pre * {font-family: monospace}</style>"  # for source in outputs
        write(copy.with_suffix(".html"), html.replace("</head>", f"{style}</head>"))


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    files.atomic_write(path, lambda file: file.write(text.encode()))


def fill_in(content: str, name: str, text: str) -> str:
    """The content with the text between its two comments of that name. Raises ValueError where there are none."""
    before, begin, end, after = re.split(rf"(?s)(<!-- {name}: .*?-->\n).*?(<!-- end of {name} -->)", content)
    return f"{before}{begin}\n{text}\n\n{end}{after}"


def publish(copies: dict[str, Path], results: dict, home: Path = HOME) -> None:
    """Write executed copies over the notebooks, with results and a figure at their head; the results into README.md,
    and how like the course's the images are into data/README.md."""
    heads = {task: training.headline(task, results[task]) for task in training.NAMES if task in results}
    for task, copy in copies.items():
        notebook, figure = nbformat.read(copy, as_version=4), home / "figures" / f"{training.NAMES[task]}_edges.png"
        notebook.cells[0].source = fill_in(notebook.cells[0].source, "results", heads[task])
        notebook.cells[0]["attachments"] = {"idea.png": {"image/png": base64.b64encode(figure.read_bytes()).decode()}}
        write(home / copy.name, nbformat.writes(notebook) + "\n")
    columns = {"name": "training set", "course": "the course's", "ours": "here", "tolerance": "tolerance"}
    alike = {task: training.markdown_table(results[task]["checks"], columns, digits=4) for task in heads}
    for path, name, tables in (("README.md", "results", heads), ("data/README.md", "checks", alike)):
        text = "\n\n".join(f"**{training.NAMES[task].capitalize()}**\n\n{table}" for task, table in tables.items())
        write(home / path, fill_in((home / path).read_text(encoding="utf-8"), name, text))


def main() -> str | None:
    """Run the notebooks; returns what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="store_true", help="publish what the notebooks produce")
    parser.add_argument("notebook", nargs="?", choices=list(training.NAMES.values()), help="by default both")
    chosen, profile = parser.parse_args(), training.choose_profile()
    training.check_runs_folder()
    if chosen.store and not profile.publishable:
        return f"--store: expected PROFILE to be full, long or published, found {profile.name}"
    os.environ["STORE"] = "yes" if chosen.store else ""  # for the notebooks' kernels, see `Profile.outcome_folder`
    folder, names = training.runs_folder() / profile.name, training.NAMES
    copies = {task: folder / f"{names[task]}.ipynb" for task in names if chosen.notebook in (None, names[task])}
    print(f"profile {profile.name}: {profile.about}", flush=True)
    try:
        for copy in copies.values():
            execute(HOME / copy.name, copy)
    except CellExecutionError as error:
        return f"{copy.name} failed, {error.ename}: {error.evalue}\n{copy} shows where, and all before"
    except (KeyboardInterrupt, DeadKernelError, AssertionError):  # the last is nbclient's, interrupted while it ends
        said = f"{copy.name} was stopped, or its kernel died. The same command goes on from there"
        return f"{said}: finished and half-trained runs are kept in {training.runs_folder()}"
    figures = profile.outcome_folder("figures")
    results = files.load_json(figures / "results.json")
    if chosen.store:
        publish(copies, results)
    for task in copies:
        print(f"\n{task}\n{training.results_table(task, results[task])}")
    print("\nExecuted notebooks, also as HTML, and figures:", *copies.values(), figures, sep="\n  ")


if __name__ == "__main__":
    training.guard(main)
