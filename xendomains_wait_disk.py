# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait, at boot, for the disks of the Xen guests that are about to start.

xendomains.service starts the guests in XENDOMAINS_AUTO and restores those in XENDOMAINS_SAVE. A guest whose
disk is not there yet fails to start and stays down. This program runs just before: it finds the disks which
those guests need, and returns when all of them are ready or when the timeout is over.

The module reads from top to bottom in the order in which the data flows:

    settings                /etc/xen-wait-disk.conf
    xendomains' settings    which directories hold the guests, and whether saved ones are restored
    configurations          xl.cfg(5), and the header which xl save writes
    disk specifications     xl-disk-configuration(5)
    what to look for        a path on this host, or nothing and why
    readiness               ready or not, and why
    survey                  all of the above, for all guests, even if a file system does not answer
    wait                    until everything is ready or time is over
    output                  journal, systemd's status, table, JSON
    command line            options, main()

Every time is in seconds, unless its name says otherwise.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
import time
from _thread import start_new_thread
from collections import namedtuple
from enum import Enum
from functools import partial
from itertools import chain, islice
from threading import Event, Lock

# What the common boot, every disk present, does not need is imported where it is used: argparse, configobj, json,
# pyudev, python-systemd, socket and tenacity together take several times as long as all that the common boot does.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import FrameType
    from typing import IO, Any, Callable, Literal, NamedTuple, NoReturn, Optional, Union

    XlValue = Union[str, list[Any]]
    # The properties udev keeps for a device number, or nothing while udev has not finished with the device.
    UdevLookup = Callable[[int], Optional[Mapping[str, str]]]
    Key = tuple[str, str]
    Call = Callable[[], Any]
    # The text, and its fields for the journal.
    Message = tuple[str, dict[str, str]]
else:

    class NamedTupleMeta(type):
        """Makes the classes below as typing would, whose import costs the common boot a third more time."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            """Makes the class."""
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = list(body["__annotations__"])
            defaults = [body.pop(field) for field in fields if field in body]
            return type(name, (namedtuple(name, fields, defaults=defaults),), {"__slots__": (), **body})

    class NamedTuple(metaclass=NamedTupleMeta):
        """An immutable record; see typing.NamedTuple."""


__version__ = "2.0.0"

COMMAND = "xendomains-wait-disk"
CONFFILE = "/etc/xen-wait-disk.conf"

EXIT_READY = 0
EXIT_TIMED_OUT = 1
EXIT_USAGE = 2
EXIT_NO_XENDOMAINS = 6

# syslog(3)
ERR, WARNING, INFO, DEBUG = 3, 4, 6, 7
LOG_LEVELS = {"emerg": 0, "alert": 1, "crit": 2, "err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}

# packaging/systemd/xendomains-wait-disk.catalog explains these in the journal.
MESSAGE_MISSING = "c73c68bb58c64bc68febe2f6cd319bcd"
MESSAGE_REFUSED = "5673123f0bca4e4491a3bf4dd74c6dc6"
MESSAGE_SETTINGS = "3a7b5633a5a94b02ae3188726f21d967"

# A configuration is a few hundred bytes. What is larger than this is something else, and xl would take long to say so.
LARGEST_CONFIGURATION = 1 << 20

# Ours has 2 KiB. configobj takes a minute for 1 MiB of sections, and overflows the stack if they are nested deep.
LARGEST_SETTINGS = 1 << 15


class Refusal(ValueError):
    """A file or a value cannot be used; the text says why, in words that follow the name of the file or key."""


# ---------------------------------------------------------------------------------------------------------------------
# Settings: /etc/xen-wait-disk.conf
# ---------------------------------------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """What /etc/xen-wait-disk.conf says; a value not given there is the default below."""

    timeout: float = 300.0
    log_level: int = WARNING
    xendomains: tuple[str, ...] = (
        "/etc/sysconfig/xendomains",
        "/etc/default/xendomains",
        "/etc/conf.d/xendomains",
    )
    auto: str = ""
    save: str = ""
    first: float = 0.1
    longest: float = 1.0
    factor: float = 2.0
    ignored_domains: tuple[str, ...] = ()
    ignored_disks: tuple[str, ...] = ()


# Each key of the file, its field in Settings and its check.
SETTINGS_KEYS = (
    ("", "timeout", "timeout", "time_span(default=None)"),
    ("", "log_level", "log_level", "log_level(default=None)"),
    ("paths", "xendomains", "xendomains", "paths(default=None)"),
    ("paths", "auto", "auto", "path(default=None)"),
    ("paths", "save", "save", "path(default=None)"),
    ("polling", "first", "first", "time_span(10ms, default=None)"),
    ("polling", "longest", "longest", "time_span(10ms, default=None)"),
    ("polling", "factor", "factor", "factor(default=None)"),
    ("ignore", "domains", "ignored_domains", "patterns(default=None)"),
    ("ignore", "disks", "ignored_disks", "patterns(default=None)"),
)

# systemd.time(7), "Parsing time spans"
TIME_UNITS = {
    "usec": 1e-6, "us": 1e-6, "µs": 1e-6, "μs": 1e-6,
    "msec": 1e-3, "ms": 1e-3,
    "": 1.0, "seconds": 1.0, "second": 1.0, "sec": 1.0, "s": 1.0,
    "minutes": 60.0, "minute": 60.0, "min": 60.0, "m": 60.0,
    "hours": 3600.0, "hour": 3600.0, "hr": 3600.0, "h": 3600.0,
    "days": 86400.0, "day": 86400.0, "d": 86400.0,
    "weeks": 604800.0, "week": 604800.0, "w": 604800.0,
}  # fmt: skip


LONGEST_TIME = TIME_UNITS["week"]


def parse_time_span(text: str) -> float:
    """Seconds in a time span such as "5min", "90" or "1min 30s" (systemd.time(7)).

    Raises Refusal if it is none. "infinity" is none either: a boot must not wait for ever.
    """
    part = r"([0-9]+(?:\.[0-9]+)?)\s*([a-zµμ]*)"
    parts = re.findall(part, text)
    if not parts or re.sub(part, "", text).strip():
        raise Refusal(f"is no time span: {quoted(text)} (write for example 5min, 90 or 1min 30s)")
    seconds = 0.0
    for number, unit in parts:
        if unit not in TIME_UNITS:
            raise Refusal(f"has the unknown unit '{unit}' in {quoted(text)} (use ms, s, min, h or d)")
        seconds += float(number) * TIME_UNITS[unit]
    if seconds > LONGEST_TIME:
        raise Refusal(f"is too long: {quoted(text)} (at most 1 week)")
    return seconds


def format_time_span(seconds: float) -> str:
    """A time span as a person writes it: 330 is "5min 30s"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms" if seconds else "0s"
    minutes, rest = divmod(round(seconds, 1), 60)
    parts = [f"{minutes:.0f}min"] if minutes else []
    return " ".join(parts + ([f"{rest:g}s"] if rest else []))


def parse_log_level(text: str) -> int:
    """The number of a syslog level given by name or number; raises Refusal if there is none such."""
    level = text.strip().lower()
    if level in LOG_LEVELS:
        return LOG_LEVELS[level]
    if level in map(str, LOG_LEVELS.values()):
        return int(level)
    raise Refusal(f"is no log level: '{text}' (use one of {', '.join(LOG_LEVELS)}, or 0 to 7)")


def read_settings(path: str, *, must_exist: bool = False) -> tuple[Settings, list[str]]:
    """The settings in the file at `path`, and a sentence for everything wrong in it.

    A wrong value is left at its default, and a file that does not exist means defaults (with must_exist, that is
    wrong as well), so that the settings can always be used.
    """
    try:
        lines = os.fsdecode(read_file(path, LARGEST_SETTINGS, trusted=True)).lstrip("\ufeff").splitlines()
    except FileNotFoundError:
        return Settings(), [f"{path} does not exist; the defaults are used."] if must_exist else []
    except OSError as error:
        return Settings(), [f"{path} cannot be read ({reason(error)}); the defaults are used."]
    except Refusal as error:
        return Settings(), [f"{path} {error}; the defaults are used."]
    if not any(sets_something(line) for line in lines):
        return Settings(), []
    try:
        return parse_settings(path, lines)
    except ImportError as error:
        return Settings(), [f"{path} cannot be read without Python's configobj ({error}); the defaults are used."]


def sets_something(line: str) -> bool:
    """Whether configobj has to look at this line; in the file as it is shipped, it need not look at any."""
    return line.strip() not in ("", "[paths]", "[polling]", "[ignore]") and not line.lstrip().startswith("#")


def parse_settings(path: str, lines: Sequence[str]) -> tuple[Settings, list[str]]:
    """The settings in these lines, and a sentence for everything wrong in them; `path` is for the sentences."""
    from configobj import ConfigObj, ConfigObjError, flatten_errors, get_extra_values
    from configobj.validate import ValidateError, Validator

    def configobj_check(check: Callable[..., Any]) -> Callable[..., Any]:
        def checked(value: str | list[str], *arguments: str) -> Any:
            try:
                return check(value, *arguments)
            except Refusal as error:
                raise ValidateError(str(error)) from None

        return checked

    problems: list[str] = []
    try:
        given = ConfigObj(list(lines), interpolation=False)
    except ConfigObjError as error:
        problems += [f"{path}: {problem} This line is ignored." for problem in getattr(error, "errors", [error])]
        given = error.config
    values = given.dict()
    problems += [f"{path}: {problem}" for problem in drop_misplaced(values)]
    config = ConfigObj(values, configspec=configspec(), interpolation=False)
    results = config.validate(Validator({name: configobj_check(c) for name, c in CHECKS.items()}), preserve_errors=True)

    wrong = set()
    for sections, key, problem in flatten_errors(config, results):
        wrong.add((*sections, key))
        problems.append(f"{path}: {'.'.join([*sections, key])} {problem}; the default is used.")
    for sections, key in get_extra_values(config):
        name = ".".join([*sections, key])
        problems.append(f"{path}: {name} is unknown and ignored ({closest_key(name)}).")

    settings: dict[str, Any] = {}
    for section, key, field, _ in SETTINGS_KEYS:
        value = config[section][key] if section else config[key]
        if value not in (None, []) and ((section, key) if section else (key,)) not in wrong:
            settings[field] = tuple(value) if isinstance(value, list) else value
    return Settings()._replace(**settings), problems


def configspec() -> list[str]:
    """The keys and their checks, as configobj wants them."""
    spec = []
    sections = {""}
    for section, key, _, check in SETTINGS_KEYS:
        if section not in sections:
            sections.add(section)
            spec.append(f"[{section}]")
        spec.append(f"{key} = {check}")
    return spec


def drop_misplaced(values: dict[str, Any]) -> list[str]:
    """Takes away sections named like a key and keys named like a section, which confuse configobj's validation.

    Returns what is wrong with each.
    """
    problems = []
    for section in ("", "paths", "polling", "ignore"):
        if not isinstance(values.get(section, values), dict):
            del values[section]
            problems.append(f"{section} is a section; its keys belong below a line [{section}].")
        holder = values.get(section, {}) if section else values
        for key in [key for other, key, *_ in SETTINGS_KEYS if other == section and isinstance(holder.get(key), dict)]:
            del holder[key]
            problems.append(f"{key} is a key, not a section; the default is used.")
    return problems


def check_time_span(value: str | list[str], least: str = "0") -> float:
    """Seconds in a time span of at least `least`."""
    seconds = parse_time_span(single(value))
    if seconds < parse_time_span(least):
        raise Refusal(f"is too short: '{value}' (at least {least})")
    return seconds


def check_log_level(value: str | list[str]) -> int:
    """The number of a log level."""
    return parse_log_level(single(value))


def check_factor(value: str | list[str]) -> float:
    """The factor by which pauses grow."""
    try:
        factor = float(single(value))
    except ValueError:
        raise Refusal(f"is no number: '{value}'") from None
    if not 1 <= factor <= 100:
        raise Refusal(f"is out of range: '{value}' (1 to 100)")
    return factor


