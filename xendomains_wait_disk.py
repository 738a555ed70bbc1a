# SPDX-License-Identifier: GPL-3.0-or-later
# SPDX-FileCopyrightText: The xendomains-wait-disk authors
"""Wait, at boot, for the disks of the Xen guests that are about to start.

xendomains.service starts the guests in XENDOMAINS_AUTO and restores those in XENDOMAINS_SAVE. A guest whose disk is not
there yet fails to start and stays down. This program runs just before: it finds the disks which those guests need, and
returns when all of them are ready or when the timeout is over.

The module reads from top to bottom in the order in which the data flows, a section for each step. Every time is in
seconds, unless its name says otherwise.
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
from collections import deque, namedtuple
from contextlib import closing, suppress
from enum import Enum
from functools import cached_property, partial
from itertools import islice

# What the common boot, every disk present, does not need is imported where it is used: argparse, configobj, pyudev,
# socket and tenacity together take several times as long as all that the common boot does. typing alone is a quarter of
# the start, so only type checkers import it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from types import FrameType
    from typing import IO, Any, Callable, Literal, NamedTuple, NoReturn, TypeVar

    Call = Callable[[], Any]
    # What a call is for, and the path that it looks at.
    Key = tuple[str, str]
    Found = TypeVar("Found")
    # The level, the text, and its fields for the journal.
    Message = tuple[int, str, dict[str, str]]
else:
    NamedTuple = object

__version__ = "2.0.0"

COMMAND = "xendomains-wait-disk"
CONFFILE = "/etc/xen-wait-disk.conf"
JSON_VERSION = 1
LATE_SERVICE = "xendomains-late.service"
XL_LOGS = "/var/log/xen"
STATE_DIRECTORY = os.environ.get("RUNTIME_DIRECTORY", f"/run/{COMMAND}")
LAST_WAIT = f"{STATE_DIRECTORY}/last.json"
NOTED_LOGS = f"{STATE_DIRECTORY}/xl-logs.json"
LOCKS = f"{STATE_DIRECTORY}/start"
JOURNAL_SOCKET = "/run/systemd/journal/socket"

# Where this host tells about its storage.
SYS, RUN, PROC, ETC, VAR, USR = "/sys", "/run", "/proc", "/etc", "/var", "/usr"

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
MESSAGE_SUMMARY = "e2f4ab1c6a8c4a7b9f0a1f2b8d7f3c55"

# All limits and intervals; sizes are in bytes, times in seconds.
MAX_CONFIGURATION = 1 << 17  # of a guest; hundreds of disks fit. Larger is something else, and would take long to parse
MAX_SETTINGS = 1 << 15  # ours has 2 KiB; configobj takes a minute for 1 MiB of sections
MAX_SETTINGS_LINE = 1 << 12  # and 12 s for a line of 32 KiB
MAX_ATTRIBUTE = 1 << 16  # in sysfs, or of one device in udev's database
MAX_DISK_SPECIFICATION = 1 << 14  # libxl may write 4096 to xenstore; the time to parse one grows with the square
MAX_JSON_DEPTH = 32  # libxl's has 5; Python's parser may overflow the stack
START_PAUSE = 10.0  # between two looks of start, if nothing happens
START_REST = 120.0  # between two looks of start at configurations and reasons
RETRIES = (30.0, 120.0, 600.0)  # after which a guest is tried again whose start failed
MAX_XL = 600.0  # that xl may take to start a guest, before others have their turn
MAX_BOOT = 600.0  # since the kernel was started, until the wait at boot begins
FOREVER = 1e9  # a wait without end, in seconds that systemd takes
MAX_BUFFER = 1 << 12  # of a file that is read; as much may be read of a memory image behind a saved configuration
MAX_FILES = 4096  # in one of xendomains' directories; where there are more, they are not guests
MAX_EVIDENCE = 1 << 21  # in a file about storage; LVM's backup of a large volume group has 1 MiB
MAX_CHAIN = 4  # layers in one sentence
MAX_BACKING_FILES = 16  # behind an image
QCOW_HEADER = 1 << 12  # of an image, in which the format of its backing file is named
MAX_TIME = 7 * 86400.0  # that may be set
MIN_PAUSE = 0.01  # between two looks, that may be set
MIN_SLEEP = 0.02  # between two looks in a storm of events
MAX_SOURCING = 10.0  # of xendomains' settings by bash; it takes milliseconds
MAX_FIRST_LOOK = 10.0  # and of looking once
MAX_LAST_LOOK = 0.7  # that begins when the timeout is over
READ_INTERVAL = 1.0  # at which configurations are read again while only disks are missing
MAX_RECHECKED = 16  # ready disks that are checked again in one look, which takes one or two milliseconds
MAX_REWRITING = 1.0  # since a file was changed, before it is refused: it may be half written
MAX_SILENCE = 2.0  # of all calls in progress, before a look goes on without them
MAX_SILENCE_AT_END = 10.0  # the same when everything else is ready
STUCK_AFTER = 0.5  # a call that is silent for this long is stuck
POLL_INTERVAL = 0.05  # for which the main thread pauses before it looks after calls that are silent
MAX_THREADS = 64  # that make calls at the same time, besides those which are stuck
LAST_RESORT = 30.0  # after which mdadm starts an array that is degraded (mdadm-last-resort@.timer)
LATE_TIMER = 70.0  # by which systemd may start it later: AccuracySec= in systemd.timer(5), and a host that is busy
SETTLED = 3.0  # after which udev is done with a device, unless it says otherwise
MAX_SAVE_END = 60.0  # that it may take to destroy a guest which has been saved
MAX_PROGRAM = 5.0  # that drbdsetup or systemctl may take; they take milliseconds
MAX_REASON_AGE = 4.0  # of a reason that is said
MAX_REASON_SHARE = 0.05  # of the CPU time that may be spent on reasons
MAX_SENDING = 0.4  # a message may take to be delivered, and how many were dropped before it
MAX_SENDING_ALL = 3.0  # all the messages that are said at once
MAX_SENDING_AT_END = 0.5  # those at the end, besides the summary
MAX_MESSAGE = 1 << 14  # journald splits what is longer than 48 KiB
FIRST_REMINDER = 5.0  # of what is missing; the gaps double from here
MAX_LINES = 1000  # said between two reminders, besides what was found
MAX_NAMES = 100  # in one line
MAX_LISTED = 4  # in one clause of a reason
MAX_REASON = 1000  # characters, of why storage is missing
MAX_CELL = 1000  # characters, of a table


def record(declared: type[Found]) -> type[Found]:
    """Makes a class of annotated fields a named tuple, as typing.NamedTuple does, which is what type checkers see."""
    fields, members = declared.__annotations__, dict(vars(declared))
    defaults = [members.pop(field) for field in fields if field in members]
    base = namedtuple(declared.__name__, fields, defaults=defaults, module=__name__)  # type: ignore[misc]
    made: type[Found] = type(declared.__name__, (base,), {**members, "__slots__": ()})
    return made


class ConfigError(ValueError):
    """A file or a value cannot be used; the text says why, in words that follow the name of the file or key."""


class Unsupported(ConfigError):
    """The same, though xl would take it."""


def quoted(text: str) -> str:
    """Text from a file, cut to what fits into a message."""
    return f"'{text}'" if len(text) <= 100 else f"'{text[:100]}…'"


def join_limited(texts: Sequence[str], most: int) -> str:
    """The first of them, and how many more there are."""
    more = [f"{len(texts) - most} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *more])


# --- Files -----------------------------------------------------------------------------------------------------------
FILE_KINDS = {
    stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device",
}  # fmt: skip


def read_file(path: str, most: int = MAX_CONFIGURATION) -> bytes:
    """The content of a regular file of at most so many bytes. Raises OSError, or ConfigError if it is anything else."""
    with open_regular_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Unsupported(f"is too large for a configuration: more than {most} bytes")
    return content


def open_regular_file(path: str) -> IO[bytes]:
    """The file, to be read. Raises OSError, or ConfigError if it is not a regular file; xl reads no other."""
    # Opening a device may do anything: a watchdog starts to count.
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise ConfigError(f"is {FILE_KINDS[kind]}, not a regular file")
    return open(path, "rb", MAX_BUFFER)


def why_not_trusted(path: str, status: os.stat_result) -> str:
    """Why somebody other than root and the caller may have written the file, and what to do about it; or nothing."""
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {status.st_uid}, not to root (fix: chown root {path})"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others than its owner may write it (fix: chmod go-w {path})"
    return ""


def attribute(directory: str, name: str) -> str:
    """An attribute in sysfs, or a file in udev's database; nothing if the device has none of this name."""
    try:
        descriptor = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return os.read(descriptor, MAX_ATTRIBUTE).decode(errors="replace").strip()
    finally:
        os.close(descriptor)


def error_text(error: Exception) -> str:
    """Why it failed, without the path, which the sentence around it names."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    told = isinstance(error, (ConfigError, ImportError, NoResponse))
    return str(error) if told else f"{type(error).__name__}: {error}"


# --- Settings: /etc/xen-wait-disk.conf -------------------------------------------------------------------------------
@record
class Settings(NamedTuple):
    """What /etc/xen-wait-disk.conf says; a value not given there is the default below."""

    timeout: float = 300.0
    log_level: int = WARNING
    xendomains: tuple[str, ...] = ("/etc/sysconfig/xendomains", "/etc/default/xendomains", "/etc/conf.d/xendomains")
    auto: str = ""
    save: str = ""
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
        raise ConfigError(f"is not a time span: {quoted(text)} (write for example 5min, 90 or 1min 30s)")
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
    """A time span as a person writes it: 330 is "5min 30s"."""
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
    """The factor by which pauses grow."""
    with suppress(ValueError):
        if 1 <= float(text) <= 100:
            return float(text)
    raise ConfigError(f"is not a number from 1 to 100: '{text}'")


def check_path(text: str) -> str:
    """An absolute path, or nothing."""
    if text and (not text.startswith("/") or "\0" in text):
        raise ConfigError(f"is not an absolute path: '{text}'")
    return text


def check_pattern(text: str) -> str:
    """A shell pattern, as fnmatch takes it."""
    from fnmatch import translate

    try:
        re.compile(translate(text))
    except re.error as error:  # Python 3.9 hands a range such as [z-a] on to re
        raise ConfigError(f"is not a shell pattern: '{text}' ({error})") from None
    return text


# Each key of the file, its field in Settings, its check, and whether it takes several values.
SETTINGS_KEYS: Mapping[str, tuple[str, Callable[[str], Any], bool]] = {
    "timeout": ("timeout", parse_time_span, False),
    "log_level": ("log_level", parse_log_level, False),
    "paths.xendomains": ("xendomains", check_path, True),
    "paths.auto": ("auto", check_path, False),
    "paths.save": ("save", check_path, False),
    "polling.first": ("first", partial(parse_time_span, least=MIN_PAUSE), False),
    "polling.longest": ("longest", partial(parse_time_span, least=MIN_PAUSE), False),
    "polling.factor": ("factor", check_factor, False),
    "ignore.domains": ("ignored_domains", check_pattern, True),
    "ignore.disks": ("ignored_disks", check_pattern, True),
    "late.domains": ("late_domains", check_pattern, True),
}


def read_settings(path: str, *, must_exist: bool = False) -> tuple[Settings, list[str]]:
    """The settings in the file at `path`, and a sentence for everything wrong in it.

    A wrong value is left at its default, and a file that does not exist means defaults (with must_exist, that is
    wrong as well), so that the settings can always be used.
    """
    try:
        lines = os.fsdecode(read_file(path, MAX_SETTINGS)).lstrip("\ufeff").splitlines()
        # In the file as it is shipped there is nothing that configobj, which is slow to import, would have to read.
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
    return Settings(), [f"{path} {problem}; the defaults are used."] if problem else []


def parse_settings(path: str, lines: Sequence[str]) -> tuple[Settings, list[str]]:
    """The settings in these lines, and a sentence for everything wrong in them; `path` is for the sentences."""
    from configobj import ConfigObj, ConfigObjError

    problems: list[str] = []
    try:
        config = ConfigObj(list(lines), interpolation=False)
    except ConfigObjError as error:
        problems += [f"{path}: {problem} This line is ignored." for problem in getattr(error, "errors", [error])]
        config = error.config
    given = {key: config[key] for key in config.scalars}
    for section in config.sections:
        given.update((f"{section}.{key}", value) for key, value in config[section].items())
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name not in SETTINGS_KEYS or isinstance(value, dict):
            problems.append(f"{path}: {name} is unknown and ignored ({closest(name, list(SETTINGS_KEYS))}).")
            continue
        field, check, takes_several = SETTINGS_KEYS[name]
        values = [value] if isinstance(value, str) else value
        try:
            if not takes_several and len(values) != 1:
                raise ConfigError(f"is a list: '{', '.join(values)}' (it takes one value; put a comma into quotes)")
            checked: Any = [check(item) for item in values if item or not takes_several]
            if checked:
                changes[field] = tuple(checked) if takes_several else checked[0]
        except ConfigError as error:
            problems.append(f"{path}: {name} {error}; the default is used.")
    return Settings()._replace(**changes), problems


def closest(name: str, known: Sequence[str]) -> str:
    """A hint for somebody who wrote an unknown name."""
    from difflib import get_close_matches

    similar = get_close_matches(name, known, 1)
    return f"did you mean {similar[0]}?" if similar else f"known: {join_limited(known, MAX_NAMES) or 'none'}"


# --- Clock: time, pauses, signals and threads ------------------------------------------------------------------------
STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(Exception):
    """A signal asks the program to end."""

    def __init__(self, number: int) -> None:
        self.number = number


class Clock:
    """The time, the pauses of the main thread, and what ends one early.

    Handlers only record a signal; pause() alone turns it into Stopped.

    `slept` is how long the main thread has paused so far: the time that others had to answer. It grows in each pause by
    no more than was asked for, so that nobody seems slow because this program was stopped (SIGSTOP, a suspended host).
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopped_by = 0
        self.slept = 0.0

    def now(self) -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()

    def start_thread(self, function: Callable[[], None]) -> None:
        """Runs the function beside the caller. Raises RuntimeError if the process can have no more threads."""
        start_new_thread(function, ())

    def take_signals(self) -> None:
        """From now on signals that ask the program to end are raised by pause()."""
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._set_signals(self._record)

    def release_signals(self) -> None:
        """From now on signals do what they do by default, and pause() raises none."""
        self._set_signals(signal.SIG_DFL)
        self._stopped_by = 0

    def _set_signals(self, action: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in STOPPING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) or a shell had it
                signal.signal(number, action)

    def _record(self, number: int, _: FrameType | None) -> None:
        self._stopped_by = self._stopped_by or number

    def wake(self) -> None:
        """Ends the pause of the main thread, or the next one. Any thread may call this."""
        with suppress(BlockingIOError):  # what woke it before has not been read: it is awake
            os.write(self._writing, b"\0")

    def pause(self, seconds: float, descriptor: int = -1, event: int = select.POLLIN) -> bool:
        """Pauses for that long, until wake(), or until the descriptor can be read (or written, with POLLOUT).

        Returns whether the descriptor can. Raises Stopped if a signal came.
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
    """What xendomains will do when it starts."""

    auto: str = ""  # directory of configurations; empty: starts none
    save: str = ""  # directory of saved domains; empty: restores none
    warning: str = ""  # a sentence about its settings
    is_debians: bool = False  # else it is upstream's


# Where Xen's own settings file puts them.
DEFAULT_AUTO = "/etc/xen/auto"
DEFAULT_SAVE = "/var/lib/xen/save"

# bash undoes the redirections after `.`, so that only what is printed below gets into the pipe.
SOURCE_SETTINGS = r"""
complaint=
. "$1" </dev/null >/dev/null 2>&1
[ "$?" = 0 ] || complaint=$("$BASH" -n "$1" 2>&1 </dev/null) || :
builtin printf '%s\0' "$complaint" "${XENDOMAINS_AUTO-}" "${XENDOMAINS_SAVE-}" "${XENDOMAINS_RESTORE-}"
"""
SOURCED_FIELDS = 4

# What systemd gives xendomains. Nothing of ours is handed on: BASH_ENV, SHELLOPTS and the like change what bash does.
BASH = "/bin/bash"
BASH_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def read_xendomains(settings: Settings, clock: Clock, limit: float) -> tuple[Xendomains | None, list[str]]:
    """What xendomains will do, and a sentence for everything wrong with its settings.

    Nothing if there is no settings file: upstream's xendomains then ends with status 6, Debian's starts no guest.
    A file which cannot be read, or not be sourced within `limit` seconds, counts as if it held Xen's own defaults.
    """
    path = next((path for path in settings.xendomains if not is_absent(path)), None)
    if path is None:
        return None, [f"xendomains has no settings ({', '.join(settings.xendomains)}), so it starts no guests."]
    problems = []
    warning = ""
    try:
        if distrust := why_not_trusted(path, os.stat(path)):
            warning = f"{path}: {distrust}; xendomains runs it as root all the same, and so its settings count."
        read_file(path)
        complaint, auto, save, restore = source_xendomains(path, clock, limit)
    except (OSError, ConfigError) as error:
        complaint, auto, save, restore = "", DEFAULT_AUTO, DEFAULT_SAVE, "true"
        why = str(error) if isinstance(error, ConfigError) else f"cannot be read ({error_text(error)})"
        taken = f"{settings.auto or auto} and {settings.save or save}"
        problems.append(f"{path} {why}; waiting for the guests in {taken} instead.")
    if complaint:
        problems.append(f"{path} has a syntax error ({complaint}); what stands before it counts.")
    is_debians = is_read_by_debians(path)
    restores = restore != "" if is_debians else restore == "true"
    auto, save = settings.auto or auto, (settings.save or save) if restores else ""
    # systemd runs xendomains in /.
    auto, save = (directory and os.path.join("/", directory.rstrip("/")) for directory in (auto, save))
    if not auto and not save:
        problems.append(f"{path} names no directory of guests (XENDOMAINS_AUTO), so xendomains starts none.")
    return Xendomains(auto, save, warning, is_debians), problems


def is_absent(path: str) -> bool:
    """Whether there is certainly no such file; a link that dangles is one."""
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, (FileNotFoundError, NotADirectoryError))
    return False


def is_read_by_debians(path: str) -> bool:
    """Whether Debian's own xendomains, an init script, reads these settings, and not upstream's, which others have."""
    etc, leaf = os.path.split(os.path.dirname(path))
    try:
        # Upstream may have been configured for the same place; its init script only calls a helper program.
        script = read_file(os.path.join(etc, "init.d", "xendomains"))
    except (OSError, ConfigError):
        return False
    return leaf == "default" and b"LIBEXEC_BIN" not in script


def source_xendomains(path: str, clock: Clock, limit: float) -> list[str]:
    """What bash says of a syntax error in the file, and XENDOMAINS_AUTO, _SAVE and _RESTORE as it finds them there.

    bash sources the file as xendomains does, without input or output. Raises ConfigError if there is no bash, or if the
    file takes longer than `limit` seconds or ends the shell. This is not left to subprocess, whose import costs the
    boot as much as everything else here together.
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
    import json  # noqa: F401  the record of the wait needs it, and bash takes as long to start

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
                raise ConfigError("ends the shell that reads it")
            if len(printed) > MAX_CONFIGURATION:
                raise ConfigError(f"makes bash print more than {MAX_CONFIGURATION} bytes")
    finally:
        os.close(reading)
        kill_group(process)
    complaint, *variables = map(os.fsdecode, printed.split(b"\0")[:SOURCED_FIELDS])
    # bash begins each line of a complaint with its own name.
    return [complaint.partition("\n")[0].partition(": ")[2], *variables]


def kill_group(leader: int) -> None:
    """Ends a child and what it left in its process group, even if it has ended itself."""
    with suppress(ProcessLookupError, ChildProcessError):  # whoever started us may have had SIGCHLD ignored
        os.killpg(leader, signal.SIGKILL)
        for _ in range(1000):
            # Not for as long as it takes: where a file system hangs, even what is killed may stay.
            if os.waitpid(leader, os.WNOHANG)[0]:
                break
            time.sleep(0.0001)


# --- Configurations: xl.cfg(5), and the header which xl save writes --------------------------------------------------
@record
class Disk(NamedTuple):
    """A disk as a configuration states it, xl-disk-configuration(5)."""

    vdev: str
    target: str = ""
    format: str = ""
    backend: str = ""  # the domain that holds the disk; empty: this host
    backendtype: str = ""
    script: str = ""
    cdrom: bool = False
    writes: bool = False


@record
class Domain(NamedTuple):
    """A guest that xendomains is about to start (kind "auto") or to restore (kind "saved")."""

    name: str
    source: str
    kind: str
    disks: tuple[Disk, ...] = ()
    warnings: tuple[str, ...] = ()
    boot_files: tuple[Disk, ...] = ()  # with their key for a vdev

    def needs(self) -> tuple[Disk, ...]:
        """What has to be there before it can start."""
        return self.disks + self.boot_files


# xl's scanner (libxlu_cfg_l.l). A comment without a newline behind it is an error there, and so it is here.
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
    """The settings of an xl.cfg(5), by name: exactly what xl takes from it, and the line each value ends in.

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
            before += value  # a list in place: a file may do this thousands of times
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
            break  # xl reports a bad byte together with what follows it, and here nothing does
        if kind is not None:
            yield Token(kind, match.group(kind), line)
            line += kind == "newline"
    while True:
        yield Token("end", "", line)


def xl_value(tokens: Iterator[Token]) -> tuple[str | list[Any], int]:
    """The value that comes next, a string or a list, and the line it ends in."""
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
            raise syntax_error(token, ", or ]" if after_value else "a string, a number or [")
        if not lists:
            return value, token.line
        lists[-1].append(value)
        after_value = True


# xl means to take the digits of an octal number here, but takes up to three characters that strtoul(3) likes in
# base 10 after the first digit, wants at least two of them, and puts nothing in their place.
XL_ESCAPE = r"\\(?:[0-7]([ \t\v\f\r]*[+-]?[0-9]*)|(.))"
XL_ESCAPES = {
    '"': '"', "'": "'", "\\": "\\",
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip


def xl_string(token: Token) -> str:
    """What stands between the quotes, with backslash escapes replaced."""

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
        # xl compares the quotes of a string that ends at the NUL, and aborts.
        raise ConfigError(f"line {token.line}: a NUL byte in the string {quoted(token.text)}")
    return re.sub(XL_ESCAPE, replaced, token.text[1:-1])


# xl's predecessor xm ran its configurations as Python.
PYTHON = "a leftover of xm: xl does not run Python"
PYTHON_WORDS = ("class", "def", "del", "for", "from", "if", "import", "print", "try", "while", "with")
BAD_CHARACTERS = {
    **dict.fromkeys("+*%(){}", PYTHON),
    **dict.fromkeys(("True", "False", "None"), f"{PYTHON}; write 1 for True, and 0 for False"),
    **dict.fromkeys("KMG", "a character that xl does not know (memory is in MiB, without a unit)"),
    "\\": f"a backslash at the end of a line is {PYTHON}; a list may span lines without it",
    "\ufeff": "the file begins with a byte order mark; save it without one",
    '"': "a string that does not end in its line",
    "'": "a string that does not end in its line",
    "#": "a comment on the last line needs a newline at its end",
    "\r": "the file has the line ends of Windows",
}


def syntax_error(token: Token, expected: str) -> ConfigError:
    """The error of xl's parser at this token."""
    if token.kind == "bad":
        hint = BAD_CHARACTERS.get(token.text, "a character that xl does not know")
        return ConfigError(f"line {token.line}: lexical error near '{token.text}', {hint}")
    ends = {"newline": "the end of the line", "end": "the end of the file"}
    near = ends.get(token.kind, f"'{token.text}'")
    return ConfigError(f"line {token.line}: syntax error near {near}, expected {expected}")


