"""What ``tests/express_rig.py`` offers as fixtures."""

from express_rig import caller, dispatcher, worker

__all__ = ["caller", "dispatcher", "worker"]
