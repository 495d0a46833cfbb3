"""What ``tests/appliance_fixture.py`` and ``tests/simulated_token.py`` offer, for the tests of the daemon at work."""

from appliance_fixture import authority, bench, pytest_runtest_makereport, shared_bench
from simulated_token import simulated, simulator

__all__ = ["authority", "bench", "pytest_runtest_makereport", "shared_bench", "simulated", "simulator"]
