from typing import Final, TypeAlias

_Block: TypeAlias = bytes | bytearray | memoryview

MAX_SMALL: Final[int]

def read_answers(data: bytes, /) -> list[tuple[int, int, int, int, int, bytes, bytes]] | None: ...
def pack_signed(
    request_id: int, job_and_index: _Block, statuses: _Block, signatures: _Block, /
) -> tuple[bytes, int]: ...
def pack_slice(sequence: int, slot: int, count: int, digests: _Block, /) -> bytes: ...
