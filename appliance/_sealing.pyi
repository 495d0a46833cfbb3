from typing import Final, Self, TypeAlias

_Block: TypeAlias = bytes | bytearray | memoryview

MAX_ITEMS: Final[int]
MIN_BODY_LEN: Final[int]
MAX_BODY_LEN: Final[int]
MAX_SUFFIX_LEN: Final[int]
MAX_PROPERTY_LEN: Final[int]
MAX_STAMP_LEN: Final[int]
RECORD_LEN: Final[int]

class Template:
    @property
    def size(self) -> int: ...
    def __new__(cls, algorithm: int, z: _Block, body: _Block, suffix: _Block, /) -> Self: ...
    def cold(
        self, time: _Block, hashes: _Block, lengths: _Block, properties: _Block, enough: int, /
    ) -> int: ...
    def digests(self, time: _Block, hashes: _Block, lengths: _Block, properties: _Block, /) -> bytes: ...
    def values(
        self,
        time: _Block,
        hashes: _Block,
        lengths: _Block,
        properties: _Block,
        statuses: _Block,
        signatures: _Block,
        stamp_lengths: _Block = ...,
        stamps: _Block = ...,
        /,
    ) -> bytes: ...