def domain_from_xl_config(text: str, source: str, kind: str) -> Domain:
    """The domain an xl.cfg describes. Raises ConfigError where xl or libxl refuses it."""
    settings = parse_xl_config(text)
    if "name" not in settings:
        raise ConfigError('names no domain (name = "…" is missing)')
    name, line = settings["name"]
    if not isinstance(name, str):
        raise ConfigError(f"line {line}: name is a list, not a string")
    boot_files = () if type_in(settings) == "hvm" else boot_files_in(settings)
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
            raise type(error)(f"disk {quoted(specification)}: {error} (the list ends in line {line})") from None
    check_vdevs(disks)
    return Domain(name, source, kind, tuple(disks), (), boot_files)


BOOT_FILES = ("bootloader", "kernel", "ramdisk")
# The words for the type of a domain, and what each means; builder is deprecated.
XL_TYPES = {"type": {"hvm": "hvm", "pv": "pv", "pvh": "pvh"}, "builder": {"hvm": "hvm", "generic": "pv"}}


def type_in(settings: Mapping[str, tuple[Any, int]]) -> str:
    """The type of a domain. xl takes the first letters of a word as well: parse_config_data() in xl_parse.c."""
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


def boot_files_in(settings: Mapping[str, tuple[Any, int]]) -> tuple[Disk, ...]:
    """The files that xl builds a PV or PVH guest from: xl.cfg(5). A bootloader finds the kernel in the guest's disk."""
    values = {key: value for key, (value, _) in settings.items()}
    keys = ("bootloader",) if values.get("bootloader") else ("kernel", "ramdisk")
    # Where libxl looks for a name without a directory depends on how it was built.
    return tuple(Disk(key, values[key]) for key in keys if str(values.get(key)).startswith("/"))


# xl_cmdimpl.c and xl.h in Xen's tools/xl: 32 bytes of magic, then 32-bit words in the byte order of the first.
SAVED_MAGIC = b"Xen saved domain, xl format\n \0 \r"
SAVED_PREFIX = b"Xen saved domain"  # all that xendomains looks at
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
        raise ConfigError(f"needs what xl does not know: mandatory flags {flags:#x}")
    optional = int.from_bytes(words[12:16], order)
    size = int.from_bytes(file.read(4), order) if optional >= 4 else 0
    if size > optional - 4:
        raise ConfigError(f"claims {size} bytes of configuration in {optional} bytes of optional data")
    if size > MAX_CONFIGURATION:
        raise Unsupported(f"claims {size} bytes of configuration; at most {MAX_CONFIGURATION} are read")
    configuration = file.read(size)
    if len(configuration) < size:
        raise ConfigError(f"ends within its configuration: {len(configuration)} of {size} bytes")
    if flags & SAVED_STREAM_V2:
        file.seek(-len(SAVED_END), os.SEEK_END)
        if file.read(len(SAVED_END)) != SAVED_END:
            raise ConfigError("is incomplete, because xl save failed or was ended, and cannot be restored")
    return os.fsdecode(configuration.split(b"\0")[0]), bool(flags & SAVED_JSON)


