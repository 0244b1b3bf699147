"""The base model of a module, and two concepts on it."""

import pytest
from kindred_testing import rows as r
from kindred_testing.models import sd15


@pytest.fixture(scope="module")
def base():
    return sd15()


@pytest.fixture(scope="module")
def one(base):
    return r.concept(base)


@pytest.fixture(scope="module")
def two(base):
    return r.concept(base, "<v2>", seed=9)
