import pytest

from tests.deploy.layouts import LAYOUTS, resources


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """The base, then each overlay."""
    return request.param


@pytest.fixture
def by_kind(layout):
    """The layout's resources by kind."""
    return resources(layout)


@pytest.fixture
def pod(by_kind):
    """The pod template."""
    return by_kind["Deployment"]["spec"]["template"]


@pytest.fixture
def container(pod):
    """The pod's only container."""
    (only,) = pod["spec"]["containers"]
    return only
