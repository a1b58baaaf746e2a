"""OpenStack Swift as an S3 store on this machine: four servers in one session, one disk, one copy of each object."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REQUIREMENTS = (
    "eventlet==0.41.3",
    "greenlet==3.5.6",
    "lxml==6.1.3",
    "PasteDeploy==3.1.0",
    "PyECLib==1.8.0",
    "swift==2.38.3",
    "xattr==1.3.0",
)
"""With what else Swift needs as locked: cffi, cryptography and requests."""

KEY, SECRET = "account:user", "what-the-user-knows"
START_SECONDS = 300
"""Enough for a machine with much else to do."""

SERVERS = ("object", "container", "account", "proxy")

COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
workers = 0
swift_dir = {folder}
devices = {folder}
mount_check = false
fallocate_reserve = 0
disable_fallocate = true
conn_timeout = 30
node_timeout = 60
container_update_timeout = 60
"""
"""On a busy machine Swift's own limits (half a second, and one) would leave objects out of listings until a daemon that
does not run here puts them in."""

STORAGE = """
[pipeline:main]
pipeline = {name}-server

[app:{name}-server]
use = egg:swift#{name}
"""

PROXY = """
[pipeline:main]
pipeline = s3api tempauth bulk slo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:s3api]
use = egg:swift#s3api

[filter:tempauth]
use = egg:swift#tempauth
user_account_user = {secret} .admin

[filter:bulk]
use = egg:swift#bulk

[filter:slo]
use = egg:swift#slo
"""

HASHES = """
[swift-hash]
swift_hash_path_prefix = prefix
swift_hash_path_suffix = suffix
"""

RINGS = """
import sys
from swift.common.ring import RingBuilder

for name, port in zip(sys.argv[1::2], sys.argv[2::2]):
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    builder.add_dev(dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), device="disk", weight=1.0))
    builder.rebalance()
    builder.get_ring().save(f"{name}.ring.gz")
"""


def install(folder: Path) -> None:
    """Swift, from the registry, into a folder of its own."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    wheels = ["--no-deps", "--only-binary", ":all:", "--target", str(folder)]
    subprocess.run([*pip, *wheels, *REQUIREMENTS], check=True)


def keeps_attributes(folder: Path) -> bool:
    """Whether files there can have attributes of users, in which Swift keeps what it knows of an object."""
    try:
        os.setxattr(folder, "user.test", b"x")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def serving(packages: Path, folder: Path) -> Iterator[str]:
    """The address of the store, whose user has `KEY` and `SECRET`; all that it keeps lies in `folder`."""
    ports = dict(zip(SERVERS, _free_ports(len(SERVERS)), strict=True))
    environment = os.environ | {"PYTHONPATH": str(packages), "EVENTLET_NO_GREENDNS": "yes"}
    _configure(folder, ports, environment)
    programs = {name: str(packages / "bin" / f"swift-{name}-server") for name in ports}
    commands = [[sys.executable, program, f"{name}.conf", "-v"] for name, program in programs.items()]
    # Each makes a session of its own. The shell ends them when its input ends: also when this process is killed.
    starts = "".join(f'{shlex.join(command)} & pids="$pids $!"\n' for command in commands)
    with open(folder / "log", "wb") as log:
        shell = subprocess.Popen(
            ["sh", "-c", f"{starts}read -r _; kill -9 $pids; wait"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait(ports, folder / "log")
        yield f"http://127.0.0.1:{ports['proxy']}"
    finally:
        shell.communicate()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [found.getsockname()[1] for found in sockets]


def _configure(folder: Path, ports: dict[str, int], environment: dict[str, str]) -> None:
    (folder / "disk").mkdir()
    (folder / "swift.conf").write_text(HASHES)
    for name, port in ports.items():
        special = PROXY if name == "proxy" else STORAGE
        about = {"port": port, "user": getpass.getuser(), "folder": folder, "name": name, "secret": SECRET}
        (folder / f"{name}.conf").write_text((COMMON + special).format(**about))
    rings = [str(part) for name, port in ports.items() if name != "proxy" for part in (name, port)]
    subprocess.run([sys.executable, "-c", RINGS, *rings], cwd=folder, env=environment, check=True)


def _wait(ports: dict[str, int], log: Path) -> None:
    """Until every server answers."""
    end = time.monotonic() + START_SECONDS
    for name, port in ports.items():
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < end, f"Swift's {name} server does not start: {log.read_text()[-3000:]}"
            time.sleep(0.1)
