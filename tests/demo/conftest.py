"""The toy host and a scene for it."""

import pytest

from foveal.demo.scenes import views

from .toy import toy_host


@pytest.fixture(scope="session")
def host():
    return toy_host()


@pytest.fixture(scope="session")
def shown():
    return views(0, 2)
