"""The wire port: listeners, connections, permits, draining.

For: bytes between sockets and sessions, and the bounds on how many bytes that may be.
Not for: what the bytes mean (``wire``, ``session``).

Rules:

* A permit for a frame's whole payload is taken before the payload is kept. Where there is none, the connection's
  socket is not read until there is: back-pressure reaches the client. What passes in a lane keeps nothing that was
  received, and is bounded by the lane (``_express``).
* A client that does not read its answers is not read either, and after ``frame_s`` without taking a byte it is cut
  off: the permits that it holds are wanted by others.
* What a connection wrote at one occasion leaves in one call.
* TCP is TLS 1.3 or nothing.

Security note: a stranger can make us hold one frame of ``MAX_HELLO_PAYLOAD_LEN`` for ``hello_s`` on each of
``max_connections`` connections, and run one Argon2id at a time on ``max_concurrent_hashes`` threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from appliance import wire
from appliance.accounts import Authenticator, Transport
from appliance.errors import ConfigError, ProtocolError, Unavailable
from appliance.metrics import Metrics
from appliance.pipeline import Pipeline
from appliance.sealer import Sealer
from appliance.session import Session, State
from appliance.settings import ListenSettings, Settings, split_address
from appliance.wire import Header

log = logging.getLogger(__name__)

TICK_S: Final = 0.5
"""How often slow frames are looked for."""
CLOSE_TICK_S: Final = 0.01
CLOSE_GRACE_S: Final = 1.0
"""For the farewells of TLS, once all answers have gone."""
WRITE_HIGH_WATER_LEN: Final = 1 << 20
"""Answers that may wait in a socket's buffer before we stop reading from it; a window of answers is some 8 MiB."""
_UCRED: Final = struct.Struct("3i")
_READY: Final = State.READY  # asked with every frame, and an Enum looks its members up in Python
_CLOSED: Final = State.CLOSED


class Permits:
    """How many bytes of frames all connections together may hold. First come, first served."""

    def __init__(self, total_len: int) -> None:
        self._free = total_len
        self._waiting: deque[tuple[int, Connection]] = deque()

    @property
    def waiting(self) -> int:
        """Connections that are held up."""
        return len(self._waiting)

    def take(self, length: int, connection: Connection) -> bool:
        """Take a permit, or join the queue: ``connection.permitted`` is called when it is there."""
        if not self._waiting and length <= self._free:
            self._free -= length
            return True
        self._waiting.append((length, connection))
        return False

    def give(self, length: int) -> None:
        """A permit is free again."""
        self._free += length
        while self._waiting and self._waiting[0][0] <= self._free:
            wanted, connection = self._waiting.popleft()
            if connection.permitted(wanted):
                self._free -= wanted

    def forget(self, connection: Connection) -> None:
        """It has gone while it waited."""
        self._waiting = deque(entry for entry in self._waiting if entry[1] is not connection)
        self.give(0)


class Outbox:
    """Connections with something to send: one call to the socket for all that one occasion wrote.

    An occasion is what a client or a worker sent at a time; whoever handles it calls ``begin`` and ``end``. What is
    written outside of one (the end of a verification) leaves in the loop's next turn.
    """

    def __init__(self) -> None:
        self._waiting: list[Connection] = []
        self._occasions = 0

    def begin(self) -> None:
        """Hold back what is written from here on."""
        self._occasions += 1

    def end(self) -> None:
        """Send it."""
        self._occasions -= 1
        if self._waiting:
            self._flush()

    def add(self, connection: Connection) -> None:
        """It has something to send now."""
        if not self._waiting and not self._occasions:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(connection)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.flush()


