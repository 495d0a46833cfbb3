"""``cloud-seal stream``: a batch job of any length that survives whatever interrupts it.

For: digests, files or a synthetic load in; one signature for each, in order of index, in one output file.
Not for: a handful of files (``signing``).

Rules:

* An item's name is (job id, index). The job id is durable before the first request, so that whoever asks again asks
  under the same name.
* Memory is constant: what is in flight, and nothing that grows with the job.
* A batch is a block: with ``--format binary`` nothing is done for a single item.

Two files: the output, and beside it ``OUTPUT.job``, which names the job and says how far the output can be trusted.

Crash story. The order is: output appended → output synced → job file replaced. Whatever of the output lies beyond the
length in the job file may be whole, torn or garbage; it is cut off before the job goes on, and its items are asked
for again under their old names. Nothing before that length is ever written again. So the output has each index
exactly once and in order, wherever the crash was; and a crash costs at most what came in one ``CHECKPOINT_S``.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import hashlib
import json
import math
import os
import secrets
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Protocol, Self

from appliance import wire
from appliance.algorithms import DIGEST_LEN, SIGNATURE_LEN, PublicKey
from appliance.cli.files import read_limited, sync_directory, write_durably
from appliance.cli.show import Answer, Screen, fields
from appliance.cli.signing import Hasher, usable_key
from appliance.cli.target import add_wire_options, connect, run
from appliance.client import DEFAULT_DEPTH
from appliance.errors import BadRequest, ConfigError, Conflict, ProtocolError

CHECKPOINT_S: Final = 0.5
"""Two syncs and a rename cost some milliseconds; half a second of signatures is cheap to ask for again."""
MAX_IN_FLIGHT: Final = 256
"""As many requests as the appliance's window has by default."""
STREAM_DEADLINE_S: Final = 600.0
"""Nobody watches a job at night: it rides out a token that is restarted. The appliance allows no more by default."""
CONNECT_DEADLINE_S: Final = 30.0
"""At the start somebody does watch."""
FORMATS: Final = ("jsonl", "binary")
DIGEST_LINE_LEN: Final = 2 * DIGEST_LEN
MAX_PATH_LINE_LEN: Final = 4_097
"""PATH_MAX and the end of the line."""
MAX_JOB_FILE_LEN: Final = 65_536


