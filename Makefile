.PHONY: setup demo test lint

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/.ready

demo: setup
	.venv/bin/visrep demo

test: setup
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2

lint: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright
