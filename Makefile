# Everything sets itself up: `make demo` and `make test` work in a fresh clone with Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# A wheel or nothing: the install never compiles. Bytecode is made of what is imported, not of 20,000 files in advance.
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --root-user-action=ignore --only-binary :all: \
	--no-compile $(PIP_ARGS)
# A directory of exposures (KuaiRand-Pure); empty takes those of the embedded simulator.
LOGS ?=
# SHOP=1 takes the generator of a shop: clicks, orders, revenue.
SHOP ?=
OUT ?= $(if $(SHOP),runs/shop,runs/demo)
# VERBOSE=1 shows all that the demo's jobs say; else it is in $(OUT)/log.txt.
VERBOSE ?=
# PORTABLE=1 runs the same instructions on every x86 processor since 2013, so that figures agree; it is slower.
PORTABLE ?=
SAME_INSTRUCTIONS := OMP_NUM_THREADS=1 MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \
	OPENBLAS_CORETYPE=Haswell ARROW_USER_SIMD_LEVEL=AVX2 \
	NPY_DISABLE_CPU_FEATURES="AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"

.PHONY: demo test check unit integration integration-serving integration-jobs serve sweep docs pictures install clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once; a few minutes)"
	@$(PIP) "setuptools>=77"
	@# No build isolation: the wheel of our own package needs nothing but setuptools.
	@$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@

demo: .venv/.installed ## the main job: exposures → scorer → session logs → samples → policy → A/B test → bundles → answers over HTTP → report
	@env $(if $(PORTABLE),$(SAME_INSTRUCTIONS)) $(BIN)/python -m jobs.demo --output "$(OUT)" \
		$(if $(LOGS),--exposures "$(LOGS)") $(if $(SHOP),--exposures shop) $(if $(PORTABLE),--portable) $(if $(VERBOSE),--verbose)

serve: .venv/.installed ## Ray Serve on loopback with the demo's bundles
	@# A Ray of its own, on loopback (see recfuse.runtime.ray_compat.on_loopback), unless RAY_ADDRESS names another: without an address
	@# `serve run` takes whatever ran here last, also when it is dead.
	@# `serving.starting` is `serve run`, whose port says "starting" until the models are there.
	@PYTHONPATH=platform RAY_ADDRESS=$${RAY_ADDRESS:-local} RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 \
		env $$($(BIN)/python -m serving.environment) $(BIN)/python -m recfuse.serving.starting serving/config.yaml

sweep: .venv/.installed ## discounts and multipliers λ over the demo's samples (made where absent): frontier, report; a rerun repeats no trial
	@OMP_NUM_THREADS=1 $(BIN)/python -m tune.sweep --config tune/config/$(if $(SHOP),shop,fusion).yaml --demo "$(OUT)" $(SWEEP_ARGS)

docs: .venv/.docs ## the documentation in runs/site: pages, and a reference read off the code; no network, no warning
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@$(BIN)/python -m docs.site.check runs/site
	@echo "open runs/site/index.html, or with search: $(BIN)/python -m http.server --directory runs/site 8001"

.venv/.docs: .venv/.installed
	@$(PIP) --no-build-isolation --editable ".[docs]"
	@touch $@

pictures: .venv/.installed ## docs/pictures/*.svg, drawn anew by the scripts beside them
	@$(BIN)/python -m docs.pictures

test: .venv/.installed
	@# Unit tests take all cores. Integration tests wait for processes much of their time, so two lanes share the cores;
	@# beside unit tests as well they took longer than one after the other.
	@$(MAKE) --no-print-directory -j 2 check unit
	@$(MAKE) --no-print-directory -j 2 integration-serving integration-jobs

check: .venv/.installed
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

unit: .venv/.installed
	@# Two threads of each process would spend more time waiting for each other than they save.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n 2 --dist loadfile

integration: integration-serving integration-jobs

# Servers have fixed ports: whatever serves or is a cluster of several raylets runs one after the other.
SERVING := $(addprefix tests/integration/test_,cluster.py machines.py job_submit.py serving.py tutorial.py \
	demo.py)

integration-serving: .venv/.installed
	@$(BIN)/python -m pytest $(SERVING)

integration-jobs: .venv/.installed
	@$(BIN)/python -m pytest tests/integration $(addprefix --ignore=,$(SERVING))

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
