"""The main job, end to end: sign, verify, status and ping, over the Unix socket and over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from appliance_fixture import (
    PASSWORD,
    PIN,
    Appliance,
    Authority,
    Bench,
    Wire,
    children_of,
    digests,
    free_port,
    public_key,
    run,
    verifies,
)
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance import wire
from appliance.algorithms import Algorithm, PublicKey, signature_from_der, signature_to_der
from appliance.client import Client, SyncClient
from appliance.errors import BadRequest, Conflict, Denied, NotAuthenticated, NotFound, Unavailable
from appliance.verifying import Verifier

STREAM_ITEMS = 10_000
OPENSSL_SAMPLE = 20
TIMER_S = 0.01  # a loop counts in milliseconds, and from when it last looked


@pytest.fixture(scope="module")
def appliance(shared_bench: Bench, authority: Authority) -> Appliance:
    made = shared_bench.appliance(listen=authority.listen).start()
    made.key("seal")
    made.key("other")
    made.account("app", "seal")
    made.account("everything", "*")
    return made


@pytest.fixture(scope="module")
def seal(appliance: Appliance) -> EllipticCurvePublicKey:
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        return public_key(client.status(["seal"])[0].spki)


def pem(key: EllipticCurvePublicKey, path: Path) -> Path:
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


# Signing ----------------------------------------------------------------------------------------------------


def test_stream_of_10_000_is_each_exactly_once_in_order_and_valid(
    appliance: Appliance, seal: EllipticCurvePublicKey, tmp_path: Path
) -> None:
    messages = [f"document {i}".encode() for i in range(STREAM_ITEMS)]

    async def stream() -> list[tuple[int, bytes]]:
        async with await appliance.client() as client:
            return [
                (receipt.index, receipt.signature)
                async for receipt in client.sign_stream(
                    "seal", (hashlib.sha256(message).digest() for message in messages), first_index=5
                )
            ]

    receipts = run(stream())
    assert [index for index, _ in receipts] == list(range(5, STREAM_ITEMS + 5))
    assert len({signature for _, signature in receipts}) == STREAM_ITEMS
    for message, (_, signature) in zip(messages, receipts, strict=True):
        assert verifies(seal, hashlib.sha256(message).digest(), signature)

    key_file = pem(seal, tmp_path / "seal.pem")
    for index in random.Random(1).sample(range(STREAM_ITEMS), OPENSSL_SAMPLE):
        (tmp_path / "message").write_bytes(messages[index])
        (tmp_path / "signature").write_bytes(signature_to_der(receipts[index][1]))
        command = ["openssl", "dgst", "-sha256", "-verify", key_file, "-signature", "signature", "message"]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True).stdout
        assert said == "Verified OK\n"


@pytest.mark.parametrize("count", [1, 16, 17, 257, 65_536])
def test_batch_of_digests(appliance: Appliance, seal: EllipticCurvePublicKey, count: int) -> None:
    block = digests(count)
    with SyncClient(appliance.address, account="app", password=PASSWORD, deadline_s=120) as client:
        answer = client.sign_batch("seal", wire.digests(block), first_index=7)
        assert (answer.count, answer.failed, answer.first_index) == (count, 0, 7)
        signatures = bytes(answer.signatures)
        # Others' code looks at a sample of the largest; our own verifier, tested against others elsewhere, at all.
        for at in range(0, count, 1 + count // 200):
            assert verifies(seal, block[32 * at : 32 * at + 32], signatures[64 * at : 64 * at + 64])
        key = PublicKey.from_spki(client.status(["seal"])[0].spki)
        assert Verifier().verify(key, block, signatures) == b"\1" * count


def test_messages_are_hashed_by_the_server(appliance: Appliance, seal: EllipticCurvePublicKey) -> None:
    # An empty message, a short one, one hashed in a thread (more than 16 KiB), many.
    for messages in ([b""], [b"a", b"", b"bc"], [os.urandom(100_000)], [os.urandom(i) for i in range(300)]):
        with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
            answer = client.sign_batch("seal", wire.messages(messages))
        for at, message in enumerate(messages):
            signature = bytes(answer.signatures)[64 * at : 64 * at + 64]
            assert verifies(seal, hashlib.sha256(message).digest(), signature)


def test_single_calls_of_one_turn_travel_as_one_batch(
    appliance: Appliance, seal: EllipticCurvePublicKey
) -> None:
    before = appliance.metric("cloudseal_requests_total", type="sign", outcome="ok")

    async def many() -> list[bytes]:
        async with await appliance.client() as client:
            block = digests(64)
            return await asyncio.gather(
                *(client.sign("seal", block[32 * i : 32 * i + 32]) for i in range(64))
            )

    signatures = run(many())
    for at, signature in enumerate(signatures):
        assert verifies(seal, digests(64)[32 * at : 32 * at + 32], signature)
    assert appliance.metric("cloudseal_requests_total", type="sign", outcome="ok") - before == 1


def test_requests_of_many_connections_at_once(appliance: Appliance, seal: EllipticCurvePublicKey) -> None:
    async def one(number: int) -> None:
        digest = hashlib.sha256(str(number).encode()).digest()
        async with await appliance.client(batch_singles=False) as client:
            for signature in await asyncio.gather(*(client.sign("seal", digest) for _ in range(20))):
                assert verifies(seal, digest, signature)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(20)))

    run(all_of_them())


def test_an_asynchronous_source_is_read_as_it_is_consumed(appliance: Appliance) -> None:
    taken = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:  # endless: a client that read ahead without bound would never return
            taken += 1
            yield bytes(32)

    async def first_receipts() -> int:
        async with await appliance.client() as client:
            stream = client.sign_stream("seal", source(), batch_items=10, depth=2)
            for _ in range(35):
                await anext(stream)
            await stream.aclose()
            return taken

    assert run(first_receipts()) <= 35 + 10 * 4


# Verifying --------------------------------------------------------------------------------------------------


def test_verify_by_name_by_public_key_and_by_certificate(
    appliance: Appliance, authority: Authority, tmp_path: Path
) -> None:
    authority.issue("signer")
    der = subprocess.run(
        ["openssl", "x509", "-in", authority.root / "signer.pem", "-outform", "DER"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    (tmp_path / "message").write_bytes(b"a message")
    signature = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", authority.root / "signer.key", tmp_path / "message"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    raw = signature_from_der(signature)
    items = wire.messages([b"a message", b"another message"])
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        assert client.verify(der, items, raw + raw) == b"\1\0"
        assert client.verify(PublicKey.from_certificate(der), items, raw + raw) == b"\1\0"
        block = digests(3)
        made = bytes(client.sign_batch("seal", wire.digests(block)).signatures)
        wrong = made[:64] + made[128:] + made[64:128]  # the second and the third are swapped
        assert client.verify("seal", wire.digests(block), made) == b"\1\1\1"
        assert client.verify("seal", wire.digests(block), wrong) == b"\1\0\0"


def test_verify_sm2_made_by_openssl(appliance: Appliance, tmp_path: Path) -> None:
    def openssl(*arguments: str) -> bytes:
        return subprocess.run(
            ["openssl", *arguments], cwd=tmp_path, capture_output=True, check=True
        ).stdout  # fmt: skip

    openssl("genpkey", "-algorithm", "SM2", "-out", "sm2.key")
    spki = openssl("pkey", "-in", "sm2.key", "-pubout", "-outform", "DER")
    key = PublicKey.from_spki(spki)
    assert key.algorithm is Algorithm.SM2_SM3
    messages = [b"", "云章".encode(), os.urandom(70_000)]
    signatures = []
    for message in messages:
        (tmp_path / "message").write_bytes(message)
        der = openssl(
            "dgst", "-sm3", "-sign", "sm2.key", "-sigopt", "distid:1234567812345678", "message"
        )  # fmt: skip
        signatures.append(signature_from_der(der))
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        items = wire.messages([*messages, b"not signed"])
        assert client.verify(key, items, b"".join(signatures) + signatures[0]) == b"\1\1\1\0"


def test_verify_65_536_at_once(appliance: Appliance) -> None:
    with SyncClient(appliance.address, account="app", password=PASSWORD, deadline_s=120) as client:
        signature = client.sign("seal", digests(1))
        count = wire.MAX_ITEMS
        block = digests(1) * (count - 1) + bytes(32)
        assert client.verify("seal", wire.digests(block), signature * count) == b"\1" * (count - 1) + b"\0"


@pytest.mark.parametrize(
    "key", [b"", b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x30\x82\x04\x00" * 256, b"\xff" * 600]
)
def test_verify_with_a_certificate_that_is_none(appliance: Appliance, key: bytes) -> None:
    with (
        SyncClient(appliance.address, account="app", password=PASSWORD) as client,
        pytest.raises((BadRequest, wire.ProtocolError)),
    ):
        client.verify(key, wire.digests(digests(1)), bytes(64), deadline_s=5)


def test_verify_answers_whatever_the_certificate_is(appliance: Appliance, authority: Authority) -> None:
    """Mutated certificates: each request is answered, none is lost with an exception nobody sees."""
    der = ssl.PEM_cert_to_DER_cert((authority.root / "server.pem").read_text())
    chance = random.Random(7)
    nested = b"".join(
        b"\x30\x82" + length.to_bytes(2, "big") for length in range(20_000, 0, -4)
    )  # 5,000 sequences, one in the other
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        for at in range(400):
            mutated = bytearray(nested[: 20_000 - at]) if at % 100 == 99 else bytearray(der)
            for _ in range(chance.randrange(1, 4)):
                mutated[chance.randrange(len(mutated))] = chance.randrange(256)
            with contextlib.suppress(BadRequest):
                client.verify(bytes(mutated), wire.digests(digests(1)), bytes(64), deadline_s=5)


# Status and ping --------------------------------------------------------------------------------------------


def test_status_and_ping(appliance: Appliance) -> None:
    with SyncClient(appliance.address, account="everything", password=PASSWORD) as client:
        assert client.ping() < 5
        records = {record.name: record for record in client.status()}
        assert set(records) >= {"seal", "other"}
        assert records["seal"].state is wire.KeyState.USABLE
        document = client.appliance_status()
        assert document["state"] == "ready"
        assert len(document["tokens"][0]["workers"]) == 2


# Who may do what --------------------------------------------------------------------------------------------


def test_an_account_sees_only_its_keys(appliance: Appliance) -> None:
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        assert [record.name for record in client.status()] == ["seal"]
        unknown, other = client.status(["no such key", "other"])
        assert unknown._replace(name="") == other._replace(name="")
        assert other.state is wire.KeyState.UNKNOWN and not other.spki
        with pytest.raises(NotFound) as not_granted:
            client.sign("other", bytes(32))
        with pytest.raises(NotFound) as not_there:
            client.sign("never", bytes(32))
        assert not_granted.value.detail.replace("other", "never") == not_there.value.detail
        with pytest.raises(NotFound):
            client.verify("other", wire.digests(bytes(32)), bytes(64))


def test_what_officers_do_holds_on_open_connections(appliance: Appliance) -> None:
    appliance.key("moving")
    appliance.account("mover")

    async def story() -> None:
        async with await appliance.client("mover", retries=False) as client:
            with pytest.raises(NotFound):
                await client.sign("moving", bytes(32))
            appliance.ordered("POST", "/v1/accounts/mover/grants", {"key": "moving"})
            await client.sign("moving", bytes(32))
            appliance.ordered("POST", "/v1/keys/moving/disable")
            with pytest.raises(Conflict):
                await client.sign("moving", bytes(32))
            assert (await client.status(["moving"]))[0].state is wire.KeyState.DISABLED
            appliance.ordered("POST", "/v1/keys/moving/enable")
            await client.sign("moving", bytes(32))
            appliance.ordered("DELETE", "/v1/accounts/mover/grants/moving")
            with pytest.raises(NotFound):
                await client.sign("moving", bytes(32))
            appliance.ordered("POST", "/v1/accounts/mover/grants", {"key": "*"})
            await client.sign("moving", bytes(32))
            appliance.ordered("POST", "/v1/accounts/mover/disable")
            for call in (
                client.sign("moving", bytes(32)),
                client.status(),
                client.verify("moving", wire.digests(bytes(32)), bytes(64)),
            ):
                with pytest.raises(Denied):
                    await call
            with pytest.raises(NotAuthenticated):
                await appliance.client("mover")
            appliance.ordered("POST", "/v1/accounts/mover/enable")
            await client.sign("moving", bytes(32))

    run(story())


def test_wrong_passwords_are_slowed_and_counted(shared_bench: Bench) -> None:
    slow = shared_bench.appliance(auth={"failure_delay_s": 0.2, "max_failure_delay_s": 0.8}).start()
    slow.account("app")
    took = []

    async def attempt(account: str, password: str) -> None:
        began_at = time.monotonic()
        with pytest.raises(NotAuthenticated) as refused:
            await slow.client(account, password)
        assert refused.value.detail == "no such account, or the proof does not fit"
        took.append(time.monotonic() - began_at + TIMER_S)

    async def story() -> None:
        for number in range(4):
            await attempt("app", f"wrong password {number}")
        for _ in range(2):
            await attempt("nobody", "wrong password")
        async with await slow.client() as client:  # a good one waits its turn, and is not locked out
            await client.ping()

    run(story())
    assert took[1] >= 0.2 and took[2] >= 0.4 and took[3] >= 0.8
    assert took[5] >= 0.2, "an account that does not exist is slowed too"
    assert slow.metric("cloudseal_authentication_failures_total") == 6
    slow.stop()


def test_many_wrong_attempts_do_not_lock_an_account_out(shared_bench: Bench) -> None:
    """A stranger with many connections takes turns ahead of the owner: that must stay bounded."""
    slow = shared_bench.appliance(auth={"failure_delay_s": 0.5, "max_failure_delay_s": 1.0}).start()
    slow.account("app")
    crowd = []
    for _ in range(60):
        stranger = slow.wire(None)
        stranger.send(wire.encode_hello(wire.Hello(1, 1, "app", "not the password")))
        crowd.append(stranger)
    crowd[0].receive_error()  # the first failure is noted; the others wait for their turns

    async def owner() -> None:
        async with await slow.client(deadline_s=20) as client:
            await client.ping()

    run(owner())
    for stranger in crowd:
        stranger.sock.close()
    slow.stop()


# TLS --------------------------------------------------------------------------------------------------------


def test_tls_with_a_password(
    appliance: Appliance, authority: Authority, seal: EllipticCurvePublicKey
) -> None:
    async def story() -> None:
        async with await Client.connect(
            f"127.0.0.1:{appliance.tcp_port}", account="app", password=PASSWORD, tls=authority.context()
        ) as client:
            assert verifies(seal, digests(1), await client.sign("seal", digests(1)))
            answer = await client.sign_batch("seal", wire.digests(digests(20_000)), deadline_s=60)
            assert not answer.failed

    run(story())


def test_tls_with_a_pinned_certificate(appliance: Appliance, authority: Authority) -> None:
    for name in ("pinned", "unpinned"):
        authority.issue(name)
    appliance.account(
        "by-certificate", "seal", password=None, certificate_sha256=authority.fingerprint("pinned")
    )
    appliance.account("by-both", "seal", certificate_sha256=authority.fingerprint("pinned"))
    address = f"127.0.0.1:{appliance.tcp_port}"

    async def attempt(account: str, certificate: str | None, password: str = "") -> None:
        tls = authority.context(certificate)
        async with await Client.connect(address, account=account, password=password, tls=tls) as client:
            await client.sign("seal", bytes(32))

    run(attempt("by-certificate", "pinned"))
    run(attempt("by-both", "pinned", PASSWORD))
    for account, certificate, password in (
        ("by-certificate", None, ""),
        ("by-certificate", "unpinned", ""),
        ("by-both", "pinned", "wrong password"),
        ("by-both", "unpinned", PASSWORD),
        ("by-both", None, PASSWORD),
    ):
        with pytest.raises(NotAuthenticated):
            run(attempt(account, certificate, password))

    async def without_tls() -> None:
        await appliance.client("by-certificate", "")

    with pytest.raises(NotAuthenticated):
        run(without_tls())


def test_a_certificate_that_the_appliance_does_not_accept_is_told_at_once(
    appliance: Appliance, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    tls = authority.context()
    tls.load_cert_chain(stranger.issue("foreign"), stranger.root / "foreign.key")

    async def attempt(address: str) -> None:
        # The deadline is the test's: nothing waits for it.
        await Client.connect(address, account="app", password=PASSWORD, tls=tls, deadline_s=600)

    with pytest.raises(NotAuthenticated, match="after the TLS handshake"):
        run(attempt(f"127.0.0.1:{appliance.tcp_port}"))


def test_a_certificate_that_a_server_refuses_by_an_alert(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL's own server says what the appliance's cannot; so may whatever stands before an appliance."""
    stranger = Authority(tmp_path / "stranger")
    foreign = authority.context()
    foreign.load_cert_chain(stranger.issue("foreign"), stranger.root / "foreign.key")
    port = free_port()
    server = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-tls1_3", "-Verify", "1", "-verify_return_error",
         "-cert", authority.root / "server.pem", "-key", authority.root / "server.key",
         "-CAfile", authority.root / "ca.pem"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    async def attempt(tls: ssl.SSLContext) -> None:
        await Client.connect(f"127.0.0.1:{port}", account="app", tls=tls, deadline_s=600)

    try:
        for tls, alert in ((foreign, "unknown_ca"), (authority.context(), "certificate_required")):
            with pytest.raises(NotAuthenticated, match=f"TLS alert {alert}"):
                run(attempt(tls))
    finally:
        server.kill()
        server.communicate()


