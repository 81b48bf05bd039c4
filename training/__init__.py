"""Trains networks, resumably, and keeps the books. `open_lab(task)` is what the notebooks begin with."""

from training.colab import prepare_colab
from training.keys import provenance
from training.lab import Lab, Test, open_lab
from training.layers import Layer, list_layers
from training.loop import Hooks, NonFiniteLoss, TrainState, assemble, build, train, train_epoch
from training.progress import Progress, forgive_output
from training.results import (
    BASELINES,
    compare_runs,
    diagnose,
    headline,
    markdown_table,
    print_scores,
    published_results,
    select_best,
    study_tables,
)
from training.runs import Run, RunInUse, fit
from training.settings import (
    NAMES,
    OWN,
    PROFILES,
    REFERENCE,
    Settings,
    check_runs_folder,
    choose_device,
    choose_profile,
    describe,
    runs_folder,
)
from training.weights import load_weights, save_weights
