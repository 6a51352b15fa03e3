"""libpq's URLs, translated for asyncpg and SQLAlchemy."""

from __future__ import annotations

import inspect
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from authsvc.errors import SettingsError
from authsvc.postgresql_url import PostgreSQLTarget, parse_postgresql_url

SECRET = "hunter2secret"
BASE = "postgresql://app@db.example.com/auth"


class Certificates:
    """An authority with an empty revocation list, and a certificate that it did sign."""

    PASS_PHRASE = "only for tests"

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root.pem"
        self.crl = folder / "root.crl"
        self.certificate = folder / "client.pem"
        self.key = folder / "client.key"
        self.locked_key = folder / "client-locked.key"
        self.rubbish = folder / "rubbish.pem"
        self.rubbish.write_text("this is no certificate")
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        now = datetime.now(UTC)
        signed = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        revoked = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name)
            .last_update(now - timedelta(days=1))
            .next_update(now + timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        form = serialization.PrivateFormat.PKCS8
        self.root.write_bytes(signed.public_bytes(pem))
        self.certificate.write_bytes(signed.public_bytes(pem))
        self.crl.write_bytes(revoked.public_bytes(pem))
        self.key.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
        lock = serialization.BestAvailableEncryption(self.PASS_PHRASE.encode())
        self.locked_key.write_bytes(key.private_bytes(pem, form, lock))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificate files to name in URLs."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


def refusal(url: str) -> str:
    """The sentence a URL is refused with; it must hold nothing that looks secret."""
    with pytest.raises(SettingsError) as caught:
        parse_postgresql_url(url)
    error = caught.value
    assert error.message.startswith("AUTH_POSTGRESQL_URL: ")
    assert SECRET not in error.message
    # Whatever is left hanging on the error is shown by some tool, some day.
    assert error.__context__ is None
    return error.message


def context_of(target: PostgreSQLTarget) -> ssl.SSLContext:
    context = target.options["ssl"]
    assert isinstance(context, ssl.SSLContext)
    return context


def through_sqlalchemy(target: PostgreSQLTarget) -> dict[str, Any]:
    """What ``asyncpg.connect`` is called with by an engine."""
    _, arguments = target.url.get_dialect()().create_connect_args(target.url)
    return dict(arguments) | target.connect_args


@pytest.mark.parametrize(
    ("url", "user", "password", "hosts", "database"),
    [
        ("postgresql://u:p@h:1/d", "u", "p", [("h", 1)], "d"),
        ("postgres://u:p@h/d", "u", "p", [("h", 5432)], "d"),
        ("PostgreSQL://u@h/d", "u", None, [("h", 5432)], "d"),
        ("  postgresql://u@h/d\n", "u", None, [("h", 5432)], "d"),
        ("postgresql://h/d", None, None, [("h", 5432)], "d"),
        ("postgresql://h", None, None, [("h", 5432)], None),
        ("postgresql://", None, None, [], None),
        ("postgresql:///d", None, None, [], "d"),
        ("postgresql://u:@h/d", "u", None, [("h", 5432)], "d"),
        ("postgresql://u%40x:p%40%3A%2F%3F%23%25@h/d%20e", "u@x", "p@:/?#%", [("h", 5432)], "d e"),
        ("postgresql://u:p:q@h/d", "u", "p:q", [("h", 5432)], "d"),
        ("postgresql://u:veryStr0ng&SecureP%40ssw0rd!@h/d", "u", "veryStr0ng&SecureP@ssw0rd!",
         [("h", 5432)], "d"),
        ("postgresql://u:gr%C3%BC%C3%9Fe+@h/d", "u", "grüße+", [("h", 5432)], "d"),
        ("postgresql://u@10.0.0.1:6000/d", "u", None, [("10.0.0.1", 6000)], "d"),
        ("postgresql://u@[::1]:6000/d", "u", None, [("::1", 6000)], "d"),
        ("postgresql://u@[2001:db8::1]/d", "u", None, [("2001:db8::1", 5432)], "d"),
        ("postgresql://u@a:1,b,[::1]:3/d", "u", None, [("a", 1), ("b", 5432), ("::1", 3)], "d"),
        ("postgresql://u@%2Frun%2Fpostgresql:6000/d", "u", None, [("/run/postgresql", 6000)], "d"),
        ("postgresql://u@/d?host=/run/postgresql", "u", None, [("/run/postgresql", 5432)], "d"),
        ("postgresql:///d?host=a,b&port=1,2", None, None, [("a", 1), ("b", 2)], "d"),
        ("postgresql:///d?host=a,b&port=7", None, None, [("a", 7), ("b", 7)], "d"),
    ],
)  # fmt: skip
def test_address_and_account(
    url: str,
    user: str | None,
    password: str | None,
    hosts: list[tuple[str, int]],
    database: str | None,
) -> None:
    target = parse_postgresql_url(url)
    assert (target.user, target.password, target.database) == (user, password, database)
    assert list(target.hosts) == hosts


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40ss@h:1/d?sslmode=require&application_name=a",
        "postgresql://u:p@a:1,b:2/d?target_session_attrs=primary",
        "postgresql://u:p@/d?host=/run/postgresql&port=6000",
        "postgresql://u@[::1]/d",
        "postgresql:///d",
        "postgresql://",
    ],
)
def test_both_ways_of_connecting_are_the_same(url: str) -> None:
    target = parse_postgresql_url(url)
    arguments = target.driver_kwargs()
    assert through_sqlalchemy(target) == arguments
    inspect.signature(asyncpg.connect).bind(**arguments)
    assert target.url.drivername == "postgresql+asyncpg"
    assert not target.url.query
    assert target.url.password is None


