"""What holds for every test."""

import pytest
from hypothesis import settings

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep in one process, where tests run in several, what shares a server or a calibration."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group(nodeid)

    return ByWhatIsShared(config, log)


def _group(nodeid):
    """Return `engines` for tests that start one, so that one runs at a time; `calibration`; else the test's file."""
    file = nodeid.split("::")[0]
    _, folder, *rest = file.split("/")
    if folder == "clients" or (folder == "serving" and not {"unit", "seams"} & set(rest)):
        return "engines"
    return folder if folder == "calibration" else file