def add_commands(groups: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add ``stream`` to the parser."""
    command = groups.add_parser(
        "stream",
        parents=parents,
        help="sign a batch job of any length; run it again to go on where it was interrupted",
        description="Sign a batch job of any length. The same command goes on where an earlier one was interrupted:"
        " no index is doubled, none is left out.",
        epilog="jsonl: a line an item, {index, status, signature}, the signature as r || s in hex. binary: 64 bytes"
        " an item, r || s, item i at 64 * i; zeros where there is no signature.",
    )
    command.set_defaults(run=_stream)
    command.add_argument("--key", required=True, help="the key to sign with")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--paths", metavar="FILE", type=Path, help="a text file with a path on each line")
    source.add_argument(
        "--digests", metavar="FILE", type=Path, help="a text file with 64 hex digits on each line"
    )
    source.add_argument(
        "--raw-digests", metavar="FILE", type=Path, help="a file of 32-byte digests, end to end"
    )
    source.add_argument("--synthetic", metavar="N", type=int, help="N messages made up on the spot")
    command.add_argument("--out", metavar="FILE", type=Path, required=True, help="where the signatures go")
    command.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s")
    command.add_argument(
        "--batch", metavar="N", type=int, default=256, help="items in a request; default: 256"
    )
    command.add_argument(
        "--in-flight",
        metavar="N",
        type=int,
        default=DEFAULT_DEPTH,
        help="requests at a time; default: %(default)s",
    )
    add_wire_options(command)
    command.set_defaults(deadline=STREAM_DEADLINE_S)


def _stream(args: argparse.Namespace, screen: Screen) -> Answer:
    if not 1 <= args.batch <= wire.MAX_ITEMS:
        raise BadRequest(f"--batch {args.batch}: expected 1 to {wire.MAX_ITEMS}")
    if not 1 <= args.in_flight <= MAX_IN_FLIGHT:
        raise BadRequest(f"--in-flight {args.in_flight}: expected 1 to {MAX_IN_FLIGHT}")
    return run(_stream_async(args, screen))


async def _stream_async(args: argparse.Namespace, screen: Screen) -> Answer:
    async with await connect(args, deadline_s=min(args.deadline, CONNECT_DEADLINE_S)) as client:
        key = await usable_key(client, args.key)
        source = source_of(args, key)
        with Output.open(args.out, job_of(args, key, source)) as output:
            if output.job.complete:
                screen.note(f"{args.out}: this job is complete; nothing to do")
            elif output.job.next_index:
                screen.note(f"{args.out}: going on at index {output.job.next_index:,}")
            tally = Tally(output.job.next_index)
            with screen.progress(f"signing with {args.key}", source.count) as tell:
                tell(output.job.next_index)
                if not output.job.complete:
                    await sign_job(
                        client,
                        source,
                        output,
                        tally,
                        tell,
                        batch_items=args.batch,
                        depth=args.in_flight,
                        deadline_s=args.deadline,
                    )
            return _summary(args.out, output.job, key, tally, args)


# What is signed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """Digests end to end, and what each one is of, where that has a name."""

    digests: bytes
    names: tuple[str, ...] = ()


class Source(Protocol):
    """Where digests come from. It gives the same ones each time: that is what makes a job resumable."""

    identity: dict[str, Any]
    """What must not change between two runs of one job."""
    count: int

    def blocks(self, first_index: int, batch_items: int) -> Iterator[Block]:
        """From ``first_index`` to the end, so many at a time."""


def source_of(args: argparse.Namespace, key: PublicKey) -> Source:
    """The source that the arguments name."""
    if args.synthetic is not None:
        return SyntheticSource(args.synthetic, Hasher(key))
    if args.paths is not None:
        return PathSource(args.paths, Hasher(key))
    if args.digests is not None:
        return DigestLineSource(args.digests)
    return RawDigestSource(args.raw_digests)


class SyntheticSource:
    """Messages that anybody can make up again: see ``message``."""

    def __init__(self, count: int, hasher: Hasher) -> None:
        if count < 1:
            raise BadRequest(f"--synthetic {count}: expected 1 or more")
        self.count = count
        self.identity: dict[str, Any] = {"kind": "synthetic", "count": count}
        self._hasher = hasher

    @staticmethod
    def message(index: int) -> bytes:
        """What is signed under that index."""
        return b"cloud-seal synthetic message %d\n" % index

    def blocks(self, first_index: int, batch_items: int) -> Iterator[Block]:
        """See ``Source``."""
        for first in range(first_index, self.count, batch_items):
            messages = map(self.message, range(first, min(first + batch_items, self.count)))
            yield Block(b"".join(map(self._hasher.digest, messages)))


class RawDigestSource:
    """32-byte digests, end to end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.identity, size = _identify(path, "raw digests")
        self.count, rest = divmod(size, DIGEST_LEN)
        if rest or not size:
            raise BadRequest(f"{path}: {size} bytes, expected digests of {DIGEST_LEN} bytes, end to end")

    def blocks(self, first_index: int, batch_items: int) -> Iterator[Block]:
        """See ``Source``."""
        with self._path.open("rb") as file:
            file.seek(first_index * DIGEST_LEN)
            while block := file.read(batch_items * DIGEST_LEN):
                yield Block(block)


class DigestLineSource:
    """A digest on each line, in hex."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.identity, _ = _identify(path, "digests")
        self.count = _count_lines(path, DIGEST_LINE_LEN + 2)

    def blocks(self, first_index: int, batch_items: int) -> Iterator[Block]:
        """See ``Source``."""
        for first, lines in _line_blocks(self._path, first_index, batch_items):
            try:
                digests = bytes.fromhex("".join(lines))
            except ValueError:
                digests = b""
            if any(len(line) != DIGEST_LINE_LEN for line in lines) or len(digests) != len(lines) * DIGEST_LEN:
                raise _wrong_line(self._path, first, lines)
            yield Block(digests)


def _wrong_line(path: Path, first: int, lines: tuple[str, ...]) -> BadRequest:
    for number, line in enumerate(lines, start=first + 1):
        if len(line) != DIGEST_LINE_LEN or not set(line) <= set("0123456789abcdefABCDEF"):
            return BadRequest(f"{path}:{number}: expected {DIGEST_LINE_LEN} hex digits, got {line[:80]!r}")
    raise AssertionError("every line is a digest")


class PathSource:
    """Files, hashed here; only their digests travel. Relative paths are relative to the working directory."""

    def __init__(self, path: Path, hasher: Hasher) -> None:
        self._path = path
        self._hasher = hasher
        self.identity, _ = _identify(path, "paths")
        self.count = _count_lines(path, MAX_PATH_LINE_LEN)

    def blocks(self, first_index: int, batch_items: int) -> Iterator[Block]:
        """See ``Source``. A file that cannot be read ends the run; mend it, and the job goes on there."""
        for _, lines in _line_blocks(self._path, first_index, batch_items):
            yield Block(b"".join(self._hasher.digest_file(Path(line)) for line in lines), lines)


def _identify(path: Path, kind: str) -> tuple[dict[str, Any], int]:
    """What tells this list from another, and its length."""
    try:
        with path.open("rb") as file:
            if not path.is_file():
                raise BadRequest(f"{path} is no regular file", hint="a job must be able to read it again")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from error
    return {"kind": kind, "sha256": digest}, size


def _count_lines(path: Path, max_line_len: int) -> int:
    """How many lines there are; each must be short and not empty, so that line number and index go together."""
    count = 0
    with path.open("rb") as file:
        while line := file.readline(max_line_len + 1):
            count += 1
            if len(line) > max_line_len or not line.strip():
                raise BadRequest(f"{path}:{count}: an empty line, or one of more than {max_line_len} bytes")
    if not count:
        raise BadRequest(f"{path} is empty")
    return count


def _line_blocks(path: Path, first_index: int, batch_items: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = islice(file, first_index, None)
            while block := tuple(line.rstrip("\r\n") for line in islice(lines, batch_items)):
                yield first_index, block
                first_index += len(block)
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path}: not UTF-8 text") from error


# Where it goes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """What ``OUTPUT.job`` holds: which job the output belongs to, and how far it can be trusted."""

    job_id: str
    key: str
    spki_sha256: str
    source: dict[str, Any]
    format: str
    next_index: int = 0
    out_len: int = 0
    failed: int = 0
    complete: bool = False
    version: int = 1


IDENTITY: Final = ("version", "key", "spki_sha256", "source", "format")
"""What of a job must be the same for a run to go on with another's work."""


def job_of(args: argparse.Namespace, key: PublicKey, source: Source) -> Job:
    """A new job as the arguments have it."""
    spki_sha256 = hashlib.sha256(key.spki()).hexdigest()
    return Job(secrets.token_hex(16), args.key, spki_sha256, source.identity, args.format)


class Output:
    """The output and its job file. One process has it open at a time: the output is locked."""

    def __init__(self, path: Path, descriptor: int, job: Job, at: Callable[[str], None]) -> None:
        self.job = job
        self._path = path
        self._descriptor = descriptor
        self._at = at
        # What was appended since the last checkpoint; owned by the task that calls ``append``.
        self._ahead = job
        # Whoever interrupts a job may come while a checkpoint runs in its thread; the last one waits for it.
        self._checkpointing = threading.Lock()

    @classmethod
    def open(cls, path: Path, wanted: Job, at: Callable[[str], None] = lambda step: None) -> Output:
        """Begin the job, or go on with the one that is there; ``Conflict`` where that is another one.

        ``at`` is told each durable step, for tests that end the process there.
        """
        job_path = job_path_of(path)
        try:
            if job_path.exists():
                job = _same_job(job_path, wanted)
            else:
                if path.exists():
                    raise Conflict(
                        f"{path} is there, and no {job_path.name} beside it",
                        hint="choose another --out, or remove it",
                    )
                # The job has its id for good before anything is signed under it. A crash after this line leaves a
                # job file and no output: a job of which nothing is done.
                job = wanted
                _store(job_path, job)
                at("job begun")
            if job.out_len and not path.exists():
                raise Conflict(f"{path} is gone, though {job_path.name} says {job.next_index} items are done")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                cls._take_over(path, descriptor, job)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise BadRequest(f"{path}: {error.strerror}", hint="check --out") from error
        return cls(path, descriptor, job, at)

    @staticmethod
    def _take_over(path: Path, descriptor: int, job: Job) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"{path}: another process is at this job", hint="wait for it, or end it"
            ) from error
        length = os.fstat(descriptor).st_size
        if length < job.out_len:
            raise Conflict(
                f"{path} has {length} bytes, its job file says {job.out_len} were written",
                hint="restore the output, or remove both files to begin anew",
            )
        # What lies beyond was never vouched for: its items will be asked for again, under the same names.
        os.ftruncate(descriptor, job.out_len)
        os.lseek(descriptor, 0, os.SEEK_END)
        sync_directory(path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)  # releases the lock

    def append(self, answer: wire.SignedAnswer, names: tuple[str, ...]) -> None:
        """The next batch. It may be lost until ``checkpoint`` has returned."""
        if answer.first_index != self._ahead.next_index:
            # The client promises order; writing anything else would put signatures under wrong indices.
            raise ProtocolError(
                f"expected index {self._ahead.next_index}, the answer has {answer.first_index}"
            )
        block = answer.signatures if self.job.format == "binary" else _lines(answer, names)
        view = memoryview(block)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:  # what was written of the block lies beyond what is vouched for
            raise BadRequest(
                f"{self._path}: {error.strerror}",
                hint="mend that and run the same command again: it goes on here",
            ) from error
        self._ahead = replace(
            self._ahead,
            next_index=self._ahead.next_index + answer.count,
            out_len=self._ahead.out_len + len(block),
            failed=self._ahead.failed + answer.failed,
        )
        self._at("output appended")

    def checkpoint(self, *, complete: bool = False) -> None:
        """Vouch for everything that was appended."""
        with self._checkpointing:
            ahead = replace(self._ahead, complete=complete)
            if ahead == self.job:
                return
            os.fdatasync(self._descriptor)
            self._at(
                "output synced"
            )  # a crash here loses nothing that is vouched for, and vouches for nothing new
            _store(job_path_of(self._path), ahead)
            self.job = self._ahead = ahead
            self._at("job file replaced")


