"""Fixtures of the tests that look at pages in Chromium."""

import pytest
from browser import browsing


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def page(chromium, tmp_path):
    with chromium.tab(downloads=tmp_path) as tab:
        yield tab
