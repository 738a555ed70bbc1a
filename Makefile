# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors

# Variables for the command line, listed by `make help`:
## PYTEST_ARGS='-k deadline'    more arguments for pytest; -n 0 runs one test at a time
## SCENARIO='raid1 lvm'         the scenarios that check-xen runs; default: all
## ENVIRONMENTS='3.9-oldest'    the environments that check-environments uses (noxfile.py); default: all
## TIME=10 TARGETS='disk saved' how many seconds to fuzz each target, and which targets
## RELEASE=trixie               Debian 13 instead of 12, for check-fresh and check-xen
## PACKAGE=yes                  also try the Debian package in check-fresh; PACKAGE=only does nothing else
## REPORTS=directory            write JUnit reports of the tests; tests/skipped lists skipped tests from them
## FOR='xen packages'           the targets whose packages setup installs
## DESTDIR= PREFIX=/usr         where install and uninstall work
## PYTHON=python3.12            the Python to use instead of the distribution's

# Debian's and openSUSE's packages of configobj, tenacity and pyudev are for the distribution's own Python.
PYTHON ?= $(if $(wildcard /usr/bin/python3 /usr/bin/apt-get),/usr/bin/python3,python3)
VENV_PYTHON = .venv/bin/python
PYTEST_ARGS ?=
REPORTS ?=
PYTEST = -m pytest $(if $(REPORTS),--junitxml='$(REPORTS)/$@$(addprefix -,$(RELEASE)).xml')
PARALLEL = -n auto --dist loadgroup
TIME = 60

PREFIX = /usr
SBINDIR = $(PREFIX)/sbin
SYSCONFDIR = /etc
MANDIR = $(PREFIX)/share/man
DATADIR = $(PREFIX)/share/xendomains-wait-disk
BASHCOMPLETIONDIR = $(PREFIX)/share/bash-completion/completions
ZSHCOMPLETIONDIR = $(PREFIX)/share/zsh/site-functions
FISHCOMPLETIONDIR = $(PREFIX)/share/fish/vendor_completions.d
UNITDIR = $(PREFIX)/lib/systemd/system
PRESETDIR = $(PREFIX)/lib/systemd/system-preset
CATALOGDIR = $(PREFIX)/lib/systemd/catalog
# The path of the script that this program replaces.
REPLACED = $(PREFIX)/lib/xen-tools-xendomains-wait-disk/bin/xendomains-wait-disks
PURELIB = $(shell $(PYTHON) -c '$(FIND_PURELIB)' '$(PREFIX)')

# Debian's Python has its own schemes for modules of the distribution (/usr) and for locally installed ones.
define FIND_PURELIB
import sys, sysconfig
prefix = sys.argv[1]
scheme = {"/usr": "deb_system", "/usr/local": "posix_local"}.get(prefix)
if scheme not in sysconfig.get_scheme_names(): scheme = "posix_prefix"
print(sysconfig.get_path("purelib", scheme, {"base": "/usr" if scheme == "posix_local" else prefix}))
endef

