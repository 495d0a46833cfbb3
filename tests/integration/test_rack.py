"""A rack: installed by the README's commands and the unit's first lines, under a systemd that boots.

The machine is ``systemd-nspawn`` on this one's own files, with a memory of its own for what changes (an overlay) and no
network but its loopback. What it installs from PyPI was downloaded before, by the lock file's hashes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from appliance_fixture import ROOT, until

from appliance.wakefulness import DEVICE, DRIVER

SYSTEM_PYTHON = Path("/usr/bin/python3")
"""A service's user can read it, which is not said of the one that runs the tests."""
SHARED = Path("/var/tmp/cloud-seal-rack")
OPTIONS = (
    "--boot",
    "--console=pipe",
    "--keep-unit",
    "--machine=cloud-seal-rack",
    "--private-network",
    "--register=no",
    "--volatile=overlay",
)
BIN, ETC, UNIT = "/opt/cloud-seal/bin", "/etc/cloud-seal", "cloud-seald.service"
PATIENCE_S = 120.0


def _lacks() -> str:
    """What this machine has not; empty where it has all."""
    if os.geteuid() != 0:
        return "root, who alone may boot another"
    if not _is_ours(SYSTEM_PYTHON):
        return f"a {SYSTEM_PYTHON} of the version that runs the tests, with venv"
    return ""


def _is_ours(python: Path) -> bool:
    """Whether that Python installs what this one builds."""
    ask = "import ensurepip, sys; print(*sys.version_info[:2])"
    if not python.exists():
        return False
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.split() == [str(number) for number in sys.version_info[:2]]


pytestmark = [
    pytest.mark.gauntlet,
    pytest.mark.timeout(600),
]


