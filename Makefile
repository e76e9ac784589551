# The two commands a newcomer needs: make demo, make test. Each makes the environment it runs in.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
DEMO   ?= outputs/demo
RATES  ?= 50,55,60,65,70,75,80,85,90,95,100
DURATION ?= 120
PAPER  ?= outputs/paper
DATA   ?= ../shared/data
LIVE_DEMO ?= outputs/live-demo
PARITY ?= outputs/parity
SGLANG ?= .venv-sglang
SGLANG_ROUTER ?= .venv-sglang-router
CLIENTS ?= .venv-clients
LAUNCHERS ?= .venv-launchers
COMPILED ?= .venv-compiled
PEERS ?= .venv-peers
VERSIONS ?= newest
SOURCES ?= .venv-sglang-sources

.PHONY: demo paper live-demo parity test test-fast test-torch test-live test-sources test-clients test-launchers test-compiled wheel stress lint types check bench bench-peers sglang clean

demo: $(READY)  ## sweep the paper's policies over request rates, compare, draw, report
	$(BIN)/voltana-sim -m model=llama31_8b trace=sharegpt policy=static_max,static_1005,voltana rps=$(RATES) \
	    duration_s=$(DURATION) hydra.sweep.dir=$(DEMO)/runs
	$(BIN)/voltana-compare runs=$(DEMO)/runs baseline=static_max columns=short csv=$(DEMO)/comparison.csv
	$(BIN)/voltana-plot runs=$(DEMO)/runs figure=curves out=$(DEMO)/curves.png
	$(BIN)/voltana-report runs=$(DEMO)/runs out=$(DEMO)/report.html

paper: $(READY)  ## the paper's six panels; with the published points in DATA/paper beside them, and the deviations
	$(BIN)/voltana-sim -m experiment=paper_main hydra.sweep.dir=$(PAPER)
	if [ -d $(DATA)/paper ]; then \
	    $(BIN)/voltana-plot runs=$(PAPER) figure=curves published=$(DATA)/paper out=$(PAPER)/figure.png && \
	    { $(BIN)/python -m voltana.sim.studies.published $(DATA) || [ $$? = 1 ]; } \
	fi

live-demo: $(DEV) sglang  ## real SGLang servers on the CPU, 2P2D, under two policies, with simulated GPUs; needs no GPU
	$(BIN)/voltana-live -m servers=sglang servers.environment=$(SGLANG) control=simulated policy=static_max,voltana \
	    trace=sharegpt trace.max_total_tokens=1000 rps=1.5 duration_s=45 router.connect_timeout_s=10 \
	    hydra.sweep.dir=$(LIVE_DEMO)/runs
	$(BIN)/voltana-compare runs=$(LIVE_DEMO)/runs columns=short csv=$(LIVE_DEMO)/comparison.csv
	$(BIN)/voltana-plot runs=$(LIVE_DEMO)/runs figure=tradeoff out=$(LIVE_DEMO)/tradeoff.png
	$(BIN)/voltana-plot runs=$(LIVE_DEMO)/runs/1 figure=timeline out=$(LIVE_DEMO)/timeline.png
	$(BIN)/voltana-report runs=$(LIVE_DEMO)/runs out=$(LIVE_DEMO)/report.html

parity: $(DEV)  ## a live run on emulated servers beside its simulation, two policies, 4 minutes; needs an idle machine
	for policy in static_max voltana; do \
	    $(BIN)/voltana-live policy=$$policy overwrite=true hydra.run.dir=$(PARITY)/$$policy/live && \
	    $(BIN)/voltana-sim replay=$(PARITY)/$$policy/live overwrite=true hydra.run.dir=$(PARITY)/$$policy/twin && \
	    $(BIN)/voltana-compare --gap runs=[$(PARITY)/$$policy/live,$(PARITY)/$$policy/twin] || exit 1; \
	done

test: $(DEV)  ## all tests
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-fast: $(DEV)  ## the quick tests of every room; `make test` has all
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-torch: $(DEV)  ## tests of the GPU profiler: installs torch, runs at tiny size on the CPU
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,profile]'
	$(BIN)/python -m pytest -n 2 tests/live/profiling

