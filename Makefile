# Everything runs in ./.venv, which is made from the hashed requirements when a target first needs it.
#   PYTHON=/path/to/python3.11 make test     another interpreter
#   make test ARGS="tests/wire -k chunk"     some of the tests

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.dev
BENCH_STAMP := .venv/.bench
PROTO_STAMP := .make/proto/.stamp
EMBEDDINGS_STAMP := .make/embeddings/.stamp
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
COMPILED := .make/compiled$(if $(filter 1,$(PGO)),-pgo)
# What is compiled, on the bytes of its wires and by the official clients; the rest of the tests says nothing new of it.
COMPILED_TESTS := $(addprefix tests/,claims dialects fallback filters grpc ledger proxy rpc telemetry trace turns wire \
	end_to_end/test_sdks.py end_to_end/test_grpc.py end_to_end/test_context.py gateway/test_client.py)
# Half of a test is waiting: two for each core.
CORES := $(shell getconf _NPROCESSORS_ONLN)
SPREAD = -n $(or $(WORKERS),$(shell echo $$(( $(CORES) < 4 ? 2 * $(CORES) : 8 )))) --dist loadfile --no-loadscope-reorder
# One that a test has killed is not replaced: by its files the rest would wait for ever.
SPREAD += --max-worker-restart=0
# Workers must name the same tests alike.
export PYTHONHASHSEED := 0
SOURCES := hatch_build.py proto meshd sdk $(wildcard demo bench examples) tests requirements/lock.py

$(STAMP): requirements/dev.txt pyproject.toml sdk/pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "make: $(PYTHON) is not here; name a Python 3.11 with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "make: $(PYTHON) is not a Python 3.11; name one with PYTHON=..." >&2; exit 1; }
	@echo "installing into .venv (once, about a minute) ..."
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(INSTALL) -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . -e sdk
	@touch $@

$(BENCH_STAMP): $(STAMP) requirements/bench.txt
	@echo "installing the peers of the benchmark ..."
	@$(INSTALL) -r requirements/bench.txt
	@touch $@

$(PROTO_STAMP): requirements/proto.txt
	@echo "installing what generates code from proto/ ..."
	@test -x .make/proto/bin/python || "$(PYTHON)" -m venv .make/proto
	@.make/proto/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/proto.txt
	@touch $@

$(COMPILED)/.stamp: $(STAMP) hatch_build.py $(shell find meshd sdk/meshd_sdk policies -name '*.py' -o -name '*.yaml')
	@mkdir -p .make && touch .make/begun # what is edited meanwhile is compiled the next time
	@MESHD_PGO=$(PGO) $(BIN)/python hatch_build.py $(COMPILED)
	@mv .make/begun $@

$(EMBEDDINGS_STAMP): requirements/embeddings.txt
	@test -x .make/embeddings/bin/python || "$(PYTHON)" -m venv .make/embeddings
	@.make/embeddings/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r requirements/embeddings.txt
	@touch $@

.PHONY: help demo demo-events embeddings test test-compiled attribution loops simulate claims trace-measure replay fleet outage discovery catalogue compile conformance-a2a conformance-mcp tools-cpu lint bench proto format lock clean venv

help: ## print this
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 24

venv: $(STAMP) ## install into .venv

embeddings: $(EMBEDDINGS_STAMP) ## install the local model into .make/embeddings (70 MB), for MESHD_EMBEDDINGS_PYTHON

demo: $(STAMP) ## agents through meshd, live (KEEP=1 stays up; LLM=openai spends money)
	@$(BIN)/python -m demo $(if $(KEEP),--keep) $(if $(LLM),--llm "$(LLM)")

demo-events: $(STAMP) ## trading agents choreographed by events (BUS=redis://..., nats://...; amqp://... or kafka://... with STORE=redis://...: three sidecars)
	@$(BIN)/python -m demo.events $(if $(BUS),--bus "$(BUS)") $(if $(STORE),--store "$(STORE)")

test: $(STAMP) ## every test, two for each core (ARGS=... goes to pytest; WORKERS=0: in one process)
	@$(BIN)/python -m pytest -q $(SPREAD) $(ARGS)

simulate: $(STAMP) ## a million random schedules of the ledger, beside check-then-charge (ARGS="HOW_MANY SEED")
	@$(BIN)/python -m tests.ledger.simulate $(ARGS)