class Connection(asyncio.Protocol):
    """One client. Owned by the event loop."""

    def __init__(self, server: WireServer, *, is_tls: bool) -> None:
        self._server = server
        self._is_tls = is_tls
        self._reader = wire.FrameReader(wire.MAX_HELLO_PAYLOAD_LEN, self._admit)
        self._transport: asyncio.Transport | None = None
        self._session: Session | None = None
        self._out: list[bytes] = []
        self._held_len = 0
        self._paused = False
        self._write_paused = False
        self._processing = False
        self._frame_began_at: float | None = None  # the first byte of a frame that is not whole yet
        self._connected_at = 0.0
        # What waited to be sent when it was last looked at, and since when it has not shrunk.
        self._unsent_len = 0
        self._stuck_since = 0.0

    # asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        transport = self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        server = self._server
        if not server.admit(self):
            transport.write(wire.encode_error(0, Unavailable("too many connections", retry_after_ms=1_000)))
            transport.close()
            return
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_LEN)
        if self._is_tls:  # a client that has vanished without a word must not hold its place for ever
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connected_at = server.clock()
        self._session = Session(
            self,
            _facts(transport, is_tls=self._is_tls),
            server.pipeline,
            server.authenticator,
            server.settings.window,
            server.metrics,
            server.clock,
            server.sealer,
        )
        sock = transport.get_extra_info("socket")
        self._session.client.attach(transport, -1 if self._is_tls else sock.fileno())

    def data_received(self, data: bytes) -> None:
        """Bytes are there."""
        session = self._session
        if session is None or session.state is _CLOSED:
            return
        if session.state is _READY and self._reader.is_empty:
            taken = session.client.take(data)
            if taken:
                if taken == len(data):
                    return
                data = data[taken:]
        self._reader.receive(data)
        self._process()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._transport = None
        self._out.clear()
        if self._session is not None:
            self._session.lost()
            self._server.gone(self)
            self._server.permits.forget(self)
            self._server.permits.give(self._held_len)
            self._held_len = 0

    def pause_writing(self) -> None:
        """The client does not read: do not read from it."""
        self._write_paused = True
        self._update_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._write_paused = False
        self._update_reading()

    # Frames ---------------------------------------------------------------------------------------------

    def _process(self) -> None:
        """Handle every frame that is there, then let the workers have it all at once."""
        session = self._session
        if session is None or self._processing:
            return
        if session.state is State.READY:  # and not before: until WELCOME the client is a stranger
            self._reader.max_payload_len = self._server.settings.window.max_payload_len
        self._processing = True
        self._server.outbox.begin()
        try:
            while session.state is not State.CLOSED and (frame := self._reader.next_frame()) is not None:
                self._frame_began_at = None  # what follows is another frame, with as much time
                session.frame(frame)
        except ProtocolError as error:
            self._server.count_protocol_error()
            session.fail(error)
        finally:
            self._processing = False
            self._server.pipeline.pump()
            self._server.outbox.end()
        if not self._reader.mid_frame:
            self._frame_began_at = None
        elif self._frame_began_at is None:  # a frame's time is not renewed by each of its bytes
            self._frame_began_at = self._server.clock()

    def _admit(self, header: Header) -> bool:
        """Say whether the payload of a frame that begins may be kept."""
        if self._server.permits.take(header.payload_len, self):
            self._held_len += header.payload_len
            return True
        self._paused = True
        self._update_reading()
        return False

    def permitted(self, length: int) -> bool:
        """The permit that was waited for is there; False where nobody needs it any more."""
        if self._transport is None or self._session is None or self._session.state is State.CLOSED:
            return False
        self._held_len += length
        self._paused = False
        self._frame_began_at = None  # that it waited for us is not the client's slowness
        self._reader.unblock()
        asyncio.get_running_loop().call_soon(self._process)
        self._update_reading()
        return True

    def _update_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._paused or self._write_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def check_time(self, now: float) -> None:
        """A client gets so long for HELLO, for a frame it has begun, and to take what waits for it."""
        session = self._session
        times = self._server.settings.times
        if self._is_stuck(now, times.frame_s):
            log.info("a client that does not read its answers is cut off")
            self.abort()
            return
        if session is None or self._paused or self._write_paused:
            return
        if session.state is State.NEW and now - self._connected_at > times.hello_s:
            session.fail(ProtocolError(f"no HELLO within {times.hello_s:g} s"))
        elif self._frame_began_at is not None and now - self._frame_began_at > times.frame_s:
            session.fail(ProtocolError(f"a frame was not whole within {times.frame_s:g} s"))

    @property
    def unsent_len(self) -> int:
        """Bytes that the client has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _is_stuck(self, now: float, patience_s: float) -> bool:
        """Whether bytes wait, or the end of the connection does, and nothing has moved for so long."""
        unsent_len = self.unsent_len
        closing = self._transport is not None and self._transport.is_closing()
        if not (unsent_len or closing) or unsent_len < self._unsent_len or not self._stuck_since:
            self._stuck_since = now
        self._unsent_len = unsent_len
        return now - self._stuck_since > patience_s

    # What the session sees ------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send it with whatever else is written at this occasion."""
        if not self._out:
            self._server.outbox.add(self)
        self._out.append(data)

    def flush(self) -> None:
        """Hand it to the socket."""
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()

    def close(self) -> None:
        """After what was written has gone."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def release(self, permit_len: int) -> None:
        """A frame was answered."""
        if self._transport is not None:
            self._held_len -= permit_len
            self._server.permits.give(permit_len)

    @property
    def session(self) -> Session | None:
        """The conversation, once the client was admitted."""
        return self._session

    def abort(self) -> None:
        """At once."""
        if self._transport is not None:
            self._transport.abort()


class WireServer:
    """The listeners and their connections; one for the process."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        authenticator: Authenticator,
        metrics: Metrics,
        clock: Callable[[], float],
        outbox: Outbox,
        sealer: Sealer | None = None,
    ) -> None:
        self.sealer = sealer
        self.settings = settings
        self.pipeline = pipeline
        self.authenticator = authenticator
        self.metrics = metrics
        self.clock = clock
        self.permits = Permits(settings.window.max_buffered_len)
        self.outbox = outbox
        self._connections: set[Connection] = set()
        self._servers: list[asyncio.Server] = []

    async def start(self, listeners: Listeners) -> None:
        """Accept connections on sockets that are bound already, by us or by the leading front."""
        loop = asyncio.get_running_loop()
        listen = self.settings.listen
        if listeners.unix is not None:
            unix = await loop.create_unix_server(
                lambda: Connection(self, is_tls=False), sock=listeners.unix, backlog=listen.backlog
            )
            self._servers.append(unix)
        if listeners.tcp is not None:
            tcp = await loop.create_server(
                lambda: Connection(self, is_tls=True),
                sock=listeners.tcp,
                ssl=tls_context(listen),
                ssl_handshake_timeout=self.settings.times.hello_s,
                backlog=listen.backlog,
            )
            self._servers.append(tcp)

    async def watch(self) -> None:
        """Look for clients that are too slow, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            now = self.clock()
            for connection in list(self._connections):
                connection.check_time(now)

    def admit(self, connection: Connection) -> bool:
        """Whether one more fits."""
        if len(self._connections) >= self.settings.listen.max_connections or self.pipeline.draining:
            self.metrics.connections_refused.inc()
            return False
        self._connections.add(connection)
        self.metrics.connections.set(len(self._connections))
        return True

    def gone(self, connection: Connection) -> None:
        """One less."""
        self._connections.discard(connection)
        self.metrics.connections.set(len(self._connections))

    def count_protocol_error(self) -> None:
        """A client broke the protocol."""
        self.metrics.protocol_errors.inc()

    def stop_listening(self) -> None:
        """No new connections; those there are told."""
        for server in self._servers:
            server.close()
        for connection in self._connections:
            if connection.session is not None:
                connection.session.goaway()

    async def close(self, deadline_at: float) -> None:
        """Close what is left, after what was written has gone, or at the deadline."""
        connections = list(self._connections)
        while any(one.unsent_len for one in connections) and self.clock() < deadline_at:
            await asyncio.sleep(CLOSE_TICK_S)
        for connection in connections:
            connection.close()
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                while self._connections:
                    await asyncio.sleep(CLOSE_TICK_S)
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets that approval systems connect to; all front processes share them."""

    unix: socket.socket | None
    tcp: socket.socket | None

    @property
    def both(self) -> tuple[socket.socket | None, socket.socket | None]:
        """In the order of the fields."""
        return (self.unix, self.tcp)


