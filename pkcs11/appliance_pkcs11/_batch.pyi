from typing import Literal, TypeAlias

from typing_extensions import Buffer

Method: TypeAlias = Literal["vendor", "message", "plain"]

class CryptokiError(RuntimeError):
    args: tuple[str, int]

class BatchStopped(RuntimeError):
    args: tuple[int, int, int, int]

class Module:
    def __init__(self, path: str, *, os_locking: bool) -> None: ...
    @property
    def methods(self) -> tuple[Method, ...]: ...
    def login(self, session: int, pin: bytearray, /) -> None: ...
    def finalize(self) -> None: ...

class Key:
    def __init__(
        self,
        module: Module,
        handle: int,
        mechanism: int,
        *,
        parameter: bytes,
        order: bytes,
        der: bool,
        method: Method,
    ) -> None: ...
    def sign(
        self, session: int, lengths: Buffer | None, data: Buffer, statuses: Buffer, signatures: Buffer, /
    ) -> tuple[int, int, int, int]: ...

class Server:
    def __init__(
        self, fd: int, session: int, *, buffer_len: int, max_kept_len: int, spin_us: int
    ) -> None: ...
    def load(self, slot: int, key: Key, form: int, /) -> None: ...
    def forget(self, slot: int, /) -> None: ...
    def serve(self) -> tuple[bytes, bytes] | None: ...

def confine(name: str, /) -> None: ...
def signature_from_der(der: Buffer, /) -> bytes: ...
