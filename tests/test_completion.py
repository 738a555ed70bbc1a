# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Tab completion, tested by pressing the Tab key in a shell on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CAP, MODULE

import xendomains_wait_disk as xwd

COMPLETIONS = MODULE.parent / "packaging" / "completions"
BASH = COMPLETIONS / "xendomains-wait-disk.bash"
ZSH = COMPLETIONS / "_xendomains-wait-disk"
FISH = COMPLETIONS / "xendomains-wait-disk.fish"

SHELLS = [
    pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed"))
    for name in ("bash", "zsh", "fish")
]
PROMPT, END = "READY> ", "THE END"
# A fake command that saves its arguments.
COMMAND = f"""#!/bin/sh
printf '%s\\0' "$@" >arguments
echo {END[:3]}' '{END[4:]}
"""

Type = Callable[[str], list[str]]


@pytest.fixture(params=SHELLS)
def type_line(request: pytest.FixtureRequest, tmp_path: Path) -> Type:
    """Return a function that types a line into a shell and returns the command's arguments; ⇥ is the Tab key."""
    program = tmp_path / "bin" / xwd.COMMAND
    program.parent.mkdir()
    program.write_text(COMMAND)
    program.chmod(0o755)
    for directory in ("auto", "save", "here"):
        (tmp_path / directory).mkdir()
    for file in (BASH, ZSH, FISH):
        text = file.read_text().replace(xwd.DEFAULT_AUTO, f"{tmp_path}/auto")
        (tmp_path / file.name).write_text(text.replace(xwd.DEFAULT_SAVE, f"{tmp_path}/save"))
    (tmp_path / ".bashrc").write_text(f"PS1='{PROMPT}'\n. {tmp_path}/{BASH.name}\n")
    (tmp_path / ".zshrc").write_text(f"PS1='{PROMPT}'\nfpath=({tmp_path} $fpath)\nautoload compinit\ncompinit -u -D\n")
    fish = f"source {tmp_path}/{FISH.name}; function fish_prompt; echo -n '{PROMPT}'; end"
    shells: dict[str, list[str | Path]] = {
        "bash": ["bash", "--noprofile", "--rcfile", tmp_path / ".bashrc", "-i"],
        "zsh": ["zsh", "-d", "-i"],
        "fish": ["fish", "--no-config", "--interactive", "--init-command", fish],
    }
    environment = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "ZDOTDIR": str(tmp_path),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }

    def type_line(line: str) -> list[str]:
        terminal, other = pty.openpty()
        process = subprocess.Popen(
            ["setsid", "--ctty", *shells[request.param]],
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=tmp_path / "here",
            env=environment,
        )
        os.close(other)
        try:
            read_until(terminal, PROMPT)
            os.write(terminal, f"{xwd.COMMAND} {line}\r".replace("⇥", "\t").encode())
            read_until(terminal, END)
        finally:
            process.kill()
            process.wait()
            os.close(terminal)
        return (tmp_path / "here" / "arguments").read_text().split("\0")[:-1]

    return type_line


def read_until(terminal: int, text: str) -> None:
    """Read the output of the shell until this text appears."""
    deadline = time.monotonic() + CAP
    shown = ""
    while text not in shown:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], f"{text!r} not in {shown!r}"
        shown += os.read(terminal, 4096).decode(errors="replace")


def test_commands_and_options_are_completed(type_line: Type) -> None:
    assert type_line("che⇥ --reb⇥") == ["check", "--reboot"]


def test_command_is_completed_after_the_config_option(type_line: Type, tmp_path: Path) -> None:
    (tmp_path / "here" / "a file.conf").touch()
    assert type_line("--config a⇥ lis⇥") == ["--config", "a file.conf", "list"]


def test_guest_is_completed_by_file_name(type_line: Type, tmp_path: Path) -> None:
    (tmp_path / "auto" / "web.cfg").touch()
    (tmp_path / "save" / "mail").touch()
    assert type_line("start we⇥ ma⇥") == ["start", "web.cfg", "mail"]


