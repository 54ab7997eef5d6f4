# make app      set up .venv and serve the page on port 7860
# make test     set up and run the tests; make test-slow: those that take long
#               T="tests/test_text.py -k cut": only these
# make check    formatting, lint and types, without changing a file
# make bench    start, first gallery, later galleries and memory on this machine
# make screenshots    the page in all its states, into out/screenshots
# make crowd    a crowd at the door of a real server: 64 clients for 5 minutes, every answer checked
#
# One documented extra:
# make emoji-model    train assets/models/emoji again from nothing

PYTHON ?= python3
BIN := .venv/bin
# Which tests and how: all, two files at a time.
T := -n 2 --dist loadfile
# uv takes half as long as pip; pip knows indexes and proxies that only pip has been told of.
install = $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python $(1) || $(BIN)/python -m pip install $(1)

# What the emoji world is drawn from; nothing of npm's is run.
PACKAGES := $(addprefix @iconify-json/,noto@1.2.9 twemoji@1.2.5 fluent-emoji-flat@1.2.6 fluent-emoji@1.2.7)

.PHONY: app test test-slow check bench crowd screenshots emoji-model
.DELETE_ON_ERROR:

app: .venv/runtime.stamp
	$(BIN)/python app.py

test: .venv/dev.stamp
	$(BIN)/python -m pytest -m "not slow" $(T)

test-slow: .venv/ray.stamp
	$(BIN)/python -m pytest -m slow $(T)

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/runtime.stamp
	$(BIN)/python -m dalle_mini bench

crowd: .venv/runtime.stamp
	$(BIN)/python -m dalle_mini crowd

screenshots: .venv/dev.stamp
	$(BIN)/python tests/screenshots.py out/screenshots

.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python 3.11 with venv is needed (Debian: apt install python3-venv)" >&2; exit 1; }

.venv/bin/uv: | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check uv==0.13.9

# A stamp is written last, so that an interrupted install is taken up again; it is older than a changed file of pins.
.venv/runtime.stamp: requirements.txt | .venv/bin/uv
	$(call install,-r requirements.txt)
	$(call install,--no-deps -e .)
	touch $@

.venv/dev.stamp: requirements-dev.txt .venv/runtime.stamp
	$(call install,-r requirements-dev.txt)
	touch $@

.venv/ray.stamp: requirements-ray.txt .venv/dev.stamp
	$(call install,-r requirements-ray.txt)
	touch $@

runs/atlas.npz: | .venv/dev.stamp
	mkdir -p runs/packages
	cd runs/packages && npm pack $(PACKAGES)
	$(BIN)/python -m dalle_mini.training.emoji.atlas runs/packages $@

# Hours on two cores. Each command goes on where it was stopped.
emoji-model: .venv/runtime.stamp runs/atlas.npz
	$(BIN)/python -m dalle_mini train vqgan --run runs/emoji
	$(BIN)/python -m dalle_mini train encoder --run runs/emoji
	$(BIN)/python -m dalle_mini train decoder --run runs/emoji
	$(BIN)/python -m dalle_mini train dalle --run runs/emoji
	$(BIN)/python -m dalle_mini train clip --run runs/emoji
	cp -r runs/emoji/model/. assets/models/emoji/
	chmod -R u=rwX,go=rX assets/models/emoji
