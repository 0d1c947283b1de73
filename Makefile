# Two commands do everything, on a fresh Debian or Ubuntu machine: `make demo` and `make test`.
# Stamps say what is installed already, so that a second run takes seconds and installs nothing.

VENV := .venv
STAMPS := .stamps
PYTHON := $(VENV)/bin/python
BPFLAME := $(VENV)/bin/bpflame
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Root must not leave its caches in a user's checkout.
AS_ROOT := $(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(if $(CI),CI=$(CI))

UBUNTU := $(shell . /etc/os-release && [ "$$ID" = ubuntu ] && echo yes)
APT_RUN := python3-bpfcc python3-venv
APT_DEMO := binutils gcc g++ libc6-dev
APT_TEST := gdb gzip mount musl-tools perl procps ripgrep shfmt tar util-linux \
	$(if $(UBUNTU),chromium-browser chromium-chromedriver linux-tools-common linux-tools-generic \
	,bpftool chromium chromium-driver linux-perf)
APT_BENCH := bpfcc-tools bpftrace gcc linux-headers-$(shell dpkg --print-architecture) linux-perf \
	nginx-light nodejs openssl perl postgresql postgresql-contrib wrk

.PHONY: help install demo workloads test lint bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMPS)/run  ## what a recording needs, nothing more

demo: workloads  ## record sample workloads: demo/cpu.svg and demo/cpu.folded
	@mkdir -p demo
	@$(AS_ROOT) sh samples/demo.sh $(BPFLAME)

test: lint workloads  ## set up, then the whole suite with real BPF
	@$(AS_ROOT) $(PYTHON) -m pytest $(if $(SUDO),-p no:cacheprovider)

lint: $(STAMPS)/test  ## ruff and mypy --strict
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy

bench: workloads $(STAMPS)/bench  ## the figures of benchmarks/RESULTS.md
	@$(AS_ROOT) $(PYTHON) benchmarks/run.py --write

workloads: $(STAMPS)/run $(STAMPS)/demo
	@$(MAKE) -s -C samples/workloads

clean:  ## remove everything that the above made here
	rm -rf $(VENV) $(STAMPS) demo build samples/build

# Installs the packages of a list that are not there yet.
define apt_install
@missing=""; \
for package in $(1); do \
	dpkg-query -Wf '$${Status}' "$$package" 2>/dev/null | grep -q ' installed$$' \
		|| missing="$$missing $$package"; \
done; \
if [ -n "$$missing" ]; then \
	echo "installing$$missing"; \
	$(SUDO) apt-get update -q && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -q --no-install-recommends $$missing; \
fi
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
	@touch $@

$(STAMPS)/bench: $(STAMPS)/run
	$(call apt_install,$(APT_BENCH))
	@touch $@
