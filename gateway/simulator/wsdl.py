"""The stand-in's own WSDLs, small ones: enough for a SOAP toolkit to call each style.

Written for the stand-in: element names are those that real clients send, types are only as strict as a toolkit
needs. The address is the stand-in's own, as a real server would give its own.
"""

_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<wsdl:definitions xmlns:wsdl="http://schemas.xmlsoap.org/wsdl/" xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/"
    xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:t="{namespace}" targetNamespace="{namespace}">
  <wsdl:types><xs:schema targetNamespace="{namespace}" elementFormDefault="{form}">{types}</xs:schema></wsdl:types>
  <wsdl:message name="request"><wsdl:part name="body" element="t:{request}"/></wsdl:message>
  <wsdl:message name="response"><wsdl:part name="body" element="t:{response}"/></wsdl:message>
  <wsdl:portType name="port"><wsdl:operation name="{operation}">
    <wsdl:input message="t:request"/><wsdl:output message="t:response"/></wsdl:operation></wsdl:portType>
  <wsdl:binding name="binding" type="t:port">
    <soap:binding style="document" transport="http://schemas.xmlsoap.org/soap/http"/>
    <wsdl:operation name="{operation}"><soap:operation soapAction="{action}"/>
      <wsdl:input><soap:body use="literal"/></wsdl:input><wsdl:output><soap:body use="literal"/></wsdl:output>
    </wsdl:operation></wsdl:binding>
  <wsdl:service name="{service}"><wsdl:port name="port" binding="t:binding">
    <soap:address location="{address}"/></wsdl:port></wsdl:service>
</wsdl:definitions>
"""
_ECHO = """<xs:element name="sendTestMessageRequest"><xs:complexType><xs:sequence>
  <xs:element name="echo" type="xs:string"/></xs:sequence></xs:complexType></xs:element>
  <xs:element name="sendTestMessageResponse"><xs:complexType><xs:sequence>
  <xs:element name="echo" type="xs:string"/></xs:sequence></xs:complexType></xs:element>"""
_CONSULT = """<xs:element name="{request}"><xs:complexType><xs:sequence>
  <xs:element name="legalContext" type="xs:string"/><xs:element name="ssin" type="xs:string"/>
  </xs:sequence></xs:complexType></xs:element>
  <xs:element name="{response}"><xs:complexType><xs:sequence><xs:any processContents="lax" maxOccurs="unbounded"/>
  </xs:sequence></xs:complexType></xs:element>"""
_STRING = '<xs:element name="xmlString" type="xs:string"/>'

_INTF = "http://kszbcss.fgov.be/intf/"
_SERVICES = {
    "TestConnectionServiceService": ("v1", "sendTestMessage", "sendTestMessage"),
    "RetrieveTIGroupsService": ("v2", "retrieveTI", "retrieveTIGroups"),
    "Dolsis2011Service": ("v1", "findEmployersByWorker", "findEmployersByWorker"),
    "UnemploymentDataService": ("v3", "consultPayments", "consultPayments"),
}


def wsdl_for(path: str, address: str) -> str | None:
    """Return the WSDL of the service that a path leads to; None: there is none."""
    if path.rstrip("/").endswith("KSZBCSSWebServiceConnectorPort"):
        namespace = "http://ksz-bcss.fgov.be/connectors/WebServiceConnector"
        return _HEAD.format(
            namespace=namespace,
            form="qualified",
            types=_STRING,
            request="xmlString",
            response="xmlString",
            operation="sendXML",
            action=f"{namespace}/sendXML",
            service="WebServiceConnector",
            address=address,
        )
    for service, (version, operation, element) in _SERVICES.items():
        if f"/{service}/" in f"{path}/":
            request, response = f"{element}Request", f"{element}Response"
            types = _ECHO if operation == "sendTestMessage" else _CONSULT.format(request=request, response=response)
            return _HEAD.format(
                namespace=f"{_INTF}{service}/{version}",
                form="unqualified",
                types=types,
                request=request,
                response=response,
                operation=operation,
                action=f"http://kszbcss.fgov.be/{service}/{operation}",
                service=service,
                address=address,
            )
    return None
