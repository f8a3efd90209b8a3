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


_OF_ITS_OWN = "tests/serving/test_information_flow.py"
"""The longest file with engines: beside the others' chain, which is the longer one, while the other process has time."""


def _group(nodeid):
    """Return `engines` for tests that share one, so that these run one at a time; `calibration`; else the test's file."""
    file = nodeid.split("::")[0]
    _, folder, *rest = file.split("/")
    if file == _OF_ITS_OWN:
        return file
    if folder == "clients" or (folder == "serving" and not {"unit", "seams"} & set(rest)):
        return "engines"
    return folder if folder == "calibration" else file