def domain_from_json(text: str, source: str, kind: str) -> Domain:
    """The domain in the JSON that libxl writes for it (libxl_domain_config_to_json). Raises ConfigError."""
    import json

    depth = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"?|[][{}]', text):
        depth += (mark in "[{") - (mark in "]}")
        if depth > MAX_JSON_DEPTH:
            raise Unsupported("holds JSON that is nested too deep")
    try:
        config = json.loads(text)
        name = config["c_info"]["name"]
        disks = tuple(disk_from_json(disk) for disk in config.get("disks") or ())
    except ValueError as error:
        raise ConfigError(f"holds JSON that is not valid: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"holds JSON that describes no domain ({type(error).__name__}: {error})") from None
    if not isinstance(name, str):
        raise ConfigError("holds JSON whose domain has no name")
    return Domain(name, source, kind, disks)


def disk_from_json(disk: Mapping[str, Any]) -> Disk:
    """A disk in libxl's JSON (libxl_types.idl, libxl_device_disk); values at their default are left out there."""
    keys = {"vdev": "vdev", "target": "pdev_path", "format": "format", "backendtype": "backend", "script": "script"}
    backend = str(disk.get("backend_domname") or disk.get("backend_domid") or "")
    values = {field: str(disk.get(key) or "") for field, key in keys.items()}
    return Disk(**values, backend=backend, cdrom=bool(disk.get("is_cdrom")), writes=bool(disk.get("readwrite")))


# --- Disk specifications: xl-disk-configuration(5) -------------------------------------------------------------------
# The parameters that take one of a few words, and those of them which must not be given again with another word.
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
# trusted, untrusted and grant_usage are unknown to xl 4.17; what stands there is a parameter like any other.
# What begins with suse is SUSE's, of libxl.add-option-to-disable-disk-cache-flushes-in-qdisk.patch in its xen package.
DISK_FLAGS = {
    "cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "trusted", "untrusted",
    "suse-diskcache-disable-flush",
}  # fmt: skip
DISK_FORMAT_PREFIXES = ("raw", "qcow", "qcow2", "vhd")
DISK_SCRIPT_PREFIXES = ("iscsi", "nbd", "enbd", "drbd")
# dmmd and npiv are SUSE's as well, of xen.libxl.dmmd.patch; script=block-dmmd may stand beside them.
DISK_DROPPED_PREFIXES = ("phy", "file", "tap", "tap2", "tapdisk", "aio", "ioemu", "dmmd", "npiv")
DISK_PREFIXES = DISK_FORMAT_PREFIXES + DISK_SCRIPT_PREFIXES + DISK_DROPPED_PREFIXES

# What a parameter may begin with: a legacy prefix, as in phy:/dev/vg0/web, or a key, as in vdev=xvda.
DISK_PREFIX_OR_KEY = r"([a-z][a-z0-9]*):|([a-z][-_a-z0-9]*)="
# What looks like a prefix and may be a vdev with the type of its device, as in hdc:cdrom.
DISK_VDEV_AND_TYPE = r"[a-z0-9]+:[a-z0-9]"


def parse_disk(specification: str) -> Disk:
    """The disk in one item of an xl.cfg's disk list. Raises ConfigError exactly where xl does.

    Source: xl's scanner for it, libxlu_disk_l.l in Xen's tools/libs/util; of its rules the one that matches most wins.
    Two differences: what is too long for any path or script is refused, and so is a line break, of which each of xl's
    rules makes something else.
    """
    if len(specification) > MAX_DISK_SPECIFICATION:
        raise Unsupported(f"is too long for a disk: more than {MAX_DISK_SPECIFICATION} characters")
    if "\n" in specification:
        raise Unsupported("has a line break in it; write it without")
    words = DiskWords()
    rest = specification
    while rest := rest.lstrip(" \t"):
        positional, comma, after = rest.partition(",")
        if "=" in positional:
            positional, comma, after = positional.partition("=")[0], "", rest[rest.index("=") :]
        match = re.match(DISK_PREFIX_OR_KEY, rest)
        prefix, key = match.groups() if match else (None, None)
        if prefix and (prefix in DISK_PREFIXES or not re.match(DISK_VDEV_AND_TYPE, rest)):
            words.set_prefix(prefix)
            after = rest[len(prefix) + 1 :]
        elif key == "target":
            words.set_string("target", rest[len("target=") :].removesuffix(","))
            after = ""
        elif key and (key in DISK_KEYS or rest[len(key) + 1 :][:1] not in ("", ",")):
            value, _, after = rest[len(key) + 1 :].partition(",")
            words.set_key(key, value)
        elif positional in DISK_FLAGS:
            words.cdrom = words.cdrom or positional == "cdrom"
        elif positional or comma:
            words.set_positional(positional)
        elif len(rest) == 1:
            break  # xl reports bad syntax together with what follows it, and here nothing does
        else:
            raise ConfigError(f"bad syntax at {quoted(rest)}")
        rest = after
    return words.disk()


class DiskWords:
    """The parts of a disk specification that have been read so far. Each method raises ConfigError where xl would."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.after_prefix = False
        self.cdrom = False
        self.writes = True

    def set_prefix(self, prefix: str) -> None:
        """A legacy prefix, as in phy:/dev/vg0/web."""
        self.after_prefix = True
        if prefix in DISK_FORMAT_PREFIXES:
            self.set_key("format", prefix)
        elif prefix in DISK_SCRIPT_PREFIXES:
            self.set_string("script", f"block-{prefix}")
        elif prefix not in DISK_DROPPED_PREFIXES:
            raise ConfigError(f"unknown prefix '{prefix}:'")

    def set_string(self, key: str, value: str) -> None:
        """A parameter that must not be given twice; xl does not mind if it was set to nothing."""
        if self.values.get(key):
            raise ConfigError(f"{key} is given twice, the second time as {quoted(value)}")
        self.values[key] = value

    def set_key(self, key: str, value: str) -> None:
        """A parameter written as key=value."""
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
        """A parameter without a key: target, format, vdev, access, in this order; those set already are left out."""
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
        """A vdev, perhaps with the type of the device behind it, as in hdc:cdrom."""
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
    """Raises ConfigError for what xl accepts, and libxl refuses then: libxl_disk.c and libxl_device.c."""
    vdevs = [disk.vdev for disk in disks]
    for number, disk in enumerate(disks):
        if not re.fullmatch(VDEV, disk.vdev):
            raise ConfigError(f"unknown vdev {quoted(disk.vdev)} (use for example xvda, hda or sda)")
        if disk.vdev in vdevs[:number]:
            raise ConfigError(f"two disks have the vdev {quoted(disk.vdev)}")
        needs_target = not (disk.cdrom or disk.script or disk.backend)
        if (needs_target and not disk.target) or (disk.format == "empty" and not disk.cdrom):
            raise ConfigError(f"disk {quoted(disk.vdev)} is empty, and only a CD drive can be")


# --- Required paths: what to look for on this host -------------------------------------------------------------------
@record
class Required(NamedTuple):
    """What a disk needs on this host: a path; if that is empty nothing, and `reason` says why."""

    path: str = ""
    reason: str = ""
    writes: bool = False
    promotes: bool = False  # its script makes a DRBD resource Primary
    format: str = ""  # of an image
    by_script: bool = False  # Xen's block script attaches it
    is_boot_file: bool = False  # which comes with its file system, or not at all


def required_by(disk: Disk) -> Required:
    """What this host must have before the domain with this disk can start."""
    script = os.path.basename(disk.script)
    if disk.backend not in ("", "0", "Domain-0"):
        return Required(reason=f"the driver domain {disk.backend} holds it")
    if disk.format == "empty" or not disk.target:
        return Required(reason="the drive is empty")
    if script == "block-drbd":
        return Required(f"/dev/drbd/by-res/{disk.target}/0", promotes=True)
    # "block" is the script that xl runs when none is given (xl-disk-configuration(5)).
    if script not in ("", "block"):
        return Required(reason=f"the script {script} attaches it")
    if disk.backendtype == "qdisk" and not disk.target.startswith("/"):
        return Required(reason="QEMU opens it")
    # libxl has blkback serve what is raw, and QEMU what is not, or is a CD for it to change (libxl_device.c).
    by_script = disk.format == "raw" and disk.backendtype in ("", "phy") and not disk.cdrom
    required = Required(os.path.join("/", disk.target), writes=disk.writes, format=disk.format)
    return required._replace(by_script=by_script, is_boot_file=disk.vdev in BOOT_FILES)


def older_path(path: str) -> str:
    """What DRBD 8 calls it: a link for each resource, where DRBD 9 has a directory of volumes (drbd.rules)."""
    return path[: -len("/0")] if re.fullmatch(".*/drbd/by-res/[^/]+/0", path) else path


def existing_path(path: str) -> str:
    """The path, or its older form if only that is there. May block."""
    older = older_path(path)
    return older if older != path and os.path.exists(older) and not os.path.isdir(older) else path


def required_unless_ignored(domain: Domain, disk: Disk, settings: Settings) -> Required:
    """What this host must have for this disk, if the administrator does not want it ignored."""
    required = required_by(disk)
    if required.path:
        names = (domain.name, os.path.basename(domain.source))
        if matches_any(names, settings.ignored_domains):
            return Required(reason="[ignore] domains names its domain")
        if matches_any((required.path, older_path(required.path), disk.target), settings.ignored_disks):
            return Required(reason="[ignore] disks names it")
    return required


def matches_any(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Whether one of the shell patterns matches one of the names."""
    if not patterns:
        return False
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


# --- Storage below a disk: what a device stands on, and which layer lacks what ---------------------------------------
# A device is always named as the kernel does (sda, dm-0), and what does not exist by its path.
@record
class Problem(NamedTuple):
    """Why a device or path cannot be used or does not exist, and a command that helps.

    The reason continues a sentence that begins with the device or path. If it is about something else, `device` is the
    kernel's name of that, or `missing` the path below that is missing.
    """

    reason: str
    hint: str = ""
    device: str = ""
    missing: str = ""
    is_readable: bool = False  # it can be used by a guest that only reads


@record
class Layer(NamedTuple):
    """A device, or a path that does not exist: what is wrong with it or with what it needs, and what it stands on."""

    name: str
    problem: Problem | None = None
    below: tuple[Layer, ...] = ()


@record
class Device(NamedTuple):
    """A block device in udev's database."""

    name: str
    links: Sequence[str]
    properties: Mapping[str, str]
    initialized: float  # when udev first saw it, in seconds since the boot


@record
class KnownArray(NamedTuple):
    """An md array by the names that it goes by, and the file that lists it, unless that is mdadm's map of what runs."""

    names: frozenset[str]
    uuid: str
    container: str
    file: str


@record
class VolumeGroup(NamedTuple):
    """A volume group in LVM's backup: the text about it, and about each of its physical and logical volumes."""

    text: str
    date: str
    disks: Mapping[str, str]
    volumes: Mapping[str, str]


@record
class PlannedMount(NamedTuple):
    """What is to be mounted, the table or unit that says so, and whether nothing in that keeps it from being done."""

    source: str
    file: str
    at_boot: bool


@record
class FileSystem(NamedTuple):
    """Where it is mounted, whether it is read-only, and if another one is to be mounted in it at boot, where."""

    place: str
    is_read_only: bool  # itself: the unit's sandbox makes every mount read-only for us
    planned: str


@record
class DrbdState(NamedTuple):
    """A DRBD device, and the best of its peers, in the words of drbdsetup(8)."""

    role: str = "Primary"
    peer_role: str = ""
    disk: str = "UpToDate"
    peer_disk: str = ""
    stopped: str = ""  # why it does no I/O
    is_version_9: bool = False


class StorageFacts:
    """What one look finds out about storage: each thing once, however many disks lie on the same devices."""

    def __init__(self, explains: bool = True, shares: bool = True) -> None:
        self.explains = explains  # why something is missing, which takes longer than to see that it is
        self.shares = shares  # a disk that the peer uses may be used as well, where DRBD allows it
        # For what takes long to find: since Python 3.12, cached_property does not keep threads apart.
        self.lock = RLock()
        self.numbers: dict[str, str] = {}  # of devices whose number is known, such as "8:0"
        self._layers: dict[str, Layer] = {}
        self._devices: dict[str, Device | None] = {}
        self._texts: dict[str, str] = {}
        self._tables: dict[str, list[list[str]]] = {}
        self._groups: dict[str, VolumeGroup | None] = {}
        self._file_systems: dict[str, FileSystem] = {}

    def layer(self, name: str) -> Layer:
        """A device with all that it stands on."""
        if name not in self._layers:
            self._layers[name] = check_device(name, self)
        return self._layers[name]

    def udev_device(self, name: str) -> Device | None:
        """What udev knows about a device; nothing if it does not know it."""
        return self.udev_entry(self.numbers.get(name) or attribute(device_directory(name), "dev"))

    def udev_entry(self, number: str) -> Device | None:
        """The device with this number, such as "8:0"."""
        if number not in self._devices:
            self._devices[number] = read_udev_device(number)
        return self._devices[number]

    def text(self, path: str) -> str:
        """What is in a file, see read_text_file()."""
        if path not in self._texts:
            self._texts[path] = read_text_file(path)
        return self._texts[path]

    def table(self, path: str) -> list[list[str]]:
        """The lines of a table such as fstab(5), as two or more words; a blank in a word is an octal escape."""
        if path not in self._tables:
            lines = [line.split() for line in self.text(path).splitlines() if line and line.lstrip()[:1] != "#"]
            self._tables[path] = [
                [unescaped(word) if "\\" in word else word for word in line] for line in lines if line[1:]
            ]
        return self._tables[path]

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
        """The devices of which one of these properties has this value."""
        return [device for device in self.devices if value in map(device.properties.get, keys)]

    def device_at(self, path: str) -> str:
        """The kernel's name of the device that udev has put or linked there; nothing if there is none."""
        return self.names_by_path.get(path, "") if path.startswith("/dev/") else ""

    @cached_property
    def mounts(self) -> list[list[str]]:
        """What is mounted, as words: the third is the device, the fifth where, and after "-" comes what: proc(5)."""
        mounts = [words for words in self.table(f"{PROC}/self/mountinfo") if "-" in words[5:-2]]
        by_id = {words[0]: words for words in mounts}
        return [words for words in mounts if not is_bound_to_itself(words, by_id.get(words[1], words))]

    def file_system_of(self, directory: str) -> FileSystem:
        """The file system that holds this directory, and the one that is still to be mounted there."""
        if directory not in self._file_systems:
            real = os.path.realpath(directory)
            where = longest_above(real, [words[4] for words in self.mounts])
            options = [words[-1] for words in self.mounts if words[4] == where][-1].split(",") if where else []
            planned = longest_above(real, self.planned_mounts)
            is_missing = where != "" and len(planned) > len(where) and self.is_mounted_at_boot(planned)
            self._file_systems[directory] = FileSystem(where, "ro" in options, planned if is_missing else "")
        return self._file_systems[directory]

    @cached_property
    def mounted(self) -> dict[str, list[tuple[str, bool]]]:
        """Where devices are mounted, by the kernel's name, and whether they are written there."""
        found: dict[str, list[tuple[str, bool]]] = {}
        for words in self.mounts:
            # btrfs has a number of its own, and only the source tells the device.
            source = words[words.index("-") + 2]
            for path in (f"{SYS}/dev/block/{words[2]}", source):
                if path.startswith("/dev/") or not words[2].startswith("0:"):
                    place = (words[4], "ro" not in words[-1].split(","))
                    found.setdefault(os.path.basename(os.path.realpath(path)), []).append(place)
        return found

    @cached_property
    def planned_mounts(self) -> dict[str, PlannedMount]:
        """What is to be mounted, by mount point: systemd.mount(5), and fstab(5), of which it makes units as well."""
        plans: dict[str, PlannedMount] = {}
        texts = {}
        for directory in unit_directories():
            texts.update({unit: self.text(f"{directory}/{unit}") for unit in list_names(directory, r".*\.mount")})
        for unit, text in texts.items():
            keys = dict(re.findall("^(What|Where)=(.+)", text, re.MULTILINE))
            if "Where" in keys:  # one that is masked has nothing
                plan = PlannedMount(keys.get("What", ""), unit, "\nCondition" not in text)
                plans[os.path.normpath(keys["Where"])] = plan
        for pool in list_names(f"{ETC}/zfs/zfs-list.cache"):
            for source, where, *more in self.table(f"{ETC}/zfs/zfs-list.cache/{pool}"):
                plans[where] = PlannedMount(source, f"/etc/zfs/zfs-list.cache/{pool}", more[:1] == ["on"])
        for source, where, *more in self.table(f"{ETC}/fstab"):
            options = ",".join(more[1:2]).split(",")
            at_boot = "noauto" not in options or "x-systemd.automount" in options
            plans[os.path.normpath(where)] = PlannedMount(source, "/etc/fstab", at_boot)
        # No image comes with a tmpfs, such as tmp.mount's.
        return {where: plan for where, plan in plans.items() if plan.source != "tmpfs"}

    def is_mounted_at_boot(self, where: str) -> bool:
        """Whether what is planned there is mounted at boot: a unit has to be wanted by another."""
        plan = self.planned_mounts[where]
        wanted = {plan.file, plan.file.replace(".mount", ".automount")}
        return plan.at_boot and (plan.file.startswith("/") or not wanted.isdisjoint(self.wanted_mounts))

    @cached_property
    def wanted_mounts(self) -> set[str]:
        """The mount and automount units that other units want."""
        wants = [f"{one}/{name}" for one in unit_directories() for name in list_names(one, r".*\.(wants|requires)")]
        return {unit for directory in wants for unit in list_names(directory, r".*mount")}

    @cached_property
    def arrays(self) -> list[KnownArray]:
        """The arrays in mdadm.conf(5), and in /run/mdadm/map: node, metadata, UUID, path."""
        found = []
        for file in ("mdadm/mdadm.conf", "mdadm.conf"):
            for words in self.table(f"{ETC}/{file}"):
                keys = {key.lower(): value for key, _, value in (word.partition("=") for word in words[1:])}
                names = {os.path.basename(word) for word in words[1:] if "=" not in word}
                names.update([keys["name"].rpartition(":")[2]] if "name" in keys else [])
                if words[0] == "ARRAY":
                    uuid = hex_digits(keys.get("uuid", ""))
                    found.append(KnownArray(frozenset(names), uuid, keys.get("container", ""), "mdadm.conf"))
        for name, _, uuid, *paths in (words for words in self.table(f"{RUN}/mdadm/map") if words[2:]):
            found.append(KnownArray(frozenset((name, *map(os.path.basename, paths))), hex_digits(uuid), "", ""))
        return found

    @cached_property
    def maps(self) -> dict[str, str]:
        """The kernel's names of the device-mapper devices, by the names that device-mapper has for them."""
        names = list_names(f"{SYS}/class/block", "dm-[0-9]+")
        return {attribute(device_directory(name), "dm/name"): name for name in names}

    def volume_group(self, name: str) -> VolumeGroup | None:
        """A volume group as vgcfgbackup(8) has it; nothing if there is no backup."""
        if name not in self._groups:
            self._groups[name] = read_volume_group(self.text(f"{ETC}/lvm/backup/{name}"))
        return self._groups[name]

    @cached_property
    def uptime(self) -> float:
        """How long the host runs."""
        seconds = re.match("[0-9]{1,12}", self.text(f"{PROC}/uptime"))
        return float(seconds[0]) if seconds else 0.0

    def device_table(self, kind: str) -> dict[str, tuple[str, list[str]]]:
        """The device of each volume in crypttab(5) or one like it, and its options."""
        lines = self.table(f"{ETC}/{kind}tab")
        return {name: (source, ",".join(more[1:]).split(",")) for name, source, *more in lines}

    @cached_property
    def iscsi_sessions(self) -> dict[str, str]:
        """The state of the session with each target; of several, LOGGED_IN if one is."""
        directory = f"{SYS}/class/iscsi_session"
        states: dict[str, str] = {}
        for session in list_names(directory):
            target, state = (self.text(f"{directory}/{session}/{key}").strip() for key in ("targetname", "state"))
            states[target] = "LOGGED_IN" if states.get(target) == "LOGGED_IN" else state
        return states

    @cached_property
    def iscsi_nodes(self) -> dict[tuple[str, str], str]:
        """node.startup by target and portal, of open-iscsi's records: nodes/TARGET/PORTAL[/IFACE]."""
        from glob import glob

        directories = [f"{directory}/iscsi/nodes" for directory in (ETC, f"{VAR}/lib")]
        nodes = {}
        for path in (path for one in directories for path in (*glob(f"{one}/*/*"), *glob(f"{one}/*/*/*"))):
            record = dict(re.findall(r"^node\.(\S+) = (.*)", self.text(path), re.MULTILINE))
            if "name" in record:
                portal = portal_of(record.get("conn[0].address", ""), record.get("conn[0].port", ""))
                nodes[record["name"], portal] = record.get("startup", "unknown")
        return nodes

    @cached_property
    def drbd_states(self) -> dict[str, DrbdState]:
        """The state of each DRBD device, by number. Version 8 has them in /proc, version 9 only that it is there."""
        text = self.text(f"{PROC}/drbd")
        if text.startswith("version: 9"):
            return drbd_states_from_json(output_of("drbdsetup", "status", "--json"))
        found = re.finditer(r"^ *(\d+): cs:\S+ ro:(\w+)/(\w+) ds:(\w+)/(\w+)(?: \w (s))?", text, re.MULTILINE)
        suspended = "its I/O is suspended"
        return {m[1]: DrbdState(m[2], m[3], m[4], m[5], suspended if m[6] else "") for m in found}

    @cached_property
    def drbd_resources(self) -> dict[str, str]:
        """The configuration of each of DRBD's resources."""
        from glob import glob

        files = [f"{ETC}/drbd.conf"]
        for file in files:
            for pattern in re.findall(r'^[ \t]*include[ \t]+"?([^";\n]+)"?[ \t]*;', self.text(file), re.MULTILINE):
                found = sorted(glob(os.path.join(os.path.dirname(file), pattern)))
                files += [one for one in found if one not in files][:MAX_FILES]
        text = re.sub("#.*", "", "\n".join(map(self.text, files)))
        common, *parts = re.split(r'\bresource\s+"?([^\s"{]+)"?\s*{', text)
        return {name: common + own for name, own in zip(parts[::2], parts[1::2])}


def read_volume_group(text: str) -> VolumeGroup | None:
    """The volume group in this backup; nothing if it is none."""
    head, _, volumes = text.partition("\n\tlogical_volumes {\n")
    head, _, disks = head.partition("\n\tphysical_volumes {\n")
    date = re.search(r"^creation_time = .*# (.*)", text, re.MULTILINE)
    parts = (dict(re.findall(r"^\t\t(\S+) {\n(.*?)^\t\t}", one, re.MULTILINE | re.DOTALL)) for one in (disks, volumes))
    group = VolumeGroup(head, date[1] if date else "of unknown date", *parts)
    return group if group.disks else None


def unit_directories() -> tuple[str, ...]:
    """Where systemd finds units; of those with the same name the last one counts."""
    late, early = (f"{RUN}/systemd/generator{late}" for late in (".late", ""))
    return late, f"{USR}/lib/systemd/system", early, f"{ETC}/systemd/system"


def unescaped(word: str) -> str:
    """A word of a table such as fstab(5), in which a blank is an octal escape."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), word)


def udev_runs() -> bool:
    """Whether there is a udev to wait for (systemd's sd-device asks the same)."""
    return os.path.exists(f"{RUN}/udev/control")


def read_text_file(path: str) -> str:
    """What is in a file; nothing if it cannot be read, or is too large to be what it should be."""
    with suppress(OSError, ValueError):
        return read_file(path, MAX_EVIDENCE).decode(errors="replace")
    return ""


def list_names(directory: str, pattern: str = "") -> list[str]:
    """The names in a directory that are as the regular expression says, sorted; none if it cannot be read."""
    with suppress(OSError, ValueError):
        names = os.listdir(directory)
        return sorted(name for name in names if not pattern or re.fullmatch(pattern, name))[:MAX_FILES]
    return []


def read_udev_device(number: str) -> Device | None:
    """The device with this number in udev's database; nothing while it has no entry there.

    libudev, which takes longer than all else here, reads the same file: "S:LINK" is a link below /dev, "E:KEY=VALUE" a
    property, "I:" the time in microseconds (sd-device.c).
    """
    text = attribute(f"{RUN}/udev/data", f"b{number}")
    if not text:
        return None
    name = os.path.basename(os.readlink(f"{SYS}/dev/block/{number}"))
    links = [f"/dev/{link}" for link in re.findall("^S:(.+)", text, re.MULTILINE)]
    initialized = re.search("^I:([0-9]{1,18})$", text, re.MULTILINE)
    properties = dict(re.findall("^E:([^=\n]*)=(.*)", text, re.MULTILINE))
    return Device(name, links, properties, int(initialized[1]) / 1e6 if initialized else 0.0)


def output_of(*command: str) -> str:
    """What a program prints; nothing if it cannot be run or takes long."""
    from subprocess import DEVNULL, SubprocessError, run

    with suppress(OSError, SubprocessError):
        return run(command, stdin=DEVNULL, capture_output=True, text=True, timeout=MAX_PROGRAM).stdout
    return ""


def is_bound_to_itself(mount: Sequence[str], parent: Sequence[str]) -> bool:
    """Whether a mount shows what is in its place anyway, as that of /home in the unit's sandbox does (ProtectHome=)."""
    place = os.path.join(parent[3], os.path.relpath(mount[4], parent[4]))
    # A subvolume of btrfs that is mounted where it is has another subvolid= in the last word. No path is looked at:
    # what is mounted may hang.
    is_same = mount is not parent and mount[2] == parent[2] and mount[-1] == parent[-1]
    return is_same and mount[3] == os.path.normpath(place)


def longest_above(path: str, places: Iterable[str]) -> str:
    """The one of these places that holds the path, and none of the others between; nothing if none does."""
    return max((one for one in places if f"{path}/".startswith(f"{one.rstrip('/')}/")), key=len, default="")


def device_directory(name: str) -> str:
    """Where sysfs tells about a device."""
    return f"{SYS}/class/block/{name}"


def device_link(number: int) -> str:
    """The link in sysfs to the device with this number; its target ends in the kernel's name of the device."""
    return f"{SYS}/dev/block/{os.major(number)}:{os.minor(number)}"


def device_path(name: str) -> str:
    """The path by which people know a device."""
    mapped = attribute(device_directory(name), "dm/name")
    return f"/dev/mapper/{mapped}" if mapped else f"/dev/{name.replace('!', '/')}"


# What is there: a device, and all that it stands on.
def check_device(name: str, facts: StorageFacts, promotes: bool = False) -> Layer:
    """A block device with all that it stands on, down to the leaves, and what is wrong with it."""
    below = tuple(map(facts.layer, devices_below(name)))
    problem = check_kernel_state(name, facts) or check_driver(name, facts)
    problem = problem or check_lower_devices(name, below) or check_drbd_role(name, promotes, facts)
    return Layer(name, problem or check_udev(name, facts), below)


def devices_below(name: str) -> list[str]:
    """The devices that this one stands on: in sysfs its slaves, or the disk of a partition."""
    directory = device_directory(name)
    below = list_names(f"{directory}/slaves")
    # A device-mapper or md device has no slaves while it has no table or member.
    if not below and name[-1:].isdigit() and os.path.exists(f"{directory}/partition"):
        below = [os.path.basename(os.path.dirname(os.path.realpath(directory)))]
    return below


def check_kernel_state(name: str, facts: StorageFacts) -> Problem | None:
    """What is wrong with a device according to the kernel, whatever lies below it."""
    directory = device_directory(name)
    size = attribute(directory, "size")
    if not size:
        return Problem("it was removed", device=name)
    for names, key, usable, reason in DEVICE_STATES:
        if re.match(names, name):
            value = size if key == "size" else attribute(directory, key)
            if not re.fullmatch(usable, value):
                return explain_state(Problem(reason.format(value), device=name), value, facts)
    return None


# The kernel's names of devices, an attribute of theirs, the values with which they can be used, else what is wrong.
# Sources: the drivers in Linux, and the attributes that systemd's 99-systemd.rules looks at. Weighed were the states of
# SCSI (scsi_sysfs.c: also created, quiesce, offline, cancel, deleted), NVMe (also new, resetting, connecting, deleting,
# dead), md (md.rst: read-auto and readonly can be read, write-pending and active-idle used), loop (a file that was
# deleted can be used), nbd (which keeps its pid while it connects anew), bcache (whose device is there while it can be
# used), rbd, virtio, mmc and ZFS (which show none for a device; but see DRIVERS).
DEVICE_STATES = (
    ("sd", "device/state", "|running", "the kernel calls it {}"),
    ("nvme", "device/state", "|live", "its NVMe controller is not live"),
    ("md", "md/array_state", "(?!clear|inactive|suspended|broken).*", "md array is {}"),
    ("dm-", "dm/suspended", "0?", "device-mapper device is suspended"),
    # lvchange --activationmode partial puts one in the place of what is missing; to read it fails (lv_manip.c).
    ("dm-", "dm/name", "(?!.*-missing_[0-9]+_[0-9]+$).*", "stands in for a physical volume that is missing"),
    ("loop[0-9]+$", "loop/backing_file", ".+", "loop device has no file"),
    ("nbd[0-9]+$", "pid", ".+", "nbd device is not connected to a server"),
    ("drbd", "size", "(?!0$).*", "DRBD device has size 0: it has no disk and no peer"),
    ("(?!sr)", "size", "(?!0$).*", "has size 0"),  # a drive without a CD has, too
)


def explain_state(problem: Problem, state: str, facts: StorageFacts) -> Problem:
    """What more is known about a device that the kernel calls unusable, and a command that helps."""
    if problem.device.startswith("sd"):
        # When the session of an iSCSI disk fails, it is blocked, and later offline; its size stays, udev says nothing.
        target, session = iscsi_session(problem.device)
        if session not in ("", "LOGGED_IN"):
            reason = f"{problem.reason}: its iSCSI session with {target} has failed"
            return problem._replace(reason=reason, hint="iscsiadm -m session -P 1")
    if problem.reason.startswith("md array"):
        return explain_inactive_array(problem.device, state, facts)
    return problem


def iscsi_session(name: str) -> tuple[str, str]:
    """The target of a SCSI disk that is a LUN of iSCSI, and the state of the session; or nothing."""
    # …/host2/session1/target2:0:0/2:0:0:1/block/sda
    session = re.search(r"/(session[0-9]+)/", os.path.realpath(device_directory(name)))
    directory = f"{SYS}/class/iscsi_session/{session[1]}" if session else ""
    return attribute(directory, "targetname"), attribute(directory, "state")


def explain_inactive_array(name: str, state: str, facts: StorageFacts) -> Problem:
    """An md array that is not active, and its members. How many it needs, sysfs does not say then."""
    members = list_names(f"{device_directory(name)}/slaves")
    reason = f"md array is {'empty' if state == 'clear' else state}"
    if members:
        reason += f" with {join_limited(members, MAX_LISTED)}"
    if len(members) == 1:
        reason += " alone"
    if state != "inactive":
        return Problem(reason, f"mdadm --detail /dev/{name}", name)
    if facts.explains:
        reason += f"; {when_it_starts(name, facts)}"
    return Problem(reason, f"mdadm --run /dev/{name}", name)


def when_it_starts(name: str, facts: StorageFacts) -> str:
    """What becomes of an inactive md array: mdadm's udev rules start mdadm-last-resort@.timer for an unsafe one."""
    members = [one for one in facts.devices_with(name, "MD_DEVICE") if one.properties.get("MD_STARTED") == "unsafe"]
    if not members:
        return "nothing starts it unless another member comes"
    waits = facts.uptime - max(member.initialized for member in members)
    with suppress(OSError):
        # udev may have seen them long before in the initramfs; mdadm writes its map when it adds one.
        waits = min(waits, time.time() - os.stat(f"{RUN}/mdadm/map").st_mtime)
    if waits < LAST_RESORT + LATE_TIMER:
        return f"mdadm starts it degraded after {LAST_RESORT:.0f} s"
    return f"mdadm has not started it degraded, though it waits for {waits:.0f} s"


def check_driver(name: str, facts: StorageFacts) -> Problem | None:
    """What is wrong with a device whose driver shows more than an attribute."""
    return next((check(name, facts) for names, check in DRIVERS if name.startswith(names)), None)


def check_nvme(name: str, _: StorageFacts) -> Problem | None:
    """A disk of several NVMe controllers (native multipath) needs one that is live, with a path to the namespace.

    A path of asymmetric access is named as nvme0c1n1 (multipath.c, nvme_ana_state_names).
    """
    disk = re.fullmatch("(nvme[0-9]+)(n[0-9]+)", name)
    directory = f"{device_directory(name)}/device"
    controllers = [f"{directory}/{one}" for one in list_names(directory, "nvme[0-9]+")] if disk else []
    live = [one for one in controllers if attribute(one, "state") == "live"]
    if disk is None or not controllers:
        return None
    if not live:
        return Problem("none of its NVMe controllers is live", "nvme list-subsys", name)
    paths = [f"{one}/{path}" for one in live for path in list_names(one, f"{disk[1]}c[0-9]+{disk[2]}")]
    states = [attribute(path, "ana_state") for path in paths]
    if states and not {"", "optimized", "non-optimized"}.intersection(states):
        return Problem(f"its NVMe paths are {join_limited(states, MAX_LISTED)}", "nvme list-subsys", name)
    return None


def check_zvol(name: str, facts: StorageFacts) -> Problem | None:
    """A volume in a pool of which ZFS has suspended all I/O (zpoolprops(7), failmode)."""
    device = facts.udev_device(name)
    pools = [link.split("/")[3] for link in device.links if link.startswith("/dev/zvol/")] if device else []
    if pools and facts.text(f"{PROC}/spl/kstat/zfs/{pools[0]}/state").strip() == "SUSPENDED":
        return Problem(f"ZFS pool {pools[0]} is suspended", f"zpool clear {pools[0]}", name)
    return None


def check_drbd(name: str, facts: StorageFacts) -> Problem | None:
    """A DRBD device with good data neither here nor at its peer, or which does no I/O."""
    state = drbd_state(name, facts)
    if state.stopped:
        return Problem(f"DRBD does no I/O: {state.stopped}", "drbdadm status", name)
    if state.disk not in ("UpToDate", "Consistent") and state.peer_disk != "UpToDate":
        peer = "is not connected" if state.peer_disk in ("", "DUnknown") else f"has one that is {state.peer_disk}"
        return Problem(f"DRBD's disk is {state.disk}, and the peer {peer}", "drbdadm status", name)
    return None


def drbd_state(name: str, facts: StorageFacts) -> DrbdState:
    """How a DRBD device is, or the one of which this is a partition."""
    with facts.lock:
        states = facts.drbd_states
    return states.get(name[len("drbd") :].partition("p")[0], DrbdState())


def check_drbd_role(name: str, promotes: bool, facts: StorageFacts) -> Problem | None:
    """A DRBD device that is not Primary, and which nothing makes so when a guest starts."""
    state = drbd_state(name, facts) if name.startswith("drbd") else DrbdState()
    if state.role == "Primary":
        return None
    resources, minor = facts.drbd_resources, name[len("drbd") :].partition("p")[0]
    resource = next((one for one, text in resources.items() if has_minor(text, minor)), "RESOURCE")
    is_shared = facts.shares and any("allow-two-primaries" in text for text in resources.values())
    # Version 9 becomes Primary by itself when it is opened, unless drbd.conf forbids that.
    promotes |= state.is_version_9 and not re.search(r"auto-promote\s+no\b", resources.get(resource, ""))
    if promotes and (state.peer_role != "Primary" or is_shared):
        return None
    if state.peer_role == "Primary":
        return Problem(f"DRBD is {state.role}, and its peer is Primary", "drbdadm status", name)
    peer = ", and its peer is not connected" if state.peer_role == "Unknown" else ""
    return Problem(f"DRBD is {state.role}{peer}", f"drbdadm primary {resource}", name)


# What the kernel's names of devices begin with, and what looks at the state of their driver.
DRIVERS = (("drbd", check_drbd), ("nvme", check_nvme), ("zd", check_zvol))


def drbd_states_from_json(text: str) -> dict[str, DrbdState]:
    """The states in what `drbdsetup status --json` prints."""
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
                states[str(device["minor"])] = DrbdState(
                    str(resource["role"]), peer_role, str(device["disk-state"]), best, stopped, is_version_9=True
                )
    return states


def has_minor(configuration: str, minor: str) -> bool:
    """Whether a resource's configuration gives it the device with this number."""
    return re.search(rf"(minor\s+|/dev/drbd){minor}\b", configuration) is not None


def check_lower_devices(name: str, below: Sequence[Layer]) -> Problem | None:
    """What is wrong with what this one stands on: there is too little that holds the same data, or anything else."""
    bad = {layer.name: layer.problem for layer in below if layer.problem}
    degraded = attribute(device_directory(name), "md/degraded") if name.startswith("md") else ""
    if below and not bad and degraded in ("", "0"):
        return None
    word, usable, needed = redundant_members(name, [layer.name for layer in below], bad)
    first, problem = next(iter(bad.items()), ("", Problem("")))
    if not word and not bad:
        return None
    if not word:
        # Only the layer that is to blame is named.
        place = f"{device_path(first)} below it: " if problem.device == first else ""
        return problem._replace(reason=place + problem.reason)
    if usable >= needed:
        return None
    few = f"no {word} of it" if usable == 0 else f"{usable} of the {needed} {word}s that it needs"
    why = f"; {device_path(first)}: {problem.reason}" if bad else ""
    return Problem(f"{few} can be used{why}", problem.hint or MEMBER_HINTS[word].format(device_path(name)), name)


MEMBER_HINTS = {
    "path": "multipath -ll",
    "leg": "lvs --all --options +devices",
    **dict.fromkeys(("member", "mirrored pair"), "mdadm --detail {}"),
}


def redundant_members(name: str, below: Sequence[str], bad: Container[str]) -> tuple[str, int, int]:
    """What those devices are called that hold the same data, how many of them can be used, and how many are needed.

    Without a name there is no redundancy, and everything below is needed.
    """
    uuid = attribute(device_directory(name), "dm/uuid") if name.startswith("dm-") else ""
    if uuid.startswith("mpath-"):
        return "path", sum(one not in bad for one in below), 1
    if name.startswith("md"):
        return array_members(name, below, bad)
    legs = [one for one in below if uuid and re.search("_[rm]image_[0-9]+$", device_path(one))]
    if not legs:
        return "", 0, 0
    # As many as it takes to hold the volume's data: of a RAID10 whose pairs are not known, that is the least.
    size, leg = (int(attribute(device_directory(one), "size") or 1) for one in (name, legs[0]))
    return "leg", sum(one not in bad for one in legs), -(-size // max(leg, 1))


def array_members(name: str, below: Sequence[str], bad: Container[str]) -> tuple[str, int, int]:
    """The same of an md array: md(4), and Documentation/admin-guide/md.rst in Linux."""
    directory = f"{device_directory(name)}/md"
    level, layout, disks = (attribute(directory, key) for key in ("level", "layout", "raid_disks"))
    total = int(re.match("[0-9]*", disks)[0] or len(below))  # type: ignore[index]
    members = [one for one in list_names(directory, "dev-.+") if one[len("dev-") :] not in bad]
    members = [f"{directory}/{one}" for one in members if "in_sync" in attribute(f"{directory}/{one}", "state")]
    if level == "raid10" and layout == "258" and total % 2 == 0:  # two copies, side by side
        pairs = {int(attribute(member, "slot") or 0) // 2 for member in members}
        return "mirrored pair", len(pairs), total // 2
    needed = {"raid1": 1, "multipath": 1, "raid10": total - total // 2, "raid6": total - 2}
    needed.update(dict.fromkeys(("raid4", "raid5"), total - 1))
    return ("member", len(members), needed[level]) if level in needed else ("", 0, 0)


def check_udev(name: str, facts: StorageFacts, is_disk: bool = False) -> Problem | None:
    """What is wrong with a device according to udev, which says more about the disk itself."""
    device = facts.udev_device(name)
    properties = device.properties if device else {}
    # systemd 256 and newer write the entry early, and keep ID_PROCESSING in it until the programs of the rules have run
    # (udev-worker.c; `udevadm wait` looks at the same).
    if properties.get("ID_PROCESSING") == "1" or (is_disk and device is None):
        return Problem("udev has not finished with it", "udevadm settle", name)
    if properties.get("MPATH_DEVICE_READY") == "0":  # 56-dm-mpath.rules; paths may run already
        return Problem("multipathd uses none of its paths", "multipath -ll", name)
    if not is_disk or properties.get("SYSTEMD_READY") != "0" or is_ready_for_a_guest(properties):
        return None
    if device and was_activated_without_udev(device, facts):
        return None
    if properties.get("DM_MULTIPATH_DEVICE_PATH") == "1":
        return Problem("is one path of a multipath device; use the multipath device instead", "multipath -ll")
    return Problem("udev says that it is not ready (SYSTEMD_READY=0)")


def is_ready_for_a_guest(properties: Mapping[str, str]) -> bool:
    """Whether udev calls it not ready for a reason that concerns this host only, and not a guest.

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
    """Whether an initramfs without udev has set up a device-mapper device.

    10-dm.rules then knows neither its name nor its flags, and calls it not ready for ever; xl starts the guest. While
    LVM sets one up it looks the same for some milliseconds, until the event that ends that has been handled.
    """
    is_unknown = "DM_UUID" not in device.properties and "DM_NAME" not in device.properties
    is_settled = facts.uptime - device.initialized > SETTLED and not os.path.exists(f"{RUN}/udev/queue")
    return is_unknown and device.properties.get("DM_UDEV_DISABLE_OTHER_RULES_FLAG") == "1" and is_settled


# What is missing: a function for each kind of path, from evidence in /etc and in udev's database.
def explain_missing(path: str, facts: StorageFacts) -> Problem:
    """Why there is nothing at a path, down to the layer that is the cause, and what to do about that. May block."""
    target = os.path.realpath(path)
    reasons = [f"is a link to {target}, which does not exist"] if os.path.islink(path) else []
    hint = ""
    with facts.lock:
        layers = [explain_path(target, facts)]
    for layer in layers:
        if layer.problem:
            reasons.append(layer.problem.reason)
            hint = layer.problem.hint or hint
            layers += layer.below if layer.problem.missing else ()
    parent = os.path.dirname(path)
    plain = "does not exist" if os.path.isdir(parent) else f"does not exist, nor does the directory {parent}"
    return Problem(": ".join(reasons[:MAX_CHAIN])[:MAX_REASON] or plain, hint[:MAX_REASON])


def explain_path(path: str, facts: StorageFacts, depth: int = MAX_CHAIN) -> Layer:
    """The device at a path; or if there is none, what the first row says that knows anything, and what it blames."""
    if name := facts.device_at(path):
        return facts.layer(name)
    found = ((explain, re.fullmatch(pattern, path)) for pattern, explain in EXPLANATIONS)
    problem = next(filter(None, (explain(match, facts) for explain, match in found if match)), None)
    missing = problem.missing if problem and depth > 1 else ""
    return Layer(path, problem, (explain_path(missing, facts, depth - 1),) if missing else ())


def explain_file(match: re.Match[str], facts: StorageFacts) -> Problem | None:
    """A file below a mount point: fstab(5), systemd.mount(5), /proc/self/mountinfo in proc(5)."""
    where = longest_above(match[0], facts.planned_mounts)
    # Where systemd mounts on demand, autofs is mounted until then.
    if where in ("", "/", *(os.path.normpath(words[4]) for words in facts.mounts if "autofs" not in words)):
        return None
    plan = facts.planned_mounts[where]
    pool = plan.source.partition("/")[0]
    if "zfs-list.cache" in plan.file and (problem := check_imported(pool)):
        return problem._replace(reason=f"{not_mounted(where, plan)}: {problem.reason}")
    return Problem(not_mounted(where, plan), f"systemctl status {where}", missing=path_of(plan.source))


def not_mounted(where: str, plan: PlannedMount) -> str:
    """Says so."""
    return f"{where} is not mounted ({plan.file} mounts {plan.source} there)"


def path_of(source: str) -> str:
    """Where udev links UUID=… and the like, in fstab(5) and crypttab(5); nothing if it is not a device."""
    tag, _, value = source.partition("=")
    if tag in TAGS:
        return f"/dev/disk/by-{tag.lower()}/{udev_name(value.strip(chr(34)))}"
    return source if source.startswith("/dev/") else ""


def udev_name(text: str) -> str:
    """A text as udev has it in the name of a link (encode_devnode_name)."""
    return hex_escaped(r"[^\w#+.:=@-]", text)


def unit_name(text: str) -> str:
    """A text as it is in the name of a unit: systemd.unit(5), "String escaping"."""
    return hex_escaped("[^a-zA-Z0-9:_./]", text).replace("/", "-")


def hex_escaped(pattern: str, text: str) -> str:
    """The text with each byte of the characters that match the pattern as \\xNN."""
    return re.sub(pattern, lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()), text)


def map_name(group: str, volume: str) -> str:
    """The name that LVM has a volume mapped by."""
    return f"{group.replace('-', '--')}-{volume.replace('-', '--')}"


def portal_of(address: str, port: str) -> str:
    """A portal as udev writes it in by-path links, and iscsiadm takes it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def explain_array(match: re.Match[str], facts: StorageFacts) -> Problem:
    """An md array by its name or its node; one that is inactive has no link with its name yet."""
    wanted = match["name"]
    names, known = array_names(wanted), arrays_named(wanted, facts)
    uuids = {array.uuid for array in known if array.uuid}
    members = [device for device in facts.devices if is_member(device.properties, names, uuids)]
    nodes = {device.properties.get("MD_DEVICE", "") for device in members}.union(*(array.names for array in known))
    for name in list_names(f"{SYS}/class/block", "md[0-9]+"):
        if name in nodes or not {one.name for one in members}.isdisjoint(
            list_names(f"{device_directory(name)}/slaves")
        ):
            if problem := facts.layer(name).problem:
                reason = problem.reason.replace(
                    "md array", f"array {wanted} ({name})" if wanted != name else "md array"
                )
                return problem._replace(reason=reason)
            return Problem(f"array {wanted} runs as {name}, under another name", f"mdadm --detail /dev/{name}")
    if members:
        found = join_limited([device.name for device in members], MAX_LISTED)
        return Problem(f"array {wanted} is not assembled; its members include {found}", "mdadm --assemble --scan")
    if known and known[0].container:
        return Problem(f"array {wanted} lies in container {known[0].container}", missing=known[0].container)
    listed = f"though {known[0].file} lists it" if known else "and mdadm.conf does not list it"
    return Problem(f"no member of array {wanted} found, {listed}", "mdadm --examine --scan")


def is_member(properties: Mapping[str, str], names: Container[str], uuids: Container[str]) -> bool:
    """Whether udev knows a device as a member of the md array with one of these names or UUIDs."""
    if properties.get("MD_DEVICE") in names or properties.get("MD_DEVNAME") in names:
        return True
    if not properties.get("ID_FS_TYPE", "").endswith("_raid_member"):
        return False
    # The label is HOST:NAME.
    return (
        properties.get("ID_FS_LABEL", "").rpartition(":")[2] in names
        or hex_digits(properties.get("ID_FS_UUID", "")) in uuids
    )


def hex_digits(uuid: str) -> str:
    """A UUID without what mdadm and udev put between its digits, in places of their own."""
    return re.sub("[^0-9a-f]", "", uuid.lower())


def array_names(name: str) -> set[str]:
    """The names that an md array with this one has: /dev/md/0 is /dev/md0."""
    return {name, name.removeprefix("md")}


def arrays_named(name: str, facts: StorageFacts) -> list[KnownArray]:
    """The known arrays with this name."""
    return [array for array in facts.arrays if not array_names(name).isdisjoint(array.names)]


def is_in_mdadm_conf(name: str, facts: StorageFacts) -> bool:
    """Whether mdadm.conf gives an array this name."""
    return any(array.file for array in arrays_named(name, facts))


def explain_active_map(match: re.Match[str], facts: StorageFacts) -> Problem | None:
    """A map or volume that is there, but has no link."""
    name = facts.maps.get(match["name"] or map_name(match["group"] or "", match["volume"] or ""))
    if not name:
        return None
    hint = f"udevadm trigger --action=change /sys/class/block/{name}"
    return Problem(f"is active as {name}, but udev has made no link to it", hint)


def explain_partition(match: re.Match[str], facts: StorageFacts) -> Problem | None:
    """A partition of a disk, array or map that is there."""
    whole, number = match["whole"], match["number"]
    if not (name := facts.device_at(whole)):
        return None
    return facts.layer(name).problem or Problem(f"{whole} is there, but has no partition {number}", f"lsblk {whole}")


def explain_crypt(match: re.Match[str], facts: StorageFacts) -> Problem | None:
    """What systemd sets up by a table: crypttab(5), integritytab(5), veritytab(5)."""
    name = match["name"]
    for kind in ("crypt", "integrity", "verity"):
        source, options = facts.device_table(kind).get(name, ("", []))
        if source:
            device = facts.device_at(path_of(source))
            noauto = " (option noauto)" if "noauto" in options else ""
            there = f"/dev/{device} is there" if device else f"{source} is missing"
            hint = f"systemctl start 'systemd-{kind}setup@{unit_name(name)}'"
            reason = f"is not opened; its device {there}{noauto}, according to /etc/{kind}tab"
            return Problem(reason, hint, missing="" if device else path_of(source))
    return None


def explain_map(match: re.Match[str], facts: StorageFacts) -> Problem | None:
    """A multipath map by its alias, the name it is bound to, or its WWID: multipath.conf(5)."""
    name = match["name"]
    wwid, file = name if f"/{name}/\n" in facts.text(f"{ETC}/multipath/wwids") else "", "wwids"
    for alias, bound, *_ in facts.table(f"{ETC}/multipath/bindings"):
        wwid, file = (bound, "bindings") if alias == name else (wwid, file)
    for entry in re.findall(r"\bmultipath\s*{([^{}]*)}", facts.text(f"{ETC}/multipath.conf")):
        keys = dict(re.findall(r'^\s*(wwid|alias)\s+"?([^"\s]+)', entry, re.MULTILINE))
        wwid, file = (keys.get("wwid", ""), "multipath.conf") if keys.get("alias") == name else (wwid, file)
    if not wwid:
        return None
    paths = [one for one in facts.devices_with(wwid, "ID_SERIAL", "ID_UID", "ID_WWN") if not one.name.startswith("dm-")]
    if names := [one.name for one in paths if "ID_PART_ENTRY_NUMBER" not in one.properties]:
        return Problem(
            f"{join_limited(names, MAX_LISTED)} can be paths to {wwid}, and there is no map", "multipath -v2"
        )
    return Problem(f"no path to {wwid} is there, according to multipath's {file}", "multipath -v2", missing=ANY_LUN)


def explain_volume(match: re.Match[str], facts: StorageFacts) -> Problem | None:
    """A logical volume: LVM's backup tells what it lies on, and udev which of that is there."""
    name, volume = match["group"], match["volume"]
    if is_mapped := match[0].startswith("/dev/mapper/"):
        name, volume = name.replace("--", "-"), volume.replace("--", "-")
    file, group = f"/etc/lvm/backup/{name}", facts.volume_group(name)
    if group is None:
        # Others have names of two parts as well.
        if is_mapped or not list_names(f"{ETC}/lvm/backup") or os.path.isdir(f"/dev/{name}"):
            return None
        return Problem(f"volume group {name} is unknown here (no {file})", "vgs")
    if volume not in group.volumes:
        return Problem(f"volume group {name} has no volume {volume} ({file}, {group.date})", f"lvs {name}")
    disks = {key: group.disks[key] for key in disks_of(volume, group)} or group.disks
    return explain_disks(name, disks, facts) or explain_inactive_volume(name, volume, group, facts)


def disks_of(volume: str, group: VolumeGroup) -> set[str]:
    """The physical volumes that a logical one lies on, also by way of its sub-volumes and its pool."""
    volumes, disks = [volume], set()
    for one in volumes:
        words = set(re.findall('"([^"]+)"', group.volumes[one]))
        disks.update(words.intersection(group.disks))
        volumes += words.intersection(group.volumes).difference(volumes)
    return disks


def explain_disks(group: str, disks: Mapping[str, str], facts: StorageFacts) -> Problem | None:
    """Which physical volumes are missing or cannot be used by LVM, of those that a volume needs."""
    lacking = []
    shown = facts.text(f"{ETC}/lvm/devices/system.devices")
    for text in disks.values():
        uuid, device, ident = (backup_value(text, key) for key in ("id", "device", "device_id"))
        found = {one.name: one.properties for one in facts.devices_with(uuid, "ID_FS_UUID")}
        # All the paths of a multipath device are one disk.
        holders = [name for name, has in found.items() if has.get("DM_MULTIPATH_DEVICE_PATH") != "1"]
        if len(holders) > 1:
            reason = f"{join_limited(holders, MAX_LISTED)} carry the same PV UUID (a LUN and its clone?)"
            return Problem(reason, "vgimportclone /dev/CLONE")
        if holders and "PVID=" in shown and uuid.replace("-", "") not in shown:
            reason = f"{holders[0]} is hidden from LVM: it is not in /etc/lvm/devices/system.devices"
            return Problem(reason, f"lvmdevices --adddev {device_path(holders[0])}")
        lacking += [] if holders else [(uuid, device, ident)]
    if not lacking:
        return None
    # LVM writes "[unknown]" where it has not seen the device either.
    names = [f"{uuid} (last seen as {device})" if device.startswith("/") else uuid for uuid, device, _ in lacking]
    _, missing, ident = lacking[0]
    if missing.startswith(ANY_LUN):  # of which the name may be another one today
        missing = "" if re.search("ATA|^eui|^nvme", ident) else ANY_LUN
    reason = f"volume group {group} lacks physical volume {join_limited(names, MAX_LISTED)}"
    return Problem(f"{reason}, according to /etc/lvm/backup/{group}", missing=missing)


def backup_value(text: str, key: str) -> str:
    """A value in LVM's backup."""
    found = re.search(rf'^[ \t]*{key} = "([^"]*)"', text, re.MULTILINE)
    return found[1] if found else ""


def explain_inactive_volume(name: str, volume: str, group: VolumeGroup, facts: StorageFacts) -> Problem:
    """Why a volume is not active though its disks are there, according to the flags of LVM's backup."""
    pool = backup_value(group.volumes[volume], "thin_pool")
    lock = backup_value(group.text, "lock_type")
    if re.search('^[ \t]*status = .*"EXPORTED"', group.text, re.MULTILINE):
        return Problem(f"volume group {name} is exported", f"vgimport {name}")
    if lock in ("sanlock", "dlm"):
        reason = f"volume group {name} is shared ({lock}), and this volume is not activated"
        return Problem(reason, f"vgchange --lockstart {name}")
    if has_flag(group.volumes[volume], "ACTIVATION_SKIP"):
        return Problem(
            "this volume is not activated: it has the activation skip flag", f"lvchange -ay -K {name}/{volume}"
        )
    if pool and f"{map_name(name, pool)}-tpool" not in facts.maps:
        reason = f"volume group {name} is complete, but neither this volume nor its thin pool {pool} is activated"
        return Problem(reason, f"vgchange -ay {name} || lvconvert --repair {name}/{pool}")
    return Problem(f"volume group {name} is complete, but this volume is not activated", f"vgchange -ay {name}")


def has_flag(text: str, flag: str) -> bool:
    """Whether a volume or group in LVM's backup has this flag."""
    return re.search(rf'^[ \t]*flags = .*"{flag}"', text, re.MULTILINE) is not None


def explain_iscsi_disk(match: re.Match[str], facts: StorageFacts) -> Problem:
    """A LUN of an iSCSI target, by its path."""
    target, portal = match["target"], match["portal"]
    state = facts.iscsi_sessions.get(target)
    if state is None:
        return without_session(target, portal, facts)
    if state != "LOGGED_IN":
        return Problem(f"the session with target {target} at {portal} has failed", "iscsiadm -m session -P 1")
    return Problem(
        f"target {target} has a session, but at {portal} no LUN {match['lun']}", "iscsiadm -m session --rescan"
    )


def explain_lun(_: re.Match[str], facts: StorageFacts) -> Problem | None:
    """A SCSI disk, by a name that does not say of which target it was; those to log in to at boot are likely."""
    nodes, sessions = facts.iscsi_nodes.items(), facts.iscsi_sessions
    absent = {target: portal for (target, portal), start in nodes if target not in sessions and start in AT_BOOT}
    if len(absent) == 1:
        return without_session(*absent.popitem(), facts)
    reason = f"probably a LUN of one of these targets without a session: {join_limited(sorted(absent), MAX_LISTED)}"
    return Problem(reason, "iscsiadm -m node --login") if absent else None


def without_session(target: str, portal: str, facts: StorageFacts) -> Problem:
    """A target to which the host has not logged in."""
    reason = f"target {target} at {portal} has no session"
    if startup := facts.iscsi_nodes.get((target, portal)):
        return Problem(f"{reason}; node.startup is {startup}", f"iscsiadm -m node -T {target} --login")
    reason += ", nor is it among the nodes of open-iscsi"
    return Problem(reason, f"iscsiadm -m discovery -t sendtargets -p {portal}")


def explain_drbd(match: re.Match[str], facts: StorageFacts) -> Problem | None:
    """A DRBD device, by its resource, its number or its lower disk: it is there when the resource is up."""
    resources, minor, disk = facts.drbd_resources, match["minor"], match["disk"]
    of_disk = rf'disk\s+"?/dev/{re.escape(disk or "")}[";\s]'
    name = match["resource"] or ""
    for one, text in resources.items():
        if (minor and has_minor(text, minor)) or (disk and re.search(of_disk, text)):
            name = one
    if name not in resources:
        return Problem(f"no resource {name or 'for it'} is in /etc/drbd.conf or what that includes", "drbdadm dump")
    names = list_names(f"{SYS}/class/block", "drbd.*")
    is_up = any(has_minor(resources[name], one[len("drbd") :]) for one in names)
    return None if is_up else Problem(f"resource {name} is not up", f"drbdadm up {name}")


def explain_zvol(match: re.Match[str], _: StorageFacts) -> Problem:
    """A volume of ZFS."""
    pool = match["pool"]
    absent = Problem(
        f"pool {pool} has no such volume, or its key is not loaded", f"zfs list -r -o name,keystatus {pool}"
    )
    return check_imported(pool) or absent


def check_imported(pool: str) -> Problem | None:
    """A pool of ZFS that is not imported: its module keeps a directory for each that is."""
    is_imported = pool in list_names(f"{PROC}/spl/kstat/zfs")
    return None if is_imported else Problem(f"pool {pool} is not imported", f"zpool import {pool}")


def explain_rbd(match: re.Match[str], facts: StorageFacts) -> Problem:
    """An image of Ceph: rbdmap(8)."""
    image = match["image"]
    if image in (words[0] for words in facts.table(f"{ETC}/ceph/rbdmap")):
        return Problem("is in /etc/ceph/rbdmap, but not mapped", "systemctl restart rbdmap.service")
    return Problem("is not mapped, and not in /etc/ceph/rbdmap", f"rbd device map {image}")


def explain_bcache(_: re.Match[str], facts: StorageFacts) -> Problem | None:
    """A bcache device: those whose cache is missing are not there (Documentation/admin-guide/bcache.rst in Linux)."""
    backing = [one.name for one in facts.devices_with("bcache", "ID_FS_TYPE")]
    stopped = [one for one in backing if attribute(f"{device_directory(one)}/bcache", "running") == "0"]
    if not stopped:
        return None
    hint = f"echo 1 >/sys/class/block/{stopped[0]}/bcache/running"
    return Problem(f"backing device {join_limited(stopped, MAX_LISTED)} lacks its cache", hint)


def explain_fc_disk(match: re.Match[str], _: StorageFacts) -> Problem:
    """A LUN behind a remote port of Fibre Channel (scsi_transport_fc.c)."""
    port, directory = match["port"], f"{SYS}/class/fc_remote_ports"
    states = {
        attribute(f"{directory}/{one}", "port_name"): attribute(f"{directory}/{one}", "port_state")
        for one in list_names(directory)
    }
    if port in states:
        lun = f"no LUN {match['lun']}" if states[port] == "Online" else f"is {states[port]}"
        return Problem(f"remote port {port} {'has ' if 'LUN' in lun else ''}{lun}", "rescan-scsi-bus.sh")
    hosts = {one: attribute(f"{SYS}/class/fc_host/{one}", "port_state") for one in list_names(f"{SYS}/class/fc_host")}
    ours = join_limited([f"{host} is {state}" for host, state in hosts.items()], MAX_LISTED)
    return Problem(f"remote port {port} is not seen{f'; {ours}' if ours else ''}", "lsscsi --hosts --transport")


def explain_link(match: re.Match[str], facts: StorageFacts) -> Problem | None:
    """A link by what a block device holds or is."""
    tag, value = match["tag"].upper(), match["value"]
    if facts.devices_with(value, TAGS[tag]):
        return None
    missing = f"/dev/mapper/{value[len('dm-name-') :]}" if value.startswith("dm-name-") else ""
    if tag != "ID" or value.startswith(("scsi-", "wwn-")):
        missing = ANY_LUN
    hint = f"lsblk -o NAME,{tag}" if TAGS[tag] else "ls /dev/disk/by-id"
    return Problem(f"no block device has this {tag}", hint, missing=missing)


# The links that udev makes below /dev/disk, and the property that each is made of; by-id is made of many.
TAGS = {
    "ID": "",
    "LABEL": "ID_FS_LABEL_ENC",
    "PARTLABEL": "ID_PART_ENTRY_NAME",
    "PARTUUID": "ID_PART_ENTRY_UUID",
    "UUID": "ID_FS_UUID_ENC",
}
NOT_LVM = "bcache|cciss|disk|etherd|ida|input|mapper|md|nbd|raw|rbd|zvol"  # directories of others below /dev
AT_BOOT = ("automatic", "onboot")  # values of open-iscsi's node.startup
ANY_LUN = "/dev/sd"  # what the names of SCSI disks begin with

EXPLANATIONS: Sequence[tuple[str, Callable[[re.Match[str], StorageFacts], Problem | None]]] = (
    (
        "(?P<whole>/dev/([svh]d[a-z]+|md/.*[^0-9]|.*[0-9](?=p)|.+(?=-part)))(-part|p)?(?P<number>[0-9]+)",
        explain_partition,
    ),
    ("/dev/disk/by-path/ip-(?P<portal>.+?)-iscsi-(?P<target>.+)-lun-(?P<lun>[^-]+)(-part[0-9]+)?", explain_iscsi_disk),
    ("/dev/disk/by-path/.*-fc-(?P<port>0x[0-9a-f]+)-lun-(?P<lun>[^-]+)(-part[0-9]+)?", explain_fc_disk),
    ("/dev/disk/by-(?P<tag>id|label|partlabel|partuuid|uuid)/(?P<value>.+)", explain_link),
    ("/dev/md/(?P<name>.+)", explain_array),
    ("/dev/(?P<name>md_?d?[0-9]+)(p[0-9]+)?", explain_array),
    (
        "/dev/drbd(/by-res/(?P<resource>[^/]+)(/[0-9]+)?|/by-disk/(?P<disk>.+)|(?P<minor>[0-9]+))",
        explain_drbd,
    ),
    ("/dev/zvol/(?P<pool>[^/]+)/.+", explain_zvol),
    ("/dev/rbd/(?P<image>.+)", explain_rbd),
    ("/dev/bcache[0-9]+(p[0-9]+)?", explain_bcache),
    (r"/dev/(mapper/(?P<name>.+)|(?P<group>[\w.+-]+)/(?P<volume>[\w.+-]+))", explain_active_map),
    ("/dev/mapper/(?P<name>.+)", explain_crypt),
    ("/dev/mapper/(?P<name>.+?)(-part[0-9]+)?", explain_map),
    ("/dev/mapper/(?P<group>(--|[^-])+)-(?P<volume>(--|[^-])+)", explain_volume),
    (rf"/dev/(?!({NOT_LVM})/)(?P<group>[\w.+-]+)/(?P<volume>[\w.+-]+)", explain_volume),
    (f"{ANY_LUN}[a-z]*[0-9]*", explain_lun),
    ("/(?!dev/).*", explain_file),
)


# --- Readiness -------------------------------------------------------------------------------------------------------
class State(Enum):
    """What was found out about a disk, a configuration or a directory; the values are the words the user reads."""

    READY = "ready"
    MISSING = "missing"
    NOT_READY = "not-ready"
    UNKNOWN = "unknown"  # not looked at yet
    SKIPPED = "skipped"
    REFUSED = "refused"  # a configuration that xl will reject
    UNREADABLE = "unreadable"  # a configuration or directory that cannot be read, now or later


AWAITED = (State.MISSING, State.NOT_READY, State.UNKNOWN)


@record
class Status(NamedTuple):
    """What was found out about a path, and if it is not ready, why, and perhaps a command that helps."""

    state: State
    reason: str = ""
    hint: str = ""
    is_readable: bool = False  # a guest that only reads need not wait

    def is_awaited(self) -> bool:
        """Whether this may become ready, and is waited for."""
        return self.state in AWAITED

    def is_rejected(self) -> bool:
        """Whether this will not come up, however long one waits."""
        return self.state in (State.REFUSED, State.UNREADABLE)


READY = Status(State.READY)
ABSENT = Status(State.MISSING, "does not exist")
UNKNOWN = Status(State.UNKNOWN, "not checked yet")


def check_disk(required: Required, facts: StorageFacts) -> Status:
    """Whether the required path, links resolved, is a usable block device or a regular file. May block.

    Why a path does not exist is found only if the facts are for that.
    """
    path = existing_path(required.path)
    try:
        status = os.stat(path)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            problem = check_file(path, status.st_size, required, facts)
        elif kind == stat.S_IFBLK:
            problem = check_block_device(status.st_rdev, required, facts).problem
        else:
            problem = Problem(f"is {FILE_KINDS[kind]}, neither a block device nor a regular file")
    except (FileNotFoundError, NotADirectoryError):
        if required.is_boot_file and os.path.isdir(os.path.dirname(path)) and not explain_path(path, facts).problem:
            return Status(State.REFUSED, "does not exist, although its file system is mounted")
        if not facts.explains:
            return ABSENT
        return Status(State.MISSING, *explain_missing(path, facts)[:2])
    except (OSError, ValueError) as error:
        problem = Problem(f"cannot be checked: {error_text(error)}{mount_of(path, error, facts)}")
    return Status(State.NOT_READY, problem.reason, problem.hint, problem.is_readable) if problem else READY


def mount_of(path: str, error: Exception, facts: StorageFacts) -> str:
    """What is to be mounted above a path, if the error is one of an automount, FUSE or NFS that has no server."""
    is_gone = isinstance(error, OSError) and error.errno in GONE_ERRORS
    where = longest_above(path, facts.planned_mounts) if is_gone and facts.explains else ""
    plan = facts.planned_mounts[where] if where not in ("", "/") else None
    return f"; {plan.file} mounts {plan.source} on {where}" if plan else ""


GONE_ERRORS = (errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN)


def check_block_device(number: int, required: Required, facts: StorageFacts) -> Layer:
    """The block device with this number, and why a guest cannot use it according to the kernel or udev."""
    try:
        name = os.path.basename(os.readlink(device_link(number)))
    except FileNotFoundError:
        mounted = os.path.isdir(f"{SYS}/dev/block")
        why = "the kernel has no such block device" if mounted else f"{SYS}, which tells of it, is not mounted"
        return Layer("", Problem(f"is a device file, but {why}"))
    facts.numbers[name] = f"{os.major(number)}:{os.minor(number)}"
    layer = check_device(name, facts, promotes=True) if required.promotes else facts.layer(name)
    problem = layer.problem or check_mounted(name, required, facts) or check_writable(name, required)
    if problem is None and udev_runs():
        problem = check_udev(name, facts, is_disk=True)
    return layer._replace(problem=problem)


def check_writable(name: str, required: Required) -> Problem | None:
    """A device that is read-only, if the guest writes to it."""
    # DRBD 9 is read-only until it is opened to write.
    if not required.writes or name.startswith("drbd") or attribute(device_directory(name), "ro") != "1":
        return None
    uuid = attribute(device_directory(name), "dm/uuid") if name.startswith("dm-") else ""
    command = next(command for kind, command in READ_WRITE_COMMANDS if re.match(kind, uuid or name))
    hint = f"{command} {device_path(name)}"
    return Problem("is read-only, and the guest writes to it", hint, name, is_readable=True)


# What the kernel's name of a device or device-mapper's UUID begins with, and what makes it writable or tells more.
READ_WRITE_COMMANDS = (
    ("md", "mdadm --readwrite"),
    ("LVM-", "lvchange -prw"),
    ("CRYPT-", "cryptsetup status"),
    ("zd", "zfs get readonly"),
    ("rbd", "rbd device unmap"),
    ("", "blockdev --setrw"),
)


def check_mounted(name: str, required: Required, facts: StorageFacts) -> Problem | None:
    """A disk that this host has mounted, which Xen's block script refuses; one that is only read, if it is written."""
    places = facts.mounted.get(name, ()) if required.by_script else ()
    for where, is_written in places:
        if is_written or required.writes:
            reason = f"is mounted on {where} on this host, and Xen refuses to share it"
            return Problem(reason, f"umount {where}", name, is_readable=not is_written)
    return None


def check_file(path: str, size: int, required: Required, facts: StorageFacts) -> Problem | None:
    """What is wrong with a regular file: it is empty, in the wrong file system, or lacks a backing file. May block."""
    if size == 0:
        return Problem("is empty: it has 0 bytes")
    file_system = facts.file_system_of(os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path))
    if where := file_system.planned:
        return Problem(f"is there, but {not_mounted(where, facts.planned_mounts[where])}", f"systemctl start {where}")
    if required.format in ("qcow", "qcow2") and (problem := check_backing_file(path, required.format)):
        return problem
    if required.writes and file_system.is_read_only:
        reason = f"lies in {file_system.place}, which is mounted read-only, and the guest writes to it"
        return Problem(reason, f"mount -o remount,rw {file_system.place}", is_readable=True)
    return None


def check_backing_file(path: str, file_format: str) -> Problem | None:
    """An image that lacks the file behind it, or one of those behind that: QEMU's docs/interop/qcow2.rst. May block.

    The chain is followed as far as the images say that the next one is qcow2, because a guest can write anything to a
    raw image; what their owner may read only is taken for complete.
    """
    for _ in range(MAX_BACKING_FILES):
        header = read_part(path, 0, QCOW_HEADER)
        if header and not header.startswith(b"QFI\xfb"):
            return Problem(f"cannot be opened: {path} is not a {file_format} image")
        offset, length = int.from_bytes(header[8:16], "big"), int.from_bytes(header[16:20], "big")
        name = os.fsdecode(read_part(path, offset, length)) if 0 < offset < 1 << 48 and length < QCOW_HEADER else ""
        # "json:…" and "nbd://…" are no files.
        if not name or re.match("[a-z+]+:", name):
            return None
        path = os.path.join(os.path.dirname(path), name)
        if not os.path.exists(path):
            return Problem(f"needs its backing file {path}, which does not exist")
        if b"\xe2\x79\x2a\xca\0\0\0\5qcow2" not in header:
            return None
    return None


def read_part(path: str, offset: int, length: int) -> bytes:
    """So many bytes of a file from there on; nothing if only QEMU may read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return b""
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


# --- Guests: which ones xendomains starts, and how -------------------------------------------------------------------
@record
class Start(NamedTuple):
    """How xendomains treats a file: "restore", "create", or "none" and why."""

    how: str
    reason: str = ""
    instead: str = ""  # how another file starts the guest; if none does, it stays down


@record
class Guest(NamedTuple):
    """A file in one of xendomains' directories, its status, and the guest that it configures once it has been read."""

    domain: Domain
    status: Status = READY
    signature: tuple[int, ...] = ()  # tells whether the file has changed since it was read
    required: tuple[Required, ...] = ()
    start: Start = Start("create")


def with_starts(guests: Mapping[str, Guest], xendomains: Xendomains, listing: str) -> dict[str, Guest]:
    """The guests, by file in xendomains' order (saved ones first), with how it starts each; what it leaves is skipped.

    `listing` is what there is in the directory of saved guests, with blanks between the names. Sources:
    tools/hotplug/Linux/xendomains.in in Xen, and /etc/init.d/xendomains in Debian's package xen-utils-common.
    """
    planned = {}
    taken: dict[str, Start] = {}  # by the name of a guest: why no further file starts it
    for path, guest in guests.items():
        name, is_saved, file = guest.domain.name, guest.domain.kind == "saved", os.path.basename(path)
        # As long as it was not read, a saved guest is taken to have the name of its file.
        comes_up = guest.status == READY or (is_saved and guest.status.is_awaited())
        start = Start("restore" if is_saved else "create")
        if re.search(r"\s", path) and (is_saved or not xendomains.is_debians):
            start = Start("none", "xendomains cannot start it, because its file has a blank in its name")
        elif not is_saved and comes_up and name in taken:
            start = taken[name]
        elif not is_saved and not xendomains.is_debians and (word := word_in(listing, file)):
            start = Start(
                "none", f"upstream's xendomains skips it, because {xendomains.save}/{word} has its name in it"
            )
        else:
            started = Start("none", f"is {start.how}d from {path}", start.how)
            if comes_up:
                taken.setdefault(name, started)
            if is_saved and xendomains.is_debians:
                failed = Start("none", f"Debian's xendomains does not create it, because it fails to restore {path}")
                taken[file] = started if comes_up else failed
        if start.how == "none":
            guest = guest._replace(status=Status(State.SKIPPED, start.reason), required=())
        planned[path] = guest if start == guest.start else guest._replace(start=start)
    return planned


def word_in(listing: str, name: str) -> str:
    """Where, between blanks, `grep -w NAME` finds the name in a listing; nothing if it does not."""
    if not listing:
        return ""
    # To grep, a dot is any character. What else is special to it is not in names that have ever worked.
    pattern = re.escape(name).replace(r"\.", ".")
    match = re.search(rf"\S*(?<!\w){pattern}(?!\w)\S*", listing)
    return match[0] if match else ""


# --- Blocking calls: what may never come back ------------------------------------------------------------------------
class NoResponse(Exception):
    """What a call brings that has been silent for a while."""

    def __init__(self) -> None:
        super().__init__("no response; is its file server down?")


class BlockingCalls:
    """Makes calls that may block for ever, such as stat() on a hard NFS mount whose server is down, in threads.

    One thread makes all of them while they are quick; whenever none has come back for a moment, twice as many threads
    do. A call that is stuck in the kernel cannot be ended: its thread is left behind, which does not keep the
    interpreter from ending, and it is not made again before it has come back. What comes back late wakes the main
    thread, and is the answer of the next run.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = allocate_lock()  # for what follows, which the threads change as well
        self._since: dict[Key, float] = {}  # when each call in progress was made, in Clock.slept
        self._answers: dict[Key, Any] = {}  # that were not taken yet

    def run(
        self, purpose: str, calls: Mapping[str, Call], deadline: float, patience: float = MAX_SILENCE
    ) -> dict[str, Any]:
        """What the calls return, by path, or the exception that each raised; NoResponse for one that is stuck.

        Ends at `deadline` on the monotonic clock, or when nothing has come back for `patience` seconds. A call that had
        no turn by then is dropped, and has no answer here. Raises Stopped if a signal comes.
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
        """Starts threads for the calls, and waits until all have come back, none comes any more, or time is over."""
        threads = answered = 0
        heard = self._clock.slept
        while new and self._clock.now() < deadline:
            with self._lock:
                came = len(new & self._answers.keys())
                most = min(len(todo), MAX_THREADS - len(self._since) + len(self._stuck()))
            if came > answered:
                answered, heard = came, self._clock.slept
            silence = self._clock.slept - heard
            if came == len(new) or silence >= patience:
                break
            if threads == 0 or silence >= POLL_INTERVAL:
                for _ in range(min(max(threads, 1), most)):
                    with suppress(RuntimeError):  # the process has as many as it may have; the next time may be better
                        self._clock.start_thread(partial(self._work, todo))
                        threads += 1
            self._clock.pause(min(POLL_INTERVAL, deadline - self._clock.now()))
        self._clock.pause(0)  # takes what woke the main thread, lest it end the next pause

    def _stuck(self) -> list[Key]:
        return [key for key, since in self._since.items() if self._clock.slept - since >= STUCK_AFTER]

    def _work(self, todo: deque[tuple[Key, Call]]) -> None:
        """What a thread does: makes calls as long as there are any."""
        while True:
            with self._lock:
                if not todo:
                    return
                key, call = todo.popleft()
                self._since[key] = self._clock.slept
            try:
                answer = call()
            except Exception as error:
                answer = error  # whatever it is, it is the answer for this path and concerns no other
            with self._lock:
                del self._since[key]
                self._answers[key] = answer
                if not todo:
                    self._clock.wake()


# --- Snapshot: all guests and all their disks, even if a file system does not answer ---------------------------------
LOST_AND_FOUND = "lost+found"  # mke2fs(8) makes it in each file system, and the directory may be one of its own
# Nobody needs to wait for the end of these.
LASTING_ERRORS = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


@record
class Directory(NamedTuple):
    """One of xendomains' directories, the files in it, and whether there is trouble with the directory itself."""

    kind: str
    files: Sequence[str] = ()
    status: Status = READY
    warning: str = ""


@record
class Awaited(NamedTuple):
    """A disk, a configuration, or a directory of configurations that is waited for, and the guests that need it."""

    path: str
    status: Status
    domains: tuple[str, ...]


@record
class Snapshot(NamedTuple):
    """What is known of the guests about to start: the directories, the guests by file, the disks by path."""

    directories: Mapping[str, Directory] = {}
    guests: Mapping[str, Guest] = {}
    disks: Mapping[str, Status] = {}
    read: Mapping[str, Guest] = {}  # the guests with those that were not asked for
    needed: Mapping[str, Required] = {}  # what the disks are needed for

    def disk_status(self, required: Required) -> Status:
        """How the disk is that requires this."""
        status = self.disks[required.path] if required.path else Status(State.SKIPPED, required.reason)
        return READY if status.is_readable and not required.writes else status

    def is_complete(self) -> bool:
        """Whether nothing is waited for."""
        return not self.awaits_files() and not any(status.is_awaited() for status in self.disks.values())

    def awaits_files(self) -> bool:
        """Whether a directory or a configuration is waited for: then not all guests and disks are known yet."""
        directories, guests = self.directories.values(), self.guests.values()
        return any(one.status.is_awaited() for one in directories) or any(one.status.is_awaited() for one in guests)

    def waiting_guests(self) -> set[str]:
        """The names of the guests that cannot start yet."""
        return {name for one in self.missing() if one.path not in self.directories for name in one.domains}

    def missing(self) -> list[Awaited]:
        """What the start of the guests still waits for, each path once."""
        needed = [(path, one.status, f"the guests in {path}") for path, one in self.directories.items()]
        for file, guest in self.guests.items():
            needed.append((file, guest.status, guest.domain.name))
            needed += [(one.path, self.disk_status(one), guest.domain.name) for one in guest.required if one.path]
        found: dict[str, tuple[Status, dict[str, None]]] = {}
        for path, status, domain in needed:
            if status.is_awaited():
                found.setdefault(path, (status, {}))[1][domain] = None
        return [Awaited(path, status, tuple(domains)) for path, (status, domains) in found.items()]


class Watcher:
    """Looks at the guests about to start and at their disks, and holds what is known of them.

    What a file system or a busy host keeps from being looked at in time stays as it was known.
    """

    def __init__(self, xendomains: Xendomains, settings: Settings, clock: Clock, names: Sequence[str] = ()) -> None:
        self.xendomains = xendomains
        self.settings = settings
        self.clock = clock
        self.names = names  # of the guests that are asked for, or of their files; without any, all are
        self.calls = BlockingCalls(clock)
        self.known = Snapshot()
        self.rest = 0.0  # for at least so long, files are not read again and reasons not found again
        self.shares = True  # see StorageFacts
        self._read: dict[str, Guest] = {}  # as their files say, whether they start or not
        self._read_at = self._explain_at = float("-inf")  # when to do it again
        self._turn = 0  # of the ready disks, which one is checked again next

    def look(self, deadline: float, *, recheck_ready: bool = False) -> Snapshot:
        """What there is now, until `deadline` at the latest; the snapshot of before if nothing has changed.

        Reads only files that have changed, and checks the disks that were not ready, and some that were, each in its
        turn, because it may have gone again; with `recheck_ready` all disks. Raises Stopped if a signal comes.
        """
        if recheck_ready or self.clock.now() >= self._read_at or self.known.awaits_files():
            explains = recheck_ready or self.clock.now() >= self._explain_at
            self._read_files(deadline, StorageFacts(explains=explains))
        return self.check_disks(deadline, recheck_ready=recheck_ready)

    def check_disks(self, deadline: float, *, recheck_ready: bool = False) -> Snapshot:
        """Like look(), without directories and configurations."""
        disks = dict(self.known.disks)
        ready = [path for path, status in disks.items() if status == READY]
        checked = [path for path, status in disks.items() if status != READY]
        checked += ready if recheck_ready else self._in_turn(ready)
        absent = absent_devices(path for path in checked if disks[path].state is State.MISSING)
        patience = MAX_SILENCE_AT_END if recheck_ready else MAX_SILENCE
        answers = self._check([path for path in checked if path not in absent], deadline, patience, explains=False)
        for path, answer in answers.items():
            disks[path] = updated_status(disks[path], answer, is_last=recheck_ready)
        if recheck_ready or self.clock.now() >= self._explain_at:
            silent = {path for path, answer in answers.items() if isinstance(answer, Exception)}
            awaited = [path for path in checked if disks[path].state in (State.MISSING, State.NOT_READY)]
            disks.update(self._explain([path for path in awaited if path not in silent], deadline))
        if disks != self.known.disks:
            self.known = self.known._replace(disks=disks)
        return self.known

    def _explain(self, paths: Sequence[str], deadline: float) -> dict[str, Status]:
        """How these disks are, and why."""
        spent = time.process_time()
        answers = self._check(paths, deadline, MAX_SILENCE, explains=True)
        # With hundreds of disks on a slow host it takes long, and must not hold up what has become ready.
        seconds = (time.process_time() - spent) / MAX_REASON_SHARE
        self._explain_at = self.clock.now() + max(MAX_REASON_AGE, seconds, self.rest)
        return {path: answer for path, answer in answers.items() if isinstance(answer, Status)}

    def _check(self, paths: Sequence[str], deadline: float, patience: float, *, explains: bool) -> dict[str, Any]:
        facts = StorageFacts(explains=explains, shares=self.shares)
        calls: dict[str, Call] = {path: partial(check_disk, self.known.needed[path], facts) for path in paths}
        return self.calls.run("explain" if explains else "check", calls, deadline, patience)

    def _in_turn(self, ready: Sequence[str]) -> Sequence[str]:
        """Those of the ready disks that are checked again in this look."""
        first = self._turn if self._turn < len(ready) else 0
        self._turn = first + MAX_RECHECKED
        return ready[first : self._turn]

    def _patience(self, deadline: float) -> float:
        """How long a step may be silent: at most a third of what is left, so that one which hangs leaves some."""
        return min(MAX_SILENCE, (deadline - self.clock.now()) / 3)

    def _read_files(self, deadline: float, facts: StorageFacts) -> None:
        known = self.known
        directories = self._list_directories(deadline, facts)
        files = self._read_guests(directories, deadline, facts)
        self._read_at = self.clock.now() + max(READ_INTERVAL, self.rest)
        if directories == known.directories and files == self._read:
            return
        self._read = files
        saved = [file for one in directories.values() if one.kind == "saved" for file in one.files]
        read = with_starts(files, self.xendomains, " ".join(map(os.path.basename, saved)))
        guests = guests_named(read, self.names)
        needed = required_paths(guests)
        disks = {path: known.disks[path] if known.needed.get(path) == needed[path] else UNKNOWN for path in needed}
        self.known = Snapshot(directories, guests, disks, read, needed)

    def _list_directories(self, deadline: float, facts: StorageFacts) -> dict[str, Directory]:
        """xendomains' directories with their files, those of saved guests first, as xendomains starts them."""
        kinds = {d: kind for d, kind in ((self.xendomains.save, "saved"), (self.xendomains.auto, "auto")) if d}
        known = {
            path: self.known.directories.get(path, Directory(kind, status=UNKNOWN)) for path, kind in kinds.items()
        }
        calls: dict[str, Call] = {path: partial(list_directory, path, before, facts) for path, before in known.items()}
        answers = self.calls.run("list", calls, deadline, self._patience(deadline))
        directories = {}
        for path, before in known.items():
            answer = answers.get(path, before)
            if isinstance(answer, Exception):
                answer = before._replace(status=status_from_answer(answer))
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
        read = partial(read_guest, settings=self.settings, facts=facts, is_debians=self.xendomains.is_debians)
        calls: dict[str, Call] = {file: partial(read, guest) for file, guest in before.items()}
        answers = self.calls.run("read", calls, deadline, self._patience(deadline))
        guests = {}
        for file, guest in before.items():
            answer = answers.get(file, guest)
            if isinstance(answer, NoResponse):
                # Its disks, if they are known, are still needed.
                answer = guest._replace(status=status_from_answer(answer), signature=())
            elif isinstance(answer, Exception):
                answer = unread_guest(file, files[file])._replace(status=status_of_rejected(answer))
            if answer is not None:
                guests[file] = unless_ignored(answer, self.settings)
        return guests


def absent_devices(paths: Iterable[str]) -> set[str]:
    """Those of these paths below /dev where there is certainly nothing.

    Only devtmpfs, which never blocks, is asked, and no link is followed, so the main thread may do it. That takes a
    tenth of what a call in a thread does, and hundreds of disks may be missing at each event.
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


def status_from_answer(answer: Status | Exception) -> Status:
    """What a call has found out about a path; whatever went wrong is the reason for this path, and for no other."""
    return Status(State.NOT_READY, error_text(answer)) if isinstance(answer, Exception) else answer


def updated_status(before: Status, answer: Status | Exception, *, is_last: bool) -> Status:
    """How a disk is after this answer, in the last look or in another."""
    if is_last and isinstance(answer, NoResponse) and before.state in (State.MISSING, State.NOT_READY):
        return before  # there may have been no time, and this says more
    status = status_from_answer(answer)
    return status if status.state is not before.state else before  # which may have a better reason


def guests_named(guests: Mapping[str, Guest], names: Sequence[str]) -> Mapping[str, Guest]:
    """Those with one of these names, or if there is none, with a file of this name, or else but for its extension."""
    chosen: set[str] = set()
    for name in names:
        by_name = {file for file, guest in guests.items() if guest.domain.name == name}
        by_file = {file for file in guests if os.path.basename(file) == name}
        by_stem = {file for file in guests if os.path.splitext(os.path.basename(file))[0] == name}
        # A file that cannot be read yet may be that guest's.
        unread = {file for file, guest in guests.items() if guest.status.is_awaited()}
        chosen |= by_name or by_file or by_stem or unread
    return {file: guest for file, guest in guests.items() if file in chosen} if names else guests


def list_directory(path: str, before: Directory, facts: StorageFacts) -> Directory | None:
    """The files in a directory that the shell's * matches, in order; nothing if there is none, and that is usual."""
    try:
        with os.scandir(path) as found:
            names = (entry.name for entry in found if not entry.name.startswith(".") and entry.name != LOST_AND_FOUND)
            first = sorted(islice(names, MAX_FILES))
            is_crowded = next(names, None) is not None
    except OSError as error:
        status = status_of_unreadable(path, error, before.status, facts)
        # Xen's own are there once they are needed; xendomains makes the one where it saves guests.
        if status is None and path != DEFAULT_AUTO and before.kind == "auto":
            status = Status(State.UNREADABLE, "does not exist; correct XENDOMAINS_AUTO, or make it")
        return Directory(before.kind, status=status) if status else None
    warning = f"holds more than {MAX_FILES} files; only {MAX_FILES} of them are looked at" if is_crowded else ""
    return Directory(before.kind, [os.path.join(path, name) for name in first], warning=warning)


def status_of_unreadable(path: str, error: OSError, before: Status, facts: StorageFacts) -> Status | None:
    """How a file or directory is that cannot be read; nothing if it does not exist (any more).

    A link to nothing is waited for, because what it points to may be mounted later, and so is the end of an error that
    a file system may have for a while.
    """
    if isinstance(error, FileNotFoundError):
        if not os.path.islink(path):
            return None
        if facts.explains:
            return Status(State.MISSING, *explain_missing(path, facts)[:2])
        return before if before.state is State.MISSING else ABSENT
    lasts = error.errno in LASTING_ERRORS
    advice = " (run it as root)" if error.errno == errno.EACCES and os.geteuid() != 0 else ""
    return Status(State.UNREADABLE if lasts else State.NOT_READY, f"cannot be read: {error_text(error)}{advice}")


def status_of_rejected(error: Exception) -> Status:
    """How a configuration is that was read, and is not one."""
    refused = isinstance(error, ConfigError) and not isinstance(error, Unsupported)
    return Status(State.REFUSED if refused else State.UNREADABLE, error_text(error))


def unread_guest(file: str, kind: str) -> Guest:
    """A guest of which only the file is known."""
    return Guest(Domain(os.path.basename(file), file, kind), UNKNOWN)


def unless_ignored(guest: Guest, settings: Settings) -> Guest:
    """The guest; skipped, if its file is waited for and the administrator wants that ignored."""
    if guest.status.is_awaited() and matches_any((os.path.basename(guest.domain.source),), settings.ignored_domains):
        return guest._replace(status=Status(State.SKIPPED, "[ignore] domains names its file"))
    return guest


def read_guest(before: Guest, settings: Settings, facts: StorageFacts, is_debians: bool = False) -> Guest | None:
    """The guest that a file configures: `before` if it has not changed, nothing if xendomains skips it. May block."""
    end = time.monotonic() + MAX_REWRITING
    while True:
        guest = read_guest_once(before, settings, facts, is_debians)
        if guest is None or guest.status.state is not State.REFUSED or time.monotonic() >= end:
            return guest
        if not 0 <= time.time() - guest.signature[MODIFIED] / 1e9 < MAX_REWRITING:
            return guest
        time.sleep(POLL_INTERVAL)


MODIFIED = 3  # the place of the time in nanoseconds in Guest.signature


def read_guest_once(before: Guest, settings: Settings, facts: StorageFacts, is_debians: bool = False) -> Guest | None:
    """Like read_guest(), also if the file is half written."""
    path, kind = before.domain.source, before.domain.kind
    unread = unread_guest(path, kind)
    try:
        status = os.stat(path)
        signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if signature == before.signature:
            return before
        unread = unread._replace(signature=signature)
        if kind == "auto":
            text, is_json = os.fsdecode(read_file(path)), False
        elif not stat.S_ISREG(status.st_mode):
            return None
        else:
            with open_regular_file(path) as file:
                if file.read(len(SAVED_PREFIX)) != SAVED_PREFIX and not is_debians:
                    return None
                file.seek(0)
                text, is_json = saved_configuration(file)
        domain = (domain_from_json if is_json else domain_from_xl_config)(text, path, kind)
    except OSError as error:
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
        warnings.insert(0, f"{distrust}; xl uses it anyway")
    domain = domain._replace(warnings=(*domain.warnings, *warnings))
    required = tuple(required_unless_ignored(domain, disk, settings) for disk in domain.needs())
    return Guest(domain, READY, signature, required)


def required_paths(guests: Mapping[str, Guest]) -> dict[str, Required]:
    """What the guests require, by path; of a disk of several guests, what suffices for all."""
    paths: dict[str, Required] = {}
    for required in (one for guest in guests.values() for one in guest.required if one.path):
        other = paths.setdefault(required.path, required)
        if other != required:
            writes, promotes = other.writes or required.writes, other.promotes and required.promotes
            by_script = other.by_script or required.by_script
            paths[required.path] = other._replace(writes=writes, promotes=promotes, by_script=by_script)
    return paths


# --- Wait: until everything is ready or time is over -----------------------------------------------------------------
def wait(watcher: Watcher, report: Callable[[Snapshot], None], deadline: float) -> Snapshot:
    """Looks again and again until nothing is missing or `deadline` (on the monotonic clock) has come.

    Each snapshot but the last is reported. The pauses grow as [polling] says; an event of a block device ends one
    early, and so does an answer that comes late. Raises Stopped if a signal comes.
    """
    from tenacity import Retrying, retry_if_result, wait_exponential

    clock, settings = watcher.clock, watcher.settings
    # The events are collected from before the first look on, so that none can fall between a look and a pause.
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
    """When a look that begins now has to end, if the wait has this deadline."""
    return max(deadline, clock.now() + MAX_LAST_LOOK)


def sleep_until(end: float, clock: Clock, events: Any) -> None:
    """Sleeps, and wakes up early when something happens to a block device, or when an answer comes late."""
    started = clock.now()
    if clock.pause(end - started, events.fileno() if events else -1):
        # One event seldom comes alone.
        clock.pause(min(started + MIN_SLEEP, end) - clock.now())
        drain(events.fileno(), clock)


def drain(descriptor: int, clock: Clock) -> None:
    """Takes the events that have come, without reading them: that something happened is all there is to know."""
    end = clock.now() + MIN_SLEEP
    while clock.now() < end:
        try:
            os.read(descriptor, MAX_ATTRIBUTE)
        except BlockingIOError:
            return
        except OSError:
            pass  # there were more than the kernel keeps, and some are lost


def block_events() -> Any:
    """A pyudev monitor that listens to the events of block devices; nothing where pyudev or netlink is missing."""
    try:
        import pyudev

        # Without udev the kernel's own events are all there is.
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), "udev" if udev_runs() else "kernel")
        monitor.filter_by("block")
        monitor.start()
    except (ImportError, OSError):
        return None
    return monitor


# --- Output: journal, systemd's status, table, JSON ------------------------------------------------------------------
def printable(text: str) -> str:
    """The text, escaped where a terminal or the journal would not show it as it is: no name can forge a message."""
    return text if text.isprintable() else "".join(c if c.isprintable() else escaped(c) for c in text)


def escaped(character: str) -> str:
    """The character as an escape; a byte of a file name that is not UTF-8 as \\xNN."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, longest: int) -> str:
    """The text without its middle if it is longer than that: what is wrong stands at the end."""
    return text if len(text) <= longest else f"{text[: longest // 2]} […] {text[-(longest // 2) :]}"


class Journal:
    """Where messages go: to systemd's journal with fields, or to standard error.

    Nobody may hold up the boot by not reading: unless it is to be `patient`, a message that cannot be delivered soon
    is dropped, and later it is said how many were. Each method raises Stopped if a signal comes meanwhile.
    """

    def __init__(self, level: int, stream: IO[str] | None, clock: Clock, *, patient: bool = False) -> None:
        self.level = level
        self._stream = stream
        self._clock = clock
        self._patient = patient
        self._dropped = 0
        self._is_journal = is_journal(stream)
        self._is_terminal = not self._is_journal and stream is not None and stream.isatty()
        self._descriptor = descriptor_for(stream)
        self._shows_progress = False

    def log(self, level: int, text: str, **fields: str) -> None:
        """One message, with fields such as DISK= for the journal."""
        self.log_all([(level, text, fields)], self._clock.now() + MAX_SENDING)

    def log_all(self, messages: Sequence[Message], end: float, summary: Message | None = None) -> None:
        """Several messages, until `end` on the monotonic clock; and one that the journal gets whatever the level."""
        shown = [message for message in messages if message[0] <= self.level]
        if shown:
            self._say_dropped(end)
        for position, message in enumerate(shown):
            if self._dropped or not self._deliver(message, end - self._clock.now()):
                self._dropped += len(shown) - position
                break
        if summary and (summary[0] <= self.level or self._is_journal):
            end = self._clock.now() + MAX_SENDING
            self._say_dropped(end)
            self._deliver(summary, end - self._clock.now())

    def _say_dropped(self, end: float) -> None:
        text = f"{counted(self._dropped, 'message')} dropped here, because the reader was too slow."
        if self._dropped and self._deliver((WARNING, text, {}), end - self._clock.now()):
            self._dropped = 0

    def progress(self, text: str) -> None:
        """On a terminal, one line that the next one or a message is written over."""
        if self._is_terminal and self.level > ERR:
            from shutil import get_terminal_size

            self._write(printable(text)[: get_terminal_size().columns - 1], MAX_SENDING)
            self._shows_progress = True

    def _deliver(self, message: Message, seconds: float) -> bool:
        """Whether the message has gone out within so many seconds; what cannot be told to anybody has."""
        level, text, fields = message
        text = printable(shortened(text, MAX_MESSAGE))
        if not self._is_journal:
            return self._write(f"{text}\n", seconds)
        with suppress(OSError), closing(connected_socket(JOURNAL_SOCKET)) as journal:
            if not self._can_write(journal.fileno(), seconds):
                return False
            journal.send(journal_entry(level, text, fields))
            return True
        return self._write(f"<{level}>{text}\n", seconds)  # journald is not there; sd-daemon(3)

    def _write(self, text: str, seconds: float) -> bool:
        if self._shows_progress:
            text = f"\r\033[K{text}"
            self._shows_progress = False
        data = text.encode(getattr(self._stream, "encoding", None) or "ascii", "backslashreplace")
        try:
            while data and self._descriptor >= 0:
                if not self._can_write(self._descriptor, seconds):
                    return False
                data = data[os.write(self._descriptor, data[: select.PIPE_BUF]) :]  # as much as goes into any pipe
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            pass  # nobody listens; the wait goes on
        return True

    def _can_write(self, descriptor: int, seconds: float) -> bool:
        """Whether the reader takes something soon."""
        seconds = MAX_TIME if self._patient else min(seconds, MAX_SENDING / 2)
        end = self._clock.now() + seconds
        while not self._clock.pause(end - self._clock.now(), descriptor, select.POLLOUT):
            if self._clock.now() >= end:
                return False
        return True


def descriptor_for(stream: IO[str] | None) -> int:
    """Where to write what goes to a stream; -1 if nobody listens.

    A terminal may block after poll(2) has said that it does not, so it is opened again, without blocking: the stream's
    own descriptor belongs to others as well, such as a shell.
    """
    descriptor = -1
    with suppress(OSError, ValueError):
        descriptor = stream.fileno() if stream is not None else -1
        if os.isatty(descriptor):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"{PROC}/self/fd/{descriptor}", flags)
    return descriptor


def is_journal(stream: IO[str] | None) -> bool:
    """Whether the stream is connected to the journal: $JOURNAL_STREAM in systemd.exec(5)."""
    with suppress(OSError, ValueError):
        status = os.fstat(stream.fileno() if stream is not None else -1)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def journal_entry(level: int, text: str, fields: Mapping[str, str]) -> bytes:
    """A message in the journal's native protocol, which is stable: https://systemd.io/JOURNAL_NATIVE_PROTOCOL."""
    entry = {"MESSAGE": text, "PRIORITY": str(level), "SYSLOG_IDENTIFIER": COMMAND, **fields}
    lines = [f"{name}={printable(shortened(value, MAX_MESSAGE))}\n" for name, value in entry.items()]
    return "".join(lines).encode(errors="backslashreplace")


def notify(*assignments: str) -> bool:
    """Tells systemd, if it listens: sd_notify(3), whose protocol is stable and meant to be spoken directly.

    Returns False if systemd has to be told again, because it took no more at the moment.
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
    """What tells systemd that the wait goes on for so many seconds: sd_notify(3)."""
    # The settings, the first and the last look, and the last messages take their time as well.
    return f"EXTEND_TIMEOUT_USEC={(seconds + MAX_SOURCING + MAX_FIRST_LOOK + MAX_SENDING_ALL) * 1e6:.0f}"


def connected_socket(address: str) -> Socket:
    """A socket for datagrams to this address, on which nothing blocks. Raises OSError."""
    # The module that is written in C: socket takes 20 times as long to import, and the common boot needs this as well.
    import _socket

    unix = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    try:
        unix.connect(address)
    except OSError:
        unix.close()
        raise
    return unix


class Reporter:
    """Says what the snapshots show: to the journal what is news, to systemd and to a terminal how things stand.

    What keeps coming and going is said once between two reminders, and so are at most MAX_LINES messages.
    """

    def __init__(self, journal: Journal, clock: Clock, started: float, timeout: float) -> None:
        self._journal = journal
        self._clock = clock
        self._started = started
        self._timeout = timeout
        self._snapshot = Snapshot()  # the last
        self._lost: dict[str, str] = {}  # of its guests, see lost_guests()
        self._awaited: dict[str, Awaited] = {}
        self._reminder = started + FIRST_REMINDER
        self._gap = 2 * FIRST_REMINDER
        self._said: set[tuple[str, str]] = set()  # since the last reminder
        self._lines = 0  # that were said since then, but for what was found
        self._announced: dict[str, set[str]] = {}  # paths, and for which domains it was said that they are waited for
        self._status = ""
        self._problems: dict[str, list[str]] = {}  # of files and directories, as they were said
        self._found: dict[str, float] = {}  # seconds after which disks and the like were there

    def report(self, snapshot: Snapshot) -> None:
        """Says what is new since the last snapshot."""
        has_changed = snapshot is not self._snapshot
        messages = self._news(snapshot)
        now = self._clock.now()
        is_due = now >= self._reminder
        if is_due:
            self._reminder, self._gap = now + self._gap, 2 * self._gap
            self._said.clear()
            self._lines = 0
            messages += self._reminders()
        if has_changed or is_due:
            new = self._new_problems() + self._new_waits()
            messages += limited(new, MAX_LINES - self._lines)
            self._lines += len(new)
        self._journal.log_all(messages, min(now + MAX_SENDING_ALL, self._started + self._timeout))
        self._report_status()

    def _news(self, snapshot: Snapshot) -> list[Message]:
        """What has been found since the last snapshot."""
        if snapshot is self._snapshot:
            return []
        was_awaited = self._awaited
        self._snapshot = snapshot
        self._lost = lost_guests(snapshot)
        self._awaited = {one.path: one for one in snapshot.missing()}
        text = f"Looked at {size_of(snapshot)}; still missing: {len(self._awaited)}."
        messages: list[Message] = [(DEBUG, text, {})]
        seconds = round(self._clock.now() - self._started, 3)
        for path in self._awaited:
            self._found.pop(path, None)
        for path, one in was_awaited.items():
            if path not in self._awaited:
                self._found[path] = seconds
                if self._announced.pop(path, None):
                    messages.append(found_message(one, snapshot, seconds))
        return messages

    def _is_news(self, path: str, what: str) -> bool:
        """Whether this was not said since the last reminder."""
        is_new = (path, what) not in self._said and len(self._said) < 10 * MAX_LINES
        if is_new:
            self._said.add((path, what))
        return is_new

    def _new_problems(self) -> list[Message]:
        messages: list[Message] = []
        found = problems_of(self._snapshot)
        self._problems = {path: problems for path, problems in self._problems.items() if path in found}
        for path, problems in found.items():
            if problems == self._problems.get(path) or not self._is_news(path, "problem"):
                continue
            self._problems[path] = problems
            guest = self._snapshot.guests.get(path)
            fields = {"SOURCE": path, "DOMAIN": guest.domain.name} if guest else {"SOURCE": path}
            if guest and guest.status.state is State.REFUSED:
                fields["MESSAGE_ID"] = MESSAGE_REFUSED
            messages += [(WARNING, text, fields) for text in problems]
        return messages

    def _new_waits(self) -> list[Message]:
        """That something is waited for, unless it has only not been looked at yet."""
        messages: list[Message] = []
        for path, one in self._awaited.items():
            announced = self._announced.get(path, set())
            new = [domain for domain in one.domains if domain not in announced]
            if new and one.status.state is not State.UNKNOWN and self._is_news(path, f"waiting for {new}"):
                if self._lines + len(messages) < MAX_LINES:
                    self._announced[path] = announced.union(new)
                messages += [waiting_message(one, domain) for domain in new]
        return messages

    def _reminders(self) -> list[Message]:
        """What is still missing, in groups of the same reason."""
        groups: dict[str, list[Awaited]] = {}
        for path, one in self._awaited.items():
            if path in self._announced or one.status == UNKNOWN:
                groups.setdefault(one.status.reason, []).append(one)
        messages = []
        for reason, group in groups.items():
            if len(group) == 1:
                messages += [waiting_message(group[0], domain) for domain in group[0].domains]
            else:
                text = f"still waiting for {in_numbers(group)}: {reason}"
                messages.append((WARNING, text, {"REASON": reason}))
        return limited(messages)

    def _report_status(self) -> None:
        # Where there was never anything to wait for, it stays empty.
        status = "Everything that the guests need is ready." if self._status else ""
        if self._awaited:
            seconds = self._clock.now() - self._started
            status = f"Waiting for {in_short(list(self._awaited.values()))}"
            limit = f" of {format_time_span(self._timeout)}" if self._timeout < FOREVER else ""
            self._journal.progress(f"{seconds:.0f}s{limit}: {status}")
        if status != self._status:
            left = self._started + self._timeout - self._clock.now()
            if notify(f"STATUS={status}", extended_timeout(max(0.0, left))):
                self._status = status

    def log_end(self, snapshot: Snapshot, stopped_by: int = 0, patterns: Sequence[str] = ()) -> str:
        """Says how the wait ended, and what is missing then; returns the result in a word.

        `patterns` are those of [late] domains.
        """
        messages = self._news(snapshot) + limited(self._new_problems())
        missing = list(self._awaited.values())
        seconds = self._clock.now() - self._started
        lost = [snapshot.guests[file] for file in self._lost]
        down = {guest.domain.name for guest in lost if not guest.status.is_rejected()}
        guests = join_limited(sorted(down.union(*(one.domains for one in missing))), MAX_NAMES)
        # Whether they are meant to be guests is not known.
        files = [guest.domain.source for guest in lost if guest.status.is_rejected()]
        useless = [f"no guest starts from {join_limited(files, MAX_NAMES)}"] if files else []
        if stopped_by:
            result, level = "stopped", WARNING
            waiting = f", still waiting for {in_short(missing)}" if missing else ""
            text = f"Stopped by {signal.Signals(stopped_by).name} after {seconds:.0f} seconds{waiting}."
        elif missing:
            result, level = "timeout", ERR
            messages += limited(timeout_messages(missing, self._timeout))
            starts = "xendomains starts now; these" if is_journal(sys.stderr) else "These"
            later = start_later(snapshot.waiting_guests(), patterns)
            text = "; ".join([f"{starts} guests will probably not come up: {guests}", *useless]) + f"{later}."
            notify(f"STATUS=Timed out waiting for {in_short(missing)}")
        else:
            result, level = "ready", INFO
            text = f"Everything is ready for {size_of(snapshot)}."
            if lost:
                losses = [f"these guests will not come up: {guests}"] if down else []
                text = f"No disk is missing, but {'; '.join(losses + useless)}."
            self._report_status()
        fields = {"RESULT": result, "WAITED_SEC": f"{seconds:.3f}", "MISSING": str(len(missing))}
        summary = (level, text, {"MESSAGE_ID": MESSAGE_SUMMARY, **fields})
        self._journal.log_all(messages, self._clock.now() + MAX_SENDING_AT_END, summary)
        return result

    def as_last_wait(self, result: str) -> dict[str, Any]:
        """How the wait ended, for programs and the command `last`."""
        waited = self._clock.now() - self._started
        paths = {path: Awaited(path, status, ()) for path, status in self._snapshot.disks.items()}
        for guest in self._snapshot.guests.values():
            for path in (required.path for required in guest.required if required.path):
                paths[path] = paths[path]._replace(domains=(*paths[path].domains, guest.domain.name))
        return {
            "version": JSON_VERSION,
            "boot_id": read_text_file("/proc/sys/kernel/random/boot_id").strip(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - waited)),
            "waited": round(waited, 3),
            "timeout": self._timeout,
            "result": result,
            "disks": [
                {
                    "path": well_formed(path),
                    "domains": [well_formed(domain) for domain in one.domains],
                    **status_as_json(one.status),
                    "found_after": self._found.get(path),
                }
                # A configuration that is missing in the end is told of as a disk is.
                for path, one in {**paths, **self._awaited}.items()
            ],
            "guests": [start_as_json(guest) for guest in self._snapshot.guests.values()],
            "refused": [{"source": well_formed(file), "error": well_formed(why)} for file, why in self._lost.items()],
        }


def waiting_message(one: Awaited, domain: str) -> Message:
    """That a domain's disk is waited for, and why; the first words are those of the script of 2017."""
    return WARNING, f"still waiting for {one.path} for {domain}... ({one.status.reason})", fields_of(one, domain)


def found_message(one: Awaited, snapshot: Snapshot, seconds: float) -> Message:
    """That something is not waited for any more, in words of the script of 2017."""
    path = one.path
    if path in snapshot.disks:
        text = f"disk {path} found"
    elif path in snapshot.guests:
        text = f"configuration {path} found"
    elif path in snapshot.directories and snapshot.directories[path].status == READY:
        text = f"directory {path} found"
    else:
        text = f"{path} is no longer needed"
    fields = {"DISK": path, "DOMAIN": join_limited(one.domains, MAX_NAMES), "STATE": State.READY.value}
    return WARNING, f"{text} (after {seconds:.0f} seconds)", fields


def timeout_messages(missing: Sequence[Awaited], timeout: float) -> list[Message]:
    """What is missing in the end, why, and what to do about it."""
    after = f" after {format_time_span(timeout)}" if timeout else ""
    messages = []
    for one in missing:
        words = "still missing" if one.status.state is State.MISSING else "still not ready"
        advice = f" (try: {one.status.hint})" if one.status.hint else ""
        for domain in one.domains:
            text = f"{one.path} for {domain} is {words}{after}: {one.status.reason}{advice}"
            messages.append((ERR, text, {**fields_of(one, domain), "MESSAGE_ID": MESSAGE_MISSING}))
    return messages


def limited(messages: list[Message], most: int = MAX_LINES) -> list[Message]:
    """As many of them as may be said, and how many more there are."""
    if not 0 < most < len(messages):
        return messages[: max(0, most)]
    text = f"There are {len(messages) - most} more messages like these; see `{COMMAND} list`."
    return [*messages[:most], (messages[0][0], text, {})]


def fields_of(one: Awaited, domain: str) -> dict[str, str]:
    """The fields for the journal."""
    state, reason, hint, _ = one.status
    return {"DISK": one.path, "DOMAIN": domain, "STATE": state.value, "REASON": reason, "HINT": hint}


def in_numbers(missing: Sequence[Awaited]) -> str:
    """How much is missing."""
    guests = len({domain for one in missing for domain in one.domains})
    return f"{counted(len(missing), 'disk')} of {counted(guests, 'guest')}"


def in_short(missing: Sequence[Awaited]) -> str:
    """How much is missing, and the first of it, on one line."""
    names = [f"{one.path} for {join_limited(one.domains, 3)} ({one.status.reason})" for one in missing[:3]]
    return f"{in_numbers(missing)}: {', '.join(names)}{', …' if len(missing) > 3 else ''}"


def start_later(names: set[str], patterns: Sequence[str]) -> str:
    """In parentheses, what starts these guests when their disks are there: the service if it is enabled, or you."""
    from shlex import quote

    is_service = is_enabled(LATE_SERVICE)
    by_service = sorted(name for name in names if is_service and matches_any((name,), patterns))
    by_hand = sorted(names.difference(by_service))
    when = "its disk is there" if len(by_service) == 1 else "their disks are there"
    them = "it" if len(by_hand) == 1 else "them"
    which = "".join(f" {quote(name)}" for name in by_hand) if len(by_hand) <= MAX_LISTED else ""
    texts = [f"{LATE_SERVICE} will start {join_limited(by_service, MAX_NAMES)} when {when}"] if by_service else []
    texts += [f"start {them} later with: {COMMAND} start{which}"] if by_hand else []
    return f" ({printable(shortened('; '.join(texts), MAX_REASON))})" if texts else ""


def counted(number: int, noun: str) -> str:
    """As in "1 disk" and "2 disks"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def lost_guests(snapshot: Snapshot) -> dict[str, str]:
    """By file, why no guest starts from it, however long one waits."""
    lost = {}
    for file, guest in snapshot.guests.items():
        statuses = [(one.path, snapshot.disk_status(one)) for one in guest.required]
        gone = [f"{path} {status.reason}" for path, status in statuses if status.is_rejected()]
        if guest.status.is_rejected():
            will = "xl will reject it" if guest.status.state is State.REFUSED else "it is ignored"
            lost[file] = f"{guest.status.reason}; {will}"
        elif gone or (guest.start.how == "none" and not guest.start.instead):
            lost[file] = guest.start.reason or gone[0]
    return lost


def problems_of(snapshot: Snapshot) -> dict[str, list[str]]:
    """By file or directory, a sentence for everything wrong with it, unless that is waited for."""
    problems: dict[str, list[str]] = {}
    for path, directory in snapshot.directories.items():
        if directory.warning:
            problems[path] = [f"{path}: {directory.warning}."]
        if directory.status.state is State.UNREADABLE:
            problems[path] = [f"{path}: {directory.status.reason}; not waiting for the guests in it."]
    for file, guest in snapshot.guests.items():
        if guest.domain.warnings:
            problems[file] = [f"{file}: {warning}." for warning in guest.domain.warnings]
    for file, why in lost_guests(snapshot).items():
        problems[file] = [f"{file}: {why}; not waiting for its disks."]
    return problems


def as_json(snapshot: Snapshot) -> str:
    """The snapshot for programs."""
    import json

    def disk_as_json(disk: Disk, required: Required) -> dict[str, str | None]:
        path = well_formed(required.path) if required.path else None
        about = {"vdev": well_formed(disk.vdev), "target": well_formed(disk.target), "path": path}
        return {**about, **status_as_json(snapshot.disk_status(required))}

    domains = [
        {
            **start_as_json(guest),
            "kind": guest.domain.kind,
            "error": None if guest.start.reason else well_formed(guest.status.reason) or None,
            "refused": guest.status.state is State.REFUSED,
            "disks": [disk_as_json(*pair) for pair in zip(guest.domain.needs(), guest.required)],
        }
        for guest in snapshot.guests.values()
    ]
    directories = [
        {"path": well_formed(path), "kind": kind, "state": status.state.value, "reason": well_formed(status.reason)}
        for path, (kind, _, status, _) in snapshot.directories.items()
        if status != READY
    ]
    statuses = [one.status for one in snapshot.directories.values()] + [one.status for one in snapshot.guests.values()]
    ready = snapshot.is_complete() and not any(status.state is State.UNREADABLE for status in statuses)
    return json.dumps(
        {"version": JSON_VERSION, "ready": ready, "domains": domains, "directories": directories}, indent=2
    )


def start_as_json(guest: Guest) -> dict[str, str | None]:
    """Which guest it is, and how xendomains starts it."""
    how, reason, _ = guest.start
    names = {"name": well_formed(guest.domain.name), "source": well_formed(guest.domain.source)}
    return {**names, "start": how, "start_reason": well_formed(reason) or None}


def status_as_json(status: Status) -> dict[str, str | None]:
    """The fields of a status."""
    state, reason, hint, _ = status
    return {"state": state.value, "reason": well_formed(reason) or None, "hint": well_formed(hint) or None}


def well_formed(text: str) -> str:
    """The text without halves of surrogate pairs, which stand for bytes that are not UTF-8, and are not JSON."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", lambda match: escaped(match.group()), text)


def as_table(snapshot: Snapshot, *, with_hints: bool = False) -> str:
    """The snapshot for people."""
    rows = [("DOMAIN", "START", "VDEV", "DISK", "STATE", "REASON")]

    def add(domain: str, start: str, vdev: str, path: str, status: Status) -> None:
        hint = f" (try: {status.hint})" if with_hints and status.hint else ""
        rows.append((domain, start, vdev, path, status.state.value, f"{status.reason}{hint}"))

    for path, directory in snapshot.directories.items():
        if directory.status.state is not State.READY:
            add("-", "-", "-", path, directory.status)
    for file, guest in snapshot.guests.items():
        domain, how = guest.domain, guest.start.how
        if guest.status.state is not State.READY:
            add(domain.name, how, "-", file, guest.status)
        elif not domain.needs():
            rows.append((domain.name, how, "-", "-", "no disks", ""))
        for disk, required in zip(domain.needs(), guest.required):
            path = required.path or disk.target or "-"
            add(domain.name, how, disk.vdev, path, snapshot.disk_status(required))
    return in_columns(rows)


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows of a table, each column as wide as its cells."""
    cells = [[printable(shortened(cell, MAX_CELL)) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def write_record(path: str, record: Mapping[str, Any]) -> None:
    """Puts it in the place of the record before. Raises OSError; the directory is made by the unit."""
    import json

    new = f"{path}.{os.getpid()}"  # another wait may end at the same time
    with open(new, "w") as file:
        file.write(json.dumps(record))  # on one line: with indent=, it is not written in C
    os.replace(new, path)


# --- Check: what is wrong, and what the next boot will trip over -----------------------------------------------------
@record
class Finding(NamedTuple):
    """Something wrong with a file, a guest or a disk, and what to do about it; an error if a guest may not start."""

    problem: str
    fix: str = ""
    is_error: bool = False
    file: str = ""
    guest: str = ""
    vdev: str = ""

    def text(self) -> str:
        """It in a sentence."""
        guest = f"guest {self.guest}{f', {self.vdev}' if self.vdev else ''}: " if self.guest else ""
        file = f"{self.file}: " if self.file else ""
        return f"{file}{guest}{self.problem}{f' (fix: {self.fix})' if self.fix else ''}."


@record
class Use(NamedTuple):
    """What a guest needs of this host, and what that is now: the kernel's name of a device, or a path without links."""

    guest: Guest
    disk: Disk
    required: Required
    place: str

    def finding(self, problem: str, fix: str = "", *, is_error: bool = False) -> Finding:
        """Something wrong with it."""
        return Finding(problem, fix, is_error, self.guest.domain.source, self.guest.domain.name, self.disk.vdev)


def findings_of(snapshot: Snapshot, watcher: Watcher, *, reboot: bool) -> list[Finding]:
    """Everything wrong: with the configurations, with what they name, and perhaps with what a reboot takes away."""
    facts = StorageFacts()
    uses, used = uses_of(snapshot, watcher), used_by_host(facts)
    # Cluster managers bring up storage themselves.
    reboot = reboot and not is_enabled("pacemaker|linstor|ganeti")
    checks = [check_files(snapshot), check_sharing(uses)]
    checks += [check_units()] if snapshot.guests else []
    for use in (use for use in uses if use.guest.domain.source in snapshot.guests):
        checks += [check_use(use, used, facts)]
        checks += [check_reboot(use, facts)] if reboot and snapshot.disk_status(use.required) == READY else []
    found = dict.fromkeys(finding for findings in checks for finding in findings)
    return [one for one in found if not watcher.names or one.file in snapshot.guests]


def uses_of(snapshot: Snapshot, watcher: Watcher) -> list[Use]:
    """What the guests need of this host, also those that were not asked for, without what does not answer."""
    places = places_of(required_paths(snapshot.read), watcher)
    return [
        Use(guest, disk, required, places[required.path])
        for guest in snapshot.read.values()
        for disk, required in zip(guest.domain.needs(), guest.required)
        if required.path and required.path in places
    ]


def places_of(needed: Mapping[str, Required], watcher: Watcher) -> dict[str, str]:
    """What is at each of these paths, see place_of(), without what does not answer."""
    calls: dict[str, Call] = {path: partial(place_of, path) for path in needed}
    answers = watcher.calls.run("place", calls, watcher.clock.now() + MAX_FIRST_LOOK)
    return {path: place for path, place in answers.items() if isinstance(place, str)}


def place_of(path: str) -> str:
    """The kernel's name of the device that is required, or the path without links. May block."""
    path = os.path.realpath(existing_path(path))
    with suppress(OSError):
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            return os.path.basename(os.readlink(device_link(status.st_rdev)))
    return path


def check_files(snapshot: Snapshot) -> Iterator[Finding]:
    """The directories of xendomains, and the files in them."""
    for path, directory in snapshot.directories.items():
        if directory.warning:
            yield Finding(directory.warning, file=path)
        if directory.status != READY:
            awaited = "; the boot would wait for it" if directory.status.is_awaited() else ""
            yield Finding(directory.status.reason + awaited, "", not awaited, path)
    for file, guest in snapshot.guests.items():
        yield from (Finding(warning, file=file) for warning in guest.domain.warnings)
        if guest.status.is_awaited():
            yield Finding(f"{guest.status.reason}; the boot would wait for it", file=file)
        elif guest.start.instead == "create":
            yield Finding(guest.start.reason, "", True, file, guest.domain.name)
    for file, why in lost_guests(snapshot).items():
        guest = snapshot.guests[file]
        yield Finding(why, "", True, file, "" if guest.status.is_rejected() else guest.domain.name)


def check_sharing(uses: Sequence[Use]) -> Iterator[Finding]:
    """Disks that two guests write, or of which one guest writes a part."""
    writers: dict[str, list[Use]] = {}
    for use in (use for use in uses if use.disk.writes):
        writers.setdefault(use.place, []).append(use)
    for place, sharing in writers.items():
        above = [other for name in devices_above(place) for other in writers.get(name, ())]
        for use in sharing:
            # The saved and the configured form of a guest are one.
            names = {one.guest.domain.name for one in (*sharing, *above)} - {use.guest.domain.name}
            if names:
                problem = f"{use.required.path} is written by guest {join_limited(sorted(names), MAX_LISTED)} as well"
                yield use.finding(problem, "give each guest a disk of its own", is_error=True)


def check_units() -> Iterator[Finding]:
    """The units without which nothing happens at boot."""
    for unit in ("xendomains.service", f"{COMMAND}.service"):
        state = output_of("systemctl", "is-enabled", unit).strip()
        if state in ("disabled", "masked"):
            verb = "enable" if state == "disabled" else "unmask"
            yield Finding(f"{unit} is {state}, so it does not run at boot", f"systemctl {verb} {unit}")
    for unit in ("libvirtd.service", "virtxend.service"):
        conflicts = output_of("systemctl", "show", "--property=Conflicts", unit)
        if "xendomains.service" in conflicts and output_of("systemctl", "is-enabled", unit).strip() == "enabled":
            problem = f"{unit} conflicts with xendomains.service, so systemd may start only one of them at boot"
            yield Finding(problem, f"systemctl disable {unit}", is_error=True)


# Names that the kernel, or mdadm for an array that mdadm.conf does not name, gives in the order in which devices come.
NUMBERED = "nvme[0-9]+n|dm-|loop|nbd|zd|rbd|bcache|mmcblk|sr"
UNSTABLE_NAME = f"/dev/((sd|hd|vd|xvd)[a-z]{{1,3}}[0-9]*|(md12[0-9]|({NUMBERED})[0-9]+)(p[0-9]+)?)"
# Links that udev makes for what a device is, the best first.
STABLE_NAMES = ("/dev/disk/by-id/dm-name-", "/dev/disk/by-id/md-name-", "/dev/disk/by-id/", "/dev/disk/by-path/")


def check_use(use: Use, used: Mapping[str, str], facts: StorageFacts) -> Iterator[Finding]:
    """What a guest needs: its name, and whether this host uses it."""
    path = use.required.path
    if (match := re.fullmatch(UNSTABLE_NAME, path)) and not is_in_mdadm_conf(match[1], facts):
        links = sorted(link for one in facts.devices if one.name == match[1] for link in one.links)
        links = [link for link in links if "/lvm-pv-uuid-" not in link]  # a clone has it as well
        stable = next((link for kind in STABLE_NAMES for link in links if link.startswith(kind)), "")
        yield use.finding(f"{path} may be another disk after a reboot", f"write {stable}" if stable else "")
    if not use.disk.writes:
        return
    fix, places = "give the guest a disk of its own", [use.place, *devices_above(use.place)]
    if taken := next((place for place in places if place in used), ""):
        what = path if taken == use.place else f"{device_path(taken)} on {path}"
        yield use.finding(f"{what} {used[taken]} on this host", fix, is_error=True)
    elif parts := [device_path(one) for one in holders_of(use.place)]:
        yield use.finding(f"{path} is part of {join_limited(parts, MAX_LISTED)} on this host", fix)


def devices_above(name: str) -> list[str]:
    """The devices that stand on this one: its partitions, its holders, and what stands on them."""
    above = [name]
    for one in above:
        directory = f"{SYS}/class/block/{one}"
        parts = [part for part in list_names(directory) if os.path.exists(f"{directory}/{part}/partition")]
        above += [other for other in parts + list_names(f"{directory}/holders") if other not in above]
    return above[1:]


def holders_of(name: str) -> list[str]:
    """What this host has made of a device: not the partitions of a map, nor what a guest has in a volume of ours."""
    uuids = {one: attribute(f"{SYS}/class/block/{one}", "dm/uuid") for one in devices_above(name)}
    ours = ("part", "LVM-") if name.startswith("dm-") else ("part",)
    return [one for one in list_names(f"{SYS}/class/block/{name}/holders") if not uuids[one].startswith(ours)]


def used_by_host(facts: StorageFacts) -> dict[str, str]:
    """The devices that this host itself uses, and what for."""
    used = {name: f"is mounted on {places[-1][0]}" for name, places in facts.mounted.items()}
    swaps = (os.path.basename(os.path.realpath(path)) for path, *_ in facts.table(f"{PROC}/swaps"))
    return {**used, **dict.fromkeys(swaps, "is swap space")}


def check_reboot(use: Use, facts: StorageFacts) -> Iterator[Finding]:
    """What is there now, and would not come back by itself."""
    layers = [use.place]
    for name in layers:
        layers += [one for one in devices_below(name) if one not in layers]
    why_stays_away = why_mount_stays_away if "/" in use.place else why_device_stays_away
    for lack in filter(None, [why_stays_away(layer, facts) for layer in layers]):
        yield use.finding(f"after a reboot {use.required.path} will be missing: {lack.reason}", lack.hint)


def is_enabled(names: str) -> bool:
    """Whether a service whose name matches one of these is started at boot."""
    scripts = list_names(f"{ETC}/rc3.d", "S.*")
    for directory in list_names(f"{ETC}/systemd/system", r".*\.(wants|requires)"):
        scripts += list_names(f"{ETC}/systemd/system/{directory}")
    return re.search(names, " ".join(scripts)) is not None


def why_device_stays_away(name: str, facts: StorageFacts) -> Problem | None:
    """Why a device, whatever lies below it, is not there after a reboot."""
    directory = device_directory(name)
    mapped, uuid = (attribute(directory, f"dm/{key}") for key in ("name", "uuid"))
    if re.fullmatch("(loop|nbd)[0-9]+", name):
        units = f"{ETC}/systemd/system"
        files = [f"{ETC}/{one}" for one in ("rc.local", "rc.d/rc.local", "init.d/boot.local")]
        files += [f"{units}/{one}" for one in list_names(units, r".*\.service")]
        scripts = re.search("losetup|nbd-client", "\n".join(map(facts.text, files)))
        is_known = scripts or name in [words[0] for words in facts.table(f"{ETC}/nbdtab")]
        return None if is_known else Problem(f"nothing sets up {name} at boot", "let a unit do that")
    if target := iscsi_session(name)[0]:
        startups = {startup for (one, _), startup in facts.iscsi_nodes.items() if one == target}
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
    """What keeps a LUKS volume from being opened at boot: crypttab(5), or the command line of the kernel."""
    lines = facts.device_table("crypt")
    if mapped not in lines and mapped.removeprefix("luks-") not in facts.text(f"{PROC}/cmdline"):
        return Problem(f"{mapped} is not in /etc/crypttab", "add a line for it")
    if mapped in lines and "noauto" in lines[mapped][1]:
        return Problem(f"{mapped} has the option noauto in /etc/crypttab", "remove noauto")
    return None


def why_not_activated(mapped: str, facts: StorageFacts) -> Problem | None:
    """What keeps LVM from activating a volume at boot: lvm.conf(5), and the flags that lvchange(8) sets."""
    group, volume = (
        part.replace("--", "-") for part in re.sub("([^-])-([^-])", r"\1/\2", mapped, count=1).partition("/")[::2]
    )
    text = re.sub("#.*", "", facts.text(f"{ETC}/lvm/lvm.conf"))
    activated = re.search(r"\bauto_activation_volume_list\s*=\s*\[(.*?)\]", text, re.DOTALL)
    named = re.findall('"([^"/]*)[^"]*"', activated[1]) if activated else [group]
    if group not in named and not any(one.startswith("@") for one in named):
        return Problem(f"auto_activation_volume_list in /etc/lvm/lvm.conf lacks volume group {group}", "add it")
    backup, path = facts.volume_group(group), f"{group}/{volume}"
    of_group, of_volume = (backup.text, backup.volumes.get(volume, "")) if backup else ("", "")
    if has_flag(of_group, "NOAUTOACTIVATE"):
        return Problem(f"volume group {group} is not activated by itself", f"vgchange --setautoactivation y {group}")
    if has_flag(of_volume, "NOAUTOACTIVATE"):
        return Problem(f"{path} is not activated by itself", f"lvchange --setautoactivation y {path}")
    if has_flag(of_volume, "ACTIVATION_SKIP"):
        return Problem(f"{path} has the activation skip flag", f"lvchange --setactivationskip n {path}")
    return None


def why_mount_stays_away(path: str, facts: StorageFacts) -> Problem | None:
    """Why a file is not there after a reboot: its file system was mounted by hand."""
    above = [words for words in facts.mounts if path.startswith(f"{words[4].rstrip('/')}/")]
    kinds = {words[4]: words[words.index("-") + 1] for words in above}
    where = max(kinds, key=len, default="/")
    if where == "/" or kinds[where] == "zfs" or "autofs" in [words[words.index("-") + 1] for words in above]:
        return None
    if re.match("nfs|cifs", kinds[where]):  # what the server has mounted there is mounted below it
        where = min((one for one in kinds if kinds[one] == kinds[where]), key=len)
    plan = facts.planned_mounts.get(where)
    if plan is None:
        return Problem(f"what is mounted on {where} is not in /etc/fstab", "add a line for it")
    if plan.at_boot or plan.file != "/etc/fstab":  # units are needed by others in many ways
        return None
    return Problem(f"{where} has the option noauto in /etc/fstab", "remove noauto")


# --- Start: the guests that are down, each as soon as its disks are there --------------------------------------------
@record
class Outcome(NamedTuple):
    """What became of a guest: one of OUTCOMES, and why."""

    guest: Guest
    result: str
    reason: str = ""


# The exit status for each outcome, and the level and text of its message.
OUTCOMES: Mapping[str, tuple[int, int, str]] = {
    "started": (EXIT_READY, INFO, "guest {} has been started."),
    "restored": (EXIT_READY, INFO, "guest {} has been restored."),
    "running": (EXIT_READY, DEBUG, "guest {} is already running."),
    "skipped": (EXIT_READY, DEBUG, "guest {} is skipped: {}."),
    "ready": (EXIT_READY, DEBUG, "guest {} would be started."),
    "waiting": (EXIT_TIMED_OUT, WARNING, "guest {} is still waiting for {}."),
    "refused": (EXIT_USAGE, ERR, "guest {} is not started: {}."),
    "failed": (EXIT_USAGE, ERR, "guest {} could not be started: {}."),
}


def start_guests(watcher: Watcher, options: Options, journal: Journal, started: float) -> int:
    """Starts the guests that are down and whose disks are ready, one at a time; returns the exit status.

    Goes on for `options.wait` seconds, or until nothing is waited for. Raises Stopped if a signal comes, and
    ConfigError if xl does not work here or a name is wrong.
    """
    clock, deadline = watcher.clock, started + options.wait
    reporter = Reporter(journal, clock, started, min(options.wait, FOREVER))
    # The events are collected from before the first look on.
    events = block_events() if options.wait else None
    starts = Starts(watcher, options, journal)
    seen, recheck = Snapshot(), True
    while True:
        snapshot = watcher.look(clock.now() + MAX_FIRST_LOOK, recheck_ready=recheck)
        if recheck or snapshot is not seen:
            seen = snapshot
            starts.judge(snapshot)
        if options.wait:
            reporter.report(only_of(snapshot, [one.guest for one in starts.waiting.values()]))
        ready, ends = starts.ready(), starts.next_tries()
        if ready and recheck:
            starts.try_guest(ready[0])
        elif ready:
            recheck = True  # one of its disks may have gone again
        elif clock.now() >= deadline or not (starts.waiting or snapshot.awaits_files()):
            break
        else:
            recheck = bool(ends)  # a disk that goes away has to be seen
            sleep_until(min(clock.now() + START_PAUSE, deadline, *ends), clock, events)
    outcomes = starts.outcomes()
    clock.release_signals()
    return show_outcomes(outcomes, journal, options)


class Starts:
    """Which guests have been started or will not be (`settled`), and which may still be (`waiting`), by name."""

    def __init__(self, watcher: Watcher, options: Options, journal: Journal) -> None:
        self._watcher = watcher
        self._options = options
        self._journal = journal
        self._running = running_guests(watcher)
        self._next: dict[str, tuple[float, Outcome]] = {}  # when to try again, and why not before
        self._failed: dict[str, int] = {}
        self.settled: dict[str, Outcome] = {}
        self.waiting: dict[str, Outcome] = {}

    def judge(self, snapshot: Snapshot) -> None:
        """Sees which guests may be started now."""
        self.waiting = {}
        for name, outcome in outcomes_of(snapshot, self._options, self._watcher.settings, self._running).items():
            if name in self.settled:
                continue
            if outcome.result == "waiting":
                self._next.pop(name, None)  # when a disk that has gone is back, the next try is at once
            if outcome.result == "waiting" or (outcome.result == "ready" and not self._options.dry_run):
                self.waiting[name] = outcome
            else:
                self._settle(outcome)

    def ready(self) -> list[Guest]:
        """The guests that may be started now."""
        late = {name for name, (end, _) in self._next.items() if end > self._watcher.clock.now()}
        return [one.guest for name, one in self.waiting.items() if one.result == "ready" and name not in late]

    def next_tries(self) -> list[float]:
        """When guests are tried again."""
        return [end for end, _ in self._next.values() if end > self._watcher.clock.now()]

    def try_guest(self, guest: Guest) -> None:
        """Starts a guest. If that fails, there may be another try."""
        name, outcome, pause = guest.domain.name, start_guest(guest, self._watcher), START_PAUSE
        if outcome.result == "failed" and self._options.wait:
            times = self._failed[name] = self._failed.get(name, 0) + 1
            why = f"{outcome.reason} (it is left alone now)"
            if times <= len(RETRIES):
                pause = RETRIES[times - 1]
                why = f"another try in {format_time_span(pause)}, because {outcome.reason}"
            outcome = outcome._replace(result="waiting" if times <= len(RETRIES) else "failed", reason=why)
        if outcome.result != "waiting":
            self._settle(outcome)
            return
        if self._next.get(name, (0.0, None))[1] != outcome:
            tell(outcome, self._journal, self._options)
        self._next[name] = (self._watcher.clock.now() + pause, outcome)

    def outcomes(self) -> list[Outcome]:
        """What has become of all guests in the end."""
        for name, outcome in list(self.waiting.items()):
            if name not in self.settled:
                self._settle(self._next.get(name, (0.0, outcome))[1])
        return list(self.settled.values())

    def _settle(self, outcome: Outcome) -> None:
        self.settled[outcome.guest.domain.name] = outcome
        tell(outcome, self._journal, self._options)


def guests_meant(snapshot: Snapshot, names: Sequence[str]) -> list[Guest]:
    """The guests with these names or all, each with the file that it starts from. Raises ConfigError for a wrong name.

    A saved guest comes first, also if it cannot be restored: what it holds would be lost if it were created afresh.
    """
    if unknown := unknown_name(snapshot, names):
        raise ConfigError(unknown.rstrip("."))
    meant: set[str] = set()
    for name in names:
        guests = guests_named(snapshot.read, (name,)).values()
        # What cannot be read yet is meant only if nothing else is.
        read = {guest.domain.name for guest in guests if not guest.status.is_awaited()}
        meant |= read or {guest.domain.name for guest in guests}
    by_name: dict[str, Guest] = {}
    for guest in snapshot.guests.values():
        if not guest.start.instead and (not names or guest.domain.name in meant):
            by_name.setdefault(guest.domain.name, guest)
    return list(by_name.values())


def only_of(snapshot: Snapshot, guests: Sequence[Guest]) -> Snapshot:
    """The snapshot with these guests alone."""
    disks = {one.path: snapshot.disks[one.path] for guest in guests for one in guest.required if one.path}
    return snapshot._replace(guests={guest.domain.source: guest for guest in guests}, disks=disks)


def outcomes_of(
    snapshot: Snapshot, options: Options, settings: Settings, running: Container[str]
) -> dict[str, Outcome]:
    """By name, whether each guest may be started now ("ready"), and if not, why. In doubt it may not."""
    outcomes = {}
    logs = xl_logs()
    have_run: set[str] = set() if options.guests else started_since_boot(logs)
    patterns = ("*",) if options.guests else settings.late_domains
    for guest in guests_meant(snapshot, options.guests):
        name, file, kind, *_ = guest.domain
        # As long as those are not known, a guest may be saved.
        saved = {path: one for path, one in snapshot.directories.items() if one.kind == "saved" != kind}
        needed = only_of(snapshot, [guest])._replace(directories=saved)
        lost = [f"{file}: {why}" for why in lost_guests(needed).values()]
        lost += [f"{path}: {one.status.reason}" for path, one in saved.items() if one.status.is_rejected()]
        missing = [f"{one.path} ({one.status.reason})" for one in needed.missing()]
        if name in running:
            result, reason = "running", ""
        elif not matches_any((name, os.path.basename(file)), patterns):
            result, reason = "skipped", "[late] domains does not match it"
        elif name in have_run:
            result, reason = "skipped", f"it has been started since the host booted (try: {COMMAND} start {name})"
        elif lost:
            result, reason = "refused", lost[0]
        elif kind == "saved" and guest.signature and has_run_since(guest.signature[MODIFIED], logs.get(name)):
            result, reason = "refused", f"{file} is older than its last start (to give it up: rm {file})"
        else:
            result, reason = "waiting" if missing else "ready", join_limited(missing, MAX_LISTED)
        outcomes[name] = Outcome(guest, result, reason)
    return outcomes


def has_run_since(saved: int, log: Sequence[int] | None) -> bool:
    """Whether a guest has run since it was saved at this time in ns, according to its log."""
    # When a guest has been saved, xl notes in the log that it was destroyed.
    return log is not None and saved + MAX_SAVE_END * 1e9 < log[-1]


def xl_logs() -> dict[str, list[int]]:
    """The inode, size and time (in ns) of the log of each guest, which xl begins anew when it has started the guest.

    Not seen is what xl has started without its daemon (xl create -e), and what logrotate has emptied or taken away.
    """
    logs = {}
    for file in list_names(XL_LOGS, r"xl-.+\.log"):
        with suppress(OSError):
            status = os.stat(f"{XL_LOGS}/{file}")
            if status.st_size:
                logs[well_formed(file[len("xl-") : -len(".log")])] = [status.st_ino, status.st_size, status.st_mtime_ns]
    return logs


def note_logs() -> None:
    """Notes how the logs of the guests are before xendomains starts them, once a boot. Raises OSError."""
    # What runs long after the boot is not the wait at boot, and guests may have been started before it.
    if not os.path.exists(NOTED_LOGS) and time.clock_gettime(time.CLOCK_BOOTTIME) < MAX_BOOT:
        write_record(NOTED_LOGS, xl_logs())


def started_since_boot(logs: Mapping[str, Sequence[int]]) -> set[str]:
    """The guests whose logs are not as the wait at boot has noted them, or if it has not, are newer than the boot."""
    import json

    with suppress(OSError, ValueError, TypeError):
        noted = dict(json.loads(read_file(NOTED_LOGS)))
        return {name for name, log in logs.items() if noted.get(name) != log}
    # Where the clock was behind at boot, a log from before it looks newer than the boot: its guest is left alone.
    booted = (time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)) * 1e9
    return {name for name, log in logs.items() if log[-1] > booted}