def bind_listeners(listen: ListenSettings) -> Listeners:
    """Bind what the settings name; ``ConfigError`` where that cannot be."""
    unix = tcp = None
    try:
        if listen.unix_socket is not None:
            unix = bind_unix_socket(listen.unix_socket, int(listen.unix_socket_mode, 8))
            log.info("listening on %s", listen.unix_socket)
        if listen.tcp is not None:
            host, port = split_address(listen.tcp)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            tcp = socket.create_server((host, port), family=family, backlog=listen.backlog)
            log.info("listening on %s port %d, TLS 1.3", host, tcp.getsockname()[1])
    except OSError as error:
        if unix is not None and listen.unix_socket is not None:
            unix.close()
            listen.unix_socket.unlink(missing_ok=True)
        raise ConfigError(f"cannot listen: {error}", hint="is another cloud-seald running?") from error
    return Listeners(unix, tcp)


def bind_unix_socket(path: Path, mode: int) -> socket.socket:
    """A listening socket file with that mode from its first moment; a stale one is replaced, a live one is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()  # left by a process that was killed
            else:
                raise ConfigError(f"{path} is in use", hint="is another cloud-seald running?")
    sock = socket.socket(socket.AF_UNIX)
    try:
        # Nobody can connect before somebody listens, and by then the mode is set.
        sock.bind(str(path))
        path.chmod(mode)
    except OSError:
        sock.close()
        raise
    return sock


def tls_context(listen: ListenSettings) -> ssl.SSLContext:
    """TLS 1.3 only; client certificates are asked for where a CA for them is configured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        assert listen.tls.certificate_file is not None
        context.load_cert_chain(listen.tls.certificate_file, listen.tls.key_file)
        if listen.tls.client_ca_file is not None:
            context.load_verify_locations(listen.tls.client_ca_file)
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"listen.tls: {error}", hint="check the three files and that key and certificate fit"
        ) from error
    return context


def peer_uid(transport: asyncio.BaseTransport) -> int:
    """The user at the other end of a Unix socket, as the kernel knows it."""
    sock = transport.get_extra_info("socket")
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(packed)[1])


def _facts(transport: asyncio.Transport, *, is_tls: bool) -> Transport:
    if not is_tls:
        uid = peer_uid(transport)
        return Transport(peer=f"uid {uid}", uid=uid)
    tls = transport.get_extra_info("ssl_object")
    certificate = tls.getpeercert(binary_form=True)
    fingerprint = hashlib.sha256(certificate).hexdigest() if certificate else None
    address = transport.get_extra_info("peername")
    return Transport(peer=str(address[0]), certificate_sha256=fingerprint, is_tls=True)
