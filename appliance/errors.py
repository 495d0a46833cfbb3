"""Every error that leaves the appliance, and what it means to whoever receives it.

Each class answers three questions: whose fault, was anything done, may it be retried. ``TABLE`` maps each class
to its wire code, HTTP status, metric label and exit code; it is built from the classes themselves, and a number
or label used twice stops the import. The exception owns the text a person reads: ``detail`` says what happened,
``hint`` what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final


class ApplianceError(Exception):
    """The root: whatever the appliance reports on purpose.

    ``retry_after_ms`` is set where waiting helps, else 0.
    """

    wire_code: ClassVar[int]
    http_status: ClassVar[int]
    label: ClassVar[str]
    exit_code: ClassVar[int]

    def __init__(self, detail: str, *, hint: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return f"{self.detail} ({self.hint})" if self.hint else self.detail


class RequestError(ApplianceError):
    """The peer's fault. Nothing was done; the same request will fail again."""


class BadRequest(RequestError):
    """Understood, and wrong: a value out of range, a key that is none, a block of the wrong length."""

    wire_code, http_status, label, exit_code = 1, 400, "bad_request", 2


class ProtocolError(RequestError):
    """The peer broke the wire protocol; the connection is closed after saying so."""

    wire_code, http_status, label, exit_code = 2, 400, "protocol", 3


class WindowExceeded(ProtocolError):
    """More was sent than the window granted; the connection is closed after saying so."""

    wire_code, http_status, label, exit_code = 3, 429, "window_exceeded", 3


class NotAuthenticated(RequestError):
    """No such account, or the proof does not fit. Which of the two is not told."""

    wire_code, http_status, label, exit_code = 4, 401, "not_authenticated", 4


class Denied(RequestError):
    """The account is known and may not do this."""

    wire_code, http_status, label, exit_code = 5, 403, "denied", 5


class NotFound(RequestError):
    """There is no such thing, or none that this account may see: the two look the same."""

    wire_code, http_status, label, exit_code = 6, 404, "not_found", 6


class Conflict(RequestError):
    """The thing is not in the state that this needs."""

    wire_code, http_status, label, exit_code = 7, 409, "conflict", 7


class Unavailable(ApplianceError):
    """Nothing was done, and it is not the request's fault: the same request may succeed later."""

    wire_code, http_status, label, exit_code = 8, 503, "unavailable", 8


class Busy(Unavailable):
    """The queue is full; retry after the time given."""

    wire_code, http_status, label, exit_code = 9, 429, "busy", 9


class Draining(Unavailable):
    """The appliance is stopping: it finishes what it accepted and takes no more."""

    wire_code, http_status, label, exit_code = 10, 503, "draining", 10


class DeadlineExceeded(ApplianceError):
    """The time the caller gave ran out. A signature may have been made; none was released."""

    wire_code, http_status, label, exit_code = 11, 504, "deadline_exceeded", 11


class SignerFailed(ApplianceError):
    """The token refused or botched this item and will do so again; no signature was released."""

    wire_code, http_status, label, exit_code = 12, 502, "signer_failed", 12


class ConfigError(ApplianceError):
    """Start-up only: the configuration cannot be used. The text names file, line, key, expected and got."""

    wire_code, http_status, label, exit_code = 13, 500, "config", 13


class StateUnknown(BaseException):
    """We do not know whether a durable step happened.

    The process must exit; recovery at the next start is the only repair. It is no ``Exception``, so that an honest
    ``except Exception`` cannot swallow it.
    """


STATE_UNKNOWN_EXIT: Final = 70
"""What the process ends with then: EX_SOFTWARE of sysexits. systemd starts us anew, and that is the repair."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the error table."""

    error: type[ApplianceError]
    wire_code: int
    http_status: int
    label: str
    exit_code: int


def _leaves(root: type[ApplianceError]) -> list[type[ApplianceError]]:
    found = [root] if "wire_code" in vars(root) else []
    for child in root.__subclasses__():
        found.extend(_leaves(child))
    return found


def _table() -> dict[int, Row]:
    table: dict[int, Row] = {}
    labels: set[str] = set()
    for error in _leaves(ApplianceError):
        if error.wire_code in table or error.label in labels:
            raise RuntimeError(f"{error.__name__} reuses a wire code or label")
        labels.add(error.label)
        table[error.wire_code] = Row(error, error.wire_code, error.http_status, error.label, error.exit_code)
    return table


TABLE: Final = _table()
"""Wire code -> row, for every error that can be reported."""


def from_wire(code: int, detail: str, *, hint: str = "", retry_after_ms: int = 0) -> ApplianceError:
    """The error a peer reported. A code from a newer peer becomes ``Unavailable``: nothing else is safe to assume."""
    row = TABLE.get(code)
    if row is None:
        return Unavailable(
            f"error {code} from a newer peer: {detail}", hint=hint, retry_after_ms=retry_after_ms
        )
    return row.error(detail, hint=hint, retry_after_ms=retry_after_ms)
