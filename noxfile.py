# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Run the tests with different Pythons and versions of the dependencies; `make check` uses the distribution's own.

Not every combination is tested, but each Python, each version, optional packages present and absent, and the oldest
and newest versions together. A Python that is not installed is reported and skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import nox

OLDEST = ("configobj==5.0.8", "tenacity==8.2.1")
NEWEST = ("configobj>=5.0.9", "tenacity")
PYUDEV = "pyudev"
PARALLEL = ("-n", "auto", "--dist", "loadgroup")

ENVIRONMENTS = [
    nox.param("3.9", OLDEST, id="3.9-oldest"),
    nox.param("3.9", (*NEWEST, PYUDEV), id="3.9-newest"),
    nox.param("3.10", ("configobj==5.0.9", "tenacity==8.2.1", "pyudev==0.24.0"), id="3.10-pyudev"),
    nox.param("3.11", OLDEST, id="3.11-oldest"),
    nox.param("3.11", (*NEWEST, PYUDEV), id="3.11-newest"),
    nox.param("3.12", ("configobj==5.0.8", "tenacity"), id="3.12-tenacity"),
    nox.param("3.13", OLDEST, id="3.13-oldest"),
    nox.param("3.13", (*NEWEST, PYUDEV), id="3.13-newest"),
    nox.param("3.14", OLDEST, id="3.14-oldest"),
    nox.param("3.14", (*NEWEST, PYUDEV), id="3.14-newest"),
]

# In virtualenv's environments, Python imports more modules at startup, which a test would attribute to the module.
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False

if shutil.which("pyenv"):
    # pyenv hides all Pythons except the selected ones.
    versions = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True).stdout.split()
    os.environ.setdefault("PYENV_VERSION", ":".join(versions))


@nox.session
@nox.parametrize(["python", "packages"], ENVIRONMENTS)
def tests(session: nox.Session, packages: tuple[str, ...]) -> None:
    """Run the tests with exactly these packages."""
    session.install("--require-hashes", "-r", "tests/requirements.txt")
    session.install(*packages)
    reports = os.environ.get("REPORTS")
    report = (f"--junitxml={reports}/{session.name}.xml",) if reports else ()
    session.run("python", "-m", "pytest", "-q", *PARALLEL, *report, *session.posargs)