def job_path_of(path: Path) -> Path:
    """Where an output's job file is."""
    return path.with_name(f"{path.name}.job")


def _store(path: Path, job: Job) -> None:
    write_durably(path, json.dumps(asdict(job), indent=2, ensure_ascii=False).encode() + b"\n")


def _same_job(path: Path, wanted: Job) -> Job:
    try:
        job = Job(**json.loads(read_limited(path, MAX_JOB_FILE_LEN)))
        bytes.fromhex(job.job_id)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a job file: {error}", hint="remove it and the output to begin anew"
        ) from error
    for name in IDENTITY:
        if getattr(job, name) != getattr(wanted, name):
            raise Conflict(
                f"{path} belongs to another job: its {name} is {getattr(job, name)}, not {getattr(wanted, name)}",
                hint="choose another --out, or run the command that began it",
            )
    return job


_STATUS_NAMES: Final = {int(status): status.name.lower() for status in wire.ItemStatus}


def _lines(answer: wire.SignedAnswer, names: tuple[str, ...]) -> bytes:
    signatures = bytes(answer.signatures).hex()
    width = 2 * SIGNATURE_LEN
    lines = []
    for i, status in enumerate(bytes(answer.statuses)):
        signature = signatures[i * width : (i + 1) * width] if status == wire.ItemStatus.SIGNED else None
        line: dict[str, Any] = {
            "index": answer.first_index + i,
            "status": _STATUS_NAMES.get(status, str(status)),
        }
        if names:
            line["path"] = names[i]
        line["signature"] = signature
        lines.append(json.dumps(line, ensure_ascii=False))
    lines.append("")
    return "\n".join(lines).encode()


