# make run     runs the notebooks, or one: make run NOTEBOOK=detection
# make test    runs the tests
# make report  builds report.pdf from what `make store` has left in figures/
# make search  takes part in the search for hyperparameters: hours
# make study   trains what the notebooks' studies need: days on two cores
# make store   runs the notebooks and publishes their outputs: PROFILE=full on a GPU, PROFILE=long without
# make check-published  rebuilds both notebooks from the published run and compares what they print; needs its images
#
# Each first installs what is needed into .venv, once. TORCH=cpu installs torch without CUDA, a download of 0.2 GB.
# PYTHON=python3.12 chooses what .venv is made with.

VENV := .venv
SETUP := $(VENV)/installed

# An activated environment that has all packages is used as it is, unless PYTHON says otherwise.
ifndef PYTHON
PYTHON := python3
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),none)
ifeq ($(shell test -x "$(ACTIVE)/bin/python" && "$(ACTIVE)/bin/python" scripts/test.py --installed && echo yes),yes)
VENV := $(ACTIVE)
SETUP :=
endif
endif
RUN := "$(VENV)/bin/python"

.PHONY: run test report search study store check-published

run test report search study: $(SETUP)
	@$(RUN) scripts/$@.py $(if $(filter run,$@),$(NOTEBOOK))

store: $(SETUP)
	@$(RUN) scripts/run.py --store $(NOTEBOOK)

check-published: $(SETUP)
	@$(RUN) scripts/test.py --published

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	@echo "Installing into .venv: once, some minutes, about $(if $(filter cpu,$(TORCH)),2,6) GB"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
		$(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)
	@touch $@
