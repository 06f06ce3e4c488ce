"""What the stand-in makes of a message, and what it answers. Read with lxml, and with a table of its own.

It shares nothing with `gateway.soap` and `policies.catalogue` on purpose: it is the ground truth that tests hold the
gateway to, so it must not repeat the gateway's mistakes. Persons in its answers are fictive.

Rules that always hold: no DTD, no entity, no network; a message that it cannot read is answered with a SOAP fault,
as the BCSS would.
"""

from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from lxml import etree

SOAP_11 = "http://schemas.xmlsoap.org/soap/envelope/"
SOAP_12 = "http://www.w3.org/2003/05/soap-envelope"
CONNECTOR = "http://ksz-bcss.fgov.be/connectors/WebServiceConnector"
SSDN = "http://www.ksz-bcss.fgov.be/XSD/SSDN/Service"
_COMMON = "http://www.ksz-bcss.fgov.be/XSD/SSDN/Common"
_INTF = "http://kszbcss.fgov.be/intf/"

# What is asked -> the sources behind it. Written from the services' own descriptions, not from the gateway's catalogue.
SOURCES = {
    "RetrieveTIGroupsService": ("national-register",),
    "TestConnectionServiceService": ("bcss",),
    "Dolsis2011Service": ("onss",),
    "UnemploymentDataService": ("onem",),
    "SelfEmployedService": ("inasti",),
    "HealthCareInsuranceService": ("cin",),
    "TaxAssessmentDataService": ("spf-finances",),
    "SocialRateInvestigationService": ("bcss", "spf-economie"),
    "PcsaAlertReaction": ("spp-is",),
    "OCMWCPASIdentifyPerson": ("bcss", "national-register"),
    "OCMWCPASHealthInsurance": ("cin",),
    "OCMWCPASManageAccess": ("bcss",),
    "XMLite/L950": ("onss",),
    "XMLite/L301": ("inasti",),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a message asks, as the stand-in reads it."""

    soap: str = SOAP_11
    namespace: str = ""
    operation: str = ""
    services: tuple[str, ...] = ()
    echo: str = ""
    person: str = ""
    trouble: str = ""  #: why it cannot be answered
    sources: tuple[str, ...] = field(default=("unknown",))


def read(body: bytes) -> Asked:
    """Read a message."""
    try:
        root = _parsed(body)
    except etree.XMLSyntaxError:
        return Asked(trouble="not well-formed")
    soap = etree.QName(root).namespace or ""
    if soap not in (SOAP_11, SOAP_12):
        return Asked(trouble="not a SOAP envelope")
    children = root.findall(f"{{{soap}}}Body/*")
    if len(children) != 1:
        return Asked(soap, trouble="one element in the Body was expected")
    name = etree.QName(children[0])
    if name.namespace == CONNECTOR:
        return _classic(soap, children[0].text or "")
    service = (name.namespace or "").removeprefix(_INTF).partition("/")[0]
    return Asked(
        soap,
        name.namespace or "",
        name.localname,
        (service,),
        echo=children[0].findtext("echo") or "",
        person=children[0].findtext(".//ssin") or "",
        sources=SOURCES.get(service, ("unknown",)),
    )


def _parsed(data: bytes) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    root = etree.fromstring(data, parser)
    if root.getroottree().docinfo.doctype:
        raise etree.XMLSyntaxError("a document type declaration", 0, 0, 0)
    return root


def _classic(soap: str, text: str) -> Asked:
    try:
        document = _parsed(_without_declaration(text.strip("\ufeff \t\r\n")).encode())
    except etree.XMLSyntaxError:
        return Asked(soap, CONNECTOR, "xmlString", trouble="the string holds no document")
    services = []
    for request in document.findall(f"{{{SSDN}}}ServiceRequest"):
        service = request.findtext(f"{{{SSDN}}}ServiceId") or ""
        if (
            service == "XMLite"
            and (inner := request.find(".//{http://www.ksz-bcss.fgov.be/XSD/Message}XML/*")) is not None
        ):
            service += f"/{etree.QName(inner).localname}"
        services.append(service)
    sources = {source for service in services for source in SOURCES.get(service, ("unknown",))}
    return Asked(soap, CONNECTOR, "xmlString", tuple(services), sources=tuple(sorted(sources)) or ("unknown",))


def _without_declaration(text: str) -> str:
    return text.partition("?>")[2] if text.startswith("<?xml") else text


def reply(asked: Asked, status: str = "") -> bytes:
    """Answer a message; `status` is a business status in an HTTP 200: a KSZ code, or SSDN's ReturnCode; or
    `VALUE/CODE`, either of which may be empty, for `status/value` and `status/code`, or ReturnCode and ReasonCode."""
    if asked.namespace == CONNECTOR:
        return _envelope(asked.soap, f'<xmlString xmlns="{CONNECTOR}">{escape(_ssdn_reply(asked, status))}</xmlString>')
    if asked.operation == "sendTestMessageRequest":
        inside = f"<echo>{escape(asked.echo)}</echo>"
    else:
        value, slash, code = status.partition("/")
        if not slash:
            value, code = ("NO_RESULT", status) if status else ("DATA_FOUND", "MSG00000")
        inside = (
            "<informationCBSS><ticketCBSS>00000000-0000-4000-8000-000000000000</ticketCBSS></informationCBSS>"
            f"<ssin>{escape(asked.person)}</ssin>"
            f"<status><value>{value}</value><code>{escape(code)}</code></status>"
            "<person><name>EXAMPLE</name><firstName>Fictive</firstName></person>"
        )
    name = asked.operation.removesuffix("Request") + "Response"
    return _envelope(asked.soap, f'<r:{name} xmlns:r="{escape(asked.namespace)}">{inside}</r:{name}>')


def fault(asked: Asked, why: str, *, client: bool = False) -> bytes:
    """Answer with a fault in the BCSS's shape."""
    detail = (
        "<detail><error><severity>FATAL</severity><reasonCode>MSG00003</reasonCode>"
        f"<diagnostic>{escape(why)}</diagnostic></error></detail>"
    )
    if asked.soap == SOAP_12:
        code = "Sender" if client else "Receiver"
        inside = (
            f'<e:Fault xmlns:e="{SOAP_12}"><e:Code><e:Value>e:{code}</e:Value></e:Code>'
            f'<e:Reason><e:Text xml:lang="en">{escape(why)}</e:Text></e:Reason></e:Fault>'
        )
    else:
        code = "Client" if client else "Server"
        inside = (
            f'<e:Fault xmlns:e="{SOAP_11}"><faultcode>e:{code}</faultcode>'
            f"<faultstring>{escape(why)}</faultstring>{detail}</e:Fault>"
        )
    return _envelope(asked.soap, inside)


def content_type(asked: Asked) -> str:
    """Return the Content-Type of an answer."""
    return "application/soap+xml; charset=utf-8" if asked.soap == SOAP_12 else "text/xml; charset=utf-8"


def _envelope(soap: str, inside: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="{soap}"><s:Body>{inside}</s:Body></s:Envelope>'
    ).encode()


def _ssdn_reply(asked: Asked, status: str) -> str:
    code, _, reason = status.partition("/")
    detail = f"<c:Detail><c:ReasonCode>{escape(reason)}</c:ReasonCode></c:Detail>" if reason else ""
    summary = (
        f'<c:ResultSummary ok="{"NO" if status else "YES"}" xmlns:c="{_COMMON}">'
        f"<c:ReturnCode>{escape(code or '0')}</c:ReturnCode>{detail}</c:ResultSummary>"
    )
    replies = "".join(
        f"<ServiceReply>{summary}<ServiceId>{escape(service.partition('/')[0])}</ServiceId></ServiceReply>"
        for service in asked.services
    )
    declaration = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    return f'{declaration}<SSDNReply xmlns="{SSDN}"><ReplyContext>{summary}</ReplyContext>{replies}</SSDNReply>'
