# torchport: make help lists the targets. Each installs first if it needs to.
MODEL ?= linear
SEED ?= 0
PORT ?= 8080
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCHPORT := $(BIN)/torchport
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help install train export verify package ship check-served serve torchserve torchserve-stop query infer \
        list zoo gallery screenshots bench test check clean

help: ## the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: MODEL=$(MODEL) SEED=$(SEED) PORT=$(PORT)"

install: $(STAMP) ## .venv with all that the other targets need

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,zoo,torchserve,test,check]'
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

bench: $(STAMP) ## side by side with TorchServe, mosec and bare uvicorn; needs wrk; BENCH="--only A" for parts
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m bench $(BENCH)

test: $(STAMP) ## all tests, real TorchServe included
	$(BIN)/python -m pytest

check: $(STAMP) ## ruff, mypy, the order of imports, and the quick tests: no server, no model on its road
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m quick

clean: ## remove what was built; the virtual environment stays
	rm -rf model_store .run .cache build dist logs key_file.json .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
