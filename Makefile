# The commands of the course. Each builds the virtual environment in .venv first if it is missing.
PYTHON ?= python3
WORK   ?= work
PY     := .venv/bin/python
READY  := .venv/.installed

# The process keeps the memory of large activations, and idle threads sleep soon: PyTorch waits less on a small or shared
# machine. PROCESS_SETTINGS in klvae_edu/environment.py explains them, with figures. Values that you set yourself stay.
export MALLOC_MMAP_THRESHOLD_ ?= 2147483648
export MALLOC_TRIM_THRESHOLD_ ?= 8589934592
export GOMP_SPINCOUNT ?= 1000

# The conditions of the stored outputs: one thread per process, no progress bars, no network, no GPU.
AS_STORED := OMP_NUM_THREADS=1 KLVAE_EDU_QUIET=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
NBVAL     := --nbval --nbval-current-env --nbval-cell-timeout=120 --nbval-sanitize-with=tests/nbval_sanitize.cfg
PARALLEL  := -n 2 --dist loadscope

# An uploaded photograph is one message to the server. Of one beyond the server's own 10 MiB, nobody would be told.
UPLOADS   := {'websocket_max_message_size': 536870912}

OLDEST    := .venv-oldest/.installed

.PHONY: help lab fresh test oldest lint notebooks measure bench soak classroom constraints
.DEFAULT_GOAL := help

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

lab: $(READY) ## open your own copy of the course in JupyterLab (LAB_ARGS="..." passes options to JupyterLab)
	@$(PY) -m tools.learner_copy --to "$(WORK)"
	@$(PY) -m jupyterlab --ServerApp.root_dir="$(WORK)" --LabApp.default_url=/lab/tree/00_tour.ipynb \
	    --ServerApp.tornado_settings="$(UPLOADS)" \
	    $$(test "$$(id -u)" -ne 0 || echo --allow-root) $(LAB_ARGS)

fresh: $(READY) ## add a clean copy of one notebook to your folder: make fresh NB=03
	@$(PY) -m tools.learner_copy --to "$(WORK)" --fresh "$(NB)"

test: $(READY) ## run all tests, and compare every notebook with its stored outputs
	@failed=0; \
	OMP_NUM_THREADS=1 $(PY) -m pytest tests $(PARALLEL) || failed=1; \
	$(AS_STORED) $(PY) -m pytest -p no:python $(NBVAL) $(PARALLEL) notebooks || failed=1; \
	exit $$failed

# Without the tests in a browser: the lowest ipywidgets is Colab's, 7.7.1, whose sliders no JupyterLab 4 shows.
oldest: $(OLDEST) ## run the tests with the lowest versions that pyproject.toml admits, in .venv-oldest (not part of the CI)
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest tests --ignore tests/browser/test_lab.py $(PARALLEL)

lint: $(READY) ## check style, types and the order of imports
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

notebooks: $(READY) ## build the notebooks from notebooks/source (NB=03: only one; EXECUTE=1: run unchanged code, too; REPO=owner/name: for a fork)
	$(PY) -m tools.build_notebooks $(NB) $(if $(EXECUTE),--execute) $(if $(REPO),--repo "$(REPO)")

measure: $(READY) ## measure time and memory of the notebooks, for the line at their top (NB=03: only one)
	OMP_NUM_THREADS=2 $(PY) -m tools.measure_notebooks $(NB)

BENCHMARKS := import_time inference train_step activations tiled_decode explorer data_path encode_many

bench: $(READY) ## measure speed and memory against other packages, and draw the picture in benchmarks/ (about twenty minutes)
	@for name in $(BENCHMARKS); do echo "$$name"; OMP_NUM_THREADS=2 $(PY) -m benchmarks.$$name || exit 1; done
	@$(PY) -m benchmarks.picture

soak: $(READY) ## kill a training run 20 times in one process and 20 in two; run notebooks with every right answer (one hour)
	OMP_NUM_THREADS=1 KLVAE_EDU_KILLS=20 $(PY) -m pytest tests/faults/test_resume.py
	OMP_NUM_THREADS=1 KLVAE_EDU_STYLES=all $(PY) -m pytest tests/exercises/test_whole_notebooks.py

classroom: $(READY) ## write two zips for a class into dist/: the teacher's and the students'
	@$(PY) -m tools.classroom

# Run it with the oldest supported Python: these versions then also run on later ones.
constraints: $(READY) ## write constraints.txt from the installed packages
	@{ echo "# The versions the course was tested with; make constraints writes them. Every machine picks its own GPU libraries."; \
	   $(PY) -m pip freeze --exclude-editable --exclude pip --exclude setuptools --exclude wheel \
	   | sed -e 's/+[a-z0-9.]*$$//' -e '/^\(nvidia\|cuda\)[-_]/d' -e '/^triton==/d' -e '/ @ /d'; } > .constraints.new
	@mv .constraints.new constraints.txt

# uv finds the lowest versions that fit each other; pip only knows the newest. The oldest supported Python has their wheels.
$(OLDEST): $(READY)
	$(PYTHON) -m venv .venv-oldest
	@echo "*" > .venv-oldest/.gitignore
	.venv-oldest/bin/python -m pip install uv
	.venv-oldest/bin/python -m uv pip install --python .venv-oldest --resolution lowest-direct -e ".[all]"
	@touch $(OLDEST)

# The file is written last, so an interrupted installation is repeated.
$(READY): $(wildcard pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "The course needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	    echo "Choose another one, for example: make lab PYTHON=python3.12"; exit 1; }
	@echo "Building the virtual environment in .venv, once. PyTorch is a large download."
	if command -v uv >/dev/null; then \
	    uv venv --seed --allow-existing --python "$(PYTHON)" .venv && \
	    uv pip install --python $(PY) -c constraints.txt -e ".[all]"; \
	else \
	    $(PYTHON) -m venv .venv && $(PY) -m pip install -c constraints.txt -e ".[all]"; \
	fi
	@touch $(READY)
