"""Which slots a source's calls need: the BCSS's third recommendation as a layout of pools.

"At most 4 simultaneous calls for data of the BCSS and of the National Register, 2 for any other authentic source."
That can be read in three ways, so the reading is configured, and to be confirmed with the PPKB contact:

- default: one pool of 4 for both together, a pool of 2 for each other source;
- strict: one pool of 4 for both together, one pool of 2 for all others together;
- split: a pool of 4 for each of the two, a pool of 2 for each other source.

Rules that always hold: every source has exactly one pool; bulk whose sources are not known needs a slot in every
pool that it might reach, besides one of its own, so that doubt is never faster; nothing here counts who is in a pool.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from policies.model import UNCLASSIFIED, Source

BASE = "base"
OTHER = "other"
BASE_CAP = 4
"""For data of the BCSS and of the National Register (BCSS, recommendation 3)."""
OTHER_CAP = 2
"""For any other authentic source (BCSS, recommendation 3)."""


class Reading(StrEnum):
    """How the third recommendation is read."""

    DEFAULT = "default"
    STRICT = "strict"
    SPLIT = "split"


@dataclass(frozen=True, slots=True)
class Pool:
    """The slots of one or several sources."""

    name: str
    slots: int
    recommended: int  #: the most that the BCSS recommends
    sources: frozenset[str]
    rate_per_s: float | None = None  #: a pace of starts; never the cap


class Layout:
    """All pools, and which source belongs to which."""

    def __init__(self, pools: Iterable[Pool], total: int | None = None) -> None:
        self.pools: Mapping[str, Pool] = {pool.name: pool for pool in pools}
        self.total = total  #: caps the sum over all pools, where one is configured
        self._pool_of = {source: pool.name for pool in self.pools.values() for source in pool.sources}

    def pool_of(self, source: str) -> str:
        """Return the name of a source's pool. Raises KeyError for a source that is not in the layout."""
        return self._pool_of[source]

    def __contains__(self, source: str) -> bool:
        """Say whether a source has a pool here."""
        return source in self._pool_of

    def needs(self, sources: Collection[str]) -> tuple[str, ...]:
        """Return the pools in each of which a call to these sources needs a slot, sorted."""
        return tuple(sorted({self._pool_of[source] for source in sources}))

    def unclassified(self, reachable: Collection[str]) -> tuple[str, ...]:
        """Return the pools for a call whose sources are not known, on a route that can reach `reachable`."""
        return self.needs({*reachable, UNCLASSIFIED})

    def over_recommendation(self) -> tuple[Pool, ...]:
        """Return the pools whose cap is above what the BCSS recommends."""
        return tuple(pool for pool in self.pools.values() if pool.slots > pool.recommended)


def layout(
    sources: Iterable[Source],
    reading: Reading,
    *,
    slots: Mapping[str, int] | None = None,
    rates: Mapping[str, float] | None = None,
    total: int | None = None,
    share: Mapping[str, int] | None = None,
) -> Layout:
    """Lay out the pools.

    Args:
        slots: caps that differ from the recommendation, by pool.
        rates: starts a second, by pool.
        total: a cap over all pools together.
        share: what of each cap belongs to this gateway, where several share them; a pool that is not named has 0 here.

    Raises:
        ValueError: a pool is named that the reading does not make; the message names it, and those that there are.
    """
    members: dict[str, set[str]] = {}
    recommended: dict[str, int] = {}
    for source in sources:
        pool = _pool_name(source, reading)
        members.setdefault(pool, set()).add(source.name)
        recommended[pool] = BASE_CAP if source.base else OTHER_CAP
    members[UNCLASSIFIED] = {UNCLASSIFIED}
    recommended[UNCLASSIFIED] = OTHER_CAP
    slots, rates = slots or {}, rates or {}
    for name in (*slots, *rates, *(share or {})):
        if name not in members:
            raise ValueError(f'there is no pool "{name}"; there are: {", ".join(sorted(members))}')
    caps = {name: slots.get(name, recommended[name]) for name in members}
    if share is not None:
        caps = {name: min(caps[name], share.get(name, 0)) for name in caps}
    pools = (
        Pool(name, caps[name], recommended[name], frozenset(members[name]), rates.get(name)) for name in sorted(members)
    )
    return Layout(pools, total)


def _pool_name(source: Source, reading: Reading) -> str:
    if source.base:
        return source.name if reading is Reading.SPLIT else BASE
    return OTHER if reading is Reading.STRICT else source.name