class Machine:
    """A booted machine, by the process that is its first one."""

    def __init__(self, leader: int) -> None:
        self._enter = ["nsenter", "-t", str(leader), "-m", "-p", "-i", "-u", "-n", "-C"]

    def run(self, script: str, *, check: bool = True) -> str:
        """What a shell printed, as root; it stops at the first command that fails."""
        done = subprocess.run(
            [*self._enter, "/bin/bash", "-euo", "pipefail"],
            input=f"export PATH={BIN}:$PATH HOME=/root; cd /; {script}",
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def shows(self, name: str) -> str:
        """A property of the unit."""
        return self.run(f"systemctl show --value -p {name} {UNIT}")

    def journal(self) -> str:
        return self.run(f"journalctl --no-pager -o cat -u {UNIT}")

    def is_ready(self) -> bool:
        ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9440/readyz').status)"
        return self.run(f'python3 -c "{ask}"', check=False) == "200"


@contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    root = folder / "root"
    root.mkdir()
    with ExitStack() as stack:
        subprocess.run(["mount", "--bind", "/", root], check=True)
        stack.callback(subprocess.run, ["umount", root], check=True)
        devices = []
        if DEVICE.exists():
            devices = [f"--bind={DEVICE}"]  # the same device: whom the unit gives it to is undone
            was = DEVICE.stat()
            stack.callback(os.chmod, DEVICE, was.st_mode & 0o777)
            stack.callback(os.chown, DEVICE, was.st_uid, was.st_gid)
        console = stack.enter_context((folder / "console").open("wb"))
        process = subprocess.Popen(
            ["systemd-nspawn", "-D", root, *OPTIONS, *devices, f"--bind-ro={folder}/shared:{SHARED}"],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
        stack.callback(process.wait, PATIENCE_S)
        stack.callback(process.send_signal, signal.SIGTERM)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def booted_one() -> Machine | None:
            assert process.poll() is None, (folder / "console").read_text()
            # Looked for anew each time: the first child makes what becomes the machine's first process, and ends.
            found = map(Machine, map(int, children.read_text().split()))
            return next(filter(has_booted, found), None)

        machine = until("it has booted", booted_one, PATIENCE_S)
        assert machine is not None
        yield machine


def has_booted(machine: Machine) -> bool:
    return machine.run("systemctl is-active basic.target", check=False) == "active"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """With the appliance installed and started once, a key made and an account that may use it."""
    # What boots it `make gauntlet` has installed. Root and the system's own Python it cannot give.
    if lacking := _lacks():
        pytest.skip(f"this machine has not {lacking}")
    with tempfile.TemporaryDirectory(prefix="cloud-seal-rack-") as name:
        folder = Path(name)
        shared = folder / "shared"
        shared.mkdir()
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        lock = ROOT / "requirements.lock"
        subprocess.run([*pip, "download", "--require-hashes", "-r", lock, "-d", shared], check=True)
        build = ["wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", shared, ROOT]
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # meson and ninja are among them
        subprocess.run([*pip, *build], check=True, env={**os.environ, "PATH": programs})
        shutil.copy(lock, shared)
        shutil.copy(ROOT / "systemd" / UNIT, shared)
        with booted(folder) as made:
            install(made)
            start(made)
            made.run("cloud-seal key create seal --algorithm ecdsa-p256-sha256")
            made.run("cloud-seal account create app --uid 0 && cloud-seal account grant app seal")
            yield made


def install(machine: Machine) -> None:
    machine.run(f"""
        {SYSTEM_PYTHON} -m venv /opt/cloud-seal
        pip install --quiet --no-index --find-links {SHARED} --require-hashes -r {SHARED}/requirements.lock
        pip install --quiet --no-deps {SHARED}/cloud_seal-*.whl
        useradd --system --home-dir /var/lib/cloud-seal --shell /usr/sbin/nologin cloud-seal
        cloud-seal init --directory {ETC}
        printf 12345678 | install -D -m 600 /dev/stdin {ETC}/secrets/token.pin
        install -d -o cloud-seal -m 700 /var/lib/cloud-seal /var/lib/cloud-seal/tokens
        echo directories.tokendir = /var/lib/cloud-seal/tokens > {ETC}/softhsm2.conf
        sed -i s#/etc/softhsm/#{ETC}/# {ETC}/tokens/softhsm2.yaml
        sed -i {ETC}/appliance.yaml \
            -e 's#^registry: .*#registry: /var/lib/cloud-seal/registry.sqlite#' \
            -e 's#run/cloud-seal.sock#/run/cloud-seal/cloud-seal.sock#' \
            -e 's#run/officer.sock#/run/cloud-seal/officer.sock#' \
            -e 's#^tokens: .*#tokens: [{{profile: tokens/softhsm2.yaml, pin_file: {pin_file()}}}]#'
        export SOFTHSM2_CONF={ETC}/softhsm2.conf
        setpriv --reuid=cloud-seal --regid=cloud-seal --clear-groups \
            softhsm2-util --init-token --free --label cloud-seal --so-pin 87654321 --pin 12345678
        install -m 644 {SHARED}/{UNIT} /etc/systemd/system/
        systemctl daemon-reload
    """)


def pin_file() -> str:
    return f"/run/credentials/{UNIT}/token.pin"


def start(machine: Machine) -> None:
    machine.run(f"systemctl enable --now {UNIT}")
    until("it can sign", machine.is_ready)


def signs(machine: Machine) -> bool:
    figures = json.loads(machine.run("cloud-seal bench --key seal --account app --seconds 0.5 --json"))
    return all(one["per_second"] > 0 for one in figures["results"])


def test_it_starts_and_signs(machine: Machine) -> None:
    start(machine)
    assert signs(machine)
    log = machine.journal()
    assert "WARNING" not in log
    assert "ERROR" not in log


def test_the_daemon_has_no_more_than_it_needs(machine: Machine) -> None:
    start(machine)
    pid = machine.shows("MainPID")
    status = dict(
        line.split(":\t") for line in machine.run(f"grep -E 'Uid|Cap|NoNew' /proc/{pid}/status").splitlines()
    )
    uid = machine.run("id -u cloud-seal")
    assert status.pop("Uid").split() == [uid] * 4
    assert status.pop("NoNewPrivs") == "1"
    assert {int(value, 16) for value in status.values()} == {0}
    inside = f"nsenter -t {pid} -m ls /dev"
    assert not {"sda", "vda", "mem", "kmsg", "fuse"} & set(machine.run(inside).split())
    assert machine.run(f"stat -c %a:%U {ETC}/secrets/token.pin") == "600:root"
    assert machine.run("stat -c %a /var/lib/cloud-seal") == "700"


def test_processors_are_kept_awake_where_they_can_be(machine: Machine) -> None:
    start(machine)
    can_ask = DEVICE.exists() and DRIVER.is_file() and DRIVER.read_text().strip() != "none"
    assert ("not kept awake" in machine.journal()) is not can_ask


def test_one_that_dies_is_started_anew(machine: Machine) -> None:
    start(machine)
    before = machine.shows("MainPID")
    machine.run(f"kill -9 {before}")
    until("systemd has started another", lambda: machine.shows("MainPID") not in (before, "0"))
    until("it can sign", machine.is_ready)
    assert signs(machine)


def test_a_stop_is_clean(machine: Machine) -> None:
    start(machine)
    machine.run(f"systemctl reload {UNIT}")
    assert signs(machine)
    machine.run(f"systemctl stop {UNIT}")
    assert (machine.shows("Result"), machine.shows("ExecMainStatus")) == ("success", "0")
    assert machine.run("ls /run/cloud-seal", check=False) == ""


def test_a_configuration_that_cannot_be_used_is_not_tried_again(machine: Machine) -> None:
    machine.run(
        f"systemctl stop {UNIT}; cp {ETC}/appliance.yaml /root/; echo no: such >> {ETC}/appliance.yaml"
    )
    machine.run(f"systemctl start {UNIT}", check=False)
    until("it has given up", lambda: machine.shows("ActiveState") == "failed")
    assert (machine.shows("ExecMainStatus"), machine.shows("NRestarts")) == ("13", "0")
    assert "no: expected one of the keys" in machine.journal()
    machine.run(f"cp /root/appliance.yaml {ETC}/; systemctl reset-failed {UNIT}")
    start(machine)
