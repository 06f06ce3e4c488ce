"""Who behaves like a batch: whole working days of people that raise no alarm, batches that are found in a minute."""

import math
import random
from collections.abc import Callable, Iterable
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.suspicion import BUCKETS, Suspicion, Thresholds

DAY_S = 9 * 3600.0
FOUND_S = 60.0
DEFAULTS = Thresholds()
SEEDS = range(20)
Stream = list[float]


def first_alarm(calls: Iterable[float], start: float = 0.0) -> float | None:
    """Return how long after the first call of a pair it is suspected."""
    suspicion = Suspicion(DEFAULTS)
    began = None
    for at in calls:
        began = at if began is None else began
        if suspicion.seen("client", "10.0.0.1", start + at):
            return at - began
    return None


# People.


def dossier(rng: random.Random, at: float) -> Stream:
    return [at + rng.uniform(0, 10) for _ in range(rng.randint(3, 8))]


def clerk(rng: random.Random, slowest_s: float = 120.0) -> Stream:
    at, calls = rng.uniform(0, slowest_s), []
    while at < DAY_S:
        calls += dossier(rng, at) if rng.random() < 0.25 else [at]
        at += rng.uniform(20, slowest_s)
    return sorted(calls)


def office(rng: random.Random, peak_per_s: float, opening: float, depth: float = 0.25) -> Stream:
    """Clerks who do not know of each other: peaks at 10:00 and 14:30; `opening`: the part of dossiers."""
    at, calls = 0.0, []
    arrivals_per_s = peak_per_s / (1 + opening * 4.5)
    while (at := at + rng.expovariate(arrivals_per_s)) < DAY_S:
        hour = 8 + at / 3600
        shape = math.exp(-(((hour - 10) / 1.2) ** 2)) + math.exp(-(((hour - 14.5) / 1.2) ** 2))
        if rng.random() < depth + (1 - depth) * shape:
            calls += dossier(rng, at) if rng.random() < opening else [at]
    return sorted(calls)


def monitor(rng: random.Random, period_s: float) -> Stream:
    return [tick * period_s + rng.uniform(0, 0.01) for tick in range(int(DAY_S / period_s))]


def counter(rng: random.Random) -> Stream:
    """Twelve desks of one application, without a break."""
    return sorted(at for _ in range(12) for at in clerk(rng, slowest_s=90.0))


@pytest.mark.parametrize(
    "people",
    [
        pytest.param(clerk, id="one clerk"),
        pytest.param(lambda rng: clerk(rng, slowest_s=25.0), id="a hurried clerk"),
        pytest.param(lambda rng: office(rng, 5.0, 0.25), id="300 clerks, dossiers"),
        pytest.param(lambda rng: office(rng, 5.0, 0.0), id="300 clerks, single calls"),
        pytest.param(lambda rng: office(rng, 3.0, 0.1), id="fewer clerks"),
        pytest.param(lambda rng: office(rng, 5.0, 0.1, depth=0.02), id="an office that empties for lunch"),
        pytest.param(counter, id="a public counter"),
        pytest.param(lambda rng: monitor(rng, 10.0), id="a monitor, every 10 s"),
        pytest.param(lambda rng: monitor(rng, 60.0), id="a monitor, every 60 s"),
        pytest.param(lambda rng: monitor(rng, 3.0), id="a monitor, every 3 s"),
    ],
)
def test_people_are_not_suspected_in_a_whole_working_day(people: Callable[[random.Random], Stream]) -> None:
    assert first_alarm(people(random.Random(8)), start=8 * 3600.0) is None


# Batches.


def loop(
    rng: random.Random, period: Callable[[random.Random], float], workers: int = 1, last_s: float = 90.0
) -> Stream:
    calls = []
    for _ in range(workers):
        at = rng.uniform(0, 0.5)
        while at < last_s:
            calls.append(at)
            at += period(rng)
    return sorted(calls)


def latency(rng: random.Random) -> float:
    return rng.uniform(0.2, 1.0)


