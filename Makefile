# make run    installs what is needed into .venv and runs the notebooks, or one: make run NOTEBOOK=detection
# make test   installs what is needed into .venv and runs the tests
# make report builds report.pdf from figures/ and what it says of the run that made them
# make soak   the faults again, many times over: minutes
# make bench  measures speed and memory
# make search takes part in the search for hyperparameters: hours
# make study  trains what the notebooks' studies need: days on two cores
#
# TORCH=cpu installs torch without CUDA, a download of 0.2 GB. PYTHON=python3.12 chooses what .venv is made with.

VENV := .venv
SETUP := $(VENV)/installed

# An activated environment that has all packages is used as it is, unless PYTHON says otherwise.
ifndef PYTHON
PYTHON := python3
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),none)
ifeq ($(shell test -x "$(ACTIVE)/bin/python" && "$(ACTIVE)/bin/python" scripts/installed.py && echo yes),yes)
VENV := $(ACTIVE)
SETUP :=
endif
endif
RUN := "$(VENV)/bin/python"

.PHONY: run test report soak bench search study store check-published

run: $(SETUP)
	@$(RUN) scripts/run.py $(NOTEBOOK)

test: $(SETUP)
	@$(RUN) scripts/test.py

# Rebuilds both notebooks from the published run, without training, and compares the results they print. Needs MNIST.
check-published: $(SETUP)
	$(RUN) scripts/check_published.py

# Fifty kills, a thousand damaged files, thousands of drawn labels and boxes, where `make test` takes a few of each.
soak: $(SETUP)
	SOAK=1 $(RUN) -m pytest -m slow

# What `make store` has left in figures/ is all it needs; report.pdf is committed beside it.
report: $(SETUP)
	@$(RUN) scripts/report.py

bench: $(SETUP)
	@$(RUN) scripts/bench.py

search: $(SETUP)
	@$(RUN) scripts/search.py

study: $(SETUP)
	@$(RUN) scripts/study.py

# Runs the notebooks and keeps their outputs in them: what is published. PROFILE=full on a GPU, PROFILE=long without.
store: $(SETUP)
	@$(RUN) scripts/run.py --store $(NOTEBOOK)

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	@echo "Installing into .venv: once, some minutes, about $(if $(filter cpu,$(TORCH)),2,6) GB"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
		$(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)
	@touch $@
