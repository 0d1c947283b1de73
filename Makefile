# Two commands do everything, on a fresh Debian or Ubuntu machine: `make demo` and `make test`.
# Stamps say what is installed already, so that a second run takes seconds and installs nothing.

VENV := .venv
STAMPS := .stamps
PYTHON := $(VENV)/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

APT_RUN := python3-bpfcc python3-venv
APT_DEMO := gcc g++
APT_TEST := binutils chromium chromium-driver gzip linux-perf tar

.PHONY: help demo test lint install bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(STAMPS)/run $(STAMPS)/demo  ## record a sample workload: demo/cpu.svg and demo/cpu.folded
	@$(SUDO) sh samples/demo.sh $(PYTHON)

test: $(STAMPS)/run $(STAMPS)/demo $(STAMPS)/test  ## set up, then the whole suite with real BPF
	@$(SUDO) $(PYTHON) -m ruff check
	@$(SUDO) $(PYTHON) -m ruff format --check
	@$(SUDO) $(PYTHON) -m mypy
	@$(SUDO) env CI="$(CI)" $(PYTHON) -m pytest

lint: $(STAMPS)/test  ## ruff and mypy --strict
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy

install: $(STAMPS)/run  ## only what a recording needs

bench: $(STAMPS)/run $(STAMPS)/demo $(STAMPS)/test  ## the figures of benchmarks/RESULTS.md
	@$(SUDO) $(PYTHON) benchmarks/run.py

clean:  ## remove everything that the above made
	rm -rf $(VENV) $(STAMPS) demo build samples/build

define apt_install
@missing=""; for p in $(1); do dpkg-query -Wf '$${Status}' "$$p" 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
if [ -n "$$missing" ]; then echo "installing:$$missing"; \
  $(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; fi
endef

$(STAMPS)/run: pyproject.toml Makefile
	$(call apt_install,$(APT_RUN))
	@[ -x $(PYTHON) ] || /usr/bin/python3 -m venv --system-site-packages $(VENV)
	@$(PYTHON) -m pip install -q -e .
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: Makefile
	$(call apt_install,$(APT_DEMO))
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/test: $(STAMPS)/run
	$(call apt_install,$(APT_TEST))
	@$(PYTHON) -m pip install -q -e '.[test]'
	@mkdir -p $(STAMPS) && touch $@