def test_arguments_are_copies() -> None:
    target = parse_postgresql_url(f"{BASE}?application_name=a")
    target.driver_kwargs()["server_settings"]["application_name"] = "changed"
    target.connect_args["timeout"] = 1
    assert target.driver_kwargs()["server_settings"] == {"application_name": "a"}
    assert "timeout" not in target.connect_args


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("connect_timeout=7", {"timeout": 7}),
        ("application_name=auth%20one", {"server_settings": {"application_name": "auth one"}}),
        ("options=-c%20work_mem=4MB", {"server_settings": {"work_mem": "4MB"}}),
        (
            "options=-c%20search_path=a,b%20%20-c%20my.name=x%5C%20y%3Dz&application_name=a",
            {
                "server_settings": {
                    "search_path": "a,b",
                    "my.name": "x y=z",
                    "application_name": "a",
                }
            },
        ),
        ("target_session_attrs=read-write", {"target_session_attrs": "read-write"}),
        ("channel_binding=prefer", {}),
        ("channel_binding=disable", {}),
        ("sslnegotiation=postgres", {}),
    ],
)
def test_options(query: str, expected: dict[str, Any]) -> None:
    target = parse_postgresql_url(f"{BASE}?{query}")
    assert dict(target.options) == {"ssl": "prefer"} | expected
    assert target.sslmode == "prefer"


@pytest.mark.parametrize(
    ("mode", "argument"), [("disable", False), ("allow", "prefer"), ("prefer", "prefer")]
)
def test_weak_modes(mode: str, argument: object) -> None:
    target = parse_postgresql_url(f"{BASE}?sslmode={mode}")
    assert target.sslmode == mode
    assert target.options["ssl"] == argument


@pytest.mark.parametrize(
    ("query", "verify", "name_checked"),
    [
        ("sslmode=require", ssl.CERT_NONE, False),
        ("sslmode=require&sslrootcert={root}", ssl.CERT_REQUIRED, False),
        ("sslmode=verify-ca&sslrootcert={root}", ssl.CERT_REQUIRED, False),
        ("sslmode=verify-full&sslrootcert={root}", ssl.CERT_REQUIRED, True),
        ("sslmode=verify-full", ssl.CERT_REQUIRED, True),
        ("sslmode=verify-full&sslrootcert=system", ssl.CERT_REQUIRED, True),
        ("sslrootcert=system", ssl.CERT_REQUIRED, True),
    ],
)
def test_strong_modes(
    files: Certificates, query: str, verify: ssl.VerifyMode, name_checked: bool
) -> None:
    context = context_of(parse_postgresql_url(f"{BASE}?{query.format(root=files.root)}"))
    assert context.verify_mode is verify
    assert context.check_hostname is name_checked
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    if "{root}" in query:
        assert [found["serialNumber"] for found in context.get_ca_certs()] == ["01"]


