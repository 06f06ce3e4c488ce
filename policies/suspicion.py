"""Who behaves like a batch without saying so: a pure judgement of when real-time calls come.

A *pair* is an identity at a source address. `Suspicion` is told of every real-time call and says whether the pair that
makes it is suspect: regular as a loop is, or faster for longer than an office is. Never asks what time it is.

Rules that always hold:
- Who makes few calls is never suspected, however regular: a monitor that polls every 3 s or slower is no batch.
- A rate below 10/s is never enough: 300 clerks behind one application server come as they like.
- A suspicion lasts `calm_s` from when the pair was last over the thresholds, and ends by itself.
- A pair takes at most 61 buckets of four integers, and at most `identities` pairs are remembered. The least recently
  seen is forgotten, and its suspicion with it.
- Time that stands still or runs backwards suspects nobody: less than a window back counts as no time at all, more
  starts the pair's books anew.

Theory of operation. People who do not know of each other make a Poisson stream: in equal buckets of time the counts'
variance is their mean (dispersion 1), and the gaps' standard deviation is their mean (variation 1). Dossiers that open
with several calls raise both. A loop that waits for each answer lowers both: it neither idles nor hurries. One
connection shows it in its gaps, several at once (whose gaps look like chance) in their counts. Each figure's logarithm
is divided by the standard error that it has in Poisson traffic, sqrt(2 / buckets) and sqrt(1 / calls), and the two
sums are added over sqrt(2). This *evenness* is about 0 for Poisson, negative for bursts, and judged once a bucket
(a second) over what the window holds since its first call. The first bucket is left out: it is broken, and the gap
that it ends began before. Sums over the window are kept as integers, so a call costs the same whatever the window.

Margins seen in simulation, judged every second:
- Highest evenness of innocents in 12 to 24 days (9 h) each: one clerk 0 (never 30 calls a minute), ten desks 3.0 in
  10 days; the clerks of one server, with bursts or without, and pure Poisson of 0.5 to 4/s, 216 days in all: 6.5 while
  below 2.5/s (the threshold is 7.5), 6.2 above it (6.5). At these thresholds no alarm in 300 days more.
- Lowest of the highest evenness in the first minute of 200 batches each, latency 0.2 to 1 s: one connection 10.1,
  with sleep(1) 10.8, with sleep(0.5 to 1.5) 8.2, two connections 7.7, four 6.0 (one in a hundred is below 6.6).
- Of 1000 batches each, found in 60 s: with one connection, with a sleep, with eight at once (by their rate) all,
  after 40 to 55 s; with four at once 99.4 %, all in 120 s.

What it misses: a batch that shares its pair with clerks, unless it makes most of the calls (four connections, 6.7/s,
and clerks at 2/s: found in 94 of 100 within 4 minutes, at 3/s in 85); a loop slower than 0.5/s; several loops that
sleep; latencies so spread that they look like chance (lognormal with sigma 0.5 is found in 60 s in 84 of 100, in 120 s
in 99; with 0.7 seldom). What it finds and should not: a monitor that polls every 2 s or faster, and an application
server that itself works off a queue in a loop. They need a tag or an exemption.
"""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass

BUCKETS = 60
"""Into how many buckets a window is divided: how often a pair is judged, and the bound on what it takes to remember."""
TICKS_PER_S = 1_000_000
"""Gaps are added up in whole microseconds: sums of integers that come and go do not drift."""
LEAST = 1e-6
"""A figure below this counts as this: perfect regularity has no logarithm."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on a pair is suspect.

    - `window_s`, seconds: how far back is looked, and by when a batch should be found.
    - `minimum_calls`, calls in the window: 30, because sleep(1) and a latency of 0.6 s make 37 a minute, and every
      2 s is as often as a monitor might ask.
    - `sustained_s`, seconds: how long the traffic must have lasted: a program may read 100 records to show a dossier.
    - `regularity`, standard errors from Poisson: the evenness of a slow batch, which has one connection. Chance
      reached 6.5 in 216 days; such batches make 8 at least.
    - `regularity_fast`, the same from `fast_per_s` calls/s on, where several connections blur the gaps: batches make
      less. Chance reached 6.2; four connections make 6.6 or more in 99 of 100 first minutes.
    - `fast_per_s`, calls/s: above what one connection with 0.2-1 s latency makes (1.7), below what two make (3.3).
    - `rate_per_s`, calls/s: suspect whatever the regularity if so many come all the time; twice what 300 clerks make.
    - `calm_s`, seconds: a suspicion ends after so long below the thresholds.
    - `identities`, pairs: how many are remembered.
    """

    window_s: float = 60.0
    minimum_calls: int = 30
    sustained_s: float = 40.0
    regularity: float = 7.5
    regularity_fast: float = 6.5
    fast_per_s: float = 2.5
    rate_per_s: float = 10.0
    calm_s: float = 300.0
    identities: int = 4096

    def __post_init__(self) -> None:
        """Refuse what could not be judged: a variance needs two buckets and two calls."""
        if not 0 < self.window_s / BUCKETS * 3 <= self.sustained_s < self.window_s:
            raise ValueError("sustained_s must be less than window_s, and a twentieth of it at least")
        if self.minimum_calls < 2 or self.identities < 1:
            raise ValueError("minimum_calls must be 2 or more, identities 1 or more")


class _Bucket:
    """The calls that came in one bucket of time, and the gaps that they ended, in ticks."""

    __slots__ = ("calls", "gaps", "index", "squared_gaps")

    def __init__(self, index: int) -> None:
        self.index = index
        self.calls = 0
        self.gaps = 0
        self.squared_gaps = 0


