"""The embedded stack: an S3 server, a Prefect server and two workers, for one person on one machine.

Everything listens on loopback only, asks for credentials that were generated for this folder, and keeps its state
in one folder (`.ratchet/`, readable by its owner alone). One process owns the stack and holds a lock on the folder
for as long as it lives. However that process ends, a guard ends the others (see `deployments.stack.guard`), and the
next start first ends whatever a former one may still have left, so there is nothing to clean up by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import psutil
from filelock import FileLock, Timeout

from deployments.places import DEPLOYMENTS, POOLS, ROOT
from deployments.stack import guard, seaweedfs

BUCKET: Final = "ratchet"

_SERVER_SECONDS: Final = 180.0
_SETUP_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 15.0
_LOCK_SECONDS: Final = 1.0


class StackError(Exception):
    """The stack could not be started or reached; the message says why and what to do."""


class AlreadyRunningError(StackError):
    """Another process owns the stack of this state folder."""


def default_state() -> Path:
    """`RATCHET_STATE`, or else `.ratchet` in the checkout (in the current folder when there is none)."""
    if named := os.environ.get("RATCHET_STATE"):
        return Path(named)
    return (ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()) / ".ratchet"


@dataclass(frozen=True)
class Stack:
    """A running stack as its state file describes it; holds no secret.

    `services` are process ids by name; `s3_ports` are kept so that the next start can use the same addresses.
    """

    state: Path
    pid: int
    mark: str
    started: str
    api_url: str
    s3_endpoint: str
    s3_ports: tuple[int, ...] = ()
    services: Mapping[str, int] = field(default_factory=dict)

    @property
    def ui_url(self) -> str:
        """Address of the Prefect UI."""
        return self.api_url.removesuffix("/api")

    @property
    def password_file(self) -> Path:
        """File with the one line that the Prefect UI asks for as its password."""
        return _password_file(self.state)

    @property
    def environment_file(self) -> Path:
        """File with the stack's settings for a shell: `. file`, and `prefect` and S3 clients work on it."""
        return self.state / "env"

    def store(self, name: str = "main") -> str:
        """Address of a store on this stack; `main` is the one its scheduled runs work on."""
        return store_url(name)

    def logs(self) -> Path:
        """Folder with one log file for each service."""
        return self.state / "logs"

    def environment(self) -> dict[str, str]:
        """Settings with which any client (Ratchet, Prefect, an S3 client) works on this stack. Holds secrets."""
        access_key, secret_key = seaweedfs.credentials(self.state / "seaweedfs")
        s3 = seaweedfs.S3Server(self.s3_endpoint, access_key, secret_key, 0, self.s3_ports)
        return {
            **s3.environment(),
            **_prefect_environment(self.state, self.api_url),
            "RATCHET_STORE": self.store(),
            "RATCHET_WORK": str(self.state / "work"),
        }

    def adopt(self, environment: MutableMapping[str, str] | None = None) -> None:
        """Point this process (or another environment) at the stack; call it before Prefect is imported."""
        target = os.environ if environment is None else environment
        for name in [name for name in target if _is_foreign(name)]:
            del target[name]
        target.update(self.environment())

    def running(self) -> dict[str, bool]:
        """Whether each service still runs, by name."""
        return {name: _carries(pid, self.mark) for name, pid in self.services.items()}


def store_url(name: str) -> str:
    """Address of a store on any local stack."""
    return f"s3://{BUCKET}/{name}"


def has_store(state: Path) -> bool:
    """Whether a stack has ever run on this state folder, so that its S3 server has data."""
    return (state / "seaweedfs").is_dir()


def find(state: Path) -> Stack | None:
    """The stack that runs on this state folder now, or None.

    While a stack is still starting it has no address yet and counts as not running.
    """
    state = state.resolve()
    if not _is_locked(state):
        return None
    stack = _read(state)
    # the file of a former stack stays readable until the new owner replaces it
    return stack if stack is not None and psutil.pid_exists(stack.pid) and stack.services else None


