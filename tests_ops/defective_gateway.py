"""A gateway whose admission lets everybody in: the one way to see the count of cap violations move.

Its guard is whole: what admission let in above the cap does not start.

Run as `python -m tests_ops.defective_gateway serve --config FILE`.
"""

from gateway.cli import main
from gateway.slots import Slots


async def _let_in(*_: object, **__: object) -> None:
    """Stand in for `Slots._admit`."""


if __name__ == "__main__":
    assert hasattr(Slots, "_admit"), "the defect is to be put where admission is now"
    Slots._admit = _let_in
    main()