def running_guests(watcher: Watcher) -> set[str]:
    """The names of the guests that run. Raises ConfigError if xl does not work here."""
    if os.geteuid() != 0:
        raise ConfigError("start must be run as root, because xl must")
    if not (printed := ask_xl(watcher, "list")):
        raise ConfigError("`xl list` fails, so no guest can be started (is xl installed, and does this host run Xen?)")
    return set(re.findall(r"^(.*?) +\d+ +\d+ +\d+ +\S+ +[\d.]+$", printed, re.MULTILINE))


def ask_xl(watcher: Watcher, *words: str) -> str:
    """What xl prints; nothing if it fails or takes long."""
    calls: dict[str, Call] = {words[-1]: partial(output_of, "xl", *words)}
    answers = watcher.calls.run("xl", calls, watcher.clock.now() + MAX_FIRST_LOOK, MAX_FIRST_LOOK)
    return next((answer for answer in answers.values() if isinstance(answer, str)), "")


def start_command(guest: Guest) -> str:
    """The shell command that starts a guest as xendomains does. A file left behind would be restored again later."""
    from shlex import quote

    file = quote(guest.domain.source)
    return (
        f"xl restore {file} && rm {file}" if guest.domain.kind == "saved" else f"xl create --quiet --defconfig {file}"
    )


