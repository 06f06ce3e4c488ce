"""What a configuration means to the parts that do not know it: admission and the writer of faults.

Pure: the same settings give the same terms.
"""

from gateway.config import Settings
from gateway.slots import Terms
from gateway.soap import FaultForm


def terms_of(settings: Settings) -> Terms:
    """Return what admission is told."""
    bulk = settings.bulk
    return Terms(
        hold_s=settings.hold_total,
        call_timeout=max((one.call_timeout for one in settings.upstreams.values()), default=settings.hold_total),
        closed=bulk.closed,
        park_time=bulk.park_time,
        park_length=bulk.park_length,
        queue_time=bulk.queue_time,
        queue_length=bulk.queue_length,
        margin_min=bulk.margin_min,
        margin_max=bulk.margin_max,
    )


def form_of(settings: Settings) -> FaultForm:
    """Return the statuses of our own answers."""
    answers = settings.answers
    return FaultForm(
        soap11_status=answers.soap11_status, soap12_status=answers.soap12_status, other_status=answers.other_status
    )
