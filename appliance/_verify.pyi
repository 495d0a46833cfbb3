from typing import Final, Self, TypeAlias

_Block: TypeAlias = bytes | bytearray | memoryview
_Counters: TypeAlias = tuple[int, int, int, int, int]

ENGINES: Final[tuple[str, ...]]
MAX_ITEMS: Final[int]

def sm3(data: _Block, /) -> bytes: ...
def sm3_many(prefix: _Block, lengths: _Block, data: _Block, /) -> bytes: ...
def sha256_many(lengths: _Block, data: _Block, /) -> bytes: ...

class Engine:
    @property
    def name(self) -> str: ...
    def __new__(cls, name: str, max_table_bytes: int) -> Self: ...
    def verify(
        self,
        algorithms: _Block,
        points: _Block,
        key_index: _Block | None,
        digests: _Block,
        signatures: _Block,
        /,
    ) -> bytes: ...
    def statistics(self) -> tuple[_Counters, _Counters]: ...