def start_guest(guest: Guest, watcher: Watcher) -> Outcome:
    """Starts a guest, unless it runs, or another process starts it.

    xl goes on when this program ends: it has a session of its own, and prints to a file. That is the guest's lock as
    well, so that it is held until xl has ended; what xl leaves running has closed it.
    """
    from fcntl import LOCK_EX, LOCK_NB, flock
    from subprocess import DEVNULL, run

    command, now = start_command(guest), watcher.clock.now()
    os.makedirs(LOCKS, exist_ok=True)
    with open(f"{LOCKS}/{guest.domain.name.replace('/', '_')}", "ab+") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return Outcome(guest, "waiting", "another process, which is starting it")
        if ask_xl(watcher, "domid", guest.domain.name):
            return Outcome(guest, "running")
        lock.truncate(0)
        files = {"stdin": DEVNULL, "stdout": lock, "stderr": lock}
        call = partial(run, command, shell=True, cwd="/", start_new_session=True, **files)
        # Of its own purpose, because an earlier one may still hang.
        ended = watcher.calls.run(f"start at {now}", {command: call}, now + MAX_XL, MAX_XL).get(command, NoResponse())
        said = "; ".join(os.pread(lock.fileno(), MAX_REASON, 0).decode(errors="replace").splitlines())
    if isinstance(ended, Exception):
        return Outcome(guest, "failed", f"`{command}` has not ended after {format_time_span(MAX_XL)}")
    if ended.returncode != 0:
        return Outcome(guest, "failed", f"`{command}` failed with status {ended.returncode}: {said}")
    return Outcome(guest, "restored" if guest.domain.kind == "saved" else "started")


