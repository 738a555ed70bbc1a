# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Wait, at boot, for the disks of the Xen guests that are about to start.

xendomains.service starts the guests in XENDOMAINS_AUTO and restores those in XENDOMAINS_SAVE. A guest whose disk is not
there yet fails to start and stays down. This program runs just before: it finds the disks that those guests need, and
returns when all of them are ready, or when the timeout expires.

The module reads top to bottom in the order in which data flows, one section per step. All times are in seconds unless
their names say otherwise.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import stat
import sys
import time
from _thread import RLock, allocate_lock, start_new_thread
from collections import Counter, deque, namedtuple
from contextlib import closing, suppress
from enum import Enum
from functools import cached_property, partial
from itertools import islice

# Importing argparse, configobj, pyudev, socket and tenacity takes several times as long as everything that a boot with
# all disks present does, and it needs none of them; so they are imported where they are used. typing alone would take
# a quarter of the start-up time, so only type checkers import it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from types import FrameType
    from typing import IO, Any, Callable, Literal, NamedTuple, NoReturn, TypeVar
    from xml.etree.ElementTree import Element

    Call = Callable[[], Any]
    # The purpose of a call, and the path that it checks.
    Key = tuple[str, str]
    Found = TypeVar("Found")
    # Level, text, and fields for the journal.
    Message = tuple[int, str, dict[str, str]]
else:
    NamedTuple = object

__version__ = "2.0.0"

COMMAND = "xendomains-wait-disk"
CONFFILE = "/etc/xen-wait-disk.conf"
JSON_VERSION = 1
LATE_SERVICE = "xendomains-late.service"
XL_LOGS = "/var/log/xen"
LIBVIRT_SAVES = "/var/lib/libvirt/libxl/save"
LIBVIRT_LOGS = "/var/log/libvirt/libxl"
STATE_DIRECTORY = os.environ.get("RUNTIME_DIRECTORY", f"/run/{COMMAND}")
LAST_WAIT = f"{STATE_DIRECTORY}/last.json"
LOGS_AT_BOOT = f"{STATE_DIRECTORY}/xl-logs.json"
LOCKS = f"{STATE_DIRECTORY}/start"
VIRSH = "virsh --connect xen:///system"
JOURNAL_SOCKET = "/run/systemd/journal/socket"

# Where the state of this host's storage is found.
SYS, RUN, PROC, ETC, VAR, USR = "/sys", "/run", "/proc", "/etc", "/var", "/usr"

EXIT_READY = 0
EXIT_TIMED_OUT = 1
EXIT_USAGE = 2
EXIT_NO_XENDOMAINS = 6
NAGIOS_UNKNOWN = 3

