"""What holds for every test."""

import os

import pytest
from hypothesis import settings

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
# Ray lets its workers give way to everyone: beside the suite's other process they would hardly run, and time out.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep in one process, where tests run in several, what shares a server or a calibration."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group(nodeid)

    return ByWhatIsShared(config, log)


_WITHOUT_ENGINES = {"unit", "seams"}
_BEHIND_CALIBRATIONS = "tests/serving/test_information_flow.py"
"""A long file, whose engines no other shares: there, both processes end at about the same time."""


def _group(nodeid):
    """Return what the test shares an engine or a calibration with: its folder, of which one test runs at a time.

    Other tests share nothing outside their file.
    """
    file = nodeid.split("::")[0]
    _, folder, *rest = file.split("/")
    if folder == "calibration" or file == _BEHIND_CALIBRATIONS:
        return "calibration"
    inner = rest[0] if len(rest) > 1 else ""
    return f"{folder}/{inner}" if folder in ("clients", "serving") and inner not in _WITHOUT_ENGINES else file