MODULE = xendomains_wait_disk.py
CONFFILE = $(SYSCONFDIR)/xen-wait-disk.conf
UNITS = xendomains-wait-disk.service xendomains-late.service
PRESET = 90-xendomains-wait-disk.preset
CATALOG = xendomains-wait-disk.catalog
PAGES = $(wildcard man/*.[1-9])
PYTHON_FILES = $(MODULE) bin/xendomains-wait-disk docs/pictures docs/reasons packaging/changelogs tests/bench tests/demo \
    tests/promises tests/skipped tests/packages/table noxfile.py $(wildcard tests/*.py tests/fuzz/*.py)
SHELL_FILES = .ci/run tests/fresh tests/lock tests/setup packaging/completions/xendomains-wait-disk.bash \
    packaging/dist packaging/release packaging/debian/build packaging/debian/tests/command packaging/debian/tests/unit \
    packaging/debian/xendomains-wait-disk.postinst packaging/rpm/build tests/packages/all tests/packages/common \
    tests/packages/deb tests/packages/dist tests/packages/lintian tests/packages/pip tests/packages/rpm \
    tests/xen/dom0/dom0 tests/xen/guest/init tests/xen/guest/make-initramfs tests/xen/initramfs/init-bottom \
    tests/xen/install-package tests/xen/make-image
# Files that lint searches for the phrases in tests/words.
PROSE_FILES = README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md Makefile etc/xen-wait-disk.conf setup.cfg \
    $(wildcard docs/*.md docs/*.dot docs/*.txt schema/*) $(filter-out %.7,$(PAGES)) \
    $(addprefix packaging/debian/,control copyright rules) $(addprefix packaging/systemd/,$(UNITS) $(CATALOG)) \
    $(wildcard packaging/rpm/*.spec packaging/completions/*) $(wildcard tests/README.md tests/*/README.md tests/data/*/README.md) \
    $(filter-out $(MODULE),$(PYTHON_FILES)) $(XEN_PYTHON_FILES) $(SHELL_FILES)
# mypy checks these separately, because both directories have a conftest.py.
XEN_PYTHON_FILES = tests/xen/bench tests/xen/extract-kernel tests/xen/unpack-initrd tests/xen/record-hosts tests/xen/dom0/record tests/xen/dom0/measure tests/xen/dom0/probe \
    $(wildcard tests/xen/*.py)

# The code that decides whether a guest is waited for: the parsers, readiness, the snapshot, calls that may block. Not
# source_xendomains() and kill_group(): they kill a process group, and a mutant might kill the wrong one.
MUTANTS = '*parse_*' '*xl_*' '*escape*' '*DiskParser*' '*disk_from*' '*domain_from*' '*saved_conf*' '*check_*' \
    '*explain_*' '*StorageFacts*' '*attribute*' '*udev_*' '*required*' '*x_matches*' '*x_read_*' '*x_list_*' \
    '*status_*' '*guest*' '*absent_*' '*Watcher*' '*Snapshot*' '*BlockingCalls*' '*sleep_until*' '*drain*'

# Tests that are fast, do not depend on time, and do not need root.
BUILD_TESTS = $(patsubst %,tests/test_%.py,settings xendomains xl_config required saved readiness)

export PYTHON REPORTS

SETUPS = $(addprefix setup-,demo pictures check bench fuzz coverage mutation environments lock fresh xen deb rpm packages)

.PHONY: help setup demo pictures manual check check-fresh check-packages check-environments check-xen check-all bench bench-xen \
    lint promises format test fuzz coverage mutation lock dist deb rpm release test-build \
    install install-module install-files uninstall clean $(SETUPS)

help: ## list the targets (the default)
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24
	@echo
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

setup: ## install the Debian packages that demo and check need, or the targets in FOR='xen packages'; uses sudo
	@tests/setup --install $(FOR)

demo: setup-demo ## show the program at work on two made-up hosts; ten seconds
	@$(PYTHON) tests/demo

pictures: setup-pictures ## draw docs/*.svg from docs/*.dot and the output of demo
	@$(PYTHON) docs/pictures

manual: ## generate the manual page of the reasons from the module and docs/reasons.txt
	@docs/reasons

check: lint test ## lint and test, which must pass before a change is accepted; two minutes

check-fresh: setup-fresh ## run README.md's "Try it" in a fresh Debian tree; five minutes, as root
	@tests/fresh

check-packages: setup-packages setup-fresh ## build packages; apt, zypper and pip install, upgrade and remove them; six minutes, as root
	@tests/packages/all

check-environments: setup-environments ## the tests with each Python, and with the oldest and newest dependencies
	$(VENV_PYTHON) -m nox $(if $(ENVIRONMENTS),--error-on-missing-interpreters) \
	    --sessions $(or $(foreach name,$(ENVIRONMENTS),'tests($(name))'),tests) $(if $(PYTEST_ARGS),-- $(PYTEST_ARGS))

check-xen: setup-xen ## boot Xen hosts with late disks in a virtual machine; an hour, as root
	@$(VENV_PYTHON) $(PYTEST) $(PYTEST_ARGS) \
	    $(or $(foreach name,$(SCENARIO),tests/xen/test_$(subst -,_,$(name)).py),tests/xen)

check-all: ## all of the above, fuzz and coverage, before a release; two hours, as root
	@.ci/run all

bench: setup-bench ## measure the start-up time, CPU time, memory and latency of a wait; two minutes, as root
	@$(PYTHON) tests/bench $(BENCH_ARGS)

bench-xen: setup-xen ## the same on a booted Xen host, and the effect on the boot time; ten minutes, as root
	@$(VENV_PYTHON) tests/xen/bench

lint: setup-check ## ruff, mypy, vermin (oldest Python), shellcheck, promises, manual, codespell, tests/words
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy --scripts-are-modules $(PYTHON_FILES)
	MYPYPATH=tests/xen:tests $(VENV_PYTHON) -m mypy --scripts-are-modules $(XEN_PYTHON_FILES)
	.venv/bin/vermin --no-tips -t=3.9- $(MODULE) bin/xendomains-wait-disk
	shellcheck -x $(SHELL_FILES)
	zsh -n packaging/completions/_xendomains-wait-disk
	fish --no-execute packaging/completions/xendomains-wait-disk.fish
	tests/promises >/dev/null
	$(VENV_PYTHON) docs/reasons --check
	.venv/bin/codespell
	! sed '/^#/d' tests/words | cut -f 1 | grep -nwiEf - $(PROSE_FILES)

promises: ## list the promises in tests/README.md with their tests; fail if a promise has none
	@tests/promises

format: setup-check ## format the Python files
	$(VENV_PYTHON) -m ruff check --select I --fix .
	$(VENV_PYTHON) -m ruff format .

test: setup-check ## run the tests in parallel
	$(VENV_PYTHON) $(PYTEST) $(PARALLEL) $(PYTEST_ARGS)

fuzz: setup-fuzz ## coverage-guided fuzzing of the parsers, TIME=60 seconds each
	@$(VENV_PYTHON) tests/fuzz --time $(TIME) $(TARGETS)

coverage: setup-coverage ## run the tests and measure their branch coverage of the module; at least 95 %
	$(VENV_PYTHON) -m coverage erase
	$(VENV_PYTHON) -m coverage run $(PYTEST) -q $(PYTEST_ARGS)
	$(VENV_PYTHON) -m coverage combine -q
	$(VENV_PYTHON) -m coverage report

mutation: setup-mutation ## mutation testing: list changes to the module that no test notices; half an hour
	$(VENV_PYTHON) -m mutmut run $(MUTANTS)
	$(VENV_PYTHON) -m mutmut results

lock: setup-lock ## update tests/requirements.txt to the newest versions of the tools in tests/requirements.in
	tests/lock

dist: ## create the source archive in dist, from which the packages and the sdist are built
	@packaging/dist dist

deb: ## build the Debian package in dist
	@packaging/debian/build dist

rpm: ## build the RPM package in dist
	@packaging/rpm/build dist

release: ## release the unreleased VERSION= in CHANGELOG.md (docs/release.md); three minutes
	@packaging/release '$(VERSION)'

# Reproducible, and without deadlines, because a build host may be slow.
define BUILD_PYTEST
import sys, hypothesis, pytest
hypothesis.settings.register_profile("build", deadline=None, derandomize=True)
hypothesis.settings.load_profile("build")
sys.exit(pytest.main())
endef
export BUILD_PYTEST

test-build: ## run the tests that the packages run during their build
	PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -c "$$BUILD_PYTEST" -q -p no:cacheprovider -m 'not skipif' $(BUILD_TESTS)

$(SETUPS): setup-%:
	@tests/setup $*

install: install-module install-files ## install below PREFIX=/usr, or below DESTDIR= for a package

# Packages install the module with pip or pybuild, which also create .dist-info, and everything else from here.
install-module:
	install -D -p -m 644 $(MODULE) '$(DESTDIR)$(PURELIB)/$(MODULE)'
	$(PYTHON) -m compileall -q -f -s '$(DESTDIR)' -p / '$(DESTDIR)$(PURELIB)/$(MODULE)'

install-files:
	install -D -m 755 bin/xendomains-wait-disk '$(DESTDIR)$(SBINDIR)/xendomains-wait-disk'
	python=$$($(PYTHON) -c 'import sys; print(sys.executable)') && \
	    sed -i "1s|/usr/bin/python3|$$python|" '$(DESTDIR)$(SBINDIR)/xendomains-wait-disk'
	install -d '$(DESTDIR)$(dir $(REPLACED))'
	ln -sfr '$(DESTDIR)$(SBINDIR)/xendomains-wait-disk' '$(DESTDIR)$(REPLACED)'
	[ -e '$(DESTDIR)$(CONFFILE)' ] || install -D -p -m 644 etc/xen-wait-disk.conf '$(DESTDIR)$(CONFFILE)'
	for unit in $(UNITS); do \
	    install -D -p -m 644 "packaging/systemd/$$unit" "$(DESTDIR)$(UNITDIR)/$$unit" && \
	    sed -i 's|^\(Exec[A-Z][a-z]*=+\?\)/usr/sbin|\1$(SBINDIR)|' "$(DESTDIR)$(UNITDIR)/$$unit" || exit; \
	done
	install -D -p -m 644 packaging/systemd/$(PRESET) '$(DESTDIR)$(PRESETDIR)/$(PRESET)'
	install -D -p -m 644 packaging/systemd/$(CATALOG) '$(DESTDIR)$(CATALOGDIR)/$(CATALOG)'
	install -d '$(DESTDIR)$(DATADIR)'
	install -p -m 644 schema/*.json '$(DESTDIR)$(DATADIR)'
	for page in $(PAGES); do \
	    install -D -p -m 644 "$$page" "$(DESTDIR)$(MANDIR)/man$${page##*.}/$${page#man/}" || exit; \
	done
	install -D -p -m 644 packaging/completions/xendomains-wait-disk.bash '$(DESTDIR)$(BASHCOMPLETIONDIR)/xendomains-wait-disk'
	install -D -p -m 644 packaging/completions/_xendomains-wait-disk '$(DESTDIR)$(ZSHCOMPLETIONDIR)/_xendomains-wait-disk'
	install -D -p -m 644 packaging/completions/xendomains-wait-disk.fish \
	    '$(DESTDIR)$(FISHCOMPLETIONDIR)/xendomains-wait-disk.fish'

uninstall: ## remove what install has installed, except edited settings
	rm -f '$(DESTDIR)$(PURELIB)/$(MODULE)' '$(DESTDIR)$(PURELIB)'/__pycache__/$(MODULE:.py=).*.pyc \
	    '$(DESTDIR)$(SBINDIR)/xendomains-wait-disk' '$(DESTDIR)$(REPLACED)' $(patsubst %,'$(DESTDIR)$(UNITDIR)/%',$(UNITS)) \
	    '$(DESTDIR)$(PRESETDIR)/$(PRESET)' '$(DESTDIR)$(CATALOGDIR)/$(CATALOG)' \
	    $(foreach page,$(PAGES),'$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(notdir $(page))') \
	    '$(DESTDIR)$(BASHCOMPLETIONDIR)/xendomains-wait-disk' '$(DESTDIR)$(ZSHCOMPLETIONDIR)/_xendomains-wait-disk' \
	    '$(DESTDIR)$(FISHCOMPLETIONDIR)/xendomains-wait-disk.fish' $(patsubst schema/%,'$(DESTDIR)$(DATADIR)/%',$(wildcard schema/*))
	-rmdir '$(DESTDIR)$(DATADIR)'
	-rmdir -p --ignore-fail-on-non-empty '$(DESTDIR)$(dir $(REPLACED))'
	! cmp -s etc/xen-wait-disk.conf '$(DESTDIR)$(CONFFILE)' || rm '$(DESTDIR)$(CONFFILE)'

clean: ## remove generated files
	rm -rf .venv .coverage* .fuzz .nox mutants .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