# The job ----------------------------------------------------------------------------------------------------


class Signing(Protocol):
    """What of the client a job needs."""

    def sign_batches(
        self,
        key: str,
        batches: AsyncIterable[wire.Items],
        *,
        job_id: bytes | None = None,
        first_index: int = 0,
        depth: int = DEFAULT_DEPTH,
        deadline_s: float | None = None,
    ) -> AsyncIterator[wire.SignedAnswer]:
        """Answers in order of index, ``depth`` batches in flight."""


async def sign_job(
    client: Signing,
    source: Source,
    output: Output,
    tally: Tally,
    tell: Callable[[int], None],
    *,
    batch_items: int,
    depth: int = DEFAULT_DEPTH,
    deadline_s: float | None = None,
    clock: Callable[[], float] = perf_counter,
) -> None:
    """From where the output ends to the end of the source. However it ends, what came in is vouched for."""
    job = output.job
    # One entry for each batch in flight, oldest first: ``depth`` and the one that waits to go out.
    in_flight: deque[tuple[float, tuple[str, ...]]] = deque()

    async def batches() -> AsyncIterator[wire.Items]:
        blocks = source.blocks(job.next_index, batch_items)
        # Reading and hashing happen in a thread, so that answers are taken meanwhile.
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            in_flight.append((clock(), block.names))
            yield wire.digests(block.digests)

    done, checked_at = job.next_index, clock()
    tally.begin(clock())
    answers = client.sign_batches(
        job.key,
        batches(),
        job_id=bytes.fromhex(job.job_id),
        first_index=job.next_index,
        depth=depth,
        deadline_s=deadline_s,
    )
    try:
        async for answer in answers:
            now = clock()
            sent_at, names = in_flight.popleft()
            output.append(answer, names)
            tally.add(now - sent_at, answer, now)
            done += answer.count
            tell(done)
            if now - checked_at >= CHECKPOINT_S:
                await asyncio.to_thread(output.checkpoint)
                checked_at = clock()
    finally:
        output.checkpoint()
        if isinstance(answers, AsyncGenerator):
            await answers.aclose()
    if done != source.count:
        raise ProtocolError(f"{done} items were answered, {source.count} were asked for")
    output.checkpoint(complete=True)


