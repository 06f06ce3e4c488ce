"""Messages that must not be stored (stale or a replay at night, with a password) are told from those that may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.soap.stale import not_storable

WSU = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
WSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"


def message(security: str, body: str = "<x/>") -> bytes:
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Header>'
        f'<o:Security xmlns:o="{WSSE}" xmlns:u="{WSU}">{security}</o:Security></s:Header><s:Body>{body}</s:Body>'
        "</s:Envelope>"
    ).encode()


EXPIRES = "<u:Timestamp><u:Created>a</u:Created><u:Expires>b</u:Expires></u:Timestamp>"


@pytest.mark.parametrize(
    ("security", "why"),
    [
        (EXPIRES, "expires"),
        ("<o:UsernameToken><o:Username>a</o:Username><o:Nonce>b</o:Nonce></o:UsernameToken>", "nonce"),
        ("<o:UsernameToken><u:Created>b</u:Created></o:UsernameToken>", "made"),
        ("<u:Timestamp><u:Created>a</u:Created></u:Timestamp>", ""),
        ("<o:UsernameToken><o:Username>a</o:Username></o:UsernameToken>", ""),
        ("<o:BinarySecurityToken>abc</o:BinarySecurityToken>", ""),
        ("<o:UsernameToken><o:Username>a</o:Username><o:Password>b</o:Password></o:UsernameToken>", "password"),
        ('<a:Assertion xmlns:a="urn:oasis:names:tc:SAML:2.0:assertion"/>', "SAML"),
        ('<a:Assertion xmlns:a="urn:oasis:names:tc:SAML:1.0:assertion"/>', "SAML"),
    ],
)
def test_what_is_good_for_minutes_is_not_storable(security: str, why: str) -> None:
    said = not_storable(message(security))
    assert (why in said) if why else said == ""


def test_only_the_header_counts() -> None:
    assert not not_storable(message("", f'<u:x xmlns:u="{WSU}">{EXPIRES}</u:x>'))


def test_a_message_in_utf_16_is_read_too() -> None:
    assert not_storable(message(EXPIRES).decode().encode("utf-16"))


def test_a_message_without_security_or_that_is_unsound_says_nothing() -> None:
    assert not not_storable(b"<a/>")
    assert not not_storable(message(EXPIRES).replace(b"<s:Header>", b"<s:Header"))
    assert not not_storable(b"<!DOCTYPE a>" + message(EXPIRES))


@given(st.binary(max_size=300))
def test_nothing_is_ever_raised(octets: bytes) -> None:
    assert isinstance(not_storable(b"oasis-200401-wss" + octets), str)