def check_path(value: str | list[str]) -> str:
    """One absolute path, or nothing."""
    path = single(value)
    if path and not path.startswith("/"):
        raise Refusal(f"is no absolute path: '{path}'")
    if "\0" in path:
        raise Refusal(f"is no path: '{path}'")
    return path


def check_paths(value: str | list[str]) -> list[str]:
    """Absolute paths, separated by commas."""
    return [check_path(path) for path in check_patterns(value)]


def check_patterns(value: str | list[str]) -> list[str]:
    """Shell patterns, separated by commas."""
    return [pattern for pattern in ([value] if isinstance(value, str) else value) if pattern]


def single(value: str | list[str]) -> str:
    """A value that must not be a list, which is what configobj makes of a comma outside quotes."""
    if isinstance(value, list):
        raise Refusal(f"is a list: '{', '.join(value)}' (one value is wanted; put one with a comma into quotes)")
    return value


CHECKS: Mapping[str, Callable[..., Any]] = {
    "time_span": check_time_span,
    "log_level": check_log_level,
    "factor": check_factor,
    "path": check_path,
    "paths": check_paths,
    "patterns": check_patterns,
}


def closest_key(name: str) -> str:
    """A hint for somebody who wrote an unknown key."""
    import difflib

    known = [f"{section}.{key}".lstrip(".") for section, key, *_ in SETTINGS_KEYS]
    similar = difflib.get_close_matches(name, known, 1)
    return f"did you mean {similar[0]}?" if similar else f"known are {', '.join(known)}"


def read_file(path: str, largest: int = LARGEST_CONFIGURATION, *, trusted: bool = False) -> bytes:
    """The content of a small regular file, which if it is to be `trusted` nobody else may write.

    Raises OSError, or Refusal if it is anything else.
    """
    with open_regular_file(path, trusted=trusted) as file:
        size = file.seek(0, os.SEEK_END)
        if size > largest:
            raise Refusal(f"has {size} bytes; more than {largest} are no configuration")
        file.seek(0)
        return file.read(size)


def open_regular_file(path: str, *, trusted: bool = False) -> IO[bytes]:
    """The file opened for reading without a buffer. Raises OSError, or Refusal if it is no regular file.

    It is looked at before it is opened, because opening a FIFO may block for ever, and opening a device may do anything
    (a watchdog starts to count, a tape rewinds); and after that, because it may have been replaced in between. What is
    empty is not opened at all: the files in /proc look like that, and reading /proc/kmsg takes messages away from the
    one who logs them. With `trusted`, what others may write is refused as well.
    """
    status = os.stat(path)
    require_regular_file(status)
    if not status.st_size:
        if trusted:
            require_trust(status)
        return open(os.devnull, "rb", buffering=0)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        require_regular_file(status)
        if trusted:
            require_trust(status)
    except Refusal:
        os.close(descriptor)
        raise
    return open(descriptor, "rb", buffering=0)


def require_trust(status: os.stat_result) -> None:
    """Raises Refusal if somebody other than root and the caller may have written the file."""
    if why := why_distrusted(status):
        raise Refusal(f"is not trusted, because {why}")


def why_distrusted(status: os.stat_result) -> str:
    """Why somebody other than root and the caller may have written the file, and what to do about it; or nothing."""
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {status.st_uid}, not to root (mend that with chown root)"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others than its owner may write it (mend that with chmod go-w)"
    return ""


def require_regular_file(status: os.stat_result) -> None:
    """Raises Refusal if it is none; xl, too, reads nothing else."""
    if not stat.S_ISREG(status.st_mode):
        raise Refusal(f"is {kind_of_file(status.st_mode)}, not a regular file")


def kind_of_file(mode: int) -> str:
    """What a file is, as in "a directory"."""
    return FILE_KINDS.get(stat.S_IFMT(mode), "something unknown")


FILE_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFREG: "a regular file",
}