def tell(outcome: Outcome, journal: Journal, options: Options) -> None:
    """Says what became of a guest. What may be so at each boot is only for who asks."""
    level, text = OUTCOMES[outcome.result][1:]
    name, reason = outcome.guest.domain.name, outcome.reason
    journal.log(INFO if level == DEBUG and not options.wait else level, text.format(name, reason), DOMAIN=name)


def show_outcomes(outcomes: Sequence[Outcome], journal: Journal, options: Options) -> int:
    """Says what became of how many guests, prints commands or JSON if asked for, and returns the exit status."""
    results = [outcome.result for outcome in outcomes]
    counts = [f"{results.count(result)} {result}" for result in OUTCOMES if result in results]
    journal.log(INFO, f"Guests: {', '.join(counts) or 'none'}.")
    if options.json:
        import json

        rows = [
            {
                **start_as_json(guest),
                "result": result,
                "reason": well_formed(reason) or None,
                "command": well_formed(start_command(guest)),
            }
            for guest, result, reason in outcomes
        ]
        show(json.dumps({"version": JSON_VERSION, "guests": rows}, indent=2))
    elif options.dry_run:
        for guest, result, reason in outcomes:
            text = printable(OUTCOMES[result][2].format(guest.domain.name, reason))
            show(start_command(guest) if result == "ready" else f"# {text}")
    return max((OUTCOMES[result][0] for result in results), default=EXIT_READY)


