"""What ``tests/appliance_fixture.py`` offers, for the tests of the HTTP API."""

from appliance_fixture import authority, bench, pytest_runtest_makereport, shared_bench

__all__ = ["authority", "bench", "pytest_runtest_makereport", "shared_bench"]