class Tally:
    """Counts and latencies of one run, in constant memory."""

    STEPS: Final = 100
    """Buckets for each factor of e: percentiles are right to one percent."""

    def __init__(self, first_index: int) -> None:
        self.first_index = first_index
        self.items = 0
        self.failed = 0
        self.failed_indices: list[int] = []
        self.elapsed_s = 0.0
        self._began_at = 0.0
        self._batches = 0
        self._buckets: dict[int, int] = {}

    MAX_FAILED_INDICES: Final = 10
    """Enough for a person to look at; the output has them all."""

    def begin(self, now: float) -> None:
        """The first request is about to go out."""
        self._began_at = now

    def add(self, latency_s: float, answer: wire.SignedAnswer, now: float) -> None:
        """A batch came back."""
        self.items += answer.count
        self.elapsed_s = now - self._began_at
        self._batches += 1
        bucket = math.floor(math.log(max(latency_s, 1e-9)) * self.STEPS)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        if answer.failed:
            self.failed += answer.failed
            for i, status in enumerate(bytes(answer.statuses)):
                if status != wire.ItemStatus.SIGNED and len(self.failed_indices) < self.MAX_FAILED_INDICES:
                    self.failed_indices.append(answer.first_index + i)

    @property
    def per_second(self) -> float:
        """Items a second of this run."""
        return self.items / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def latency_ms(self, share: float) -> float | None:
        """That percentile of the batches, from hand-over to answer; None if there were none."""
        wanted = share * self._batches
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return round(math.exp((bucket + 0.5) / self.STEPS) * 1e3, 3)
        return None


def _summary(out: Path, job: Job, key: PublicKey, tally: Tally, args: argparse.Namespace) -> Answer:
    latencies = {f"p{share}": tally.latency_ms(share / 100) for share in (50, 95, 99)}
    document: dict[str, Any] = {
        "job_id": job.job_id,
        "key": job.key,
        "algorithm": key.algorithm.label,
        "out": str(out),
        "items": job.next_index,
        "failed": job.failed,
        "first_failed": tally.failed_indices,
        "resumed_at": tally.first_index,
        "items_this_run": tally.items,
        "elapsed_s": round(tally.elapsed_s, 3),
        "per_second": round(tally.per_second, 1),
        "batch_items": args.batch,
        "in_flight": args.in_flight,
        "batch_latency_ms": latencies,
    }
    rows = [
        ["job", job.job_id],
        ["key", f"{job.key} ({key.algorithm.label})"],
        ["items", f"{job.next_index:,}" + (f", {tally.items:,} in this run" if tally.first_index else "")],
        ["failed", f"{job.failed:,}"],
    ]
    if tally.failed_indices:
        rows.append(["first failed", ", ".join(map(str, tally.failed_indices))])
    if tally.items:
        rows.append(["throughput", f"{tally.per_second:,.0f} signatures/s in {tally.elapsed_s:.2f} s"])
        shown = ", ".join(f"{name} {value:.3g}" for name, value in latencies.items())
        rows.append(["latency", f"{shown} ms, batches of {args.batch}, {args.in_flight} in flight"])
    rows.append(["output", str(out)])
    return Answer(document, [fields("batch job", rows)], exit_code=1 if job.failed else 0)
