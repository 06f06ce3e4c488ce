"""What follows from an attempt; when bulk stops by itself, and how it comes back."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.model import ItemState, Reason
from policies.recovery import (
    AnswerFacts,
    Breaker,
    Disposition,
    Trouble,
    backoff_s,
    disposition,
    ramp_slots,
    too_many_rejects,
)
from policies.runs import ITEM_CHANGES
from policies.statuses import Kind, Status, Statuses

STATUSES = Statuses.from_data([yaml.safe_load((Path(__file__).parents[2] / "policies" / "statuses.yaml").read_text())])
WAITING, DONE, REJECTED = ItemState.WAITING, ItemState.DONE, ItemState.REJECTED
FAILED, IN_DOUBT = ItemState.FAILED, ItemState.IN_DOUBT


def of(fact: AnswerFacts | Trouble, *, repeatable: bool = True, attempts: int = 1) -> Disposition:
    return disposition(fact, STATUSES, repeatable=repeatable, attempts=attempts, max_attempts=3)


def ok(*codes: str, value: str = "", return_code: str = "") -> AnswerFacts:
    return AnswerFacts(200, whole=Status(codes, value, return_code))


def by_parts(*codes: str, whole: str = "") -> AnswerFacts:
    parts = tuple(Status((code,), of=f"source-{n}") for n, code in enumerate(codes))
    return AnswerFacts(200, whole=Status((whole,)) if whole else None, parts=parts)


TIMEOUT = Trouble(Reason.UPSTREAM_TIMEOUT, bytes_written=True)
UNREACHABLE = Trouble(Reason.UPSTREAM_UNREACHABLE, bytes_written=False)


@pytest.mark.parametrize(
    ("fact", "read", "write", "code"),
    [
        (ok("MSG00000"), DONE, DONE, "MSG00000"),
        (ok(value="NO_DATA_FOUND"), DONE, DONE, "NO_DATA_FOUND"),
        (AnswerFacts(200), DONE, DONE, ""),
        (ok("unheard-of"), DONE, DONE, "unheard-of"),
        (ok("MSG00005", value="NO_RESULT"), REJECTED, REJECTED, "MSG00005"),
        (ok("unheard-of", value="NO_RESULT"), REJECTED, REJECTED, "unheard-of"),
        (ok(value="NO", return_code="10000"), REJECTED, REJECTED, "10000"),
        (ok("MSG00001"), WAITING, WAITING, "MSG00001"),
        (ok("MSG00003"), WAITING, IN_DOUBT, "MSG00003"),
        (ok(value="INCOMPLETE_DATA"), WAITING, IN_DOUBT, "INCOMPLETE_DATA"),
        (by_parts("MSG00000", "MSG00002"), WAITING, IN_DOUBT, "MSG00002"),
        (by_parts("MSG00000", "MSG00001"), WAITING, IN_DOUBT, "MSG00001"),
        (by_parts("MSG00000", "MSG00013"), WAITING, IN_DOUBT, "MSG00013"),
        (by_parts("MSG00000", "MSG00005"), REJECTED, REJECTED, "MSG00005"),
        (by_parts("MSG00001", "MSG00001"), WAITING, WAITING, "MSG00001"),
        (AnswerFacts(200, readable=False), WAITING, IN_DOUBT, "HTTP 200"),
        (AnswerFacts(202, readable=False), DONE, DONE, "HTTP 202"),
        (AnswerFacts(500, fault="Server"), WAITING, IN_DOUBT, "fault Server"),
        (AnswerFacts(500, fault="Client"), REJECTED, REJECTED, "fault Client"),
        (AnswerFacts(500, fault="Server", codes=("MSG00001",)), WAITING, WAITING, "MSG00001"),
        (AnswerFacts(500, fault="Server", codes=("MSG00000",)), WAITING, IN_DOUBT, "MSG00000"),
        (AnswerFacts(500, fault="Server", codes=("MSG00005",)), REJECTED, REJECTED, "MSG00005"),
        (AnswerFacts(429, fault="Server"), WAITING, WAITING, "HTTP 429"),
        (AnswerFacts(401, fault="Client"), WAITING, WAITING, "HTTP 401"),
        (AnswerFacts(401, fault="Client", codes=("MSG00005",)), REJECTED, REJECTED, "MSG00005"),
        (AnswerFacts(500, whole=Status(("MSG00000",))), WAITING, IN_DOUBT, "HTTP 500"),
        (AnswerFacts(500, whole=Status(("MSG00005",))), REJECTED, REJECTED, "MSG00005"),
        (AnswerFacts(202, whole=Status(("MSG00000",))), DONE, DONE, "MSG00000"),
        (AnswerFacts(202), DONE, DONE, ""),
        (AnswerFacts(500, readable=False), WAITING, IN_DOUBT, "HTTP 500"),
        (AnswerFacts(502, readable=False), WAITING, IN_DOUBT, "HTTP 502"),
        (AnswerFacts(504, readable=False), WAITING, IN_DOUBT, "HTTP 504"),
        (AnswerFacts(503, readable=False), WAITING, IN_DOUBT, "HTTP 503"),
        (AnswerFacts(429, readable=False), WAITING, WAITING, "HTTP 429"),
        (AnswerFacts(408, readable=False), WAITING, IN_DOUBT, "HTTP 408"),
        (AnswerFacts(400, readable=False), REJECTED, REJECTED, "HTTP 400"),
        (TIMEOUT, WAITING, IN_DOUBT, "upstream_timeout"),
        (UNREACHABLE, WAITING, WAITING, "upstream_unreachable"),
    ],
)
def test_what_follows_from_a_first_attempt(fact: AnswerFacts | Trouble, read: str, write: str, code: str) -> None:
    assert of(fact).state is read
    assert of(fact, repeatable=False).state is write
    assert of(fact).code == code


def test_what_may_succeed_later_fails_when_its_attempts_are_used_up() -> None:
    assert of(ok("MSG00002"), attempts=2).state is WAITING
    assert of(ok("MSG00002"), attempts=3).state is FAILED
    assert of(TIMEOUT, attempts=3).state is FAILED


def test_what_was_not_sent_waits_again_however_often_and_uses_up_nothing() -> None:
    again = of(UNREACHABLE, repeatable=False, attempts=99)
    assert again.state is WAITING
    assert not again.counts
    assert again.technical


def test_a_partial_answer_is_kept_when_its_attempts_are_used_up() -> None:
    last = of(ok("CHB00001"), attempts=3)
    assert (last.state, last.kind) == (DONE, Kind.PARTIAL)


@pytest.mark.parametrize("fact", [ok("MSG00013"), AnswerFacts(401), AnswerFacts(302), AnswerFacts(404)])
def test_an_answer_that_each_next_call_would_get_holds_the_run_and_its_item_waits(fact: AnswerFacts) -> None:
    held = of(fact, repeatable=False, attempts=99)
    assert held.holds_run
    assert held.state is WAITING
    assert not held.technical
    assert not held.counts


@pytest.mark.parametrize(("written", "state"), [(True, IN_DOUBT), (False, WAITING)])
def test_a_stop_of_ours_is_not_laid_at_the_sources_door(written: bool, state: ItemState) -> None:
    stopped = of(Trouble(Reason.OFFICE_HOURS, written), repeatable=False)
    assert stopped.state is state
    assert not stopped.technical
    assert of(Trouble(Reason.UPSTREAM_BROKEN, written)).technical


def test_the_sources_that_failed_are_named() -> None:
    assert of(by_parts("MSG00000", "MSG00020", "MSG00020", whole="CHB00001")).meaning.endswith("(source-1, source-2)")


CODES = ["MSG00000", "MSG00001", "MSG00003", "MSG00005", "MSG00013", "CHB00001", "?"]
STATUS = st.builds(
    Status,
    st.lists(st.sampled_from(CODES), max_size=2).map(tuple),
    st.sampled_from(["", "OK", "NOK", "NO_RESULT", "?"]),
    st.sampled_from(["", "0", "10000"]),
)
FACTS = st.one_of(
    st.builds(
        AnswerFacts,
        st.integers(100, 599),
        readable=st.booleans(),
        fault=st.sampled_from(["", "Server", "Client", "x"]),
        codes=st.lists(st.sampled_from(CODES), max_size=3).map(tuple),
        whole=st.none() | STATUS,
        parts=st.lists(STATUS, max_size=3).map(tuple),
    ),
    st.builds(Trouble, st.sampled_from(Reason), st.booleans()),
)


@given(FACTS, st.integers(1, 5))
def test_a_write_is_repeated_only_when_it_was_surely_not_done(fact: AnswerFacts | Trouble, attempts: int) -> None:
    after = of(fact, repeatable=False, attempts=attempts)
    if after.state is not WAITING:
        return
    if isinstance(fact, Trouble):
        assert not fact.bytes_written
    else:
        assert after.holds_run or fact.http == 429 or after.code == "MSG00001"


@given(st.lists(st.sampled_from(CODES), min_size=1, max_size=4), st.sampled_from(["", *CODES]))
def test_a_write_of_which_a_part_may_have_been_carried_out_is_never_repeated(parts: list[str], whole: str) -> None:
    state = of(by_parts(*parts, whole=whole), repeatable=False).state
    if set(parts) & {"MSG00000", "MSG00003", "CHB00001"}:
        assert state in (DONE, REJECTED, IN_DOUBT)


@given(FACTS, st.booleans(), st.integers(1, 5))
def test_what_follows_is_always_a_state_that_an_item_which_was_sent_can_take(
    fact: AnswerFacts | Trouble, repeatable: bool, attempts: int
) -> None:
    after = of(fact, repeatable=repeatable, attempts=attempts)
    assert after.state in ITEM_CHANGES[ItemState.SENT]
    assert after.state is not IN_DOUBT or not repeatable
    assert after.state is not WAITING or attempts < 3 or not after.counts


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(0.01, 10_000), st.floats(0, 1))
def test_pauses_are_bounded_and_spread(attempts: int, first: float, longest: float, dice: float) -> None:
    pause = backoff_s(attempts, first, longest, dice)
    assert 0 < pause <= longest
    assert backoff_s(attempts, first, longest, 0.0) * 2 == pytest.approx(backoff_s(attempts, first, longest, 1.0))


def test_pauses_double() -> None:
    assert [backoff_s(n, 30, 3600, 1.0) for n in (1, 2, 3, 9)] == [30, 60, 120, 3600]


def test_a_share_of_rejects_counts_once_there_are_enough_items() -> None:
    assert not too_many_rejects(100, 50, 49, 0.05, 200)
    assert too_many_rejects(100, 50, 50, 0.05, 200)
    assert not too_many_rejects(190, 10, 0, 0.05, 200)
    assert too_many_rejects(189, 10, 1, 0.05, 200)


def test_five_faults_and_half_of_the_last_calls_within_a_minute_are_a_burst() -> None:
    breaker = Breaker(5, 20, 60)
    assert [breaker.note(True, now) for now in range(5)] == [False] * 4 + [True]
    assert not breaker.note(True, 5), "all is forgotten after a burst"


def test_faults_among_many_good_calls_are_no_burst() -> None:
    breaker = Breaker(5, 20, 60)
    assert not any(breaker.note(n % 3 == 0, n / 10) for n in range(200))


def test_faults_that_lie_far_apart_are_no_burst() -> None:
    breaker = Breaker(5, 20, 60)
    assert not any(breaker.note(True, now * 16.0) for now in range(50))


def test_a_good_call_is_never_the_end_of_a_burst() -> None:
    breaker = Breaker(2, 20, 60)
    assert not breaker.note(True, 0)
    assert not breaker.note(False, 1)
    assert breaker.note(True, 2)


def test_a_ramp_begins_with_one_slot_and_adds_one_for_each_step() -> None:
    assert [ramp_slots(s, 60) for s in (-5, 0, 59.9, 60, 185)] == [1, 1, 1, 2, 4]
