"""Approval references: what stands in the place of an approval, and the pattern that a grant demands of it.

For: reading a pattern that an officer wrote, and matching references of approval systems against it.
Not for: looking an approval up where it was given.

Rules:

* Patterns and references both come from outside, and each request is matched: the engine is RE2, whose time grows with
  the length of the reference and never with the number of ways to match it. It has no look-around and no
  back-references; a pattern with them is refused when it is written, not when it is used.
* A pattern must match the whole reference.
* The lengths of both, and the size of what a pattern becomes, have limits.
"""

from __future__ import annotations

from typing import Final, Protocol

import re2

from appliance.errors import BadRequest
from appliance.wire_seals import MAX_REFERENCE_LEN

MAX_PATTERN_LEN: Final = 256
"""Characters: a few alternatives of a number's form."""
_MAX_PROGRAM_LEN: Final = 1 << 20
"""Bytes that a pattern may become: ``(.{100}){100}`` is short and its automaton is not. RE2's own limit is 8 MiB."""


class Pattern(Protocol):
    """A pattern that was read."""

    def fullmatch(self, text: str) -> object | None:
        """Something, where it matches the whole text."""


def read_pattern(text: str) -> Pattern:
    """The pattern, ready to be matched, or ``BadRequest`` that tells what is wrong with it."""
    if not 1 <= len(text) <= MAX_PATTERN_LEN:
        raise BadRequest(
            f"an approval pattern has 1 to {MAX_PATTERN_LEN} characters, got {len(text)}",
            hint=r"a regular expression for the whole reference, e.g. OA-[0-9]{4}-[0-9]{1,8}",
        )
    options = re2.Options()
    options.max_mem = _MAX_PROGRAM_LEN
    options.log_errors = False
    try:
        pattern: Pattern = re2.compile(text, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else ""
        if isinstance(reason, bytes):
            reason = reason.decode("utf-8", "replace")
        raise BadRequest(
            f"not an approval pattern: {reason}"[:200],
            hint="a regular expression as RE2 takes it: no look-around, no back-references",
        ) from error
    return pattern


def matches(pattern: Pattern, reference: str) -> bool:
    """Whether the whole reference has that form. A reference that is too long has none."""
    encoded = reference.encode(
        "utf-8", "replace"
    )  # JSON can write half a character, which matches nothing that is meant
    return len(encoded) <= MAX_REFERENCE_LEN and pattern.fullmatch(encoded.decode()) is not None
