"""What the tests run in other processes: child.py <module> <what> [arguments]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from p11 import CK, Module


def main(path: str, what: str, *arguments: str) -> None:
    module = Module(Path(path))
    with module.running():
        if what == "reset":
            module.make_token()
            return
        session = module.open().login()
        if what == "ids":
            print("\n".join(session.get(handle, "CKA_ID").hex() for handle in session.find()))
        elif what == "create":
            for _ in range(int(arguments[1]) if len(arguments) > 1 else 1):
                session.sm2_pair(token=True, CKA_ID=arguments[0].encode())
        elif what == "relabel":
            for handle in session.find(CKA_ID=arguments[0].encode()):
                session.set(handle, CKA_LABEL=arguments[1].encode())
        elif what == "destroy":
            for handle in session.find(CKA_ID=arguments[0].encode()):
                session.destroy(handle)
        elif what == "sign":
            (key,) = session.find(CKA_ID=arguments[0].encode(), CKA_CLASS=CK["CKO_PRIVATE_KEY"])
            for number in range(int(arguments[1])):
                print(session.sign("CKM_SM2", key, number.to_bytes(32)).hex(), flush=True)


main(*sys.argv[1:])
