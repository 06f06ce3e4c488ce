"""What a code that an item ended with means, for people: a business status, a fault, a status of HTTP, our own reason.

Looked up when it is shown, so that a site's own table, laid over the shipped one later, explains old items too. A code
that nobody knows means nothing here.
"""

from gateway.soap.faults import messages
from policies.model import Reason, Refusal
from policies.statuses import Status, Statuses

_OF_ITEMS = {
    "unreadable": "what was stored of the item cannot be opened",
    "maybe_sent": "the gateway stopped when the item may have been sent",
    "not_stored": "what became of the item cannot be stored",
}
_OURS = "BCSS gateway: "


def meaning_of(code: str, statuses: Statuses) -> str:
    """Return what a code means; empty: it is not known."""
    if code in set(Reason):
        return messages(Refusal(Reason(code), request_id=""))[2].removeprefix(_OURS)
    if code in _OF_ITEMS:
        return _OF_ITEMS[code]
    kind, _, rest = code.partition(" ")
    if kind == "HTTP" and rest.isdecimal():
        said = statuses.of_http(int(rest))
    elif kind == "fault":
        said = statuses.of_fault(rest, ())
    else:
        said = statuses.of_status(Status((code,))) or statuses.of_status(Status((), code, code))
    return said.meaning.text if said is not None else ""
