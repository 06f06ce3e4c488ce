"""The gateway's own answers, as the caller's SOAP stack understands them.

SOAP callers get HTTP 500 with a fault of their version: Metro, CXF and WCF throw away the body of a 503, CXF's
failover would then go round the gateway, WS-I Basic Profile 1.1 (R1126) demands 500 for SOAP 1.1, and the SOAP 1.2
HTTP binding maps Receiver to it. Anything else gets `application/problem+json` (RFC 9457).

Rules that always hold:
- The detail is in the gateway's own namespace and says `origin` gateway: no refusal can be taken for an answer of
  the BCSS.
- Why, in three languages, and when to come back, exactly (`opensAt`) and spread (`retryAt`, `Retry-After` in seconds).
- What is the caller's to mend is `Client` (1.1, still 500) or `Sender` (1.2, 400), and has no time to come back.
- Texts are written here; nothing of a message is in them.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from http import HTTPStatus

from policies.model import Digest, Reason, Refusal, SoapVersion

NAMESPACE = "urn:bcss-gateway:fault:1"
_LANGUAGES = ("fr", "nl", "en")
_CALLERS_OWN = frozenset({Reason.TOO_LARGE, Reason.MALFORMED, Reason.UNKNOWN_RUN, Reason.NOT_STORABLE})
_OTHER_STATUS = {
    Reason.TOO_LARGE: 413,
    Reason.MALFORMED: 400,
    Reason.UNKNOWN_RUN: 400,
    Reason.NOT_STORABLE: 422,
    Reason.UPSTREAM_UNREACHABLE: 502,
    Reason.UPSTREAM_TLS: 502,
    Reason.UPSTREAM_BROKEN: 502,
    Reason.UPSTREAM_TIMEOUT: 504,
}
_SOAP_11_TYPE = b"text/xml; charset=utf-8"
_SOAP_12_TYPE = b"application/soap+xml; charset=utf-8"

# fr, nl, en; {hour} is when bulk opens, or nothing.
_TEXTS: dict[Reason, tuple[str, str, str]] = {
    Reason.OFFICE_HOURS: (
        "Passerelle BCSS: les appels en masse ne passent pas pendant les heures de bureau{hour}.",
        "KSZ-gateway: massale oproepen worden niet doorgelaten tijdens de kantooruren{hour}.",
        "BCSS gateway: mass calls are not let through in office hours{hour}.",
    ),
    Reason.QUEUE_FULL: (
        "Passerelle BCSS: trop d'appels en masse attendent déjà; réessayez plus tard.",
        "KSZ-gateway: er wachten al te veel massale oproepen; probeer later opnieuw.",
        "BCSS gateway: too many mass calls are waiting already; try again later.",
    ),
    Reason.QUEUE_TIMEOUT: (
        "Passerelle BCSS: aucune place ne se libère à temps pour cet appel en masse; réessayez plus tard.",
        "KSZ-gateway: er komt niet tijdig plaats vrij voor deze massale oproep; probeer later opnieuw.",
        "BCSS gateway: no slot becomes free in time for this mass call; try again later.",
    ),
    Reason.COOLING_DOWN: (
        "Passerelle BCSS: après une interruption, les appels en masse attendent avant de reprendre.",
        "KSZ-gateway: na een onderbreking wachten massale oproepen alvorens te hervatten.",
        "BCSS gateway: after an interruption, mass calls wait before they resume.",
    ),
    Reason.HELD: (
        "Passerelle BCSS: les appels en masse vers cette source sont suspendus par un opérateur.",
        "KSZ-gateway: massale oproepen naar deze bron zijn door een operator opgeschort.",
        "BCSS gateway: an operator holds mass calls to this source.",
    ),
    Reason.RUN_PAUSED: (
        "Passerelle BCSS: le traitement nommé dans X-Bulk-Run est en pause ou terminé.",
        "KSZ-gateway: de verwerking die X-Bulk-Run noemt, is gepauzeerd of beëindigd.",
        "BCSS gateway: the run that X-Bulk-Run names is paused or has ended.",
    ),
    Reason.NOT_STORABLE: (
        "Passerelle BCSS: cet appel ne peut pas être conservé pour être exécuté plus tard.",
        "KSZ-gateway: deze oproep kan niet bewaard worden om later uit te voeren.",
        "BCSS gateway: this call cannot be stored to be carried out later.",
    ),
    Reason.STORE_UNAVAILABLE: (
        "Passerelle BCSS: la base de données de la passerelle est indisponible; les appels en masse attendent.",
        "KSZ-gateway: de gegevensbank van de gateway is onbeschikbaar; massale oproepen wachten.",
        "BCSS gateway: the gateway's store is unavailable; mass calls wait.",
    ),
    Reason.LAYOUT_CONFLICT: (
        "Passerelle BCSS: les passerelles ne sont pas d'accord sur les plafonds; les appels en masse attendent.",
        "KSZ-gateway: de gateways zijn het niet eens over de limieten; massale oproepen wachten.",
        "BCSS gateway: the gateways do not agree on the caps; mass calls wait.",
    ),
    Reason.UNKNOWN_RUN: (
        "Passerelle BCSS: le traitement nommé dans X-Bulk-Run n'existe pas.",
        "KSZ-gateway: de verwerking die X-Bulk-Run noemt, bestaat niet.",
        "BCSS gateway: the run that X-Bulk-Run names does not exist.",
    ),
    Reason.SHUTTING_DOWN: (
        "Passerelle BCSS: la passerelle s'arrête; réessayez dans un instant.",
        "KSZ-gateway: de gateway wordt gestopt; probeer over een ogenblik opnieuw.",
        "BCSS gateway: the gateway is stopping; try again in a moment.",
    ),
    Reason.TOO_LARGE: (
        "Passerelle BCSS: le message est trop grand pour un appel en masse.",
        "KSZ-gateway: het bericht is te groot voor een massale oproep.",
        "BCSS gateway: the message is too large for a mass call.",
    ),
    Reason.MALFORMED: (
        "Passerelle BCSS: le message ne peut pas être lu (compression ou HTTP).",
        "KSZ-gateway: het bericht kan niet gelezen worden (compressie of HTTP).",
        "BCSS gateway: the message cannot be read (compression or HTTP).",
    ),
    Reason.UPSTREAM_UNREACHABLE: (
        "Passerelle BCSS: le serveur en amont est injoignable; ceci n'est pas une réponse de la BCSS.",
        "KSZ-gateway: de achterliggende server is onbereikbaar; dit is geen antwoord van de KSZ.",
        "BCSS gateway: the upstream server cannot be reached; this is not an answer of the BCSS.",
    ),
    Reason.UPSTREAM_TLS: (
        "Passerelle BCSS: la connexion TLS avec le serveur en amont a échoué; ceci n'est pas une réponse de la BCSS.",
        "KSZ-gateway: de TLS-verbinding met de achterliggende server is mislukt; dit is geen antwoord van de KSZ.",
        "BCSS gateway: the TLS connection to the upstream server failed; this is not an answer of the BCSS.",
    ),
    Reason.UPSTREAM_TIMEOUT: (
        "Passerelle BCSS: le serveur en amont n'a pas répondu à temps; ceci n'est pas une réponse de la BCSS.",
        "KSZ-gateway: de achterliggende server antwoordde niet tijdig; dit is geen antwoord van de KSZ.",
        "BCSS gateway: the upstream server did not answer in time; this is not an answer of the BCSS.",
    ),
    Reason.UPSTREAM_BROKEN: (
        "Passerelle BCSS: la réponse du serveur en amont est inutilisable; ceci n'est pas une réponse de la BCSS.",
        "KSZ-gateway: het antwoord van de achterliggende server is onbruikbaar; dit is geen antwoord van de KSZ.",
        "BCSS gateway: the upstream server's answer cannot be used; this is not an answer of the BCSS.",
    ),
}
_HOURS = (" (réouverture: {at})", " (weer open: {at})", " (open again: {at})")


@dataclass(frozen=True, slots=True)
class FaultForm:
    """Statuses of refusals, where a site needs others."""

    soap11_status: int = 500
    soap12_status: int = 500
    other_status: int = 503


@dataclass(frozen=True, slots=True)
class FaultAnswer:
    """An answer ready to be written."""

    status: int
    reason_phrase: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def answer(refusal: Refusal, *, soap: SoapVersion | None, form: FaultForm) -> FaultAnswer:
    """Write the answer to a caller that speaks `soap`, or none."""
    texts = messages(refusal)
    if soap is SoapVersion.SOAP_11:
        return _answer(form.soap11_status, _SOAP_11_TYPE, _fault_11(refusal, texts), refusal)
    if soap is SoapVersion.SOAP_12:
        status = 400 if refusal.reason in _CALLERS_OWN else form.soap12_status
        return _answer(status, _SOAP_12_TYPE, _fault_12(refusal, texts), refusal)
    status = _OTHER_STATUS.get(refusal.reason, form.other_status)
    return _answer(status, b"application/problem+json", _problem(refusal, texts, status), refusal)


def messages(refusal: Refusal) -> tuple[str, str, str]:
    """Return what happened, in French, Dutch and English."""
    fr, nl, en = _TEXTS[refusal.reason]
    hours = ("", "", "")
    if refusal.opens_at is not None:
        at = f"{refusal.opens_at:%Y-%m-%d %H:%M}"
        hours = (_HOURS[0].format(at=at), _HOURS[1].format(at=at), _HOURS[2].format(at=at))
    return fr.format(hour=hours[0]), nl.format(hour=hours[1]), en.format(hour=hours[2])


def caller_soap_version(content_type: str, soap_action_present: bool, digest: Digest | None) -> SoapVersion | None:
    """Tell which SOAP a caller speaks: by its message where it was read, else by its Content-Type and SOAPAction."""
    if digest is not None and digest.soap is not None:
        return digest.soap
    kind = content_type.lower()
    if "application/soap+xml" in kind:
        return SoapVersion.SOAP_12
    if kind.lstrip().startswith(("text/xml", "multipart/related")) or soap_action_present:
        return SoapVersion.SOAP_11
    return None


def _answer(status: int, content_type: bytes, body: bytes, refusal: Refusal) -> FaultAnswer:
    headers = [(b"Content-Type", content_type), (b"Content-Length", b"%d" % len(body))]
    if refusal.retry_after_s is not None:
        headers.append((b"Retry-After", b"%d" % refusal.retry_after_s))
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    return FaultAnswer(status, phrase.encode("ascii"), tuple(headers), body)


def _fault_11(refusal: Refusal, texts: tuple[str, ...]) -> bytes:
    code = "Client" if refusal.reason in _CALLERS_OWN else "Server"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body><soapenv:Fault>'
        f"<faultcode>soapenv:{code}</faultcode><faultstring>{escape(' / '.join(texts), quote=False)}</faultstring>"
        f"<detail>{_detail(refusal, texts)}</detail>"
        "</soapenv:Fault></soapenv:Body></soapenv:Envelope>\n"
    ).encode()


def _fault_12(refusal: Refusal, texts: tuple[str, ...]) -> bytes:
    code = "Sender" if refusal.reason in _CALLERS_OWN else "Receiver"
    reasons = "".join(
        f'<env:Text xml:lang="{language}">{escape(text, quote=False)}</env:Text>'
        for language, text in zip(_LANGUAGES, texts, strict=True)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<env:Envelope xmlns:env="http://www.w3.org/2003/05/soap-envelope"><env:Body><env:Fault>'
        f"<env:Code><env:Value>env:{code}</env:Value></env:Code><env:Reason>{reasons}</env:Reason>"
        f"<env:Detail>{_detail(refusal, texts)}</env:Detail>"
        "</env:Fault></env:Body></env:Envelope>\n"
    ).encode()


def _detail(refusal: Refusal, texts: tuple[str, ...]) -> str:
    said = "".join(
        f'<message xml:lang="{language}">{escape(text, quote=False)}</message>'
        for language, text in zip(_LANGUAGES, texts, strict=True)
    )
    facts = "".join(f"<{name}>{escape(value, quote=False)}</{name}>" for name, value in _facts(refusal).items())
    return f'<refusal xmlns="{NAMESPACE}">{facts}{said}</refusal>'


def _facts(refusal: Refusal) -> dict[str, str]:
    facts = {
        "origin": "gateway",
        "reason": str(refusal.reason),
        "requestId": refusal.request_id,
        "source": refusal.source,
        "pool": refusal.pool,
        "opensAt": refusal.opens_at.isoformat() if refusal.opens_at is not None else "",
        "retryAt": _seconds(refusal.retry_at) if refusal.retry_at is not None else "",
        "hint": refusal.hint,
    }
    return {name: value for name, value in facts.items() if value}


def _seconds(instant: datetime) -> str:
    return instant.astimezone(instant.tzinfo or UTC).isoformat(timespec="seconds")


def _problem(refusal: Refusal, texts: tuple[str, ...], status: int) -> bytes:
    problem: dict[str, object] = {
        "type": f"{NAMESPACE}:{refusal.reason}",
        "title": str(refusal.reason).replace("_", " "),
        "status": status,
        "detail": texts[2],
        **_facts(refusal),
        "messages": dict(zip(_LANGUAGES, texts, strict=True)),
    }
    return json.dumps(problem, ensure_ascii=False).encode()
