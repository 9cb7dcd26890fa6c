.PHONY: setup test legacy lint bench docs quickstart dist clean

VENV ?= $(or $(KD_VENV),.venv)
export KD_VENV := $(VENV)

setup:
	bash scripts/setup.sh

test:
	bash scripts/test.sh

legacy:
	bash scripts/test-legacy.sh

lint: setup
	"$(VENV)/bin/python" -m ruff check .
	"$(VENV)/bin/python" -m ruff format --check .
	"$(VENV)/bin/python" -m mypy

bench: setup
	for bench in scripts/bench_*.py; do "$(VENV)/bin/python" "$$bench" || exit 1; done

docs: setup
	"$(VENV)/bin/python" -m mkdocs build --strict

quickstart:
	bash scripts/quickstart.sh

dist: setup
	"$(VENV)/bin/python" -m build

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis quickstart
	find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +
