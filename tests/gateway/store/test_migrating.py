"""Which steps a database lacks, and when it is left alone."""

import pytest

from gateway.store.interface import StoreError
from gateway.store.migrating import Migration, migrations, pending

STEPS = tuple(Migration(number, f"{number:04}_x", "select 1;") for number in (1, 2, 3))


@pytest.mark.parametrize(("version", "lacking"), [(0, [1, 2, 3]), (2, [3]), (3, [])])
def test_a_database_gets_the_steps_that_it_lacks_in_order(version: int, lacking: list[int]) -> None:
    assert [step.version for step in pending(STEPS, version)] == lacking


def test_a_newer_database_is_refused_with_both_versions_and_a_way_out() -> None:
    with pytest.raises(StoreError, match=r"version 4; .* 3 at the most.*newer program"):
        pending(STEPS, 4)


def test_an_engine_without_steps_is_no_engine() -> None:
    with pytest.raises(OSError, match="oracle"):
        migrations("oracle")
