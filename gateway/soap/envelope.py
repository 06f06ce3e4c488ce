"""Reads an envelope as it comes, and stops as soon as it is known what the message asks. Expat, in small pieces.

Expat reads a piece that it was fed to its end even after a handler has stopped listening; so pieces are of 1 kB, and a
real-time message costs its beginning only (17 us for 1.5 kB or 200 kB, where a tree of 200 kB costs 2,700 us;
measured).

Rules that always hold:
- No DTD (SOAP 1.1 section 3, SOAP 1.2 section 5 forbid it), so no entity of the message's own; nothing is ever fetched.
- Depth, attributes and sizes are bounded; what goes beyond is unsound.
- Only the Body's first element child can be an operation: a Body in the Header, a second Body, a second child are
  unsound.
- The text of the classic style's `xmlString` is a document of its own, read by the same rules; that it may declare
  an encoding means nothing, since it is text already.

`why` never quotes a message.
"""

from collections.abc import Callable, Iterator, Mapping
from xml.parsers import expat

from policies.model import Digest, Operation, SoapVersion, Style

PIECE = 1024
PROLOG_PIECE = 64
"""Octets of a piece before the root element: a document type is noticed before what it declares can be made use of."""
SLICE = 32_768
"""Octets that are read between two pauses: about half a millisecond."""
MAX_DEPTH = 200
MAX_ATTRIBUTES = 256
MAX_NAME = 1024
MAX_CHOICES = 64
MAX_CHOICE_TEXT = 256
MAX_REQUESTS = 32
MAX_PROLOG = 16 * 1024
MAX_SILENCE = 64 * 1024
MAX_INNER = 1 << 20
"""Bounds: some ten times what any of the 28 contracts seen needs; a bulk body is at most 1 MiB by default anyway.

Of octets before the root element, and of octets in which expat finds nothing to tell (one long tag, comment or
instruction): it reads an unfinished one again from its beginning with each piece, so 512 KiB of the letter A took it
two seconds (measured)."""

_SEPARATOR = "}"
_ENVELOPES = {
    "http://schemas.xmlsoap.org/soap/envelope/": SoapVersion.SOAP_11,
    "http://www.w3.org/2003/05/soap-envelope": SoapVersion.SOAP_12,
}
_XML_STRING = "http://ksz-bcss.fgov.be/connectors/WebServiceConnector}xmlString"
_SSDN = "http://www.ksz-bcss.fgov.be/XSD/SSDN/Service"
_LITE = "http://www.ksz-bcss.fgov.be/XSD/Message"
Paths = frozenset[tuple[str, ...]]
Selectors = Mapping[str, Paths]
"""By an operation's namespace: the paths, in local names below the operation, whose text names sources."""
_NO_PATHS: Paths = frozenset()


class _Reader:
    """What the two documents, outer and inner, have in common: expat, bounds, the path of names to where we are."""

    def __init__(self, encoding: str | None) -> None:
        self.parser = parser = expat.ParserCreate(encoding, _SEPARATOR)
        parser.buffer_text = True
        # Set once and never changed: expat crashes the process when a handler of text is replaced inside of a call
        # to it.
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._doctype
        self._take_text: Callable[[str], None] | None = None
        self.path: list[str] = []
        self.why = ""
        self.done = False  # nothing more is needed
        self.has_begun = False  # the root element is there: no document type can follow
        self._unheard = 0  # octets since expat found something

    def feed(self, data: bytes | str, *, last: bool) -> None:
        """Read on, piece by piece, until all is read, known, or found unsound."""
        start = 0
        while start < len(data):
            if self.done or self.why:
                return
            size, most = (PIECE, MAX_SILENCE) if self.has_begun else (PROLOG_PIECE, MAX_PROLOG)
            piece = data[start : start + size]
            self._unheard += len(piece)
            self._feed(piece, last=False)
            start += size
            if self._unheard > most and not self.done:
                self.stop("too long a tag, comment or beginning")
        if last and not self.done and not self.why:
            self._feed(data[:0], last=True)

    def _feed(self, piece: bytes | str, *, last: bool) -> None:
        try:
            self.parser.Parse(piece, last)
        except expat.ExpatError as error:
            if not self.done:
                self.stop(f"not well-formed XML ({expat.ErrorString(error.code)})")
        except (ValueError, LookupError):
            self.stop("its encoding cannot be read")

    def release(self) -> None:
        """Let go of expat: it and this object refer to each other, and its memory would wait for a collection."""
        del self.parser

    def stop(self, why: str) -> None:
        """Note why the message is unsound, and listen no more. The first reason stands."""
        self.why = self.why or why

    def finish(self) -> None:
        """Note that all is known, and listen no more."""
        self.done = True

    def _doctype(self, *_: object) -> None:
        self.stop("a document type declaration")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.has_begun, self._unheard = True, 0
        if self.why or self.done:
            return
        if len(self.path) >= MAX_DEPTH:
            self.stop("nested too deeply")
        elif len(attributes) > MAX_ATTRIBUTES or len(name) > MAX_NAME:
            self.stop("too many attributes, or too long a name")
        else:
            self.path.append(name)
            self.opened(name)

    def _end(self, name: str) -> None:
        self._unheard = 0
        if not (self.why or self.done):
            self.closed(name)
            self.path.pop()

    def _characters(self, text: str) -> None:
        self._unheard = 0
        if self._take_text is not None and not (self.why or self.done):
            self._take_text(text)

    def opened(self, name: str, /) -> None:
        """Take the start of an element; it is last in `path`."""

    def closed(self, name: str, /) -> None:
        """Take the end of an element; it is still last in `path`."""

    def text(self, take: Callable[[str], None] | None) -> None:
        """Have text given to `take` from now on; None: to nobody."""
        self._take_text = take


