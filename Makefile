# Everything starts from Python 3.11 or newer (with venv) and make; the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check types fast soak generate setup lock clean

demo: setup  ## set everything up, start the whole system, run the main job and prove its result
	$(BIN)/tallybook demo

test: setup  ## every test, on real servers; two processes share the files, each with servers of its own
	$(BIN)/python -m pytest -m "not soak" --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: setup  ## what every commit passes: format, lint, types, unit and property tests; no servers, under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target types fast

types: setup
	$(BIN)/mypy

fast: setup
	$(BIN)/python -m pytest -q -m "not stack and not soak"

soak: setup  ## the long versions: every failpoint, more seeds
	$(BIN)/python -m pytest -m soak --timeout 3600

generate: setup  ## what is derived from code: schemas, their golden bytes, docs/events.md, docs/openapi.json
	$(BIN)/python -m schemas.release
	$(BIN)/python -m services.api.app > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json

setup: $(READY)  ## the virtual environment, exactly as locked

$(READY): requirements.lock pyproject.toml sdk/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; name another: make PYTHON=python3.12 ..." >&2; exit 78; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	awk '/^uv==/ {on=1} on {print; if (!/\\$$/) exit}' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	$(BIN)/uv pip install --system-certs --python $(BIN)/python --require-hashes --no-deps -r requirements.lock
	$(BIN)/uv pip install --system-certs --python $(BIN)/python --quiet --no-deps --no-build-isolation -e . -e sdk
	@touch $@

lock: setup  ## choose the newest allowed versions again and pin them
	$(BIN)/uv pip compile --system-certs --quiet --upgrade --universal --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-package tallybook-sdk --python-version 3.11 \
		--group setup --extra dev pyproject.toml --output-file requirements.lock

clean:  ## back to a fresh clone; local data goes too
	-test ! -x $(BIN)/tallybook || $(BIN)/tallybook down
	rm -rf .venv .tallybook .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis mutants