# syslog(3)
ERR, WARNING, INFO, DEBUG = 3, 4, 6, 7
LOG_LEVELS = {"emerg": 0, "alert": 1, "crit": 2, "err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}

# packaging/systemd/xendomains-wait-disk.catalog explains these in the journal.
MESSAGE_MISSING = "c73c68bb58c64bc68febe2f6cd319bcd"
MESSAGE_REFUSED = "5673123f0bca4e4491a3bf4dd74c6dc6"
MESSAGE_SETTINGS = "3a7b5633a5a94b02ae3188726f21d967"
MESSAGE_SUMMARY = "e2f4ab1c6a8c4a7b9f0a1f2b8d7f3c55"

# All limits and intervals; sizes are in bytes, times in seconds.
MAX_CONFIGURATION = 1 << 17  # of a guest; hundreds of disks fit. Anything larger is something else, and slow to parse
MAX_SETTINGS = 1 << 15  # the shipped file has 2 KiB; configobj takes a minute to parse 1 MiB of sections
MAX_SETTINGS_LINE = 1 << 12  # configobj takes 12 s to parse a line of 32 KiB
MAX_ATTRIBUTE = 1 << 16  # of a file in sysfs or udev's database
MAX_DISK_SPECIFICATION = 1 << 14  # libxl may write 4096 to xenstore; parsing takes quadratic time
MAX_JSON_DEPTH = 32  # libxl's JSON has 5 levels; Python's parser may overflow the stack
START_PAUSE = 10.0  # between two checks by start, if nothing happens
START_READ_INTERVAL = 120.0  # at which start reads configurations, and looks for reasons, again
RETRIES = (30.0, 120.0, 600.0)  # before each retry of a guest that has failed to start
MAX_XL = 600.0  # for xl to start a guest
MAX_TURN = 30.0  # after which start turns to other guests, while xl keeps running
MAX_BOOT = 600.0  # from the start of the kernel to the start of the wait
FOREVER = 1e9  # the timeout of an endless wait, in seconds that systemd accepts
MAX_BUFFER = 1 << 12  # for reading a file; at most this much is read of the memory image of a saved guest
MAX_FILES = 4096  # in one of xendomains' directories; if there are more, they are not configurations
MAX_EVIDENCE = 1 << 21  # of a file about storage; LVM's backup of a large volume group is 1 MiB
MAX_BACKING_FILES = 16  # in the chain behind an image
QCOW_HEADER = 1 << 12  # the part of an image that names the format of its backing file
MAX_TIME = 7 * 86400.0  # the longest that may be configured
MIN_PAUSE = 0.01  # between two looks; the shortest that may be configured
MIN_SLEEP = 0.02  # between two looks in a storm of events
MAX_SOURCING = 10.0  # for bash to source xendomains' settings, which takes milliseconds
MAX_FIRST_LOOK = 10.0  # for the first look, or the only one
MAX_LAST_LOOK = 0.7  # for a look that begins when the timeout expires
READ_INTERVAL = 1.0  # at which configurations are read again while only disks are missing
MAX_RECHECKED = 16  # ready disks that each look checks again, in one or two milliseconds
MAX_REWRITING = 0.4  # after the last change of a file, while it may be half written; less than STUCK_AFTER
STALL_TIMEOUT = 2.0  # after which a look goes on without the calls in progress, if none has returned
STALL_TIMEOUT_AT_END = 10.0  # the same when all disks are checked again, as in the last look
STUCK_AFTER = 0.5  # a call that has not returned by then counts as stuck
POLL_INTERVAL = 0.05  # at which the main thread checks for calls that have not returned
MAX_THREADS = 64  # making calls at the same time, not counting stuck ones
LAST_RESORT = 30.0  # after which mdadm starts a degraded array (mdadm-last-resort@.timer)
LATE_TIMER = 70.0  # by which systemd may delay that: AccuracySec= in systemd.timer(5), and a busy host
SETTLED = 3.0  # after which udev is done with a device, unless its database says otherwise
MAX_SAVE_END = 60.0  # for xl to destroy a guest that it has saved
MAX_PROGRAM = 5.0  # for drbdsetup or systemctl, which take milliseconds
MAX_REASON_AGE = 4.0  # of a reported reason
MAX_REASON_SHARE = 0.05  # of the CPU time, for finding reasons
MAX_SENDING = 0.4  # for a message, and the note on how many were dropped before it
MAX_SENDING_ALL = 3.0  # for all messages that are sent together
MAX_SENDING_AT_END = 0.5  # for those at the end, except the summary
MAX_MESSAGE = 1 << 14  # characters; journald splits lines longer than 48 KiB
FIRST_REMINDER = 5.0  # of what is missing; the gaps double from here
MAX_LINES = 1000  # between two reminders, except those about what was found
MAX_NAMES = 20  # in one line
MAX_NAMED = 3  # disks with the same cause that are reported individually
MAX_LISTED = 4  # in one clause of a reason
MAX_REASON = 1000  # characters
MAX_CELL = 1000  # characters in a cell of a table
MAX_BAR = 30  # characters
MIN_LAST_COLUMN = 30  # of a table on a terminal


def record(declared: type[Found]) -> type[Found]:
    """Turns a class of annotated fields into a named tuple, as typing.NamedTuple does, which type checkers see."""
    fields, members = declared.__annotations__, dict(vars(declared))
    defaults = [members.pop(field) for field in fields if field in members]
    base = namedtuple(declared.__name__, fields, defaults=defaults, module=__name__)  # type: ignore[misc]
    made: type[Found] = type(declared.__name__, (base,), {**members, "__slots__": ()})
    return made


class ConfigError(ValueError):
    """Why a file or a value cannot be used; the text continues a sentence that begins with the file or key."""


class Unsupported(ConfigError):
    """Like ConfigError, for something that xl itself accepts."""


@record
class Finding(NamedTuple):
    """A problem with a file, guest or disk, and how to fix it; an error if it may keep a guest from starting."""

    problem: str
    fix: str = ""
    is_error: bool = False
    file: str = ""
    guest: str = ""
    vdev: str = ""

    def sentence(self) -> str:
        """The file and its problem, as a message."""
        return f"{self.file}: {self.problem}." if self.file else f"{self.problem}."


def quoted(text: str) -> str:
    """Text from a file, in quotes, shortened to fit into a message."""
    return f"'{text}'" if len(text) <= 100 else f"'{text[:100]}…'"


def shell_word(text: str) -> str:
    """The text as one word of a bash command; characters that cannot be printed are escaped, as in $'\\n'."""
    from shlex import quote

    if text.isprintable():
        return quote(text)
    content = text.encode(errors="surrogateescape" if may_be_path(text) else "backslashreplace")
    in_octal = re.sub(rb"[^a-zA-Z0-9/._-]", lambda match: b"\\%03o" % match[0][0], content)
    return f"$'{in_octal.decode()}'"


def may_be_path(text: str) -> bool:
    """Whether a path can be this text: JSON may have NULs, and surrogates that stand for no byte."""
    return not re.search("[\0\ud800-\udc7f\udd00-\udfff]", text)


def join_limited(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first `most` texts, and how many more there are."""
    more = [f"{len(texts) - most} more"] if len(texts) > most else []
    return separator.join([*texts[:most], *more])


# --- Files -----------------------------------------------------------------------------------------------------------
FILE_KINDS = {
    stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device",
}  # fmt: skip


def read_file(path: str, most: int = MAX_CONFIGURATION) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError, or ConfigError if it is anything else."""
    with open_regular_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Unsupported(f"is too large for a configuration: more than {most} bytes")
    return content


def open_regular_file(path: str) -> IO[bytes]:
    """The file, opened for reading. Raises OSError, or ConfigError if it is not a regular file: xl reads no other."""
    # Opening a device may have side effects: a watchdog starts counting.
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise ConfigError(f"is {FILE_KINDS[kind]}, not a regular file")
    return open(path, "rb", MAX_BUFFER)


def why_not_trusted(path: str, status: os.stat_result) -> str:
    """How someone other than root and the caller may have changed the file, and the fix; empty if nobody can."""
    if status.st_uid not in (0, os.geteuid()):
        return f"it is owned by user {status.st_uid}, not root (fix: chown root {shell_word(path)})"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"it is writable by group or others (fix: chmod go-w {shell_word(path)})"
    return ""


def attribute(directory: str, name: str) -> str:
    """The value of a sysfs attribute, or the content of a file in udev's database; empty if it does not exist."""
    try:
        descriptor = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        # A damaged file may contain NUL bytes, which must not get into a path.
        return os.read(descriptor, MAX_ATTRIBUTE).decode(errors="replace").replace("\0", "?").strip()
    finally:
        os.close(descriptor)


def error_text(error: Exception) -> str:
    """The text of an error, without the path, which the surrounding sentence names."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    is_clear = isinstance(error, (ConfigError, ImportError, NoResponse))
    return str(error) if is_clear else f"{type(error).__name__}: {error}"


# --- Settings: /etc/xen-wait-disk.conf -------------------------------------------------------------------------------
@record
class Settings(NamedTuple):
    """The settings in /etc/xen-wait-disk.conf, and their defaults."""

    timeout: float = 300.0
    log_level: int = WARNING
    xendomains: tuple[str, ...] = ("/etc/sysconfig/xendomains", "/etc/default/xendomains", "/etc/conf.d/xendomains")
    auto: str = ""
    save: str = ""
    libvirt: str = "/etc/libvirt/libxl/autostart"
    first: float = 0.1
    longest: float = 1.0
    factor: float = 2.0
    ignored_domains: tuple[str, ...] = ()
    ignored_disks: tuple[str, ...] = ()
    late_domains: tuple[str, ...] = ("*",)


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


def parse_time_span(text: str, least: float = 0.0) -> float:
    """Seconds in a time span such as "5min", "90" or "1min 30s" (systemd.time(7)); raises ConfigError."""
    part = r"([0-9]+(?:\.[0-9]+)?)\s*([a-zµμ]*)"
    parts = re.findall(part, text)
    if not parts or re.sub(part, "", text).strip():
        raise ConfigError(f"is not a time span: {quoted(text)} (examples: 5min, 90, 1min 30s)")
    seconds = 0.0
    for number, unit in parts:
        if unit not in TIME_UNITS:
            raise ConfigError(f"has the unknown unit '{unit}' in {quoted(text)} (use ms, s, min, h or d)")
        seconds += float(number) * TIME_UNITS[unit]
    if seconds > MAX_TIME:
        raise ConfigError(f"is too long: {quoted(text)} (at most 1 week)")
    if seconds < least:
        raise ConfigError(f"is too short: {quoted(text)} (at least {format_time_span(least)})")
    return seconds


def format_time_span(seconds: float) -> str:
    """A time span as people write it, such as "5min 30s" for 330."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms" if seconds else "0s"
    minutes, rest = divmod(round(seconds, 1), 60)
    parts = [f"{minutes:.0f}min"] if minutes else []
    return " ".join(parts + ([f"{rest:g}s"] if rest else []))


def parse_log_level(text: str) -> int:
    """The number of a syslog level given by name or number; raises ConfigError if there is no such level."""
    level = text.strip().lower()
    if level in LOG_LEVELS or level in map(str, LOG_LEVELS.values()):
        return LOG_LEVELS[level] if level in LOG_LEVELS else int(level)
    raise ConfigError(f"is not a log level: '{text}' (use one of {', '.join(LOG_LEVELS)}, or 0 to 7)")


def check_factor(text: str) -> float:
    """The factor by which pauses grow. Raises ConfigError."""
    with suppress(ValueError):
        if 1 <= float(text) <= 100:
            return float(text)
    raise ConfigError(f"is not a number from 1 to 100: '{text}'")


def check_path(text: str) -> str:
    """An absolute path, or an empty one. Raises ConfigError."""
    if text and (not text.startswith("/") or "\0" in text):
        raise ConfigError(f"is not an absolute path: '{text}'")
    return text


def check_pattern(text: str) -> str:
    """A shell pattern that fnmatch accepts. Raises ConfigError."""
    from fnmatch import translate

    try:
        re.compile(translate(text))
    except re.error as error:  # Python 3.9 passes a range such as [z-a] on to re
        raise ConfigError(f"is not a shell pattern: '{text}' ({error})") from None
    return text


# For each section and key in the file: its field in Settings, its check, and whether it takes several values.
SETTINGS_KEYS: Mapping[tuple[str, str], tuple[str, Callable[[str], Any], bool]] = {
    ("", "timeout"): ("timeout", parse_time_span, False),
    ("", "log_level"): ("log_level", parse_log_level, False),
    ("paths", "xendomains"): ("xendomains", check_path, True),
    ("paths", "auto"): ("auto", check_path, False),
    ("paths", "save"): ("save", check_path, False),
    ("paths", "libvirt"): ("libvirt", check_path, False),
    ("polling", "first"): ("first", partial(parse_time_span, least=MIN_PAUSE), False),
    ("polling", "longest"): ("longest", partial(parse_time_span, least=MIN_PAUSE), False),
    ("polling", "factor"): ("factor", check_factor, False),
    ("ignore", "domains"): ("ignored_domains", check_pattern, True),
    ("ignore", "disks"): ("ignored_disks", check_pattern, True),
    ("late", "domains"): ("late_domains", check_pattern, True),
}


def read_settings(path: str, *, must_exist: bool = False) -> tuple[Settings, list[Finding]]:
    """The settings in the file at `path`, and all problems with it.

    A bad value or a missing file means the defaults, so the settings can always be used; with `must_exist`, a missing
    file is a problem as well.
    """
    try:
        lines = os.fsdecode(read_file(path, MAX_SETTINGS)).lstrip("\ufeff").splitlines()
        # The shipped file sets nothing, so it does not need configobj, which is slow to import.
        headings = ("", "[paths]", "[polling]", "[ignore]", "[late]")
        if all(line.strip() in headings or line.lstrip().startswith("#") for line in lines):
            return Settings(), []
        if max(map(len, lines)) > MAX_SETTINGS_LINE:
            raise ConfigError(f"has a line of more than {MAX_SETTINGS_LINE} characters")
        return parse_settings(path, lines)
    except FileNotFoundError:
        problem = "does not exist" if must_exist else ""
    except OSError as error:
        problem = f"cannot be read ({error_text(error)})"
    except ConfigError as error:
        problem = str(error)
    except ImportError as error:
        problem = f"cannot be read without Python's configobj ({error}; this is {sys.executable})"
    return Settings(), [Finding(f"{problem}; the defaults are used", is_error=True, file=path)] if problem else []


def parse_settings(path: str, lines: Sequence[str]) -> tuple[Settings, list[Finding]]:
    """The settings in the lines of the file at `path`, and all problems with them."""
    from configobj import ConfigObj, ConfigObjError

    problems: list[str] = []
    try:
        config = ConfigObj(list(lines), interpolation=False)
    except ConfigObjError as error:
        errors = getattr(error, "errors", [error])
        problems += [f"{str(problem).rstrip('.')}; this line is ignored" for problem in errors]
        config = error.config
    given = {("", key): config[key] for key in config.scalars}
    for section in config.sections:
        given.update(((section, key), value) for key, value in config[section].items())
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name not in SETTINGS_KEYS or isinstance(value, dict):
            problems.append(f"{place_of_key(name, lines)} is unknown and ignored ({advice_on_key(name)})")
            continue
        field, check, takes_several = SETTINGS_KEYS[name]
        values = [value] if isinstance(value, str) else value
        try:
            if not takes_several and len(values) != 1:
                raise ConfigError(f"is a list: '{', '.join(values)}' (give one value; quote it if it has a comma)")
            checked: Any = [check(item) for item in values if item or not takes_several]
            if checked:
                changes[field] = tuple(checked) if takes_several else checked[0]
        except ConfigError as error:
            problems.append(f"{place_of_key(name, lines)} {error}; the default is used")
    return Settings(**changes), [Finding(problem, is_error=True, file=path) for problem in problems]


def key_as_written(section: str, key: str) -> str:
    """A key for a message, as in [paths] auto."""
    return f"[{section}] {key}" if section else key


def place_of_key(name: tuple[str, str], lines: Sequence[str]) -> str:
    """A key, and the line that sets it, for a message."""
    found, section = 0, ""
    for number, line in enumerate(lines, 1):
        words = line.strip()
        if words.startswith("["):
            section = words.strip("[] \t")
        elif (section, words.partition("=")[0].strip()) == name:
            found = number
    return f"line {found}: {key_as_written(*name)}" if found else key_as_written(*name)


def advice_on_key(name: tuple[str, str]) -> str:
    """A suggestion for an unknown key: the same key in another section, or a similar one."""
    if name in SETTINGS_KEYS:
        return "it is a key, not a section"
    for section, key in SETTINGS_KEYS:
        if key == name[1]:
            return f"it belongs under [{section}]" if section else "it belongs before the first section"
    return closest(key_as_written(*name), [key_as_written(*known) for known in SETTINGS_KEYS])


def closest(name: str, known: Sequence[str]) -> str:
    """A suggestion for an unknown name."""
    from difflib import get_close_matches

    similar = get_close_matches(name, known, 1)
    return f"did you mean {similar[0]}?" if similar else f"known: {join_limited(known, MAX_NAMES) or 'none'}"


# --- Clock: time, pauses, signals and threads ------------------------------------------------------------------------
STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(Exception):
    """A signal has asked the program to end."""

    def __init__(self, number: int) -> None:
        self.number = number


class Clock:
    """The time, the pauses of the main thread, and what ends a pause early.

    Handlers only record a signal; pause() alone turns it into Stopped.

    `slept` is how long the main thread has paused so far, which is the time that threads had to answer. A pause adds at
    most the time asked for, so nothing seems slow just because this program was stopped (SIGSTOP, a suspended host).
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopped_by = 0
        self.slept = 0.0

    def now(self) -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()

    def start_thread(self, function: Callable[[], None]) -> None:
        """Runs the function in a new thread. Raises RuntimeError if the process cannot have more threads."""
        start_new_thread(function, ())

    def take_signals(self) -> None:
        """Makes pause() raise Stopped for signals that ask the program to end."""
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._set_signals(self._record)

    def release_signals(self) -> None:
        """Restores the default action of signals; pause() no longer raises Stopped."""
        self._set_signals(signal.SIG_DFL)
        self._stopped_by = 0

    def _set_signals(self, action: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in STOPPING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # set by nohup(1) or a shell
                signal.signal(number, action)

    def _record(self, number: int, _: FrameType | None) -> None:
        self._stopped_by = self._stopped_by or number

    def wake(self) -> None:
        """Ends the current pause of the main thread, or else the next one. Any thread may call this."""
        with suppress(BlockingIOError):  # earlier wake-ups have not been read yet, so one more is not needed
            os.write(self._writing, b"\0")

    def pause(self, seconds: float, descriptor: int = -1, event: int = select.POLLIN) -> bool:
        """Pauses for that long, until wake(), or until the descriptor is readable (with POLLOUT: writable).

        Returns whether the descriptor is. Raises Stopped if a signal came.
        """
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        if descriptor >= 0:
            poll.register(descriptor, event)
        seconds = 0.0 if self._stopped_by else min(max(0.0, seconds), MAX_TIME)
        started = time.monotonic()
        ready = [number for number, _ in poll.poll(seconds * 1000)]
        self.slept += min(seconds, time.monotonic() - started)
        if self._reading in ready:
            os.read(self._reading, 4096)
        if self._stopped_by:
            raise Stopped(self._stopped_by)
        return descriptor in ready


# --- xendomains' settings: which directories hold the guests, and whether saved ones are restored --------------------
@record
class Xendomains(NamedTuple):
    """What xendomains does when it starts."""

    auto: str = ""  # directory of configurations; empty: starts none
    save: str = ""  # directory of saved domains; empty: restores none
    is_debian: bool = False  # Debian's own script, rather than upstream's
    file: str = ""  # its settings file
    libvirt: str = ""  # directory of the guests that libvirt starts; empty: none


# The values in Xen's own settings file.
DEFAULT_AUTO = "/etc/xen/auto"
DEFAULT_SAVE = "/var/lib/xen/save"

# The redirections apply only to `.`, so nothing but the output of printf gets into the pipe.
SOURCE_SETTINGS = r"""
complaint=
. "$1" </dev/null >/dev/null 2>&1
[ "$?" = 0 ] || complaint=$("$BASH" -n "$1" 2>&1 </dev/null) || :
builtin printf '%s\0' "$complaint" "${XENDOMAINS_AUTO-}" "${XENDOMAINS_SAVE-}" "${XENDOMAINS_RESTORE-}"
"""
SOURCED_FIELDS = 4

# The environment in which systemd runs xendomains. Ours is not passed on: BASH_ENV, SHELLOPTS etc. would affect bash.
BASH = "/bin/bash"
BASH_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def read_xendomains(settings: Settings, clock: Clock, limit: float) -> tuple[Xendomains | None, list[Finding]]:
    """What xendomains does when it starts, and all problems with its settings.

    None if there is neither a settings file nor a directory of libvirt's guests: upstream's xendomains then exits with
    status 6, and Debian's starts no guests.
    """
    path = next((path for path in settings.xendomains if not is_absent(path)), None)
    libvirt = settings.libvirt.rstrip("/")
    if libvirt == Settings().libvirt and is_absent(libvirt):
        libvirt = ""
    if path is not None:
        xendomains, findings = read_xendomains_file(path, settings, clock, limit)
        return xendomains._replace(libvirt=libvirt), findings
    if libvirt:
        return Xendomains(libvirt=libvirt), []
    problem = f"xendomains has no settings file ({', '.join(settings.xendomains)}), so it starts no guests"
    return None, [Finding(problem, is_error=True)]


def read_xendomains_file(path: str, settings: Settings, clock: Clock, limit: float) -> tuple[Xendomains, list[Finding]]:
    """What xendomains does with the settings file at this path, and all problems with that.

    If it cannot be read, or cannot be sourced within `limit` seconds, Xen's own defaults are used.
    """
    findings, problems = [], []
    try:
        if distrust := why_not_trusted(path, os.stat(path)):
            problem = f"{distrust}; xendomains runs it as root anyway, so its settings are used"
            findings.append(Finding(problem, file=path))
        read_file(path)
        complaint, auto, save, restore = source_xendomains(path, clock, limit)
    except (OSError, ConfigError) as error:
        complaint, auto, save, restore = "", DEFAULT_AUTO, DEFAULT_SAVE, "true"
        why = str(error) if isinstance(error, ConfigError) else f"cannot be read ({error_text(error)})"
        taken = f"{settings.auto or auto} and {settings.save or save}"
        problems.append(f"{why}; waiting for the guests in {taken} instead")
    if complaint:
        problems.append(f"has a syntax error ({complaint}); only the settings before the error take effect")
    is_debian = is_read_by_debian(path)
    restores = restore != "" if is_debian else restore == "true"
    auto, save = settings.auto or auto, (settings.save or save) if restores else ""
    # systemd runs xendomains in /.
    auto, save = (os.path.join("/", item.rstrip("/")) if item else "" for item in (auto, save))
    if not auto and not save:
        problems.append("sets no guest directory (XENDOMAINS_AUTO), so xendomains starts no guests")
    findings += [Finding(problem, is_error=True, file=path) for problem in problems]
    return Xendomains(auto, save, is_debian, path), findings


def is_absent(path: str) -> bool:
    """Whether the file certainly does not exist; a dangling link exists."""
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, (FileNotFoundError, NotADirectoryError))
    return False


def is_read_by_debian(path: str) -> bool:
    """Whether these settings are read by Debian's own xendomains, an init script, rather than by upstream's."""
    etc, leaf = os.path.split(os.path.dirname(path))
    try:
        # Upstream's may be installed in the same place; its init script only calls a helper program.
        script = read_file(os.path.join(etc, "init.d", "xendomains"))
    except (OSError, ConfigError):
        return False
    return leaf == "default" and b"LIBEXEC_BIN" not in script


def source_xendomains(path: str, clock: Clock, limit: float) -> list[str]:
    """bash's message about a syntax error in the file, and the values of XENDOMAINS_AUTO, _SAVE and _RESTORE.

    bash sources the file as xendomains does, without input or output. Raises ConfigError if there is no bash, or if the
    file takes longer than `limit` seconds or makes the shell exit. This does not use subprocess, because importing that
    takes as long at boot as everything else together.
    """
    reading, writing = os.pipe()
    arguments = ["bash", "--norc", "--noprofile", "-c", SOURCE_SETTINGS, "bash", os.path.abspath(path)]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, writing, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    try:
        process = os.posix_spawn(
            BASH, arguments, BASH_ENVIRONMENT, file_actions=actions, setpgroup=0, setsigdef=[signal.SIGPIPE]
        )
    except OSError as error:
        os.close(reading)
        raise ConfigError(f"cannot be read with {BASH} and {os.devnull} ({error_text(error)})") from None
    finally:
        os.close(writing)
    import json  # noqa: F401  for the record of the wait; imported here, while bash is starting

    printed = b""
    end = clock.slept + limit
    try:
        while printed.count(b"\0") < SOURCED_FIELDS:
            if clock.slept >= end:
                raise ConfigError(f"was not read within {format_time_span(limit)}")
            if not clock.pause(POLL_INTERVAL, reading):
                continue
            data = os.read(reading, MAX_CONFIGURATION)
            printed += data
            if not data:
                raise ConfigError("makes the shell that sources it exit")
    finally:
        os.close(reading)
        kill_group(process)
    complaint, *variables = map(os.fsdecode, printed.split(b"\0")[:SOURCED_FIELDS])
    # bash begins each line of an error message with its own name.
    return [complaint.partition("\n")[0].partition(": ")[2], *variables]


def kill_group(leader: int) -> None:
    """Kills a child and its process group, even if the child itself has already exited."""
    with suppress(ProcessLookupError, ChildProcessError):  # whoever started us may have ignored SIGCHLD
        os.killpg(leader, signal.SIGKILL)
        for _ in range(1000):
            # Not forever: if a file system hangs, even a killed process may stay.
            if os.waitpid(leader, os.WNOHANG)[0]:
                break
            time.sleep(0.0001)


# --- Configurations: xl.cfg(5), and the header that xl save writes ---------------------------------------------------
@record
class Disk(NamedTuple):
    """A disk as configured: xl-disk-configuration(5)."""

    vdev: str
    target: str = ""
    format: str = ""
    backend: str = ""  # the domain that holds the disk; empty: this host
    backendtype: str = ""
    script: str = ""
    cdrom: bool = False
    writes: bool = False
    attached_by: str = ""  # what attaches it to this host; empty: it is here anyway


@record
class Domain(NamedTuple):
    """A guest that is about to be created (kind "auto"), restored ("saved"), or started by libvirt ("libvirt")."""

    name: str
    source: str
    kind: str
    disks: tuple[Disk, ...] = ()
    warnings: tuple[str, ...] = ()
    boot_files: tuple[Disk, ...] = ()  # with the key that names them as vdev
    saved: str = ""  # the file from which libvirt will restore it

    def all_disks(self) -> tuple[Disk, ...]:
        """The disks and boot files that must be there before it can start."""
        return self.disks + self.boot_files


# xl's scanner (libxlu_cfg_l.l). A comment without a newline after it is an error there, so it is one here.
XL_TOKEN = re.compile(
    r"""[ \t]+
    | (?P<newline> \n | \#[^\n]*\n )
    | (?P<name>    [a-z][._0-9a-z]* )
    | (?P<number>  [0-9][0-9a-fx]* )
    | (?P<string>  "[^"\\\n]*(?:\\.[^"\\\n]*)*" | '[^'\\\n]*(?:\\.[^'\\\n]*)*' )
    | (?P<mark>    \+= | [][=,;] )
    | (?P<bad>     (?:True|False|None)\b | [^\n] )""",
    re.VERBOSE,
)


def parse_xl_config(text: str) -> dict[str, tuple[Any, int]]:
    """The settings in an xl.cfg(5) by name, exactly as xl reads them, and the line on which each value ends.

    Raises ConfigError, with the line. Source: xl's grammar, libxlu_cfg_y.y and libxlu_cfg.c in Xen's tools/libs/util.
    """
    settings: dict[str, tuple[Any, int]] = {}
    tokens = xl_tokens(text)
    while (token := next(tokens)).kind != "end":
        if token.kind == "newline" or token.text == ";":
            continue
        if token.kind != "name":
            raise syntax_error(token, "the name of a setting")
        name, operator = token.text, next(tokens)
        if operator.text not in ("=", "+="):
            hint = f"; {name} is {PYTHON}" if name in PYTHON_WORDS else ""
            raise syntax_error(operator, f"= or +={hint}")
        value, line = xl_value(tokens)
        if operator.text == "+=" and name in settings:
            before = settings[name][0]
            if isinstance(before, list) != isinstance(value, list):
                raise ConfigError(f"line {line}: += cannot join a list and a string")
            before += value  # extends a list in place: a file may do this thousands of times
            value = before
        settings[name] = (value, line)
        token = next(tokens)
        if token.kind not in ("newline", "end") and token.text != ";":
            raise syntax_error(token, "the end of the line or ;")
    return settings


@record
class Token(NamedTuple):
    """A token of xl.cfg: its kind (the name of a group in XL_TOKEN), its text and its line."""

    kind: str
    text: str
    line: int


def xl_tokens(text: str) -> Iterator[Token]:
    """The tokens of an xl.cfg, without blanks; an endless series of tokens of kind "end" follows the last."""
    line = 1
    for match in XL_TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "bad" and match.end() == len(text) and len(os.fsencode(match.group())) == 1:
            break  # xl reports a bad byte together with what follows it, and here nothing follows
        if kind is not None:
            yield Token(kind, match.group(kind), line)
            if kind == "newline":
                line += 1
    while True:
        yield Token("end", "", line)


def xl_value(tokens: Iterator[Token]) -> tuple[str | list[Any], int]:
    """The next value, a string or a list, and the line on which it ends."""
    lists: list[list[Any]] = []
    after_value = False
    while True:
        token = next(tokens)
        value: str | list[Any]
        if token.kind in ("string", "number") and not after_value:
            value = token.text if token.kind == "number" else xl_string(token)
        elif token.text == "[" and not after_value:
            lists.append([])
            continue
        elif token.text == "]" and lists:
            # A trailing comma is fine, but [,] is not: a comma needs a value before it.
            value = lists.pop()
        elif token.text == "," and lists and after_value:
            after_value = False
            continue
        elif token.kind == "newline" and lists:
            continue
        else:
            raise syntax_error(token, ", or ]" if after_value else "a string, a number or '['")
        if not lists:
            return value, token.line
        lists[-1].append(value)
        after_value = True


# xl is meant to read an octal number here. In fact it reads up to three characters after the first digit that
# strtoul(3) accepts in base 10, requires at least two of them, and replaces all that with nothing.
XL_ESCAPE = r"\\(?:[0-7]([ \t\v\f\r]*[+-]?[0-9]*)|(.))"
XL_ESCAPES = {
    '"': '"', "'": "'", "\\": "\\",
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip


def xl_string(token: Token) -> str:
    """The text between the quotes, with backslash escapes replaced."""

    def replaced(match: re.Match[str]) -> str:
        number, character = match.groups()
        if number is not None:
            if len(number[:3]) < 2 or not number[:3][-1].isdigit():
                raise ConfigError(f"line {token.line}: too few digits after a backslash in {quoted(token.text)}")
            return str(number[3:])
        if character not in XL_ESCAPES:
            what = f"an invalid character '{character}' after a backslash"
            raise ConfigError(f"line {token.line}: {what} in {quoted(token.text)}")
        return XL_ESCAPES[character]

    if "\0" in token.text:
        # For xl the string ends at the NUL; its quotes then do not match, and it aborts.
        raise ConfigError(f"line {token.line}: a NUL byte in the string {quoted(token.text)}")
    return re.sub(XL_ESCAPE, replaced, token.text[1:-1])


# xl's predecessor xm ran its configurations as Python.
PYTHON = "a leftover from xm (xl does not run Python)"
PYTHON_WORDS = ("class", "def", "del", "for", "from", "if", "import", "print", "try", "while", "with")
BAD_CHARACTERS = {
    **dict.fromkeys("+*%(){}", PYTHON),
    **dict.fromkeys(("True", "False", "None"), f"{PYTHON}; write 1 for True, and 0 for False"),
    **dict.fromkeys("KMG", "xl does not know this character (memory is in MiB, without a unit)"),
    "\\": f"a backslash at the end of a line is {PYTHON}; a list may span lines without it",
    "\ufeff": "the file begins with a byte order mark; save it without one",
    '"': "a string that does not end on its line",
    "'": "a string that does not end on its line",
    "#": "a comment on the last line needs a newline at its end",
    "\r": "the file has Windows line endings",
}


def syntax_error(token: Token, expected: str) -> ConfigError:
    """The error of xl's parser at this token."""
    if token.kind == "bad":
        hint = BAD_CHARACTERS.get(token.text, "xl does not know this character")
        return ConfigError(f"line {token.line}: lexical error near '{token.text}': {hint}")
    ends = {"newline": "the end of the line", "end": "the end of the file"}
    near = ends.get(token.kind, f"'{token.text}'")
    return ConfigError(f"line {token.line}: syntax error near {near}, expected {expected}")


def domain_from_xl_config(text: str, source: str, kind: str) -> Domain:
    """The domain an xl.cfg describes. Raises ConfigError where xl or libxl refuses it."""
    settings = parse_xl_config(text)
    if "name" not in settings:
        raise ConfigError('does not name the domain (name = "…" is missing)')
    name, line = settings["name"]
    if not isinstance(name, str):
        raise ConfigError(f"line {line}: name is a list, not a string")
    values = {key: value for key, (value, _) in settings.items()}
    boot_files = () if type_in(settings) == "hvm" else boot_files_in(values)
    specifications, line = settings.get("disk", ([], 0))
    if isinstance(specifications, str):
        warning = f"line {line}: disk is a string, not a list, so xl gives the domain no disks"
        return Domain(name, source, kind, (), (warning,), boot_files)
    disks: list[Disk] = []
    for specification in specifications:
        if not isinstance(specification, str):
            break  # xl takes this for the end of the list
        try:
            disks.append(parse_disk(specification))
        except ConfigError as error:
            raise type(error)(f"disk {quoted(specification)}: {error} (the list ends on line {line})") from None
    check_vdevs(disks)
    return Domain(name, source, kind, tuple(disks), (), boot_files)


BOOT_FILES = ("bootloader", "kernel", "ramdisk")
# The keys and values that set the type of a domain, and what they mean; builder is deprecated.
XL_TYPES = {"type": {"hvm": "hvm", "pv": "pv", "pvh": "pvh"}, "builder": {"hvm": "hvm", "generic": "pv"}}


def type_in(settings: Mapping[str, tuple[Any, int]]) -> str:
    """The type of a domain. xl also accepts the first letters of a word: parse_config_data() in xl_parse.c."""
    found = []
    for key, types in XL_TYPES.items():
        value, line = settings.get(key, ([], 0))
        if isinstance(value, str):
            word = next((word for word in types if word.startswith(value)), "")
            if not word:
                raise ConfigError(f"line {line}: unknown {key} {quoted(value)} (use {' or '.join(types)})")
            found.append(types[word])
    if found[1:] and found[0] != found[1]:
        raise ConfigError("type and builder contradict each other (remove builder)")
    return found[0] if found else "pv"


def boot_files_in(values: Mapping[str, Any]) -> tuple[Disk, ...]:
    """The files that a PV or PVH guest is built from: xl.cfg(5). A bootloader finds the kernel on the guest's disk."""
    keys = ("bootloader",) if values.get("bootloader") else ("kernel", "ramdisk")
    # Where libxl looks for a name without a directory depends on how it was built.
    return tuple(Disk(key, values[key]) for key in keys if str(values.get(key)).startswith("/"))


# xl_cmdimpl.c and xl.h in Xen's tools/xl: 32 bytes of magic, then 32-bit words in the byte order of the first.
SAVED_MAGIC = b"Xen saved domain, xl format\n \0 \r"
SAVED_PREFIX = b"Xen saved domain"  # all that xendomains checks
SAVED_BYTE_ORDERS: Mapping[bytes, Literal["little", "big"]] = {b"\4\3\2\1": "little", b"\1\2\3\4": "big"}
SAVED_JSON, SAVED_STREAM_V2 = 1, 2
SAVED_END = bytes(8)  # the END record of a stream of version 2: libxl-migration-stream.pandoc in Xen's docs/specs


def saved_configuration(file: IO[bytes]) -> tuple[str, bool]:
    """The configuration in a file that xl save wrote, and whether it is JSON (else it is an xl.cfg).

    Reads the header, no more than a buffer of the memory image behind it, and the end of the file. Raises ConfigError
    if xl restore would.
    """
    header = file.read(len(SAVED_MAGIC) + 16)
    words = header[len(SAVED_MAGIC) :]
    if not header.startswith(SAVED_MAGIC):
        raise ConfigError("was not written by xl save, or is damaged")
    if len(words) < 16:
        raise ConfigError("ends within its header")
    order = SAVED_BYTE_ORDERS.get(words[:4])
    if order is None:
        raise ConfigError(f"has an unknown byte order: {words[:4].hex()}")
    flags = int.from_bytes(words[4:8], order)
    if flags & ~(SAVED_JSON | SAVED_STREAM_V2):
        raise ConfigError(f"has mandatory flags that xl does not know: {flags:#x}")
    optional = int.from_bytes(words[12:16], order)
    size = int.from_bytes(file.read(4), order) if optional >= 4 else 0
    if size > optional - 4:
        raise ConfigError(f"claims {size} bytes of configuration in {optional} bytes of optional data")
    return os.fsdecode(read_saved(file, size, bool(flags & SAVED_STREAM_V2))), bool(flags & SAVED_JSON)


def read_saved(file: IO[bytes], size: int, has_end: bool) -> bytes:
    """The configuration at the current position in a saved guest's file. Raises ConfigError if it is incomplete."""
    if size > MAX_CONFIGURATION:
        raise Unsupported(f"claims {size} bytes of configuration; at most {MAX_CONFIGURATION} are read")
    configuration = file.read(size)
    if len(configuration) < size:
        raise ConfigError(f"is truncated: it has only {len(configuration)} of {size} bytes of configuration")
    if has_end:
        file.seek(-len(SAVED_END), os.SEEK_END)
        if file.read(len(SAVED_END)) != SAVED_END:
            raise ConfigError("is incomplete, because saving failed or was interrupted, and cannot be restored")
    return configuration.split(b"\0")[0]


def domain_from_json(text: str, source: str, kind: str) -> Domain:
    """The domain in the JSON that libxl writes for it (libxl_domain_config_to_json). Raises ConfigError."""
    import json

    depth = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"?|[][{}]', text):
        depth += (mark in "[{") - (mark in "]}")
        if depth > MAX_JSON_DEPTH:
            raise Unsupported("contains JSON that is nested too deeply")
    try:
        config = json.loads(text)
        name = config["c_info"]["name"]
        disks = tuple(disk_from_json(disk) for disk in config.get("disks") or ())
    except ValueError as error:
        raise ConfigError(f"contains invalid JSON: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"contains JSON that does not describe a domain ({type(error).__name__}: {error})") from None
    if not isinstance(name, str) or not may_be_path(name):
        raise ConfigError("contains JSON whose domain has no valid name")
    return Domain(name, source, kind, disks)


def disk_from_json(disk: Mapping[str, Any]) -> Disk:
    """A disk in libxl's JSON (libxl_types.idl, libxl_device_disk), which leaves out default values."""
    keys = {"vdev": "vdev", "target": "pdev_path", "format": "format", "backendtype": "backend", "script": "script"}
    backend = str(disk.get("backend_domname") or disk.get("backend_domid") or "")
    values = {field: str(disk.get(key) or "") for field, key in keys.items()}
    return Disk(**values, backend=backend, cdrom=bool(disk.get("is_cdrom")), writes=bool(disk.get("readwrite")))


# --- Configurations of libvirt: libvirt.org/formatdomain.html, and the header that virsh managedsave writes ----------
# libxl_conf.h in libvirt's src/libxl: 16 bytes of magic, two 32-bit words (the version, and the length of the XML), and
# 40 unused bytes. In version 2, a memory image as written by xl follows the XML.
LIBVIRT_MAGIC = b"libvirt-xml\n \0 \r"
LIBVIRT_HEADER = 64
# The backend that libvirt's Xen driver chooses for a driver name: libxlMakeDisk() in libxl_conf.c.
LIBVIRT_BACKENDS = {"file": "qdisk", "qemu": "qdisk", "tap2": "tap"}


def saved_by_libvirt(file: IO[bytes]) -> str:
    """The XML in a file that virsh managedsave wrote, read as saved_configuration() does. Raises ConfigError."""
    header = file.read(LIBVIRT_HEADER)
    if not header.startswith(LIBVIRT_MAGIC) or len(header) < LIBVIRT_HEADER:
        raise ConfigError("was not written by virsh managedsave, or is damaged")
    version, size = (int.from_bytes(header[at : at + 4], sys.byteorder) for at in (16, 20))
    if version not in (1, 2):
        raise ConfigError(f"has an unknown format version: {version}")
    return os.fsdecode(read_saved(file, size, version == 2))


def managed_save_of(path: str) -> str:
    """Where libvirt saves the guest configured by this file: both files have the guest's name."""
    return f"{LIBVIRT_SAVES}/{os.path.basename(path)[: -len('.xml')]}.save"


def is_started_by_libvirt(path: str) -> bool:
    """Whether this is a link to a guest in the directory above: virDomainObjListLoadConfig(), virFileLinkPointsTo()."""
    guest = os.path.join(os.path.dirname(os.path.dirname(path)), os.path.basename(path))
    return path.endswith(".xml") and os.path.exists(guest) and os.path.samefile(path, guest)


def read_libvirt_domain(path: str) -> Domain:
    """The domain in a libvirt file, or in its managed save if there is one. Raises OSError and ConfigError."""
    saved = managed_save_of(path)
    if is_absent(saved):
        return domain_from_libvirt_xml(os.fsdecode(read_file(path)), path)
    try:
        with open_regular_file(saved) as file:
            return domain_from_libvirt_xml(saved_by_libvirt(file), path)._replace(saved=saved)
    except Unsupported as error:
        raise Unsupported(f"its managed save {saved} {error}") from None
    except ConfigError as error:
        discard = f"{VIRSH} managedsave-remove {shell_word(os.path.basename(saved)[: -len('.save')])}"
        raise ConfigError(f"its managed save {saved} {error} (to discard it: {discard})") from None


def domain_from_libvirt_xml(text: str, source: str) -> Domain:
    """The domain that libvirt's XML describes. Raises ConfigError if it is not XML, or describes no domain."""
    from xml.etree import ElementTree

    if "<!DOCTYPE" in text:  # the only place where entities can be declared
        raise Unsupported("has a DOCTYPE, which libvirt does not write (remove it)")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        problem = str(error).partition(":")[0]
        raise ConfigError(f"is not valid XML: line {error.position[0]}: {problem}") from None
    except UnicodeEncodeError:
        raise ConfigError("is not UTF-8") from None
    name = root.findtext("name")
    if root.tag != "domain" or not name:
        raise ConfigError("describes no guest (there is no <domain> with a <name>)")
    disks = tuple(disk_from_libvirt_xml(disk) for disk in root.iterfind("devices/disk"))
    keys = {"bootloader": "bootloader", "kernel": "os/kernel", "ramdisk": "os/initrd"}
    values = {key: root.findtext(path) for key, path in keys.items()}
    boot_files = () if root.findtext("os/type") == "hvm" else boot_files_in(values)
    return Domain(name, source, "libvirt", disks, (), boot_files)


def disk_from_libvirt_xml(disk: Element) -> Disk:
    """The disk that a libvirt <disk> element describes. Raises ConfigError where libvirt would: domain_conf.c."""
    parts = {part.tag: part.attrib for part in disk}
    source, driver, target = (parts.get(tag, {}) for tag in ("source", "driver", "target"))
    kind, cdrom = disk.get("type", "file"), disk.get("device") == "cdrom"
    vdev, path = target.get("dev", ""), source.get("dev" if kind == "block" else "file", "")
    if not vdev:
        raise ConfigError("has a disk without a target (<target dev=…/>)")
    if kind in ("block", "file") and not path and disk.get("device", "disk") == "disk":
        raise ConfigError(f"disk {quoted(vdev)} has no source, and only a CD or floppy drive may be empty")
    return Disk(
        vdev,
        path,
        driver.get("type", "raw"),
        parts.get("backenddomain", {}).get("name", ""),
        LIBVIRT_BACKENDS.get(driver.get("name", ""), driver.get("name", "")),
        cdrom=cdrom,
        writes="readonly" not in parts and not cdrom,
        attached_by="" if kind in ("block", "file") else f"libvirt (type {kind})",
    )


# --- Disk specifications: xl-disk-configuration(5) -------------------------------------------------------------------
# Parameters with a fixed set of values, and those among them that must not be repeated with a different value.
DISK_WORDS = {
    "format": ("raw", "qcow", "qcow2", "vhd", "qed", "empty"),
    "backendtype": ("phy", "tap", "qdisk", "standalone"),
    "specification": ("xen", "virtio"),
    "access": ("", "r", "ro", "w", "rw"),
    "devtype": ("cdrom", "disk"),
    "grant_usage": ("0", "1"),
}
DISK_WORDS_GIVEN_ONCE = ("format", "backendtype", "specification")
DISK_STRINGS = ("backend", "vdev", "script", "colo-host", "colo-export", "active-disk", "hidden-disk")
DISK_KEYS = {*DISK_WORDS, *DISK_STRINGS, "target", "colo-port"}
# xl 4.17 does not know trusted, untrusted and grant_usage, and takes them as positional parameters. SUSE's xl has
# suse-diskcache-disable-flush: libxl.add-option-to-disable-disk-cache-flushes-in-qdisk.patch in its xen package.
DISK_FLAGS = {
    "cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "trusted", "untrusted",
    "suse-diskcache-disable-flush",
}  # fmt: skip
DISK_FORMAT_PREFIXES = ("raw", "qcow", "qcow2", "vhd")
DISK_SCRIPT_PREFIXES = ("iscsi", "nbd", "enbd", "drbd")
# SUSE's xl also has dmmd and npiv (xen.libxl.dmmd.patch), together with script=block-dmmd.
DISK_DROPPED_PREFIXES = ("phy", "file", "tap", "tap2", "tapdisk", "aio", "ioemu", "dmmd", "npiv")
DISK_PREFIXES = DISK_FORMAT_PREFIXES + DISK_SCRIPT_PREFIXES + DISK_DROPPED_PREFIXES

# The beginning of a parameter: a legacy prefix, as in phy:/dev/vg0/web, or a key, as in vdev=xvda.
DISK_PREFIX_OR_KEY = r"([a-z][a-z0-9]*):|([a-z][-_a-z0-9]*)="
# Something that looks like a prefix, but may be a vdev with a device type, as in hdc:cdrom.
DISK_VDEV_AND_TYPE = r"[a-z0-9]+:[a-z0-9]"


def parse_disk(specification: str) -> Disk:
    """The disk in one item of an xl.cfg's disk list. Raises ConfigError exactly where xl does.

    Source: xl's scanner for it, libxlu_disk_l.l in Xen's tools/libs/util; the rule with the longest match wins.
    Two differences: anything too long for a path or script is refused, and so is a line break, which each of xl's rules
    treats differently.
    """
    if len(specification) > MAX_DISK_SPECIFICATION:
        raise Unsupported(f"is too long for a disk: more than {MAX_DISK_SPECIFICATION} characters")
    if "\n" in specification:
        raise Unsupported("contains a line break; remove it")
    parser = DiskParser()
    rest = specification
    while rest := rest.lstrip(" \t"):
        positional, comma, after = rest.partition(",")
        if "=" in positional:
            positional, comma, after = positional.partition("=")[0], "", rest[rest.index("=") :]
        match = re.match(DISK_PREFIX_OR_KEY, rest)
        prefix, key = match.groups() if match else (None, None)
        if prefix and (prefix in DISK_PREFIXES or not re.match(DISK_VDEV_AND_TYPE, rest)):
            parser.set_prefix(prefix)
            after = rest[len(prefix) + 1 :]
        elif key == "target":
            parser.set_string("target", rest[len("target=") :].removesuffix(","))
            after = ""
        elif key and (key in DISK_KEYS or rest[len(key) + 1 :][:1] not in ("", ",")):
            value, _, after = rest[len(key) + 1 :].partition(",")
            parser.set_key(key, value)
        elif positional in DISK_FLAGS:
            parser.cdrom = parser.cdrom or positional == "cdrom"
        elif positional or comma:
            parser.set_positional(positional)
        elif len(rest) == 1:
            break  # xl reports bad syntax together with what follows it, and here nothing follows
        else:
            raise ConfigError(f"bad syntax at {quoted(rest)}")
        rest = after
    return parser.disk()


class DiskParser:
    """The parts of a disk specification read so far. Each method raises ConfigError where xl would."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.after_prefix = False
        self.cdrom = False
        self.writes = True

    def set_prefix(self, prefix: str) -> None:
        """Sets what a legacy prefix means, as in phy:/dev/vg0/web."""
        self.after_prefix = True
        if prefix in DISK_FORMAT_PREFIXES:
            self.set_key("format", prefix)
        elif prefix in DISK_SCRIPT_PREFIXES:
            self.set_string("script", f"block-{prefix}")
        elif prefix not in DISK_DROPPED_PREFIXES:
            raise ConfigError(f"unknown prefix '{prefix}:'")

    def set_string(self, key: str, value: str) -> None:
        """Sets a parameter that must not be given twice; like xl, accepts that if it was empty the first time."""
        if self.values.get(key):
            raise ConfigError(f"{key} is given twice, the second time as {quoted(value)}")
        self.values[key] = value

    def set_key(self, key: str, value: str) -> None:
        """Sets a parameter given as key=value."""
        if key in DISK_STRINGS:
            self.set_string(key, value)
        elif key in DISK_WORDS:
            value = value or ("raw" if key == "format" else "")
            if value not in DISK_WORDS[key]:
                raise ConfigError(f"unknown {key} {quoted(value)}")
            if key == "devtype":
                self.cdrom = value == "cdrom"
            elif key == "access":
                self.writes = value not in ("r", "ro")
            elif key in DISK_WORDS_GIVEN_ONCE and self.values.get(key) != value:
                self.set_string(key, value)
        elif key != "colo-port":
            raise ConfigError(f"unknown parameter {quoted(key)}")
        elif not re.match(r"[ \t\n\v\f\r]*[+-]?0*[1-9]", value):
            raise ConfigError(f"not a colo-port: {quoted(value)}")

    def set_positional(self, value: str) -> None:
        """Sets a parameter given without a key: the next of target, format, vdev, access that is not set yet."""
        if "target" not in self.values:
            self.values["target"] = value
        elif "format" not in self.values and not self.after_prefix:
            if self.values["target"] == "" and ":" in value:
                self.set_vdev(value)
                self.values["format"] = "empty"
            else:
                self.set_key("format", value)
        elif "vdev" not in self.values:
            self.set_vdev(value)
        elif "access" not in self.values:
            self.set_key("access", value)
            self.values["access"] = value
        else:
            raise ConfigError(f"too many positional parameters, at {quoted(value)}")

    def set_vdev(self, value: str) -> None:
        """Sets the vdev, and the device type if one follows, as in hdc:cdrom."""
        vdev, colon, devtype = value.rpartition(":")
        self.set_string("vdev", vdev if colon else value)
        if colon:
            self.set_key("devtype", devtype)

    def disk(self) -> Disk:
        """The disk that the parts describe."""
        if "vdev" not in self.values:
            raise ConfigError("no vdev given")
        if "target" not in self.values and not self.cdrom:
            raise ConfigError("no target given")
        if self.cdrom and not self.values.get("target"):
            self.values["format"] = "empty"
        values = {field: self.values[field] for field in Disk._fields if field in self.values}
        return Disk(**{"format": "raw", **values}, cdrom=self.cdrom, writes=self.writes and not self.cdrom)


# xen-vbd-interface(7), and libxl__device_disk_dev_number() in libxl_device.c.
VDEV = (
    "xvd[a-z]{1,4}([1-9][0-9]{,2})?|hd[a-d]([1-9]|[1-5][0-9]|6[0-3])?|sd[a-p]([1-9]|1[0-5])?"
    "|d[0-9]+p[0-9]+|[0-9]*|0x[0-9a-f]+"
)


def check_vdevs(disks: Sequence[Disk]) -> None:
    """Raises ConfigError for disks that xl accepts, but libxl then refuses: libxl_disk.c and libxl_device.c."""
    vdevs = [disk.vdev for disk in disks]
    for number, disk in enumerate(disks):
        if not re.fullmatch(VDEV, disk.vdev):
            raise ConfigError(f"unknown vdev {quoted(disk.vdev)} (use for example xvda, hda or sda)")
        if disk.vdev in vdevs[:number]:
            raise ConfigError(f"two disks have the vdev {quoted(disk.vdev)}")
        needs_target = not (disk.cdrom or disk.script or disk.backend)
        if (needs_target and not disk.target) or (disk.format == "empty" and not disk.cdrom):
            raise ConfigError(f"disk {quoted(disk.vdev)} has no target, and only a CD drive may be empty")


# --- Required paths: what to look for on this host -------------------------------------------------------------------
@record
class Required(NamedTuple):
    """The path that a disk requires on this host; if it is empty, nothing is required, and `reason` says why."""

    path: str = ""
    reason: str = ""
    writes: bool = False
    promotes: bool = False  # its script makes a DRBD resource Primary
    format: str = ""  # of an image
    by_script: bool = False  # Xen's block script attaches it
    is_boot_file: bool = False  # which comes with its file system, or not at all
    depth: int = 0  # the number of images that it is behind


def required_by(disk: Disk) -> Required:
    """What this host must provide before the domain with this disk can start."""
    script = os.path.basename(disk.script)
    if disk.backend not in ("", "0", "Domain-0"):
        return Required(reason=f"served by driver domain {disk.backend}")
    if disk.attached_by:
        return Required(reason=f"attached by {disk.attached_by}")
    if disk.format == "empty" or not disk.target:
        return Required(reason="the drive is empty")
    if script == "block-drbd":
        return Required(f"/dev/drbd/by-res/{disk.target}/0", promotes=True)
    # "block" is the script that xl runs when none is given (xl-disk-configuration(5)).
    if script not in ("", "block"):
        return Required(reason=f"attached by script {script}")
    if disk.backendtype == "qdisk" and not disk.target.startswith("/"):
        return Required(reason="opened by QEMU")
    # In libxl, blkback serves raw disks, and QEMU others, and CDs, which may be changed (libxl_device.c).
    by_script = disk.format == "raw" and disk.backendtype in ("", "phy") and not disk.cdrom
    required = Required(os.path.join("/", disk.target), writes=disk.writes, format=disk.format)
    return required._replace(by_script=by_script, is_boot_file=disk.vdev in BOOT_FILES)


def older_path(path: str) -> str:
    """The path in DRBD 8: a link for each resource, where DRBD 9 has a directory of volumes (drbd.rules)."""
    return path[: -len("/0")] if re.fullmatch(".*/drbd/by-res/[^/]+/0", path) else path


def existing_path(path: str) -> str:
    """The path, or its older form if only that exists. May block."""
    older = older_path(path)
    return older if older != path and os.path.exists(older) and not os.path.isdir(older) else path


IGNORED_WITH_GUEST = Required(reason="ignored: guest matches [ignore] domains")
IGNORED = Required(reason="ignored: matches [ignore] disks")


def required_unless_ignored(domain: Domain, disk: Disk, settings: Settings) -> Required:
    """What this host must provide for this disk, unless [ignore] matches it."""
    required = required_by(disk)
    if required.path:
        names = (domain.name, os.path.basename(domain.source))
        if matches_any(names, settings.ignored_domains):
            return IGNORED_WITH_GUEST
        if matches_any((required.path, older_path(required.path), disk.target), settings.ignored_disks):
            return IGNORED
    return required


def matches_any(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Whether one of the shell patterns matches one of the names."""
    if not patterns:
        return False
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


# --- Storage below a disk: what a device is built on, and which layer is to blame -------------------------------------
@record
class Problem(NamedTuple):
    """Why a layer cannot be used, and a command that helps.

    The reason names the layer, unless that is the disk's own path: all disks that have one cause get the same text.
    """

    reason: str
    hint: str = ""
    is_readable: bool = False  # it can be used by a guest that only reads
    is_unknown: bool = False  # nothing on this host knows such a name, which may be mistyped


@record
class Layer(NamedTuple):
    """A path, a device, or something else that a disk needs, such as a volume group or a mount."""

    name: str  # of a device the kernel's (sda, dm-0), see storage_of()
    kind: str = ""  # such as "LVM volume"; nothing for a device until storage_of()
    problem: Problem | None = None  # its own
    below: tuple[Layer, ...] = ()
    cause: Problem | None = None  # why it cannot be used: the problem of the deepest layer that it needs


def stacked(name: str, kind: str, problem: Problem | None, *below: Layer) -> Layer:
    """A layer that needs everything below it."""
    # Of several causes always the same one, so two maps on the portals of one target have the same cause.
    cause = min((layer.cause for layer in below if layer.cause), default=problem)
    return Layer(name, kind, problem, below, cause)


@record
class Device(NamedTuple):
    """A block device in udev's database."""

    name: str
    links: Sequence[str]
    properties: Mapping[str, str]
    initialized: float  # when udev first saw it, in seconds since the boot


@record
class VolumeGroup(NamedTuple):
    """A volume group in LVM's backup: its own text, and those of its physical and logical volumes."""

    text: str
    date: str
    disks: Mapping[str, str]
    volumes: Mapping[str, str]


@record
class PlannedMount(NamedTuple):
    """A mount that is configured: its source, the table or unit, and whether it is mounted at boot."""

    source: str
    file: str
    kind: str  # of file system; empty if it is not given
    at_boot: bool


@record
class DrbdState(NamedTuple):
    """The state of a DRBD device and of its best peer, in the words of drbdsetup(8)."""

    role: str = "Primary"
    peer_role: str = ""
    disk: str = "UpToDate"
    peer_disk: str = ""
    stopped: str = ""  # why it does no I/O
    is_version_9: bool = False


def once(find: Callable[[StorageFacts, str], Found]) -> Callable[[StorageFacts, str], Found]:
    """Makes a method of StorageFacts remember its results."""

    def known(self: StorageFacts, key: str) -> Found:
        values = self.known.setdefault(find.__name__, {})
        if key not in values:
            values[key] = find(self, key)
        found: Found = values[key]
        return found

    return known


class StorageFacts:
    """What one look finds out about storage, each fact once, however many disks share a device."""

    def __init__(self, explains: bool = True, shares: bool = True) -> None:
        self.explains = explains  # why something is missing, which takes longer than seeing that it is
        self.shares = shares  # a disk that the peer uses may be used here as well, where DRBD allows it
        # For slow facts: since Python 3.12, cached_property has no lock of its own.
        self.lock = RLock()
        self.numbers: dict[str, str] = {}  # of devices whose number is known, such as "8:0"
        self.known: dict[str, dict[str, Any]] = {}  # see once()
        self.paths: dict[str, tuple[Layer, ...]] = {}  # see find()

    @once
    def layer(self, name: str) -> Layer:
        """A device and the layers below it."""
        return check_device(name, self)

    def find(self, path: str) -> tuple[Layer, ...]:
        """The device at a path below /dev, or what is known about the one that should be there: one layer, or none."""
        with self.lock:
            if path not in self.paths:
                self.paths[path] = ()  # a table may say that a device needs itself
                self.paths[path] = explain_path(path, self)
            return self.paths[path]

    def udev_device(self, name: str) -> Device | None:
        """The entry of a device in udev's database; None if there is none."""
        return self.udev_entry(self.numbers.get(name) or attribute(device_directory(name), "dev"))

    @once
    def udev_entry(self, number: str) -> Device | None:
        """The device with this number, such as "8:0", in udev's database; None while it has no entry.

        libudev, which takes longer than all else here, reads the same file: "S:LINK" is a link below /dev,
        "E:KEY=VALUE" a property, "I:" the time in microseconds (sd-device.c).
        """
        text = attribute(f"{RUN}/udev/data", f"b{number}")
        if not text:
            return None
        name = os.path.basename(os.readlink(f"{SYS}/dev/block/{number}"))
        links = [f"/dev/{link}" for link in re.findall("^S:(.+)", text, re.MULTILINE)]
        initialized = re.search("^I:([0-9]{1,18})$", text, re.MULTILINE)
        properties = dict(re.findall("^E:([^=\n]*)=(.*)", text, re.MULTILINE))
        return Device(name, links, properties, int(initialized[1]) / 1e6 if initialized else 0.0)

    @once
    def text(self, path: str) -> str:
        """The content of a file, see read_text_file()."""
        return read_text_file(path)

    @once
    def table(self, path: str) -> list[list[str]]:
        """The lines of a table such as fstab(5) with two or more words, in which blanks are octal escapes."""
        found = (line for line in self.text(path).splitlines() if len(line) <= MAX_ATTRIBUTE)  # else it is damaged
        lines = [line.split() for line in found if line and line.lstrip()[:1] != "#"]
        return [[unescaped(word) if "\\" in word else word for word in line] for line in lines if line[1:]]

    @cached_property
    def devices(self) -> list[Device]:
        """All block devices that udev knows."""
        devices = []
        for entry in list_names(f"{RUN}/udev/data", "b[0-9]{1,9}:[0-9]{1,9}"):
            with suppress(OSError):
                if device := self.udev_entry(entry[1:]):
                    devices.append(device)
        return devices

    @cached_property
    def names_by_path(self) -> dict[str, str]:
        """The kernel's names of all devices that udev knows, by their nodes and links."""
        paths = {link: device.name for device in self.devices for link in device.links}
        return {**paths, **{f"/dev/{device.name.replace('!', '/')}": device.name for device in self.devices}}

    def devices_with(self, value: str, *keys: str) -> list[Device]:
        """The devices that have this value in one of these properties."""
        return [device for device in self.devices if value in map(device.properties.get, keys)]

    def device_at(self, path: str) -> str:
        """The kernel's name of the device with this node or link according to udev; empty if there is none."""
        return self.names_by_path.get(path, "") if path.startswith("/dev/") else ""

    @cached_property
    def mounts(self) -> list[list[str]]:
        """The lines of mountinfo as words: the third is the device, the fifth the mount point: proc(5)."""
        mounts = [words for words in self.table(f"{PROC}/self/mountinfo") if "-" in words[5:-2]]
        by_id = {words[0]: words for words in mounts}
        return [words for words in mounts if not is_bound_to_itself(words, by_id.get(words[1], words))]

    @once
    def mount_above(self, directory: str) -> Layer:
        """The file system that holds a directory, or the one that should be mounted there, but is not."""
        real = os.path.realpath(directory)
        where = longest_above(real, [words[4] for words in self.mounts])
        planned = longest_above(real, (item for item, plan in self.planned_mounts.items() if plan.at_boot))
        if where and len(planned) > len(where):
            return unmounted_layer(planned, self)
        words = next((words for words in reversed(self.mounts) if words[4] == where), [])
        if not words:
            return Layer(where, "mount")
        kind, source = words[words.index("-") + 1 :][:2]
        name, problem, below = mounted_device(words), None, source_layers(source)
        # In the unit's sandbox every mount is read-only, but the file system itself is not. Since Linux 6.15, ext4 uses
        # another word after an error.
        if not {"ro", "emergency_ro"}.isdisjoint(words[-1].split(",")):
            reason = f"{where} is mounted read-only, but the guest writes to it"
            hint = hint_if_read_only(name) or f"mount -o remount,rw {shell_word(where)}"
            problem = Problem(reason, hint, is_readable=True)
        if kind == "zfs":
            below = (stacked(source, "ZFS dataset", check_pool(source.partition("/")[0], self)),)
        elif name:
            below = (self.layer(name),)
        layer = stacked(where, "mount", problem, *below)
        # Such a file system may have several devices, and not need all of them.
        return layer._replace(cause=problem) if kind in ("btrfs", "bcachefs") else layer

    @cached_property
    def mounted(self) -> dict[str, list[tuple[str, bool]]]:
        """Where each device is mounted, by its kernel name, and whether for writing."""
        found: dict[str, list[tuple[str, bool]]] = {}
        for words in self.mounts:
            if name := mounted_device(words):
                found.setdefault(name, []).append((words[4], "ro" not in words[-1].split(",")))
        return found

    @cached_property
    def mounted_images(self) -> dict[str, str]:
        """The loop devices that are mounted, by their files."""
        loops = {mounted_device(words) for words in self.mounts if words[2].startswith("7:")}  # devices.txt in Linux
        return {attribute(device_directory(name), "loop/backing_file"): name for name in loops}

    @cached_property
    def planned_mounts(self) -> dict[str, PlannedMount]:
        """The mounts that are configured, by mount point: systemd.mount(5), and fstab(5)."""
        plans: dict[str, PlannedMount] = {}
        texts = {}
        for directory in unit_directories():
            texts.update({unit: self.text(f"{directory}/{unit}") for unit in list_names(directory, r".*\.mount")})
        for unit, text in texts.items():
            keys = dict(re.findall(r"^(What|Where|Type)[ \t]*=[ \t]*(.+)", text, re.MULTILINE))
            if "Where" in keys:  # one that is masked has nothing
                at_boot = "\nCondition" not in text and unit.removesuffix(".mount") in self.wanted_mounts
                plan = PlannedMount(keys.get("What", ""), unit, keys.get("Type", ""), at_boot)
                plans[os.path.normpath(keys["Where"])] = plan
        for pool in list_names(f"{ETC}/zfs/zfs-list.cache"):
            for source, where, *more in self.table(f"{ETC}/zfs/zfs-list.cache/{pool}"):
                plans[where] = PlannedMount(source, f"/etc/zfs/zfs-list.cache/{pool}", "zfs", more[:1] == ["on"])
        for source, where, *more in self.table(f"{ETC}/fstab"):
            kind, options = (*more, "", "")[:2]
            is_wanted = re.search(r"systemd\.(automount|wanted-by|required-by)", options) is not None
            at_boot = "noauto" not in options.split(",") or is_wanted
            plans[os.path.normpath(where)] = PlannedMount(source, "/etc/fstab", kind, at_boot)
        # A tmpfs (tmp.mount) never holds an image at boot, and a directory bound to itself has the same files.
        return {at: plan for at, plan in plans.items() if plan.kind != "tmpfs" and os.path.normpath(plan.source) != at}

    @cached_property
    def wanted_mounts(self) -> set[str]:
        """The names, without suffix, of the mount and automount units that other units want."""
        wants = [f"{item}/{name}" for item in unit_directories() for name in list_names(item, r".*\.(wants|requires)")]
        return {unit.rpartition(".")[0] for directory in wants for unit in list_names(directory, r".*mount")}

    @cached_property
    def arrays(self) -> dict[str, dict[str, str]]:
        """The keywords of the ARRAY lines in mdadm.conf(5), by the names of the arrays, see array_name()."""
        found = {}
        for words in (*self.table(f"{ETC}/mdadm/mdadm.conf"), *self.table(f"{ETC}/mdadm.conf")):
            keys = {key.lower(): value for key, _, value in (word.partition("=") for word in words[1:])}
            names = [*(word for word in words[1:] if "=" not in word), keys.get("name", "")]
            if words[0] == "ARRAY":
                found.update({array_name(name): keys for name in names if name})
        return found

    @cached_property
    def running_arrays(self) -> dict[str, str]:
        """The arrays that mdadm has begun to assemble, according to its map: their nodes, by UUID and by name."""
        found = {}
        for node, _, uuid, *paths in (words for words in self.table(f"{RUN}/mdadm/map") if words[2:]):
            found.update(dict.fromkeys((hex_digits(uuid), *map(array_name, paths)), node))
        return found

    @cached_property
    def maps(self) -> dict[str, str]:
        """The kernel's names of the device-mapper devices, by their device-mapper names."""
        names = list_names(f"{SYS}/class/block", "dm-[0-9]+")
        return {attribute(device_directory(name), "dm/name"): name for name in names}

    @once
    def volume_group(self, name: str) -> VolumeGroup | None:
        """A volume group as in vgcfgbackup(8); None if there is no backup."""
        text = self.text(f"{ETC}/lvm/backup/{name}")
        head, _, volumes = text.partition("\n\tlogical_volumes {\n")
        head, _, disks = head.partition("\n\tphysical_volumes {\n")
        date = re.search(r"^creation_time = .*# (.*)", text, re.MULTILINE)
        part = re.compile(r"^\t\t(\S+) {\n(.*?)^\t\t}", re.MULTILINE | re.DOTALL)
        found = VolumeGroup(head, date[1] if date else "", dict(part.findall(disks)), dict(part.findall(volumes)))
        return found if found.disks else None

    @once
    def physical_volumes(self, group: str) -> dict[str, Layer]:
        """The physical volumes of a volume group, by their names in its backup."""
        backup = self.volume_group(group)
        return {key: physical_volume_layer(group, text, self) for key, text in backup.disks.items()} if backup else {}

    @cached_property
    def uptime(self) -> float:
        """How long the host has been running."""
        seconds = re.match("[0-9]{1,12}", self.text(f"{PROC}/uptime"))
        return float(seconds[0]) if seconds else 0.0

    def device_table(self, kind: str) -> dict[str, tuple[str, list[str]]]:
        """The device of each volume in crypttab(5) or a similar table, and its key file with its options."""
        lines = self.table(f"{ETC}/{kind}tab")
        return {name: (source, ",".join(more).split(",")) for name, source, *more in lines}

    @cached_property
    def iscsi_sessions(self) -> dict[str, tuple[str, str, str]]:
        """The target, the portal and the state of each iSCSI session, by its name in sysfs."""
        sessions, connections = f"{SYS}/class/iscsi_session", f"{SYS}/class/iscsi_connection"
        found = {}
        for name in list_names(sessions):
            target, state = (attribute(f"{sessions}/{name}", key) for key in ("targetname", "state"))
            connection = "".join(list_names(connections, f"connection{name[len('session') :]}:.*")[:1])
            end = f"{connections}/{connection}"
            address, port = (attribute(end, f"persistent_{key}") for key in ("address", "port"))
            found[name] = (target, portal_of(address, port), state)
        return found

    @cached_property
    def iscsi_nodes(self) -> dict[tuple[str, str], str]:
        """node.startup in open-iscsi's records (nodes/TARGET/PORTAL[/IFACE]), by target and portal."""
        from glob import glob

        directories = [f"{directory}/iscsi/nodes" for directory in (ETC, f"{VAR}/lib")]
        nodes = {}
        for path in (path for item in directories for path in (*glob(f"{item}/*/*"), *glob(f"{item}/*/*/*"))):
            record = dict(re.findall(r"^node\.(\S+) = (.*)", self.text(path), re.MULTILINE))
            if "name" in record:
                portal = portal_of(record.get("conn[0].address", ""), record.get("conn[0].port", ""))
                nodes[record["name"], portal] = record.get("startup", "unknown")
        return nodes

    @cached_property
    def likely_sessions(self) -> tuple[Layer, ...]:
        """The session that a missing LUN probably needs, for a path that does not name the target."""
        nodes, sessions = self.iscsi_nodes.items(), [target for target, _, _ in self.iscsi_sessions.values()]
        # A target to which the host does not log in at boot is no evidence.
        at_boot = sorted((key for key, startup in nodes if startup in AT_BOOT), reverse=True)
        absent = {target: portal for target, portal in at_boot if target not in sessions}
        if len(absent) < 2:
            return tuple(session_layer(target, portal, None, self) for target, portal in absent.items())
        targets = join_limited(sorted(absent), MAX_LISTED)
        reason = f"no session with iSCSI targets {targets}, one of which probably has the LUN"
        return (stacked(targets, "iSCSI session", Problem(reason, "iscsiadm -m node --loginall=automatic")),)

    @cached_property
    def drbd_states(self) -> dict[str, DrbdState]:
        """The state of each DRBD device, by number: in version 8 from /proc, in version 9 from drbdsetup(8)."""
        text = self.text(f"{PROC}/drbd")
        if text.startswith("version: 9"):
            return drbd_states_from_json(output_of("drbdsetup", "status", "--json"))
        found = re.finditer(r"^ *(\d+): cs:\S+ ro:(\w+)/(\w+) ds:(\w+)/(\w+)(?: [ABC ] (s))?", text, re.MULTILINE)
        suspended = "its I/O is suspended"
        return {m[1]: DrbdState(m[2], m[3], m[4], m[5], suspended if m[6] else "") for m in found}

    @cached_property
    def drbd_resources(self) -> dict[str, str]:
        """The configuration of each of DRBD's resources."""
        from glob import glob

        files = [f"{ETC}/drbd.conf"]
        for file in files:
            for pattern in re.findall(r'^[ \t]*include[ \t]+"?([^";\n\0]+)"?[ \t]*;', self.text(file), re.MULTILINE):
                found = sorted(glob(os.path.join(os.path.dirname(file), pattern)))
                files += [item for item in found if item not in files][:MAX_FILES]
        text = re.sub("#.*", "", "\n".join(map(self.text, files)))
        common, *parts = re.split(r'\bresource\s+"?([^\s"{]+)"?\s*{', text)
        return {name: common + own for name, own in zip(parts[::2], parts[1::2])}


def unit_directories() -> tuple[str, ...]:
    """The directories of systemd's units; of units with the same name, the last one counts: systemd.unit(5)."""
    packaged, local, own = (f"{item}/systemd/system" for item in (f"{USR}/lib", f"{USR}/local/lib", ETC))
    return f"{RUN}/systemd/generator.late", packaged, local, f"{RUN}/systemd/generator", own


def unescaped(word: str) -> str:
    """A word of a table such as fstab(5), without its octal escapes."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), word)


def udev_runs() -> bool:
    """Whether udev is running, as systemd's sd-device checks it."""
    return os.path.exists(f"{RUN}/udev/control")


def udev_is_busy() -> bool:
    """Whether udev has events left to handle: udev-manager.c."""
    return os.path.exists(f"{RUN}/udev/queue")


def read_text_file(path: str) -> str:
    """The content of a text file; empty if it cannot be read or is too large."""
    with suppress(OSError, ValueError):
        return read_file(path, MAX_EVIDENCE).decode(errors="replace").replace("\0", "?")
    return ""


def list_names(directory: str, pattern: str = "") -> list[str]:
    """The names in a directory that match the regular expression, sorted; none if it cannot be read."""
    with suppress(OSError, ValueError):
        names = os.listdir(directory)
        return sorted(name for name in names if not pattern or re.fullmatch(pattern, name))[:MAX_FILES]
    return []


def output_of(*command: str, limit: float = MAX_PROGRAM) -> str:
    """The output of a program; empty if it cannot be run or takes longer than `limit` seconds."""
    from subprocess import DEVNULL, SubprocessError, run

    with suppress(OSError, SubprocessError):
        printed = run(command, stdin=DEVNULL, capture_output=True, timeout=limit).stdout
        return printed.decode(errors="surrogateescape")
    return ""


def is_bound_to_itself(mount: Sequence[str], parent: Sequence[str]) -> bool:
    """Whether a mount shows what is there without it, like the one of /home in the unit's sandbox (ProtectHome=)."""
    place = os.path.join(parent[3], os.path.relpath(mount[4], parent[4]))
    # A btrfs subvolume mounted onto itself has another subvolid= in the last word. No path is accessed, because a
    # mount may hang.
    is_same = mount is not parent and mount[2] == parent[2] and mount[-1] == parent[-1]
    return is_same and mount[3] == os.path.normpath(place)


def longest_above(path: str, places: Iterable[str]) -> str:
    """The innermost of these directories that contains the path; empty if none does."""
    return max((item for item in places if f"{path}/".startswith(f"{item.rstrip('/')}/")), key=len, default="")


def device_directory(name: str) -> str:
    """The directory of a device in sysfs."""
    return f"{SYS}/class/block/{name}"


def device_link(number: int) -> str:
    """The link in sysfs to the device with this number; its target ends in the kernel's name."""
    return f"{SYS}/dev/block/{os.major(number)}:{os.minor(number)}"


def device_path(name: str) -> str:
    """The path by which people know a device."""
    mapped = attribute(device_directory(name), "dm/name")
    return f"/dev/mapper/{mapped}" if mapped else f"/dev/{name.replace('!', '/')}"


# Devices that exist, and the layers below them.
def check_device(name: str, facts: StorageFacts) -> Layer:
    """A block device with all layers below it, and what is wrong with it."""
    below = tuple(map(facts.layer, devices_below(name)))
    bad = tuple(layer for layer in below if layer.cause)
    problem = check_kernel_state(name, facts)
    if bad or not below or name.startswith("md"):
        is_redundant, too_few = check_members(name, below)
        problem = problem or too_few
        if is_redundant and not too_few:
            bad = ()
    if problem := problem or check_udev(name, facts):
        problem = problem._replace(reason=f"{device_path(name)}: {problem.reason}")
    others = other_layers_below(name, facts) if problem or facts.explains else ()
    to_blame = bad + others if problem else bad
    return stacked(name, "", problem, *to_blame)._replace(below=below + others)


def devices_below(name: str) -> list[str]:
    """The devices that this one is built on: its slaves in sysfs, or the disk of a partition."""
    directory = device_directory(name)
    below = list_names(f"{directory}/slaves")
    # A device-mapper or md device has no slaves while it has no table or member.
    if not below and name[-1:].isdigit() and os.path.exists(f"{directory}/partition"):
        below = [os.path.basename(os.path.dirname(os.path.realpath(directory)))]
    return below


def other_layers_below(name: str, facts: StorageFacts) -> tuple[Layer, ...]:
    """Other layers that a device is built on: the session of a LUN, the file of a loop device."""
    directory = device_directory(name)
    if name.startswith("loop"):
        file = attribute(directory, "loop/backing_file")
        return (Layer(file, "file"),) if file else ()
    if name.startswith("dm-"):
        group, volume = split_map_name(attribute(directory, "dm/name"))
        backup = facts.volume_group(group)
        return (group_layer(group, backup, (), facts),) if "-missing_" in volume and backup else ()
    target, portal, state = iscsi_session(name, facts) if name.startswith("sd") else ("", "", "")
    return (session_layer(target, portal, state, facts),) if target else ()


def iscsi_session(name: str, facts: StorageFacts) -> tuple[str, str, str]:
    """The target, portal and session state of a SCSI disk that is an iSCSI LUN; empty for others."""
    # …/host2/session1/target2:0:0/2:0:0:1/block/sda
    session = re.search(r"/(session[0-9]+)/", os.path.realpath(device_directory(name)))
    return facts.iscsi_sessions.get(session[1] if session else "", ("", "", ""))


def session_layer(target: str, portal: str, state: str | None, facts: StorageFacts) -> Layer:
    """The session with an iSCSI target, and what is wrong with it; `state` is None if there is no session."""
    what, startup = f"iSCSI target {target} at {portal}", facts.iscsi_nodes.get((target, portal))
    problem = None
    if state is None and startup:
        reason = f"no session with {what} (node.startup is {startup})"
        problem = Problem(reason, f"iscsiadm -m node -T {target} --login")
    elif state is None:
        reason = f"no session with {what} (open-iscsi has no record of it)"
        problem = Problem(reason, f"iscsiadm -m discovery -t sendtargets -p {portal}")
    elif state not in ("", "LOGGED_IN"):
        problem = Problem(f"the session with {what} has failed", "iscsiadm -m session -P 1")
    return stacked(f"{target} at {portal}", "iSCSI session", problem)


def check_kernel_state(name: str, facts: StorageFacts) -> Problem | None:
    """What is wrong with the device itself according to the kernel."""
    directory = device_directory(name)
    size = attribute(directory, "size")
    if not size:
        return Problem("has been removed")
    for names, check in DRIVERS:
        if name.startswith(names) and (problem := check(name, facts)):
            return problem
    for names, key, usable, reason in DEVICE_STATES:
        if re.match(names, name):
            value = size if key == "size" else attribute(directory, key)
            if not re.fullmatch(usable, value):
                return Problem(reason.format(value))
    return None


# For kernel names of devices: an attribute, its values if the device can be used, and else what is wrong.
# Sources: the drivers in Linux, and the attributes that systemd's 99-systemd.rules looks at. States considered:
# SCSI (scsi_sysfs.c: also created, quiesce, offline, cancel, deleted), NVMe (also new, resetting, connecting, deleting,
# dead), loop (a file that was deleted can be used), nbd (which keeps its pid while it connects anew), bcache (whose
# device is there while it can be used), rbd, virtio, mmc and ZFS (which show none for a device; but see DRIVERS).
DEVICE_STATES = (
    # If the session of an iSCSI disk fails, it is blocked, and later offline; neither its size nor udev shows that.
    ("s[dr]", "device/state", "|running", "SCSI device is {}"),
    ("dm-", "dm/suspended", "0?", "device-mapper device is suspended"),
    # lvchange --activationmode partial creates them for missing volumes; reading them fails (lv_manip.c).
    ("dm-", "dm/name", "(?!.*-missing_[0-9]+_[0-9]+$).*", "placeholder for a missing physical volume"),
    ("loop[0-9]+$", "loop/backing_file", ".+", "loop device has no file"),
    ("nbd[0-9]+$", "pid", ".+", "nbd device is not connected to a server"),
    ("drbd", "size", "(?!0$).*", "DRBD device has size 0: it has no disk and no peer"),
    ("(?!sr)", "size", "(?!0$).*", "has size 0"),  # so has a drive without a CD
)


def check_array(name: str, facts: StorageFacts) -> Problem | None:
    """An md array that is not active (md.rst), and its members; sysfs does not show how many it needs."""
    state = attribute(device_directory(name), "md/array_state")
    if state not in ("clear", "inactive", "suspended", "broken"):  # read-auto and write-pending can be used
        return None
    if state != "inactive":
        return Problem(f"md array is {'empty' if state == 'clear' else state}", f"mdadm --detail /dev/{name}")
    members = list_names(f"{device_directory(name)}/slaves")
    present = f" (only {join_limited(members, MAX_LISTED)} present)" if members else ""
    starts, is_startable = when_it_starts(name, facts) if facts.explains else ("", True)
    command = "run" if is_startable else "detail"
    return Problem(f"md array is inactive{present}{starts}", f"mdadm --{command} /dev/{name}")


def when_it_starts(name: str, facts: StorageFacts) -> tuple[str, bool]:
    """Whether an inactive md array will start, and whether it can: its members' MD_STARTED is no, unsafe or yes.

    mdadm's udev rules start mdadm-last-resort@.timer for an unsafe one.
    """
    found = facts.devices_with(name, "MD_DEVICE")
    members = [item for item in found if item.properties.get("MD_STARTED") == "unsafe"]
    if not members and any(item.properties.get("MD_STARTED") == "no" for item in found):
        return "; too few members to start", False
    if not members:
        return "; nothing will start it unless another member appears", True
    waits = facts.uptime - max(member.initialized for member in members)
    with suppress(OSError):
        # udev may have seen them earlier, in the initramfs; mdadm writes its map when it adds one.
        waits = min(waits, time.time() - os.stat(f"{RUN}/mdadm/map").st_mtime)
    if waits < LAST_RESORT + LATE_TIMER:
        return f"; mdadm will start it degraded after {LAST_RESORT:.0f} s", True
    return f"; mdadm has not started it degraded within {waits:.0f} s", True


def check_nvme(name: str, _: StorageFacts) -> Problem | None:
    """An NVMe disk without a live controller, or with native multipath, without a usable path.

    A path of asymmetric access is named as nvme0c1n1 (multipath.c, nvme_ana_state_names).
    """
    disk = re.fullmatch("(nvme[0-9]+)(n[0-9]+)", name)
    if disk is None:
        return None
    directory = f"{device_directory(name)}/device"
    controllers = [f"{directory}/{item}" for item in list_names(directory, "nvme[0-9]+")] or [directory]
    live = [item for item in controllers if attribute(item, "state") in ("", "live")]
    if not live:
        return Problem("no live NVMe controller", "nvme list-subsys")
    paths = [f"{item}/{path}" for item in live for path in list_names(item, f"{disk[1]}c[0-9]+{disk[2]}")]
    states = [attribute(path, "ana_state") for path in paths]
    if states and not {"", "optimized", "non-optimized"}.intersection(states):
        return Problem(f"its NVMe paths are {join_limited(states, MAX_LISTED)}", "nvme list-subsys")
    return None


def check_zvol(name: str, facts: StorageFacts) -> Problem | None:
    """A ZFS volume whose pool cannot be used."""
    device = facts.udev_device(name)
    pools = [link.split("/")[3] for link in device.links if link.startswith("/dev/zvol/")] if device else []
    return check_pool(pools[0], facts) if pools else None


def check_pool(pool: str, facts: StorageFacts) -> Problem | None:
    """A ZFS pool that lacks too many disks; with failmode=continue it is not SUSPENDED (spa_state_to_name())."""
    state = facts.text(f"{PROC}/spl/kstat/zfs/{pool}/state").strip()
    if state in ("", "ONLINE", "DEGRADED"):
        return None
    return Problem(f"ZFS pool {pool} is {state}", f"zpool clear {shell_word(pool)}")


def check_drbd(name: str, facts: StorageFacts) -> Problem | None:
    """A DRBD device without good data, here or on its peer, or one that has stopped I/O."""
    state = drbd_state(name, facts)
    if state.stopped:
        return Problem(f"DRBD has stopped I/O: {state.stopped}", "drbdadm status")
    if state.disk not in ("UpToDate", "Consistent") and state.peer_disk != "UpToDate":
        peer = "peer is not connected" if state.peer_disk in ("", "DUnknown") else f"peer's is {state.peer_disk}"
        return Problem(f"DRBD's disk is {state.disk}, and the {peer}", "drbdadm status")
    return None


# Prefixes of kernel names, and the function that checks the state of the driver.
DRIVERS = (("md", check_array), ("drbd", check_drbd), ("nvme", check_nvme), ("zd", check_zvol))


def drbd_state(name: str, facts: StorageFacts) -> DrbdState:
    """The state of a DRBD device, also for a partition of it."""
    with facts.lock:
        states = facts.drbd_states
    return states.get(name[len("drbd") :].partition("p")[0], DrbdState())


def drbd_states_from_json(text: str) -> dict[str, DrbdState]:
    """The states in the output of `drbdsetup status --json`."""
    import json

    states = {}
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        for resource in json.loads(text):
            connections = resource.get("connections", ())
            peers = [peer for connection in connections for peer in connection.get("peer_devices", ())]
            roles = [connection.get("peer-role") for connection in connections]
            peer_role = "Primary" if "Primary" in roles else ""
            for device in resource["devices"]:
                disks = [peer["peer-disk-state"] for peer in peers if peer["volume"] == device["volume"]]
                best = "UpToDate" if "UpToDate" in disks else "".join(disks[:1])
                stopped = "it has no quorum" if device.get("quorum") is False else ""
                if resource.get("suspended") is True:
                    stopped = "its I/O is suspended"
                if resource.get("force-io-failures") is True:  # after `drbdadm secondary --force`
                    stopped = "all I/O fails until nothing has it open"
                role, disk = str(resource["role"]), str(device["disk-state"])
                states[str(device["minor"])] = DrbdState(role, peer_role, disk, best, stopped, is_version_9=True)
    return states


def has_minor(configuration: str, minor: str) -> bool:
    """Whether a resource's configuration gives it the device with this number."""
    return re.search(rf"(minor\s+|/dev/drbd){minor}\b", configuration) is not None


def check_members(name: str, below: Sequence[Layer]) -> tuple[bool, Problem | None]:
    """Whether the layers below are redundant, so that not all are needed, and the problem if too few can be used."""
    uuid = attribute(device_directory(name), "dm/uuid") if name.startswith("dm-") else ""
    if uuid.startswith("mpath-"):
        what, usable, needed = "path", len([layer for layer in below if not layer.cause]), 1
    elif name.startswith("md"):
        what, usable, needed = array_members(name, below)
    else:
        what, usable, needed = volume_legs(name, below)
    if usable >= needed:
        return what != "", None
    few = f"only {usable} of {needed} required {what}s can be used" if usable else f"no usable {what}"
    hint = "multipath -ll" if what == "path" else "lvs -a -o +devices"
    return True, Problem(few, f"mdadm --detail /dev/{name}" if name.startswith("md") else hint)


def array_members(name: str, below: Sequence[Layer]) -> tuple[str, int, int]:
    """What the members of an md array are called, how many are usable, and how many are needed: md(4), md.rst."""
    directory = f"{device_directory(name)}/md"
    if attribute(directory, "degraded") in ("", "0") and not [layer for layer in below if layer.cause]:
        return "member", 1, 1  # none of them has failed
    level, layout, disks = (attribute(directory, key).partition(" ")[0] for key in ("level", "layout", "raid_disks"))
    total = int(disks or len(below))
    members = [f"{directory}/dev-{layer.name}" for layer in below if not layer.cause]
    members = [item for item in members if "in_sync" in attribute(item, "state")]
    if level == "raid10":  # the layout has the number of near copies in its lowest byte, and of far ones in the next
        near, far = int(layout or 0) & 0xFF, int(layout or 0) >> 8 & 0xFF
        return mirrored_sets([int(attribute(member, "slot") or 0) for member in members], total, near, near * far)
    spare = {"raid1": total - 1, "multipath": total - 1, "raid4": 1, "raid5": 1, "raid6": 2}
    return ("member", len(members), total - spare[level]) if level in spare else ("", 0, 0)


def volume_legs(name: str, below: Sequence[Layer]) -> tuple[str, int, int]:
    """Like array_members(), for the legs of an LVM mirror or RAID volume: lvmraid(7)."""
    legs = [(re.search("_[rm]image_([0-9]+)$", device_path(layer.name)), layer) for layer in below]
    good = [int(leg[1]) for leg, layer in legs if leg and not layer.cause]
    names = [layer.name for leg, layer in legs if leg]
    if not names:
        return "", 0, 0
    size, of_leg = (int(attribute(device_directory(item), "size") or 1) for item in (name, names[0]))
    needed = max(-(-size // max(of_leg, 1)), 1)  # the size is 0 until it has been set up
    copies = len(names) // needed
    if copies > 1 and copies * needed == len(names):  # RAID10, or a mirror
        return mirrored_sets(good, len(names), copies, copies)
    return "leg", len(good), needed


def mirrored_sets(slots: Sequence[int], total: int, near: int, copies: int) -> tuple[str, int, int]:
    """Like array_members(), for sets of members with the same data, each of which needs one (raid10.c, _enough())."""
    starts = {near * number % total for number in range(total)}
    usable = [start for start in starts if any((slot - start) % total < copies for slot in slots)]
    return "mirrored set", len(usable), len(starts)


def check_udev(name: str, facts: StorageFacts, is_disk: bool = False) -> Problem | None:
    """What is wrong with a device according to udev; more is checked for the disk itself."""
    device = facts.udev_device(name)
    properties = device.properties if device else {}
    # systemd 256 and newer write the entry early, and keep ID_PROCESSING in it until the programs of the rules have run
    # (udev-worker.c; `udevadm wait` looks at the same).
    if properties.get("ID_PROCESSING") == "1" or (is_disk and device is None):
        # Without pending events, it has given up, for example because a program that a rule runs hung.
        hint = "udevadm settle" if udev_is_busy() else f"udevadm trigger --settle /sys/class/block/{name}"
        return Problem("udev has not finished processing it", hint)
    if properties.get("MPATH_DEVICE_READY") == "0":  # 56-dm-mpath.rules; paths may be running already
        return Problem("multipathd uses none of its paths", "multipath -ll")
    if not is_disk or properties.get("SYSTEMD_READY") != "0" or is_ready_for_a_guest(properties):
        return None
    if device and was_activated_without_udev(device, facts):
        return None
    if properties.get("DM_MULTIPATH_DEVICE_PATH") == "1":
        return Problem("is one path of a multipath device; use the multipath device instead", "multipath -ll")
    return Problem("udev has set SYSTEMD_READY=0 for it")


def is_ready_for_a_guest(properties: Mapping[str, str]) -> bool:
    """Whether SYSTEMD_READY=0 has a reason that concerns only this host, not a guest.

    99-systemd.rules does so for an opened crypt volume without a known content, lest systemd mount it while it is
    being formatted; a guest formats it. 64-btrfs.rules does so while other members of its file system are missing;
    they may be disks of the guest as well, and are waited for if they are, or the guest does without them.
    60-cdrom_id.rules does so for a drive without a CD, and 69-dm-lvm.rules for an array or loop device with a physical
    volume that LVM has not activated here, which may be the guest's own.
    """
    if properties.get("ID_BTRFS_READY") == "0" or properties.get("ID_CDROM") == "1":
        return True
    if properties.get("ID_FS_TYPE") == "LVM2_member" and "DM_UUID" not in properties:
        return properties.get("DM_MULTIPATH_DEVICE_PATH") != "1"
    return (
        properties.get("DM_UUID", "").startswith("CRYPT-")
        and properties.get("DM_UDEV_DISABLE_OTHER_RULES_FLAG") != "1"
        and not properties.get("ID_FS_USAGE")
        and not properties.get("ID_PART_TABLE_TYPE")
    )


def was_activated_without_udev(device: Device, facts: StorageFacts) -> bool:
    """Whether a device-mapper device was set up by an initramfs without udev.

    10-dm.rules then knows neither its name nor its flags, and calls it not ready for ever; xl starts the guest. While
    LVM sets one up it looks the same for some milliseconds, until the event that ends that has been handled.
    """
    is_unknown = "DM_UUID" not in device.properties and "DM_NAME" not in device.properties
    is_settled = facts.uptime - device.initialized > SETTLED and not udev_is_busy()
    return is_unknown and device.properties.get("DM_UDEV_DISABLE_OTHER_RULES_FLAG") == "1" and is_settled


# Devices that are missing: a function for each kind of path, with evidence from /etc and udev's database.
def explain_missing(path: str, facts: StorageFacts) -> Layer:
    """A path that does not exist, above what is known of the layers that should be there. May block."""
    if not facts.explains:
        return stacked(path, "path", Problem("does not exist", is_unknown=True))
    target, parent = os.path.realpath(path), os.path.dirname(path)
    known, reason, is_link = facts.find(target), "does not exist", os.path.islink(path)
    if is_link:
        reason = f"is a link to {target}, which does not exist"
    elif not known and not os.path.isdir(parent):
        reason = f"does not exist, nor does the directory {parent}"
    return stacked(path, "path", Problem(reason, is_unknown=not is_link), *known)


def explain_path(path: str, facts: StorageFacts) -> tuple[Layer, ...]:
    """The device at a path, else the result of the first row of EXPLANATIONS that has one."""
    if name := facts.device_at(path):
        return (facts.layer(name),)
    for kind, pattern, explain in EXPLANATIONS:
        match = re.fullmatch(pattern, path)
        if layer := explain(match, facts) if match else None:
            return (layer._replace(name=path, kind=kind),)
    return ()


def absent(reason: str, hint: str, *below: Layer, is_unknown: bool = False) -> Layer:
    """A layer that is missing, for this reason unless something is wrong with the layers below."""
    layer = stacked("", "", Problem(reason, hint, is_unknown=is_unknown), *below)
    return layer if layer.cause is layer.problem else layer._replace(problem=None)


def needed_layer(path: str, facts: StorageFacts) -> Layer:
    """The device at a path, or a layer that explains why it is missing."""
    found = facts.find(path)
    layer = found[0] if found else stacked(path, "path", Problem(f"{path} does not exist"))
    # It is not the name of the disk that may be mistyped.
    own, cause = (item and item._replace(is_unknown=False) for item in (layer.problem, layer.cause))
    return layer._replace(problem=own, cause=cause)


def explain_file(match: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A file below a mount point: fstab(5), systemd.mount(5), /proc/self/mountinfo in proc(5)."""
    where = longest_above(match[0], facts.planned_mounts)
    # Where systemd mounts on demand, autofs is mounted until then.
    if where in ("", "/", *(os.path.normpath(words[4]) for words in facts.mounts if "autofs" not in words)):
        return None
    return stacked("", "", None, unmounted_layer(where, facts))


def unmounted_layer(where: str, facts: StorageFacts) -> Layer:
    """A file system that is not mounted, and the layers below it."""
    plan = facts.planned_mounts[where]
    reason = f"{where} is not mounted ({plan.file} mounts {plan.source} there)"
    below = source_layers(plan.source)
    if not facts.explains:
        below = ()
    elif plan.kind == "zfs":
        below = (pool_layer(plan.source.partition("/")[0], facts),)
    elif path := path_of(plan.source):
        below = (needed_layer(path, facts),)
    else:
        below = below or facts.find(plan.source)  # a directory to bind, or an image
    return stacked(where, "mount", Problem(reason, f"systemctl start {shell_word(where)}"), *below)


def mounted_device(words: Sequence[str]) -> str:
    """The kernel's name of the device in a line of mountinfo; empty if the source is no device."""
    # btrfs has a device number of its own; only the source names the device.
    link, source = f"{SYS}/dev/block/{words[2]}", words[words.index("-") + 2]
    path = link if os.path.exists(link) else source
    name = os.path.basename(os.path.realpath(path)) if path.startswith((SYS, "/dev/")) else ""
    return name if os.path.exists(device_directory(name)) else ""  # /dev/fuse is no block device


def source_layers(source: str) -> tuple[Layer, ...]:
    """The server of a network file system, named as in mount.nfs(8) and mount.cifs(8)."""
    server = re.match("//([^/]+)|([^/]+):/", source)
    return (Layer(server[1] or server[2], "file server"),) if server else ()


def path_of(source: str) -> str:
    """The link of udev for UUID=… and the like in fstab(5) and crypttab(5); empty if the source is no device."""
    tag, _, value = source.partition("=")
    if tag in TAGS:
        name = hex_escaped(r"[^\w#+.:=@-]", value.strip('"'))  # encode_devnode_name of udev
        return f"/dev/disk/by-{tag.lower()}/{name}"
    return source if source.startswith("/dev/") else ""


def hex_escaped(pattern: str, text: str) -> str:
    """The text, with each byte of characters that match the pattern as \\xNN."""
    return re.sub(pattern, lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()), text)


def map_name(group: str, volume: str) -> str:
    """The name under which LVM maps a volume."""
    return f"{group.replace('-', '--')}-{volume.replace('-', '--')}"


def split_map_name(mapped: str) -> tuple[str, str]:
    """The volume group and the volume in a name from map_name()."""
    group, _, volume = re.sub("([^-])-([^-])", r"\1/\2", mapped, count=1).partition("/")
    return group.replace("--", "-"), volume.replace("--", "-")


def portal_of(address: str, port: str) -> str:
    """A portal as in udev's by-path links and in the arguments of iscsiadm."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def explain_array(match: re.Match[str], facts: StorageFacts) -> Layer:
    """An md array, by its name or node; an inactive one has no link with its name."""
    name, array, listed = array_name(match["name"]), f"md array {match['name']}", listed_array(match["name"], facts)
    uuid = hex_digits(listed.get("uuid", match["name"]))
    members = [device for device in facts.devices if is_member(device.properties, name, uuid)]
    names = [device.name for device in members]
    nodes = {device.properties.get("MD_DEVICE", "") for device in members}
    nodes.update(facts.running_arrays.get(key, "") for key in (name, uuid))
    for node in list_names(f"{SYS}/class/block", "md[0-9]+"):
        if node in nodes or not set(names).isdisjoint(list_names(f"{device_directory(node)}/slaves")):
            return absent(f"{array} is running as {node}", f"mdadm --detail /dev/{node}", facts.layer(node))
    if names:
        reason = f"{array} is not assembled (members present: {join_limited(names, MAX_LISTED)})"
        # --scan assembles the arrays that mdadm.conf lists, or any if it lists none.
        unlisted = f"mdadm --assemble /dev/md/{name} {' '.join(map(device_path, names))}"
        hint = unlisted if facts.arrays and not listed else "mdadm --assemble --scan"
        return absent(reason, hint, *map(facts.layer, names))
    return array_without_members(array, listed, facts)


def listed_array(name: str, facts: StorageFacts) -> Mapping[str, str]:
    """The keywords of an array in mdadm.conf(5), by its name or UUID; none if it is not listed."""
    by_uuid = {hex_digits(keys.get("uuid", "")): keys for keys in facts.arrays.values()}
    return facts.arrays.get(array_name(name)) or by_uuid.get(hex_digits(name) or name, {})


def array_without_members(array: str, listed: Mapping[str, str], facts: StorageFacts) -> Layer:
    """An md array of which no member is known; one of a firmware RAID may be in a container."""
    container = listed.get("container", "")  # by its path or its UUID
    for key in (array_name(container), hex_digits(container)):
        if node := facts.running_arrays.get(key, ""):
            return absent(f"{array} is not started in its container {node}", f"mdadm --incremental --run /dev/{node}")
    disks = (item for kind in ("isw", "ddf") for item in facts.devices_with(f"{kind}_raid_member", "ID_FS_TYPE"))
    if container and (names := [item.name for item in disks]):
        reason = f"{array} is not assembled (members present: {join_limited(names, MAX_LISTED)})"
        return absent(reason, "mdadm --assemble --scan", *map(facts.layer, names))
    below = [needed_layer(container, facts)] if container.startswith("/") else []
    listing = "though mdadm.conf lists it" if listed else "and mdadm.conf does not list it"
    return absent(f"no member of {array} found, {listing}", "mdadm --examine --scan", *below, is_unknown=not listed)


def is_member(properties: Mapping[str, str], name: str, uuid: str) -> bool:
    """Whether udev knows a device as a member of the md array with this name or UUID."""
    if name in (array_name(properties.get(key, "")) for key in ("MD_DEVICE", "MD_DEVNAME")):
        return True
    label, own = array_name(properties.get("ID_FS_LABEL", "")), hex_digits(properties.get("ID_FS_UUID", ""))
    return properties.get("ID_FS_TYPE", "").endswith("_raid_member") and (label == name or own == uuid != "")


def array_name(path: str) -> str:
    """The name of an md array: 0 for /dev/md0, /dev/md/0, /dev/md/HOST:0 and the label HOST:0."""
    return os.path.basename(path).rpartition(":")[2].removeprefix("md")


def hex_digits(uuid: str) -> str:
    """The digits of a UUID, which mdadm and udev separate in different ways."""
    return re.sub("[^0-9a-f]", "", uuid.lower())


def explain_active_map(match: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A map or volume that is active, but has no link."""
    mapped = match["name"] or map_name(match["group"] or "", match["volume"] or "")
    return without_link(mapped, facts.maps[mapped], facts) if mapped in facts.maps else None


def without_link(what: str, name: str, facts: StorageFacts) -> Layer:
    """A device that exists, but not under the name that is looked for."""
    reason = f"{what} is active as {name}, but udev has not created a link to it"
    hint = f"udevadm trigger --action=change /sys/class/block/{name}"
    if udev_is_busy():
        reason, hint = f"{reason} yet", "udevadm settle"
    return absent(reason, hint, facts.layer(name))


def explain_partition(match: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A partition of a disk, array or map that exists."""
    whole, name = match["whole"], facts.device_at(match["whole"])
    hint = f"kpartx -av {whole}" if name.startswith("dm-") else f"lsblk {whole}"
    return absent(f"{whole} has no partition {match['number']}", hint, facts.layer(name)) if name else None


def explain_crypt(match: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A volume that systemd sets up from crypttab(5), integritytab(5) or veritytab(5)."""
    name = match["name"]
    for kind in ("crypt", "integrity", "verity"):
        source, options = facts.device_table(kind).get(name, ("", [""]))
        if source:
            noauto = ", with the option noauto" if "noauto" in options else ""
            # systemd.unit(5), "String escaping"
            unit = hex_escaped("[^a-zA-Z0-9:_./]", name).replace("/", "-")
            reason = f"{kind} volume {name} is not open (it is in /etc/{kind}tab{noauto})"
            below = [needed_layer(path_of(source), facts)] if path_of(source) else []
            key = path_of(options[0].rpartition(":")[2]) or options[0]  # FILE:DEVICE, or the hashes of a verity volume
            hint = f"systemctl start {shell_word(f'systemd-{kind}setup@{unit}')}"
            return absent(reason, hint, *below, *facts.find(key))
    return None


def explain_map(match: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A multipath map, by its alias, its bound name or its WWID: multipath.conf(5)."""
    # kpartx(8) may append the number of a partition without a separator.
    name = re.sub("^(mpath[a-z]+?)p?[0-9]+$", r"\1", match["name"])
    wwids = {alias: wwid for alias, wwid, *_ in facts.table(f"{ETC}/multipath/bindings")}
    files = ["multipath.conf", *(f"multipath/conf.d/{item}" for item in list_names(f"{ETC}/multipath/conf.d"))]
    for entry in re.findall(r"\bmultipath\s*{([^{}]*)}", "\n".join(facts.text(f"{ETC}/{file}") for file in files)):
        keys = dict(re.findall(r'^\s*(wwid|alias)\s+"?([^"\s]+)', entry, re.MULTILINE))
        wwids[keys.get("alias", "")] = keys.get("wwid", "")
    wwid = wwids.get(name, name)
    found = facts.devices_with(wwid, "ID_SERIAL", "ID_UID", "ID_WWN")
    paths = [item for item in found if not item.name.startswith("dm-")]
    if names := [item.name for item in paths if "ID_PART_ENTRY_NUMBER" not in item.properties]:
        reason = f"no multipath map for {wwid}, though paths are present: {join_limited(names, MAX_LISTED)}"
        return absent(reason, "multipath -v2", *map(facts.layer, names))
    if wwid == name and f"/{name}/\n" not in facts.text(f"{ETC}/multipath/wwids"):
        return None
    return absent(f"multipath map {name} has no path to {wwid}", "multipath -v2", *facts.likely_sessions)


def explain_volume(match: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A logical volume: LVM's backup shows what it is built on, and udev what of that is present."""
    name, volume = match["group"], match["volume"]
    if is_mapped := match[0].startswith("/dev/mapper/"):
        name, volume = split_map_name(f"{name}-{volume}")
    file, group = f"/etc/lvm/backup/{name}", facts.volume_group(name)
    if group is None:
        # Other devices also have names of two parts.
        if is_mapped or not list_names(f"{ETC}/lvm/backup") or os.path.isdir(f"/dev/{name}"):
            return None
        return absent(f"volume group {name} is unknown here (no {file})", "vgs", is_unknown=True)
    if volume not in group.volumes:
        unknown = f"volume group {name} has no volume {volume} (according to {file} of {group.date})"
        return absent(unknown, f"lvs {name}", is_unknown=True)
    reason, hint = f"volume group {name} is complete, but not all of its volumes are active", f"vgchange -ay {name}"
    for pattern, why, command in INACTIVE:
        found = re.search(pattern, group.text + group.volumes[volume])
        what = found[found.lastindex or 0] if found else ""
        if found and f"{map_name(name, what)}-tpool" not in facts.maps:  # an active pool is no reason
            reason, hint = (text.format(name, volume, what) for text in (why, command))
            break
    return absent(reason, hint, group_layer(name, group, parts_of(volume, group), facts))


# Patterns in LVM's backup for why a volume or its group is not activated, with the reason and a command that helps.
INACTIVE = (
    ('"(EXPORTED)"', "volume group {0} is exported", "vgimport {0}"),
    ('lock_type = "(sanlock|dlm)"', "volume group {0} is shared ({2}) and not activated", "vgchange --lockstart {0}"),
    (
        # lvmsystemid(7); the first one is that of this host, if it has one
        r'creation_host = .*\n(creation_host_system_id = "(.*)"|creation_time)(?s:.*)\n\tsystem_id = "(?!\2")(.+)"',
        "volume group {0} is activated only by the host with system ID {2}",
        "lvm systemid",
    ),
    ('"(ACTIVATION_SKIP)"', "LVM volume {0}/{1} has the activation skip flag", "lvchange -ay -K {0}/{1}"),
    ('"(NOAUTOACTIVATE)"', "LVM volume {0}/{1} or its group is not activated automatically", "lvchange -ay {0}/{1}"),
    (
        'thin_pool = "(.*)"',
        "thin pool {0}/{2} is not active (if LVM refuses to activate it: lvconvert --repair {0}/{2})",
        "lvchange -ay {0}/{2}",
    ),
)


def parts_of(volume: str, group: VolumeGroup) -> set[str]:
    """A logical volume with its sub-volumes and its pool, and the physical volumes that they lie on."""
    volumes, disks = [volume], set()
    for item in volumes:
        words = set(re.findall('"([^"]+)"', group.volumes[item]))
        disks.update(words.intersection(group.disks))
        volumes += words.intersection(group.volumes).difference(volumes)
    return disks.union(volumes)


def group_layer(name: str, group: VolumeGroup, parts: Container[str], facts: StorageFacts) -> Layer:
    """A volume group with the physical volumes of these parts of it (or all), and those that it lacks."""
    disks = facts.physical_volumes(name)
    below = [layer for key, layer in disks.items() if key in parts] or [*disks.values()]
    problem = None
    if MISSING in [layer.problem for layer in below]:
        lacking = join_limited([layer.name for layer in disks.values() if layer.problem is MISSING], MAX_LISTED)
        # At boot, LVM waits for all of them, although a RAID may not need them.
        volumes = [text for key, text in group.volumes.items() if key in parts]
        is_raid = re.search('type = "raid[1-9]', "".join(volumes))
        hint = f"vgchange -ay {name}" if is_raid else ""
        problem = Problem(f"volume group {name} lacks physical volume {lacking}", hint)
    return stacked(name, "volume group", problem, *below)


def physical_volume_layer(group: str, text: str, facts: StorageFacts) -> Layer:
    """A physical volume in LVM's backup, above the device that holds it; if it is missing, the group is to blame."""
    values = dict(re.findall('^[ \t]*(.+) = "([^"]*)"', text, re.MULTILINE))
    uuid, device = values.get("id", ""), values.get("device", "")
    shown = facts.text(f"{ETC}/lvm/devices/system.devices")
    found = facts.devices_with(uuid, "ID_FS_UUID")
    # The paths of a multipath device are one disk.
    found = [item for item in found if item.properties.get("DM_MULTIPATH_DEVICE_PATH") != "1"]
    holders = [item.name for item in found]
    path, problem = device_path(holders[0]) if holders else "", None
    if len(holders) > 1:
        # Changing one of them would do harm if both are the same disk.
        names = join_limited(holders, MAX_LISTED)
        reason = f"{names} carry the same PV UUID (a LUN and its clone, or paths to one LUN)"
        problem = Problem(reason, f"lsblk -o NAME,SERIAL,WWN {' '.join(map(device_path, holders))}")
    elif holders and "PVID=" in shown and uuid.replace("-", "") not in shown:
        reason = f"{path} is hidden from LVM (not in /etc/lvm/devices/system.devices)"
        problem = Problem(reason, f"lvmdevices --adddev {path}")
    elif holders and "PVID=" not in shown and is_filtered(found[0], facts):  # with a devices file, filters are ignored
        reason = f"{path} is hidden from LVM (by a filter in /etc/lvm/lvm.conf)"
        problem = Problem(reason, "grep filter /etc/lvm/lvm.conf")
    elif holders and has_flag(text, "MISSING"):
        reason = f"{path} was missing when volume group {group} was changed, so LVM does not use it"
        problem = Problem(reason, f"vgextend --restoremissing {group} {path}")
    if holders:
        return stacked(uuid, "physical volume", problem, *map(facts.layer, holders))
    # LVM writes "[unknown]" if it has not seen the device either.
    name = f"{uuid} (last seen as {device})" if device.startswith("/") else uuid
    if device.startswith("/dev/sd"):  # which may have another name today
        is_local = re.search(r"ATA|^eui|^naa\.5|^nvme", values.get("device_id", ""))
        below = () if is_local else facts.likely_sessions
    else:
        below = tuple(item for item in facts.find(device) if item.cause)  # what is there now may be another disk
    return stacked(name, "physical volume", None, *below)._replace(problem=MISSING)


def is_filtered(device: Device, facts: StorageFacts) -> bool:
    """Whether a filter in lvm.conf(5) rejects a device: of the patterns that match a name, the first one counts."""
    text = re.sub("#.*", "", facts.text(f"{ETC}/lvm/lvm.conf"))
    for patterns in re.findall(r'filter\s*=((?:[\[\s,]*"[^"]*")+)', text):
        rules = re.findall(r'"([ar]).([^"]*)."', patterns)
        verdicts = []
        for name in (device_path(device.name), f"/dev/{device.name}", *device.links):
            with suppress(re.error):  # LVM's own syntax is a little different
                verdicts += [verdict for verdict, pattern in rules if re.search(pattern, name)][:1]
        if "r" in verdicts and "a" not in verdicts:
            return True
    return False


MISSING = Problem("is missing")


def has_flag(text: str, flag: str) -> bool:
    """Whether a volume or group in LVM's backup has this flag."""
    return re.search(rf'^[ \t]*flags = .*"{flag}"', text, re.MULTILINE) is not None


def explain_iscsi_disk(match: re.Match[str], facts: StorageFacts) -> Layer:
    """An iSCSI LUN, by its path."""
    target, portal = match["target"], match["portal"]
    reason = f"iSCSI target {target} at {portal} has no LUN {match['lun']}, though there is a session"
    states = [state for item, at, state in facts.iscsi_sessions.values() if (item, at) == (target, portal)]
    session = session_layer(target, portal, states[0] if states else None, facts)
    return absent(reason, "iscsiadm -m session --rescan", session)


def explain_lun(_: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A SCSI disk, by a name that does not show its target."""
    return stacked("", "", None, *facts.likely_sessions) if facts.likely_sessions else None


def explain_drbd(match: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A DRBD device, by its resource, number or lower disk; it exists when the resource is up."""
    resources, minor, disk = facts.drbd_resources, match["minor"], match["disk"]
    of_disk = rf'disk\s+"?/dev/{re.escape(disk or "")}[";\s]'
    name = match["resource"] or ""
    for item, text in resources.items():
        if (minor and has_minor(text, minor)) or (disk and re.search(of_disk, text)):
            name = item
    if name not in resources:
        reason = f"no DRBD resource {name or 'for this device'} in /etc/drbd.conf or the files it includes"
        return absent(reason, "drbdadm dump", is_unknown=True)
    for item in list_names(f"{SYS}/class/block", "drbd.*"):
        if has_minor(resources[name], item[len("drbd") :]):
            entry, wanted = facts.udev_device(item), older_path(match[0])
            links = [older_path(link) for link in entry.links if "/by-res/" in link] if entry else []
            # The link of another volume of the resource does not help.
            return None if minor or links not in ([], [wanted]) else without_link(f"DRBD resource {name}", item, facts)
    return absent(f"DRBD resource {name} is not up", f"drbdadm up {name}")


def explain_zvol(match: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A ZFS volume; older udev rules of ZFS also link it as /dev/POOL/VOLUME, which looks like LVM."""
    pool, volume = match["pool"], match["volume"]
    # The cache has each name after its length, in four bytes (XDR).
    cached = f"???{chr(len(pool))}{pool}" in facts.text(f"{ETC}/zfs/zpool.cache")
    is_known = cached or os.path.isdir(f"{PROC}/spl/kstat/zfs/{pool}")
    if not match[0].startswith("/dev/zvol/") and (facts.volume_group(pool) or not is_known):
        return None
    reason = f"ZFS pool {pool} has no volume {volume}, or its key is not loaded"
    hint = f"zfs list -r -o name,keystatus {shell_word(pool)}"
    return absent(reason, hint, pool_layer(pool, facts), is_unknown=True)


def pool_layer(pool: str, facts: StorageFacts) -> Layer:
    """A ZFS pool, which may not be imported; the kernel module has a directory for each one that is."""
    is_imported = os.path.isdir(f"{PROC}/spl/kstat/zfs/{pool}")
    problem = Problem(f"ZFS pool {pool} is not imported", f"zpool import {shell_word(pool)}")
    return stacked(pool, "ZFS pool", check_pool(pool, facts) if is_imported else problem)


def explain_rbd(match: re.Match[str], facts: StorageFacts) -> Layer:
    """A Ceph image: rbdmap(8)."""
    image = match["image"]
    listed = re.findall(r"^\s*([^\s#]+)", facts.text(f"{ETC}/ceph/rbdmap"), re.MULTILINE)
    if image in listed or image.removeprefix("rbd/") in listed:
        return absent(f"Ceph image {image} is not mapped, though /etc/ceph/rbdmap lists it", "rbdmap map")
    reason = f"Ceph image {image} is not mapped, and not listed in /etc/ceph/rbdmap"
    return absent(reason, f"rbd device map {shell_word(image)}")


def explain_bcache(_: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A bcache device, which does not exist without its cache (Documentation/admin-guide/bcache.rst in Linux)."""
    backing = [item.name for item in facts.devices_with("bcache", "ID_FS_TYPE")]
    stopped = [item for item in backing if attribute(f"{device_directory(item)}/bcache", "running") == "0"]
    if not stopped:
        return None
    reason = f"bcache backing device {join_limited(stopped, MAX_LISTED)} lacks its cache"
    if "dirty" in [attribute(f"{device_directory(item)}/bcache", "state") for item in stopped]:
        return absent(f"{reason}, which has data that was not written to it yet", "lsblk -f")
    hint = f"echo 1 >/sys/class/block/{stopped[0]}/bcache/running"
    return absent(f"{reason} (start it without only if the cache is lost)", hint)


def explain_fc_disk(match: re.Match[str], _: StorageFacts) -> Layer:
    """A LUN behind a remote Fibre Channel port (scsi_transport_fc.c)."""
    port, ports, hosts = match["port"], f"{SYS}/class/fc_remote_ports", f"{SYS}/class/fc_host"
    for remote in list_names(ports):
        if attribute(f"{ports}/{remote}", "port_name") == port:
            state = attribute(f"{ports}/{remote}", "port_state")
            what = f"has no LUN {match['lun']}" if state == "Online" else f"is {state}"
            return absent(f"Fibre Channel port {port} {what}", "rescan-scsi-bus.sh")
    ours = [f"{item} is {attribute(f'{hosts}/{item}', 'port_state')}" for item in list_names(hosts)]
    reason = f"Fibre Channel port {port} is not visible ({join_limited(ours, MAX_LISTED) or 'no adapter'})"
    return absent(reason, "lsscsi --hosts --transport")


def explain_link(match: re.Match[str], facts: StorageFacts) -> Layer | None:
    """A link named after the content or identity of a block device."""
    tag, value = match["tag"].upper(), match["value"]
    hint = f"lsblk -o NAME,{tag}" if TAGS[tag] else "ls /dev/disk/by-id"
    for item in facts.devices_with(value, TAGS[tag]):  # a UUID that blkid prints may be that of a member
        return absent(f"{item.name} has {tag} {value}, but udev creates no such link for it", f"{hint},FSTYPE")
    # A local disk has an ID of ATA, or one that begins with 5: its maker's (NAA).
    below = facts.likely_sessions if tag != "ID" or re.match("wwn-0x(?!5)|scsi-(?!35|.?ATA)", value) else ()
    if value.startswith("dm-name-"):
        below = facts.find(f"/dev/mapper/{value[len('dm-name-') :]}")
    return absent(f"no block device has {tag} {value}", hint, *below, is_unknown=True)


# The kinds of links below /dev/disk, and the udev property in their names; by-id has many.
TAGS = {
    "ID": "",
    "LABEL": "ID_FS_LABEL_ENC",
    "PARTLABEL": "ID_PART_ENTRY_NAME",
    "PARTUUID": "ID_PART_ENTRY_UUID",
    "UUID": "ID_FS_UUID_ENC",
}
NOT_LVM = "bcache|cciss|disk|etherd|ida|input|mapper|md|nbd|raw|rbd|zvol"  # directories of other subsystems below /dev
AT_BOOT = ("automatic", "onboot")  # values of open-iscsi's node.startup

# Kinds of devices, patterns for their paths, and functions that explain why one is missing; the first result counts.
EXPLANATIONS: Sequence[tuple[str, str, Callable[[re.Match[str], StorageFacts], Layer | None]]] = (
    ("partition", r"(?P<whole>/dev/([sv]d[a-z]+|md/.*\D|mapper/mpath[a-z]+?))p?(?P<number>\d+)", explain_partition),
    ("partition", "(?P<whole>/dev/(.*[0-9](?=p)|.+(?=-part)))(-part|p)(?P<number>[0-9]+)", explain_partition),
    ("LUN", "/dev/disk/by-path/.*?ip-(?P<portal>.+?)-iscsi-(?P<target>.+)-lun-(?P<lun>[^-]+).*", explain_iscsi_disk),
    ("LUN", "/dev/disk/by-path/.*-fc-(?P<port>0x[0-9a-f]+)-lun-(?P<lun>[^-]+)(-part[0-9]+)?", explain_fc_disk),
    ("md array", "/dev/disk/by-id/md-(name|uuid)-(?P<name>.+?)(-part[0-9]+)?", explain_array),
    ("multipath map", "/dev/disk/by-id/dm-uuid-(part[0-9]+-)?mpath-(?P<name>.+)", explain_map),
    ("link", "/dev/disk/by-(?P<tag>id|label|partlabel|partuuid|uuid)/(?P<value>.+)", explain_link),
    ("md array", "/dev/md/(?P<name>.+)", explain_array),
    ("md array", "/dev/(?P<name>md_?d?[0-9]+)(p[0-9]+)?", explain_array),
    ("DRBD device", r"/dev/drbd(/by-res/(?P<resource>[^/]+).*|/by-disk/(?P<disk>.+)|(?P<minor>\d+).*)", explain_drbd),
    ("ZFS volume", "/dev/zvol/(?P<pool>[^/]+)/(?P<volume>.+?)(-part[0-9]+)?", explain_zvol),
    ("ZFS volume", rf"/dev/(?!({NOT_LVM})/)(?P<pool>[^/]+)/(?P<volume>.+?)(-part[0-9]+)?", explain_zvol),
    ("Ceph image", "/dev/rbd/(?P<image>.+?)(-part[0-9]+)?", explain_rbd),
    ("bcache device", "/dev/bcache([0-9]+(p[0-9]+)?|/by-.+)", explain_bcache),
    ("link", r"/dev/(mapper/(?P<name>.+)|(?P<group>[\w.+-]+)/(?P<volume>[\w.+-]+))", explain_active_map),
    ("crypt volume", "/dev/mapper/(?P<name>.+)", explain_crypt),
    ("multipath map", "/dev/mapper/(?P<name>.+?)(-part[0-9]+)?", explain_map),
    ("LVM volume", "/dev/mapper/(?P<group>(--|[^-])+)-(?P<volume>(--|[^-])+)", explain_volume),
    ("LVM volume", rf"/dev/(?!({NOT_LVM})/)(?P<group>[\w.+-]+)/(?P<volume>[\w.+-]+)", explain_volume),
    ("disk", "/dev/sd[a-z]*[0-9]*", explain_lun),
    ("file", "/(?!dev/).*", explain_file),
)


# --- Readiness -------------------------------------------------------------------------------------------------------
class State(Enum):
    """The state of a disk, a configuration or a directory; the values are the words that users see."""

    READY = "ready"
    MISSING = "missing"
    NOT_READY = "not-ready"
    UNKNOWN = "unknown"  # not looked at yet
    SKIPPED = "skipped"
    REFUSED = "refused"  # a configuration that xl will reject
    UNREADABLE = "unreadable"  # a configuration or directory that cannot be read, now or later


AWAITED = (State.MISSING, State.NOT_READY, State.UNKNOWN)
FINE = (State.READY, State.SKIPPED)


@record
class Status(NamedTuple):
    """The state of a path; if it is not ready, the reason, and perhaps a command that helps."""

    state: State
    reason: str = ""
    hint: str = ""
    is_readable: bool = False  # a guest that only reads need not wait
    is_unknown: bool = False  # the path may be mistyped

    def is_awaited(self) -> bool:
        """Whether this may become ready, and is waited for."""
        return self.state in AWAITED

    def is_rejected(self) -> bool:
        """Whether waiting cannot help."""
        return self.state in (State.REFUSED, State.UNREADABLE)


READY = Status(State.READY)
ABSENT = Status(State.MISSING, "does not exist")
UNKNOWN = Status(State.UNKNOWN, "not checked yet")


def check_disk(required: Required, facts: StorageFacts) -> Status:
    """Whether the required path, links resolved, is a usable block device or a regular file. May block.

    The reason why a path does not exist is looked for only if `facts` explains.
    """
    return status_of(*check_layers(required, facts))


def status_of(state: State, layer: Layer) -> Status:
    """The status of a disk on these layers, which is ready unless something is wrong with them."""
    if layer.cause is None:
        return READY
    reason, hint, is_readable, is_unknown = layer.cause
    return Status(state, reason[:MAX_REASON], hint[:MAX_REASON], is_readable, is_unknown)


def check_layers(required: Required, facts: StorageFacts) -> tuple[State, Layer]:
    """The layers of a disk, and its state if something is wrong with them. May block."""
    path = existing_path(required.path)
    try:
        status = os.stat(path)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            return State.NOT_READY, check_file(path, status, required, facts)
        if kind == stat.S_IFBLK:
            return State.NOT_READY, check_block_device(status.st_rdev, required._replace(path=path), facts)
        problem = Problem(f"is {FILE_KINDS[kind]}, neither a block device nor a regular file")
    except (FileNotFoundError, NotADirectoryError):
        if required.is_boot_file and os.path.isdir(os.path.dirname(path)) and not facts.find(path):
            return State.REFUSED, stacked(path, "file", Problem("does not exist, although its file system is mounted"))
        return State.MISSING, explain_missing(path, facts)
    except (OSError, ValueError) as error:
        problem = Problem(f"cannot be checked: {error_text(error)}")
        # An automount, or FUSE or NFS without its server.
        is_gone = isinstance(error, OSError) and error.errno in GONE_ERRORS
        where = longest_above(path, facts.planned_mounts) if is_gone and facts.explains else ""
        if where not in ("", "/"):
            plan = facts.planned_mounts[where]
            problem = Problem(f"{where}: {error_text(error)} ({plan.file} mounts {plan.source} there)")
    return State.NOT_READY, stacked(path, "path", problem)


GONE_ERRORS = (errno.EHOSTDOWN, errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT)


def check_block_device(number: int, required: Required, facts: StorageFacts) -> Layer:
    """The block device with this number, and why a guest cannot use it according to the kernel or udev."""
    try:
        name = os.path.basename(os.readlink(device_link(number)))
    except FileNotFoundError:
        mounted = os.path.isdir(f"{SYS}/dev/block")
        why = "the kernel has no such block device" if mounted else f"{SYS}, which describes it, is not mounted"
        return stacked(required.path, "path", Problem(f"is a device file, but {why}"))
    facts.numbers[name] = f"{os.major(number)}:{os.minor(number)}"
    layer = facts.layer(name)
    problem = None
    if layer.cause is None:
        problem = check_mounted(name, required, facts) or check_writable(name, required)
        problem = problem or check_drbd_role(name, required, facts)
        if problem is None and udev_runs():
            problem = check_udev(name, facts, is_disk=True)
    return stacked(required.path, "link", problem, layer)


def check_drbd_role(name: str, required: Required, facts: StorageFacts) -> Problem | None:
    """A DRBD device that is not Primary, and that nothing promotes when a guest starts."""
    state = drbd_state(name, facts) if name.startswith("drbd") else DrbdState()
    if state.role == "Primary":
        return None
    resources, minor = facts.drbd_resources, name[len("drbd") :].partition("p")[0]
    resource = next((item for item, text in resources.items() if has_minor(text, minor)), "RESOURCE")
    text = resources.get(resource, "")
    # Of several settings, the last one counts.
    words = re.findall(r'allow-two-primaries(?:\s+"?(\w+)"?)?\s*;', text)
    is_shared = facts.shares and words[-1:] in ([""], ["yes"])
    # Version 9 becomes Primary by itself when it is opened, unless drbd.conf forbids that.
    promotes = state.is_version_9 and re.findall(r'auto-promote\s+"?(\w+)', text)[-1:] != ["no"]
    if (promotes or required.promotes) and (state.peer_role != "Primary" or is_shared):
        return None
    if state.peer_role == "Primary":
        return Problem(f"DRBD is {state.role}, and its peer is Primary", "drbdadm status")
    peer = ", and its peer, where the guest may be running, is not connected" if state.peer_role == "Unknown" else ""
    return Problem(f"DRBD is {state.role}{peer}", f"drbdadm primary {resource}")


def check_writable(name: str, required: Required) -> Problem | None:
    """A device that is read-only, if the guest writes to it."""
    hint = hint_if_read_only(name) if required.writes else ""
    return Problem("is read-only, but the guest writes to it", hint, is_readable=True) if hint else None


def hint_if_read_only(name: str) -> str:
    """The command that makes a read-only device writable, or shows why it is not; empty if it is writable."""
    # DRBD 9 is read-only until it is opened for writing.
    is_read_only = not name.startswith("drbd") and attribute(device_directory(name), "ro") == "1"
    return device_kind(name)[2].format(device_path(name)) if is_read_only else ""


def check_mounted(name: str, required: Required, facts: StorageFacts) -> Problem | None:
    """A disk that is mounted on this host; Xen's block script refuses it unless both only read it."""
    places = facts.mounted.get(name, ()) if required.by_script else ()
    for where, is_written in places:
        if is_written or required.writes:
            reason = f"is mounted on {where} on this host, and Xen refuses to share it"
            is_own = where == "/" or where in facts.planned_mounts
            hint = "give the guest its own disk" if is_own else f"umount {shell_word(where)}"
            return Problem(reason, hint, is_readable=not is_written)
    return None


def check_file(path: str, status: os.stat_result, required: Required, facts: StorageFacts) -> Layer:
    """A regular file: it may be empty, on the wrong file system, or lack a backing file. May block."""
    mount = facts.mount_above(os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path))
    if mount.cause and (required.writes or not mount.cause.is_readable):
        return stacked(path, "file", None, mount)
    problem = None
    if status.st_size == 0:
        problem = Problem("is empty (0 bytes)")
    elif required.by_script and required.writes and not status.st_mode & 0o222:  # see Xen's tools/hotplug/Linux/block
        hint = f"chmod u+w {shell_word(path)}"
        problem = Problem("has no write permission, but the guest writes to it", hint, is_readable=True)
    elif required.by_script and facts.mounted_images:
        problem = check_mounted(facts.mounted_images.get(os.path.realpath(path), ""), required, facts)
    image = stacked(path, "file", problem) if problem else image_layer(path, required, facts)
    return image._replace(below=(mount, *image.below))


def image_layer(path: str, required: Required, facts: StorageFacts) -> Layer:
    """An image and its backing files: QEMU's docs/interop/qcow2.rst. May block.

    The chain is followed as far as the images say that the next one is qcow2, because a guest can write anything to a
    raw image; one that only its owner may read is taken to be complete.
    """
    versions = {"qcow": (1,), "qcow2": (2, 3)}.get(required.format, ())
    header = read_part(path, 0, QCOW_HEADER) if versions and required.depth < MAX_BACKING_FILES else b""
    if not header:
        return Layer(path, "file")
    version, offset, length = (int.from_bytes(header[start:end], "big") for start, end in ((4, 8), (8, 16), (16, 20)))
    if not header.startswith(b"QFI\xfb") or version not in versions:
        return stacked(path, "file", Problem(f"is not a {required.format} image"))
    if required.writes and version == 3 and int.from_bytes(header[72:80], "big") & 2:
        reason = "is marked as corrupt, so QEMU does not open it for writing"
        return stacked(path, "file", Problem(reason, f"qemu-img check -r all {shell_word(path)}", is_readable=True))
    name = os.fsdecode(read_part(path, offset, length)) if 0 < offset < 1 << 48 and length < QCOW_HEADER else ""
    # "json:…" and "nbd://…" are not files.
    if not name or re.match("(?!file:)[^/:]*:", name):
        return Layer(path, "file")
    next_format = "qcow2" if b"\xe2\x79\x2a\xca\0\0\0\5qcow2" in header else "raw"
    next_path = os.path.join(os.path.dirname(path), name.removeprefix("file:"))
    behind = check_layers(Required(next_path, format=next_format, depth=required.depth + 1), facts)[1]
    if problem := behind.problem:
        told = Problem(f"backing file {next_path} {problem.reason}", problem.hint)
        behind = behind._replace(problem=told, cause=told if behind.cause is problem else behind.cause)
    return stacked(path, "file", None, behind._replace(kind="backing file"))


def read_part(path: str, offset: int, length: int) -> bytes:
    """Bytes of a file; empty if only QEMU may read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return b""
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def storage_of(required: Required, facts: StorageFacts) -> Layer:
    """The layers of a disk with the names that people know. May block.

    The one to blame, if any, is the layer whose problem is the cause of the first.
    """
    layer = named_layer(check_layers(required, facts)[1], facts)
    for item in layer.below:
        # The device that the path stands for is not shown twice; an LVM volume has two names.
        if item.name == layer.name or item.kind == "LVM volume":
            return item._replace(name=layer.name, problem=item.problem or layer.problem, cause=layer.cause)
    return layer


def named_layer(layer: Layer, facts: StorageFacts, above: str = "") -> Layer:
    """A layer and those below it with the names that people know; `above` is the kind of the layer above."""
    name, kind, below = layer.name, layer.kind, layer.below
    if not kind:
        name, kind = device_path(layer.name), device_kind(layer.name)[1]
        if kind == "disk" and below:
            kind = "LUN"
        if kind in ("disk", "LUN") and above == "multipath map":
            kind = "path"
        if kind == "LVM volume" and above != kind:
            group, volume = split_map_name(os.path.basename(name))
            name, below = f"/dev/{group}/{volume}", (Layer(group, "volume group", None, below),)
    shown = tuple(named_layer(item, facts, above if kind == "volume group" else kind) for item in below)
    return layer._replace(name=name, kind=kind, below=shown)


def device_kind(name: str) -> tuple[str, str, str]:
    """The row of DEVICE_KINDS for a device."""
    uuid = attribute(device_directory(name), "dm/uuid") if name.startswith("dm-") else ""
    row = next(row for row in DEVICE_KINDS if re.match(row[0], uuid) or re.match(row[0], name))
    is_partition = os.path.exists(f"{device_directory(name)}/partition")
    return (row[0], "partition", row[2]) if is_partition else row


# Prefixes of kernel names or device-mapper UUIDs, what people call such a device, and the command that makes it
# writable or shows why it is not. Since Linux 5.12, blockdev only reverts what it has set itself.
DEVICE_KINDS = (
    ("md", "md array", "mdadm --readwrite {}"),
    ("LVM-", "LVM volume", "lvchange -prw {}"),
    ("mpath-", "multipath map", "lsblk -s -o NAME,RO {}"),
    ("part[0-9]+-", "partition", "lsblk -s -o NAME,RO {}"),
    ("CRYPT-", "crypt volume", "cryptsetup status {}"),
    ("dm-", "device-mapper device", "lsblk -s -o NAME,RO {}"),
    ("loop", "loop device", "losetup --list {}"),
    ("drbd", "DRBD device", "drbdadm status"),
    ("nbd", "nbd device", "lsblk -s -o NAME,RO {}"),
    ("bcache", "bcache device", "lsblk -s -o NAME,RO {}"),
    ("zd", "ZFS volume", "zfs get -t volume readonly"),
    ("rbd", "Ceph image", "rbd device list"),
    ("sr", "CD drive", "lsblk -s -o NAME,RO {}"),
    ("", "disk", "blockdev --setrw {}"),
)


# --- Guests: which ones xendomains starts, and how -------------------------------------------------------------------
@record
class Start(NamedTuple):
    """How xendomains treats a file: "restore", "create", or "none" and why."""

    how: str
    reason: str = ""
    instead: str = ""  # how another file starts the guest; empty: it stays down


@record
class Guest(NamedTuple):
    """A file in one of xendomains' directories, its status, and once it has been read, the guest that it configures."""

    domain: Domain
    status: Status = READY
    signature: tuple[int, ...] = ()  # of the file when it was read; a different one means that it has changed
    required: tuple[Required, ...] = ()
    start: Start = Start("create")


def with_starts(guests: Mapping[str, Guest], xendomains: Xendomains, listing: str) -> dict[str, Guest]:
    """The guests by file, in xendomains' order (saved ones first), and how each starts; those that do not are skipped.

    `listing` has the names in the directory of saved guests, separated by blanks.
    """
    starts, taken = starts_of(guests, xendomains, listing)
    planned = {}
    for path, guest in guests.items():
        start = starts[path]
        if start.how == "none":
            if guest.domain.kind != "saved":
                start = start._replace(instead=taken.get(guest.domain.name, start).instead)  # a later file may start it
            guest = guest._replace(status=Status(State.SKIPPED, start.reason), required=())
        planned[path] = guest if start == guest.start else guest._replace(start=start)
    return planned


def starts_of(
    guests: Mapping[str, Guest], xendomains: Xendomains, listing: str
) -> tuple[dict[str, Start], dict[str, Start]]:
    """How xendomains treats each file, and by the names of the guests that start, why no other file starts them.

    Sources: tools/hotplug/Linux/xendomains.in in Xen, and /etc/init.d/xendomains in Debian's xen-utils-common.
    """
    starts = {}
    taken: dict[str, Start] = {}  # by guest name: why no other file starts it
    for path, guest in guests.items():
        name, is_saved, file = guest.domain.name, guest.domain.kind == "saved", os.path.basename(path)
        # Until it has been read, a saved guest is assumed to have the name of its file.
        comes_up = guest.status == READY or (is_saved and guest.status.is_awaited())
        start = Start("restore" if is_saved else "create")
        if re.search(r"\s", path) and (is_saved or not xendomains.is_debian):
            start = Start("none", "cannot be started by xendomains, because its file name contains a blank")
        elif not is_saved and comes_up and name in taken:
            start = taken[name]
        elif not is_saved and not xendomains.is_debian and (word := word_in(listing, file)):
            start = Start(
                "none", f"is skipped by upstream's xendomains, because {xendomains.save}/{word} contains its name"
            )
        else:
            started = Start("none", f"is {start.how}d from {path}", start.how)
            if comes_up:
                taken.setdefault(name, started)
            if is_saved and xendomains.is_debian:
                failed = Start("none", f"Debian's xendomains does not create it, because it fails to restore {path}")
                taken[file] = started if comes_up else failed
        starts[path] = start
    return starts, taken


def word_in(listing: str, name: str) -> str:
    """The file name in the listing in which `grep -w NAME` finds this name; empty if there is none."""
    if not listing:
        return ""
    # For grep, a dot matches any character. Names with its other special characters have never worked.
    pattern = re.escape(name).replace(r"\.", ".")
    match = re.search(rf"\S*(?<!\w){pattern}(?!\w)\S*", listing)
    return match[0] if match else ""


# --- Blocking calls: calls that may never return ---------------------------------------------------------------------
class NoResponse(Exception):
    """The result of a call that has not returned for a while."""

    def __init__(self) -> None:
        super().__init__("no response; is its file server down?")


class BlockingCalls:
    """Makes calls that may block forever, such as stat() on a hard NFS mount whose server is down, in threads.

    One thread makes all calls while they are quick; whenever none has returned for a moment, the number of threads
    doubles. A call that is stuck in the kernel cannot be cancelled: its thread is left behind, which does not keep the
    interpreter from exiting, and the call is not repeated before it has returned. A late answer wakes the main thread,
    and is returned by the next run.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = allocate_lock()  # protects the following, which the threads change as well
        self._since: dict[Key, float] = {}  # when each call in progress was made, as Clock.slept
        self._answers: dict[Key, Any] = {}  # not returned by run() yet

    def run(
        self, purpose: str, calls: Mapping[str, Call], deadline: float, patience: float = STALL_TIMEOUT
    ) -> dict[str, Any]:
        """The results of the calls by path, or the exceptions that they raised; NoResponse for one that is stuck.

        Ends at `deadline` on the monotonic clock, or when no call has returned for `patience` seconds. A call that was
        not started by then is dropped, and missing from the results. Raises Stopped if a signal comes.
        """
        keys = {(purpose, path): path for path in calls}
        with self._lock:
            new = {key for key in keys if key not in self._since and key not in self._answers}
        todo = deque((key, calls[path]) for key, path in keys.items() if key in new)
        try:
            self._make(new, todo, deadline, patience)
        finally:
            with self._lock:
                todo.clear()
        with self._lock:
            stuck = self._stuck()
            answers: dict[str, Any] = {path: NoResponse() for key, path in keys.items() if key in stuck}
            answers.update((path, self._answers[key]) for key, path in keys.items() if key in self._answers)
            self._answers = {key: answer for key, answer in self._answers.items() if key[0] != purpose}
        return answers

    def _make(self, new: set[Key], todo: deque[tuple[Key, Call]], deadline: float, patience: float) -> None:
        """Starts threads for the calls, and waits until all have returned, none does any more, or time is up."""
        threads = answered = 0
        last_return = self._clock.slept
        while new and self._clock.now() < deadline:
            with self._lock:
                returned = len(new & self._answers.keys())
                most = min(len(todo), MAX_THREADS - len(self._since) + len(self._stuck()))
            if returned > answered:
                answered, last_return = returned, self._clock.slept
            silence = self._clock.slept - last_return
            if returned == len(new) or silence >= patience:
                break
            if threads == 0 or silence >= POLL_INTERVAL:
                for _ in range(min(max(threads, 1), most)):
                    with suppress(RuntimeError):  # too many threads for now; it may work the next time
                        self._clock.start_thread(partial(self._work, todo))
                        threads += 1
            self._clock.pause(min(POLL_INTERVAL, deadline - self._clock.now()))
        self._clock.pause(0)  # consumes pending wake-ups, which would end the next pause

    def _stuck(self) -> list[Key]:
        return [key for key, since in self._since.items() if self._clock.slept - since >= STUCK_AFTER]

    def _work(self, todo: deque[tuple[Key, Call]]) -> None:
        """Makes calls, in one of the threads, as long as there are any."""
        while True:
            with self._lock:
                if not todo:
                    return
                key, call = todo.popleft()
                self._since[key] = self._clock.slept
            try:
                answer = call()
            except Exception as error:
                answer = error  # whatever it is: it must not affect other paths
            with self._lock:
                del self._since[key]
                self._answers[key] = answer
                if not todo:
                    self._clock.wake()


# --- Snapshot: all guests and all their disks, even if a file system does not respond --------------------------------
LOST_AND_FOUND = "lost+found"  # mke2fs(8) creates it, and the directory may be a file system of its own
# Errors that do not go away by waiting.
LASTING_ERRORS = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


@record
class Directory(NamedTuple):
    """One of xendomains' directories, the files in it, and the status of the directory itself."""

    kind: str
    files: Sequence[str] = ()
    status: Status = READY
    warning: str = ""


@record
class Need(NamedTuple):
    """The path of a disk, a configuration or a directory of configurations, a guest that needs it, and its status."""

    path: str
    guest: str
    status: Status

    @property
    def key(self) -> tuple[str, str]:
        """The path and the guest, which identify it whatever its status."""
        return self.path, self.guest


@record
class Snapshot(NamedTuple):
    """What is known about the guests about to start: directories by path, guests by file, disks by path."""

    directories: Mapping[str, Directory] = {}
    guests: Mapping[str, Guest] = {}
    disks: Mapping[str, Status] = {}
    read: Mapping[str, Guest] = {}  # all guests, including those not asked for
    needed: Mapping[str, Required] = {}  # what the guests require of each disk

    def disk_status(self, required: Required) -> Status:
        """The status of a disk with this requirement."""
        status = self.disks[required.path] if required.path else Status(State.SKIPPED, required.reason)
        return READY if status.is_readable and not required.writes else status

    def is_complete(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self.awaits_files() and not any(status.is_awaited() for status in self.disks.values())

    def awaits_files(self) -> bool:
        """Whether a directory or configuration is awaited; if so, not all guests and disks are known yet."""
        directories, guests = self.directories.values(), self.guests.values()
        return any(item.status.is_awaited() for item in directories) or any(item.status.is_awaited() for item in guests)

    def guest_status(self, guest: Guest) -> Status:
        """The status of a guest: that of its file, unless something that it needs is rejected or awaited."""
        statuses = [guest.status, *map(self.disk_status, guest.required)]
        bad = [item for item in statuses if item.is_rejected()] or [item for item in statuses if item.is_awaited()]
        return bad[0] if bad else guest.status

    def waiting_guests(self) -> set[str]:
        """The names of the guests that cannot start yet."""
        return {item.guest for item in self.missing() if item.path not in self.directories}

    def missing(self) -> list[Need]:
        """What the guests are still waiting for, each path once per guest."""
        needs = [Need(path, f"the guests in {path}", item.status) for path, item in self.directories.items()]
        for file, guest in self.guests.items():
            name = guest.domain.name
            needs.append(Need(file, name, guest.status))
            needs += [Need(item.path, name, self.disk_status(item)) for item in guest.required if item.path]
        return list(dict.fromkeys(need for need in needs if need.status.is_awaited()))


class Watcher:
    """Checks the guests about to start and their disks, and remembers what is known about them.

    Anything that cannot be checked in time, because of a file system or a busy host, keeps its last known status.
    """

    def __init__(self, xendomains: Xendomains, settings: Settings, clock: Clock, names: Sequence[str] = ()) -> None:
        self.xendomains = xendomains
        self.settings = settings
        self.clock = clock
        self.names = names  # of the guests asked for, or of their files; empty: all guests
        self.calls = BlockingCalls(clock)
        self.known = Snapshot()
        self.min_read_interval = 0.0  # the shortest time before files are read, or reasons looked for, again
        self.shares = True  # see StorageFacts
        self._read: dict[str, Guest] = {}  # by file, whether xendomains starts them or not
        self._read_at = self._explain_at = float("-inf")  # when to read files and look for reasons again
        self._turn = 0  # index of the ready disk that is checked again next

    def look(self, deadline: float, *, recheck_ready: bool = False) -> Snapshot:
        """The current snapshot, by `deadline` at the latest; the previous one if nothing has changed.

        Reads only files that have changed. Checks the disks that were not ready, and a few of those that were, in
        rotation, because they may have disappeared again; with `recheck_ready`, all. Raises Stopped if a signal comes.
        """
        if recheck_ready or self.clock.now() >= self._read_at or self.known.awaits_files():
            explains = recheck_ready or self.clock.now() >= self._explain_at
            self._read_files(deadline, StorageFacts(explains=explains))
        return self.check_disks(deadline, recheck_ready=recheck_ready)

    def check_disks(self, deadline: float, *, recheck_ready: bool = False) -> Snapshot:
        """Like look(), but does not read directories and configurations."""
        disks = dict(self.known.disks)
        ready = [path for path, status in disks.items() if status == READY]
        checked = [path for path, status in disks.items() if status != READY]
        checked += ready if recheck_ready else self._next_to_recheck(ready)
        absent = absent_devices(path for path in checked if disks[path].state is State.MISSING)
        patience = STALL_TIMEOUT_AT_END if recheck_ready else STALL_TIMEOUT
        answers = self._check([path for path in checked if path not in absent], deadline, patience, explains=False)
        for path, answer in answers.items():
            disks[path] = updated_status(disks[path], answer, is_last=recheck_ready)
        if recheck_ready or self.clock.now() >= self._explain_at:
            silent = [path for path, answer in answers.items() if isinstance(answer, Exception)]
            disks.update(self._explain({path: disks[path] for path in checked if path not in silent}, deadline))
        if disks != self.known.disks:
            self.known = self.known._replace(disks=disks)
        return self.known

    def _next_to_recheck(self, ready: Sequence[str]) -> Sequence[str]:
        """The ready disks that are checked again in this look."""
        first = self._turn if self._turn < len(ready) else 0
        self._turn = first + MAX_RECHECKED
        return ready[first : self._turn]

    def _explain(self, disks: Mapping[str, Status], deadline: float) -> dict[str, Status]:
        """The status of the disks that are not ready, with reasons."""
        spent = time.process_time()
        paths = [path for path, status in disks.items() if status.state in (State.MISSING, State.NOT_READY)]
        answers = self._check(paths, deadline, STALL_TIMEOUT, explains=True)
        # With hundreds of disks on a slow host this takes long, and must not delay noticing those that become ready.
        seconds = (time.process_time() - spent) / MAX_REASON_SHARE
        self._explain_at = self.clock.now() + max(MAX_REASON_AGE, seconds, self.min_read_interval)
        return {path: answer for path, answer in answers.items() if isinstance(answer, Status)}

    def _check(self, paths: Sequence[str], deadline: float, patience: float, *, explains: bool) -> dict[str, Any]:
        facts = StorageFacts(explains=explains, shares=self.shares)
        calls: dict[str, Call] = {path: partial(check_disk, self.known.needed[path], facts) for path in paths}
        return self.calls.run("explain" if explains else "check", calls, deadline, patience)

    def results(self, purpose: str, calls: Mapping[str, Call]) -> dict[str, Any]:
        """The results of other calls that may block, by path, without those that failed or were too slow."""
        answers = self.calls.run(purpose, calls, self.clock.now() + MAX_FIRST_LOOK)
        return {path: answer for path, answer in answers.items() if not isinstance(answer, Exception)}

    def _patience(self, deadline: float) -> float:
        """How long a step may go without an answer: at most a third of what is left, to leave time for the others."""
        return min(STALL_TIMEOUT, (deadline - self.clock.now()) / 3)

    def _read_files(self, deadline: float, facts: StorageFacts) -> None:
        known = self.known
        directories = self._list_directories(deadline, facts)
        files = self._read_guests(directories, deadline, facts)
        self._read_at = self.clock.now() + max(READ_INTERVAL, self.min_read_interval)
        if directories == known.directories and files == self._read:
            return
        self._read = files
        saved = [file for item in directories.values() if item.kind == "saved" for file in item.files]
        by_libvirt = {file: guest for file, guest in files.items() if guest.domain.kind == "libvirt"}
        others = {file: guest for file, guest in files.items() if file not in by_libvirt}
        read = {**with_starts(others, self.xendomains, " ".join(map(os.path.basename, saved))), **by_libvirt}
        guests = guests_named(read, self.names)
        needed = required_paths(guests)
        disks = {path: known.disks[path] if known.needed.get(path) == needed[path] else UNKNOWN for path in needed}
        self.known = Snapshot(directories, guests, disks, read, needed)

    def _list_directories(self, deadline: float, facts: StorageFacts) -> dict[str, Directory]:
        """The directories with their files, in the order in which xendomains starts guests: saved ones first."""
        given = self.xendomains
        kinds = {given.save: "saved", given.auto: "auto", given.libvirt: "libvirt"}
        before = self.known.directories
        known = {path: before.get(path, Directory(kind, status=UNKNOWN)) for path, kind in kinds.items() if path}
        # The default directories exist once they are needed; xendomains creates the one for saved guests.
        setting = "[paths] auto" if self.settings.auto else "XENDOMAINS_AUTO"
        settings = {given.auto: setting, given.libvirt: "[paths] libvirt", DEFAULT_AUTO: "", Settings().libvirt: ""}
        calls: dict[str, Call] = {
            path: partial(list_directory, path, directory, settings.get(path, ""), facts)
            for path, directory in known.items()
        }
        answers = self.calls.run("list", calls, deadline, self._patience(deadline))
        directories = {}
        for path, directory in known.items():
            answer = answers.get(path, directory)
            if isinstance(answer, Exception):
                answer = directory._replace(status=Status(State.NOT_READY, error_text(answer)))
            if answer is not None:
                directories[path] = answer
        return directories

    def _read_guests(
        self, directories: Mapping[str, Directory], deadline: float, facts: StorageFacts
    ) -> dict[str, Guest]:
        """The guests that the files in these directories configure, by file."""
        known = self._read
        files = {file: directory.kind for directory in directories.values() for file in directory.files}
        before = {file: known[file] if file in known else unread_guest(file, kind) for file, kind in files.items()}
        read = partial(read_guest, settings=self.settings, facts=facts, is_debian=self.xendomains.is_debian)
        calls: dict[str, Call] = {file: partial(read, guest) for file, guest in before.items()}
        answers = self.calls.run("read", calls, deadline, self._patience(deadline))
        guests = {}
        for file, guest in before.items():
            answer = answers.get(file, guest)
            if isinstance(answer, NoResponse):
                # Its disks, if they are known, are still needed.
                answer = guest._replace(status=Status(State.NOT_READY, error_text(answer)), signature=())
            elif isinstance(answer, Exception):
                answer = unread_guest(file, files[file])._replace(status=status_of_rejected(answer))
            if answer is not None:
                guests[file] = unless_ignored(answer, self.settings)
        return guests


def absent_devices(paths: Iterable[str]) -> set[str]:
    """The paths below /dev at which there is certainly nothing.

    This looks only in devtmpfs, which never blocks, and follows no links, so the main thread may call it. It takes a
    tenth of the time of a call in a thread, and hundreds of disks may be missing at each event.
    """
    device = os.lstat("/dev").st_dev
    found: dict[str, str] = {"/dev": "directory", "/": "unknown"}

    def look_at(path: str) -> str:
        parent = os.path.dirname(path)
        if parent not in found:
            found[parent] = look_at(parent)
        if found[parent] != "directory":
            return found[parent]
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return "nothing"
        except (OSError, ValueError):
            return "unknown"
        return "directory" if stat.S_ISDIR(status.st_mode) and status.st_dev == device else "unknown"

    return {path for path in paths if path.startswith("/dev/") and look_at(path) == "nothing"}


def updated_status(before: Status, answer: Status | Exception, *, is_last: bool) -> Status:
    """The status of a disk after this answer; an exception becomes its reason, and affects no other disk.

    `is_last` in the last look.
    """
    if is_last and isinstance(answer, NoResponse) and before.state in (State.MISSING, State.NOT_READY):
        return before  # there may have been too little time, and `before` says more
    status = Status(State.NOT_READY, error_text(answer)) if isinstance(answer, Exception) else answer
    return status if status.state is not before.state else before  # `before` may have a better reason


def guests_named(guests: Mapping[str, Guest], names: Sequence[str]) -> Mapping[str, Guest]:
    """The guests that match these names or patterns: by name, or else by file name, with or without its extension."""
    chosen: set[str] = set()
    for name in names:
        by_name = {file for file, guest in guests.items() if is_named(guest.domain.name, name)}
        by_file = {file for file in guests if is_named(os.path.basename(file), name)}
        by_stem = {file for file in guests if is_named(os.path.splitext(os.path.basename(file))[0], name)}
        # A file that cannot be read yet may be that guest's.
        unread = {file for file, guest in guests.items() if guest.status.is_awaited()}
        chosen |= by_name or by_file or by_stem or unread
    return {file: guest for file, guest in guests.items() if file in chosen} if names else guests


def is_named(name: str, pattern: str) -> bool:
    """Whether the name equals the pattern, or matches it as a shell pattern."""
    return name == pattern or matches_any((name,), (pattern,))


def list_directory(path: str, before: Directory, setting: str, facts: StorageFacts) -> Directory | None:
    """The files in a directory that the shell's * matches, sorted; None if it does not exist and need not.

    `setting` is the setting that names the directory; empty if it need not exist.
    """
    try:
        with os.scandir(path) as found:
            names = (entry.name for entry in found if not entry.name.startswith(".") and entry.name != LOST_AND_FOUND)
            first = sorted(islice(names, MAX_FILES))
            is_crowded = next(names, None) is not None
    except OSError as error:
        status = status_of_unreadable(path, error, before.status, facts)
        if status is None and setting:
            status = Status(State.UNREADABLE, f"does not exist; correct {setting}, or create it")
        return Directory(before.kind, status=status) if status else None
    warning = f"contains more than {MAX_FILES} files; only {MAX_FILES} of them are read" if is_crowded else ""
    return Directory(before.kind, [os.path.join(path, name) for name in first], warning=warning)


def status_of_unreadable(path: str, error: OSError, before: Status, facts: StorageFacts) -> Status | None:
    """The status of a file or directory that cannot be read; None if it does not exist (any more).

    A dangling link is awaited, because its target may be mounted later; so is the end of a possibly temporary error.
    """
    if isinstance(error, FileNotFoundError):
        if not os.path.islink(path):
            return None
        if facts.explains:
            return status_of(State.MISSING, explain_missing(path, facts))
        return before if before.state is State.MISSING else ABSENT
    lasts = error.errno in LASTING_ERRORS
    advice = " (run it as root)" if error.errno == errno.EACCES and os.geteuid() != 0 else ""
    return Status(State.UNREADABLE if lasts else State.NOT_READY, f"cannot be read: {error_text(error)}{advice}")


def status_of_rejected(error: Exception) -> Status:
    """The status of a file that was read, but is not a valid configuration."""
    refused = isinstance(error, ConfigError) and not isinstance(error, Unsupported)
    return Status(State.REFUSED if refused else State.UNREADABLE, error_text(error))


def unread_guest(file: str, kind: str) -> Guest:
    """A guest of which only the file is known."""
    return Guest(Domain(os.path.basename(file), file, kind), UNKNOWN)


def unless_ignored(guest: Guest, settings: Settings) -> Guest:
    """The guest, skipped if its file is awaited, but matches [ignore] domains."""
    if guest.status.is_awaited() and matches_any((os.path.basename(guest.domain.source),), settings.ignored_domains):
        return guest._replace(status=Status(State.SKIPPED, "ignored: file matches [ignore] domains"))
    return guest


def read_guest(before: Guest, settings: Settings, facts: StorageFacts, is_debian: bool = False) -> Guest | None:
    """The guest that a file configures: `before` if it has not changed, None if xendomains skips it. May block."""
    end = time.monotonic() + MAX_REWRITING
    while True:
        guest = read_guest_once(before, settings, facts, is_debian)
        if guest is None or guest.status.state is not State.REFUSED or time.monotonic() >= end:
            return guest
        if not 0 <= time.time() - guest.signature[MODIFIED] / 1e9 < MAX_REWRITING:
            return guest
        time.sleep(POLL_INTERVAL)


MODIFIED = 3  # index of the modification time (in ns) in Guest.signature


def signature_of(status: os.stat_result) -> tuple[int, ...]:
    """The attributes of a file that show whether it has changed."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_domain(path: str, kind: str, is_debian: bool) -> Domain | None:
    """The domain that a file configures; None if it is skipped at boot. Raises OSError and ConfigError."""
    if kind == "libvirt":
        return read_libvirt_domain(path) if is_started_by_libvirt(path) else None
    if kind == "auto":
        return domain_from_xl_config(os.fsdecode(read_file(path)), path, kind)
    if not os.path.isfile(path):
        return None
    with open_regular_file(path) as file:
        if file.read(len(SAVED_PREFIX)) != SAVED_PREFIX and not is_debian:
            return None
        file.seek(0)
        text, is_json = saved_configuration(file)
    return (domain_from_json if is_json else domain_from_xl_config)(text, path, kind)


def read_guest_once(before: Guest, settings: Settings, facts: StorageFacts, is_debian: bool = False) -> Guest | None:
    """Like read_guest(), but does not wait for a half-written file to be completed."""
    path, kind = before.domain.source, before.domain.kind
    unread = unread_guest(path, kind)
    try:
        status = os.stat(path)
        signature = signature_of(status)
        if kind == "libvirt" and not is_absent(managed_save_of(path)):
            signature += signature_of(os.stat(managed_save_of(path)))
        if signature == before.signature:
            return before
        unread = unread._replace(signature=signature)
        if (domain := read_domain(path, kind, is_debian)) is None:
            return None
    except OSError as error:
        if kind == "libvirt" and isinstance(error, FileNotFoundError):
            return None  # libvirt goes through the files and looks for links to them, so it never sees this link
        unreadable = status_of_unreadable(path, error, before.status, facts)
        return unread._replace(status=unreadable, signature=()) if unreadable else None
    except ConfigError as error:
        return unread._replace(status=status_of_rejected(error))
    warnings = [
        f"the target '{disk.target}' of disk {disk.vdev} is relative; libxl looks for /{disk.target}"
        for disk in domain.disks
        if required_by(disk).path == f"/{disk.target}"
    ]
    if distrust := why_not_trusted(path, status):
        warnings.insert(0, f"{distrust}; it is used anyway")
    domain = domain._replace(warnings=(*domain.warnings, *warnings))
    required = tuple(required_unless_ignored(domain, disk, settings) for disk in domain.all_disks())
    return Guest(domain, READY, signature, required, Start("restore" if domain.saved else "create"))


def required_paths(guests: Mapping[str, Guest]) -> dict[str, Required]:
    """What the guests require, by path; for a disk of several guests, what satisfies all of them."""
    paths: dict[str, Required] = {}
    for required in (item for guest in guests.values() for item in guest.required if item.path):
        other = paths.setdefault(required.path, required)
        if other != required:
            writes, promotes = other.writes or required.writes, other.promotes and required.promotes
            by_script = other.by_script or required.by_script
            paths[required.path] = other._replace(writes=writes, promotes=promotes, by_script=by_script)
    return paths


# --- Wait: until everything is ready or time is up -------------------------------------------------------------------
def wait(watcher: Watcher, report: Callable[[Snapshot], None], deadline: float) -> Snapshot:
    """Waits until nothing is missing, or until `deadline` on the monotonic clock; returns the last snapshot.

    Reports all snapshots but the last. The pauses grow as set in [polling]; an event from a block device, or a late
    answer, ends a pause early. Raises Stopped if a signal comes.
    """
    from tenacity import Retrying, retry_if_result, wait_exponential

    clock, settings = watcher.clock, watcher.settings
    # Listening starts before the first look, so no event is lost between a look and a pause.
    events = block_events()

    def attempt() -> Snapshot:
        snapshot = watcher.look(end_of_look(deadline, clock))
        if clock.now() >= deadline:
            return watcher.check_disks(end_of_look(deadline, clock), recheck_ready=True)
        if not snapshot.is_complete():
            report(snapshot)
        return snapshot

    return Retrying(
        sleep=lambda seconds: sleep_until(min(clock.now() + seconds, deadline), clock, events),
        wait=wait_exponential(multiplier=settings.first, exp_base=settings.factor, max=settings.longest),
        retry=retry_if_result(lambda snapshot: clock.now() < deadline and not snapshot.is_complete()),
    )(attempt)


def end_of_look(deadline: float, clock: Clock) -> float:
    """The deadline of a look that begins now, in a wait with this deadline."""
    return max(deadline, clock.now() + MAX_LAST_LOOK)


def sleep_until(end: float, clock: Clock, events: Any) -> None:
    """Sleeps until `end`, or until a block device event or a late answer."""
    started = clock.now()
    if clock.pause(end - started, events.fileno() if events else -1):
        # Events come in bursts.
        clock.pause(min(started + MIN_SLEEP, end) - clock.now())
        drain(events.fileno(), clock)


def drain(descriptor: int, clock: Clock) -> None:
    """Discards pending events: that something has happened is enough to know."""
    end = clock.now() + MIN_SLEEP
    while clock.now() < end:
        try:
            os.read(descriptor, MAX_ATTRIBUTE)
        except BlockingIOError:
            return
        except OSError:
            pass  # the kernel's buffer has overflowed, and some events are lost


def block_events() -> Any:
    """A pyudev monitor that listens for block device events; None without pyudev or netlink."""
    try:
        import pyudev

        # Without udev, there are only the kernel's own events.
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), "udev" if udev_runs() else "kernel")
        monitor.filter_by("block")
        monitor.start()
    except (ImportError, OSError):
        return None
    return monitor


# --- Output: journal, systemd's status, table, JSON ------------------------------------------------------------------
def printable(text: str) -> str:
    """The text, with characters that are not printable escaped, so that no name can forge a message."""
    return text if text.isprintable() else "".join(c if c.isprintable() else escaped(c) for c in text)


def escaped(character: str) -> str:
    """The character as an escape; a byte of a file name that is not UTF-8 as \\xNN."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, longest: int) -> str:
    """The text, without its middle if it is longer than that; its end says what is wrong."""
    return text if len(text) <= longest else f"{text[: longest // 2]} […] {text[-(longest // 2) :]}"


class Journal:
    """Sends messages to systemd's journal, with fields, or to standard error.

    A slow reader must not delay the boot: a message that cannot be delivered soon is dropped, and a later one says how
    many were. Each method raises Stopped if a signal comes meanwhile.
    """

    def __init__(self, level: int, stream: IO[str] | None, clock: Clock) -> None:
        self.level = level
        self._stream = stream
        self._clock = clock
        self._dropped = 0
        self._descriptor = descriptor_for(stream)
        self._is_journal = is_journal(self._descriptor)
        self._is_terminal = os.isatty(self._descriptor)
        self._shows_progress = False

    def log(self, level: int, text: str, **fields: str) -> None:
        """Sends one message, with fields such as DISK= for the journal."""
        self.log_all([(level, text, fields)], self._clock.now() + MAX_SENDING)

    def log_all(self, messages: Sequence[Message], end: float, summary: Message | None = None) -> None:
        """Sends messages until `end` on the monotonic clock, and a summary, which the journal gets at any level.

        The journal also gets the entries about single disks, which repeat the message about all of them.
        """
        level = INFO if self._is_journal else self.level
        shown = [item for item in messages if item[0] <= self.level or (item[0] <= level and "DISK" in item[2])]
        if shown:
            self._log_dropped(end)
        for position, message in enumerate(shown):
            if self._dropped or not self._deliver(message, end):
                self._dropped += len(shown) - position
                break
        if summary and (summary[0] <= self.level or self._is_journal):
            end = self._clock.now() + MAX_SENDING
            self._log_dropped(end)
            self._deliver(summary, end)

    def _log_dropped(self, end: float) -> None:
        text = f"{plural(self._dropped, 'message')} dropped here because the reader was too slow."
        if self._dropped and self._deliver((WARNING, text, {}), end):
            self._dropped = 0

    def progress(self, text: str) -> None:
        """Shows a line on a terminal, which the next one or a message overwrites."""
        if self._is_terminal and self.level > ERR:
            from shutil import get_terminal_size

            columns = get_terminal_size().columns - 1
            text = printable(text)[:columns]
            while display_width(text) > columns:
                text = text[:-1]
            self._write(text, self._clock.now() + MAX_SENDING)
            self._shows_progress = True

    def _deliver(self, message: Message, end: float) -> bool:
        """Sends a message; returns False if it was not sent by `end`, True even if nobody can receive it."""
        level, text, fields = message
        text = printable(shortened(text, MAX_MESSAGE))
        if not self._is_journal:
            return self._write(f"{text}\n", end)
        with suppress(OSError), closing(connected_socket(JOURNAL_SOCKET)) as journal:
            if not self._can_write(journal.fileno(), end):
                return False
            journal.send(journal_entry(level, text, fields))
            return True
        return self._write(f"<{level}>{text}\n", end)  # journald is not running; sd-daemon(3)

    def _write(self, text: str, end: float) -> bool:
        if self._shows_progress:
            text = f"\r\033[K{text}"
            self._shows_progress = False
        data = text.encode(getattr(self._stream, "encoding", None) or "ascii", "backslashreplace")
        try:
            while data and self._descriptor >= 0:
                if not self._can_write(self._descriptor, end):
                    return False
                data = data[os.write(self._descriptor, data[: select.PIPE_BUF]) :]  # as much as fits into any pipe
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            pass  # nobody listens; the wait goes on
        return True

    def _can_write(self, descriptor: int, end: float) -> bool:
        """Whether the reader accepts data soon."""
        end = min(end, self._clock.now() + MAX_SENDING / 2)
        while not self._clock.pause(end - self._clock.now(), descriptor, select.POLLOUT):
            if self._clock.now() >= end:
                return False
        return True


def descriptor_for(stream: IO[str] | None) -> int:
    """The descriptor to write to for a stream; -1 if nobody listens.

    A terminal may block even if poll(2) reports it as writable, so it is opened again, in non-blocking mode: the
    stream's own descriptor is shared with others, such as a shell.
    """
    descriptor = -1
    with suppress(OSError, ValueError):
        descriptor = stream.fileno() if stream is not None else -1
        if os.isatty(descriptor):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"{PROC}/self/fd/{descriptor}", flags)
    return descriptor


def is_journal(descriptor: int) -> bool:
    """Whether a descriptor is connected to the journal: $JOURNAL_STREAM in systemd.exec(5)."""
    with suppress(OSError):
        status = os.fstat(descriptor)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def journal_entry(level: int, text: str, fields: Mapping[str, str]) -> bytes:
    """A message in the journal's native protocol, which is stable: https://systemd.io/JOURNAL_NATIVE_PROTOCOL."""
    entry = {"MESSAGE": text, "PRIORITY": str(level), "SYSLOG_IDENTIFIER": COMMAND, **fields}
    lines = [f"{name}={printable(shortened(value, MAX_MESSAGE))}\n" for name, value in entry.items()]
    return "".join(lines).encode(errors="backslashreplace")


def notify(*assignments: str) -> bool:
    """Sends assignments to systemd if it listens: sd_notify(3), whose protocol is stable and may be used directly.

    Returns False if they must be sent again because systemd could not accept them at the moment.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    lines = [printable(shortened(assignment, MAX_MESSAGE)) for assignment in assignments]
    try:
        if address:
            with closing(connected_socket(f"\0{address[1:]}" if address.startswith("@") else address)) as unix:
                unix.send("\n".join(lines).encode())
    except BlockingIOError:
        return False
    except OSError:
        pass  # nobody listens
    return True


def extended_timeout(seconds: float) -> str:
    """The assignment that tells systemd that the wait may take that many more seconds: sd_notify(3)."""
    # The settings, the first and the last look, and the last messages take time as well.
    return f"EXTEND_TIMEOUT_USEC={(seconds + MAX_SOURCING + MAX_FIRST_LOOK + MAX_SENDING_ALL) * 1e6:.0f}"


def connected_socket(address: str) -> Socket:
    """A non-blocking datagram socket connected to this address. Raises OSError."""
    # The module written in C: socket takes 20 times as long to import, and a boot with all disks present needs this.
    import _socket

    unix = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    try:
        unix.connect(address)
    except OSError:
        unix.close()
        raise
    return unix


class Reporter:
    """Reports snapshots: what is new to the journal, and the current state to systemd and a terminal.

    Between two reminders, disks that come and go are reported once, and at most MAX_LINES messages are sent.
    """

    def __init__(self, journal: Journal, clock: Clock, started: float, timeout: float) -> None:
        self._journal = journal
        self._clock = clock
        self._started = started
        self._timeout = timeout
        self._snapshot = Snapshot()  # the latest one
        self._missing: list[Need] = []  # in the latest snapshot
        self._reminder = started + FIRST_REMINDER
        self._gap = 2 * FIRST_REMINDER
        self._logged: set[tuple[str, str]] = set()  # since the last reminder
        self._lines = 0  # sent since the last reminder, except those about what was found
        self._announced: set[tuple[str, str]] = set()  # paths and guests that were reported as missing
        self._status = ""
        self._summary = ""  # of what is missing
        self._problems: dict[str, list[Finding]] = {}  # those reported, by file or directory
        self._found: dict[str, float] = {}  # seconds after which each path was found

    def report(self, snapshot: Snapshot) -> None:
        """Reports what is new since the last snapshot, and reminds of what is still missing."""
        has_changed = snapshot is not self._snapshot
        messages = self._news(snapshot)
        now = self._clock.now()
        is_due = now >= self._reminder
        if is_due:
            self._reminder, self._gap = now + self._gap, 2 * self._gap
            self._logged.clear()
            self._lines = 0
            known = [item for item in self._missing if item.key in self._announced or item.status == UNKNOWN]
            reminders = messages_by_cause(known, WARNING, "still waiting for {counts}", waiting_message)
            messages += limited([message for message in reminders if message[0] == WARNING])
        if has_changed or is_due:
            new = self._new_problems()
            new += messages_by_cause(self._new_waits(), WARNING, "waiting for {counts}", waiting_message)
            messages += limited(new, MAX_LINES - self._lines)
            self._lines += len(new)
        self._journal.log_all(messages, min(now + MAX_SENDING_ALL, self._started + self._timeout))
        self._report_status()

    def _news(self, snapshot: Snapshot) -> list[Message]:
        """Messages about what has been found since the last snapshot."""
        if snapshot is self._snapshot:
            return []
        before, self._missing, self._snapshot = self._missing, snapshot.missing(), snapshot
        self._summary = summary_of(self._missing) if self._missing else ""
        paths = {item.path for item in self._missing}
        messages: list[Message] = [(DEBUG, f"Checked {size_of(snapshot)}; still missing: {len(paths)}.", {})]
        seconds = round(self._clock.now() - self._started, 3)
        found: dict[str, list[str]] = {}
        for item in before:
            if item.path not in paths:
                found.setdefault(item.path, []).append(item.guest)
        announced = {path for path, _ in self._announced}
        messages += [found_message(*item, snapshot, seconds) for item in found.items() if item[0] in announced]
        self._announced = {key for key in self._announced if key[0] in paths}
        # A path that has disappeared again does not count as found.
        self._found = {path: when for path, when in self._found.items() if path not in paths}
        self._found.update(dict.fromkeys(found, seconds))
        return messages

    def _is_news(self, path: str, what: str) -> bool:
        """Whether this has not been logged since the last reminder; also marks it as logged."""
        is_new = (path, what) not in self._logged
        self._logged.add((path, what))
        return is_new

    def _new_problems(self) -> list[Message]:
        messages: list[Message] = []
        found: dict[str, list[Finding]] = {}
        for finding in check_files(self._snapshot):
            found.setdefault(finding.file, []).append(finding)
        self._problems = {file: before for file, before in self._problems.items() if file in found}
        for file, findings in found.items():
            if findings == self._problems.get(file) or not self._is_news(file, "problem"):
                continue
            self._problems[file] = findings
            guest = self._snapshot.guests.get(file)
            fields = {"SOURCE": file, "DOMAIN": guest.domain.name} if guest else {"SOURCE": file}
            if guest and guest.status.state is State.REFUSED and guest.domain.kind != "libvirt":
                fields["MESSAGE_ID"] = MESSAGE_REFUSED
            messages += [(WARNING, finding.sentence(), fields) for finding in findings]
        return messages

    def _new_waits(self) -> list[Need]:
        """What is missing and not reported yet, except for paths that have not been checked yet."""
        new = [
            item
            for item in self._missing
            if item.key not in self._announced
            and item.status.state is not State.UNKNOWN
            and self._is_news(item.path, f"waiting for {item.guest}")
        ]
        self._announced.update(item.key for item in new)
        return new

    def _report_status(self) -> None:
        # It stays empty if there was never anything to wait for.
        status = "All disks are ready." if self._status else ""
        if self._missing:
            seconds = self._clock.now() - self._started
            status = f"Waiting for {self._summary}"
            limit = f" of {format_time_span(self._timeout)}" if self._timeout < FOREVER else ""
            self._journal.progress(f"{seconds:.0f}s{limit}: {status}")
        if status != self._status:
            left = self._started + self._timeout - self._clock.now()
            if notify(f"STATUS={status}", extended_timeout(max(0.0, left))):
                self._status = status

    def log_end(self, snapshot: Snapshot, stopped_by: int = 0, patterns: Sequence[str] = ()) -> str:
        """Logs how the wait ended, and what is still missing; returns the result as one word.

        `patterns` are those in [late] domains.
        """
        messages = self._news(snapshot) + limited(self._new_problems())
        seconds = self._clock.now() - self._started
        lost = [snapshot.guests[file] for file in lost_guests(snapshot)]
        down = {guest.domain.name for guest in lost if not guest.status.is_rejected()}
        guests = join_limited(sorted(down.union(item.guest for item in self._missing)), MAX_NAMES)
        # Files that cannot be used may not be meant to be guests.
        files = [guest.domain.source for guest in lost if guest.status.is_rejected()]
        useless = [f"no guest starts from {join_limited(files, MAX_NAMES)}"] if files else []
        if stopped_by:
            result, level = "stopped", WARNING
            waiting = f", still waiting for {self._summary}" if self._missing else ""
            text = f"Stopped by {signal.Signals(stopped_by).name} after {plural(round(seconds), 'second')}{waiting}."
        elif self._missing:
            result, level = "timeout", ERR
            messages += limited(missing_messages(self._missing, self._timeout))
            later = " ".join(start_later(snapshot.waiting_guests(), patterns)).strip()
            text = "; ".join([f"These guests will probably not come up: {guests}", *useless])
            text += f" ({later})." if later else "."
            notify(f"STATUS=Timed out waiting for {self._summary}")
        else:
            result, level = "ready", INFO
            text = f"Everything is ready for {size_of(snapshot)}."
            if lost:
                losses = [f"these guests will not come up: {guests}"] if down else []
                text = f"No disk is missing, but {'; '.join(losses + useless)}."
            self._report_status()
        missing = len({item.path for item in self._missing})
        fields = {"RESULT": result, "WAITED_SEC": f"{seconds:.3f}", "MISSING": str(missing)}
        summary = (level, text, {"MESSAGE_ID": MESSAGE_SUMMARY, **fields})
        self._journal.log_all(messages, self._clock.now() + MAX_SENDING_AT_END, summary)
        return result

    def as_last_wait(self, result: str) -> dict[str, Any]:
        """The record of the wait, for programs and the command `last`."""
        waited = self._clock.now() - self._started
        return {
            "version": JSON_VERSION,
            "boot_id": read_text_file("/proc/sys/kernel/random/boot_id").strip(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - waited)),
            "waited": round(waited, 3),
            "timeout": self._timeout,
            "result": result,
            **as_record(self._snapshot, self._found),
        }


@record
class Cause(NamedTuple):
    """Why something is missing, a command that helps, and all that is missing because of it."""

    reason: str
    hint: str
    needs: Sequence[Need]

    @property
    def paths(self) -> list[str]:
        """What is missing, each path once."""
        return list(dict.fromkeys(need.path for need in self.needs))

    @property
    def word(self) -> str:
        """As in "the disks are missing"."""
        return unready_word(self.needs[0].status)

    @property
    def differs_by_path(self) -> bool:
        """Whether each path has a cause of its own, even if all of them read the same."""
        reasons = {need.status.reason for need in self.needs}
        return len(reasons) > 1 or re.match("(does|is|has|cannot) ", self.reason) is not None

    @property
    def text(self) -> str:
        """The reason, and unless one command helps all of them, the first paths."""
        is_clear = self.hint and not self.differs_by_path
        return self.reason if is_clear else f"{self.reason} ({join_limited(self.paths, MAX_NAMED)})"


def with_hint(reason: str, hint: str | None) -> str:
    """The reason, and the command that helps if there is one."""
    return f"{reason}; try: {hint}" if hint else reason


def causes_of(needs: Iterable[Need]) -> list[Cause]:
    """What is missing, by cause; the most frequent cause comes first. Many small ones that differ in names are one."""
    same: dict[tuple[str, str], list[Need]] = {}
    for need in needs:
        same.setdefault((need.status.reason, need.status.hint), []).append(need)
    kinds = {why: without_names(group[0]) if len(group) <= MAX_NAMED else why for why, group in same.items()}
    similar: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for why, kind in kinds.items():
        similar.setdefault(kind, []).append(why)
    causes = []
    for (reason, hint), group in same.items():
        alike = similar[kinds[reason, hint]]
        if len(alike) <= MAX_NAMED:
            causes.append(Cause(reason, hint, group))
        elif alike[0] == (reason, hint):
            needs = [need for why in alike for need in same[why]]
            causes.append(Cause(f"{reason} ({len(alike) - 1} more like this)", hint, needs))
    return sorted(causes, key=lambda cause: -len(cause.needs))


def without_names(need: Need) -> tuple[str, ...]:
    """The state, reason and command, without the words in which those of similar disks differ."""
    names = set(re.split("[/:]", need.path))

    def general(text: str) -> str:
        return " ".join(word for word in text.split() if not re.search("[0-9/]", word) and word not in names)

    return need.status.state.value, general(need.status.reason), general(need.status.hint)


def messages_by_cause(
    needs: Sequence[Need], level: int, about_all: str, about_one: Callable[[Need], str], **fields: str
) -> list[Message]:
    """A message for each cause, or for each disk if few have the same one; then the entries for single disks."""
    messages: list[Message] = []
    entries: list[Message] = []
    for cause in causes_of(needs):
        if len(cause.needs) <= MAX_NAMED:
            messages += [(level, about_one(item), {**fields_of(item), **fields}) for item in cause.needs]
            continue
        verb = "is" if len(cause.paths) == 1 else "are"
        words = about_all.format(counts=counts_of(cause.needs), verb=verb, word=cause.word)
        text = f"{words}: {with_hint(cause.text, cause.hint)}"
        messages.append((level, text, {"REASON": cause.reason, "HINT": cause.hint, **fields}))
        entries += [(INFO, about_one(item), fields_of(item)) for item in cause.needs]
    return messages + entries


def unready_word(status: Status) -> str:
    """As in "the disk is missing"."""
    return "missing" if status.state is State.MISSING else "not ready"


def waiting_message(need: Need) -> str:
    """The message that a disk is awaited, in the words of the 2017 script, and why."""
    return f"still waiting for {need.path} for {need.guest}... ({need.status.reason})"


def missing_messages(needs: Sequence[Need], timeout: float) -> list[Message]:
    """Messages about what is missing at the end of the wait, why, and what to do about it."""
    still, after = ("still ", f" after {format_time_span(timeout)}") if timeout else ("", "")

    def about(need: Need) -> str:
        word, reason = unready_word(need.status), with_hint(need.status.reason, need.status.hint)
        return f"{need.path} for {need.guest} is {still}{word}{after}: {reason}"

    about_all = "{counts} {verb} " + still + "{word}" + after
    return messages_by_cause(needs, ERR, about_all, about, MESSAGE_ID=MESSAGE_MISSING)


def found_message(path: str, guests: Sequence[str], snapshot: Snapshot, seconds: float) -> Message:
    """The message that something is no longer awaited, in the words of the 2017 script."""
    if path in snapshot.disks:
        text = f"disk {path} found"
    elif path in snapshot.guests:
        text = f"configuration {path} found"
    elif path in snapshot.directories and snapshot.directories[path].status == READY:
        text = f"directory {path} found"
    else:
        text = f"{path} is no longer needed"
    fields = {"DISK": path, "DOMAIN": join_limited(guests, MAX_NAMES), "STATE": State.READY.value}
    return WARNING, f"{text} (after {seconds:.0f} seconds)", fields


def limited(messages: list[Message], most: int = MAX_LINES) -> list[Message]:
    """The first `most` messages, and one that says how many more there are."""
    if not 0 < most < len(messages):
        return messages[: max(0, most)]
    text = f"{len(messages) - most} similar messages were left out; see `{COMMAND} list`."
    return [*messages[:most], (messages[most][0], text, {})]


def fields_of(need: Need) -> dict[str, str]:
    """The fields for the journal about something missing."""
    state, reason, hint = need.status.state.value, need.status.reason, need.status.hint
    return {"DISK": need.path, "DOMAIN": need.guest, "STATE": state, "REASON": reason, "HINT": hint}


def counts_of(needs: Sequence[Need]) -> str:
    """The number of disks (or of files that are refused) and guests, as in "2 disks of 1 guest"."""
    paths, guests = {need.path for need in needs}, {need.guest for need in needs}
    noun = "file" if any(need.status.is_rejected() for need in needs) else "disk"
    return f"{plural(len(paths), noun)} of {plural(len(guests), 'guest')}"


def summary_of(needs: Sequence[Need]) -> str:
    """The number of disks and guests, and the first causes or disks, on one line."""
    texts = [f"{item.path} for {item.guest} ({item.status.reason})" for item in needs]
    if len(needs) > MAX_NAMED:
        texts = [cause.text for cause in causes_of(needs)]
    return f"{counts_of(needs)}: {join_limited(texts, MAX_NAMED, '; ')}"


def late_service_runs() -> bool:
    """Whether the service that starts late guests runs; during the wait at boot, whether it is about to."""
    # systemd has these links while a unit runs: unit_export_invocation_id() in its src/core/unit.c.
    runs, waits = (not is_absent(f"{RUN}/systemd/units/invocation:{it}") for it in (LATE_SERVICE, f"{COMMAND}.service"))
    return runs or ((waits or "RUNTIME_DIRECTORY" in os.environ) and is_enabled(LATE_SERVICE))


def start_later(names: set[str], patterns: Sequence[str]) -> tuple[str, str]:
    """How these guests start once their disks are ready: by a service, or by hand, with this command."""
    has_service = late_service_runs()
    by_service = sorted(name for name in names if has_service and matches_any((name,), patterns))
    by_hand = sorted(names.difference(by_service))
    texts = []
    if by_service:
        texts.append(f"{LATE_SERVICE} will start {join_limited(by_service, MAX_NAMES)} once the disks are ready")
    if by_hand:
        one, more = ("the other", "the others") if by_service else ("it", "them")
        once = "" if by_service else "once the disks are ready, "
        texts.append(f"{once}start {one if len(by_hand) == 1 else more} with:")
    which = "".join(f" {shell_word(name)}" for name in by_hand) if len(by_hand) <= MAX_LISTED else ""
    command = f"{COMMAND} start{which}" if by_hand else ""
    return printable(shortened("; ".join(texts), MAX_REASON)), printable(shortened(command, MAX_REASON))


def plural(number: int, noun: str) -> str:
    """A number and its noun, as in "1 disk" and "2 disks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def lost_guests(snapshot: Snapshot) -> dict[str, str]:
    """The files from which no guest can start, however long the wait, and the reason for each."""
    lost = {}
    for file, guest in snapshot.guests.items():
        statuses = [(item.path, snapshot.disk_status(item)) for item in guest.required]
        gone = [f"{path} {status.reason}" for path, status in statuses if status.is_rejected()]
        if guest.status.is_rejected():
            effect = f"{'libvirt' if guest.domain.kind == 'libvirt' else 'xl'} will reject it"
            effect = effect if guest.status.state is State.REFUSED else "its disks are not waited for"
            lost[file] = f"{guest.status.reason}; {effect}"
        elif gone or (guest.start.how == "none" and not guest.start.instead):
            lost[file] = guest.start.reason or "; ".join(gone)
    return lost


def check_directories(snapshot: Snapshot, awaited: str = "its guests are unknown") -> Iterator[Finding]:
    """Directories that cannot be read; those that are awaited only if there is a text to add about them."""
    for path, directory in snapshot.directories.items():
        if directory.status.is_rejected():
            yield Finding(directory.status.reason, is_error=True, file=path)
        elif awaited and directory.status.is_awaited():
            yield Finding(f"{directory.status.reason}; {awaited}", is_error=True, file=path)


def check_files(snapshot: Snapshot, awaited: str = "") -> Iterator[Finding]:
    """Problems with the directories of guests and the files in them.

    Those that are awaited are left out, unless `awaited` is the text to add about them.
    """
    for path, directory in snapshot.directories.items():
        if directory.warning:
            yield Finding(directory.warning, file=path)
    yield from check_directories(snapshot, awaited)
    for file, guest in snapshot.guests.items():
        yield from (Finding(warning, file=file) for warning in guest.domain.warnings)
        if awaited and guest.status.is_awaited():
            yield Finding(f"{guest.status.reason}; {awaited}", is_error=True, file=file)
        if awaited and guest.start.instead == "create":
            problem = f"duplicate guest name; it {guest.start.reason}"
            yield Finding(problem, is_error=True, file=file, guest=guest.domain.name)
    for file, why in lost_guests(snapshot).items():
        guest = snapshot.guests[file]
        yield Finding(why, is_error=True, file=file, guest="" if guest.status.is_rejected() else guest.domain.name)


# --- Records: the guests and what they need, in one form for JSON, tables and the record of a wait --------------------
def as_record(snapshot: Snapshot, found: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The guests, and directories that are not ready, for JSON; `found` has the seconds until each path was found."""
    bad = [(well_formed(path), item) for path, item in snapshot.directories.items() if item.status != READY]
    directories = [{"path": path, "kind": item.kind, **status_as_json(item.status)} for path, item in bad]
    guests = [guest_as_json(guest, snapshot, found) for guest in snapshot.guests.values()]
    return {"guests": guests, "directories": directories}


def guest_as_json(guest: Guest, snapshot: Snapshot, found: Mapping[str, float] | None) -> dict[str, Any]:
    """A guest with its disks and the files that it boots from."""
    rows = []
    for disk, required in zip(guest.domain.all_disks(), guest.required):
        target, path = (well_formed(text) or None for text in (disk.target, required.path))
        row: dict[str, Any] = {"vdev": well_formed(disk.vdev), "target": target, "path": path}
        row.update(status_as_json(snapshot.disk_status(required)))
        if found is not None:
            row["found_after"] = found.get(required.path)
        rows.append(row)
    disks = len(guest.domain.disks)
    status = status_as_json(snapshot.guest_status(guest))
    return {**identity_as_json(guest), **status, "disks": rows[:disks], "boot_files": rows[disks:]}


def identity_as_json(guest: Guest) -> dict[str, str]:
    """The fields that identify a guest, and how xendomains starts it."""
    name, source = well_formed(guest.domain.name), well_formed(guest.domain.source)
    return {"name": name, "kind": guest.domain.kind, "source": source, "start": guest.start.how}


def status_as_json(status: Status) -> dict[str, str | None]:
    """The fields of a status."""
    reason, hint = well_formed(status.reason) or None, well_formed(status.hint) or None
    return {"state": status.state.value, "reason": reason, "hint": hint}


def well_formed(text: str) -> str:
    """The text with lone surrogates, which stand for bytes that are not UTF-8, escaped: they are not valid JSON."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", lambda match: escaped(match.group()), text)


def write_record(path: str, record: Mapping[str, Any]) -> None:
    """Replaces the previous record with this one. Raises OSError; the unit creates the directory."""
    import json

    new = f"{path}.{os.getpid()}"  # another wait may end at the same time
    with open(new, "w") as file:
        file.write(json.dumps(record))  # on one line, because indent= would bypass the fast encoder written in C
    os.replace(new, path)


def problems_in(record: Mapping[str, Any]) -> list[Need]:
    """What is missing or unusable in a record: each guest's disks, or if those are fine, its file; and directories."""
    needs = []
    for guest in record["guests"]:
        name = guest["name"]
        rows = [(disk["path"], disk) for disk in filter(is_problem, disks_in(guest))] or [(guest["source"], guest)]
        needs += [need_from_json(path, name, row) for path, row in rows if is_problem(row)]
    return needs + [need_from_json(row["path"], f"the guests in {row['path']}", row) for row in record["directories"]]


def disks_in(guest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The disks of a guest in a record, and the files that it boots from."""
    return [*guest["disks"], *guest["boot_files"]]


def is_problem(row: Mapping[str, Any]) -> bool:
    """Whether something with this state may keep a guest from starting."""
    return State(row["state"]) not in FINE


def need_from_json(path: str, guest: str, row: Mapping[str, Any]) -> Need:
    """The Need whose status was made into this row by status_as_json()."""
    return Need(path, guest, Status(State(row["state"]), row["reason"] or "", row["hint"] or ""))


# --- Pictures: what list and last show to people ----------------------------------------------------------------------
# SGR in ECMA-48: bold red for what is missing, yellow for what may still come, faint for what is skipped.
STATE_COLOURS = {
    "ready": "32", "missing": "1;31", "not-ready": "1;33", "unknown": "1;33",
    "waiting": "1;33", "skipped": "2", "refused": "1;31", "unreadable": "1;31",
}  # fmt: skip


@record
class Screen(NamedTuple):
    """Where a picture is shown: a terminal of that many columns, or a pipe (0 columns), which gets everything."""

    columns: int = 0
    has_colours: bool = False
    branches: tuple[str, str, str] = ("|-", "`-", "| ")  # of a tree

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour: SGR in ECMA-48."""
        return f"\033[{colour}m{text}\033[0m" if self.has_colours and colour else text


def screen_of(stream: IO[str] | None) -> Screen:
    """The screen at the other end of a stream. $NO_COLOR: no-color.org."""
    screen = Screen()
    if (getattr(stream, "encoding", None) or "").lower() == "utf-8":
        screen = Screen(branches=("├─", "└─", "│ "))
    if stream is None or not stream.isatty():
        return screen
    from shutil import get_terminal_size

    has_colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "", "dumb")
    return screen._replace(columns=get_terminal_size().columns, has_colours=has_colours)


def picture_of_list(record: Mapping[str, Any], screen: Screen) -> list[str]:
    """The causes, the guests and their state, for a terminal."""
    numbers, lines = picture_of_causes(problems_in(record), screen)
    rows: list[Sequence[str]] = [("GUEST", "START", "STATE", "CAUSE")]
    for guest in record["guests"]:
        state = guest_word(State(guest["state"]))
        rows.append((guest["name"], start_words(guest), state, why_not_ready(guest, numbers)))
    return lines + (format_table(rows, screen) if record["guests"] else [])


def start_words(guest: Mapping[str, Any]) -> str:
    """How a guest is started, for people."""
    return f"{guest['start']} (libvirt)" if guest["kind"] == "libvirt" else str(guest["start"])


def guest_word(state: State) -> str:
    """The state of a guest for people: it is the disk that is missing, not the guest."""
    return "waiting" if state in AWAITED else state.value


def why_not_ready(guest: Mapping[str, Any], numbers: Mapping[tuple[str, str], tuple[int, bool]]) -> str:
    """The disks of a guest that are not ready, with the numbers of their causes; or what is skipped and why."""
    found: dict[int, list[str]] = {}
    for disk in filter(is_problem, disks_in(guest)):
        number, is_named = numbers[why_of(disk)]
        found.setdefault(number, []).append(disk["vdev"] if is_named else disk["path"])
    if found:
        return "; ".join(f"{', '.join(disks)}: see [{number}]" for number, disks in found.items())
    if is_problem(guest):
        return f"see [{numbers[why_of(guest)][0]}]"
    ignored = [disk for disk in disks_in(guest) if disk["reason"] in (IGNORED_WITH_GUEST.reason, IGNORED.reason)]
    return guest["reason"] or "; ".join(f"{disk['vdev']} {disk['reason']}" for disk in ignored)


def why_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """The reason for a row's state, and a command that helps."""
    return row["reason"] or "", row["hint"] or ""


def picture_of_causes(
    needs: Iterable[Need], screen: Screen
) -> tuple[dict[tuple[str, str], tuple[int, bool]], list[str]]:
    """The numbers of the causes, by what why_of() returns for a row, and lines about each of them.

    With each number, whether the lines tell which disk it is: they name all, or it does not matter.
    """
    numbers: dict[tuple[str, str], tuple[int, bool]] = {}
    lines = []
    for number, cause in enumerate(causes_of(needs), 1):
        is_named = not cause.differs_by_path or len(cause.paths) <= MAX_NAMED
        numbers.update(((need.status.reason, need.status.hint), (number, is_named)) for need in cause.needs)
        lines += [*picture_of_cause(cause, number, screen), ""]
    return numbers, lines


def picture_of_cause(cause: Cause, number: int, screen: Screen) -> list[str]:
    """Lines about a cause: the reason, what helps, and the disks and guests that it affects."""
    label = f"[{number}] "
    guests: dict[str, list[str]] = {}
    for item in cause.needs:
        guests.setdefault(item.path, []).append(item.guest)
    named = [f"{path} ({join_limited(names, MAX_LISTED)})" for path, names in guests.items()]
    affected = f"{counts_of(cause.needs)}: {join_limited(named, MAX_NAMED)}" if len(named) > 1 else named[0]
    columns = max(screen.columns - len(label), 0)
    reason, disks = (wrapped(printable(shortened(text, MAX_CELL)), columns) for text in (cause.reason, affected))
    # A command is never wrapped, because the first line of one may do something else.
    lines = [*reason, *([printable(f"try: {cause.hint}")] if cause.hint else []), *disks]
    return [screen.paint(f"{label}{lines[0]}", "1"), *(f"{' ' * len(label)}{line}" for line in lines[1:])]


def picture_of_tree(snapshot: Snapshot, layers: Mapping[str, Layer], screen: Screen) -> list[str]:
    """The guests, their disks, and the storage below these, as in `lsblk -s`; the layer at fault is marked."""
    rows: list[Sequence[str]] = [("NAME", "KIND", "STATE")]
    directories = snapshot.directories.items()
    rows += [(path, "directory", f"<-- {item.status.reason}") for path, item in directories if item.status != READY]
    for guest in snapshot.guests.values():
        reason = f": {guest.status.reason}" if guest.status.reason else ""
        rows.append((guest.domain.name, "guest", f"{guest_word(snapshot.guest_status(guest).state)}{reason}"))
        disks = guest.domain.all_disks()
        for disk, required in zip(disks, guest.required):
            status = snapshot.disk_status(required)
            unknown = Layer(required.path or disk.target or "-", "", Problem(status.reason or status.state.value))
            layer = layers.get(required.path, unknown)
            rows += rows_of_layer(layer, "", disk is disks[-1], layer.cause, screen, f"{disk.vdev}  ")
    return format_table(rows, screen)


def rows_of_layer(
    layer: Layer, indent: str, is_last: bool, cause: Problem | None, screen: Screen, label: str = ""
) -> Iterator[Sequence[str]]:
    """The rows of a layer and the layers below it; `is_last` if it is the last branch at its level."""
    branch, last_branch, trunk = screen.branches
    problem, state, hint = layer.problem, State.READY.value, ""
    if problem is not None:
        state = problem.reason.removeprefix(f"{layer.name}: ").removeprefix(f"{layer.name} ")
        if problem == cause:
            state, hint = f"<-- {state}", problem.hint
    elif layer.cause is not None or layer.kind == "file server":  # which is never queried
        state = "-"
    yield f"{indent}{last_branch if is_last else branch}{label}{layer.name}", layer.kind, state, hint
    indent += "  " if is_last else trunk
    for item in layer.below:
        yield from rows_of_layer(item, indent, item is layer.below[-1], cause, screen)


def table_of_disks(record: Mapping[str, Any], screen: Screen, *, with_hints: bool) -> list[str]:
    """A line for each disk, for each guest without known disks, and for each directory that is not ready."""
    rows: list[Sequence[str]] = [("GUEST", "START", "VDEV", "DISK", "STATE", "REASON")]

    def add(guest: str, start: str, vdev: str, path: str, row: Mapping[str, Any]) -> None:
        hint = row["hint"] or "" if with_hints else ""
        rows.append((guest, start, vdev, path, row["state"], row["reason"] or "", hint))

    for directory in record["directories"]:
        add("-", "-", "-", directory["path"], directory)
    for guest in record["guests"]:
        disks = disks_in(guest)
        if not disks:
            is_ready = guest["state"] == State.READY.value
            row = {**guest, "reason": "no disks"} if is_ready else guest
            add(guest["name"], start_words(guest), "-", "-" if is_ready else guest["source"], row)
        for disk in disks:
            add(guest["name"], start_words(guest), disk["vdev"], disk["path"] or disk["target"] or "-", disk)
    return format_table(rows, screen)


def advice_lines(text: str, command: str, screen: Screen) -> list[str]:
    """What start_later() returns, as sentences; a command is never wrapped."""
    text = f"O{text[1:]}" if text.startswith("once ") else text  # a unit's name must not be capitalized
    lines = wrapped(text if command else f"{text}.", screen.columns) if text else []
    return [*lines, f"    {command}"] if command else lines


def footer_of_list(snapshot: Snapshot, xendomains: Xendomains) -> str:
    """The number of guests in each state, and the directories that they were read from."""
    states = [snapshot.guest_status(guest).state for guest in snapshot.guests.values()]
    words = {State.MISSING: "waiting for disks", State.NOT_READY: "waiting for disks", State.UNKNOWN: "not checked yet"}
    counts = Counter(words.get(state, state.value) for state in states)
    parts = ", ".join(f"{count} {word}" for word, count in counts.items())
    places = [place for place in (xendomains.auto, xendomains.save, xendomains.libvirt) if place]
    first = f"{', '.join(places[:-1])} and " if places[1:] else ""
    total = f"{plural(len(states), 'guest')}{': ' if parts else ''}{parts}"
    settings = f" (settings: {xendomains.file})" if xendomains.file else ""
    return f"{total}; read from {first}{places[-1] if places else 'no directory'}{settings}"


def picture_of_last(record: Mapping[str, Any], screen: Screen) -> list[str]:
    """How a wait went: why disks are missing, and after how long each one was found, the slowest first."""
    problems = problems_in(record)
    numbers, lines = picture_of_causes(problems, screen)
    disks: dict[str, dict[str, Any]] = {}
    for guest in record["guests"]:
        for disk in (item for item in disks_in(guest) if item["path"]):
            disks.setdefault(disk["path"], {**disk, "guests": []})["guests"].append(guest["name"])
    for need in problems:
        item = {**status_as_json(need.status), "found_after": None, "guests": [need.guest]}
        disks.setdefault(need.path, item)
    ordered = sorted(disks.items(), key=lambda item: -seconds_until_found(item[1]))
    rows: list[Sequence[str]] = [("AFTER", "DISK", "GUESTS", "STATE", "")]
    longest = max([record["waited"], 1.0])
    for path, disk in ordered:
        seconds = seconds_until_found(disk)
        after = "-" if seconds == float("inf") else f"{seconds:.0f}s"
        if not screen.columns:
            text = with_hint(disk["reason"] or "", disk["hint"])
        elif is_problem(disk):
            text = f"see [{numbers[why_of(disk)][0]}]"
        else:
            text = "#" * round(min(seconds / longest, 1) * MAX_BAR)
        rows.append((after, path, join_limited(disk["guests"], MAX_LISTED), disk["state"], text))
    return (lines if screen.columns else []) + format_table(rows, screen)


def seconds_until_found(disk: Mapping[str, Any]) -> float:
    """The seconds until a disk was found: 0 means at once, infinity means never."""
    return float("inf") if is_problem(disk) else float(disk["found_after"] or 0)


def format_table(rows: Sequence[Sequence[str]], screen: Screen) -> list[str]:
    """The lines of a table, each column as wide as its cells, but the table no wider than the terminal.

    Cells that do not fit are cut in the middle; those in the last column are wrapped. A row may have one cell more, for
    a command that helps, which is never wrapped: the first line of one may do something else.
    """
    cells = [[printable(shortened(cell, MAX_CELL)) for cell in row] for row in rows]
    size = len(cells[0])
    commands = ["".join(row[size:]) for row in cells]
    widths = [max(display_width(row[column]) for row in cells) for column in range(size)]
    last = widths.pop()
    while screen.columns and max(widths) > 8 and head_width(widths) + min(last, MIN_LAST_COLUMN) > screen.columns:
        widths[widths.index(max(widths))] -= 1
    room = max(screen.columns - head_width(widths), 8) if screen.columns else 0
    lines = []
    for row, command in zip(cells, commands):
        head = ""
        for title, cell, width in zip(cells[0], row, widths):
            cell = cut(cell, width)
            colour = STATE_COLOURS.get(cell, "") if title == "STATE" else ""
            head += screen.paint(cell, colour) + " " * (width - display_width(cell) + 2)
        text = with_hint(row[size - 1], command)
        fits = not room or display_width(text) <= room
        first, *more = [text] if fits else wrapped(row[size - 1], room)
        lines.append(f"{head}{first}".rstrip())
        lines += [" " * head_width(widths) + line for line in more]
        if command and not fits:
            advice = f"try: {command}"
            lines.append(" " * min(head_width(widths), screen.columns - display_width(advice)) + advice)
    return lines


def head_width(widths: Sequence[int]) -> int:
    """The width of a table up to its last column."""
    return sum(widths) + 2 * len(widths)


def cut(cell: str, columns: int) -> str:
    """The cell, without its middle if it is wider than that many columns."""
    kept = len(cell)
    while display_width(cell) > columns:
        kept -= 1
        cell = f"{cell[: kept // 2]}…{cell[-(kept // 2) :]}" if kept > 1 else ""
    return cell


def wrapped(text: str, columns: int, indent: str = "") -> list[str]:
    """The text in lines of at most that many columns (0: on one line), indented from the second one on."""
    if not columns or display_width(text) <= columns:
        return [text]
    from textwrap import wrap

    # textwrap counts characters; if some are wide, only half as many are sure to fit on a line.
    is_wide = any(display_width(character) > 1 for character in text)
    width = max(columns // 2, len(indent) + 1) if is_wide else columns
    return wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def display_width(text: str) -> int:
    """The width of the text in columns of a terminal: Unicode Standard Annex #11."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(item) else 2 if east_asian_width(item) in "WF" else 1 for item in text)


# --- Check: what is wrong, and what would break the next boot --------------------------------------------------------
@record
class DiskUse(NamedTuple):
    """A guest's use of a disk; `device` is the kernel's name of it, or if it is a file, the path without links."""

    guest: Guest
    disk: Disk
    required: Required
    device: str

    def finding(self, problem: str, fix: str = "", *, is_error: bool = False) -> Finding:
        """A problem with this disk of this guest."""
        return Finding(problem, fix, is_error, self.guest.domain.source, self.guest.domain.name, self.disk.vdev)


def findings_of(snapshot: Snapshot, watcher: Watcher, options: Options) -> list[Finding]:
    """All problems with the configurations and what they name, and with --reboot, what would not come up again."""
    facts = StorageFacts()
    uses = uses_of(snapshot, watcher)
    # Cluster managers bring up storage themselves.
    reboot = options.reboot and not is_enabled("pacemaker|linstor|ganeti")
    found = [*check_disks_now(snapshot, uses, watcher), *check_files(snapshot, "the next boot will wait for this")]
    found += [*check_sharing(uses), *check_patterns(snapshot, watcher.settings, options.config or CONFFILE)]
    found += [*check_started_twice(snapshot), *check_saved(snapshot)]
    if snapshot.guests and not watcher.names:
        found += check_units(snapshot)
    for use in (use for use in uses if use.guest.domain.source in snapshot.guests):
        found += check_name(use, facts)
        if snapshot.disk_status(use.required) == READY:
            found += check_host_use(use, facts)
            if reboot:
                found += check_reboot(use, facts)
    files = ("", *snapshot.guests, *snapshot.directories)
    return [item for item in dict.fromkeys(found) if not watcher.names or item.file in files]


def uses_of(snapshot: Snapshot, watcher: Watcher) -> list[DiskUse]:
    """The uses of all disks by all guests, even those not asked for, except for disks that do not respond."""
    calls: dict[str, Call] = {path: partial(resolve_device, path) for path in required_paths(snapshot.read)}
    devices = watcher.results("resolve", calls)
    return [
        DiskUse(guest, disk, required, devices[required.path])
        for guest in snapshot.read.values()
        for disk, required in zip(guest.domain.all_disks(), guest.required)
        if required.path in devices
    ]


def resolve_device(path: str) -> str:
    """The kernel's name of the block device at this path, or else the path without links. May block."""
    path = os.path.realpath(existing_path(path))
    with suppress(OSError):
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            return os.path.basename(os.readlink(device_link(status.st_rdev)))
    return path


def check_started_twice(snapshot: Snapshot) -> Iterator[Finding]:
    """Guests that both libvirt and xendomains start."""
    by_xendomains = {file: guest for file, guest in snapshot.read.items() if guest.domain.kind != "libvirt"}
    others = {guest.domain.name: file for file, guest in by_xendomains.items() if guest.status == READY}
    for file, guest in snapshot.guests.items():
        name = guest.domain.name
        if guest.domain.kind == "libvirt" and name in others:
            problem = f"xendomains also starts a guest with this name, from {others[name]}"
            fix = f"{VIRSH} autostart --disable {shell_word(name)}"
            yield Finding(problem, fix, is_error=True, file=file, guest=name)


def check_saved(snapshot: Snapshot) -> Iterator[Finding]:
    """Saved guests whose memory no longer fits their disks, and guests that have been saved twice."""
    logs = guest_logs(XL_LOGS, "xl-")
    known: dict[str, Guest] = {}
    for file, guest in snapshot.guests.items():
        name = guest.domain.name
        if guest.domain.kind != "saved" or guest.status != READY:
            continue
        if is_outdated(guest, logs):
            problem = "is older than the guest's last start, so restoring it would damage the guest's disks"
            yield Finding(problem, f"rm {shell_word(file)}", is_error=True, file=file, guest=name)
        elif (other := known.setdefault(name, guest)) != guest:
            older = min(guest, other, key=lambda item: item.signature[MODIFIED]).domain.source
            problem = f"{other.domain.source} is the same guest, which can be restored only once"
            yield Finding(problem, f"remove the older file, {older}", is_error=True, file=file, guest=name)


def check_disks_now(snapshot: Snapshot, uses: Sequence[DiskUse], watcher: Watcher) -> Iterator[Finding]:
    """Disks that are missing or not ready now, and if the path may be mistyped, the closest one that exists."""
    taken = {use.device for use in uses}
    bad: dict[Need, DiskUse] = {}
    for use in (use for use in uses if use.guest.domain.source in snapshot.guests):
        status = snapshot.disk_status(use.required)
        if status.is_awaited():
            bad[Need(use.required.path, use.guest.domain.name, status)] = use
    mistyped = [need.path for need in bad if need.status.is_unknown]
    calls: dict[str, Call] = {path: partial(closest_path, path, taken) for path in mistyped}
    similar = watcher.results("closest", calls)
    # A path is suggested only once, because two guests must not have the same disk.
    suggested = {other: path for path, other in reversed(similar.items()) if other not in ("", path)}
    suggestions = {path: f"correct the path, perhaps to {other}" for other, path in suggested.items()}
    for cause in causes_of(bad):
        if len(cause.needs) > MAX_NAMED and not cause.differs_by_path:
            named = join_limited(cause.paths, MAX_NAMED)
            problem = f"{counts_of(cause.needs)} {cause.word}: {cause.reason}; disks: {named}"
            yield Finding(problem, cause.hint, is_error=True)
            continue
        for need in cause.needs:
            fix = suggestions.get(need.path, need.status.hint)
            yield bad[need].finding(f"{need.path} is {cause.word}: {need.status.reason}", fix, is_error=True)


def closest_path(path: str, taken: Container[str], *, is_directory: bool = False) -> str:
    """The existing path that is most similar to this one; empty if there is none, or a guest uses it. May block."""
    from difflib import get_close_matches

    if os.path.exists(path):
        return path
    parent = closest_path(os.path.dirname(path), (), is_directory=True)
    similar = get_close_matches(os.path.basename(path), list_names(parent), MAX_LISTED, 0.75) if parent else []
    found = [item for item in (os.path.join(parent, name) for name in similar) if os.path.isdir(item) is is_directory]
    return found[0] if found and resolve_device(found[0]) not in taken else ""


def check_sharing(uses: Sequence[DiskUse]) -> Iterator[Finding]:
    """Disks, or parts of disks, that two guests use and one of them writes to: Xen's block script refuses that."""
    by_device: dict[str, list[DiskUse]] = {}
    for use in uses:
        by_device.setdefault(use.device, []).append(use)
    for device, sharing in by_device.items():
        above = [other for name in devices_above(device) for other in by_device.get(name, ())]
        for use in sharing:
            # A saved guest and its configuration are the same guest.
            others = [item for item in (*sharing, *above) if item.guest.domain.name != use.guest.domain.name]
            users = {item.guest.domain.name for item in others}
            writers = {item.guest.domain.name for item in others if item.disk.writes}
            if writers:
                problem = f"{use.required.path} is also written to by {guests_in_words(writers)}"
            elif users and use.disk.writes:
                problem = f"{use.required.path} is also used by {guests_in_words(users)}"
            else:
                continue
            yield use.finding(f"{problem}, and Xen refuses to share it", "give each guest its own disk", is_error=True)


def guests_in_words(names: Iterable[str]) -> str:
    """The names as in "guest web" and "guests db, web"."""
    ordered = sorted(names)
    noun = "guest" if len(ordered) == 1 else "guests"
    return f"{noun} {join_limited(ordered, MAX_LISTED)}"


def check_patterns(snapshot: Snapshot, settings: Settings, file: str) -> Iterator[Finding]:
    """Patterns in [ignore] that match nothing."""
    guests = [guest for guest in snapshot.read.values() if not guest.status.is_awaited()]
    if len(guests) < len(snapshot.read) or snapshot.awaits_files():
        return  # the patterns may match something that cannot be read yet
    domains = [name for guest in guests for name in (guest.domain.name, os.path.basename(guest.domain.source))]
    needs = [(required_by(disk).path, disk.target) for guest in guests for disk in guest.domain.all_disks()]
    disks = [name for path, target in needs for name in (path, older_path(path), target)]
    ignored = [("domains", item, domains) for item in settings.ignored_domains]
    ignored += [("disks", item, disks) for item in settings.ignored_disks]
    for key, pattern, names in ignored:
        if not matches_any(names, (pattern,)):
            yield Finding(f"[ignore] {key} {quoted(pattern)} matches nothing", "correct or remove it", file=file)


def check_units(snapshot: Snapshot) -> Iterator[Finding]:
    """Units that will not run at boot, or that conflict with xendomains."""
    kinds = {guest.domain.kind for guest in snapshot.guests.values()}
    links = [f"{ETC}/systemd/system/{unit}.service.wants/{COMMAND}.service" for unit in ("libvirtd", "virtxend")]
    if kinds == {"libvirt"}:
        if not is_enabled(LATE_SERVICE) and not any(map(os.path.lexists, links)):
            problem = f"{LATE_SERVICE} is not enabled, so a guest of libvirt whose disk is late stays down"
            yield Finding(problem, f"systemctl enable {LATE_SERVICE}")
        return
    for unit in ("xendomains.service", f"{COMMAND}.service"):
        state = output_of("systemctl", "is-enabled", unit).strip()
        if state in ("disabled", "masked"):
            verb = "enable" if state == "disabled" else "unmask"
            yield Finding(f"{unit} is {state}, so it does not run at boot", f"systemctl {verb} {unit}")
    for unit in ("libvirtd.service", "virtxend.service"):
        conflicts = output_of("systemctl", "show", "--property=Conflicts", unit)
        if "xendomains.service" in conflicts and output_of("systemctl", "is-enabled", unit).strip() == "enabled":
            problem = f"{unit} conflicts with xendomains.service, so systemd may start only one of them at boot"
            fix = "start all guests with one of them, and disable the other"
            yield Finding(problem, fix if "libvirt" in kinds else f"systemctl disable {unit}", is_error=True)


# Names given in the order in which devices appear, by the kernel, or by mdadm to arrays that mdadm.conf does not name.
NUMBERED = "nvme[0-9]+n|dm-|loop|nbd|zd|rbd|bcache|mmcblk|sr"
UNSTABLE_NAME = f"/dev/((sd|hd|vd|xvd)[a-z]{{1,3}}[0-9]*|(md12[0-9]|({NUMBERED})[0-9]+)(p[0-9]+)?)"
# Links that udev names after what a device is, the best first.
STABLE_NAMES = ("/dev/disk/by-id/dm-name-", "/dev/disk/by-id/md-name-", "/dev/disk/by-id/", "/dev/disk/by-path/")


def check_name(use: DiskUse, facts: StorageFacts) -> Iterator[Finding]:
    """A name that may refer to another disk after a reboot."""
    path = use.required.path
    match = re.fullmatch(UNSTABLE_NAME, path)
    if match and array_name(match[1]) not in facts.arrays:
        links = sorted(link for item in facts.devices if item.name == match[1] for link in item.links)
        links = [link for link in links if "/lvm-pv-uuid-" not in link]  # a clone has the same UUID
        stable = next((link for kind in STABLE_NAMES for link in links if link.startswith(kind)), "")
        fix = f"use {stable}" if stable else ""
        yield use.finding(f"{path} may refer to a different disk after a reboot", fix)


def check_host_use(use: DiskUse, facts: StorageFacts) -> Iterator[Finding]:
    """A disk in use by this host. Xen's block script refuses it if it is mounted, and host or guest write to it."""
    swaps = [os.path.basename(os.path.realpath(path)) for path, *_ in facts.table(f"{PROC}/swaps")]
    path, fix, writes = use.required.path, "give the guest its own disk", use.disk.writes
    for device in [use.device, *devices_above(use.device)]:
        what = path if device == use.device else f"{device_path(device)} on {path}"
        mounted = [where for where, is_written in facts.mounted.get(device, ()) if writes or is_written]
        if mounted or (writes and device in swaps):
            taken = f"is mounted on {mounted[-1]}" if mounted else "is swap space"
            yield use.finding(f"{what} {taken} on this host", fix, is_error=True)
            return
    if writes and (parts := [device_path(item) for item in holders_of(use.device)]):
        yield use.finding(f"{path} is part of {join_limited(parts, MAX_LISTED)} on this host", fix)


def devices_above(name: str) -> list[str]:
    """The devices built on this one: its partitions, its holders, and what is built on those."""
    above = [name]
    for item in above:
        directory = device_directory(item)
        parts = [part for part in list_names(directory) if os.path.exists(f"{directory}/{part}/partition")]
        above += [other for other in parts + list_names(f"{directory}/holders") if other not in above]
    return above[1:]


def holders_of(name: str) -> list[str]:
    """What this host has built on a device: not the partitions of a map, nor a guest's LVM volumes on a map."""
    ours = ("part", "LVM-") if name.startswith("dm-") else ("part",)
    holders = list_names(f"{device_directory(name)}/holders")
    return [item for item in holders if not attribute(device_directory(item), "dm/uuid").startswith(ours)]


def check_reboot(use: DiskUse, facts: StorageFacts) -> Iterator[Finding]:
    """Storage that is up now, but would not come up at the next boot."""
    layers = [use.device]
    for name in layers:
        layers += [item for item in devices_below(name) if item not in layers]
    why_not_persistent = why_mount_not_persistent if "/" in use.device else why_device_not_persistent
    for problem in filter(None, [why_not_persistent(layer, facts) for layer in layers]):
        yield use.finding(f"after a reboot, {use.required.path} will be missing: {problem.reason}", problem.hint)


def is_enabled(names: str) -> bool:
    """Whether a service whose name matches this regular expression is started at boot."""
    scripts = list_names(f"{ETC}/rc3.d", "S.*")
    for directory in list_names(f"{ETC}/systemd/system", r".*\.(wants|requires)"):
        scripts += list_names(f"{ETC}/systemd/system/{directory}")
    return any(re.search(names, script) for script in scripts)


def why_device_not_persistent(name: str, facts: StorageFacts) -> Problem | None:
    """Why a device will be missing after a reboot, regardless of the layers below it."""
    directory = device_directory(name)
    mapped, uuid = (attribute(directory, f"dm/{key}") for key in ("name", "uuid"))
    if re.fullmatch("(loop|nbd)[0-9]+", name):
        units = f"{ETC}/systemd/system"
        files = [f"{ETC}/{item}" for item in ("rc.local", "rc.d/rc.local", "init.d/boot.local")]
        files += [f"{units}/{item}" for item in list_names(units, r".*\.service")]
        scripts = re.search("losetup|nbd-client", "\n".join(map(facts.text, files)))
        is_known = scripts or name in [words[0] for words in facts.table(f"{ETC}/nbdtab")]
        return None if is_known else Problem(f"nothing sets up {name} at boot", "add a unit that does")
    if target := iscsi_session(name, facts)[0]:
        startups = {startup for (item, _), startup in facts.iscsi_nodes.items() if item == target}
        # Without a record, the firmware or the initramfs has logged in.
        if startups and startups.isdisjoint(AT_BOOT):
            update = f"iscsiadm -m node -T {target} -o update -n node.startup -v automatic"
            return Problem(f"the host does not log in to target {target} at boot", update)
    if re.match("CRYPT-(LUKS|PLAIN)", uuid):
        return why_not_opened(mapped, facts)
    if uuid.startswith("LVM-"):
        return why_not_activated(mapped, facts)
    if name.startswith("drbd") and not is_enabled("drbd"):
        return Problem("no service that brings up DRBD is enabled", "systemctl enable drbd.service")
    return None


def why_not_opened(mapped: str, facts: StorageFacts) -> Problem | None:
    """Why a LUKS volume is not opened at boot: crypttab(5), and the command line of the kernel."""
    lines = facts.device_table("crypt")
    if mapped not in lines and mapped.removeprefix("luks-") not in facts.text(f"{PROC}/cmdline"):
        return Problem(f"{mapped} is not in /etc/crypttab", "add a line for it")
    if mapped in lines and "noauto" in lines[mapped][1]:
        return Problem(f"{mapped} has the option noauto in /etc/crypttab", "remove noauto")
    return None


def why_not_activated(mapped: str, facts: StorageFacts) -> Problem | None:
    """Why LVM does not activate a volume at boot: lvm.conf(5), and the flags that lvchange(8) sets."""
    group, volume = split_map_name(mapped)
    text = re.sub("#.*", "", facts.text(f"{ETC}/lvm/lvm.conf"))
    activated = re.search(r"\bauto_activation_volume_list\s*=\s*\[(.*?)\]", text, re.DOTALL)
    named = re.findall('"([^"/]*)[^"]*"', activated[1]) if activated else [group]
    if group not in named and not any(item.startswith("@") for item in named):
        return Problem(f"auto_activation_volume_list in /etc/lvm/lvm.conf does not list volume group {group}", "add it")
    backup, path = facts.volume_group(group), f"{group}/{volume}"
    of_group, of_volume = (backup.text, backup.volumes.get(volume, "")) if backup else ("", "")
    if has_flag(of_group, "NOAUTOACTIVATE"):
        fix = f"vgchange --setautoactivation y {group}"
        return Problem(f"volume group {group} is not activated automatically", fix)
    if has_flag(of_volume, "NOAUTOACTIVATE"):
        return Problem(f"{path} is not activated automatically", f"lvchange --setautoactivation y {path}")
    if has_flag(of_volume, "ACTIVATION_SKIP"):
        return Problem(f"{path} has the activation skip flag", f"lvchange --setactivationskip n {path}")
    return None


def why_mount_not_persistent(path: str, facts: StorageFacts) -> Problem | None:
    """Why a file will be missing after a reboot: its file system was mounted by hand."""
    above = [words for words in facts.mounts if path.startswith(f"{words[4].rstrip('/')}/")]
    kinds = {words[4]: words[words.index("-") + 1] for words in above}
    where = max(kinds, key=len, default="/")
    if where == "/" or kinds[where] == "zfs" or "autofs" in [words[words.index("-") + 1] for words in above]:
        return None
    if re.match("nfs|cifs", kinds[where]):  # the server's own mounts below an export appear as mounts here
        where = min((item for item in kinds if kinds[item] == kinds[where]), key=len)
    plan = facts.planned_mounts.get(where)
    if plan is None:
        return Problem(f"the file system mounted on {where} is not in /etc/fstab", "add a line for it")
    if plan.at_boot or plan.file != "/etc/fstab":  # units can be required by others in many ways
        return None
    return Problem(f"{where} has the option noauto in /etc/fstab", "remove noauto")


# --- Start: the guests that are down, each as soon as its disks are ready --------------------------------------------
@record
class Outcome(NamedTuple):
    """The outcome for a guest, which is a key of OUTCOMES, and the reason."""

    guest: Guest
    result: str
    reason: str = ""
    is_in_progress: bool = False  # our own xl is still starting it


# The exit status for each outcome, and the level and text of its message.
OUTCOMES: Mapping[str, tuple[int, int, str]] = {
    "started": (EXIT_READY, INFO, "guest {} has been started."),
    "restored": (EXIT_READY, INFO, "guest {} has been restored."),
    "running": (EXIT_READY, DEBUG, "guest {} is already running."),
    "skipped": (EXIT_READY, DEBUG, "guest {} is skipped: {}."),
    "ready": (EXIT_READY, DEBUG, "guest {} would be started."),
    "waiting": (EXIT_TIMED_OUT, WARNING, "guest {} is still waiting for {}."),
    "refused": (EXIT_USAGE, ERR, "guest {} was not started: {}."),
    "failed": (EXIT_USAGE, ERR, "guest {} could not be started: {}."),
}


def start_guests(watcher: Watcher, options: Options, journal: Journal, started: float) -> int:
    """Starts the guests that are down and whose disks are ready, one at a time; returns the exit status.

    Goes on for `options.wait` seconds, or until there is nothing to wait for. Raises Stopped if a signal comes, and
    ConfigError if xl does not work here or a name is wrong.
    """
    clock, deadline = watcher.clock, started + options.wait
    # [ignore] domains may list guests because they start later. All files are read, to find guests that are saved.
    xendomains = watcher.xendomains
    if options.wait and not options.guests and xendomains.libvirt and is_inactive("xendomains.service"):
        xendomains = Xendomains(libvirt=xendomains.libvirt)  # its guests are not meant to start
    watcher = Watcher(xendomains, watcher.settings._replace(ignored_domains=()), clock)
    watcher.min_read_interval, watcher.shares = START_READ_INTERVAL, bool(options.guests)
    reporter = Reporter(journal, clock, started, min(options.wait, FOREVER))
    # Listening starts before the first look, so no event is lost.
    events = block_events() if options.wait else None
    starts = Starter(watcher, options, journal)
    seen, waiting, recheck = Snapshot(), Snapshot(), True
    while True:
        snapshot = watcher.look(clock.now() + MAX_FIRST_LOOK, recheck_ready=recheck)
        if recheck or snapshot is not seen:
            seen = snapshot
            starts.update(snapshot)
            guests = {item.guest.domain.source: item.guest for item in starts.waiting.values()}
            waiting = snapshot._replace(guests=guests)
        if options.wait:
            reporter.report(waiting)
        ready, ends = starts.ready(), starts.next_tries()
        if ready and recheck:
            starts.try_guest(ready[0], MAX_TURN if options.wait else MAX_XL)
        elif ready:
            recheck = True  # one of its disks may have disappeared again
        elif clock.now() >= deadline or not (starts.waiting or snapshot.awaits_files()):
            break
        else:
            recheck = bool(ends) or starts.awaits_libvirt  # to notice a disk that disappears
            sleep_until(min(clock.now() + START_PAUSE, deadline, *ends), clock, events)
    outcomes = starts.outcomes()
    clock.release_signals()
    return show_outcomes(outcomes, seen, journal, options)


class Starter:
    """Starts guests; those with a final outcome are in `settled`, those that may still start in `waiting`, by name."""

    def __init__(self, watcher: Watcher, options: Options, journal: Journal) -> None:
        self._watcher = watcher
        self._options = options
        self._journal = journal
        self._running = running_guests(watcher)
        self._libvirt_is_done = self.awaits_libvirt = False
        self._next: dict[str, tuple[float, Outcome]] = {}  # when to try again, and the outcome until then
        self._pauses: dict[str, Iterator[float]] = {}  # before the remaining tries
        self.settled: dict[str, Outcome] = {}
        self.waiting: dict[str, Outcome] = {}

    def update(self, snapshot: Snapshot) -> None:
        """Updates which guests may be started now."""
        self.waiting = {}
        left = [item.domain.kind for item in snapshot.guests.values() if item.domain.name not in self.settled]
        # libvirt does not answer before it has tried to start its guests at this boot.
        if "libvirt" in left and not self._libvirt_is_done:
            self._libvirt_is_done = ask(self._watcher, *VIRSH.split(), "list", limit=MAX_XL) != ""
        self.awaits_libvirt = "libvirt" in left and not self._libvirt_is_done
        for name, outcome in outcomes_of(snapshot, self._options, self._watcher.settings, self._running).items():
            if name in self.settled:
                continue
            if outcome.guest.domain.kind == "libvirt" and outcome.result == "ready" and self.awaits_libvirt:
                outcome = outcome._replace(result="waiting", reason=f"libvirt (`{VIRSH} list` fails)")
            if outcome.result == "waiting":
                self._next.pop(name, None)  # once a lost disk is back, the next try follows at once
            if outcome.result == "waiting" or (outcome.result == "ready" and not self._options.dry_run):
                self.waiting[name] = outcome
            else:
                self._settle(outcome)

    def ready(self) -> list[Guest]:
        """The guests that may be started now."""
        late = {name for name, (end, _) in self._next.items() if end > self._watcher.clock.now()}
        return [item.guest for name, item in self.waiting.items() if item.result == "ready" and name not in late]

    def next_tries(self) -> list[float]:
        """The times at which guests are tried again."""
        return [end for end, _ in self._next.values() if end > self._watcher.clock.now()]

    def try_guest(self, guest: Guest, limit: float) -> None:
        """Starts a guest, or if that fails, schedules another try as long as any are left."""
        name = guest.domain.name
        try:
            outcome = start_guest(guest, self._watcher, limit)
        except (OSError, ValueError) as error:
            outcome = Outcome(guest, "failed", f"its lock in {LOCKS} cannot be taken ({error_text(error)})")
        now, before = self._watcher.clock.now(), self._next[name][1] if name in self._next else None
        if outcome.result == "failed" and self._options.wait:
            if pause := next(self._pauses.setdefault(name, iter(RETRIES)), 0.0):
                why = f"another attempt in {format_time_span(pause)}, because {outcome.reason}"
                log_outcome(outcome._replace(result="waiting", reason=why), self._journal, self._options)
                self._next[name] = (now + pause, outcome)
                return
            outcome = outcome._replace(reason=f"{outcome.reason} (no further attempts)")
        if before and before.is_in_progress:
            if outcome.result == "waiting":
                outcome = before  # our own xl holds the lock
            elif outcome.result == "running":
                outcome = outcome._replace(result="restored" if guest.start.how == "restore" else "started")
        if outcome.result != "waiting":
            self._settle(outcome)
            return
        if outcome != before:
            log_outcome(outcome, self._journal, self._options)
        self._next[name] = (now + START_PAUSE, outcome)

    def outcomes(self) -> list[Outcome]:
        """The final outcomes for all guests."""
        for name, outcome in list(self.waiting.items()):
            if name not in self.settled:
                self._settle(self._next.get(name, (0.0, outcome))[1])
        return list(self.settled.values())

    def _settle(self, outcome: Outcome) -> None:
        self.settled[outcome.guest.domain.name] = outcome
        log_outcome(outcome, self._journal, self._options)


def select_guests(snapshot: Snapshot, names: Sequence[str]) -> list[Guest]:
    """The guests with these names, or all, each with the file that it starts from. Raises ConfigError for a wrong name.

    A saved guest comes first even if it cannot be restored, because its state would be lost if it were created afresh.
    """
    if unknown := unknown_name(snapshot, names):
        raise ConfigError(unknown)
    selected: set[str] = set()
    for name in names:
        guests = guests_named(snapshot.read, (name,)).values()
        # Files that cannot be read yet count only if no others match.
        read = {guest.domain.name for guest in guests if not guest.status.is_awaited()}
        selected |= read or {guest.domain.name for guest in guests}
    by_name: dict[str, Guest] = {}
    for guest in snapshot.guests.values():
        if not guest.start.instead and (not names or guest.domain.name in selected):
            other = by_name.setdefault(guest.domain.name, guest)
            if other.domain.kind == "auto" and other.status.is_rejected():
                by_name[guest.domain.name] = guest  # libvirt's
    return list(by_name.values())


def outcomes_of(
    snapshot: Snapshot, options: Options, settings: Settings, running: Container[str]
) -> dict[str, Outcome]:
    """By name, whether each guest may be started now ("ready"), or why not. If in doubt, it may not."""
    outcomes = {}
    logs, lost, needs = guest_logs(XL_LOGS, "xl-"), lost_guests(snapshot), snapshot.missing()
    have_run: set[str] = set() if options.guests else started_since_boot(logs)
    patterns = ("*",) if options.guests else settings.late_domains
    for guest in select_guests(snapshot, options.guests):
        name, file, kind = guest.domain.name, guest.domain.source, guest.domain.kind
        # Until the directories of saved guests have been read, this guest may be in one of them.
        saved = {path: item for path, item in snapshot.directories.items() if (kind, item.kind) == ("auto", "saved")}
        paths = {file, *saved, *(item.path for item in guest.required)}
        missing = list(dict.fromkeys(f"{item.path} ({item.status.reason})" for item in needs if item.path in paths))
        broken = [f"{file}: {lost[file]}"] if file in lost else []
        broken += [f"{path}: {item.status.reason}" for path, item in saved.items() if item.status.is_rejected()]
        if name in running:
            result, reason = "running", ""
        elif not matches_any((name, os.path.basename(file)), patterns):
            result, reason = "skipped", "it does not match [late] domains"
        elif name in have_run:
            reason = f"it has already been started since boot (try: {COMMAND} start {shell_word(name)})"
            result = "skipped"
        elif broken:
            result, reason = "refused", broken[0]
        elif is_outdated(guest, logs):
            reason = f"{file} is older than the guest's last start (to discard it: rm {shell_word(file)})"
            result = "refused"
        else:
            result, reason = "waiting" if missing else "ready", join_limited(missing, MAX_LISTED)
        outcomes[name] = Outcome(guest, result, reason)
    return outcomes


def is_outdated(guest: Guest, logs: Mapping[str, Sequence[int]]) -> bool:
    """Whether a saved guest has run since it was saved, according to xl's logs: its memory no longer fits its disks."""
    if guest.domain.kind != "saved" or not guest.signature or guest.domain.name not in logs:
        return False
    # After saving a guest, xl logs that it was destroyed.
    return guest.signature[MODIFIED] + MAX_SAVE_END * 1e9 < logs[guest.domain.name][-1]


def guest_logs(directory: str, prefix: str) -> dict[str, list[int]]:
    """The inode, size and time (in ns) of the log of each guest, by name.

    xl begins a new log when it has started a guest; libvirt appends to the old one. This misses guests that xl has
    started without its daemon (xl create -e), and logs that logrotate has emptied or removed.
    """
    logs = {}
    for file in list_names(directory, rf"{prefix}.+\.log"):
        with suppress(OSError):
            status = os.stat(f"{directory}/{file}")
            if status.st_size:
                name = well_formed(file[len(prefix) : -len(".log")])
                logs[name] = [status.st_ino, status.st_size, status.st_mtime_ns]
    return logs


def record_logs() -> None:
    """Records the state of the guests' logs before xendomains starts them, once per boot. Raises OSError."""
    # Long after the boot, this is not the wait at boot, and guests may have been started before it.
    if not os.path.exists(LOGS_AT_BOOT) and time.clock_gettime(time.CLOCK_BOOTTIME) < MAX_BOOT:
        write_record(LOGS_AT_BOOT, guest_logs(XL_LOGS, "xl-"))


def started_since_boot(logs: Mapping[str, Sequence[int]]) -> set[str]:
    """The guests whose logs differ from the record of the wait at boot, or without a record, are newer than the boot.

    `logs` are those of xl. Those of libvirt are not in the record, because libvirt starts guests during the wait.
    """
    import json

    # If the clock was behind at boot, an older log looks newer than the boot, and its guest is not started.
    booted = (time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)) * 1e9
    started = {name for name, log in guest_logs(LIBVIRT_LOGS, "").items() if log[-1] > booted}
    with suppress(OSError, ValueError, TypeError):
        noted = dict(json.loads(read_file(LOGS_AT_BOOT)))
        return started.union(name for name, log in logs.items() if noted.get(name) != log)
    return started.union(name for name, log in logs.items() if log[-1] > booted)


def running_guests(watcher: Watcher) -> set[str]:
    """The names of the running guests. Raises ConfigError if xl does not work here."""
    if os.geteuid() != 0:
        raise ConfigError("start must be run as root")
    if not (printed := ask(watcher, "xl", "list")):
        raise ConfigError("`xl list` fails, so no guest can be started (is xl installed, and does this host run Xen?)")
    return set(re.findall(r"^(.*?) +\d+ +\d+ +\d+ +\S+ +[\d.]+$", printed, re.MULTILINE))


def is_inactive(unit: str) -> bool:
    """Whether a unit was not started, or has been stopped; one that has failed was started."""
    return output_of("systemctl", "is-active", unit).strip() == "inactive"


def ask(watcher: Watcher, *command: str, limit: float = MAX_PROGRAM) -> str:
    """The output of xl or virsh; empty if it fails or takes too long.

    If `limit` is longer than a look, a late answer is returned by the next call.
    """
    calls: dict[str, Call] = {command[-1]: partial(output_of, *command, limit=limit)}
    answers = watcher.calls.run(command[0], calls, watcher.clock.now() + MAX_FIRST_LOOK, MAX_FIRST_LOOK)
    return next((answer for answer in answers.values() if isinstance(answer, str)), "")


def start_command(guest: Guest) -> str:
    """The shell command that starts a guest as at boot; it removes a restored file, which would be restored again."""
    if guest.domain.kind == "libvirt":
        return f"{VIRSH} start {shell_word(guest.domain.name)}"
    file = shell_word(guest.domain.source)
    if guest.start.how == "restore":
        return f"xl restore {file} && rm {file}"
    return f"xl create --quiet --defconfig {file}"


def start_guest(guest: Guest, watcher: Watcher, limit: float) -> Outcome:
    """Starts a guest within `limit` seconds, unless it is running, or another process is starting it.

    xl keeps running after that, even when this program exits: it has its own session, and prints to a file. That file
    is also the guest's lock, which is held until xl has exited; the daemon that xl leaves running has closed it.
    Raises OSError if there can be no such file.
    """
    from fcntl import LOCK_EX, LOCK_NB, flock
    from subprocess import DEVNULL, CompletedProcess, run

    command, now = start_command(guest), watcher.clock.now()
    os.makedirs(LOCKS, exist_ok=True)
    with open(f"{LOCKS}/{guest.domain.name.replace('/', '_')}", "ab+") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return Outcome(guest, "waiting", "another process, which is starting it")
        if ask(watcher, "xl", "domid", guest.domain.name):
            return Outcome(guest, "running")

        def call() -> CompletedProcess[bytes]:
            lock.truncate(0)
            arguments = [BASH, "-c", command]  # for sh, $'...' may be two words
            return run(arguments, cwd="/", start_new_session=True, stdin=DEVNULL, stdout=lock, stderr=lock)

        # If an earlier call was still running after its limit, this is its answer.
        answers = watcher.calls.run(f"start {guest.domain.name}", {command: call}, now + limit, limit)
        ended = answers.get(command, NoResponse())
        output = "; ".join(os.pread(lock.fileno(), MAX_REASON, 0).decode(errors="replace").splitlines())
    if isinstance(ended, Exception) and not isinstance(ended, NoResponse):
        return Outcome(guest, "failed", f"`{command}` cannot be run ({error_text(ended)})")
    if isinstance(ended, NoResponse):
        reason = f"`{command}`, which is still running after {format_time_span(limit)}"
        return Outcome(guest, "waiting", reason, is_in_progress=True)
    if ended.returncode != 0:
        return Outcome(guest, "failed", f"`{command}` failed with status {ended.returncode}: {output}")
    return Outcome(guest, "restored" if guest.start.how == "restore" else "started")


def log_outcome(outcome: Outcome, journal: Journal, options: Options) -> None:
    """Logs the outcome for a guest. One that may be normal at every boot is shown only without --wait."""
    _, level, text = OUTCOMES[outcome.result]
    name, reason = outcome.guest.domain.name, outcome.reason
    if not options.dry_run:  # which prints them
        journal.log(INFO if level == DEBUG and not options.wait else level, text.format(name, reason), DOMAIN=name)


def show_outcomes(outcomes: Sequence[Outcome], snapshot: Snapshot, journal: Journal, options: Options) -> int:
    """Logs the number of guests with each outcome, prints commands or JSON if asked to; returns the exit status."""
    results = [outcome.result for outcome in outcomes]
    counts = [f"{results.count(result)} {result}" for result in OUTCOMES if result in results]
    journal.log(INFO, f"Guests: {', '.join(counts) or 'none'}.")
    if options.format == "json":
        import json

        rows = [
            {
                **identity_as_json(item.guest),
                "result": item.result,
                "reason": well_formed(item.reason) or None,
                "command": well_formed(start_command(item.guest)),
            }
            for item in outcomes
        ]
        show(json.dumps({"version": JSON_VERSION, "guests": rows}, indent=2))
    elif options.dry_run:
        for item in outcomes:
            text = printable(OUTCOMES[item.result][2].format(item.guest.domain.name, item.reason))
            show(start_command(item.guest) if item.result == "ready" else f"# {text}")
    if not options.wait:  # which reports them
        for finding in check_directories(snapshot):
            journal.log(ERR, finding.sentence())
    return status_of_start(results, snapshot, options)


def status_of_start(results: Iterable[str], snapshot: Snapshot, options: Options) -> int:
    """The exit status of start: the highest of the outcomes of guests, and of directories that could not be read."""
    # The wait at boot has reported what can never start; a wait for the others does not fail because of that.
    is_late = options.wait > 0 and not options.guests
    statuses = [OUTCOMES[item][0] for item in results if item != "refused" or not is_late]
    for directory in snapshot.directories.values():
        if directory.status.is_awaited():
            statuses.append(EXIT_TIMED_OUT)
        elif directory.status.is_rejected() and not is_late:
            statuses.append(EXIT_USAGE)
    return max(statuses, default=EXIT_READY)


# --- Command line ----------------------------------------------------------------------------------------------------
@record
class Options(NamedTuple):
    """The options and arguments on the command line, which is empty at boot."""

    command: str = "wait"
    guests: Sequence[str] = ()
    config: str = ""
    timeout: float | None = None
    verbose: int = 0
    quiet: bool = False
    format: str = ""  # json, nagios or prometheus, for programs
    tree: bool = False
    problems: bool = False
    reboot: bool = False
    boot: str = ""
    boots: bool = False
    dry_run: bool = False
    wait: float = 0.0


COMMANDS = {
    "wait": "wait for the disks of the guests that are about to start (the default)",
    "list": "show guests, disks and their state, and what to do about those that are missing",
    "check": "report everything that would keep guests from starting at the next boot",
    "last": "show how the wait at boot went",
    "start": "start the guests that are down and whose disks are ready",
}


def parse_arguments(arguments: Sequence[str]) -> Options:
    """The options on the command line. Exits if they are wrong (status 2), or ask for help or the version."""
    if not arguments:
        return Options()
    import argparse

    def time_span(text: str) -> float:
        try:
            return parse_time_span(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    def endless_or_time_span(text: str) -> float:
        return float(text) if text == "inf" else time_span(text)

    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Wait until the disks of the Xen guests that are about to start are ready, or say what is missing.",
        epilog="Exit status: 0 every disk is ready, 1 timed out, 2 wrong usage or configuration, "
        "6 xendomains has no settings file.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", default="", help=f"read this file instead of {CONFFILE}")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wait, listing, check, last, start = (
        commands.add_parser(name, help=text, description=f"{text}.", allow_abbrev=False)
        for name, text in COMMANDS.items()
    )

    timeout_help = "wait at most this long (default: 5min); 0: check once"
    wait.add_argument("--timeout", metavar="TIME", type=time_span, help=timeout_help)
    start.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    wait_help = "also wait for the disks of the other guests; without TIME, as long as it takes"
    start.add_argument("--wait", metavar="=TIME", nargs="?", type=endless_or_time_span, default=0.0, help=wait_help)
    for item in (wait, start):
        verbosity = item.add_mutually_exclusive_group()
        verbosity.add_argument("-v", "--verbose", action="count", default=0, help="print more; twice: print everything")
        verbosity.add_argument("-q", "--quiet", action="store_true", help="print only what is missing or not started")
    listing.add_argument("--problems", action="store_true", help="show only guests that are not ready")
    check.add_argument("--reboot", action="store_true", help="also report what would not come up at the next boot")
    forms = {item: item.add_mutually_exclusive_group() for item in (listing, check, last, start)}
    formats = [(item, "json", "print JSON") for item in forms]
    formats.append((check, "nagios", "print one line for Nagios or Icinga, and exit with the status of a plugin"))
    formats.append((last, "prometheus", "print metrics for the textfile collector of Prometheus"))
    for item, name, text in formats:
        forms[item].add_argument(f"--{name}", dest="format", action="store_const", const=name, default="", help=text)
    boot_help = "show the messages of an earlier boot, as in journalctl: -1"
    forms[last].add_argument("-b", "--boot", metavar="OFFSET", default="", help=boot_help)
    forms[last].add_argument("--list", dest="boots", action="store_true", help="show a line for each boot")
    verbose_help = "show each disk, and a command that helps"
    forms[listing].add_argument("-v", "--verbose", action="count", default=0, help=verbose_help)
    forms[listing].add_argument("--tree", action="store_true", help="show the storage below each disk")
    for item in (wait, listing, check, start):
        item.add_argument("guests", nargs="*", metavar="GUEST", help="guest names, file names or shell patterns")
    try:
        options = Options(**vars(parser.parse_args(with_command(arguments, parser.error))))
    finally:
        show("", end="")  # help or version, which the exit in run() would not flush
    if options.dry_run and options.wait:
        start.error("--dry-run cannot be combined with --wait")
    return options


def with_command(arguments: Sequence[str], error: Callable[[str], NoReturn]) -> list[str]:
    """The arguments with the default command, if they name none, and with TIME after --wait, if it is left out."""
    # argparse would take a guest after --wait for its TIME.
    for argument, following in zip(arguments, arguments[1:]):
        if argument == "--wait" and re.fullmatch("[0-9.]+(ms|s|sec|m|min|h|d)", following):
            error(f"write the time behind =, as in --wait={following}")
    given = ["--wait=inf" if argument == "--wait" else argument for argument in arguments]
    first = 2 if given[0] == "--config" else int(given[0].startswith("--config="))
    rest = given[first:]
    if any(item == "--config" or item.startswith("--config=") for item in rest):
        error(f"--config precedes the command, as in {COMMAND} --config FILE list")
    if rest and (rest[0] in COMMANDS or rest[0] in ("-h", "--help", "--version")):
        return given
    if rest and not rest[0].startswith("-"):
        from difflib import get_close_matches

        similar = get_close_matches(rest[0], COMMANDS, 1)
        meant = f" {similar[0]}" if similar else f": {COMMAND} wait {shell_word(rest[0])}"
        error(f"unknown command '{rest[0]}' (did you mean{meant}?)")
    if command := next((item for item in rest if item in COMMANDS), ""):
        error(f"options follow the command, as in {COMMAND} {command} {rest[0]}")
    return [*given[:first], "wait", *rest]


def log_level(settings: Settings, options: Options, environment: Mapping[str, str]) -> tuple[int, list[Finding]]:
    """The level up to which messages are shown, and problems with values in the environment."""
    findings = []
    level = settings.log_level
    for name in ("SYSTEMD_LOG_LEVEL", "LOGLEVEL"):
        if environment.get(name):
            try:
                level = parse_log_level(environment[name])
            except ConfigError as error:
                findings.append(Finding(f"${name} {error}; it is ignored", is_error=True))
    if options.command == "start":
        level = max(level, INFO)  # to show the outcomes
    if options.quiet:
        level = WARNING if options.command == "start" else ERR  # WARNING: guests that are still waiting
    elif options.verbose:
        level = max(level, INFO if options.verbose == 1 else DEBUG)
    return level, findings


def main(clock: Clock, arguments: Sequence[str] | None = None) -> int:
    """Does what the command line asks for, and returns the exit status. Raises Stopped if a signal comes."""
    started = clock.now()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    settings, findings = read_settings(options.config or CONFFILE, must_exist=options.config != "")
    level, more = log_level(settings, options, os.environ)
    findings += more
    journal = Journal(level, sys.stderr, clock)
    if options.command == "last":
        return show_last_wait(journal, settings.late_domains, options)
    clock.take_signals()
    limit = MAX_SOURCING
    if options.command == "wait":
        timeout = settings.timeout if options.timeout is None else options.timeout
        settings, limit = settings._replace(timeout=timeout), min(MAX_SOURCING, max(timeout, 0.5))
        notify(extended_timeout(timeout))
    xendomains, more = read_xendomains(settings, clock, limit)
    findings += more
    if options.command != "check":  # check prints them itself
        for finding in findings:
            journal.log(ERR if finding.is_error else WARNING, finding.sentence(), MESSAGE_ID=MESSAGE_SETTINGS)
    if xendomains is None and options.command != "check" and not options.format:
        return EXIT_NO_XENDOMAINS
    watcher = Watcher(xendomains or Xendomains(), settings, clock, options.guests)
    if options.command == "wait":
        return wait_for_disks(watcher, journal, started)
    if options.command == "start":
        status = start_guests(watcher, options, journal, started)
    else:
        status = show_guests(watcher, options, journal, findings)
    return EXIT_NO_XENDOMAINS if xendomains is None and options.format != "nagios" else status


def show_guests(watcher: Watcher, options: Options, journal: Journal, findings: Sequence[Finding]) -> int:
    """Runs list or check, and returns the exit status; `findings` are the problems with the settings."""
    snapshot = watcher.look(watcher.clock.now() + MAX_FIRST_LOOK)
    watcher.clock.release_signals()
    if unknown := unknown_name(snapshot, watcher.names):
        if options.format == "nagios":
            show(f"XENDOMAINS UNKNOWN - {printable(unknown).replace('|', '/')}.")
            return NAGIOS_UNKNOWN
        journal.log(ERR, f"{unknown}.")
        return EXIT_USAGE
    if options.command == "check":
        return show_findings([*findings, *findings_of(snapshot, watcher, options)], snapshot, options)
    show_list(snapshot, watcher, options)
    unreadable = any(item.status.is_rejected() for item in snapshot.directories.values())
    if unreadable or lost_guests(snapshot) or any(finding.is_error for finding in findings):
        return EXIT_USAGE
    return EXIT_READY if snapshot.is_complete() else EXIT_TIMED_OUT


def show_list(snapshot: Snapshot, watcher: Watcher, options: Options) -> None:
    """Prints the guests: as JSON or a tree if asked to, else a line for each disk, or on a terminal, causes first."""
    if options.problems:
        guests, lost = snapshot.guests.items(), lost_guests(snapshot)
        problems = {file: item for file, item in guests if file in lost or snapshot.guest_status(item).is_awaited()}
        snapshot = snapshot._replace(guests=problems)
    record, screen = as_record(snapshot), screen_of(sys.stdout)
    if options.format:
        import json

        states = {item["state"] for item in record["guests"] + record["directories"]}
        ready = snapshot.is_complete() and State.UNREADABLE.value not in states
        show(json.dumps({"version": JSON_VERSION, "ready": ready, **record}, indent=2))
    elif options.tree:
        facts = StorageFacts()
        calls: dict[str, Call] = {path: partial(storage_of, item, facts) for path, item in snapshot.needed.items()}
        show("\n".join(picture_of_tree(snapshot, watcher.results("tree", calls), screen)))
    elif not screen.columns or options.verbose:
        show("\n".join(table_of_disks(record, screen, with_hints=options.verbose > 0)))
    else:
        later = start_later(snapshot.waiting_guests(), watcher.settings.late_domains)
        footer = wrapped(printable(f"{footer_of_list(watcher.known, watcher.xendomains)}."), screen.columns)
        gap = [""] if record["guests"] else []
        show("\n".join([*picture_of_list(record, screen), *gap, *footer, *advice_lines(*later, screen)]))


def wait_for_disks(watcher: Watcher, journal: Journal, started: float) -> int:
    """Waits, reports progress, and returns the exit status. Raises Stopped if a signal comes."""
    clock, timeout = watcher.clock, watcher.settings.timeout
    deadline = started + timeout
    reporter = Reporter(journal, clock, started, timeout)
    stopped = None
    with suppress(OSError):
        record_logs()
    try:
        # With a timeout of 0, the only look still gets the time of a first look.
        first = started + min(timeout or MAX_FIRST_LOOK, MAX_FIRST_LOOK)
        snapshot = watcher.look(end_of_look(first, clock))
        if not unknown_name(snapshot, watcher.names) and timeout and not snapshot.is_complete():
            reporter.report(snapshot)
            wait(watcher, reporter.report, deadline)
        clock.release_signals()
        if unknown := unknown_name(watcher.known, watcher.names):
            journal.log(ERR, f"{unknown}.")
            return EXIT_USAGE
    except Stopped as signalled:
        stopped = signalled
        clock.release_signals()
    result = reporter.log_end(watcher.known, stopped.number if stopped else 0, watcher.settings.late_domains)
    try:
        # Only at boot: a wait by hand has no directory from systemd, and one for a few guests does not cover all.
        if "RUNTIME_DIRECTORY" in os.environ and not watcher.names:
            write_record(LAST_WAIT, reporter.as_last_wait(result))
    except OSError as error:
        journal.log(DEBUG, f"{LAST_WAIT} cannot be written ({error_text(error)}).")
    if stopped:
        raise stopped
    return EXIT_READY if result == "ready" else EXIT_TIMED_OUT


def unknown_name(snapshot: Snapshot, names: Iterable[str]) -> str:
    """What is wrong with the first name that no guest has; empty if there is none, or not all guests are known yet."""
    if any(item.status.is_awaited() for item in snapshot.directories.values()):
        return ""
    for name in names:
        if not guests_named(snapshot.read, (name,)):
            domains = [guest.domain for guest in snapshot.read.values()]
            known = {item for domain in domains for item in (domain.name, os.path.basename(domain.source))}
            which = "matches no guest" if re.search(r"[*?[]", name) else "is not the name of a guest"
            return f"'{name}' {which} that starts at boot ({closest(name, sorted(known))})"
    return ""


def show_findings(findings: Sequence[Finding], snapshot: Snapshot, options: Options) -> int:
    """Prints the findings, errors first, and returns the exit status."""
    errors = [finding for finding in findings if finding.is_error]
    warnings = [finding for finding in findings if not finding.is_error]
    if options.format == "nagios":
        return show_for_nagios(errors, warnings, snapshot)
    if options.format == "json":
        import json

        keys = ("file", "guest", "vdev", "problem", "fix")
        rows = [
            {
                "severity": "error" if finding.is_error else "warning",
                **{key: well_formed(getattr(finding, key)) or None for key in keys},
            }
            for finding in (*errors, *warnings)
        ]
        show(json.dumps({"version": JSON_VERSION, "ok": not errors, "findings": rows}, indent=2))
    else:
        lines: list[str] = []
        by_file: dict[str, list[str]] = {}
        screen = screen_of(sys.stdout)
        for finding in (*errors, *warnings):
            by_file.setdefault(finding.file, []).extend(lines_of_finding(finding, screen))
        for file, about in by_file.items():
            head = wrapped(printable(f"{file or 'This host'}:"), screen.columns)
            lines += [*(screen.paint(line, "1") for line in head), *about]
        counts = f"{plural(len(errors), 'error')}, {plural(len(warnings), 'warning')} in {size_of(snapshot)}."
        show("\n".join([*lines, counts if findings else f"No problems found ({size_of(snapshot)})."]))
    return EXIT_USAGE if errors else EXIT_READY


def lines_of_finding(finding: Finding, screen: Screen) -> list[str]:
    """The lines about a finding, below the name of its file; on a terminal the fix, which may be a command, has one."""
    about = [f"guest {finding.guest}"] if finding.guest else []
    about += [finding.vdev] if finding.vdev else []
    where = f"{', '.join(about)}: " if about else ""
    text = printable(f"  {'error' if finding.is_error else 'warning'}: {where}{finding.problem}")
    fix = [printable(f"fix: {finding.fix}")] if finding.fix else []
    if not screen.columns:
        return [" ".join([text, *(f"({item})" for item in fix)])]
    return [*wrapped(text, screen.columns, indent="    "), *(f"    {item}" for item in fix)]


def show_for_nagios(errors: Sequence[Finding], warnings: Sequence[Finding], snapshot: Snapshot) -> int:
    """Prints a line for Nagios, and returns the status of a plugin: the guidelines of monitoring-plugins.org."""
    states = [snapshot.guest_status(guest).state for guest in snapshot.guests.values()]
    ready = states.count(State.READY)
    status = 2 if errors else 1 if warnings else 0
    unreadable = [path for path, item in snapshot.directories.items() if item.status.is_rejected()]
    files = [file for file, item in snapshot.guests.items() if item.status.state is State.UNREADABLE]
    if unreadable or (errors and all(item.file in files for item in errors)):
        status = NAGIOS_UNKNOWN
    ordered = sorted((*errors, *warnings), key=lambda item: item.file not in unreadable)
    first = f": {ordered[0].sentence()}" if ordered else ""
    word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[status]
    text = f"{word} - {ready} of {plural(len(states), 'guest')} ready{first}"
    data = f"ready={ready};;;0;{len(states)} errors={len(errors)};;;0 warnings={len(warnings)};;;0"
    show(f"XENDOMAINS {printable(shortened(text, MAX_REASON)).replace('|', '/')} | {data}")
    return status


def show_last_wait(journal: Journal, patterns: Sequence[str], options: Options) -> int:
    """Prints how the wait at boot went, and returns the exit status."""
    import json

    screen = screen_of(sys.stdout)
    if options.boots or options.boot not in ("", "0"):
        return show_earlier_waits(journal, options, screen)
    try:
        text = read_file(LAST_WAIT, MAX_EVIDENCE).decode()
        last = json.loads(text)
        if options.format == "prometheus":
            text = "\n".join(metrics_of(last))
        elif not options.format:
            waited, timeout = map(format_time_span, (last["waited"], last["timeout"]))
            lost = {item["name"] for item in last["guests"] if State(item["state"]) in AWAITED}
            later = start_later(lost, patterns)
            head = wrapped(f"{last['started']}: {last['result']} after {waited} of {timeout}", screen.columns)
            head += advice_lines(*later, screen)
            gap = [""] if screen.columns else []
            text = "\n".join([*head, *gap, *picture_of_last(last, screen)])
        is_ready = last["result"] == "ready"
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        journal.log(ERR, f"No wait recorded since boot ({LAST_WAIT}: {error_text(error)}).")
        return EXIT_USAGE
    show(text)
    return EXIT_READY if is_ready or options.format == "prometheus" else EXIT_TIMED_OUT


def show_earlier_waits(journal: Journal, options: Options, screen: Screen) -> int:
    """Prints how the waits at earlier boots went, from what the journal has kept, and returns the exit status."""
    boots = output_of("journalctl", "--quiet", "--no-pager", "--list-boots")
    numbers = {boot: number for number, boot in re.findall(r"^ *(-?[0-9]+) ([0-9a-f]{32}) ", boots, re.MULTILINE)}
    choice = f"MESSAGE_ID={MESSAGE_SUMMARY}" if options.boots else f"--boot={options.boot}"
    entries = journal_entries(choice, f"SYSLOG_IDENTIFIER={COMMAND}", "_UID=0")  # anyone may write to the journal
    entries = [entry for entry in entries if "RESULT" in entry or int(entry["PRIORITY"]) <= WARNING]
    if not entries:
        which = "" if options.boots else f" of boot {options.boot}"
        journal.log(ERR, f"The journal has no messages of {COMMAND}{which}.")
        return EXIT_USAGE
    if not options.boots:
        texts = [printable(str(entry["MESSAGE"])) for entry in entries]
        show("\n".join(line for text in texts for line in wrapped(text, screen.columns, indent="    ")))
        results = [entry["RESULT"] for entry in entries if "RESULT" in entry]
        return EXIT_READY if results[-1:] == ["ready"] else EXIT_TIMED_OUT
    rows: list[Sequence[str]] = [("BOOT", "ENDED", "RESULT", "WAITED", "MISSING")]
    for entry in entries:
        ended = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(entry["__REALTIME_TIMESTAMP"]) / 1e6))
        number = numbers.get(entry["_BOOT_ID"], "?")
        waited = format_time_span(float(entry["WAITED_SEC"]))
        rows.append((number, ended, entry["RESULT"], waited, entry["MISSING"]))
    show("\n".join(format_table(rows, screen)))
    return EXIT_READY


def journal_entries(*matches: str) -> list[dict[str, Any]]:
    """The journal entries that match, from `journalctl -o json`: https://systemd.io/JOURNAL_EXPORT_FORMATS."""
    import json

    with suppress(ValueError):
        lines = output_of("journalctl", "--quiet", "--no-pager", "--all", "--output=json", *matches).splitlines()
        return [json.loads(line) for line in lines]
    return []


def metrics_of(last: Mapping[str, Any]) -> Iterator[str]:
    """The record of a wait in Prometheus' text-based exposition format."""
    rows = [disk for guest in last["guests"] for disk in disks_in(guest)]
    disks = {disk["path"]: disk for disk in rows if disk["path"]}
    counted = [*disks.values(), *(disk for disk in rows if not disk["path"])]  # without a path: skipped
    states = {"guest": [item["state"] for item in last["guests"]], "disk": [item["state"] for item in counted]}
    values = {
        "waited_seconds": last["waited"],
        "timeout_seconds": last["timeout"],
        "ok": int(last["result"] == "ready"),
    }
    for name, value in values.items():
        yield f"# TYPE xendomains_wait_{name} gauge"
        yield f"xendomains_wait_{name} {value}"
    for kind, found in states.items():
        yield f"# TYPE xendomains_wait_{kind}s gauge"
        yield from (f'xendomains_wait_{kind}s{{state="{item.value}"}} {found.count(item.value)}' for item in State)
    yield "# TYPE xendomains_wait_disk_found_after_seconds gauge"
    for path, disk in disks.items():
        if disk["found_after"] is not None:
            label = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            yield f'xendomains_wait_disk_found_after_seconds{{path="{label}"}} {disk["found_after"]}'


def size_of(snapshot: Snapshot) -> str:
    """The number of guests that start, and of their disks."""
    guests = [guest for guest in snapshot.guests.values() if guest.start.how != "none"]
    disks = sum(len(guest.domain.disks) for guest in guests)
    return f"{plural(len(guests), 'guest')} with {plural(disks, 'disk')}"


def show(text: str, end: str = "\n") -> None:
    """Prints to standard output; characters that its encoding lacks are shown as escapes."""
    if sys.stdout is None:  # it was closed when the program started
        return
    encoding = sys.stdout.encoding or "ascii"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)
    except BrokenPipeError:
        pass  # the reader has stopped reading
    except OSError as error:
        raise ConfigError(f"the output cannot be written: {error_text(error)}") from None


def run() -> NoReturn:
    """Runs main(), and exits with its status.

    Exits at once, because tearing down the interpreter takes longer than checking a disk. Stuck threads do not delay
    that, unless they are stuck where even SIGKILL does not reach them; then systemd's timeouts apply.
    """
    status = EXIT_TIMED_OUT
    failure = ""
    clock = Clock()
    try:
        clock.release_signals()
        status = main(clock)
    except Stopped as stopped:
        clock.release_signals()
        os.kill(os.getpid(), stopped.number)
    except SystemExit as end:  # raised by argparse
        status = end.code if isinstance(end.code, int) else EXIT_USAGE
        if status == EXIT_USAGE and "--nagios" in sys.argv:
            status = NAGIOS_UNKNOWN  # 2 would be CRITICAL
            show("XENDOMAINS UNKNOWN - wrong usage")
    except ConfigError as error:
        status, failure = EXIT_USAGE, f"{error}."
    except MemoryError:
        failure = "there is not enough memory to continue. Missing disks are not waited for."
    except (ImportError, OSError) as error:
        what = "a Python module cannot be loaded" if isinstance(error, ImportError) else "the wait cannot continue"
        failure = f"{what} ({error_text(error)}). Missing disks are not waited for."
    except Exception as error:
        failure = f"internal error, please report it: {error_text(error)}"
    if failure:
        clock.release_signals()
        Journal(ERR, sys.stderr, clock).log(ERR, f"{COMMAND}: {failure}")
    os._exit(status)


if __name__ == "__main__":
    run()