def test_tls_below_1_3_and_plain_text_are_refused(appliance: Appliance, authority: Authority) -> None:
    def connect(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{appliance.tcp_port}", "-CAfile",
             str(authority.root / "ca.pem"), *options],
            input="", capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    good = connect("-tls1_3")
    assert good.returncode == 0 and "TLSv1.3" in good.stdout and "Verify return code: 0 (ok)" in good.stdout
    for version in ("-tls1_2", "-tls1_1"):
        refused = connect(version)
        assert refused.returncode != 0 and "Cipher is (NONE)" in refused.stdout

    with socket.create_connection(("127.0.0.1", appliance.tcp_port), timeout=30) as sock:
        plain = Wire(sock)
        plain.send(wire.encode_hello(wire.Hello(1, 1, "app", PASSWORD)))
        answer = sock.recv(4_096)
        assert b"cloud-seal" not in answer and len(answer) < 32, "at most a TLS alert"


def test_a_server_that_our_ca_did_not_certify_is_not_talked_to(appliance: Appliance) -> None:
    async def attempt() -> None:
        await Client.connect(
            f"127.0.0.1:{appliance.tcp_port}", account="app", password=PASSWORD, deadline_s=10
        )

    with pytest.raises(BadRequest, match="certificate verify failed"):
        run(attempt())


