"""What holds for every test."""

from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Keep in one process, where tests run in several, what shares a server or a calibration."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item):
    """Return `engines` for all that start one, so that only one runs at a time; `calibration`; else the test's file."""
    folders = item.path.relative_to(TESTS).parts[:-1]
    if item.get_closest_marker("engine") or ("serving" in folders and not {"unit", "seams"} & set(folders)):
        return "engines"
    return "calibration" if "calibration" in folders else item.path.name
