"""Trains networks, resumably, and keeps the books. `open_lab(task)` is what the notebooks begin with."""

from training.colab import prepare_colab
from training.lab import Lab, open_lab
from training.loop import Hooks, NonFiniteLoss, train_epoch
from training.progress import guard
from training.results import BASELINES, loss_ends, published_results, published_search, select_best
from training.runs import RunInUse, fit, load_weights, provenance, save_weights
from training.settings import NAMES, OWN, PROFILES, REFERENCE, Settings, check_runs_folder, choose_profile, runs_folder
from training.study import read_rows
from training.tables import (
    compare_runs,
    fit_table,
    headline,
    markdown_table,
    recipe_rows,
    results_table,
    search_table,
    settings_table,
    source_of,
    study_table,
)