def test_unix_socket_by_uid(appliance: Appliance) -> None:
    appliance.account("by-uid", "seal", password=None, uid=os.geteuid())
    appliance.account("by-other-uid", "seal", uid=os.geteuid() + 1)

    async def attempt(account: str, password: str) -> None:
        async with await appliance.client(account, password) as client:
            await client.sign("seal", bytes(32))

    run(attempt("by-uid", ""))
    with pytest.raises(NotAuthenticated):
        run(attempt("by-other-uid", PASSWORD))


# Secrets ----------------------------------------------------------------------------------------------------


def test_secrets_appear_nowhere(appliance: Appliance) -> None:
    pids = [appliance.pid, *children_of(appliance.pid)]
    assert len(pids) == 3
    for pid in pids:
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{pid}/{name}").read_bytes()
            assert PIN.encode() not in shown and PASSWORD.encode() not in shown
    page = appliance.http("/metrics").body.decode().replace('type="seal"', "")  # the request, not the key
    for word in (PIN, PASSWORD, "seal}", '"app"', '"seal"'):
        assert word not in page
    assert PIN not in appliance.log and PASSWORD not in appliance.log
    everything = b"".join(
        appliance.officer("GET", path).body for path in ("/v1/keys", "/v1/accounts", "/v1/status")
    )
    assert PASSWORD.encode() not in everything and b"argon2" not in everything