def test_directory_with_the_name_of_a_guest_adds_no_slash(type_line: Type, tmp_path: Path) -> None:
    (tmp_path / "auto" / "web").touch()
    (tmp_path / "here" / "web").mkdir()
    assert type_line("list we⇥") == ["list", "web"]


def test_no_guest_is_offered_if_there_is_none(type_line: Type) -> None:
    assert type_line("start we⇥") == ["start", "we"]


@pytest.mark.parametrize("begin", ["my", "my\\ g", '"my g', "'my"])
def test_name_with_blanks_is_completed_in_full(type_line: Type, tmp_path: Path, begin: str) -> None:
    (tmp_path / "auto" / "my guest.cfg").touch()
    assert type_line(f"start {begin}⇥") == ["start", "my guest.cfg"]


@pytest.mark.parametrize("name", ["a$(touch${IFS}pwned)b.cfg", "a`touch pwned`", "a;touch pwned", "a'$(touch pwned)"])
def test_command_in_a_name_is_not_run(type_line: Type, tmp_path: Path, name: str) -> None:
    (tmp_path / "auto" / name).touch()
    assert type_line("start a⇥") == ["start", name]
    assert sorted(os.listdir(tmp_path / "here")) == ["arguments"]


def test_last_takes_no_guests(type_line: Type, tmp_path: Path) -> None:
    (tmp_path / "auto" / "web.cfg").touch()
    assert type_line("last we⇥") == ["last", "we"]


# Options, which must be the same as in the program


def parsers_options(capsys: pytest.CaptureFixture[str], command: str) -> set[str]:
    """Return the options in --help of a command; for "", the options before the command."""
    with pytest.raises(SystemExit):
        xwd.parse_arguments([*([command] if command else []), "--help"])
    lines = re.findall(r"^  (-.*?)(?:  .*)?$", capsys.readouterr().out, re.M)
    return {option for line in lines for option in re.findall(r"(?<!\S)--?[a-z-]+", line)}


def bash_options(command: str) -> set[str]:
    words = [xwd.COMMAND, *([command] if command else []), "-"]
    script = f'. {BASH}; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _xendomains_wait_disk; echo "${{COMPREPLY[@]}}"'
    return set(subprocess.check_output(["bash", "--norc", "-c", script, "bash", *words], text=True).split())


def zsh_options(command: str) -> set[str]:
    text = ZSH.read_text()
    for name, value in re.findall(r"^local -a (\w+)=\((.*?'|\n.*?)\n?\)$", text, re.M | re.S):
        text = text.replace(f" ${name} ", f" {value} ")
    found = re.search(
        rf"^    {command}\)\n(.*?);;" if command else r"^_arguments -C(.*?)^ *'1:command", text, re.M | re.S
    )
    assert found
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", re.sub(r"\([^'\n]*?\)|\[.*?\]", "", found[1])))


def fish_options(command: str) -> set[str]:
    options = {"-h", "--help"}
    for line in FISH.read_text().splitlines():
        found = re.match(r"\$option -n (?:\w+_no_command|'__fish_seen_subcommand_from (.*?)')(.*)", line)
        if found and command in (found[1] or "").split(" "):
            options.update(f"-{letter}" for letter in re.findall(r" -s (\w)", found[2]))
            options.update(f"--{name}" for name in re.findall(r" -l (\S+)", found[2]))
    return options


@pytest.mark.parametrize("command", ["", *xwd.COMMANDS])
@pytest.mark.parametrize("offered", [bash_options, zsh_options, fish_options])
def test_completions_offer_the_options_that_the_command_has(
    capsys: pytest.CaptureFixture[str], offered: Callable[[str], set[str]], command: str
) -> None:
    assert offered(command) == parsers_options(capsys, command)
