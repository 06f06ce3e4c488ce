"""Certificates, keys and CAs are tried before anything starts."""

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tests.gateway.config.sites import LEAST, Site


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(site: Site, authority: trustme.CA) -> Site:
    """A site with a certificate, its key plain and encrypted, another key, and the CA."""
    one, other = authority.issue_cert("one.example"), authority.issue_cert("other.example")
    write = site.directory.joinpath
    one.cert_chain_pems[0].write_to_path(write("one.pem"))
    one.private_key_pem.write_to_path(write("one.key"))
    one.private_key_and_cert_chain_pem.write_to_path(write("both.pem"))
    other.private_key_pem.write_to_path(write("other.key"))
    authority.cert_pem.write_to_path(write("ca.pem"))
    key = serialization.load_pem_private_key(one.private_key_pem.bytes(), None)
    locked = serialization.BestAvailableEncryption(b"hidden")
    form = serialization.PrivateFormat.PKCS8
    write("locked.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
    write("text").write_text("not PEM")
    write("damaged.key").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    site.environ.update(PW="hidden", WRONG="wrong")
    return site


def upstream(keys: str) -> str:
    return f"upstreams: {{u: {{url: 'https://h', {keys}}}}}\nroutes: [{{prefix: /, upstream: u}}]\n"


def listener(keys: str) -> str:
    return f"listeners: [{{tls: {{{keys}}}}}]\n{LEAST}"


@pytest.mark.parametrize(
    "keys",
    [
        "certificate: one.pem, key: one.key",
        "certificate: both.pem",
        "certificate: one.pem, key: locked.key, key_password: {env: PW}",
        "certificate: both.pem, ca: ca.pem, server_name: one.example",
    ],
)
def test_what_fits_together_is_taken(keys: str, tls: Site) -> None:
    assert tls.load(upstream(keys)).settings.upstreams["u"].certificate is not None


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ("certificate: one.pem, key: other.key", "key: does not belong to the certificate"),
        ("certificate: one.pem, key: locked.key", "key: needs a password. Add `key_password"),
        ("certificate: one.pem, key: locked.key, key_password: {env: WRONG}", "key: does not open with `key_password`"),
        ("certificate: one.pem", "certificate: holds no private key in PEM form"),
        ("certificate: text, key: one.key", "certificate: holds no certificate in PEM form"),
        ("certificate: one.pem, key: damaged.key", "key: is damaged, or the certificate is"),
        ("ca: text", "ca: holds no certificates of CAs"),
    ],
)
def test_what_does_not_fit_is_told_without_the_secret(keys: str, fault: str, tls: Site) -> None:
    told = tls.fault(upstream(keys))
    assert f"upstreams.u.{fault}" in told
    assert "hidden" not in told


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ("certificate: both.pem, client_certificate: required", "client_certificate: needs `client_ca`"),
        ("certificate: both.pem, client_ca: ca.pem", "client_ca: has no use: `client_certificate` is none"),
        ("certificate: both.pem, client_ca: text, client_certificate: optional", "client_ca: holds no certificates"),
        ("certificate: both.pem, client_ca: ca.pem, client_certificate: maybe", "client_certificate: "),
        ("certificate: one.pem, key: gone", "key: there is no file"),
    ],
)
def test_each_fault_of_a_listeners_tls_is_told_once(keys: str, fault: str, tls: Site) -> None:
    assert f"listeners[0].tls.{fault}" in tls.fault(listener(keys))


def test_a_listener_with_client_certificates_is_taken_and_gives_the_password(tls: Site) -> None:
    keys = "certificate: one.pem, key: locked.key, key_password: {env: PW}, "
    keys += "client_ca: ca.pem, client_certificate: required"
    text = listener(keys) + "clients: [{name: a, tls_subjects: [CN=a], class: realtime}]\n"
    configuration = tls.load(text.replace("{tls:", "{address: 0.0.0.0, tls:"))
    [one] = configuration.settings.listeners
    assert one.tls is not None
    assert one.tls.password == "hidden"
    assert one.tls.certificate == Path(tls.directory / "one.pem")
    assert configuration.warnings == ()


def test_a_listener_that_asks_for_no_certificate_gives_no_password_and_is_warned_of(tls: Site) -> None:
    configuration = tls.load(listener("certificate: both.pem").replace("{tls:", "{address: 0.0.0.0, tls:"))
    [one] = configuration.settings.listeners
    assert one.tls is not None
    assert one.tls.password is None
    assert "no client certificate is required" in configuration.warnings[0]
