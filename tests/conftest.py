"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# hypothesis measures how long an example takes, and how long it takes to think of one. On a busy machine that tells of
# the machine; whoever would have a test fail by a time asserts it there. pytest-timeout ends what does not end.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
