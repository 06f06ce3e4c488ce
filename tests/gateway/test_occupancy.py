"""A restart never forgets calls that may still be running."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.occupancy import Occupancy, OccupiedError, StartState, boot_id

ONSS = frozenset({"onss"})
T = 60.0


def file_of(folder: Path) -> Path:
    return folder / "busy_until.json"


def left_by(folder: Path, content: object, now: float = 1000.0, boot: str = "boot-1") -> StartState:
    folder.mkdir(exist_ok=True)
    file_of(folder).write_text(content if isinstance(content, str) else json.dumps(content))
    return Occupancy(folder, boot).read_and_mark(T, now)


def test_what_a_clean_stop_left_running_is_known_to_the_next_start(tmp_path: Path) -> None:
    first = Occupancy(tmp_path, "boot-1")
    first.read_and_mark(T, 100.0)
    first.write_clean([(ONSS, 180.0), (frozenset({"bcss", "national-register"}), 150.0)], T)
    state = Occupancy(tmp_path, "boot-1").read_and_mark(T, 160.0)
    assert state == StartState(None, ((ONSS, 180.0),))


def test_a_reload_that_ends_after_the_stop_does_not_take_the_last_word(tmp_path: Path) -> None:
    occupancy = Occupancy(tmp_path, "boot-1")
    occupancy.read_and_mark(T, 100.0)
    occupancy.write_clean([(ONSS, 180.0)], T)
    occupancy.raise_hold(2 * T)
    assert Occupancy(tmp_path, "boot-1").read_and_mark(T, 160.0) == StartState(None, ((ONSS, 180.0),))


def test_a_first_start_waits_since_nothing_is_known(tmp_path: Path) -> None:
    state = Occupancy(tmp_path, "boot-1").read_and_mark(T, 1000.0)
    assert state.cooling_until == 1060.0
    assert state.occupied == ()


def test_a_crash_leaves_the_file_unclean_and_the_larger_hold_counts(tmp_path: Path) -> None:
    Occupancy(tmp_path, "boot-1").read_and_mark(300.0, 1000.0)
    assert Occupancy(tmp_path, "boot-1").read_and_mark(T, 1010.0).cooling_until == 1310.0


def test_a_crash_while_cooling_down_keeps_the_longer_hold_of_the_one_before(tmp_path: Path) -> None:
    Occupancy(tmp_path, "boot-1").read_and_mark(300.0, 1000.0)
    Occupancy(tmp_path, "boot-1").read_and_mark(T, 1010.0)
    state = Occupancy(tmp_path, "boot-1").read_and_mark(T, 1020.0)
    assert state.cooling_until is not None
    assert state.cooling_until >= 1300.0


def test_a_crash_does_not_forget_what_was_left_running_longer_than_the_own_hold(tmp_path: Path) -> None:
    first = Occupancy(tmp_path, "boot-1")
    first.read_and_mark(300.0, 1000.0)
    first.write_clean([(ONSS, 1290.0)], 300.0)
    Occupancy(tmp_path, "boot-1").read_and_mark(T, 1010.0)
    state = Occupancy(tmp_path, "boot-1").read_and_mark(T, 1011.0)
    assert state.cooling_until is not None
    assert state.cooling_until >= 1290.0


def test_a_clean_stop_soon_after_a_crash_does_not_forget_what_the_crash_left(tmp_path: Path) -> None:
    Occupancy(tmp_path, "boot-1").read_and_mark(T, 1000.0)  # and killed, with calls in progress
    second = Occupancy(tmp_path, "boot-1")
    assert second.read_and_mark(T, 1010.0, cool_down_s=300.0).cooling_until == 1310.0
    second.write_clean([(ONSS, 1075.0)], T)
    third = Occupancy(tmp_path, "boot-1")
    state = third.read_and_mark(T, 1012.0)
    assert (state.cooling_until, state.occupied, state.unclean) == (1070.0, ((ONSS, 1075.0),), False)
    third.write_clean(state.occupied, T)
    assert Occupancy(tmp_path, "boot-1").read_and_mark(T, 1070.0) == StartState(None, ((ONSS, 1075.0),))


def test_times_of_another_boot_mean_nothing(tmp_path: Path) -> None:
    clean = {"boot": "boot-1", "hold_s": 90.0, "clean": True, "busy": []}
    assert left_by(tmp_path, clean, boot="boot-2").cooling_until == 1090.0
    assert left_by(tmp_path, clean, boot="").cooling_until == 1090.0
    assert left_by(tmp_path, clean).cooling_until is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        {},
        {"hold_s": "long"},
        {"hold_s": -1},
        '{"hold_s": Infinity}',
        {"boot": "boot-1", "hold_s": 1.0, "clean": True},
        {"boot": "boot-1", "hold_s": 1.0, "clean": True, "busy": [{"sources": ["onss"]}]},
        {"boot": "boot-1", "hold_s": 1.0, "clean": True, "busy": 3},
        {"boot": "boot-1", "hold_s": 1.0, "clean": True, "busy": [], "unknown_until": "late"},
        '{"boot": "boot-1", "hold_s": 1.0, "clean": true, "busy": [{"sources": ["onss"], "until": NaN}]}',
        '{"boot": "boot-1", "hold_s": 1.0, "clean": true, "busy": [], "unknown_until": NaN}',
        {"boot": "boot-1", "hold_s": 1.0, "clean": 1, "busy": []},
    ],
)
def test_what_cannot_be_read_counts_as_unknown(tmp_path: Path, content: object) -> None:
    assert left_by(tmp_path, content).cooling_until == 1060.0


def test_a_second_process_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    """A real second process, since the lock is the kernel's."""
    mine = Occupancy(tmp_path / "state", boot_id())
    mine.acquire()
    program = (
        "import sys; from pathlib import Path; from gateway.occupancy import Occupancy\n"
        "Occupancy(Path(sys.argv[1]), '').acquire()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state")]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert "OccupiedError" in second.stderr
    assert "share:" in second.stderr
    mine.release()
    mine.release()
    assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def test_the_lock_can_be_taken_again_in_one_process_only_after_release(tmp_path: Path) -> None:
    first, second = Occupancy(tmp_path, ""), Occupancy(tmp_path, "")
    first.acquire()
    with pytest.raises(OccupiedError):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_the_boot_has_an_identity_on_this_machine() -> None:
    assert boot_id() == boot_id() != ""
