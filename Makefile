# make run    installs what is needed into .venv and runs the notebooks
# make test   installs what is needed into .venv and runs the tests
# make report builds report.pdf from figures/ and what it says of the run that made them
# make soak   the faults again, many times over: minutes
# make bench  measures speed and memory
# make search takes part in the search for hyperparameters: hours
# make study  trains what the studies of full length need: days on two cores

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test report soak bench search study store check-published

run: $(VENV)/installed
	@$(BIN)/python scripts/run.py

# Tests use scikit-learn's digits and a folder of their own: they need no download, and take no finished run for theirs.
test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff format --check --line-length 100 *.ipynb
	$(BIN)/pytest
	PROFILE=smoke DATA_SOURCE=digits RUNS_DIR=$$(mktemp -d) \
		$(BIN)/pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 -p no:cacheprovider *.ipynb
	$(BIN)/python scripts/check_published.py --if-possible

# Rebuilds both notebooks from the published run, without training, and compares the results they print. Needs MNIST.
check-published: $(VENV)/installed
	$(BIN)/python scripts/check_published.py

# Fifty kills, a thousand damaged files, thousands of drawn labels and boxes, where `make test` takes a few of each.
soak: $(VENV)/installed
	SOAK=1 $(BIN)/pytest -m slow

# What `make store` has left in figures/ is all it needs; report.pdf is committed beside it.
report: $(VENV)/installed
	@$(BIN)/python scripts/report.py

bench: $(VENV)/installed
	@$(BIN)/python scripts/bench.py

search: $(VENV)/installed
	@$(BIN)/python scripts/search.py

study: $(VENV)/installed
	@$(BIN)/python scripts/study.py

# Runs the notebooks and keeps their outputs in them: what is published. PROFILE=full on a GPU, PROFILE=long without.
store: $(VENV)/installed
	@$(BIN)/python scripts/run.py --store

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	@echo "Installing into $(VENV): once, some minutes, about 6 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