# --- Command line ----------------------------------------------------------------------------------------------------
COMMANDS = ("wait", "list", "check", "last", "start")


@record
class Options(NamedTuple):
    """The command line; at boot there is nothing on it."""

    command: str = "wait"
    guests: Sequence[str] = ()
    config: str = ""
    timeout: float | None = None
    verbose: int = 0
    quiet: bool = False
    json: bool = False
    reboot: bool = False
    dry_run: bool = False
    wait: float = 0.0


def parse_arguments(arguments: Sequence[str]) -> Options:
    """The options on the command line. Ends the program if they are wrong (status 2), or asked for help or version."""
    if not arguments:
        return Options()
    import argparse

    def time_span(text: str) -> float:
        try:
            return float(text) if text == "inf" else parse_time_span(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Wait until the disks of the Xen guests that are about to start are ready, or say what is missing.",
        epilog="Exit status: 0 every disk is ready, 1 timed out, 2 wrong usage or configuration, "
        "6 no settings of xendomains.",
    )
    command_help = (
        "wait: wait for the disks (the default); list: show them and how they are; "
        "check: say what is wrong, and what the next boot will trip over; last: show how the last wait ended; "
        "start: start the guests that are down and whose disks are ready"
    )
    timeout_help = "wait at most this long, as in 90 or 5min; 0: look once"
    parser.add_argument("command", nargs="?", default="wait", choices=COMMANDS, help=command_help)
    parser.add_argument("guests", nargs="*", metavar="GUEST", help="only these, by name or file name; without, all")
    parser.add_argument("--config", metavar="FILE", default="", help=f"read this instead of {CONFFILE}")
    parser.add_argument("--timeout", metavar="TIME", type=time_span, help=timeout_help)
    parser.add_argument("--reboot", action="store_true", help="with check: what would not come back after a reboot")
    parser.add_argument("--dry-run", action="store_true", help="with start: print the commands, and start nothing")
    wait_help = "with start: wait for the disks of the others, without TIME as long as it takes"
    parser.add_argument("--wait", metavar="TIME", type=time_span, default=0.0, help=wait_help)
    parser.add_argument("--json", action="store_true", help="with list, check, last and start: for programs")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; with list, what to do")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what is missing in the end")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    try:
        # argparse would take a guest that follows for its TIME.
        arguments = ["--wait=inf" if argument == "--wait" else argument for argument in arguments]
        options = parser.parse_intermixed_args(arguments)
    finally:
        show("", end="")  # help or version, which the end in run() would not write out
    if options.json and options.command == "wait":
        parser.error("--json goes with list, check, last and start")
    if (options.dry_run or options.wait) and options.command != "start":
        parser.error("--dry-run and --wait go with start")
    if options.dry_run and options.wait:
        parser.error("--dry-run does not wait")
    if options.reboot and options.command != "check":
        parser.error("--reboot goes with check")
    if options.guests and options.command == "last":
        parser.error("last is of all guests")
    return Options(**vars(options))


