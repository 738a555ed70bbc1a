# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""The JSON schemas match the output of the program."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MODULE, Host

import xendomains_wait_disk as xwd

jsonschema = pytest.importorskip("jsonschema", reason="python3-jsonschema is not installed")

SCHEMAS = MODULE.parent / "schema"


def schema(command: str) -> Any:
    """Return the schema for the output of a command, which does not allow additional fields here."""

    def strict(part: Any) -> Any:
        if isinstance(part, list):
            return [strict(one) for one in part]
        if not isinstance(part, dict):
            return part
        more = {"additionalProperties": False} if "properties" in part else {}
        return {**{name: strict(one) for name, one in part.items()}, **more}

    return strict(json.loads((SCHEMAS / f"{command}.schema.json").read_text()))


def fields(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields that a schema describes, including those of nested records."""
    for key, one in {**part.get("properties", {}), **part.get("$defs", {})}.items():
        if key in part.get("properties", {}):
            yield f"{name}.{key}", one
        yield from fields(one.get("items", one), f"{name}.{key}")


def validate(host: Host, *arguments: str, **environment: Any) -> Any:
    """Validate the output of a command with its schema and return it."""
    printed = json.loads(host.run(*arguments, "--json", RUNTIME_DIRECTORY=str(host.root), **environment).output)
    jsonschema.Draft202012Validator(schema(arguments[0])).validate(printed)
    return printed


@pytest.fixture
def troubled(host: Host) -> Host:
    """A host with an example of every state."""
    host.guest("web", host.image("a"), host.images / "b", host.images, "backend=other,vdev=xvdd,target=/dev/x")
    host.guest("db", "/dev/zvol/no-such-pool/db", "/dev/sdz", host.images / "a")
    host.saved("old", host.image("c"))
    host.configuration("broken", "what is this\n")
    host.guest("fine", host.image("d"), ",,hdc:cdrom,r")
    shutil.copy(host.auto / "db.cfg", host.auto / "db.cfg.bak")
    (host.auto / "dangling").symlink_to("/nowhere")
    (host.auto / "pv").write_text('name="p\\tv"\nkernel="/nowhere/vmlinuz"\n')
    return host


@pytest.mark.parametrize("command", ["list", "check", "last", "start"])
def test_schema_is_a_valid_json_schema(command: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(command))
    assert schema(command)["properties"]["version"]["const"] == xwd.JSON_VERSION


@pytest.mark.promise("The JSON output matches its schemas")
@pytest.mark.parametrize("command", ["list", "check", "last", "start"])
def test_schema_describes_each_field(command: str) -> None:
    assert [name for name, one in fields(schema(command)) if not one.get("description", "").endswith(".")] == []


@pytest.mark.promise("The JSON output matches its schemas")
@pytest.mark.parametrize("command", ["list", "check", "last"])
def test_output_matches_the_schema(troubled: Host, command: str) -> None:
    troubled.run("--timeout", "0", RUNTIME_DIRECTORY=str(troubled.root))
    assert validate(troubled, command)


def test_output_without_problems_matches_the_schema(host: Host) -> None:
    host.run(RUNTIME_DIRECTORY=str(host.root))
    assert validate(host, "list") == {"version": 1, "ready": True, "guests": [], "directories": []}
    assert validate(host, "check", "--reboot") == {"version": 1, "ok": True, "findings": []}
    assert validate(host, "last")["result"] == "ready"


def test_output_with_an_unreadable_directory_matches_the_schema(host: Host) -> None:
    host.auto.rmdir()
    host.auto.symlink_to("/nowhere")
    host.run("--timeout", "0", RUNTIME_DIRECTORY=str(host.root))
    assert len(validate(host, "list")["directories"]) == 1
    assert len(validate(host, "check")["findings"]) == 1
    assert len(validate(host, "last")["directories"]) == 1


def test_schema_has_no_field_that_is_never_printed(troubled: Host) -> None:
    troubled.save.rename(troubled.root / "elsewhere")
    answers: dict[str, list[Any]] = {command: [] for command in ("list", "check", "last")}
    for place in ("/nowhere", "/dev/zvol/no-such-pool/save"):
        troubled.save.unlink(missing_ok=True)
        troubled.save.symlink_to(place)
        troubled.run("--timeout", "0", RUNTIME_DIRECTORY=str(troubled.root))
        for command, printed in answers.items():
            printed.append(validate(troubled, command, LOGLEVEL="loud"))

    def check(part: Any, printed: list[Any]) -> None:
        if "$ref" in part:
            needed.extend(printed)
        for name, one in part.get("properties", {}).items():
            values = [value[name] for value in printed]
            items = [item for value in values if isinstance(value, list) for item in value]
            check(one.get("items", {}) if "items" in one else one, items or values)
            assert values, name
        if "enum" not in part and isinstance(part.get("type"), list):
            assert {None} < set(printed), part

    for command, printed in answers.items():
        part = schema(command)
        needed: list[Any] = []
        check(part, printed)
        for one in part.get("$defs", {}).values():
            one["properties"].pop("found_after", None)  # with a timeout of 0 no disk is found later
            check(one, needed)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_schemas_are_installed(tmp_path: Path) -> None:
    lines = subprocess.run(
        ["make", "-n", "install", f"DESTDIR={tmp_path}"], cwd=MODULE.parent, capture_output=True, text=True, check=True
    ).stdout
    assert f"install -p -m 644 schema/*.json '{tmp_path}/usr/share/xendomains-wait-disk'" in lines