class _Inner(_Reader):
    """The document inside `xmlString`: every ServiceRequest's ServiceId and Version, and the element inside XMLite."""

    def __init__(self) -> None:
        super().__init__("utf-8")  # overrides what the document declares: it was text when it came
        self.operations: list[Operation] = []
        self._taken: list[str] = []
        self._fields: dict[str, str] = {}
        self._lite = ""

    def opened(self, name: str, /) -> None:
        depth = len(self.path)
        if depth == 1 and name != f"{_SSDN}}}SSDNRequest":
            self.stop("the string holds no SSDNRequest")
        elif depth == 2 and name.endswith("ServiceRequest"):
            self._fields, self._lite = {}, ""
            if name != f"{_SSDN}}}ServiceRequest":
                self.stop("a ServiceRequest of another namespace")
        elif self._in_request() and depth == 3 and name in (f"{_SSDN}}}ServiceId", f"{_SSDN}}}Version"):
            if name in self._fields:
                self.stop("a ServiceRequest says its ServiceId or Version twice")
            self._taken = []
            self.text(self._take)
        elif self._in_request() and depth == 4 and name in (f"{_SSDN}}}ServiceId", f"{_SSDN}}}Version"):
            self.stop("a ServiceId inside the data")
        elif depth == 6 and self.path[2:5] == [f"{_LITE}}}Message", f"{_LITE}}}Data", f"{_LITE}}}XML"]:
            self._lite_child(name)
        elif self._take_text is not None:
            self.stop("a ServiceId or Version with elements in it")

    def closed(self, name: str, /) -> None:
        depth = len(self.path)
        if depth == 3 and self._take_text is not None:
            self.text(None)
            self._fields[name] = "".join(self._taken).strip()
        elif depth == 2 and name == f"{_SSDN}}}ServiceRequest":
            self._request()

    def _in_request(self) -> bool:
        return len(self.path) > 2 and self.path[1] == f"{_SSDN}}}ServiceRequest"

    def _take(self, text: str) -> None:
        self._taken.append(text)
        if sum(map(len, self._taken)) > MAX_CHOICE_TEXT:
            self.stop("too long a ServiceId or Version")

    def _lite_child(self, name: str) -> None:
        if self._lite:
            self.stop("an XMLite message with two elements")
        namespace, _, local = name.rpartition(_SEPARATOR)
        self._lite = f"{{{namespace}}}{local}"

    def _request(self) -> None:
        service = self._fields.get(f"{_SSDN}}}ServiceId", "")
        if not service or len(self.operations) >= MAX_REQUESTS:
            self.stop("a ServiceRequest without a ServiceId, or too many of them")
            return
        inner = self._lite if service == "XMLite" else ""
        self.operations.append(Operation(service, version=self._fields.get(f"{_SSDN}}}Version", ""), inner=inner))