# The client itself ------------------------------------------------------------------------------------------


def test_client_after_close(appliance: Appliance) -> None:
    async def story() -> None:
        client = await appliance.client()
        await client.close()
        for call in (client.sign("seal", bytes(32)), client.ping(), client.status()):
            with pytest.raises(Unavailable, match="closed"):
                await asyncio.wait_for(call, 5)

    run(story())


def test_closing_the_client_ends_every_call(appliance: Appliance) -> None:
    async def story() -> None:
        client = await appliance.client()
        calls = [asyncio.ensure_future(client.sign("seal", bytes(32))) for _ in range(3)]
        calls.append(asyncio.ensure_future(client.sign_batch("seal", wire.digests(digests(20_000)))))
        calls += [
            asyncio.ensure_future(client.sign_batch("seal", wire.digests(digests(60_000)))) for _ in range(4)
        ]  # more than the window: some of them wait for it
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await client.close()
        done, pending = await asyncio.wait(calls, timeout=5)
        assert not pending, "calls that never end"
        assert all(isinstance(one.exception(), Unavailable) for one in done)

    run(story())


def test_client_that_was_cut_off_says_why(appliance: Appliance) -> None:
    """An account whose password changes while it is connected learns it when it reconnects, and every call says so."""
    appliance.account("changing")

    async def story() -> None:
        async with await appliance.client("changing") as client:
            await client.ping()
            appliance.ordered("POST", "/v1/accounts/changing/password", {"password": "quite another one"})
            assert client._link is not None
            client._link.close()
            for _ in range(3):
                with pytest.raises(NotAuthenticated):
                    await client.ping(deadline_s=10)

    run(story())


def test_client_without_retries_learns_at_once_that_nobody_listens(tmp_path: Path) -> None:
    async def attempt() -> None:
        await Client.connect(f"unix:{tmp_path}/none", account="app", retries=False, deadline_s=60)

    async def bounded() -> None:
        with pytest.raises(Unavailable, match="cannot connect"):
            await asyncio.wait_for(attempt(), 10)

    run(bounded())
