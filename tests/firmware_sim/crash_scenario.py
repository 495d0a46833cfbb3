"""The life that the crash tests interrupt: crash_scenario.py <module>. Each line says what is begun or done.

It runs with the crash shim preloaded, so it dies at some point; what it has said by then must be true after.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from p11 import SO_PIN, USER_PIN, Module


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")  # unbuffered: it has left this process before the next step


def main(path: str) -> None:
    module = Module(Path(path))
    with module.running():
        if 0 in module.slots() and not Path(os.environ["CRASH_UNDER"], "0", "token").exists():
            say("begin token")
            module.init_token()
            session = module.open().login(SO_PIN, "CKU_SO")
            session.C_InitPIN(USER_PIN, len(USER_PIN))
            session.close()
            say("done token")
        session = module.open().login()
        keys = {}
        for name in ("a", "b"):
            say(f"begin create {name}")
            keys[name] = session.sm2_pair(token=True, CKA_ID=name.encode())
            say(f"done create {name}")
        say("begin relabel a")
        for handle in keys["a"]:
            session.set(handle, CKA_LABEL=b"relabelled")
        say("done relabel a")
        say("begin pin")
        session.C_SetPIN(USER_PIN, len(USER_PIN), b"second", 6)
        say("done pin")
        say("begin destroy b")
        for handle in keys["b"]:
            session.destroy(handle)
        say("done destroy b")
        session.C_Logout()
        session.login(SO_PIN, "CKU_SO")
        say("begin reset")
        session.C_InitPIN(b"third", 5)
        say("done reset")


main(sys.argv[1])
