.DEFAULT_GOAL := help
PYTHON ?= python3
DEV := .venv-dev/bin

.PHONY: help run test test-encrypted campaign check bench lock secrets image-proof clean dev

help: ## show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

run: ## start the service on 127.0.0.1:5000 with SQLite, ready to be asked
	@$(PYTHON) scripts/environment.py run
	@exec .venv/bin/authsvc serve

test: dev ## run every test, on SQLite and on a private PostgreSQL and Redis started for it
	@$(DEV)/pytest

test-encrypted: dev ## the same tests once more, with the names of all tenants encrypted
	@AUTHSVC_TEST_ENCRYPTION=on $(DEV)/pytest

campaign: dev ## the long random histories and made-up requests that `make test` leaves out
	@$(DEV)/pytest -m campaign
	@PYTHONPATH=tests $(DEV)/python -m history.run --seconds 300 --nemesis slow
	@set -e; for nemesis in none terminate restart pause; do \
	    PYTHONPATH=tests $(DEV)/python -m history.run --seconds 60 --nemesis $$nemesis; done
	@set -e; for nemesis in none pause; do \
	    PYTHONPATH=tests $(DEV)/python -m history.run --seconds 60 --nemesis $$nemesis \
	        --engine sqlite; done
	@PYTHONPATH=tests $(DEV)/python -m history.faults --seconds 120

check: dev ## lint, formatting, types, import direction, locks, Dockerfile, Compose file
	@$(DEV)/ruff check .
	@$(DEV)/ruff format --check .
	@$(DEV)/mypy
	@$(DEV)/pytest -q tests/test_house.py
	@$(DEV)/python scripts/lock.py --check
	@$(DEV)/python scripts/check_stack.py

bench: dev ## measure authsvc beside bare ASGI, FastAPI and a textbook service
	@$(DEV)/python bench/run.py

lock: dev ## resolve the dependencies anew into requirements/
	@PATH="$(CURDIR)/$(DEV):$$PATH" $(DEV)/python scripts/lock.py

secrets: ## fill ./secrets/ for the Compose stack, unless it is filled already
	@$(PYTHON) scripts/make_secrets.py

image-proof: dev ## run the steps of the Dockerfile in a clean folder, without an engine
	@$(DEV)/python scripts/image_proof.py

clean: ## remove the environments and what tools left behind
	@rm -rf .venv .venv-dev .hypothesis .mypy_cache .pytest_cache .ruff_cache .schemathesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

dev:
	@$(PYTHON) scripts/environment.py dev
