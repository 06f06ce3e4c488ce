"""What is stored is sealed: it opens in its own place with its own key, and nowhere else; keys show nothing."""

import base64
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sealing import KeyRing, SealError, train

RING = KeyRing(b"k" * 32)
KEY, WRAPPED = RING.new_key()
SAMPLES = [f"<envelope><ssin>{n:011d}</ssin>{'<same>text</same>' * 40}</envelope>".encode() for n in range(800)]
WITH_DICTIONARY = KEY.with_dictionary(train(SAMPLES))


@given(st.binary(max_size=3000), st.sampled_from(["request", "answer", "key"]), st.integers(0, 1 << 62))
def test_what_is_sealed_opens_the_same(plain: bytes, part: str, seq: int) -> None:
    for key in (KEY, WITH_DICTIONARY, RING.unwrap(WRAPPED)):
        assert key.unseal(part, "run", seq, key.seal(part, "run", seq, plain)) == plain


def test_large_things_open_the_same() -> None:
    plain = b"0123456789" * 100_000
    assert WITH_DICTIONARY.unseal("answer", "r", 1, WITH_DICTIONARY.seal("answer", "r", 1, plain)) == plain


@pytest.mark.parametrize(("part", "run", "seq"), [("answer", "r", 1), ("request", "s", 1), ("request", "r", 2)])
def test_what_is_put_in_another_place_does_not_open(part: str, run: str, seq: int) -> None:
    sealed = KEY.seal("request", "r", 1, b"x" * 100)
    with pytest.raises(SealError, match="backup"):
        KEY.unseal(part, run, seq, sealed)


def test_no_changed_octet_goes_unnoticed() -> None:
    sealed = KEY.seal("request", "r", 1, b"x" * 100)
    for at in range(len(sealed)):
        with pytest.raises(SealError):
            KEY.unseal("request", "r", 1, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
    for cut in range(len(sealed)):
        with pytest.raises(SealError):
            KEY.unseal("request", "r", 1, sealed[:cut])


def test_a_dictionary_makes_items_small_and_is_needed_to_open_them() -> None:
    sealed = WITH_DICTIONARY.seal("request", "r", 1, SAMPLES[5])
    assert len(sealed) < len(KEY.seal("request", "r", 1, SAMPLES[5])) < len(SAMPLES[5])
    with pytest.raises(SealError, match="dictionary"):
        KEY.unseal("request", "r", 1, sealed)


def test_a_bomb_is_not_inflated() -> None:
    sealed = KEY.seal("answer", "r", 1, bytes(65 << 20))
    with pytest.raises(SealError, match="64 MiB"):
        KEY.unseal("answer", "r", 1, sealed)


def test_too_few_samples_make_no_dictionary() -> None:
    assert train([b"a"]) == b""


def test_threads_may_seal_with_one_key_at_a_time() -> None:
    def many(seq: int) -> bool:
        plain = SAMPLES[seq % len(SAMPLES)] * (1 + seq % 3)
        return WITH_DICTIONARY.unseal("request", "r", seq, WITH_DICTIONARY.seal("request", "r", seq, plain)) == plain

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(2000)))


def test_a_key_goes_to_another_process_and_shows_nothing() -> None:
    again = pickle.loads(pickle.dumps(WITH_DICTIONARY))
    assert again.unseal("key", "r", 1, WITH_DICTIONARY.seal("key", "r", 1, b"a" * 200)) == b"a" * 200
    assert again.key_tag("a") == KEY.key_tag("a")
    for shown in (repr(WITH_DICTIONARY), str(KEY), repr(RING)):
        assert "secret" not in shown
        assert len(shown) < 60


def test_tags_tell_equal_keys_and_nothing_else() -> None:
    other, _ = RING.new_key()
    assert KEY.key_tag("00000000097") == KEY.key_tag("00000000097") != KEY.key_tag("00000000098")
    assert KEY.key_tag("00000000097") != other.key_tag("00000000097")
    assert RING.tag("a") == RING.tag("a") != KeyRing(b"l" * 32).tag("a")
    assert len(RING.tag("a")) == len(KEY.key_tag("a")) == 16


def test_another_institutions_key_is_told_apart_from_damage() -> None:
    with pytest.raises(SealError, match="Give it the old key"):
        KeyRing(b"l" * 32).unwrap(WRAPPED)
    with pytest.raises(SealError, match="damaged"):
        RING.unwrap(WRAPPED[:-1] + bytes([WRAPPED[-1] ^ 1]))


def test_a_key_is_made_in_data_dir_once_and_for_its_owner_only(tmp_path: Path) -> None:
    ring = KeyRing.open(None, tmp_path / "var")
    file = tmp_path / "var" / "store.key"
    assert ring.generated
    assert file.stat().st_mode & 0o777 == 0o600
    key, wrapped = ring.new_key()
    again = KeyRing.open(None, tmp_path / "var").unwrap(wrapped)
    assert again.unseal("key", "r", 1, key.seal("key", "r", 1, b"x")) == b"x"
    file.chmod(0o640)
    with pytest.raises(SealError, match="chmod 600"):
        KeyRing.open(None, tmp_path / "var")


def test_a_given_key_is_32_octets_in_base64(tmp_path: Path) -> None:
    ring = KeyRing.open(base64.b64encode(b"k" * 32).decode() + "\n", tmp_path)
    assert not ring.generated
    assert ring.unwrap(WRAPPED).key_tag("a") == KEY.key_tag("a")
    for wrong in ("", "AAAA", "not base64!"):
        with pytest.raises(SealError, match="openssl rand"):
            KeyRing.open(wrong, tmp_path)
    assert not (tmp_path / "store.key").exists()