def reason(error: Exception) -> str:
    """Why it failed, without the path, which the sentence around it names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


# ---------------------------------------------------------------------------------------------------------------------
# xendomains' settings: which directories hold the guests, and whether saved ones are restored
# ---------------------------------------------------------------------------------------------------------------------


class Sourced(NamedTuple):
    """What bash says after it has sourced a settings file."""

    status: str = "0"
    complaint: str = ""  # about a syntax error
    auto: str = ""
    save: str = ""
    restore: str = ""


class Xendomains(NamedTuple):
    """What xendomains will do when it starts."""

    settings: str
    auto: str = ""  # directory of configurations; empty: starts none
    save: str = ""  # directory of saved domains; empty: restores none
    remark: str = ""  # a sentence about the file that may be of interest, though nothing need be wrong


# Where Xen's own settings file puts them.
DEFAULT_AUTO = "/etc/xen/auto"
DEFAULT_SAVE = "/var/lib/xen/save"

# Sourcing it takes milliseconds; xendomains itself would wait for ever.
SOURCING_LIMIT = 10.0

# The file that was found trustworthy is standard input. It is sourced from there, where nobody can put another in its
# place, or where /proc is missing, by its name. bash undoes the redirections after `.`, so that only what is printed
# below gets into the pipe. Where it has not enough file descriptors for that, it ends, lest the file look empty.
SOURCE_SETTINGS = r"""
exec 3<&0 </dev/null || exit
if [ -e /proc/self/fd/3 ]; then set -- /proc/self/fd/3; fi
{ : 4<"$1" </dev/null >/dev/null 2>&1; } 2>/dev/null || exit
. "$1" </dev/null >/dev/null 2>&1
status=$?
complaint=
if [ "$status" != 0 ]; then complaint=$("$BASH" -n 2>&1 <&3); fi
builtin printf '%s\0' "$status" "$complaint" "${XENDOMAINS_AUTO-}" "${XENDOMAINS_SAVE-}" "${XENDOMAINS_RESTORE-}"
"""


def read_xendomains(settings: Settings, limit: float) -> tuple[Xendomains | None, list[str]]:
    """What xendomains will do, and a sentence for everything wrong with its settings.

    Nothing if there is no settings file: upstream's xendomains then ends with status 6, Debian's starts no guest.
    A file which cannot be sourced within `limit` seconds (or at all), or which bash must not run because others may
    write it, counts as if it held Xen's own defaults.
    """
    path = next((path for path in settings.xendomains if os.path.exists(path)), None)
    if path is None:
        text = f"none of {', '.join(settings.xendomains)} exists, so xendomains starts no guests."
        return None, [f"{kind_of_host('/sys')}: {text}"]
    problems = []
    try:
        sourced = source_xendomains(path, limit)
    except (OSError, Refusal) as error:
        sourced = Sourced(auto=DEFAULT_AUTO, save=DEFAULT_SAVE, restore="true")
        why = error if isinstance(error, Refusal) else f"cannot be read ({reason(error)})"
        problems.append(f"{path} {why}; the guests in {DEFAULT_AUTO} and {DEFAULT_SAVE} are taken instead.")
    remark = ""
    if sourced.complaint:
        problems.append(f"{path} has a syntax error ({sourced.complaint}); what stands before it counts.")
    elif sourced.status != "0":
        remark = f"{path} ends with status {sourced.status}; xendomains goes on all the same."
    restores = sourced.restore != "" if is_debians(path) else sourced.restore == "true"
    return (
        Xendomains(
            settings=path,
            auto=in_root(settings.auto or sourced.auto),
            save=in_root(settings.save or sourced.save) if restores else "",
            remark=remark,
        ),
        problems,
    )


def kind_of_host(sysfs: str) -> str:
    """What this host is to Xen, for a message; `sysfs` is where that is mounted.

    Source: sysfs-hypervisor-xen in the kernel's Documentation/ABI, and features.h in Xen's headers.
    """
    try:
        if attribute(f"{sysfs}/hypervisor", "type") != "xen":
            return "This host does not run Xen"
        features = attribute(f"{sysfs}/hypervisor/properties", "features")
        if features and not int(features, 16) & 1 << XENFEAT_DOM0:
            return "This is a Xen guest, not a Xen host"
    except OSError:
        pass  # only root may know
    return "This Xen host has no settings for xendomains"


XENFEAT_DOM0 = 11


def is_debians(path: str) -> bool:
    """Whether Debian's own xendomains reads these settings, which takes any text in XENDOMAINS_RESTORE for a yes.

    Upstream's reads the same place where Xen was configured for it; its init script only calls a helper program.
    """
    etc, leaf = os.path.split(os.path.dirname(path))
    if leaf != "default":
        return False
    try:
        return b"LIBEXEC_BIN" not in read_file(os.path.join(etc, "init.d", "xendomains"))
    except (OSError, Refusal):
        return True


def in_root(directory: str) -> str:
    """The directory as xendomains sees it: systemd runs it in /."""
    return os.path.join("/", directory.rstrip("/")) if directory else ""


def source_xendomains(path: str, limit: float) -> Sourced:
    """The variables of xendomains as bash finds them in the file, and what it complains of.

    bash sources the file as xendomains does, without input or output. Raises OSError if the file cannot be read, and
    Refusal if others may write it, if there is no bash, or if the file takes longer than `limit` seconds or ends the
    shell.
    """
    with open_regular_file(path, trusted=True) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_CONFIGURATION:
            raise Refusal(f"has {size} bytes; more than {LARGEST_CONFIGURATION} are no settings")
        answer, ended = run_bash(SOURCE_SETTINGS, os.path.abspath(path), file.fileno(), len(Sourced._fields), limit)
    if len(answer) < len(Sourced._fields):
        raise Refusal("ends the shell that reads it" if ended else f"was not read within {format_time_span(limit)}")
    sourced = Sourced(*answer[: len(Sourced._fields)])
    # bash begins each line of a complaint with its own name.
    return sourced._replace(complaint=sourced.complaint.partition("\n")[0].partition(": ")[2])


def run_bash(script: str, argument: str, standard_input: int, fields: int, limit: float) -> tuple[list[str], bool]:
    """The fields (each ended by NUL) which a bash script prints within `limit` seconds, and whether it ended itself.

    This is not left to subprocess, which costs the boot as much as everything else here together.
    """
    import select

    reading, writing = os.pipe()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XENDOMAINS_", "BASH_"))}
    try:
        process = os.posix_spawnp(
            "bash",
            ["bash", "--norc", "--noprofile", "-c", script, "bash", argument],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, standard_input, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setpgroup=0,
            setsigdef=[signal.SIGPIPE],
        )
    except OSError as error:
        os.close(reading)
        raise Refusal(f"needs bash, which does not start ({reason(error)})") from None
    finally:
        os.close(writing)
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    deadline = time.monotonic() + limit
    printed = b""
    ended = False
    try:
        while printed.count(b"\0") < fields and not ended:
            if len(printed) > LARGEST_CONFIGURATION:
                raise Refusal(f"makes bash print more than {LARGEST_CONFIGURATION} bytes")
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                break
            data = os.read(reading, 65536)
            printed += data
            ended = not data
    finally:
        os.close(reading)
        kill_group(process)
    return [os.fsdecode(field) for field in printed.split(b"\0")[:-1]], ended


def kill_group(leader: int) -> None:
    """Ends a child and what it left in its process group, even if it has ended itself."""
    os.killpg(leader, signal.SIGKILL)
    for _ in range(1000):
        # Not for as long as it takes: where a file system hangs, even what is killed may stay.
        if os.waitpid(leader, os.WNOHANG)[0]:
            break
        time.sleep(0.0001)


# ---------------------------------------------------------------------------------------------------------------------
# Configurations: xl.cfg(5), and the header which xl save writes
# ---------------------------------------------------------------------------------------------------------------------


class Disk(NamedTuple):
    """A disk as a configuration states it, xl-disk-configuration(5)."""

    vdev: str
    target: str = ""
    format: str = ""
    backend: str = ""  # the domain that holds the disk; empty: this host
    backendtype: str = ""
    script: str = ""
    cdrom: bool = False


class Domain(NamedTuple):
    """A guest that xendomains is about to start (kind "auto") or to restore (kind "saved")."""

    name: str
    source: str
    kind: str
    disks: tuple[Disk, ...] = ()
    error: str = ""  # why xl will refuse it, or why it cannot be read
    pending: bool = False  # it cannot be read yet: something to wait for
    warnings: tuple[str, ...] = ()


class XlSetting(NamedTuple):
    """A value in an xl.cfg and the line it ends in."""

    value: XlValue
    line: int


class Token(NamedTuple):
    """A token of xl.cfg: its kind (the name of a group in XL_TOKEN), its text and its line."""

    kind: str
    text: str
    line: int

    def __str__(self) -> str:
        return {"newline": "the end of the line", "end": "the end of the file"}.get(self.kind, f"'{self.text}'")


# xl's scanner (libxlu_cfg_l.l). A comment without a newline behind it is an error there, and so it is here.
XL_TOKEN = re.compile(
    r"""[ \t]+
    | (?P<newline> \n | \#[^\n]*\n )
    | (?P<name>    [a-z][._0-9a-z]* )
    | (?P<number>  [0-9][0-9a-fx]* )
    | (?P<string>  "[^"\\\n]*(?:\\.[^"\\\n]*)*" | '[^'\\\n]*(?:\\.[^'\\\n]*)*' )
    | (?P<mark>    \+= | [][=,;] )
    | (?P<bad>     [^\n] )""",
    re.VERBOSE,
)

# Deeper nested lists overflow the stack of xl's parser (measured with libxlutil 4.17).
DEEPEST_LIST = 4996


def parse_xl_config(text: str) -> dict[str, XlSetting]:
    """The settings of an xl.cfg(5), by name: exactly what xl takes from it. Raises Refusal, with the line.

    Source: xl's grammar, libxlu_cfg_y.y and libxlu_cfg.c in Xen's tools/libs/util.
    """
    settings: dict[str, XlSetting] = {}
    tokens = xl_tokens(text)
    token = next(tokens)
    while token.kind != "end":
        if token.kind == "newline" or token.text == ";":
            token = next(tokens)
            continue
        if token.kind != "name":
            raise syntax_error(token, "the name of a setting")
        name, operator = token.text, next(tokens)
        if operator.text not in ("=", "+="):
            raise syntax_error(operator, "= or +=")
        value, line = xl_value(tokens)
        if operator.text == "+=" and name in settings:
            value = joined(settings[name].value, value, line)
        settings[name] = XlSetting(value, line)
        token = next(tokens)
        if token.kind not in ("newline", "end") and token.text != ";":
            raise syntax_error(token, "the end of the line or ;")
    return settings


def xl_tokens(text: str) -> Iterator[Token]:
    """The tokens of an xl.cfg, without blanks; an endless series of tokens of kind "end" follows the last."""
    line = 1
    for match in XL_TOKEN.finditer(text):
        kind = match.lastgroup
        if kind is None:
            continue
        if kind == "bad" and match.end() == len(text) and len(os.fsencode(match.group())) == 1:
            break  # xl reports a bad byte together with what follows it, and here nothing does
        yield Token(kind, match.group(kind), line)
        if kind == "newline":
            line += 1
    while True:
        yield Token("end", "", line)


def xl_value(tokens: Iterator[Token]) -> tuple[XlValue, int]:
    """The value that comes next, a string or a list, and the line it ends in."""
    lists: list[list[Any]] = []
    after_value = False
    for token in tokens:
        value: XlValue
        if token.kind in ("string", "number") and not after_value:
            value = token.text if token.kind == "number" else xl_string(token)
        elif token.text == "[" and token.kind == "mark" and not after_value:
            if len(lists) == DEEPEST_LIST:
                raise syntax_error(token, "no list nested that deep")
            lists.append([])
            continue
        elif token.text == "]" and token.kind == "mark" and lists:
            # A trailing comma is fine, but [,] is not: a comma needs a value before it.
            value = lists.pop()
        elif token.text == "," and token.kind == "mark" and lists and after_value:
            after_value = False
            continue
        elif token.kind == "newline" and lists:
            continue
        else:
            raise syntax_error(token, ", or ]" if after_value else "a string, a number or [")
        if not lists:
            return value, token.line
        lists[-1].append(value)
        after_value = True
    raise AssertionError("xl_tokens() is endless")


def xl_string(token: Token) -> str:
    """What stands between the quotes, with backslash escapes replaced."""
    text = token.text
    if "\0" in text:
        # xl compares the quotes of a string that ends at the NUL, and aborts.
        raise Refusal(f"line {token.line}: a NUL byte in the string {quoted(text)}")
    if "\\" not in text:
        return text[1:-1]
    try:
        return re.sub(XL_ESCAPE, replace_escape, text[1:-1])
    except Refusal as error:
        raise Refusal(f"line {token.line}: {error} in {quoted(text)}") from None


# xl means to take the digits of an octal number here, but takes up to three characters that strtoul(3) likes in
# base 10 after the first digit, wants at least two of them, and puts nothing in their place.
XL_ESCAPE = r"\\(?:[0-7]([ \t\v\f\r]*[+-]?[0-9]*)|(.))"
XL_ESCAPES = {
    '"': '"', "'": "'", "\\": "\\",
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip


def replace_escape(match: re.Match[str]) -> str:
    """What xl puts in the place of a backslash and what follows it; raises Refusal if xl would not take it."""
    number, character = match.groups()
    if number is not None:
        digits = number[:3]
        if len(digits) < 2 or not digits[-1].isdigit():
            raise Refusal("too few digits after a backslash")
        return number[3:]
    if character not in XL_ESCAPES:
        raise Refusal(f"an invalid character '{character}' after a backslash")
    return XL_ESCAPES[character]


def joined(before: XlValue, added: XlValue, line: int) -> XlValue:
    """What += makes of two values."""
    if isinstance(before, str) and isinstance(added, str):
        return before + added
    if isinstance(before, list) and isinstance(added, list):
        before.extend(added)  # in place: a file may do this thousands of times
        return before
    raise Refusal(f"line {line}: += cannot join a list and a string")


def syntax_error(token: Token, expected: str) -> Refusal:
    """The error of xl's parser at this token."""
    if token.kind == "bad":
        hint = BAD_CHARACTERS.get(token.text, "a character that xl does not know")
        return Refusal(f"line {token.line}: lexical error near {token}, {hint}")
    return Refusal(f"line {token.line}: syntax error near {token}, expected {expected}")


BAD_CHARACTERS = {
    '"': "a string that does not end in its line",
    "'": "a string that does not end in its line",
    "#": "a comment on the last line needs a newline at its end",
    "\r": "the file has the line ends of Windows",
}


def quoted(text: str) -> str:
    """Text from a file, cut to what fits into a message."""
    return f"'{text}'" if len(text) <= 100 else f"'{text[:100]}…'"


def domain_from_xl_config(text: str, source: str, kind: str) -> Domain:
    """The domain an xl.cfg describes. Raises Refusal, as xl would."""
    settings = parse_xl_config(text)
    name = settings.get("name")
    if name is None:
        raise Refusal('names no domain (name = "…" is missing)')
    if not isinstance(name.value, str):
        raise Refusal(f"line {name.line}: name is a list, not a string")
    disk = settings.get("disk")
    if disk is None:
        return Domain(name.value, source, kind)
    if isinstance(disk.value, str):
        warning = f"line {disk.line}: disk is a string, not a list, so xl gives the domain no disks"
        return Domain(name.value, source, kind, warnings=(warning,))
    disks: list[Disk] = []
    for specification in disk.value:
        if not isinstance(specification, str):
            break  # xl takes this for the end of the list
        try:
            disks.append(parse_disk(specification))
        except Refusal as error:
            raise Refusal(f"disk {quoted(specification)}: {error} (the list ends in line {disk.line})") from None
    return Domain(name.value, source, kind, tuple(disks))


# xl_cmdimpl.c and xl.h in Xen's tools/xl: 32 bytes of magic, then 32-bit words in the byte order of the first.
SAVED_MAGIC = b"Xen saved domain, xl format\n \0 \r"
SAVED_PREFIX = b"Xen saved domain"  # all that xendomains looks at
SAVED_BYTE_ORDER = 0x01020304
SAVED_JSON, SAVED_STREAM_V2 = 1, 2


def saved_configuration(file: IO[bytes]) -> tuple[str, bool]:
    """The configuration in a file that xl save wrote, and whether it is JSON (else it is an xl.cfg).

    Reads the header and never the memory image behind it. Raises Refusal if xl restore would.
    """
    header = file.read(len(SAVED_MAGIC) + 16)
    if not header.startswith(SAVED_PREFIX):
        raise Refusal("is no saved domain")
    if not header.startswith(SAVED_MAGIC):
        raise Refusal("was not written by xl save, or is damaged")
    words = header[len(SAVED_MAGIC) :]
    if len(words) < 16:
        raise Refusal("ends within its header")
    order = next((o for o in BYTE_ORDERS if int.from_bytes(words[:4], o) == SAVED_BYTE_ORDER), None)
    if order is None:
        raise Refusal(f"has an unknown byte order: {words[:4].hex()}")
    flags = int.from_bytes(words[4:8], order)
    if flags & ~(SAVED_JSON | SAVED_STREAM_V2):
        raise Refusal(f"needs what xl does not know: mandatory flags {flags:#x}")
    optional = int.from_bytes(words[12:16], order)
    size = int.from_bytes(file.read(4), order) if optional >= 4 else 0
    if size > optional - 4:
        raise Refusal(f"claims {size} bytes of configuration in {optional} bytes of optional data")
    if size > LARGEST_CONFIGURATION:
        raise Refusal(f"claims {size} bytes of configuration; at most {LARGEST_CONFIGURATION} are read")
    configuration = file.read(size)
    if len(configuration) < size:
        raise Refusal(f"ends within its configuration: {len(configuration)} of {size} bytes")
    return os.fsdecode(configuration.split(b"\0")[0]), bool(flags & SAVED_JSON)


BYTE_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")


def domain_from_json(text: str, source: str, kind: str) -> Domain:
    """The domain in the JSON that libxl writes for it (libxl_domain_config_to_json). Raises Refusal."""
    import json

    try:
        config = json.loads(text)
        name = config["c_info"]["name"]
        disks = tuple(disk_from_json(disk) for disk in config.get("disks") or ())
    except RecursionError:
        raise Refusal("holds JSON that is nested too deep") from None
    except ValueError as error:
        raise Refusal(f"holds no valid JSON: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise Refusal(f"holds JSON that describes no domain ({type(error).__name__}: {error})") from None
    if not isinstance(name, str):
        raise Refusal("holds JSON whose domain has no name")
    return Domain(name, source, kind, disks)


def disk_from_json(disk: Mapping[str, Any]) -> Disk:
    """A disk in libxl's JSON (libxl_types.idl, libxl_device_disk); values at their default are left out there."""
    backend = disk.get("backend_domname") or disk.get("backend_domid") or ""
    return Disk(
        vdev=str(disk.get("vdev") or ""),
        target=str(disk.get("pdev_path") or ""),
        format=str(disk.get("format") or ""),
        backend=str(backend),
        backendtype=str(disk.get("backend") or ""),
        script=str(disk.get("script") or ""),
        cdrom=bool(disk.get("is_cdrom")),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Disk specifications: xl-disk-configuration(5)
# ---------------------------------------------------------------------------------------------------------------------

DISK_FORMATS = ("raw", "qcow", "qcow2", "vhd", "qed", "empty")
DISK_BACKENDTYPES = ("phy", "tap", "qdisk", "standalone")
DISK_SPECIFICATIONS = ("xen", "virtio")
DISK_ACCESS = ("", "r", "ro", "w", "rw")
# trusted, untrusted and grant_usage are unknown to xl 4.17; what stands there is a parameter like any other.
DISK_FLAGS = {
    "cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "trusted", "untrusted",
}  # fmt: skip
DISK_STRINGS = {"backend", "vdev", "script", "colo-host", "colo-export", "active-disk", "hidden-disk"}
DISK_KEYS = {
    *DISK_STRINGS, "target", "format", "access", "backendtype", "specification", "devtype", "colo-port", "grant_usage",
}  # fmt: skip
DISK_FORMAT_PREFIXES = ("raw", "qcow", "qcow2", "vhd")
# dmmd and npiv are SUSE's; their scripts are block-dmmd and block-npiv.
DISK_SCRIPT_PREFIXES = ("iscsi", "nbd", "enbd", "drbd", "dmmd", "npiv")
DISK_DROPPED_PREFIXES = ("phy", "file", "tap", "tap2", "tapdisk", "aio", "ioemu")

# What a parameter may begin with: a prefix of old, as in phy:/dev/vg0/web, or a key, as in vdev=xvda.
DISK_WORD = re.compile(r"([a-z][a-z0-9]*):|([a-z][-_a-z0-9]*)=")

# A path has 4096 bytes at most, and so has what libxl may write to xenstore about a disk.
LONGEST_DISK = 1 << 14


class DiskWords:
    """The parts of a disk specification that have been read so far."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.after_prefix = False
        self.cdrom = False

    def set_string(self, key: str, value: str) -> None:
        """Raises Refusal if it is set already; xl does not mind if it was set to nothing."""
        if self.values.get(key):
            raise Refusal(f"{key} is given twice, the second time as {quoted(value)}")
        self.values[key] = value

    def set_word(self, key: str, value: str, known: Sequence[str]) -> None:
        """Raises Refusal if it is none of the known words, or set already to another."""
        if value not in known:
            raise Refusal(f"unknown {key} {quoted(value)}")
        if self.values.get(key, value) != value:
            raise Refusal(f"{key} is given twice, the second time as {quoted(value)}")
        self.values[key] = value

    def set_format(self, value: str) -> None:
        """An empty format means raw."""
        self.set_word("format", value or "raw", DISK_FORMATS)

    def set_devtype(self, value: str) -> None:
        """Whether the disk is a CD drive."""
        if value not in ("cdrom", "disk"):
            raise Refusal(f"unknown devtype {quoted(value)}")
        self.cdrom = value == "cdrom"

    def set_key(self, key: str, value: str) -> None:
        """A parameter written as key=value."""
        if key in DISK_STRINGS:
            self.set_string(key, value)
        elif key == "format":
            self.set_format(value)
        elif key == "backendtype":
            self.set_word(key, value, DISK_BACKENDTYPES)
        elif key == "specification":
            self.set_word(key, value, DISK_SPECIFICATIONS)
        elif key == "devtype":
            self.set_devtype(value)
        elif key == "access":
            if value not in DISK_ACCESS:
                raise Refusal(f"unknown access {quoted(value)}")
        elif key == "grant_usage":
            if value not in ("0", "1"):
                raise Refusal(f"unknown grant_usage {quoted(value)}")
        elif key == "colo-port":
            if not re.match(r"[ \t\n\v\f\r]*[+-]?0*[1-9]", value):
                raise Refusal(f"no colo-port: {quoted(value)}")
        else:
            raise Refusal(f"unknown parameter {quoted(key)}")

    def set_positional(self, value: str) -> None:
        """A parameter without a key: target, format, vdev, access, in this order; those set already are left out."""
        if "target" not in self.values:
            self.values["target"] = value
        elif "format" not in self.values and not self.after_prefix:
            if self.values["target"] == "" and ":" in value:
                self.set_vdev_and_devtype(value)
                self.values["format"] = "empty"
            else:
                self.set_format(value)
        elif "vdev" not in self.values:
            if ":" in value:
                self.set_vdev_and_devtype(value)
            else:
                self.values["vdev"] = value
        elif "access" not in self.values:
            if value not in DISK_ACCESS:
                raise Refusal(f"unknown access {quoted(value)}")
            self.values["access"] = value
        else:
            raise Refusal(f"too many positional parameters, at {quoted(value)}")

    def set_vdev_and_devtype(self, value: str) -> None:
        """A vdev with the type of the device behind it, as in hdc:cdrom."""
        vdev, _, devtype = value.rpartition(":")
        self.set_string("vdev", vdev)
        self.set_devtype(devtype)


def parse_disk(specification: str) -> Disk:
    """The disk in one item of an xl.cfg's disk list. Raises Refusal exactly where xl does.

    Source: xl's scanner for it, libxlu_disk_l.l in Xen's tools/libs/util. At each place the rule that matches most
    wins, and a rule that looks ahead counts what it saw up to the end of the line; this decides only where a target
    holds a newline, which is why `line_end` is compared with `positional_end` below.

    One difference: what is too long for any path or script is refused, because the time taken here grows with the
    square of the length.
    """
    if len(specification) > LONGEST_DISK:
        raise Refusal(f"has {len(specification)} characters; more than {LONGEST_DISK} are no disk")
    words = DiskWords()
    place = 0
    while place < len(specification):
        rest = specification[place:]
        positional, comma, _ = rest.partition(",")
        if "=" in positional:
            positional, comma = positional.partition("=")[0], ""
        positional_end = place + len(positional) + len(comma)
        blanks = len(rest) - len(rest.lstrip(" \t\n"))
        match = DISK_WORD.match(rest)
        prefix, key = match.groups() if match else (None, None)
        if blanks and line_end(specification, place + blanks) >= positional_end:
            place += blanks
        elif prefix and prefix_reach(specification, place + len(prefix) + 1, prefix) >= positional_end:
            place += len(prefix) + 1
            read_prefix(words, prefix)
        elif key == "target":
            end = line_end(specification, place)
            target = specification[place + len("target=") : end]
            words.set_string("target", target[:-1] if target.endswith(",") else target)
            place = end
        elif key and (key in DISK_KEYS or rest[len(key) + 1 :][:1] not in ("", ",")):
            value, comma, _ = rest[len(key) + 1 :].partition(",")
            words.set_key(key, value)
            place += len(key) + 1 + len(value) + len(comma)
        elif positional in DISK_FLAGS:
            words.cdrom = words.cdrom or positional == "cdrom"
            place = positional_end
        elif positional or comma:
            words.set_positional(positional)
            place = positional_end
        elif len(rest) == 1:
            break  # xl reports bad syntax together with what follows it, and here nothing does
        else:
            raise Refusal(f"bad syntax at {quoted(rest)}")
    return disk_from_words(words)


def line_end(text: str, place: int) -> int:
    """The place of the next newline, or the end of the text."""
    end = text.find("\n", place)
    return len(text) if end < 0 else end


def prefix_reach(specification: str, place: int, prefix: str) -> int:
    """How far xl's scanner looks for a prefix which ends at this place; see parse_disk()."""
    if prefix in DISK_FORMAT_PREFIXES + DISK_SCRIPT_PREFIXES + DISK_DROPPED_PREFIXES:
        return line_end(specification, place)
    following = specification[place : place + 1]
    if not following or (following.isascii() and (following.isdigit() or following.islower())):
        return place
    return line_end(specification, place + 1)


def read_prefix(words: DiskWords, prefix: str) -> None:
    """A prefix of old, as in phy:/dev/vg0/web."""
    words.after_prefix = True
    if prefix in DISK_FORMAT_PREFIXES:
        words.set_format(prefix)
    elif prefix in DISK_SCRIPT_PREFIXES:
        words.set_string("script", f"block-{prefix}")
    elif prefix not in DISK_DROPPED_PREFIXES:
        raise Refusal(f"unknown prefix '{prefix}:'")


def disk_from_words(words: DiskWords) -> Disk:
    """The disk that these parts describe. Raises Refusal if xl would miss one."""
    values = words.values
    if "vdev" not in values:
        raise Refusal("no vdev given")
    if "target" not in values and not words.cdrom:
        raise Refusal("no target given")
    empty = words.cdrom and not values.get("target")
    return Disk(
        vdev=values["vdev"],
        target=values.get("target", ""),
        format="empty" if empty else values.get("format", "raw"),
        backend=values.get("backend", ""),
        backendtype=values.get("backendtype", ""),
        script=values.get("script", ""),
        cdrom=words.cdrom,
    )


# ---------------------------------------------------------------------------------------------------------------------
# What to look for on this host
# ---------------------------------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """What a disk needs on this host: one of these paths; without any, nothing, and `reason` says why."""

    paths: tuple[str, ...] = ()
    reason: str = ""


def wanted(disk: Disk) -> Wanted:
    """What this host must have before the domain with this disk can start."""
    script = os.path.basename(disk.script)
    if disk.backend not in ("", "0", "Domain-0"):
        return Wanted(reason=f"the driver domain {disk.backend} holds it")
    if disk.format == "empty" or not disk.target:
        return Wanted(reason="the drive is empty")
    if script == "block-drbd":
        # DRBD 9 has a directory of volumes for each resource, DRBD 8 a link (drbd.rules).
        by_resource = f"/dev/drbd/by-res/{disk.target}"
        return Wanted(paths=(f"{by_resource}/0", by_resource))
    # "block" is the script that xl runs when none is given (xl-disk-configuration(5)).
    if script not in ("", "block"):
        return Wanted(reason=f"the script {script} attaches it")
    if disk.target.startswith("/"):
        return Wanted(paths=(disk.target,))
    if disk.backendtype == "qdisk":
        return Wanted(reason="QEMU opens it")
    return Wanted(paths=(f"/{disk.target}",))


def wanted_unless_ignored(domain: Domain, disk: Disk, settings: Settings) -> Wanted:
    """What this host must have for this disk, if the administrator does not want it ignored."""
    want = wanted(disk)
    if want.paths:
        names = (domain.name, os.path.basename(domain.source))
        if matches_any(names, settings.ignored_domains):
            return Wanted(reason="[ignore] domains names its domain")
        if matches_any((*want.paths, disk.target), settings.ignored_disks):
            return Wanted(reason="[ignore] disks names it")
    return want


def matches_any(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Whether one of the shell patterns matches one of the names."""
    if not patterns:
        return False
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


# ---------------------------------------------------------------------------------------------------------------------
# Readiness
# ---------------------------------------------------------------------------------------------------------------------


class State(Enum):
    """What a look at a disk found; the values are the words the user reads."""

    READY = "ready"
    MISSING = "missing"
    NOT_READY = "not-ready"
    SKIPPED = "skipped"


class Look(NamedTuple):
    """What a look at a path found, and if it is not ready, why."""

    state: State
    reason: str = ""


READY = Look(State.READY)


class Kernel(NamedTuple):
    """Where this host tells about its block devices."""

    sys: str = "/sys"
    run_udev: str = "/run/udev"
    udev: UdevLookup | None = None  # how to ask udev about what is not ready by its database

    def udev_runs(self) -> bool:
        """Whether there is a udev to wait for (systemd's sd-device asks the same)."""
        return os.path.exists(f"{self.run_udev}/control")


def look_at(paths: Sequence[str], kernel: Kernel) -> Look:
    """Whether one of the paths is a usable disk; if none is, what the first one lacks.

    May block for as long as a file system does not answer.
    """
    looks = []
    for path in paths:
        looks.append(look_at_path(path, kernel))
        if looks[-1].state is State.READY:
            return READY
    return looks[0]


def look_at_path(path: str, kernel: Kernel) -> Look:
    """Whether this path, links resolved, is a usable block device or a regular file."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Look(State.MISSING, why_missing(path))
    except (OSError, ValueError) as error:
        return Look(State.NOT_READY, f"cannot be looked at: {reason(error)}")
    if stat.S_ISREG(status.st_mode):
        return READY
    if not stat.S_ISBLK(status.st_mode):
        return Look(State.NOT_READY, f"is {kind_of_file(status.st_mode)}, neither a block device nor a regular file")
    try:
        return look_at_block_device(status.st_rdev, kernel)
    except OSError as error:
        return Look(State.NOT_READY, f"cannot be looked at: {reason(error)}")


def why_missing(path: str) -> str:
    """In which way a path does not exist: a link may dangle, or a directory on the way may not be there yet."""
    if os.path.islink(path):
        return f"is a link to {os.path.realpath(path)}, which does not exist"
    parent = os.path.dirname(path)
    return "does not exist" if os.path.isdir(parent) else f"does not exist, nor does the directory {parent}"


def look_at_block_device(number: int, kernel: Kernel) -> Look:
    """Whether the kernel and udev say that the block device with this number can be used.

    Sources: the attributes that systemd's 99-systemd.rules looks at, and sysfs-block in the kernel's Documentation/ABI.
    """
    directory = f"{kernel.sys}/dev/block/{os.major(number)}:{os.minor(number)}"
    try:
        name = os.path.basename(os.readlink(directory))
    except OSError:
        mounted = os.path.isdir(f"{kernel.sys}/dev/block")
        lack = "the kernel has no such block device" if mounted else f"{kernel.sys}, which tells of it, is not mounted"
        return Look(State.NOT_READY, f"is a device file, but {lack}")
    lack = lack_in_sysfs(directory, name) or (lack_in_udev(number, kernel) if kernel.udev_runs() else "")
    return Look(State.NOT_READY, lack) if lack else READY


def lack_in_sysfs(directory: str, name: str) -> str:
    """What a block device lacks according to the kernel, or nothing."""
    if name.startswith("md"):
        array = attribute(directory, "md/array_state")
        if array in MD_LACKS:
            return MD_LACKS[array]
    elif name.startswith("loop") and "p" not in name[4:]:
        if attribute(directory, "loop/backing_file") is None:
            return "loop device has no file"
    elif name.startswith("nbd") and "p" not in name:
        if attribute(directory, "pid") is None:
            return "nbd device is not connected to a server"
    elif name.startswith("dm-") and attribute(directory, "dm/suspended") == "1":
        return "device-mapper device is suspended"
    if attribute(directory, "size") == "0" and not name.startswith("sr"):
        return "DRBD device has size 0: it has no disk and no peer" if name.startswith("drbd") else "has size 0"
    return ""


# array_state in the kernel's Documentation/admin-guide/md.rst
MD_LACKS = {
    "clear": "md array is empty",
    "inactive": "md array is inactive",
    "suspended": "md array is suspended",
    "broken": "md array is broken",
}


def attribute(directory: str, name: str) -> str | None:
    """An attribute in sysfs, or a file in udev's database; nothing if the device has none of this name."""
    try:
        descriptor = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        value = data = os.read(descriptor, LARGE_READ)
        while len(data) == LARGE_READ:
            data = os.read(descriptor, LARGE_READ)
            value += data
        return value.decode(errors="replace").strip()
    finally:
        os.close(descriptor)


# No attribute is as large, and hardly any file of udev's: in general one read is enough.
LARGE_READ = 1 << 16


def lack_in_udev(number: int, kernel: Kernel) -> str:
    """What a block device lacks according to udev, or nothing."""
    lack = lack_in_properties(read_udev_database(number, kernel.run_udev))
    return lack_in_properties(kernel.udev(number)) if lack and kernel.udev else lack


def lack_in_properties(properties: Mapping[str, str] | None) -> str:
    """What a block device lacks to which udev has given these properties, or nothing."""
    if properties is None:
        return "udev has not finished with it"
    if properties.get("SYSTEMD_READY") != "0" or is_ready_for_a_guest(properties):
        return ""
    if properties.get("DM_MULTIPATH_DEVICE_PATH") == "1":
        return "is one path of a multipath device; use the multipath device instead"
    return "udev says that it is not ready (SYSTEMD_READY=0)"


def is_ready_for_a_guest(properties: Mapping[str, str]) -> bool:
    """Whether udev calls it not ready for a reason that concerns this host only, and not a guest.

    99-systemd.rules does so for an opened crypt volume without a known content, lest systemd mount it while it is
    being formatted; a guest formats it. 64-btrfs.rules does so while other members of its file system are missing;
    they may be disks of the guest as well, and are waited for if they are, or the guest does without them.
    """
    if properties.get("ID_BTRFS_READY") == "0":
        return True
    return (
        properties.get("DM_UUID", "").startswith("CRYPT-")
        and properties.get("DM_UDEV_DISABLE_OTHER_RULES_FLAG") != "1"
        and not properties.get("ID_FS_USAGE")
        and not properties.get("ID_PART_TABLE_TYPE")
    )


def read_udev_database(number: int, run_udev: str) -> Mapping[str, str] | None:
    """The properties udev has stored for a block device, or nothing while it has not finished with it.

    libudev reads the same file, one line a fact, "E:KEY=VALUE" for a property (sd-device.c in systemd). Asking libudev
    takes longer than all else here, so it is asked only about what is not ready by this, and only in the wait; should
    the format ever change, every boot waits for a moment and then asks libudev through pyudev.
    """
    text = attribute(f"{run_udev}/data", f"b{os.major(number)}:{os.minor(number)}")
    if text is None:
        return None
    return dict(re.findall("^E:([^=\n]*)=(.*)", text, re.MULTILINE))


def lvm_clones(kernel: Kernel) -> list[list[str]]:
    """The names of block devices that hold one and the same LVM physical volume, such as a LUN and its clone.

    LVM then takes one of them or none, depending on which it sees first and what activates the volume group. The
    paths of a multipath device are one disk and do not count.
    """
    try:
        files = sorted(os.listdir(f"{kernel.run_udev}/data"))
    except OSError:
        return []
    holders: dict[str, list[str]] = {}
    for file in files:
        if not re.fullmatch("b[0-9]+:[0-9]+", file):
            continue
        major, minor = map(int, file[1:].split(":"))
        try:
            properties = read_udev_database(os.makedev(major, minor), kernel.run_udev) or {}
            if properties.get("ID_FS_TYPE") == "LVM2_member" and properties.get("DM_MULTIPATH_DEVICE_PATH") != "1":
                name = os.path.basename(os.readlink(f"{kernel.sys}/dev/block/{file[1:]}"))
                holders.setdefault(properties.get("ID_FS_UUID", name), []).append(name)
        except OSError:
            continue
    return [names for names in holders.values() if len(names) > 1]


def pyudev_lookup() -> UdevLookup | None:
    """A way to ask libudev, or nothing where pyudev is not installed."""
    try:
        import pyudev

        context = pyudev.Context()
    except (ImportError, OSError):
        return None

    # libudev is not thread-safe, and a thread that was left behind may come back at any time.
    one_at_a_time = Lock()

    def lookup(number: int) -> Mapping[str, str] | None:
        with one_at_a_time:
            try:
                device = pyudev.Devices.from_device_number(context, "block", number)
            except pyudev.DeviceNotFoundError:
                return None
            return dict(device.properties) if device.is_initialized else None

    return lookup


# ---------------------------------------------------------------------------------------------------------------------
# Survey: all guests and all their disks, even if a file system does not answer
# ---------------------------------------------------------------------------------------------------------------------


def start_thread(function: Call) -> None:
    """Makes the call in a thread that does not keep the interpreter from ending. Raises RuntimeError if there is none.

    Thread.start() of threading would wait for ever for one that finds no memory to begin with.
    """
    start_new_thread(function, ())


class Scouts:
    """Threads that look at what may block for ever, such as a file on an NFS server that is gone.

    One thread makes all the calls. If it does not come back from one, it is left behind, and each of the other calls
    gets a thread of its own, because more on the same server may follow. What a thread brings that comes back later
    counts the next time. Threads cannot be ended, but they do not keep the interpreter from ending either.
    """

    PATIENCE = 0.3  # a call that takes longer is left behind
    PATIENCE_LOST = 0.1  # the same, once one was left behind
    AT_ONCE = 64
    MOST_LOST = 1000  # a service may have a few thousand threads, and the memory of a host is for its guests

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._lost: dict[Key, Scout] = {}

    def run(self, errand: str, calls: Mapping[str, Call], deadline: float) -> dict[str, Any]:
        """The results of the calls that came back, at the latest at `deadline` (on the monotonic clock).

        A call is known by what it is for and by its key, a path.
        """
        results: dict[Key, Any] = {}
        keyed = {(errand, path): call for path, call in calls.items()}
        for key in keyed.keys() & self._lost.keys():
            if self._lost[key].back.is_set():
                results.update(self._lost.pop(key).result_for(key))
        todo = [(key, call) for key, call in keyed.items() if key not in self._lost and key not in results]
        patience = self._patience
        groups = [todo]
        while todo and len(self._lost) < self.MOST_LOST and time.monotonic() < deadline:
            scouts = [Scout(group) for group in groups]
            try:
                for scout in scouts:
                    start_thread(scout.run)
            except RuntimeError:  # the process has as many threads as it may have
                if len(scouts) > 1:
                    break
                scouts[0].run()  # nothing is known to hang, and not to look would be worse
            todo = self._gather(scouts, results, patience, deadline) + todo[sum(map(len, groups)) :]
            groups = [[pair] for pair in todo[: self.AT_ONCE]]
            patience = self.PATIENCE_LOST
        return {path: result for (_, path), result in results.items()}

    def silence(self, errand: str, path: str) -> Look:
        """Why a call brought nothing: it has not come back, or there was no time or no thread to make it."""
        return NO_ANSWER if (errand, path) in self._lost else NOT_LOOKED_AT

    def _gather(
        self, scouts: list[Scout], results: dict[Key, Any], patience: float, deadline: float
    ) -> list[tuple[Key, Call]]:
        """Adds to the results what the scouts bring; returns the calls that they left undone."""
        undone = []
        end = time.monotonic() + patience
        for scout in scouts:
            done = 0
            while not scout.back.wait(max(0.0, min(end, deadline) - time.monotonic())):
                if len(scout.results) == done or time.monotonic() >= deadline:
                    break
                done = len(scout.results)
                end = time.monotonic() + patience
            undone += scout.leave_behind()
            results.update(scout.results_so_far())
            if not scout.back.is_set() and scout.current is not None and scout.current not in results:
                self._lost[scout.current] = scout
        return undone


def answer_within(limit: float, call: Call, otherwise: Any) -> Any:
    """What the call returns, or `otherwise` if it does not come back within `limit` seconds."""
    return Scouts(limit).run("ask", {"": call}, time.monotonic() + limit).get("", otherwise)


class Scout:
    """One such thread: makes the calls one after the other, until it is left behind."""

    def __init__(self, calls: Sequence[tuple[Key, Call]]) -> None:
        self.todo = list(reversed(calls))
        self.results: dict[Key, Any] = {}
        self.error: Exception | None = None
        self.current: Key | None = None
        self.back = Event()

    def run(self) -> None:
        """Makes the calls."""
        try:
            while True:
                try:
                    key, call = self.todo.pop()
                except IndexError:
                    break
                self.current = key
                self.results[key] = call()
        except Exception as error:
            self.error = error  # to be raised where it can be told of
        finally:
            self.back.set()

    def leave_behind(self) -> list[tuple[Key, Call]]:
        """Takes the calls that it has not made yet out of its hands."""
        undone = []
        while self.todo:
            try:
                undone.append(self.todo.pop())
            except IndexError:
                break  # it has just taken the last one itself
        return undone

    def results_so_far(self) -> dict[Key, Any]:
        """What it has brought. Raises the error that ended it, if there was one."""
        if self.error is not None:
            raise self.error
        return dict(self.results)

    def result_for(self, key: Key) -> dict[Key, Any]:
        """What it has brought for this call."""
        results = self.results_so_far()
        return {key: results[key]} if key in results else {}


class Entry(NamedTuple):
    """A file in one of xendomains' directories: its state when it was read, and the domain in it."""

    signature: tuple[int, ...]
    domain: Domain
    wants: tuple[Wanted, ...] = ()

    def disks(self) -> Iterator[tuple[Disk, Wanted]]:
        """Each disk and what it needs on this host."""
        return zip(self.domain.disks, self.wants)


class Survey(NamedTuple):
    """What is known of all the guests about to start: by file, the domain; by path, how its disk looks."""

    entries: Mapping[str, Entry] = {}
    looks: Mapping[str, Look] = {}

    def domains(self) -> list[Domain]:
        """The domains, in the order in which xendomains starts them."""
        return [entry.domain for entry in self.entries.values()]

    def missing(self) -> list[Missing]:
        """What the start of the guests still waits for, each path once."""
        found: dict[str, Look] = {}
        domains: dict[str, dict[str, None]] = {}
        for entry in self.entries.values():
            needs = [(want.paths[0], self.look(want)) for want in entry.wants if want.paths]
            if entry.domain.pending:
                needs.append((entry.domain.source, Look(State.MISSING, entry.domain.error)))
            for path, look in needs:
                if look.state is not State.READY:
                    found[path] = look
                    domains.setdefault(path, {})[entry.domain.name] = None
        return [Missing(path, *look, tuple(domains[path])) for path, look in found.items()]

    def look(self, want: Wanted) -> Look:
        """How the disk looks that wants this."""
        if not want.paths:
            return Look(State.SKIPPED, want.reason)
        return self.looks[want.paths[0]]


class Missing(NamedTuple):
    """A disk, or a configuration, that is waited for, and the domains that need it."""

    path: str
    state: State
    reason: str
    domains: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path} for {', '.join(self.domains)} ({self.reason})"


NO_ANSWER = Look(State.NOT_READY, "does not answer; is the server of its file system gone?")
NOT_LOOKED_AT = Look(State.NOT_READY, "could not be looked at yet, because others take so long")


def survey(
    xendomains: Xendomains,
    settings: Settings,
    kernel: Kernel,
    scouts: Scouts,
    known: Survey,
    deadline: float,
    again: bool = False,
) -> Survey:
    """Reads what has changed since `known` and looks at what was not ready then, until `deadline` at the latest.

    With `again` it looks at what was ready as well. What does not answer then remains as it was: something that is
    always slow must not look new each time.
    """
    directories = {d: kind for d, kind in ((xendomains.save, "saved"), (xendomains.auto, "auto")) if d}
    listers: dict[str, Call] = {d: partial(list_entries, d, kind, settings) for d, kind in directories.items()}
    listings: dict[str, Listing] = scouts.run("list", listers, deadline)
    entries: dict[str, Entry] = {}
    readers: dict[str, Call] = {}
    for directory, kind in directories.items():
        if directory not in listings:
            known_files = [file for file in known.entries if os.path.dirname(file) == directory]
            silent = unanswered(directory, kind, scouts.silence("list", directory))
            listings[directory] = Listing(known_files, known.entries.get(directory) if again else silent)
        listing = listings[directory]
        if listing.trouble:
            entries[directory] = listing.trouble
        for file in listing.files:
            entries[file] = known.entries.get(file) or unanswered(file, kind, NOT_LOOKED_AT)
            readers[file] = partial(read_entry, file, kind, known.entries.get(file), settings)
    answers: dict[str, Entry | None] = scouts.run("read", readers, deadline)
    for file, before in list(entries.items()):
        entry = answers.get(file, before)
        if entry is None:
            del entries[file]
        elif entry.domain.error in SILENCES and file in readers:
            entries[file] = unanswered(file, entry.domain.kind, scouts.silence("read", file))
        else:
            entries[file] = entry

    wants = {want.paths[0]: want.paths for entry in entries.values() for want in entry.wants if want.paths}
    ready = {path: READY for path in wants if known.looks.get(path) is READY}
    calls: dict[str, Call] = {
        p: partial(look_at, paths, kernel) for p, paths in wants.items() if again or p not in ready
    }
    looks: dict[str, Look] = scouts.run("look", calls, deadline)
    silences = {path: scouts.silence("look", path) for path in calls if path not in looks and path not in ready}
    return Survey(entries, {**ready, **silences, **looks})


class Listing(NamedTuple):
    """The files in one of xendomains' directories, and what is wrong with the directory itself, if anything is."""

    files: Sequence[str] = ()
    trouble: Entry | None = None


def list_entries(directory: str, kind: str, settings: Settings) -> Listing:
    """The files in a directory that the shell's * matches, in order; none if it is no directory, as for xendomains.

    A directory behind a link that dangles is in trouble: its files come when what the link points to is mounted.
    """
    try:
        with os.scandir(directory) as found:
            names = (entry.name for entry in found if not entry.name.startswith(".") and entry.name != LOST_AND_FOUND)
            first = sorted(islice(names, MOST_GUESTS))
            another = next(names, None)
            if another is not None:
                from heapq import nsmallest

                first = nsmallest(MOST_GUESTS, chain(first, (another,), names))
    except NotADirectoryError:
        return Listing()
    except OSError as error:
        return Listing(trouble=unreadable(directory, kind, error, settings))
    trouble = overcrowded(directory, kind) if another is not None else None
    return Listing([os.path.join(directory, name) for name in first], trouble)


# mke2fs(8) makes it in each file system, and the directory may be one of its own.
LOST_AND_FOUND = "lost+found"

# No host starts as many guests; Xen could count to 32752. Where there are more files, something else has put them
# there, and going through all of them would take time and memory that a boot does not have.
MOST_GUESTS = 4096


def overcrowded(directory: str, kind: str) -> Entry:
    """The entry for a directory that holds more files than there can be guests."""
    warning = f"holds more than {MOST_GUESTS} files, and no host has as many guests; only the first are looked at"
    return Entry((), Domain(os.path.basename(directory), directory, kind, warnings=(warning,)))


# What the errors of such entries say.
SILENCES = (NO_ANSWER.reason, NOT_LOOKED_AT.reason)


def unanswered(path: str, kind: str, look: Look) -> Entry:
    """The entry for a file that could not even be looked at."""
    return Entry((), Domain(os.path.basename(path), path, kind, error=look.reason, pending=True))


def read_entry(path: str, kind: str, known: Entry | None, settings: Settings) -> Entry | None:
    """What is in this file: `known` again if the file has not changed, nothing if it was removed meanwhile.

    May block for as long as a file system does not answer.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        return unreadable(path, kind, error, settings)
    signature: tuple[int, ...] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if known and known.signature == signature:
        return known
    if abs(time.time() - status.st_ctime) < GRANULARITY:
        signature = ()  # so that it is read again: what is written to it now may leave no trace in these figures
    try:
        domain = read_domain(path, kind)
    except OSError as error:
        return unreadable(path, kind, error, settings)  # and without a signature, so that it is tried again
    except Refusal as error:
        domain = Domain(os.path.basename(path), path, kind, error=reason(error))
    if why := why_distrusted(status):
        # xl will run it all the same, as root, so its disks are needed.
        domain = domain._replace(warnings=(*domain.warnings, f"{why}; xl uses it all the same"))
    return Entry(signature, domain, tuple(wanted_unless_ignored(domain, disk, settings) for disk in domain.disks))


# File systems tell the time in steps of up to 2 seconds (FAT), and most of them in steps of some milliseconds.
GRANULARITY = 2.0

# Nobody needs to wait for the end of these.
LASTING_ERRORS = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


def unreadable(path: str, kind: str, error: OSError, settings: Settings) -> Entry | None:
    """The entry for what cannot be read; nothing if it does not exist (any more).

    A link to nothing is waited for, and so is the end of an error that a file system may have for a while.
    """
    name = os.path.basename(path)
    if error.errno != errno.ENOENT:
        text = f"cannot be read: {reason(error)}"
    elif os.path.islink(path):
        text = why_missing(path)
    else:
        return None
    pending = error.errno not in LASTING_ERRORS and not matches_any((name,), settings.ignored_domains)
    return Entry((), Domain(name, path, kind, error=text, pending=pending))


def read_domain(path: str, kind: str) -> Domain:
    """The domain in this file. Raises OSError if it cannot be read, and Refusal if xl will refuse it."""
    if kind == "auto":
        return with_warnings(domain_from_xl_config(os.fsdecode(read_file(path)), path, kind))
    with open_regular_file(path) as file:
        text, is_json = saved_configuration(file)
    return with_warnings((domain_from_json if is_json else domain_from_xl_config)(text, path, kind))


def with_warnings(domain: Domain) -> Domain:
    """The domain, with a warning for each disk whose target is a relative path, and without disks beyond reason."""
    warnings = [
        f"the target '{disk.target}' of disk {disk.vdev} is relative; libxl looks for /{disk.target}"
        for disk in domain.disks[:MOST_DISKS]
        if wanted(disk).paths == (f"/{disk.target}",)
    ]
    if len(domain.disks) > MOST_DISKS:
        warnings.append(f"has {len(domain.disks)} disks; only the first {MOST_DISKS} are waited for")
    if not warnings:
        return domain
    return domain._replace(disks=domain.disks[:MOST_DISKS], warnings=(*domain.warnings, *warnings))


# Of one guest.
MOST_DISKS = 1024


# ---------------------------------------------------------------------------------------------------------------------
# Wait: until everything is ready or time is over
# ---------------------------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """A signal asks the wait to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stop_on_signals() -> None:
    """From now on the first signal that asks to end raises Stopped in the main thread."""
    stopping = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise Stopped(number)

    def try_again(swallowed: sys.UnraisableHookArgs) -> None:
        nonlocal stopping
        if isinstance(swallowed.exc_value, Stopped):
            stopping = False
            start_thread(partial(send_soon, swallowed.exc_value.number))
        elif swallowed.exc_type is not MemoryError:  # a thread ended by that is one that does not come back
            sys.__unraisablehook__(swallowed)

    # What is raised while an object is being destroyed gets no further than this.
    sys.unraisablehook = try_again
    set_signals(stop)


def send_soon(number: int) -> None:
    """Sends this process the signal in a moment."""
    time.sleep(0.01)
    os.kill(os.getpid(), number)


def obey_signals() -> None:
    """From now on the signals that ask to end do so, in silence."""
    set_signals(signal.SIG_DFL)


def set_signals(action: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Takes this action on the signals that ask to end, except those which nohup(1) or a shell had ignored."""
    for number in STOPPING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, action)


def wait(
    look_again: Callable[..., Survey],
    tell: Callable[[Survey], None],
    known: Survey,
    settings: Settings,
    kernel: Kernel,
    deadline: float,
) -> Survey:
    """Looks again and again until nothing is missing or `deadline` (on the monotonic clock) has come.

    `look_again` makes the next survey from the last by the time that it is given, with again=True also of what was
    ready, and `tell` is told each.
    The pauses grow as [polling] says; an event of a block device ends one early.

    It does not end because a configuration has just lost its disks, or is gone: somebody may be writing it anew, or
    putting a new directory in the old one's place. Unless something is missing again SETTLING later, it is true.
    """
    from tenacity import RetryCallState, Retrying, retry_if_result, wait_exponential

    # The events are collected from before the first look on, so that none can fall between a look and a pause.
    alarm = UdevAlarm(kernel, deadline)

    settled = 0.0
    missing = known.missing()

    def attempt() -> None:
        nonlocal known, missing, settled
        before = known
        end = end_of_look(deadline)
        known = look_again(known, end)
        if not known.missing() or time.monotonic() >= deadline:
            # What became ready first may have gone again.
            known = look_again(known, end, again=True)
        tell(known)
        if missing and is_rewritten(before, known):
            settled = time.monotonic() + SETTLING
        missing = known.missing()

    def goes_on(_: None) -> bool:
        return bool(missing) or time.monotonic() < settled

    def is_over(_: RetryCallState) -> bool:
        return time.monotonic() >= deadline

    Retrying(
        sleep=alarm.sleep,
        wait=wait_exponential(multiplier=settings.first, exp_base=settings.factor, max=settings.longest),
        retry=retry_if_result(goes_on),
        stop=is_over,
        retry_error_callback=lambda _: None,
    )(attempt)
    return known


SETTLING = 1.0

# How long a look may take though the timeout is over: some scouts may have to be left behind.
SHORTEST_LOOK = 0.7


def end_of_look(deadline: float) -> float:
    """When a look that begins now has to end, if the wait has this deadline."""
    return max(deadline, time.monotonic() + SHORTEST_LOOK)


def is_rewritten(before: Survey, now: Survey) -> bool:
    """Whether what had been found of a configuration is no longer so, or the file is gone."""
    for file, entry in before.entries.items():
        found = now.entries.get(file)
        if (found is None or found.domain != entry.domain) and entry.domain.error not in SILENCES:
            return True
    return False


class UdevAlarm:
    """Sleeps, and wakes up early when something happens to a block device."""

    SHORTEST = 0.02  # between two looks in a storm of events

    def __init__(self, kernel: Kernel, deadline: float) -> None:
        self._kernel = kernel
        self._deadline = deadline
        self._monitor = block_events(kernel)

    def sleep(self, seconds: float) -> None:
        """Sleeps for that long, until an event, or until the deadline, whatever comes first."""
        started = time.monotonic()
        end = min(started + seconds, self._deadline)
        while not self._event_within(max(0.0, end - time.monotonic())):
            if time.monotonic() >= end:
                return
        time.sleep(max(0.0, min(started + self.SHORTEST, end) - time.monotonic()))
        while self._event_within(0) and time.monotonic() < end:
            pass

    def _event_within(self, seconds: float) -> bool:
        if self._monitor is None:
            time.sleep(seconds)
            return False
        try:
            return self._monitor.poll(seconds) is not None
        except OSError:
            # There were more events than the kernel keeps, and some are lost, which is as good as one. The monitor
            # would fail again and again.
            self._monitor = block_events(self._kernel)
            return True


def block_events(kernel: Kernel) -> Any:
    """A pyudev monitor that listens to the events of block devices; nothing where pyudev or netlink is missing."""
    try:
        import pyudev

        # Without udev the kernel's own events are all there is.
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), "udev" if kernel.udev_runs() else "kernel")
        monitor.filter_by("block")
        monitor.start()
    except (ImportError, OSError):
        return None
    return monitor


# ---------------------------------------------------------------------------------------------------------------------
# Output: journal, systemd's status, table, JSON
# ---------------------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """The text with an escape for whatever a terminal or the journal would not show as it is.

    A file name with control characters must not be able to forge a message.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else escaped(c) for c in text)


def escaped(character: str) -> str:
    """The character as an escape; a byte of a file name that is no UTF-8 as \\xNN."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


# journald splits what is longer than 48 KiB, and systemd hears nothing of a status longer than a datagram.
LONGEST_MESSAGE = 1 << 14
LONGEST_CELL = 1000


def shortened(text: str, longest: int) -> str:
    """The text without its middle if it is longer than that: what is wrong stands at the end."""
    return text if len(text) <= longest else f"{text[: longest // 2]} […] {text[-(longest // 2) :]}"


class Journal:
    """Where messages go: to systemd's journal, or to standard error.

    Under systemd they go through python-systemd with fields, or where that is missing, with their priority in front
    as sd-daemon(3) describes.

    Nobody may hold up the boot by not reading: unless it is to be `patient`, what cannot be delivered soon is left to a
    thread, and messages are lost until that has come back.
    """

    PATIENCE = 0.3  # with one message
    LONGEST_PATIENCE = 0.9  # with all that are said at once, as long as one after the other is delivered

    def __init__(self, level: int, stream: IO[str] | None, *, patient: bool = False) -> None:
        self.level = level
        self._stream = stream
        self._patient = patient
        self._patience = self.PATIENCE
        self._lost = 0
        self._delivered = Event()
        self._delivered.set()
        self._is_journal = is_journal(stream)
        self._is_terminal = not self._is_journal and stream is not None and stream.isatty()
        self._shows_progress = False

    def say(self, level: int, text: str, **fields: str) -> None:
        """One message, with fields such as DISK= for the journal."""
        self.say_all(level, [(text, fields)])

    def say_all(self, level: int, messages: Iterable[Message]) -> None:
        """Several messages."""
        if level > self.level:
            return
        calls = []
        for text, fields in messages:
            shown = {name: printable(shortened(value, LONGEST_MESSAGE)) for name, value in fields.items()}
            calls.append(partial(self._send, level, printable(shortened(text, LONGEST_MESSAGE)), shown))
        self._deliver(calls)

    def progress(self, text: str) -> None:
        """On a terminal, one line that is written over each time."""
        if self._is_terminal and self.level > ERR:
            self._deliver([partial(self._write, printable(text)[: terminal_width() - 1])])
            self._shows_progress = True

    def end_progress(self) -> None:
        """Takes that line away."""
        if self._shows_progress:
            self._deliver([partial(self._write, "")])

    def _deliver(self, calls: Sequence[Call]) -> None:
        if not calls:
            return
        if self._patient:
            for call in calls:
                call()
            return
        if not self._delivered.wait(self._patience):
            self._lost += len(calls)
            return
        delivered = self._delivered = Event()
        done = 0

        def deliver() -> None:
            nonlocal done
            try:
                self._tell_of_lost()
                for call in calls:
                    call()
                    done += 1
            finally:
                delivered.set()

        try:
            start_thread(deliver)
        except RuntimeError:  # the process has as many threads as it may have
            deliver()
        end = time.monotonic() + self.LONGEST_PATIENCE
        done_before = 0
        while not delivered.wait(self.PATIENCE) and done > done_before and time.monotonic() < end:
            done_before = done
        self._patience = self.PATIENCE if delivered.is_set() else 0.0

    def _tell_of_lost(self) -> None:
        if self._lost:
            text = f"Messages were lost here, because nobody read them: {self._lost}."
            self._lost = 0
            self._send(WARNING, text, {})

    def _send(self, level: int, text: str, fields: Mapping[str, str]) -> None:
        if self._is_journal:
            try:
                from systemd import journal

                journal.send(text, PRIORITY=str(level), SYSLOG_IDENTIFIER=COMMAND, **fields)
                return
            except (ImportError, OSError):
                text = f"<{level}>{text}"
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        if self._shows_progress:
            text = f"\r\033[K{text}"
            self._shows_progress = False
        try:
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody listens; the wait goes on


def is_journal(stream: IO[str] | None) -> bool:
    """Whether the stream is connected to the journal: $JOURNAL_STREAM in systemd.exec(5)."""
    try:
        status = os.fstat(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):
        return False
    return status is not None and os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def terminal_width() -> int:
    """Columns of the terminal."""
    import shutil

    return shutil.get_terminal_size().columns


def notify(*assignments: str) -> None:
    """Tells systemd, if it listens: sd_notify(3), whose protocol is stable and meant to be spoken directly."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as unix:
            unix.setblocking(False)
            unix.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            lines = [printable(shortened(assignment, LONGEST_MESSAGE)) for assignment in assignments]
            unix.sendall("\n".join(lines).encode())
    except OSError:
        pass  # the status is for people to read; nothing depends on it


class Herald:
    """Tells what the surveys find: to the journal what is news, to systemd and to a terminal how things stand."""

    FIRST_REMINDER = 5.0  # the gaps between reminders double from here
    MOST_CHANGES = 10  # of one disk or configuration that are told of between two reminders
    MOST_LINES = 1000  # that are told at once
    MOST_NAMES = 100  # of guests in one line

    def __init__(self, journal: Journal, started: float, timeout: float) -> None:
        self._journal = journal
        self._started = started
        self._timeout = timeout
        self._told: dict[str, Domain] = {}
        self._awaited: dict[str, Missing] = {}
        self._reminder = started
        self._gap = self.FIRST_REMINDER
        self._status = ""
        self._changes: dict[str, int] = {}

    def tell(self, survey: Survey) -> None:
        """Tells what is new since the last survey."""
        now = time.monotonic()
        remind = now >= self._reminder
        if remind:
            self._reminder = now + self._gap
            self._gap *= 2
            self._changes.clear()
        before, self._awaited = self._awaited, {one.path: one for one in survey.missing()}
        self._say_some(WARNING, self._on_domains(survey))
        self._say_some(WARNING, self._on_ends(before, survey))
        self._say_some(WARNING, self._on_waits({} if remind else before, remind))
        self._tell_status()

    def _say_some(self, level: int, messages: Iterable[Message]) -> None:
        messages = iter(messages)
        self._journal.say_all(level, list(islice(messages, self.MOST_LINES)))
        if more := sum(1 for _ in messages):
            self._journal.say(level, f"There are {more} more messages like these; `{COMMAND} list` shows everything.")

    def _is_news(self, path: str) -> bool:
        """Whether to tell of a change; what changes all the time must not fill the journal."""
        self._changes[path] = self._changes.get(path, 0) + 1
        if self._changes[path] == self.MOST_CHANGES + 1:
            self._journal.say(WARNING, f"{path} keeps changing; no more is said of that for a while.", DISK=path)
        return self._changes[path] <= self.MOST_CHANGES

    def _on_domains(self, survey: Survey) -> Iterator[Message]:
        for domain in survey.domains():
            if domain == self._told.get(domain.source):
                continue
            problems = problems_of(domain)
            if problems and not self._is_news(domain.source):
                continue
            self._told[domain.source] = domain
            fields = {"MESSAGE_ID": MESSAGE_REFUSED} if domain.error else {}
            for text in problems:
                yield text, {"DOMAIN": domain.name, "SOURCE": domain.source, **fields}

    def _on_waits(self, before: Mapping[str, Missing], remind: bool) -> Iterator[Message]:
        for path, one in self._awaited.items():
            told = set(before[path].domains) if path in before else ()
            domains = [domain for domain in one.domains if domain not in told]
            if domains and (remind or self._is_news(path)):
                for domain in domains:
                    yield f"still waiting for {path} for {domain}...", {"DISK": path, "DOMAIN": domain}

    def _on_ends(self, before: Mapping[str, Missing], survey: Survey) -> Iterator[Message]:
        seconds = time.monotonic() - self._started
        for path, one in before.items():
            if path in self._awaited or not self._is_news(path):
                continue
            entry = survey.entries.get(path)
            if survey.looks.get(path) is READY:
                text = f"disk {path} found (after {seconds:.0f} seconds)"
            elif entry and not entry.domain.pending:
                text = f"configuration {path} found (after {seconds:.0f} seconds)"
            else:
                text = f"{path} is no longer needed (after {seconds:.0f} seconds)"
            yield text, {"DISK": path, "DOMAIN": some(one.domains, self.MOST_NAMES)}

    def _tell_status(self) -> None:
        missing = list(self._awaited.values())
        if not missing:
            if not self._status:
                return  # there was never anything to wait for
            self._journal.end_progress()
            status = "Everything that the guests need is ready."
        else:
            seconds = time.monotonic() - self._started
            status = f"Waiting for {summary(missing)}"
            self._journal.progress(f"{seconds:.0f}s of {format_time_span(self._timeout)}: {status}")
        if status != self._status:
            left = self._started + self._timeout - time.monotonic()
            # More than is left, because a survey that has to leave threads behind takes a little longer.
            notify(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={(max(0.0, left) + 10) * 1e6:.0f}")
            self._status = status

    def tell_clones(self, clones: Sequence[Sequence[str]]) -> None:
        """Tells which devices are clones for LVM: a logical volume may be missing, or of the wrong one, for that."""
        for names in clones:
            text = (
                f"{' and '.join(names)} hold the same LVM physical volume, as a disk and its clone do. LVM takes one of"
                " them or none. Detach the clone, or give it identifiers of its own (vgimportclone(8))."
            )
            self._journal.say(WARNING, text)

    def tell_timeout(self) -> None:
        """Tells what is still missing at the end."""
        self._journal.end_progress()
        self._say_some(ERR, self._on_timeout())
        domains = sorted({domain for one in self._awaited.values() for domain in one.domains})
        guests = some(domains, self.MOST_NAMES)
        self._journal.say(ERR, f"xendomains starts now; these guests will probably not come up: {guests}.")
        notify(f"STATUS=Timed out waiting for {summary(list(self._awaited.values()))}")

    def _on_timeout(self) -> Iterator[Message]:
        after = f" after {format_time_span(self._timeout)}" if self._timeout else ""
        for one in self._awaited.values():
            for domain in one.domains:
                text = f"{one.path} for {domain} is {STATE_WORDS[one.state]}{after}: {one.reason}"
                yield text, {"DISK": one.path, "DOMAIN": domain, "MESSAGE_ID": MESSAGE_MISSING}

    def tell_stopped(self, number: int) -> None:
        """Tells what was still missing when a signal came."""
        self._journal.end_progress()
        seconds = time.monotonic() - self._started
        missing = "; ".join(map(str, self._awaited.values()))
        waiting = f", still waiting for {missing}" if missing else ""
        self._journal.say(WARNING, f"Stopped by {signal.Signals(number).name} after {seconds:.0f} seconds{waiting}.")


STATE_WORDS = {State.MISSING: "still missing", State.NOT_READY: "still not ready"}


def summary(missing: Sequence[Missing]) -> str:
    """The first few of what is missing, on one line."""
    return some([str(one) for one in missing], 3)


def some(texts: Sequence[str], most: int) -> str:
    """The first of them, and how many more there are."""
    more = [f"{len(texts) - most} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *more])


def problems_of(domain: Domain) -> list[str]:
    """A sentence for everything wrong with the configuration of a domain."""
    if domain.pending:
        return []  # something to wait for, which has messages of its own
    if domain.error:
        does = "start" if domain.kind == "auto" else "restore"
        return [f"{domain.source}: {domain.error}. xl will not {does} it, and nothing is waited for."]
    return [f"{domain.source}: {warning}." for warning in domain.warnings]


def as_json(survey: Survey) -> str:
    """The survey for programs."""
    import json

    domains = [
        {
            "name": well_formed(entry.domain.name),
            "source": well_formed(entry.domain.source),
            "kind": entry.domain.kind,
            "error": well_formed(entry.domain.error) or None,
            "disks": [disk_as_json(disk, want, survey.look(want)) for disk, want in entry.disks()],
        }
        for entry in survey.entries.values()
    ]
    return json.dumps({"ready": not survey.missing(), "domains": domains}, indent=2)


def disk_as_json(disk: Disk, want: Wanted, look: Look) -> dict[str, str | None]:
    """A disk for programs."""
    return {
        "vdev": well_formed(disk.vdev),
        "target": well_formed(disk.target),
        "path": well_formed(want.paths[0]) if want.paths else None,
        "state": look.state.value,
        "reason": well_formed(look.reason) or None,
    }


def well_formed(text: str) -> str:
    """The text without halves of surrogate pairs, which stand for bytes that are no UTF-8, and are no JSON."""
    return re.sub("[\ud800-\udfff]", lambda match: escaped(match.group()), text)


def as_table(survey: Survey) -> str:
    """The survey for people."""
    rows = [("DOMAIN", "KIND", "VDEV", "DISK", "STATE", "REASON")]
    for entry in survey.entries.values():
        domain = entry.domain
        if domain.error:
            state = "missing" if domain.pending else "refused"
            rows.append((domain.name, domain.kind, "-", domain.source, state, domain.error))
        elif not domain.disks:
            rows.append((domain.name, domain.kind, "-", "-", "no disks", ""))
        for disk, want in entry.disks():
            look = survey.look(want)
            path = want.paths[0] if want.paths else disk.target or "-"
            rows.append((domain.name, domain.kind, disk.vdev, path, look.state.value, look.reason))
    cells = [[printable(shortened(cell, LONGEST_CELL)) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


class Options(NamedTuple):
    """The command line; at boot there is nothing on it."""

    command: str = "wait"
    config: str = ""
    timeout: float | None = None
    verbose: int = 0
    quiet: bool = False
    json: bool = False


def parse_arguments(arguments: Sequence[str]) -> Options:
    """The options on the command line. Ends the program if they are wrong (status 2), or asked for help or version."""
    if not arguments:
        return Options()
    parser = argument_parser()
    try:
        options = parser.parse_args(arguments)
    finally:
        show("", end="")  # help or version, which the end in run() would not write out
    if options.json and options.command != "list":
        parser.error("--json goes with list")
    return Options(**vars(options))


def argument_parser() -> argparse.ArgumentParser:
    """What may stand on the command line."""
    import argparse

    def time_span(text: str) -> float:
        try:
            return parse_time_span(text)
        except Refusal as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Wait until the disks of the Xen guests that are about to start are ready, or say what is missing.",
        epilog="Exit status: 0 every disk is ready, 1 timed out, 2 wrong usage or configuration, "
        "6 no settings of xendomains.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        default="wait",
        choices=("wait", "list", "check"),
        help="wait: wait for the disks (the default); list: show them and how they are; "
        "check: say what is wrong in the configuration files",
    )
    parser.add_argument("--config", metavar="FILE", default="", help=f"read this instead of {CONFFILE}")
    parser.add_argument(
        "--timeout", metavar="TIME", type=time_span, help="wait at most this long, as in 90 or 5min; 0: look once"
    )
    parser.add_argument("--json", action="store_true", help="with list: for programs")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: even more")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what is missing in the end")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def log_level(settings: Settings, options: Options, environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """The level up to which messages are shown, and a sentence for each wrong value in the environment.

    The command line goes before the environment, and that before the file.
    """
    problems = []
    level = settings.log_level
    for name in ("SYSTEMD_LOG_LEVEL", "LOGLEVEL"):
        if environment.get(name):
            try:
                level = parse_log_level(environment[name])
            except Refusal as error:
                problems.append(f"${name} {error}; it is ignored.")
    if options.quiet:
        level = ERR
    elif options.verbose:
        level = max(level, INFO if options.verbose == 1 else DEBUG)
    return level, problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line asks for, and returns the exit status."""
    started = time.monotonic()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    settings, problems = settings_in_time(options)
    level, level_problems = log_level(settings, options, os.environ)
    journal = Journal(level, sys.stderr, patient=options.command != "wait")
    xendomains, more_problems = xendomains_in_time(settings)
    problems += level_problems + more_problems
    for problem in problems:
        journal.say(ERR, problem, MESSAGE_ID=MESSAGE_SETTINGS)
    if xendomains is None:
        return EXIT_NO_XENDOMAINS
    if xendomains.remark:
        journal.say(WARNING, xendomains.remark)

    if options.command == "wait":
        return wait_and_tell(xendomains, settings, journal, started)
    found = survey(xendomains, settings, Kernel(udev=pyudev_lookup()), Scouts(), Survey(), started + ONE_LOOK)
    if options.command == "check":
        return tell_what_is_wrong(found, journal, problems)
    show(as_json(found) if options.json else as_table(found))
    if problems:
        return EXIT_USAGE
    return EXIT_TIMED_OUT if found.missing() else EXIT_READY


def settings_in_time(options: Options) -> tuple[Settings, list[str]]:
    """Our settings and what is wrong with them, even if their file system does not answer."""
    path = options.config or CONFFILE
    unknown = Settings(), [f"{path} {NO_ANSWER.reason} The defaults are used."]
    limit = reading_limit(Settings().timeout if options.timeout is None else options.timeout)
    read = partial(read_settings, path, must_exist=options.config != "")
    settings, problems = answer_within(limit, read, unknown)
    if options.timeout is not None:
        settings = settings._replace(timeout=options.timeout)
    return settings, problems


def xendomains_in_time(settings: Settings) -> tuple[Xendomains | None, list[str]]:
    """What xendomains will do and what is wrong with its settings, even if their file system does not answer."""
    paths = ", ".join(settings.xendomains)
    problem = f"{paths}: {NO_ANSWER.reason} The guests in {DEFAULT_AUTO} and {DEFAULT_SAVE} are taken instead."
    unknown = Xendomains("", settings.auto or DEFAULT_AUTO, settings.save or DEFAULT_SAVE), [problem]
    limit = reading_limit(settings.timeout)
    # A little more for what follows on a file that hangs, and has a message of its own.
    answer: tuple[Xendomains | None, list[str]] = answer_within(
        limit + 0.3, partial(read_xendomains, settings, limit), unknown
    )
    return answer


def reading_limit(timeout: float) -> float:
    """How long it may take to read settings."""
    return min(SOURCING_LIMIT, max(timeout, 0.5))


def tell_what_is_wrong(found: Survey, journal: Journal, problems: Sequence[str]) -> int:
    """Tells of everything wrong in the configurations; returns the exit status, to which `problems` add."""
    wrong = bool(problems)
    remarks = []
    for domain in found.domains():
        if domain.pending:
            remarks.append(f"{domain.source}: {domain.error}. The boot would wait for it.")
        elif domain.error:
            wrong = True
        remarks += problems_of(domain)
    for text in remarks:
        journal.say(ERR, text)
    if not remarks and not wrong:
        show(f"Nothing is wrong in the configuration of {in_numbers(found)}.")
    return EXIT_USAGE if wrong else EXIT_READY


def show(text: str, end: str = "\n") -> None:
    """Prints to standard output; what its encoding has no character for is shown as an escape."""
    if sys.stdout is None:  # it was closed when the program started
        return
    encoding = sys.stdout.encoding or "ascii"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)
    except BrokenPipeError:
        pass  # the reader has seen enough
    except OSError as error:
        raise Refusal(f"the output cannot be written: {reason(error)}") from None


# How long list and check give a file system to answer.
ONE_LOOK = 10.0


def wait_and_tell(xendomains: Xendomains, settings: Settings, journal: Journal, started: float) -> int:
    """Waits and says what it waits for; returns the exit status."""
    deadline = started + settings.timeout
    kernel = Kernel()
    scouts = Scouts()
    herald = Herald(journal, started, settings.timeout)

    def look(kernel: Kernel, known: Survey, end: float, again: bool = False) -> Survey:
        return survey(xendomains, settings, kernel, scouts, known, end, again)

    try:
        stop_on_signals()
        found = look(kernel, Survey(), end_of_look(deadline))
        herald.tell(found)
        if found.missing() and settings.timeout:
            kernel = kernel._replace(udev=pyudev_lookup())
            found = wait(partial(look, kernel), herald.tell, found, settings, kernel, deadline)
            herald.tell_clones(lvm_clones(kernel))
        obey_signals()
    except Stopped as stopped:
        herald.tell_stopped(stopped.number)
        obey_signals()
        os.kill(os.getpid(), stopped.number)
        raise
    if found.missing():
        herald.tell_timeout()
        return EXIT_TIMED_OUT
    journal.say(INFO, f"Everything is ready for {in_numbers(found)}.")
    return EXIT_READY


def in_numbers(survey: Survey) -> str:
    """How many guests and disks there are."""
    disks = sum(len(domain.disks) for domain in survey.domains())
    return f"{len(survey.entries)} guest{'s' * (len(survey.entries) != 1)} with {disks} disk{'s' * (disks != 1)}"


def run() -> NoReturn:
    """The command: main(), and out.

    Leaves at once, because tearing down the interpreter takes longer than the look at a disk. Threads that hang do not
    keep it, unless they hang where even SIGKILL does not reach them; then it is up to systemd's timeouts to go on.
    """
    journal = Journal(ERR, sys.stderr, patient=True)  # later there may be no memory for it
    status = EXIT_TIMED_OUT
    failure = ""
    try:
        obey_signals()
        status = main()
    except SystemExit as end:  # argparse
        status = end.code if isinstance(end.code, int) else EXIT_USAGE
    except Refusal as error:
        failure = f"{error}."
    except MemoryError:
        failure = "there is not enough memory to go on. What is missing is not waited for."
    except ImportError as error:
        failure = f"a Python module cannot be loaded ({error}). What is missing is not waited for."
    except Exception as error:
        failure = f"internal error, please report it: {type(error).__name__}: {error}"
    if failure:
        journal.say(ERR, f"{COMMAND}: {failure}")
    os._exit(status)


if __name__ == "__main__":
    run()