BATCHES = {
    "latency 0.2 s": (lambda _: 0.2, 1),
    "latency 1 s": (lambda _: 1.0, 1),
    "latency 0.2-1 s": (latency, 1),
    "latency 0.2-0.4 s": (lambda rng: rng.uniform(0.2, 0.4), 1),
    "2 workers": (latency, 2),
    "4 workers": (latency, 4),
    "8 workers": (latency, 8),
    "12 workers": (latency, 12),
    "sleep(1)": (lambda rng: 1 + latency(rng), 1),
    "sleep(1), answered at once": (lambda rng: 1 + rng.uniform(0, 0.02), 1),
    "jittered sleep": (lambda rng: rng.uniform(0.5, 1.5) + latency(rng), 1),
    "jittered sleep, answered at once": (lambda rng: rng.uniform(0.5, 1.5), 1),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("start", [0.3, 11 * 3600.0, 23 * 3600.7], ids=["start of the clock", "day", "night"])
def test_a_batch_is_found_within_a_minute(batch: str, start: float) -> None:
    period, workers = BATCHES[batch]
    for seed in SEEDS:
        found = first_alarm(loop(random.Random(seed), period, workers), start)
        assert found is not None, seed
        assert found <= FOUND_S, seed


def test_a_batch_is_found_though_its_pair_was_at_work_before() -> None:
    """The one call's gap to the batch is not counted, and does not hide it."""
    for seed in SEEDS:
        rng = random.Random(seed)
        suspicion = Suspicion(DEFAULTS)
        for at in (0.0, 400.0, 430.0):
            assert not suspicion.seen("client", "here", at)
        found = next(at for at in loop(rng, latency) if suspicion.seen("client", "here", 450 + at))
        assert found <= FOUND_S, seed


def test_a_batch_that_dominates_the_clerks_of_its_pair_is_found() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        clerks = [at for at in office(rng, 0.4, 0.0) if at < 600]
        batch = [60 + at for at in loop(rng, latency, 4, last_s=500.0)]
        assert first_alarm(sorted(clerks + batch)) is not None, seed


def test_a_high_rate_is_found_however_irregular_but_a_surge_is_not() -> None:
    rng = random.Random(1)
    fast, at = [], 0.0
    while (at := at + rng.expovariate(14.0)) < 70:
        fast.append(at)
    found = first_alarm(fast)
    assert found is not None
    assert found <= FOUND_S
    surge = sorted([rng.uniform(10, 13) for _ in range(2000)] + [tick * 0.9 for tick in range(70)])
    assert first_alarm(surge) is None


def test_a_program_that_reads_a_hundred_records_at_once_is_no_batch() -> None:
    assert first_alarm(loop(random.Random(1), lambda _: 0.3, last_s=30.0)) is None


# What is remembered, and for how long.


def batch_of(suspicion: Suspicion, identity: str, source: str, start: float = 0.0, calls: int = 200) -> float:
    """Run a regular batch; return when its last call came."""
    for tick in range(calls):
        suspicion.seen(identity, source, start + tick * 0.5)
    return start + (calls - 1) * 0.5


def test_suspicion_is_of_a_pair_and_is_asked_for_by_pair_identity_and_number() -> None:
    suspicion = Suspicion(DEFAULTS)
    end = batch_of(suspicion, "batch", "here")
    batch_of(suspicion, "batch", "there")
    suspicion.seen("clerk", "here", end)
    assert suspicion.suspected("batch", "here", end)
    assert suspicion.is_suspect("batch", end)
    assert not suspicion.suspected("clerk", "here", end)
    assert not suspicion.is_suspect("clerk", end)
    assert not suspicion.suspected("nobody", "nowhere", end)
    assert suspicion.suspects(end) == 2


@given(st.integers(200, 400), st.floats(0, 1e6), st.floats(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_suspicion_ends_after_calm(calls: int, start: float, later: float) -> None:
    suspicion = Suspicion(DEFAULTS)
    end = batch_of(suspicion, "batch", "here", start, calls)
    assert suspicion.suspected("batch", "here", end)
    assert suspicion.suspected("batch", "here", end + DEFAULTS.calm_s - 2)
    over = end + DEFAULTS.calm_s + later
    assert not suspicion.suspected("batch", "here", over)
    assert not suspicion.is_suspect("batch", over)
    assert suspicion.suspects(over) == 0
    assert not suspicion.seen("batch", "here", over)


@given(st.lists(st.floats(0, 2000), max_size=60).map(sorted))
@settings(max_examples=50, deadline=None)
def test_without_calls_suspicions_only_ever_end(times: list[float]) -> None:
    suspicion = Suspicion(DEFAULTS)
    end = max(batch_of(suspicion, str(number), "here", number * 90.0) for number in range(5))
    counts = [suspicion.suspects(end + later) for later in times]
    assert counts == sorted(counts, reverse=True)
    assert all(
        suspicion.suspects(end + later) == sum(suspicion.is_suspect(str(number), end + later) for number in range(5))
        for later in times
    )


def test_a_batch_that_turns_into_a_clerk_is_suspected_until_it_was_calm() -> None:
    suspicion = Suspicion(DEFAULTS)
    end = batch_of(suspicion, "batch", "here")
    answers = [suspicion.seen("batch", "here", end + tick * 20) for tick in range(1, 40)]
    assert answers == sorted(answers, reverse=True)
    assert DEFAULTS.calm_s <= sum(answers) * 20 + 20 <= DEFAULTS.calm_s + DEFAULTS.window_s


def test_the_least_recently_seen_is_forgotten_and_its_suspicion_with_it() -> None:
    suspicion = Suspicion(Thresholds(identities=2))
    end = batch_of(suspicion, "batch", "here")
    batch_of(suspicion, "batch", "there")
    suspicion.seen("batch", "here", end)
    suspicion.seen("clerk", "here", end)
    assert not suspicion.suspected("batch", "there", end)
    assert suspicion.is_suspect("batch", end)
    suspicion.seen("another", "here", end)
    assert not suspicion.is_suspect("batch", end)
    assert suspicion.suspects(end) == 0
    suspicion.seen("one more", "here", end)
    assert suspicion.suspects(end) == 0


PAIRS = st.tuples(st.sampled_from("abcdef"), st.sampled_from(["here", "there"]))
STEPS = st.one_of(st.floats(0, 3), st.floats(-200, 200), st.sampled_from([0.0, 0.5, 60.0, -60.0, 1e9, -1e9]))


@given(st.lists(st.tuples(PAIRS, STEPS, st.integers(1, 60)), max_size=60), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_memory_is_bounded_and_the_books_are_right_whatever_time_does(
    traffic: list[tuple[tuple[str, str], float, int]], identities: int
) -> None:
    suspicion = Suspicion(Thresholds(identities=identities))
    now = 1000.0
    for (identity, source), step, calls in traffic:
        answer = False
        for _ in range(calls):
            now = min(max(now + step, -1e12), 1e12)
            answer = suspicion.seen(identity, source, now)
        assert len(suspicion._pairs) <= identities
        pair = suspicion._pairs[identity, source]
        closed = list(pair.buckets)[:-1]
        assert len(pair.buckets) <= BUCKETS + 1
        assert [bucket.index for bucket in pair.buckets] == sorted({bucket.index for bucket in pair.buckets})
        assert pair.calls == sum(bucket.calls for bucket in closed)
        assert pair.squared_calls == sum(bucket.calls**2 for bucket in closed)
        assert pair.gaps == sum(bucket.gaps for bucket in closed)
        assert pair.squared_gaps == sum(bucket.squared_gaps for bucket in closed)
        assert {(one, where) for one, places in suspicion._alarmed.items() for where in places} <= set(suspicion._pairs)
        assert all(suspicion._alarmed.values())
        assert answer in (False, suspicion.suspected(identity, source, pair.last))


@given(st.lists(st.floats(0, 1e6), max_size=300).map(lambda times: sorted(times, reverse=True)))
@settings(max_examples=50, deadline=None)
def test_time_that_runs_backwards_suspects_nobody(times: list[float]) -> None:
    suspicion = Suspicion(DEFAULTS)
    assert not any(suspicion.seen("client", "here", at) for at in times)


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=50), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_small_steps_back_do_not_hide_a_batch(back: list[float], seed: int) -> None:
    """Calls may be booked a little out of order."""
    suspicion = Suspicion(DEFAULTS)
    calls = loop(random.Random(seed), latency)
    shaken = [max(0.0, at - back[number % len(back)]) for number, at in enumerate(calls)]
    assert any(suspicion.seen("client", "here", at) for at in shaken)


@pytest.mark.parametrize("after", [0.0, 50.0], ids=["stands still", "jumps once"])
def test_a_clock_that_stands_still_suspects_nobody(after: float) -> None:
    """Also when nearly all gaps are nothing, which is as regular as can be."""
    suspicion = Suspicion(DEFAULTS)
    times = [0.0, *[0.9999999] * 500, *[1.0000001] * 500, *[1.0000001 + after] * 500, 2 + after]
    assert not any(suspicion.seen("client", "here", at) for at in times)


@pytest.mark.parametrize(
    "wrong",
    [{"window_s": 0.0}, {"sustained_s": 60.0}, {"sustained_s": 2.0}, {"minimum_calls": 1}, {"identities": 0}],
)
def test_thresholds_that_cannot_be_judged_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Thresholds(**wrong)


def test_a_call_costs_microseconds() -> None:
    """Far above what it takes (about 1 us), so that a busy machine does not fail it; linear cost would."""
    suspicion = Suspicion(DEFAULTS)
    begin = perf_counter()
    for tick in range(20_000):
        suspicion.seen("client", "here", tick * 0.1)
    assert (perf_counter() - begin) / 20_000 < 50e-6