def test_mode_of_an_authority_alone_is_verify_full() -> None:
    assert parse_postgresql_url(f"{BASE}?sslrootcert=system").sslmode == "verify-full"


def test_revocation_list(files: Certificates) -> None:
    query = f"sslmode=verify-full&sslrootcert={files.root}&sslcrl={files.crl}"
    context = context_of(parse_postgresql_url(f"{BASE}?{query}"))
    assert context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
    assert context.cert_store_stats()["crl"] == 1


def test_direct_negotiation() -> None:
    target = parse_postgresql_url(f"{BASE}?sslmode=require&sslnegotiation=direct")
    assert target.options["direct_tls"] is True


def test_client_certificate(files: Certificates) -> None:
    for key in (f"sslkey={files.key}", f"sslkey={files.locked_key}&sslpassword=only%20for%20tests"):
        query = f"sslmode=require&sslcert={files.certificate}&{key}"
        context_of(parse_postgresql_url(f"{BASE}?{query}"))


def test_no_tls_on_a_unix_socket() -> None:
    query = "host=/run/postgresql&sslmode=verify-full&sslnegotiation=direct"
    target = parse_postgresql_url(f"postgresql:///d?{query}")
    assert dict(target.options) == {"ssl": False}


@pytest.mark.parametrize(
    "rest",
    [
        f"u:{SECRET}@more@h/d",
        f"u:@{SECRET}@h/d",
        f"u:{SECRET}/more@h/d",
        f"u:1/{SECRET}@h/d",
        f"u:{SECRET}?more@h/d",
        f"u:1?{SECRET}=more@h/d",
        f"u:1?sslmode={SECRET}@h/d",
        f"u:{SECRET}#more@h/d",
        f"u:#{SECRET}?a=b@h/d",
        f"u:{SECRET}%@h/d",
        f"u:100%{SECRET}@h/d",
        f"u:{SECRET} more@h/d",
        f"u:{SECRET}\x00@h/d",
        f"u:p@{SECRET}/a/b/d",
        f"u:{SECRET}@h:70000/d",
        f"u:{SECRET}@h:0/d",
        f"u:{SECRET}@h:1a/d",
        f"u:{SECRET}@h:\u0661/d",
        f"u:{SECRET}@:5432/d",
        f"u:{SECRET}@a,,b/d",
        f"u:{SECRET}@[::1/d",
        f"u:{SECRET}@[::1]5432/d",
        f"u:{SECRET}@::1/d",
        f"u:{SECRET}@h!/d",
        f"u:{SECRET}@h/d?{SECRET}",
        f"u:{SECRET}@h/d?a-{SECRET}=1",
    ],
)
def test_broken_urls_explain_percent_encoding(rest: str) -> None:
    message = refusal(f"postgresql://{rest}")
    assert "percent-encoded" in message
    assert "AUTH_POSTGRESQL_PASSWORD" in message


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (f"mysql://u:{SECRET}@h/d", "must begin with postgresql://"),
        (f"postgresql+asyncpg://u:{SECRET}@h/d", "must begin with postgresql://"),
        (SECRET, "must begin with postgresql://"),
        ("", "must begin with postgresql://"),
        (f"postgresql://u:%FF{SECRET}@h/d", "not text in UTF-8"),
        (f"postgresql://u:%00{SECRET}@h/d", "not text in UTF-8"),
        (f"{BASE}?sslmod={SECRET}", "the parameter 'sslmod' is not supported"),
        (f"{BASE}?SSLMODE={SECRET}", "the parameter 'SSLMODE' is not supported"),
        (f"{BASE}?password={SECRET}", "the parameter 'password' is not supported"),
        (f"{BASE}?passfile={SECRET}", "the parameter 'passfile' is not supported"),
        (f"{BASE}?sslmode={SECRET}", "'sslmode' must be one of disable, allow, prefer, require"),
        (f"{BASE}?sslmode=require&sslmode=disable", "'sslmode' is given twice"),
        (f"{BASE}?sslmode=", "'sslmode' is empty"),
        (f"{BASE}?connect_timeout=0", "'connect_timeout' must be a number of seconds"),
        (f"{BASE}?connect_timeout={SECRET}", "'connect_timeout' must be a number of seconds"),
        (f"{BASE}?connect_timeout=%D9%A3", "'connect_timeout' must be a number of seconds"),
        (f"{BASE}?target_session_attrs={SECRET}", "'target_session_attrs' must be one of any"),
        (f"{BASE}?channel_binding=require", "channel_binding=require cannot be kept"),
        (f"{BASE}?channel_binding={SECRET}", "'channel_binding' must be one of"),
        (f"{BASE}?sslnegotiation=direct", "sslnegotiation=direct needs sslmode=require"),
        (f"{BASE}?sslnegotiation={SECRET}", "'sslnegotiation' must be one of"),
        (f"{BASE}?options={SECRET}", "'options' may hold only '-c name=value'"),
        (f"{BASE}?options=-c", "'options' may hold only '-c name=value'"),
        (f"{BASE}?options=-c%20{SECRET}", "'options' may hold only '-c name=value'"),
        (f"{BASE}?options=-d%20a=1", "'options' may hold only '-c name=value'"),
        (f"{BASE}?options=-c%20a=1%20-c", "'options' may hold only '-c name=value'"),
        (f"{BASE}?host=h", "stand before the '?' or behind it"),
        (f"{BASE}?port=1", "stand before the '?' or behind it"),
        ("postgresql:///d?port=1", "'port' needs 'host'"),
        ("postgresql:///d?host=a,b,c&port=1,2", "'port' needs 'host'"),
        (f"{BASE}?sslrootcert=/x", "'sslrootcert' has no effect below sslmode=require"),
        (f"{BASE}?sslmode=prefer&sslcert=/x", "'sslcert' has no effect below sslmode=require"),
        (f"{BASE}?sslpassword={SECRET}", "'sslpassword' has no effect below sslmode=require"),
        (f"{BASE}?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        (f"{BASE}?sslmode=verify-ca&sslrootcert=system", "needs sslmode=verify-full"),
        (f"{BASE}?sslmode=verify-ca", "sslmode=verify-ca needs sslrootcert"),
        (f"{BASE}?sslmode=require&sslcrl=/x", "'sslcrl' needs sslmode=verify-full"),
        (f"{BASE}?sslmode=require&sslkey=/x", "'sslkey' needs 'sslcert'"),
        (f"{BASE}?sslmode=require&sslpassword={SECRET}", "'sslpassword' needs 'sslcert'"),
        (
            f"{BASE}?sslmode=verify-full&sslrootcert=/{SECRET}",
            "the file of 'sslrootcert' cannot be used (No such file or directory)",
        ),
        (
            f"{BASE}?sslmode=require&sslcert=/{SECRET}",
            "the files of 'sslcert' and 'sslkey' cannot be used (No such file or directory)",
        ),
    ],
)
def test_refusals(url: str, sentence: str) -> None:
    assert sentence in refusal(url)


