# torchport: make help lists the targets. Each installs first if it needs to.
MODEL ?= linear
SEED ?= 0
PORT ?= 8080
PROCESSES ?= 2
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCHPORT := $(BIN)/torchport
STAMP := $(VENV)/installed
TEST_EXTRAS := train,zoo,torchserve,test
EXTRAS := $(TEST_EXTRAS),check
OLDEST := .venv-oldest
NEWEST := .venv-newest
# Lifts a constraint that pip's configuration sets; no option of pip does, and an empty variable is ignored.
UNCONSTRAINED := PIP_CONSTRAINT=/dev/null
UV := .cache/uv/bin/uv
COMPILE := $(UV) pip compile --quiet --no-config
LOCK := $(COMPILE) --upgrade --universal --python-version 3.11 --generate-hashes \
        --custom-compile-command 'make lock' pyproject.toml
# enum-compat is the one release without a wheel; nothing is compiled for it.
WHEELS := $(COMPILE) --only-binary :all: --no-binary enum-compat --output-file /dev/null
PYTEST := -m pytest --numprocesses $(PROCESSES)
VERSIONS := -m pip freeze --disable-pip-version-check | grep -E '^(torch|torchvision|onnx.*|numpy)=='
comma := ,
extra_options = $(foreach extra,$(subst $(comma), ,$(1)),--extra $(extra))

.DEFAULT_GOAL := help
.PHONY: help install train export verify package ship check-served serve torchserve torchserve-stop query infer \
        list zoo gallery screenshots bench test test-oldest test-newest quick check lock clean

help: ## the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: MODEL=$(MODEL) SEED=$(SEED) PORT=$(PORT) PROCESSES=$(PROCESSES)"

install: $(STAMP) ## .venv with all that the other targets need, of the releases in requirements/locked.txt

$(STAMP): pyproject.toml requirements/locked.txt requirements/install.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python requirements/install.py requirements/locked.txt --otherwise '.[$(EXTRAS)]'
	touch $@

train: $(STAMP) ## train MODEL: weights.pt, training.json
	$(TORCHPORT) train $(MODEL) --seed $(SEED)

export: $(STAMP) ## export it: TorchScript, ONNX, torch.export
	$(TORCHPORT) export $(MODEL)

verify: $(STAMP) ## prove that the exports compute what was trained
	$(TORCHPORT) verify $(MODEL)

package: $(STAMP) ## make the .mar archive of what is proven
	$(TORCHPORT) package $(MODEL)

ship: $(STAMP) ## all of it, then ask a running server and print its answers
	$(TORCHPORT) ship $(MODEL) --seed $(SEED)

check-served: $(STAMP) ## serve the archive and compare its answers with those in process
	$(TORCHPORT) check $(MODEL)

serve: $(STAMP) ## serve the store, without Java, until Ctrl-C
	$(TORCHPORT) serve --port $(PORT)

torchserve: $(STAMP) ## start TorchServe on the store
	$(TORCHPORT) torchserve start --port $(PORT)

torchserve-stop: $(STAMP) ## stop it
	$(TORCHPORT) torchserve stop --port $(PORT)

query: $(STAMP) ## ask the running server
	$(TORCHPORT) query $(MODEL) --url http://127.0.0.1:$(PORT)

infer: $(STAMP) ## ask the model without a server, by ONNX Runtime
	$(TORCHPORT) infer $(MODEL)

list: $(STAMP) ## recipes and their state
	$(TORCHPORT) list

zoo: $(STAMP) ## ship every kind of model and hold each against its goal; exit 1 if any misses
	$(BIN)/python tests/example_repo/make_checkpoint.py .cache/example/squeezenet.safetensors
	$(TORCHPORT) zoo export/zoo.yaml

gallery: $(STAMP) ## docs/gallery.md, with pictures, from what zoo shipped
	$(BIN)/python docs/make_gallery.py

screenshots: $(STAMP) ## every report of the store in Chromium, light and dark; exit 1 if its console speaks
	$(BIN)/python docs/make_screenshots.py

bench: $(STAMP) ## side by side with TorchServe, Triton, mosec and others; needs wrk, h2load; BENCH="--only A" for parts
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[bench]'
	$(BIN)/python -m bench $(BENCH)

# Threads of torch that wait for work must not keep the cores from the other process of tests: with as many
# threads as cores in each of two processes, a training takes 2.5 times as long where they spin.
test test-oldest test-newest quick: export OMP_WAIT_POLICY := PASSIVE

test: $(STAMP) ## all tests, real TorchServe included, shared by PROCESSES
	$(BIN)/python $(PYTEST)

test-oldest: $(OLDEST)/installed ## all tests with the lowest releases that pyproject.toml allows
	$(OLDEST)/bin/python $(VERSIONS)
	$(OLDEST)/bin/python $(PYTEST)

$(OLDEST)/installed: pyproject.toml requirements/oldest.txt requirements/install.py
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(UNCONSTRAINED) $(OLDEST)/bin/python requirements/install.py requirements/oldest.txt
	touch $@

test-newest: ## all tests with the newest releases that pyproject.toml allows, as of this run
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(UNCONSTRAINED) $(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --upgrade --upgrade-strategy eager --editable '.[$(TEST_EXTRAS)]'
	$(NEWEST)/bin/python $(VERSIONS)
	$(NEWEST)/bin/python $(PYTEST)

quick: $(STAMP) ## those of the tests that start no server and train no model
	$(BIN)/python $(PYTEST) -m quick

check: $(STAMP) ## ruff, mypy and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(UV) ## requirements/locked.txt and oldest.txt anew, by uv; looks for a wheel of each release
	$(LOCK) $(call extra_options,$(EXTRAS)) --constraint requirements/held.txt --output-file requirements/locked.txt
	$(LOCK) $(call extra_options,$(TEST_EXTRAS)) --resolution lowest-direct --output-file requirements/oldest.txt
	for name in triton litserve bentoml ray; do $(COMPILE) --upgrade --universal --python-version 3.11 \
	    --custom-compile-command 'make lock' bench/requirements/$$name.in \
	    --output-file bench/requirements/$$name.txt || exit; done
	for machine in x86_64 aarch64; do for python in 3.11 3.12 3.13 3.14; do \
	    $(WHEELS) --python-platform $$machine-manylinux_2_28 --python-version $$python requirements/locked.txt \
	    || exit; done; \
	    $(WHEELS) --python-platform $$machine-manylinux_2_28 --python-version 3.11 requirements/oldest.txt \
	    || exit; done

$(UV):
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

clean: ## remove what was built; the virtual environment stays
	rm -rf model_store .run .cache build dist logs key_file.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