test-live: $(DEV) sglang $(SGLANG_ROUTER)/.ready  ## tests on real SGLang servers, on the CPU; needs no GPU
	VOLTANA_SGLANG=$(SGLANG) VOLTANA_SGLANG_ROUTER=$(SGLANG_ROUTER) $(BIN)/python -m pytest tests/live/servers/sglang --durations=10

test-sources: $(DEV)  ## the telemetry plugin against sources of SGLang: the newest release, or VERSIONS="0.5.15 0.5.23"
	for version in $(VERSIONS); do \
	    rm -rf $(SOURCES) && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
	        --target $(SOURCES) sglang$$([ $$version = newest ] || echo ==$$version) && ls $(SOURCES) | grep sglang- && \
	    PYTHONPATH=$(SOURCES) $(BIN)/python -m pytest -n 0 tests/live/telemetry/test_contract.py tests/live/telemetry/test_loops.py \
	    || exit 1; \
	done; rm -rf $(SOURCES)

test-clients: $(DEV) $(CLIENTS)/.ready  ## others' clients and load generators, on emulated servers behind the router
	VOLTANA_CLIENTS=$(CLIENTS) $(BIN)/python -m pytest -n 0 tests/clients --durations=5

test-launchers: $(DEV) $(LAUNCHERS)/.ready  ## sweeps by Hydra's other launchers, Ray among them, and by Optuna's sweeper
	VOLTANA_LAUNCHERS=$(LAUNCHERS) $(BIN)/python -m pytest -n 2 tests/launchers

wheel: $(READY)  ## a compiled wheel in dist/; pure Python where there is no C compiler
	VOLTANA_COMPILED=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

test-compiled: $(DEV)  ## builds a compiled wheel, and runs the laws of the engines on it, compares records
	$(BIN)/python -m tests.compiled $(COMPILED)

stress: $(DEV)  ## minutes of broken requests, killed and stopped processes, too few file descriptors; prints what it tried
	$(BIN)/python -m tests.stress.router
	$(BIN)/python -m tests.stress.clocks

sglang: $(READY)  ## the environment of stock SGLang on a CPU: 3.3 GB; what is there already is not built again
	$(BIN)/python -m voltana.live.servers.sglang.environment $(SGLANG) --install-system-libraries

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy --explicit-package-bases voltana tests/bench

bench: $(READY)  ## how fast the simulator is
	$(BIN)/python -m tests.bench.simulator

bench-peers: $(DEV)  ## how fast others are at the same work, side by side
	$(BIN)/python -m tests.bench.peers $(PEERS)

check: lint types test

$(VENV)/bin/python:
	@echo "Making the environment $(VENV) ..."
	$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing voltana and what it needs into $(VENV); this takes about half a minute ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing voltana and its development tools into $(VENV); this takes about a minute ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(READY)

$(SGLANG_ROUTER)/.ready:  # SGLang's own router, which does not go into one environment with SGLang
	$(PYTHON) -m venv $(SGLANG_ROUTER)
	$(SGLANG_ROUTER)/bin/python -m pip install --quiet --disable-pip-version-check sglang-router==0.3.2
	@touch $@

$(CLIENTS)/.ready:  # guidellm brings torch with it
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check \
	    'openai>=3.57' 'aiperf>=0.13' 'guidellm>=0.8.1' 'torch>=2.5'
	@touch $@

# hydra-optuna-sweeper wants an Optuna from before 3.0, unlike voltana-tune; what the ray launcher wants beside Ray is for clusters in a cloud.
$(LAUNCHERS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LAUNCHERS)
	grep -viE '^(optuna|sqlalchemy)==' constraints.txt > $(LAUNCHERS)/constraints.txt
	$(LAUNCHERS)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LAUNCHERS)/constraints.txt -e . \
	    'hydra-joblib-launcher>=1.2' 'hydra-submitit-launcher>=1.2' 'hydra-optuna-sweeper>=1.3' 'ray>=2.60'
	$(LAUNCHERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'hydra-ray-launcher>=1.2.2'
	@touch $@

clean:
	rm -rf $(VENV) $(SGLANG) $(SGLANG_ROUTER) $(CLIENTS) $(LAUNCHERS) $(SOURCES) $(COMPILED) $(PEERS) outputs build dist *.egg-info
