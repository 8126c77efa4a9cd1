# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SEEDS  ?= 1
OUT    ?= demo

.PHONY: demo test check lint types tests lab format clean experiments conditions compare docs
.PHONY: coverage mutation release-check fuzz sbom

# torch goes first and pinned, so that nothing later pulls a second (CUDA) build. Modules are compiled
# when they are first imported, as most of the many files never are; they have to be kept then, or
# every process of the tests compiles them again (16 s instead of 6).
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/pip install --quiet --no-compile
$(BIN)/.torch:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "torch==2.13.*"
	touch $@

$(BIN)/.installed: pyproject.toml | $(BIN)/.torch
	$(INSTALL) -e .
	touch $@

$(BIN)/.installed-dev: pyproject.toml | $(BIN)/.torch
	$(INSTALL) -e ".[dev]"
	touch $(BIN)/.installed $@

demo: $(BIN)/.installed        ## train CE-only, released_nograd and TGA on the lab, measure, write $(OUT)/report.html
	$(BIN)/tgalign demo --out $(OUT) --seeds $(SEEDS)

check: lint types              ## ruff and mypy

test: lint                     ## lint, types, tests; mypy beside the tests
	$(MAKE) --jobs 2 types tests

lint: $(BIN)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.installed-dev
	$(BIN)/mypy

tests: $(BIN)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

format: $(BIN)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lab: $(BIN)/.installed         ## rebuild the lab's base models from their seed and compare with the shipped ones
	$(BIN)/tgalign lab build --check

experiments: $(BIN)/.installed ## repeat the experiments of docs/lab-log.md (an hour and a half)
	TGALIGN=$(BIN)/tgalign OUT=runs/experiments recipes/experiments.sh
	$(BIN)/tgalign lab table runs/experiments/results.jsonl

conditions: $(BIN)/.installed  ## the README's tables (an evening)
	$(BIN)/tgalign demo --out runs/guided --seeds 3 --arms ce,paper,tga
	$(BIN)/tgalign demo --out runs/captioned1 --seeds 3 --condition captioned --toxic-share 0.01 --arms ce,tga
	$(BIN)/tgalign demo --out runs/captioned5 --seeds 3 --condition captioned --arms ce,tga
	$(BIN)/tgalign demo --out runs/absent --seeds 3 --condition absent --arms ce,tga
	$(BIN)/tgalign demo --out runs/icons --seeds 3 --style icons --arms ce,tga
	$(BIN)/tgalign report runs/guided runs/captioned1 runs/captioned5 runs/absent runs/icons --out runs/conditions

docs: $(BIN)/.installed-dev    ## build the documentation into site/, with every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

compare: $(BIN)/.installed     ## TGA beside its rivals, in two conditions (a night; it says how many hours)
	$(BIN)/tgalign compare --out runs/compare --seeds 3
	$(BIN)/tgalign compare --out runs/compare-captioned --seeds 3 --condition captioned

coverage: $(BIN)/.installed-dev ## lines of tgalign outside app/ that the tests run (docs/testing.md)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=
	$(BIN)/coverage report

mutation: $(BIN)/.installed-dev ## changes to loss, pooling, judge and statistics that no test notices
	$(BIN)/pip install --quiet "mutmut>=3.8"
	rm -rf mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results
	$(BIN)/mutmut results --all true | sed -E 's/^ *(.*)\.x[^.]*: /\1 /' | sort | uniq -c

release-check: $(BIN)/.installed-dev ## archive and wheel; the demo from the wheel, all installed anew
	rm -rf dist build/clean
	$(BIN)/python -m build
	ls -l dist
	$(PYTHON) -m venv build/clean/venv
	build/clean/venv/bin/pip install --quiet "torch==2.13.*"
	build/clean/venv/bin/pip install --quiet dist/*.whl
	cd build/clean && venv/bin/tgalign --version && venv/bin/tgalign demo --smoke

fuzz: $(BIN)/.installed-dev    ## attack every reader for ten minutes (five hours; JOBS=4 for four side by side)
	$(BIN)/python tests/fuzz --minutes 10 --jobs $(or $(JOBS),1) --out docs/fuzz.json

sbom: $(BIN)/.installed        ## sbom.json (CycloneDX) of what is installed in .venv, made by cyclonedx-bom in .sbom
	test -x .sbom/bin/cyclonedx-py || { $(PYTHON) -m venv .sbom && .sbom/bin/pip install --quiet cyclonedx-bom; }
	.sbom/bin/cyclonedx-py environment $(BIN)/python --output-format JSON --output-file sbom.json

clean:
	rm -rf $(VENV) .sbom sbom.json demo runs site dist build mutants .pytest_cache .mypy_cache .ruff_cache