class _Pair:
    """What is remembered of a pair: its buckets with calls, oldest first, and the sums over all but the newest."""

    __slots__ = ("alarm", "buckets", "calls", "gaps", "last", "squared_calls", "squared_gaps")

    def __init__(self, now: float) -> None:
        self.last = now
        self.alarm: float | None = None  # when it was last over the thresholds
        self.buckets: deque[_Bucket] = deque()
        self.calls = self.squared_calls = self.gaps = self.squared_gaps = 0

    def restart(self, now: float) -> None:
        """Forget the traffic, but not the alarm."""
        self.last = now
        self.buckets.clear()
        self.calls = self.squared_calls = self.gaps = self.squared_gaps = 0

    def close(self, index: int) -> None:
        """Add the newest bucket to the sums; drop those that have left the window before bucket `index`."""
        self._add(self.buckets[-1], 1)
        while self.buckets and self.buckets[0].index < index - BUCKETS:
            self._add(self.buckets.popleft(), -1)

    def book(self, now: float) -> None:
        """Count a call in the newest bucket."""
        bucket = self.buckets[-1]
        gap = int((now - self.last) * TICKS_PER_S)
        bucket.calls += 1
        bucket.gaps += gap
        bucket.squared_gaps += gap * gap
        self.last = now

    def _add(self, bucket: _Bucket, sign: int) -> None:
        self.calls += sign * bucket.calls
        self.squared_calls += sign * bucket.calls * bucket.calls
        self.gaps += sign * bucket.gaps
        self.squared_gaps += sign * bucket.squared_gaps

    def dispersion(self, count: int) -> float:
        """Return the variance over the mean of the counts in the last `count` buckets, the first one left out."""
        first = self.buckets[0].calls
        calls = self.calls - first
        return (count * (self.squared_calls - first * first) - calls * calls) / (calls * (count - 1))

    def variation(self) -> float:
        """Return the standard deviation over the mean of the gaps, those that ended in the first bucket left out."""
        first = self.buckets[0]
        gaps = self.gaps - first.gaps
        return math.sqrt((self.calls - first.calls) * (self.squared_gaps - first.squared_gaps) - gaps * gaps) / max(
            gaps, 1
        )


class Suspicion:
    """Watches pairs of an identity and a source. `now` is always in seconds of one clock that does not run back."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._bucket_s = thresholds.window_s / BUCKETS
        self._sustained = math.ceil(thresholds.sustained_s / self._bucket_s)
        self._pairs: OrderedDict[tuple[str, str], _Pair] = OrderedDict()  # the least recently seen first
        self._alarmed: dict[str, set[str]] = {}  # the remembered sources where an identity was ever suspected

    def seen(self, identity: str, source: str, now: float) -> bool:
        """Book a real-time call; say whether the pair that makes it is suspected."""
        key = (identity, source)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._new(key, now)
        else:
            self._pairs.move_to_end(key)
            if now < pair.last or now - pair.last > self._thresholds.window_s:
                if abs(now - pair.last) > self._thresholds.window_s:
                    pair.restart(now)
                now = pair.last
        index = int(now // self._bucket_s)
        buckets = pair.buckets
        if not buckets:
            buckets.append(_Bucket(index))
        elif index != buckets[-1].index:
            pair.close(index)
            if self._is_batch(pair, index):
                pair.alarm = now
                self._alarmed.setdefault(identity, set()).add(source)
            buckets.append(_Bucket(index))
        pair.book(now)
        return pair.alarm is not None and self._lasts(pair, now)

    def suspected(self, identity: str, source: str, now: float) -> bool:
        """Say whether a pair is suspected."""
        pair = self._pairs.get((identity, source))
        return pair is not None and self._lasts(pair, now)

    def is_suspect(self, identity: str, now: float) -> bool:
        """Say whether an identity is suspected at any source."""
        return any(self.suspected(identity, source, now) for source in self._alarmed.get(identity, ()))

    def suspects(self, now: float) -> int:
        """Return how many pairs are suspected."""
        return sum(
            self.suspected(identity, source, now) for identity, sources in self._alarmed.items() for source in sources
        )

    def _lasts(self, pair: _Pair, now: float) -> bool:
        return pair.alarm is not None and abs(now - pair.alarm) < self._thresholds.calm_s

    def _is_batch(self, pair: _Pair, index: int) -> bool:
        """Judge the closed buckets before `index`."""
        limits = self._thresholds
        if pair.calls < limits.minimum_calls:  # most calls are judged by this line alone
            return False
        count = index - pair.buckets[0].index - 1
        calls = pair.calls - pair.buckets[0].calls
        if calls < limits.minimum_calls or count < self._sustained - 1:
            return False
        dispersion = pair.dispersion(count)
        rate = calls / (count * self._bucket_s)
        if rate >= limits.rate_per_s:
            # All the time, not in a surge: the counts' standard deviation is at most their mean.
            return dispersion <= calls / count
        if dispersion >= 1:
            return False
        evenness = -math.log(max(dispersion, LEAST)) * math.sqrt(count / 2)
        evenness -= math.log(max(pair.variation(), LEAST)) * math.sqrt(calls)
        return evenness / math.sqrt(2) >= (limits.regularity_fast if rate >= limits.fast_per_s else limits.regularity)

    def _new(self, key: tuple[str, str], now: float) -> _Pair:
        if len(self._pairs) >= self._thresholds.identities:
            (identity, source), _ = self._pairs.popitem(last=False)
            sources = self._alarmed.get(identity, set())
            sources.discard(source)
            if not sources:
                self._alarmed.pop(identity, None)
        pair = self._pairs[key] = _Pair(now)
        return pair
