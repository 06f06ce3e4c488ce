"""The fixture of these tests: a site without a configuration."""

from pathlib import Path

import pytest

from tests.gateway.config.sites import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)