class Envelope(_Reader):
    """A SOAP envelope. With `early`, nothing more is needed once the operation is known and cannot depend on what
    follows."""

    def __init__(self, encoding: str | None, selectors: Selectors, *, early: bool) -> None:
        super().__init__(encoding)
        self._selectors = selectors
        self._paths = _NO_PATHS
        self._early = early
        self._soap: SoapVersion | None = None
        self._body_name = ""
        self._bodies = 0
        self._operation: Operation | None = None
        self._choices: set[tuple[str, str]] = set()
        self._taken: list[str] | None = None
        self._taken_size = 0
        self._is_string = False
        self._document: str | None = None  # what `xmlString` holds, once it is whole
        self._requests: list[Operation] = []
        self.started_at = -1  #: octets before the operation's start tag

    def result(self) -> Digest:
        """Return what was understood."""
        if not self.why and self._operation is None:
            self.stop("no operation was found")
        if self.why:
            return Digest(Style.UNKNOWN, self._soap, unsound=self.why)
        if self._is_string:
            return Digest(Style.SSDN, self._soap, tuple(self._requests))
        assert self._operation is not None
        return Digest(Style.SOA, self._soap, (self._operation,), frozenset(self._choices))

    def opened(self, name: str, /) -> None:
        depth = len(self.path)
        if depth == 1:
            self._root(name)
        elif depth == 2:
            self._part(name)
        elif depth == 3 and self.path[1] == self._body_name:
            self._child(name)
        elif self._is_string and depth > 3:
            self.stop("elements inside xmlString")
        elif self._taken is not None:
            self.stop("elements where a source is named")
        elif self._paths and self.path[1] == self._body_name and self._below() in self._paths:
            self._taken, self._taken_size = [], 0
            self.text(self._take_choice)

    def closed(self, _name: str, /) -> None:
        if self._taken is None:
            return
        if self._is_string and len(self.path) == 3:
            self.text(None)
            self._document = "".join(self._taken)
            self._taken = None
            if self._early:
                self.finish()
        elif not self._is_string:
            self.text(None)
            self._choices.add(("/".join(self._below()), "".join(self._taken).strip()))
            self._taken = None
            if len(self._choices) > MAX_CHOICES:
                self.stop("too many sources named")

    def _root(self, name: str) -> None:
        namespace, _, local = name.rpartition(_SEPARATOR)
        self._soap = _ENVELOPES.get(namespace)
        if self._soap is None or local != "Envelope":
            self._soap = None
            self.stop("not a SOAP envelope")
        self._body_name = f"{namespace}}}Body"

    def _part(self, name: str) -> None:
        if name == self._body_name:
            self._bodies += 1
        elif name != self._body_name.replace("}Body", "}Header") or self._bodies:
            self.stop("neither Header nor Body")
        if self._bodies > 1:
            self.stop("two Bodies")

    def _child(self, name: str) -> None:
        if self._operation is not None:
            self.stop("two elements in the Body")
            return
        namespace, _, local = name.rpartition(_SEPARATOR)
        self._operation = Operation(local, namespace)
        self._paths = self._selectors.get(namespace, _NO_PATHS)
        self.started_at = self.parser.CurrentByteIndex
        if name == _XML_STRING:
            self._is_string = True
            self._taken = []
            self.text(self._take_string)
        elif self._early and not self._paths:
            self.finish()

    def _below(self) -> tuple[str, ...]:
        return tuple(name.rpartition(_SEPARATOR)[2] for name in self.path[3:])

    def _take_choice(self, text: str) -> None:
        self._take(text, MAX_CHOICE_TEXT)

    def _take_string(self, text: str) -> None:
        self._take(text, MAX_INNER)

    def _take(self, text: str, limit: int) -> None:
        assert self._taken is not None
        self._taken_size += len(text)
        if self._taken_size > limit:
            self.stop("too long a text")
        else:
            self._taken.append(text)

    def read_string(self) -> Iterator[None]:
        """Read the document inside `xmlString`, if there is one, pausing at each yield; before `result` is asked."""
        document, self._document = self._document, None
        if document is None or self.why:
            return
        inner = _Inner()
        # White space and a byte order mark before the declaration are common, and harmless in a text.
        octets = document.lstrip("\ufeff \t\r\n").encode("utf-8", "surrogatepass")
        for start in range(0, len(octets), SLICE):
            if start:
                yield
            inner.feed(octets[start : start + SLICE], last=False)
        inner.feed(b"", last=True)
        inner.release()
        if inner.why or not inner.operations:
            self.stop(f"in xmlString: {inner.why or 'no ServiceRequest'}")
        else:
            self._requests = inner.operations
