"""Why a connection could not be made, or ended, in words that say what to do. No I/O."""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

from appliance.errors import NotAuthenticated, Unavailable

HINT: Final = "is cloud-seald running there?"


def reason_of(error: Exception) -> str:
    """Why a connection could not be made, or ended, in the system's words."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno:
        # asyncio's own text has the address, and says of every error that the call failed.
        text = os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
        return text[:1].lower() + text[1:]
    return str(error) or type(error).__name__


def cannot_connect(address: str, error: Exception) -> Unavailable:
    """Nobody was reached, and what was expected there."""
    hint = HINT
    if isinstance(error, PermissionError):
        hint = "expected a socket that this user may write to: see listen.unix_socket_mode, or run as another user"
    elif isinstance(error, socket.gaierror):
        hint = "expected a host name that can be resolved, or an IP address"
    return Unavailable(f"cannot connect: {reason_of(error)} at {address}", hint=hint)


def certificate_alert(error: Exception | None) -> str | None:
    """The TLS alert by which the peer refused our certificate, or asked for one; None for any other error."""
    reason = getattr(error, "reason", None) if isinstance(error, ssl.SSLError) else None
    if not isinstance(reason, str) or "_ALERT_" not in reason:
        return None
    alert = reason.partition("_ALERT_")[2].lower()
    return (
        f"TLS alert {alert}" if "certificate" in alert or alert in ("unknown_ca", "access_denied") else None
    )


def certificate_refused(address: str, reason: str) -> NotAuthenticated:
    """The server does not take our certificate: to try again mends nothing."""
    return NotAuthenticated(
        f"authentication failed: {address} does not accept the client's certificate ({reason})",
        hint="expected one that is valid now and issued by a CA in the appliance's listen.tls.client_ca_file, or"
        " none and a password",
    )
