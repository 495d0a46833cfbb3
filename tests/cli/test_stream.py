"""Batch jobs: every index once and in order, whatever interrupts them."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cli import stand_in  # tests/ is on the path: see pyproject.toml

from appliance.algorithms import Algorithm, PublicKey
from appliance.cli import stream
from appliance.cli.signing import Hasher
from appliance.errors import BadRequest, ConfigError, Conflict, ProtocolError, Unavailable

HERE = Path(__file__).parent
JOB_ID = bytes.fromhex("ab" * 16)
ITEMS = 22  # not a multiple of the batch: the last one is short
BATCH = 4


def synthetic(count: int = ITEMS) -> stream.SyntheticSource:
    return stream.SyntheticSource(count, Hasher(stand_in.KEY))


def new_job(source: stream.Source, form: str = "binary") -> stream.Job:
    return stream.Job(JOB_ID.hex(), "k", "spki", source.identity, form)


def run_job(out: Path, source: stream.Source, signer: Any, form: str = "binary") -> stream.Job:
    async def work() -> stream.Job:
        with stream.Output.open(out, new_job(source, form)) as output:
            if output.job.complete:
                return output.job
            tally = stream.Tally(output.job.next_index)
            await stream.sign_job(signer, source, output, tally, lambda done: None, batch_items=BATCH)
            return output.job

    return asyncio.run(work())


def expected_binary(count: int = ITEMS, refused: frozenset[int] = frozenset()) -> bytes:
    return b"".join(
        bytes(64)
        if i in refused
        else stand_in.stand_in_signature(
            JOB_ID, i, hashlib.sha256(stream.SyntheticSource.message(i)).digest()
        )
        for i in range(count)
    )


# Whole jobs -------------------------------------------------------------------------------------------------


def test_a_job_gives_every_signature_at_its_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = run_job(out, synthetic(), stand_in.StandIn())
    assert out.read_bytes() == expected_binary()
    assert (job.next_index, job.failed, job.complete) == (ITEMS, 0, True)
    assert json.loads(stream.job_path_of(out).read_text())["complete"] is True


def test_lines_name_index_status_and_signature(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = run_job(out, synthetic(), stand_in.StandIn(refused=frozenset({5})), "jsonl")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(ITEMS))
    assert lines[5] == {"index": 5, "status": "refused", "signature": None}
    block = expected_binary()
    assert all(
        line["signature"] == block[i * 64 : i * 64 + 64].hex() for i, line in enumerate(lines) if i != 5
    )
    assert job.failed == 1


def test_a_failed_item_is_zeros_and_its_neighbours_are_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_job(out, synthetic(), stand_in.StandIn(refused=frozenset({0, 9})))
    assert out.read_bytes() == expected_binary(refused=frozenset({0, 9}))


def test_paths_are_hashed_and_named(tmp_path: Path) -> None:
    files = []
    for i in range(6):
        path = tmp_path / f"文件 {i}"
        path.write_bytes(b"content %d" % i)
        files.append(str(path))
    listing = tmp_path / "list"
    listing.write_text("".join(f"{name}\n" for name in files))
    out = tmp_path / "out"
    run_job(out, stream.PathSource(listing, Hasher(stand_in.KEY)), stand_in.StandIn(), "jsonl")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["path"] for line in lines] == files
    for i, line in enumerate(lines):
        digest = hashlib.sha256(b"content %d" % i).digest()
        assert line["signature"] == stand_in.stand_in_signature(JOB_ID, i, digest).hex()


def test_both_kinds_of_digests_give_the_same(tmp_path: Path) -> None:
    digests = [hashlib.sha256(bytes([i])).digest() for i in range(10)]
    raw, lines = tmp_path / "raw", tmp_path / "lines"
    raw.write_bytes(b"".join(digests))
    lines.write_text("".join(f"{digest.hex()}\r\n" for digest in digests))
    run_job(tmp_path / "a", stream.RawDigestSource(raw), stand_in.StandIn())
    run_job(tmp_path / "b", stream.DigestLineSource(lines), stand_in.StandIn())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# Interruptions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", stream.FORMATS)
def test_an_error_in_mid_stream_loses_nothing_and_doubles_nothing(tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    source = synthetic()
    with pytest.raises(Unavailable):
        run_job(out, source, stand_in.StandIn(stop_after=3, error=Unavailable("gone")), form)
    again = stand_in.StandIn()
    job = run_job(out, source, again, form)
    assert again.asked[0] == (JOB_ID, 3 * BATCH, BATCH)
    assert job.complete
    run_job(tmp_path / "whole", source, stand_in.StandIn(), form)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("form", stream.FORMATS)
def test_a_cut_at_every_durable_step_then_a_second_run_is_as_if_nothing_was(
    tmp_path: Path, form: str
) -> None:
    """Kill at step 1, 2, 3 … until a run goes through; after each, what was not vouched for may be anything."""
    source = synthetic(CUT_ITEMS)
    whole = tmp_path / "whole"
    run_job(whole, source, stand_in.StandIn(refused=frozenset({7})), form)
    seen = set()
    for end_at in range(1, 100):
        out = tmp_path / f"cut-{end_at}"
        command = [
            sys.executable,
            str(HERE / "interrupted_job.py"),
            str(out),
            form,
            str(CUT_ITEMS),
            str(end_at),
        ]
        cut = subprocess.run(command, capture_output=True, check=False)
        if cut.returncode == 0:
            break
        assert cut.returncode == 77, cut.stderr.decode()
        seen.add(cut.stdout.decode().strip())
        for damage in DAMAGES:
            copy = tmp_path / f"{damage}-{end_at}"
            for path_of in (lambda path: path, stream.job_path_of):
                if path_of(out).exists():
                    shutil.copy(path_of(out), path_of(copy))
            _lose_unsynced(copy, damage)
            run_job(copy, source, stand_in.StandIn(refused=frozenset({7})), form)
            assert copy.read_bytes() == whole.read_bytes(), f"cut at step {end_at}, {damage}"
    assert seen == {"job begun", "output appended", "output synced", "job file replaced"}


CUT_ITEMS = 10
DAMAGES = ("as it is", "tail torn", "tail garbled", "tail gone")


def _lose_unsynced(out: Path, damage: str) -> None:
    """What a power cut may do to bytes that nothing vouches for."""
    vouched = json.loads(stream.job_path_of(out).read_text())["out_len"]
    if not out.exists():
        return
    length = out.stat().st_size
    with out.open("r+b") as file:
        if damage == "tail torn":
            file.truncate(vouched + (length - vouched) // 2)
        elif damage == "tail garbled":
            file.seek(vouched)
            file.write(b"\xa5" * (length - vouched + 5))
        elif damage == "tail gone":
            file.truncate(vouched)


def test_an_interrupt_in_the_middle_of_a_checkpoint_waits_for_it(tmp_path: Path) -> None:
    steps: list[str] = []
    others: list[threading.Thread] = []

    def at(step: str) -> None:
        steps.append(step)
        if step == "output synced" and not others:
            others.append(threading.Thread(target=output.checkpoint))
            others[0].start()

    source = synthetic(4)
    with stream.Output.open(tmp_path / "out", new_job(source), at) as output:
        output.append(stream.wire.SignedAnswer(JOB_ID, 0, 4, 0, bytes(4), bytes(256)), ())
        output.checkpoint()
        others[0].join()
    assert steps == ["job begun", "output appended", "output synced", "job file replaced"]


# Refusals ---------------------------------------------------------------------------------------------------


def test_another_jobs_output_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_job(out, synthetic(), stand_in.StandIn())
    before = out.read_bytes()
    with pytest.raises(Conflict, match="its source is"):
        run_job(out, synthetic(ITEMS + 1), stand_in.StandIn())
    with pytest.raises(Conflict, match="its format is"):
        run_job(out, synthetic(), stand_in.StandIn(), "jsonl")
    assert out.read_bytes() == before


def test_a_file_that_is_no_job_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"precious")
    with pytest.raises(Conflict):
        run_job(out, synthetic(), stand_in.StandIn())
    assert out.read_bytes() == b"precious"
    assert not stream.job_path_of(out).exists()


@pytest.mark.parametrize("loss", ["gone", "short"])
def test_an_output_that_lost_what_was_vouched_for_is_told(tmp_path: Path, loss: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(Unavailable):
        run_job(out, synthetic(), stand_in.StandIn(stop_after=3, error=Unavailable("gone")))
    if loss == "gone":
        out.unlink()
    else:
        os.truncate(out, 64)
    with pytest.raises(Conflict):
        run_job(out, synthetic(), stand_in.StandIn())


def test_two_processes_do_not_share_an_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Unavailable):
        run_job(out, synthetic(), stand_in.StandIn(stop_after=1, error=Unavailable("gone")))
    with out.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another process"):
            run_job(out, synthetic(), stand_in.StandIn())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"job_id": 1}', "\x00"])
def test_a_broken_job_file_is_told(tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    out.touch()
    stream.job_path_of(out).write_text(text)
    with pytest.raises(ConfigError, match="not a job file"):
        run_job(out, synthetic(), stand_in.StandIn())


def test_an_answer_out_of_order_is_never_written(tmp_path: Path) -> None:
    class Skips(stand_in.StandIn):
        async def sign_batches(self, *args: Any, **options: Any) -> Any:
            async for answer in super().sign_batches(*args, **options):
                yield answer._replace(first_index=answer.first_index + 1)

    with pytest.raises(ProtocolError, match="expected index 0"):
        run_job(tmp_path / "out", synthetic(), Skips())
    assert (tmp_path / "out").read_bytes() == b""


def test_fewer_answers_than_items_is_no_success(tmp_path: Path) -> None:
    class StopsShort(stand_in.StandIn):
        async def sign_batches(self, *args: Any, **options: Any) -> Any:
            async for answer in super().sign_batches(*args, **options):
                yield answer
                return

    with pytest.raises(ProtocolError, match="4 items were answered"):
        run_job(tmp_path / "out", synthetic(), StopsShort())
    assert json.loads(stream.job_path_of(tmp_path / "out").read_text())["complete"] is False


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"00" * 32 + b"\n\n", ":2: an empty line"),
        (b"00" * 33 + b"\n", ":1: an empty line, or one of more than"),
        (b"00" * 32 + b"\n" + b"0g" * 32 + b"\n", ":2: expected 64 hex digits"),
        (b"00" * 31 + b"0 \n", ":1: expected 64 hex digits"),
        (b"00" * 31 + b"\n", ":1: expected 64 hex digits"),
        ("\u0660".encode() * 32 + b"\n", ":1: expected 64 hex digits"),
        (b"\xff" * 64 + b"\n", "not UTF-8"),
    ],
)
def test_lines_that_are_no_digests_are_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "digests"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=complaint):
        list(stream.DigestLineSource(path).blocks(0, 4))


def test_raw_digests_have_whole_digests(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    for content in (b"", b"\0" * 31, b"\0" * 33):
        path.write_bytes(content)
        with pytest.raises(BadRequest, match="expected digests of 32 bytes"):
            stream.RawDigestSource(path)


def test_a_missing_file_stops_the_job_at_its_batch_and_mending_it_lets_it_go_on(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"f{i}").write_bytes(b"%d" % i)
    listing = tmp_path / "list"
    listing.write_text("".join(f"{tmp_path}/f{i}\n" for i in range(6)))
    (tmp_path / "f5").unlink()
    source = stream.PathSource(listing, Hasher(stand_in.KEY))
    with pytest.raises(BadRequest, match="f5: No such file"):
        run_job(tmp_path / "out", source, stand_in.StandIn())
    (tmp_path / "f5").write_bytes(b"5")
    assert run_job(tmp_path / "out", source, stand_in.StandIn()).next_index == 6


# Numbers ----------------------------------------------------------------------------------------------------


def test_percentiles_are_right_to_one_percent() -> None:
    tally = stream.Tally(0)
    tally.begin(0.0)
    answer = stream.wire.SignedAnswer(JOB_ID, 0, 4, 0, bytes(4), bytes(256))
    for i in range(1, 1001):
        tally.add(i / 1000, answer, now=i / 10)
    for share, exact_ms in ((0.5, 500), (0.95, 950), (0.99, 990)):
        assert tally.latency_ms(share) == pytest.approx(exact_ms, rel=0.011)
    assert tally.per_second == pytest.approx(40.0)


def test_no_batches_have_no_latency() -> None:
    tally = stream.Tally(3)
    assert tally.latency_ms(0.5) is None
    assert tally.per_second == 0


def test_sm2_digests_are_those_of_the_standard() -> None:
    """GB/T 32918.2 annex A has another curve; the Z and e of the recommended one: GB/T 32918.5 annex A."""
    key = PublicKey(
        Algorithm.SM2_SM3,
        bytes.fromhex(
            "09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020"
            "CCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13"
        ),
    )
    e = "F0B43E94BA45ACCAACE692ED534382EB17E6AB5A19CE7B31F4486FDFC0D28640"
    assert Hasher(key).digest(b"message digest").hex().upper() == e