def log_level(settings: Settings, options: Options, environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """The level up to which messages are shown, and a sentence for each wrong value in the environment."""
    problems = []
    level = settings.log_level
    for name in ("SYSTEMD_LOG_LEVEL", "LOGLEVEL"):
        if environment.get(name):
            try:
                level = parse_log_level(environment[name])
            except ConfigError as error:
                problems.append(f"${name} {error}; it is ignored.")
    if options.quiet:
        level = ERR
    elif options.verbose:
        level = max(level, INFO if options.verbose == 1 else DEBUG)
    return level, problems


def main(clock: Clock, arguments: Sequence[str] | None = None) -> int:
    """Does what the command line asks for, and returns the exit status. Raises Stopped if a signal comes."""
    started = clock.now()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    settings, problems = read_settings(options.config or CONFFILE, must_exist=options.config != "")
    if options.timeout is not None:
        settings = settings._replace(timeout=options.timeout)
    level, level_problems = log_level(settings, options, os.environ)
    if options.command == "start" and not options.quiet:
        level = max(level, INFO)  # what became of the guests
    journal = Journal(level, sys.stderr, clock, patient=options.command in ("list", "check", "last"))
    if options.command == "last":
        return show_last_wait(journal, settings.late_domains, as_json=options.json)
    clock.take_signals()
    limit = MAX_SOURCING
    if options.command == "wait":
        limit = min(MAX_SOURCING, max(settings.timeout, 0.5))
        notify(extended_timeout(settings.timeout))
    xendomains, more_problems = read_xendomains(settings, clock, limit)
    problems += level_problems + more_problems
    for problem in problems:
        journal.log(ERR, problem, MESSAGE_ID=MESSAGE_SETTINGS)
    if xendomains is None:
        return EXIT_NO_XENDOMAINS
    if xendomains.warning:
        journal.log(WARNING, xendomains.warning, MESSAGE_ID=MESSAGE_SETTINGS)

    if options.command == "start":
        # The boot may be told to ignore guests because they start later.
        watcher = Watcher(xendomains, settings._replace(ignored_domains=()), clock)
        watcher.rest, watcher.shares = START_REST, bool(options.guests)
        try:
            return start_guests(watcher, options, journal, started)
        except ConfigError as error:
            journal.log(ERR, f"{error}.")
            return EXIT_USAGE
    watcher = Watcher(xendomains, settings, clock, options.guests)
    if options.command == "wait":
        return wait_for_disks(watcher, journal, started)
    told = [Finding(problem.rstrip("."), is_error=True) for problem in problems]
    told += [Finding(xendomains.warning.rstrip("."))] if xendomains.warning else []
    return show_guests(watcher, options, journal, told)


def show_guests(watcher: Watcher, options: Options, journal: Journal, told: Sequence[Finding]) -> int:
    """What list and check print; returns the exit status. `told` is what was said about the settings."""
    snapshot = watcher.look(watcher.clock.now() + MAX_FIRST_LOOK)
    watcher.clock.release_signals()
    if unknown := unknown_name(snapshot, watcher.names):
        journal.log(ERR, unknown)
        return EXIT_USAGE
    if options.command == "check":
        findings = findings_of(snapshot, watcher, reboot=options.reboot)
        return show_findings(told, findings, snapshot, journal, as_json=options.json)
    show(as_json(snapshot) if options.json else as_table(snapshot, with_hints=options.verbose > 0))
    if not options.json and (later := start_later(snapshot.waiting_guests(), watcher.settings.late_domains)):
        show(later.strip())
    unreadable = any(one.status.is_rejected() for one in snapshot.directories.values())
    if unreadable or lost_guests(snapshot) or any(finding.is_error for finding in told):
        return EXIT_USAGE
    return EXIT_READY if snapshot.is_complete() else EXIT_TIMED_OUT


def wait_for_disks(watcher: Watcher, journal: Journal, started: float) -> int:
    """Waits and says what it waits for; returns the exit status. Raises Stopped if a signal comes."""
    clock, timeout = watcher.clock, watcher.settings.timeout
    deadline = started + timeout
    reporter = Reporter(journal, clock, started, timeout)
    stopped = None
    with suppress(OSError):
        note_logs()
    try:
        # Who looks once has the time of a first look.
        first = min(deadline if timeout else started + MAX_FIRST_LOOK, started + MAX_FIRST_LOOK)
        snapshot = watcher.look(end_of_look(first, clock))
        if not unknown_name(snapshot, watcher.names) and timeout and not snapshot.is_complete():
            reporter.report(snapshot)
            wait(watcher, reporter.report, deadline)
        clock.release_signals()
        if unknown := unknown_name(watcher.known, watcher.names):
            journal.log(ERR, unknown)
            return EXIT_USAGE
    except Stopped as signalled:
        stopped = signalled
        clock.release_signals()
    result = reporter.log_end(watcher.known, stopped.number if stopped else 0, watcher.settings.late_domains)
    try:
        if not watcher.names:  # of a few guests it would take the place of all
            write_record(LAST_WAIT, reporter.as_last_wait(result))
    except OSError as error:
        journal.log(DEBUG, f"{LAST_WAIT} cannot be written ({error_text(error)}).")
    if stopped:
        raise stopped
    return EXIT_READY if result == "ready" else EXIT_TIMED_OUT


def unknown_name(snapshot: Snapshot, names: Iterable[str]) -> str:
    """Which of these names of guests is not one, and which may be meant; nothing if all are, or not all are known."""
    if any(one.status.is_awaited() for one in snapshot.directories.values()):
        return ""
    for name in names:
        if not guests_named(snapshot.read, (name,)):
            domains = [guest.domain for guest in snapshot.read.values()]
            known = {one for domain in domains for one in (domain.name, os.path.basename(domain.source))}
            return f"'{name}' is not a guest that starts at boot ({closest(name, sorted(known))})."
    return ""


def show_findings(
    told: Sequence[Finding], findings: Sequence[Finding], snapshot: Snapshot, journal: Journal, *, as_json: bool
) -> int:
    """Says everything wrong that was not told before, or prints all of it as JSON; returns the exit status."""
    is_ok = not any(finding.is_error for finding in (*told, *findings))
    if as_json:
        import json

        keys = ("file", "guest", "vdev", "problem", "fix")
        rows = [
            {
                "severity": "error" if finding.is_error else "warning",
                **{key: well_formed(getattr(finding, key)) or None for key in keys},
            }
            for finding in (*told, *findings)
        ]
        show(json.dumps({"version": JSON_VERSION, "ok": is_ok, "findings": rows}, indent=2))
    else:
        for finding in findings:
            journal.log(ERR if finding.is_error else WARNING, finding.text())
        if not findings and not told:
            show(f"Nothing is wrong in the configuration of {size_of(snapshot)}.")
    return EXIT_READY if is_ok else EXIT_USAGE


def show_last_wait(journal: Journal, patterns: Sequence[str], *, as_json: bool) -> int:
    """Prints how the last wait ended; returns the status with which it ended."""
    import json

    try:
        text = read_file(LAST_WAIT, MAX_EVIDENCE).decode()
        last = json.loads(text)
        if not as_json:
            rows = [("DISK", "DOMAINS", "STATE", "FOUND AFTER", "REASON")]
            for disk in last["disks"]:
                after = "" if disk["found_after"] is None else f"{disk['found_after']:.0f}s"
                domains = join_limited(disk["domains"], MAX_LISTED)
                rows.append((disk["path"], domains, disk["state"], after, disk["reason"] or ""))
            rows += [(one["source"], "-", "not started", "", one["error"]) for one in last["refused"]]
            waited, timeout = map(format_time_span, (last["waited"], last["timeout"]))
            awaited = {name for one in last["disks"] if State(one["state"]) in AWAITED for name in one["domains"]}
            later = start_later(awaited & {one["name"] for one in last["guests"]}, patterns)
            text = f"{last['started']}: {last['result']} after {waited} of {timeout}{later}\n{in_columns(rows)}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        journal.log(ERR, f"{LAST_WAIT}, which a wait leaves at its end, cannot be read ({error_text(error)}).")
        return EXIT_USAGE
    show(text)
    return EXIT_READY if last["result"] == "ready" else EXIT_TIMED_OUT


def size_of(snapshot: Snapshot) -> str:
    """How many guests and disks there are."""
    guests = [guest for guest in snapshot.guests.values() if guest.start.how != "none"]
    disks = sum(len(guest.domain.disks) for guest in guests)
    return f"{counted(len(guests), 'guest')} with {counted(disks, 'disk')}"


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
        raise ConfigError(f"the output cannot be written: {error_text(error)}") from None


def run() -> NoReturn:
    """The command: main(), and out.

    Leaves at once, because tearing down the interpreter takes longer than the look at a disk. Threads that are stuck do
    not keep it, unless they are stuck where even SIGKILL does not reach them; then it is up to systemd's timeouts.
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
    except SystemExit as end:  # argparse
        status = end.code if isinstance(end.code, int) else EXIT_USAGE
    except ConfigError as error:
        failure = f"{error}."
    except MemoryError:
        failure = "there is not enough memory to go on. What is missing is not waited for."
    except (ImportError, OSError) as error:
        what = "a Python module cannot be loaded" if isinstance(error, ImportError) else "the wait cannot go on"
        failure = f"{what} ({error_text(error)}). What is missing is not waited for."
    except Exception as error:
        failure = f"internal error, please report it: {error_text(error)}"
    if failure:
        clock.release_signals()
        Journal(ERR, sys.stderr, clock).log(ERR, f"{COMMAND}: {failure}")
    os._exit(status)


if __name__ == "__main__":
    run()
