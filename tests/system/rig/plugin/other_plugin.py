"""Another plugin, with a fixture and an option of the same names as ours."""

import pytest


def pytest_addoption(parser):
    parser.getgroup("other").addoption("--kernel", default="theirs")


@pytest.fixture
def host():
    return "theirs"
