"""Foreign clients: OpenSC's pkcs11-tool, SoftHSM's utility, python-pkcs11."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON_PKCS11 = """
import sys
import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

def vendor(number, name):
    member = int.__new__(Mechanism, number)
    member._name_, member._value_ = name, number
    Mechanism._value2member_map_[number] = Mechanism._member_map_[name] = member
    return member

SM2, SM3_SM2 = vendor(0x80008000, "SM2"), vendor(0x80008100, "SM3_SM2")
token = pkcs11.lib(sys.argv[1]).get_token(token_label="test")
with token.open(rw=True, user_pin="1234") as session:
    curve = {Attribute.EC_PARAMS: bytes.fromhex("06082a811ccf5501822d")}
    parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
    public, private = parameters.generate_keypair(store=True, label="seal", id=b"7")
    signature = private.sign(bytes(32), mechanism=SM2)
    assert len(signature) == 64 and public.verify(bytes(32), signature, mechanism=SM2)
    assert not public.verify(bytes(32), bytes(64), mechanism=SM2)
    signature = private.sign(b"message", mechanism=SM3_SM2)
    assert public.verify(b"message", signature, mechanism=SM3_SM2)
    assert private[Attribute.SENSITIVE] and not private[Attribute.EXTRACTABLE]
    curve[Attribute.EC_PARAMS] = bytes.fromhex("06082a8648ce3d030107")
    parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
    public, private = parameters.generate_keypair()
    signature = private.sign(b"message", mechanism=Mechanism.ECDSA_SHA256)
    assert public.verify(b"message", signature, mechanism=Mechanism.ECDSA_SHA256)
    public, private = session.generate_keypair(KeyType.RSA, 2048)
    signature = private.sign(b"message", mechanism=Mechanism.SHA256_RSA_PKCS)
    assert public.verify(b"message", signature, mechanism=Mechanism.SHA256_RSA_PKCS)
    key = session.generate_key(KeyType.AES, 256)
    iv = bytes(16)
    assert key.decrypt(key.encrypt(b"a" * 33, mechanism_param=iv), mechanism_param=iv) == b"a" * 33
with token.open(user_pin="1234") as session:
    (found,) = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: "seal"})
    assert found.id == b"7"
print("good")
"""


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def token(settings: Path, module_path: Path) -> Path:
    """A token made in another process, so that this one never loads the module."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from pathlib import Path; from p11 import Module\nmodule = Module(Path({str(module_path)!r}))\n"
        "with module.running(): module.make_token()\n"
    )
    run(sys.executable, "-c", code)
    return module_path


def test_python_pkcs11(token: Path) -> None:
    assert run(sys.executable, "-c", PYTHON_PKCS11, token).strip() == "good"


@pytest.mark.skipif(not shutil.which("pkcs11-tool"), reason="OpenSC is not installed")
def test_pkcs11_tool(settings: Path, module_path: Path) -> None:
    tool = ["pkcs11-tool", "--module", module_path]
    assert "SIMULATOR" in run(*tool, "--list-slots")
    run(*tool, "--init-token", "--slot", "0", "--label", "tool", "--so-pin", "87654321")
    run(
        *tool,
        "--init-pin",
        "--token-label",
        "tool",
        "--so-pin",
        "87654321",
        "--new-pin",
        "1234",
        "--pin",
        "1234",
    )
    login = [*tool, "--token-label", "tool", "--login", "--pin", "1234"]
    run(*login, "--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--label", "curve")
    run(*login, "--keypairgen", "--key-type", "rsa:2048", "--id", "02", "--label", "rsa")
    listing = run(*login, "--list-objects")
    assert "never extractable" in listing
    assert "No errors" in run(*login, "--test")
    run(*login, "--delete-object", "--type", "privkey", "--id", "01")
    assert run(*login, "--list-objects", "--type", "privkey").count("Private Key") == 1


@pytest.mark.skipif(not shutil.which("softhsm2-util"), reason="SoftHSM is not installed")
def test_softhsm_utility(settings: Path, module_path: Path) -> None:
    tool = ["softhsm2-util", "--module", module_path]
    run(*tool, "--init-token", "--free", "--label", "soft", "--pin", "1234", "--so-pin", "87654321")
    assert "soft" in run(*tool, "--show-slots")