def test_files_that_are_not_certificates(files: Certificates) -> None:
    full = f"{BASE}?sslmode=verify-full&sslrootcert"
    assert "PEM" in refusal(f"{full}={files.rubbish}")
    assert "'sslcrl'" in refusal(f"{full}={files.root}&sslcrl={files.rubbish}")
    client = f"{BASE}?sslmode=require&sslcert"
    assert "PEM" in refusal(f"{client}={files.rubbish}&sslkey={files.key}")


@pytest.mark.parametrize("pass_phrase", ["", f"&sslpassword={SECRET}"])
def test_a_locked_key_without_its_pass_phrase_asks_nobody(
    files: Certificates, pass_phrase: str
) -> None:
    query = f"sslmode=require&sslcert={files.certificate}&sslkey={files.locked_key}"
    assert "an encrypted key needs 'sslpassword'" in refusal(f"{BASE}?{query}{pass_phrase}")


def test_the_setting_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^AUTH_DATABASE_URL: "):
        parse_postgresql_url("postgresql://h:x/d", setting="AUTH_DATABASE_URL")


def test_no_password_in_any_text() -> None:
    target = parse_postgresql_url(f"postgresql://u:{SECRET}@a,b/d?sslmode=require")
    for text in (repr(target), str(target), f"{target.url}", repr(target.url)):
        assert SECRET not in text
    assert "('a', 5432)" in repr(target)
    assert target.driver_kwargs()["password"] == SECRET
