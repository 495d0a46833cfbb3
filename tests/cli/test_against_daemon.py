"""The commands against a real daemon with a real token."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.algorithms import signature_to_der
from appliance.cli.stream import SyntheticSource, job_path_of

ALGORITHM = "ecdsa-p256-sha256"
_numbers = itertools.count()


def fresh(prefix: str) -> str:
    """A name nobody has used: the daemon is shared."""
    return f"{prefix}-{next(_numbers)}"


@pytest.fixture
def message(tmp_path: Path) -> Path:
    path = tmp_path / "合同.txt"
    path.write_text("甲方、乙方\n")
    return path


@pytest.fixture
def public_key(cli: Any, tmp_path: Path) -> Path:
    path = tmp_path / "k.pem"
    path.write_text(cli("key", "show", "k", "--pem", as_json=False).out)
    return path


# Keys -------------------------------------------------------------------------------------------------------


def test_a_key_from_its_making_to_its_disabling(cli: Any) -> None:
    name = fresh("key")
    made = cli("key", "create", name, "--algorithm", ALGORITHM)
    assert made.exit_code == 0
    assert made.document["state"] == "usable"
    assert cli("key", "show", name).document == made.document
    assert made.document in cli("key", "list").document["keys"]
    assert cli("key", "create", name, "--algorithm", ALGORITHM).exit_code == 7
    assert cli("key", "disable", name).document["state"] == "disabled"
    assert cli("status", name).document["keys"][0]["state"] == "disabled"
    assert cli("key", "enable", name).document["state"] == "usable"


def test_a_disabled_key_does_not_sign(cli: Any, message: Path) -> None:
    name = fresh("key")
    cli("key", "create", name, "--algorithm", ALGORITHM)
    cli("key", "disable", name)
    refused = cli("sign", message, "--key", name)
    assert (refused.exit_code, refused.error["error"]) == (7, "conflict")
    assert refused.error["hint"]
    assert not Path(f"{message}.sig").exists()


def test_unknown_names_are_not_found(cli: Any, message: Path, tmp_path: Path) -> None:
    for words in (
        ("key", "show", "nobody"),
        ("key", "disable", "nobody"),
        ("account", "disable", "nobody"),
        ("account", "grant", "nobody", "k"),
        ("sign", message, "--key", "nobody"),
        ("stream", "--key", "nobody", "--synthetic", 1, "--out", tmp_path / "out"),
    ):
        result = cli(*words)
        assert (result.exit_code, result.error["error"]) == (6, "not_found"), words
    assert cli("status", "nobody").document["keys"][0]["state"] == "unknown"


@pytest.mark.parametrize("name", ["a/b", "..", "钥匙", "k?x=1", "%2e%2e", "a b"])
def test_names_travel_as_they_are(cli: Any, name: str) -> None:
    result = cli("key", "show", name)
    assert result.exit_code == 6
    assert repr(name) in result.error["detail"]


# Accounts ---------------------------------------------------------------------------------------------------


def test_an_account_with_a_password_signs_what_it_was_granted(
    cli: Any, message: Path, tmp_path: Path
) -> None:
    name = fresh("approval")
    secret = tmp_path / "password"
    secret.touch(0o600)
    secret.write_text("correct horse battery\n")
    made = cli("account", "create", name, "--password-file", secret)
    assert made.exit_code == 0
    assert (made.document["password"], made.document["grants"]) == (True, [])
    as_account = ("--account", name, "--password-file", secret)
    assert cli("sign", message, "--key", "k", *as_account).exit_code == 6
    assert cli("account", "grant", name, "k").document["grants"] == ["k"]
    assert cli("sign", message, "--key", "k", *as_account).exit_code == 0
    secret.write_text("wrong horse battery\n")
    assert cli("status", "k", *as_account).exit_code == 4
    assert cli("account", "password", name, "--password-file", secret).exit_code == 0
    assert cli("status", "k", *as_account).exit_code == 0
    assert cli("account", "revoke", name, "k").document["grants"] == []
    assert cli("account", "disable", name).document["disabled"] is True
    assert cli("status", "k", *as_account).exit_code in (4, 5)
    assert cli("account", "enable", name).document["disabled"] is False
    assert name in [account["name"] for account in cli("account", "list").document["accounts"]]
    assert "password" in cli("account", "list", as_json=False).out


def test_a_password_everybody_can_read_is_refused(cli: Any, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o644)
    refused = cli("account", "create", fresh("a"), "--password-file", secret)
    assert (refused.exit_code, refused.error["hint"]) == (2, f"chmod 600 {secret}")


def test_an_account_without_any_proof_asks_for_a_password(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--password-file" in cli("account", "create", fresh("a")).error["hint"]
    answers = iter(["eight bytes", "eight bytes", "eight bytes", "others"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda prompt, stream=None: next(answers))
    assert cli("account", "create", fresh("a")).exit_code == 0
    assert "differ" in cli("account", "create", fresh("a")).error["detail"]


# Sign and verify --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["der", "raw"])
def test_signatures_of_files_verify_here_and_elsewhere(
    cli: Any, message: Path, public_key: Path, form: str
) -> None:
    other = message.with_name("other")
    other.write_bytes(b"\0" * 3_000_000)
    signed = cli("sign", message, other, "--key", "k", "--form", form)
    assert signed.exit_code == 0
    assert [one["status"] for one in signed.document["files"]] == ["signed", "signed"]
    for under in (("--key", "k"), ("--public-key", public_key)):
        assert cli("verify", message, other, *under).exit_code == 0
    if form == "der":
        for path in (message, other):
            openssl = ("openssl", "dgst", "-sha256", "-verify", public_key, "-signature", f"{path}.sig", path)
            subprocess.run(openssl, check=True, capture_output=True)
    message.write_text("甲方、乙方、丙方\n")
    verdict = cli("verify", message, other, "--key", "k")
    assert verdict.exit_code == 1
    assert [one["valid"] for one in verdict.document["files"]] == [False, True]
    assert "INVALID" in cli("verify", message, "--key", "k", as_json=False).out


def test_a_signature_is_not_replaced_unless_told(cli: Any, message: Path, tmp_path: Path) -> None:
    target = Path(f"{message}.sig")
    target.write_bytes(b"precious")
    assert cli("sign", message, "--key", "k").exit_code == 7
    assert target.read_bytes() == b"precious"
    assert cli("sign", message, "--key", "k", "--out-dir", tmp_path / "elsewhere").exit_code == 2
    (tmp_path / "elsewhere").mkdir()
    assert cli("sign", message, "--key", "k", "--out-dir", tmp_path / "elsewhere").exit_code == 0
    assert cli("sign", message, "--key", "k", "--force").exit_code == 0
    assert cli("verify", message, "--key", "k", "--signature", target).exit_code == 0
    assert cli("sign", message, message, "--key", "k", "--force").exit_code == 2


def test_what_cannot_be_verified_is_not_called_invalid(cli: Any, message: Path, tmp_path: Path) -> None:
    assert cli("verify", message, "--key", "k").exit_code == 2  # no signature file
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk")
    assert cli("verify", message, "--signature", junk, "--key", "k").exit_code == 2
    good = tmp_path / "zeros"
    good.write_bytes(bytes(64))
    assert cli("verify", message, "--signature", good, "--public-key", junk).exit_code == 2
    assert cli("verify", message, "--signature", good, "--certificate", junk).exit_code == 2
    assert cli("verify", message, "--signature", good, "--key", "k").exit_code == 1


def test_a_missing_file_is_named(cli: Any, tmp_path: Path) -> None:
    result = cli("sign", tmp_path / "nothing", "--key", "k")
    assert result.exit_code == 2
    assert "nothing: No such file" in result.error["detail"]


def test_the_appliance_tells_how_it_is(cli: Any) -> None:
    document = cli("status").document
    assert document["appliance"]["state"] == "ready"
    assert document["fronts"] == {"configured": 1, "known": [document["appliance"]]}
    assert "k" in [key["name"] for key in document["keys"]]
    text = cli("status", as_json=False).out
    assert "softhsm2\tup\t2/2" in text


def test_nobody_there_is_told_at_once(cli: Any, tmp_path: Path) -> None:
    absent = tmp_path / "absent.sock"
    for words in (("status", "--address", f"unix:{absent}"), ("key", "list", "--officer-socket", absent)):
        result = cli(*words)
        assert (result.exit_code, result.error["error"]) == (8, "unavailable")
        assert "cloud-seald" in result.error["hint"]


def test_a_short_bench_measures_each_way(cli: Any) -> None:
    results = cli("bench", "--key", "k", "--seconds", "0.05").document["results"]
    assert len(results) == 5
    assert all(one["per_second"] > 0 and one["p50_ms"] <= one["p99_ms"] for one in results)


# Batch jobs -------------------------------------------------------------------------------------------------


def check_all(out: Path, items: int, public_key: Path) -> None:
    """Each signature by pyca/cryptography, at its own index."""
    key = serialization.load_pem_public_key(public_key.read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    block = out.read_bytes()
    assert len(block) == 64 * items
    for i in range(items):
        key.verify(
            signature_to_der(block[64 * i : 64 * i + 64]),
            SyntheticSource.message(i),
            ec.ECDSA(hashes.SHA256()),
        )


def test_a_stream_is_signed_once_and_done(cli: Any, tmp_path: Path, public_key: Path) -> None:
    out = tmp_path / "out"
    words = ("stream", "--key", "k", "--synthetic", 1_000, "--out", out, "--format", "binary", "--batch", 64)
    first = cli(*words)
    assert first.exit_code == 0
    assert (first.document["items"], first.document["failed"], first.document["resumed_at"]) == (1_000, 0, 0)
    latencies = first.document["batch_latency_ms"]
    assert 0 < latencies["p50"] <= latencies["p95"] <= latencies["p99"]
    check_all(out, 1_000, public_key)
    before = out.read_bytes()
    again = cli(*words)
    assert (again.exit_code, again.document["items_this_run"]) == (0, 0)
    assert again.document["job_id"] == first.document["job_id"]
    assert out.read_bytes() == before


def test_a_stream_killed_in_the_middle_goes_on_and_loses_nothing(
    appliance: Any, cli: Any, tmp_path: Path, public_key: Path
) -> None:
    """SIGKILL when a tenth is told to be done, and again; then to the end."""
    out, items = tmp_path / "out", 30_000
    words = ("stream", "--key", "k", "--synthetic", str(items), "--out", str(out), "--format", "binary")
    program = Path(sys.executable).parent / "cloud-seal"
    job_ids = set()
    for tenths in (4, 2):
        process = subprocess.Popen(
            [program, *words, "--batch", "64", "--config", str(appliance.config)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        told = [line for line in itertools.islice(process.stderr, tenths + 1) if "signing" in line]
        assert told
        os.kill(process.pid, signal.SIGKILL)
        process.stderr.close()
        assert process.wait() == -signal.SIGKILL
        job_ids.add(json.loads(job_path_of(out).read_text())["job_id"])
    done = cli(*words, "--batch", "200")  # the size of a batch may change: an index is an index
    assert done.exit_code == 0
    assert done.document["items"] == items
    job_ids.add(done.document["job_id"])
    assert len(job_ids) == 1
    check_all(out, items, public_key)


def test_an_interrupted_stream_says_so_and_goes_on(
    appliance: Any, cli: Any, tmp_path: Path, public_key: Path
) -> None:
    # Long enough to be interrupted on a fast machine, whose test waits for its turn; few enough for a slow one.
    out, items, told = tmp_path / "out", 60_000, 1_500
    words = ("stream", "--key", "k", "--synthetic", str(items), "--out", str(out), "--format", "binary")
    program = Path(sys.executable).parent / "cloud-seal"
    process = subprocess.Popen(
        [program, *words, "--config", str(appliance.config)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "signing" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    # What came in before the interrupt is vouched for.
    assert json.loads(job_path_of(out).read_text())["next_index"] >= told
    done = cli(*words)
    assert (done.exit_code, done.document["items"]) == (0, items)
    assert done.document["resumed_at"] >= told
    check_all(out, items, public_key)


def test_a_stream_of_paths_names_them(cli: Any, tmp_path: Path, message: Path) -> None:
    listing = tmp_path / "list"
    listing.write_text(f"{message}\n" * 3)
    out = tmp_path / "out"
    assert cli("stream", "--key", "k", "--paths", listing, "--out", out).exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["index"], line["status"], line["path"]) for line in lines] == [
        (i, "signed", str(message)) for i in range(3)
    ]
    signature = tmp_path / "sig"
    signature.write_bytes(bytes.fromhex(lines[2]["signature"]))
    assert cli("verify", message, "--signature", signature, "--key", "k").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--synthetic", 0),
        ("--synthetic", 5, "--batch", 0),
        ("--synthetic", 5, "--batch", 65_537),
        ("--synthetic", 5, "--in-flight", 0),
        ("--synthetic", 5, "--deadline", 0),
        ("--digests", "/nonexistent"),
        ("--paths", "/dev/null"),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(cli: Any, tmp_path: Path, words: tuple[Any, ...]) -> None:
    out = tmp_path / "out"
    assert cli("stream", "--key", "k", "--out", out, *words).exit_code == 2
    assert not out.exists()
