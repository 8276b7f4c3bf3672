# The course's commands. Each builds the virtual environment in .venv first when it is missing.
PYTHON ?= python3
WORK   ?= work
PY     := .venv/bin/python
READY  := .venv/.installed

# Large activations stay in the process, and idle threads do not spin: PyTorch on a small or shared machine waits less.
# More on them, with figures: PROCESS_SETTINGS in klvae_edu/environment.py. Values that you set yourself stay.
export MALLOC_MMAP_THRESHOLD_ ?= 2147483648
export MALLOC_TRIM_THRESHOLD_ ?= 8589934592
export GOMP_SPINCOUNT ?= 20000

# As in the notebooks' stored outputs: one thread a process, no progress bars, no network, no GPU.
AS_STORED := OMP_NUM_THREADS=1 KLVAE_EDU_QUIET=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
NBVAL     := --nbval --nbval-current-env --nbval-cell-timeout=120 --nbval-sanitize-with=tests/nbval_sanitize.cfg
PARALLEL  := -n 2 --dist loadscope

.PHONY: help lab fresh test lint notebooks measure bench soak classroom constraints
.DEFAULT_GOAL := help

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

lab: $(READY) ## open the course in JupyterLab, in your own copy of it (LAB_ARGS="..." for JupyterLab's options)
	@$(PY) -m tools.learner_copy --to "$(WORK)"
	@$(PY) -m jupyterlab --ServerApp.root_dir="$(WORK)" --LabApp.default_url=/lab/tree/00_tour.ipynb \
	    $$(test "$$(id -u)" -ne 0 || echo --allow-root) $(LAB_ARGS)

fresh: $(READY) ## a clean copy of one notebook beside yours: make fresh NB=03
	@$(PY) -m tools.learner_copy --to "$(WORK)" --fresh "$(NB)"

test: $(READY) ## every test, and every notebook against its stored outputs
	@failed=0; \
	OMP_NUM_THREADS=1 $(PY) -m pytest tests $(PARALLEL) || failed=1; \
	$(AS_STORED) $(PY) -m pytest -p no:python $(NBVAL) $(PARALLEL) notebooks || failed=1; \
	exit $$failed

lint: $(READY) ## style, types and the order of imports
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	.venv/bin/lint-imports

notebooks: $(READY) ## build the notebooks from notebooks/source (NB=03, EXECUTE=1 to run unchanged code, REPO=owner/name for a fork)
	$(PY) -m tools.build_notebooks $(NB) $(if $(EXECUTE),--execute) $(if $(REPO),--repo "$(REPO)")
	@$(PY) -m tools.readme_picture

measure: $(READY) ## time and memory of the notebooks, for the line in their heads (NB=03)
	OMP_NUM_THREADS=2 $(PY) -m tools.measure_notebooks $(NB)

BENCHMARKS := import_time inference train_step activations tiled_decode explorer data_path encode_many

bench: $(READY) ## speed and memory beside the peers, into benchmarks/ with a picture (some twenty minutes)
	@for name in $(BENCHMARKS); do echo "$$name"; OMP_NUM_THREADS=2 $(PY) -m benchmarks.$$name || exit 1; done
	@$(PY) -m benchmarks.picture

soak: $(READY) ## kill a training run 20 times in one process and 20 times in two (some ten minutes)
	OMP_NUM_THREADS=1 KLVAE_EDU_KILLS=20 $(PY) -m pytest tests/faults/test_resume.py

classroom: $(READY) ## zips for a class into dist/: the teacher's and the students'
	@$(PY) -m tools.classroom

# With the oldest Python supported: what runs there runs on the later ones too.
constraints: $(READY) ## write constraints.txt from what is installed
	@{ echo "# The versions the course was tested with; make constraints writes them. Every machine picks its own GPU libraries."; \
	   $(PY) -m pip freeze --exclude-editable --exclude pip --exclude setuptools --exclude wheel \
	   | sed -e 's/+[a-z0-9.]*$$//' -e '/^\(nvidia\|cuda\)[-_]/d' -e '/^triton==/d' -e '/ @ /d'; } > .constraints.new
	@mv .constraints.new constraints.txt

# The file is made last: an installation that broke off is taken up again.
$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "The course needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one, as in: make lab PYTHON=python3.12"; exit 1; }
	@echo "Building the virtual environment in .venv, once. PyTorch is a large download."
	if command -v uv >/dev/null; then \
	    uv venv --seed --allow-existing --python "$(PYTHON)" .venv && \
	    uv pip install --python $(PY) -c constraints.txt -e ".[all]"; \
	else \
	    $(PYTHON) -m venv .venv && $(PY) -m pip install -c constraints.txt -e ".[all]"; \
	fi
	@touch $(READY)