claims: $(STAMP) ## 100,000 schedules of calls that are made again, and how fast a replay begins (ARGS="HOW_MANY SEED")
	@$(BIN)/python -m tests.claims.simulate $(ARGS)
	@$(BIN)/python -m tests.claims.measure

trace-measure: $(STAMP) ## what the trace costs a call, how fast it is written, verified and shown
	@$(BIN)/python -m tests.trace.measure $(ARGS)

replay: $(STAMP) ## LLM requests on one budget: false refusals, and how loose the bounds are (ARGS="--trace FILE")
	@$(BIN)/python -m bench.replay $(ARGS)

attribution: $(STAMP) ## agents that pass nothing on: which workflow each call is charged to (ARGS="WORD" of a scenario)
	@$(BIN)/python -m tests.correlation.measure $(ARGS)

loops: $(STAMP) ## runaways and honest workflows: how fast the ones are stopped, how often the others (ARGS="WORD")
	@$(BIN)/python -m tests.loops.measure $(ARGS)

conformance-mcp: $(STAMP) ## the official MCP suite against its reference server: directly, through meshd, at the gateway (ARGS="--keep FOLDER")
	@$(BIN)/python -m tests.conformance.mcp $(ARGS)

tools-cpu: $(STAMP) ## CPU of a tool call through the MCP gateway, beside a plain call
	@$(BIN)/python -m bench.tools $(ARGS)

fleet: $(STAMP) ## 16 sidecars on one budget, on Redis and on NATS, with everything killed (ARGS="--store redis")
	@$(BIN)/python -m bench.fleet $(ARGS)

outage: $(STAMP) ## a provider that is out or full: traffic, breakers, failover, the adaptive limit beside static ones (ARGS="dead --seconds 3")
	@$(BIN)/python -m bench.outage $(ARGS)

discovery: $(STAMP) ## how well tools are found and intents told apart, on public data (ARGS="--data DIR --embedder minilm")
	@$(BIN)/python -m bench.discovery $(ARGS)

catalogue: $(STAMP) ## 10,000 tools over 50 sidecars on NATS: memory, and how long until all know all (ARGS="--sidecars 10")
	@$(BIN)/python -m tests.sources.fleet $(ARGS)

compile: $(COMPILED)/.stamp ## a compiled copy in .make/compiled, where there is a C compiler (PGO=1: in .make/compiled-pgo, by what runs under calls)

test-compiled: compile ## the tests that fit a compiled meshd, on that copy
	@PYTHONPATH="$$PWD/$(COMPILED)" $(BIN)/python -m pytest -q -p no:randomly -o pythonpath="$(COMPILED) ." \
		-m "not uncompiled" $(SPREAD) $(or $(ARGS),$(COMPILED_TESTS))

conformance-a2a: $(STAMP) ## the official A2A test kit, directly and through meshd (KIT=its checkout, KIT_PYTHON=what runs it)
	@$(BIN)/python -m tests.a2a.conformance $(KIT) --python $(or $(KIT_PYTHON),$(KIT)/.venv/bin/python) $(ARGS)

lint: $(STAMP) ## ruff, mypy --strict, import rules
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy --strict meshd sdk
	@$(BIN)/lint-imports --no-cache

bench: $(BENCH_STAMP) ## ratios to Envoy, nginx, haproxy, aiohttp (PEERS, ROUNDS, SECONDS)
	@$(MAKE) compile || echo "meshd is measured uncompiled" >&2
	@PYTHONPATH="$$PWD/$(COMPILED)" $(BIN)/python -m bench $(if $(PEERS),--peers "$(PEERS)") $(if $(ROUNDS),--rounds "$(ROUNDS)") \
		$(if $(SECONDS),--seconds "$(SECONDS)") $(ARGS)

proto: $(PROTO_STAMP) ## lint proto/ and generate sdk/meshd_sdk/v1 from it (ARGS=--check only compares)
	@.make/proto/bin/python proto/generate.py $(ARGS)

format: $(STAMP) ## ruff format, and what ruff can mend
	@$(BIN)/ruff check --fix-only --quiet $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

lock: $(STAMP) ## write requirements/*.txt from the pyproject files (UPGRADE=1 takes newer versions)
	@"$(PYTHON)" -m venv --clear .make/lock
	@.make/lock/bin/python -m pip install --quiet --disable-pip-version-check pip-tools
	@.make/lock/bin/python requirements/lock.py $(if $(UPGRADE),--upgrade)

clean: ## remove .venv, caches and what was built
	@rm -rf .venv .make build dist sdk/dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