@contextlib.contextmanager
def running(
    state: Path,
    *,
    deployments: Path = DEPLOYMENTS,
    database: str | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Iterator[Stack]:
    """A complete stack for the length of a `with` block: servers, bucket, work pools, deployments, workers.

    `deployments` is the prefect.yaml to register; `database` is where the Prefect server keeps its own, an address
    of PostgreSQL such as postgresql+asyncpg://user:password@host/name (a SQLite file in the state folder when left
    out; only the server is told); `on_step` is called with a line for each step.
    Raises AlreadyRunningError when another process owns the stack of this folder, StackError with the end of a log
    when something does not start.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = state.resolve()
    state.chmod(0o700)
    with _locked(state), contextlib.ExitStack() as stack:
        if left := guard.end(f"{state}:"):
            on_step(f"ended {left} processes that a former run had left")
        (state / "stack.json").unlink(missing_ok=True)
        owned = _Owned(state, deployments.resolve(), database, on_step)
        stack.callback(owned.stop)
        yield owned.start()


@contextlib.contextmanager
def store_alone(state: Path) -> Iterator[None]:
    """The S3 server of a stack that does not run, for the length of a `with` block; this process works on it.

    For what needs the store and not Prefect: it starts in a second or two. Raises StackError.
    """
    state = state.resolve()
    with _locked(state), contextlib.ExitStack() as stack:
        guard.end(f"{state}:")
        owned = _Owned(state, DEPLOYMENTS, None, lambda _: None)
        stack.callback(owned.stop)
        os.environ.update(owned.start_store())
        yield


class _Owned:
    """The processes of a stack that this process starts and stops."""

    def __init__(self, state: Path, deployments: Path, database: str | None, on_step: Callable[[str], None]) -> None:
        self.state = state
        self.mark = f"{state}:{secrets.token_hex(8)}"
        self._deployments = deployments
        self._database = database
        self._on_step = on_step
        self._guard: subprocess.Popen[bytes] | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> Stack:
        """Start everything, in the order in which the parts need each other."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        ports = _read_ports(self.state)
        self._start_guard()
        (self.state / "logs").mkdir(exist_ok=True)
        self._on_step("starting the S3 server and the Prefect server")
        api_port, api_url = self._start_prefect(ports.get("api"))
        s3 = self._start_s3(tuple(ports.get("s3", ())))
        self._wait_for_prefect(api_url)
        stack = Stack(self.state, os.getpid(), self.mark, started, api_url, s3.endpoint, s3.ports)
        _write(self.state / "ports.json", {"api": api_port, "s3": s3.ports})
        environment = {**_own_environment(), **stack.environment(), guard.MARK: self.mark}
        self._on_step("registering work pools and deployments")
        self._set_up(environment)
        self._on_step("starting the workers")
        for pool in POOLS:
            self._start_worker(pool, environment)
        stack = Stack(**{**vars(stack), "services": {name: process.pid for name, process in self._processes.items()}})
        with _private(stack.environment_file) as file:
            file.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in stack.environment().items())
        _write(self.state / "stack.json", {**asdict(stack), "state": str(self.state)})
        return stack

    def start_store(self) -> dict[str, str]:
        """Start the S3 server only; returns the settings of its clients."""
        self._start_guard()
        (self.state / "logs").mkdir(exist_ok=True)
        server = self._start_s3(tuple(_read_ports(self.state).get("s3", ())))
        return {**server.environment(), "RATCHET_WORK": str(self.state / "work")}

    def stop(self) -> None:
        """Stop the workers, then the servers, then whatever is left, and wait until it is gone."""
        (self.state / "stack.json").unlink(missing_ok=True)
        workers = [process for name, process in self._processes.items() if name.startswith("worker")]
        servers = [process for process in self._processes.values() if process not in workers]
        for group in (workers, servers):  # a worker tells the server that it goes
            for process in group:
                process.terminate()
            for process in group:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
        guard.end(self.mark)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()

    def _start_guard(self) -> None:
        self._guard = subprocess.Popen(
            [sys.executable, guard.__file__, self.mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.state,
            start_new_session=True,  # a signal to its owner's group is not for the guard
        )

    def _start_s3(self, ports: tuple[int, ...]) -> seaweedfs.S3Server:
        folder = self.state / "seaweedfs"
        folder.mkdir(exist_ok=True, mode=0o700)
        environment = {**_own_environment(), guard.MARK: self.mark}
        try:
            server, process = seaweedfs.start(folder, self._log("s3"), ports=ports, environment=environment)
        except RuntimeError as error:
            raise StackError(str(error)) from error
        self._processes["s3"] = process
        return server

    def _start_prefect(self, port: int | None) -> tuple[int, str]:
        if port is None or not seaweedfs.is_free(port):
            (port,) = seaweedfs.free_ports(1)
        url = f"http://127.0.0.1:{port}/api"
        settings = _prefect_environment(self.state, url)
        environment = {
            **_own_environment(),
            **settings,
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_API_AUTH_STRING": settings["PREFECT_API_AUTH_STRING"],
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # SQLite has one writer: wait for it rather than fail
            "DO_NOT_TRACK": "1",
            guard.MARK: self.mark,
        }
        if self._database is not None:
            environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = self._database
        self._spawn("server", ["prefect", "server", "start"], environment)
        return port, url

    def _wait_for_prefect(self, api_url: str) -> None:
        deadline = time.monotonic() + _SERVER_SECONDS
        while time.monotonic() < deadline and self._processes["server"].poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{api_url}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
            time.sleep(0.2)
        raise StackError(f"the Prefect server did not start; the end of its log:\n{self._end_of_log('server')}")

    def _set_up(self, environment: Mapping[str, str]) -> None:
        """Bucket, pools, deployments, runs that a former stack left unfinished: in a process with these settings."""
        setup = self._spawn("setup", ["deployments.stack.set_up", str(self._deployments)], environment)
        try:
            code = setup.wait(_SETUP_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        del self._processes["setup"]
        if code != 0:
            raise StackError(f"registering the deployments failed; the end of its log:\n{self._end_of_log('setup')}")

    def _start_worker(self, pool: str, environment: Mapping[str, str]) -> None:
        settings = {
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
            "PREFECT_LOGGING_LEVEL": "INFO",
        }
        command = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", f"{pool}-1"]
        self._spawn(f"worker-{pool}", command, {**environment, **settings})

    def _spawn(self, name: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a Python module as a service: in a session of its own, so that Ctrl-C reaches only its owner."""
        with self._log(name).open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=self.state,  # Prefect reads .env, prefect.toml and pyproject.toml where it starts
                env=environment,
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def _log(self, name: str) -> Path:
        """The log of a service; the one of the start before is kept beside it."""
        path = self.state / "logs" / f"{name}.log"
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        return path

    def _end_of_log(self, name: str) -> str:
        return (self.state / "logs" / f"{name}.log").read_text(errors="replace")[-2000:]


# --- settings --------------------------------------------------------------------------------------------


def _is_foreign(name: str) -> bool:
    """Whether a setting of the person at the keyboard would win over the stack's own, or mix with it."""
    return name.startswith(("PREFECT_", "AWS_", "RATCHET_STORE", "RATCHET_WORK", guard.MARK))


def _own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not _is_foreign(name)}


def _password_file(state: Path) -> Path:
    return state / "prefect-password"


def _prefect_environment(state: Path, api_url: str) -> dict[str, str]:
    loopback = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost"]))
    return {
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_API_URL": api_url,
        # links in alerts lead to where people look already: the server's first page is that of its newer UI
        "PREFECT_UI_URL": f"{api_url.removesuffix('/api')}/v2",
        "PREFECT_API_AUTH_STRING": _password(state),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "NO_PROXY": loopback,
        "no_proxy": loopback,
    }


def _password(state: Path) -> str:
    """The user and password of the Prefect API, made once for this folder."""
    path = _password_file(state)
    if not path.exists():
        temporary = path.with_suffix(".new")
        with _private(temporary) as file:
            file.write(f"ratchet:{secrets.token_urlsafe(24)}\n")
        temporary.replace(path)
    return path.read_text().strip()


# --- state files -----------------------------------------------------------------------------------------


def _private(path: Path) -> IO[str]:
    """Open a new file that only its owner can read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w")


def _write(path: Path, content: Mapping[str, object]) -> None:
    """Replace a state file in one step, so that no one ever reads half of it."""
    temporary = path.with_suffix(".new")
    with _private(temporary) as file:
        json.dump(content, file, indent=1)
    temporary.replace(path)


def _read(state: Path) -> Stack | None:
    try:
        found = json.loads((state / "stack.json").read_text())
        return Stack(**{**found, "state": Path(found["state"]), "s3_ports": tuple(found["s3_ports"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _read_ports(state: Path) -> dict[str, Any]:
    try:
        found = json.loads((state / "ports.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _carries(pid: int, mark: str) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(guard.MARK) == mark
    except (psutil.Error, OSError):
        return False


# --- the lock --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system releases it when this process ends, however it ends."""
    lock = FileLock(state / "lock", timeout=_LOCK_SECONDS)  # `_is_locked` holds it for a moment
    try:
        held = lock.acquire()
    except Timeout:
        raise AlreadyRunningError(_already_running(state)) from None
    with held:
        yield


def _already_running(state: Path) -> str:
    stack = _read(state)
    if stack is None:
        return f"a stack is being started or stopped on {state} by another process: try again in a moment"
    return (
        f"a stack is already running on {state} (process {stack.pid}, since {stack.started}); its UI is "
        f"{stack.ui_url}. Use it, or stop it with Ctrl-C where it runs or with: kill {stack.pid}"
    )


def _is_locked(state: Path) -> bool:
    lock = state / "lock"
    try:
        lock.stat()  # a look makes no file
        with FileLock(lock, timeout=0):
            return False
    except FileNotFoundError:
        return False
    except Timeout:
        return True
