"""What holds for every test."""

import pytest
from hypothesis import settings

_ASK_ONE_SERVER = {f"tests/serving/test_{name}.py" for name in ("invariants", "surface", "never_silently_off")}

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
    """Return the test's file, but for files that share a session's fixtures: calibrations, or the server `here`."""
    file = nodeid.split("::")[0]
    if file in _ASK_ONE_SERVER:
        return "here"
    return "calibration" if file.startswith("tests/calibration/") else file
