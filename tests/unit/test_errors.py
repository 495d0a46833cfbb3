"""Errors are an interface: codes, statuses, labels and exit codes that others build on."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator

import pytest

from appliance import errors
from appliance.errors import TABLE, ApplianceError

ABSTRACT = {ApplianceError, errors.RequestError}
"""Never raised themselves: they group."""


def subclasses(root: type[ApplianceError]) -> Iterator[type[ApplianceError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from subclasses(child)


CONCRETE = sorted(set(subclasses(ApplianceError)) - ABSTRACT, key=lambda one: one.__name__)


@pytest.mark.parametrize("error", CONCRETE)
def test_every_error_has_its_own_row(error: type[ApplianceError]) -> None:
    """Its own, not its parent's: an error without a row would be told as another one."""
    assert set(vars(error)) >= {"wire_code", "http_status", "label", "exit_code"}
    row = TABLE[error.wire_code]
    assert row == errors.Row(error, error.wire_code, error.http_status, error.label, error.exit_code)


def test_the_table_has_nothing_else() -> None:
    assert {row.error for row in TABLE.values()} == set(CONCRETE)
    assert len({row.label for row in TABLE.values()}) == len(TABLE)


def test_codes_are_dense_and_frozen() -> None:
    """Codes are never given anew. Whoever changes this line changes the protocol."""
    assert {code: row.label for code, row in TABLE.items()} == {
        1: "bad_request",
        2: "protocol",
        3: "window_exceeded",
        4: "not_authenticated",
        5: "denied",
        6: "not_found",
        7: "conflict",
        8: "unavailable",
        9: "busy",
        10: "draining",
        11: "deadline_exceeded",
        12: "signer_failed",
        13: "config",
    }


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.label)
def test_statuses_and_exit_codes_are_sane(row: errors.Row) -> None:
    is_peers_fault = issubclass(row.error, errors.RequestError) or row.error is errors.Busy
    assert row.http_status // 100 == (4 if is_peers_fault else 5)
    assert 2 <= row.exit_code <= 63, (
        "0 is success, 1 Python's own crash, 64 and up belong to sysexits and the shell"
    )
    assert row.label.isidentifier() and row.label == row.label.lower()
    assert inspect.getdoc(row.error)


def test_exit_codes_tell_errors_apart() -> None:
    """The protocol's two ways to be broken share one; nothing else does."""
    by_code: dict[int, set[str]] = {}
    for row in TABLE.values():
        by_code.setdefault(row.exit_code, set()).add(row.label)
    assert [labels for labels in by_code.values() if len(labels) > 1] == [{"protocol", "window_exceeded"}]


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.label)
def test_an_error_survives_the_wire(row: errors.Row) -> None:
    told = errors.from_wire(row.wire_code, "what", hint="do", retry_after_ms=7)
    assert type(told) is row.error
    assert (told.detail, told.hint, told.retry_after_ms) == ("what", "do", 7)


def test_an_unknown_code_means_that_waiting_may_help() -> None:
    told = errors.from_wire(999, "what", retry_after_ms=7)
    assert type(told) is errors.Unavailable
    assert "999" in told.detail and "what" in told.detail and told.retry_after_ms == 7


@pytest.mark.parametrize("code", [0, -1, 14, 65_535])
def test_codes_beside_the_table_do_not_raise(code: int) -> None:
    assert isinstance(errors.from_wire(code, ""), errors.Unavailable)


def test_a_reused_code_or_label_stops_the_import() -> None:
    try:

        class Copy(errors.Denied):
            wire_code, label = 99, "denied"

        with pytest.raises(RuntimeError, match="Copy reuses"):
            errors._table()
        Copy.label = "copy"
        assert errors._table()[99].error is Copy
        Copy.wire_code = errors.Denied.wire_code
        with pytest.raises(RuntimeError, match="Copy reuses"):
            errors._table()
    finally:
        del Copy
        gc.collect()  # a class stays among its parent's subclasses until then


def test_state_unknown_is_not_swallowed() -> None:
    with pytest.raises(errors.StateUnknown):
        try:
            raise errors.StateUnknown
        except Exception:  # noqa: BLE001  # the point of the test
            pytest.fail("an honest `except Exception` swallowed it")


def test_the_text_a_person_reads() -> None:
    assert str(errors.Busy("full")) == "full"
    assert str(errors.Busy("full", hint="wait")) == "full (wait)"
