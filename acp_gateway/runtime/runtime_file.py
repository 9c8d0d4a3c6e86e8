"""One private file per running daemon, so that ``list``, ``status``, ``stop`` and ``connect``
find it without arguments.

The directory is the user's runtime directory (mode 0700), the file ``<pid>.json`` (mode 0600: it
holds the token). A file whose process is gone, or whose process id belongs to another process by
now, is dropped by whoever sees it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import platformdirs

from acp_gateway import __version__
from acp_gateway.config import APP_NAME, ConfigError, unix_path

FORMAT: Final = 1


@attrs.frozen(kw_only=True)
class RuntimeInfo:
    """What a daemon says about itself. The file is this as a JSON object, with ``v``: 1."""

    pid: int
    process_start: str
    """Start time of the process as the system tells it; opaque, tells reused ids apart."""
    started_at: float
    """Unix time, seconds."""
    version: str
    url: str
    """``http(s)://HOST:PORT``; ``unix:PATH`` of one that listens on a Unix socket alone."""
    ws_url: str
    """``ws(s)://HOST:PORT/acp``, or the same ``unix:PATH``."""
    workspace: tuple[str, ...]
    agents: tuple[str, ...]
    """Names; the first is the default."""
    auth: str
    """The state of authentication in words."""
    token: str | None = attrs.field(default=None, repr=False)
    log_file: str | None = None
    public_url: str | None = None
    """Where it is reached from outside, without a slash at the end."""
    unix_socket: str | None = None
    """Path of the Unix socket that it listens on."""

    @property
    def base(self) -> str:
        """Where its own user asks: the Unix socket if it has one, else its URL."""
        return self.url if self.unix_socket is None else f"unix:{self.unix_socket}"

    @classmethod
    def of_this_process(
        cls,
        *,
        url: str,
        ws_url: str,
        workspace: Iterable[str | Path],
        agents: Iterable[str],
        auth: str,
        token: str | None,
        public_url: str | None = None,
        unix_socket: str | None = None,
        log_file: Path | None = None,
    ) -> RuntimeInfo:
        return cls(
            pid=os.getpid(),
            process_start=process_start(os.getpid()) or "",
            started_at=time.time(),
            version=__version__,
            url=url,
            ws_url=ws_url,
            workspace=tuple(str(root) for root in workspace),
            agents=tuple(agents),
            auth=auth,
            token=token,
            public_url=public_url,
            unix_socket=unix_socket,
            log_file=None if log_file is None else str(log_file),
        )

    def to_dict(self) -> dict[str, Any]:
        return {"v": FORMAT, **attrs.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RuntimeInfo:
        """Raises KeyError or TypeError for something else. Unknown members are ignored."""
        if data["v"] != FORMAT or not isinstance(data["pid"], int) or not data["url"].strip():
            raise TypeError("not a runtime file of this format")
        known = {field.name: data[field.name] for field in attrs.fields(cls) if field.name in data}
        known["workspace"] = tuple(known["workspace"])
        known["agents"] = tuple(known["agents"])
        return cls(**known)


def runtime_dir() -> Path:
    """The private directory, made if needed. Raises `ConfigError` when it is not private."""
    for path in _candidates():
        with contextlib.suppress(OSError):
            for level in (path.parent, path):
                level.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(path):
                return path
    raise ConfigError(
        "There is no private directory for the runtime file: "
        f"{' and '.join(map(str, _candidates()))} cannot be used.",
        remedy="Set XDG_RUNTIME_DIR to a directory of yours with mode 0700.",
    )


def write(info: RuntimeInfo) -> Path:
    """Write the file of a daemon whole or not at all; returns its path."""
    directory = runtime_dir()
    path = directory / f"{info.pid}.json"
    fd, temporary = tempfile.mkstemp(prefix=f".{info.pid}-", dir=directory)  # mode 0600
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(info.to_dict(), file)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def remove(pid: int | None = None) -> None:
    """Remove the file of a daemon, by default of this process. Nothing happens without one."""
    for directory in _existing_dirs():
        with contextlib.suppress(OSError):
            (directory / f"{pid or os.getpid()}.json").unlink()


def list_running() -> list[RuntimeInfo]:
    """The running daemons of this user, oldest first. Files of dead ones are removed."""
    running: dict[int, RuntimeInfo] = {}
    for directory in _existing_dirs():
        for path in directory.glob("*.json"):
            try:
                info = RuntimeInfo.from_dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue  # of another version, or somebody else's: not ours to remove
            if is_alive(info):
                running[info.pid] = info
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
    return sorted(running.values(), key=lambda info: info.started_at)


def find(target: str | None = None, *, workspace: Path | None = None) -> RuntimeInfo | None:
    """The running daemon that ``target`` means: its URL (any of its endpoints; ``unix:PATH`` is its
    Unix socket) or process id.

    Without a target the only one, or of several the one that serves ``workspace`` (the
    current directory unless given). None when there is none; `ConfigError` when several fit.
    """
    running = list_running()
    if target is not None:
        if (path := unix_path(target)) is not None:
            return next((info for info in running if info.unix_socket == path), None)
        if target.isdecimal():
            return next((info for info in running if info.pid == int(target)), None)
        wanted = _address(target)
        return next((info for info in running if wanted == _address(info.url)), None)
    if len(running) > 1:
        here = Path.cwd() if workspace is None else workspace
        running = [info for info in running if serves(info, here)] or running
    if len(running) > 1:
        urls = ", ".join(info.url for info in running)
        raise ConfigError(
            f"{len(running)} gateways are running: {urls}.", remedy="Name one of these URLs."
        )
    return running[0] if running else None


def owner_of_port(port: int) -> RuntimeInfo | None:
    """The running daemon that listens on this TCP port."""
    with_tcp = (info for info in list_running() if unix_path(info.url) is None)
    return next((info for info in with_tcp if _address(info.url)[1] == port), None)


def serves(info: RuntimeInfo, directory: Path) -> bool:
    """True where a session in ``directory`` would be accepted."""
    directory = directory.resolve()
    return any(directory.is_relative_to(root) for root in info.workspace)


def is_alive(info: RuntimeInfo) -> bool:
    """True while the process that wrote the file runs."""
    return process_start(info.pid) == (info.process_start or None)


def process_start(pid: int) -> str | None:
    """When a process started, as opaque text; None when there is no such process."""
    try:
        if os.path.exists("/proc/self/stat"):
            # proc(5): field 22 counts from the boot; the name in field 2 may hold blanks and ")".
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else fields[19]
        shown = subprocess.run(
            ["ps", "-o", "state=,lstart=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=5,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        ).stdout.split(maxsplit=1)
    except (OSError, IndexError, subprocess.SubprocessError):
        return None
    return None if len(shown) < 2 or shown[0].startswith("Z") else shown[1].strip()


def _candidates() -> list[Path]:
    paths = []
    with warnings.catch_warnings():
        # platformdirs warns when it falls back to a directory of its own below the temporary one.
        warnings.simplefilter("ignore")
        with contextlib.suppress(OSError):
            paths.append(platformdirs.user_runtime_path(APP_NAME, appauthor=False))
    paths.append(Path(tempfile.gettempdir()) / f"{APP_NAME}-{os.getuid()}")
    return paths


def _existing_dirs() -> list[Path]:
    return [path for path in _candidates() if _is_private(path)]


def _is_private(path: Path) -> bool:
    """A directory, not a link, that nobody but its owner (this user) can enter."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not stat.S_IMODE(status.st_mode) & 0o077
    )


def _address(url: str) -> tuple[str, int | None]:
    """(host, port) of an http or ws URL; the names of this machine are one."""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return "", None
    port = port or {"https": 443, "wss": 443}.get(parts.scheme, 80)
    here = ("localhost", "::1", "0.0.0.0", "::")
    return ("127.0.0.1" if host in here else host), port
