"""A PostgreSQL server of the tests' own: its own data, a Unix socket only, an unprivileged user, ended by its pid.

The server refuses to run as root, so there it runs as ``nobody``. Its disk is not flushed: what a power failure leaves
is the server's business, not ours, and the tests are much faster.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg

from appliance.settings import Url

START_S = 60.0
"""For a server to start or stop on a machine that is busy."""


def programs() -> Path:
    """The newest server's programs; Debian keeps them off the path."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name)
    )
    found = installed[-1] if installed else shutil.which("initdb")
    assert found, "no PostgreSQL server is installed: .ci/setup --tests"
    return Path(found).parent


class PostgresServer:
    """Made by ``initdb``, started and stopped at will; ``close`` leaves nothing."""

    def __init__(self, *options: str) -> None:
        self._programs = programs()
        self.directory = Path(tempfile.mkdtemp(prefix="pg-"))  # a short path: sockets have at most 107 bytes
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._data = self.directory / "data"
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb",
            *("--pgdata", str(self._data), "--username", "postgres", "--auth", "trust", "--no-sync"),
            *("--encoding", "UTF8", "--locale", "C"),
        )
        access = self._data / "pg_hba.conf"
        access.write_text(
            "local all with_password scram-sha-256\nlocal all all trust\nhost all all 127.0.0.1/32 trust\n"
        )
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            timeout=START_S,
            **self._user,  # type: ignore[call-overload]
        )

    def start(self) -> None:
        """It takes connections once this returns."""
        self._run(
            "pg_ctl",
            *("start", "--wait", "--pgdata", str(self._data), "--log", str(self.directory / "log")),
            *("--timeout", f"{START_S:g}", "--options", " ".join(self._flags())),
        )

    def _flags(self) -> list[str]:
        return [
            "-c listen_addresses=''",
            f"-c unix_socket_directories={self.directory}",
            "-c fsync=off",
            "-c full_page_writes=off",
            "-c max_connections=200",
            "-c deadlock_timeout=50ms",
            *self.options,
        ]

    def stop(self) -> None:
        """At once, as a server that is stopped does: connections are told, transactions undone."""
        self._run(
            "pg_ctl",
            *("stop", "--wait", "--pgdata", str(self._data), "--mode", "fast"),
            *("--timeout", f"{START_S:g}"),
        )

    @property
    def pid(self) -> int | None:
        """Of the server, while it runs."""
        try:
            return int((self._data / "postmaster.pid").read_text().split()[0])
        except FileNotFoundError:
            return None

    def url(self, schema: str = "cloud_seal", user: str = "postgres", database: str = "postgres") -> Url:
        """Where it is, as the configuration says it."""
        return Url(f"postgresql://{user}@/{database}?host={self.directory}&schema={schema}")

    def connect(self, schema: str = "cloud_seal") -> psycopg.Connection[tuple[object, ...]]:
        """As its keepers do, past everything of ours."""
        return psycopg.connect(
            host=str(self.directory),
            user="postgres",
            dbname="postgres",
            autocommit=True,
            options=f"-c search_path={schema}",
        )

    def close(self) -> None:
        """Stopped, and its data removed."""
        if self.pid is not None:
            try:
                self.stop()
            except subprocess.SubprocessError:
                pid = self.pid
                if pid is not None:
                    os.kill(pid, signal.SIGQUIT)
        shutil.rmtree(self.directory)
