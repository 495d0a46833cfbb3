"""Which module of the signer side may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import appliance_pkcs11
import pytest

FOLDER = Path(appliance_pkcs11.__file__).parent
MODULES = sorted(FOLDER.glob("*.py"))
PURE = {"cryptoki", "link", "profile"}
NO_IO = {
    "collections.abc",
    "dataclasses",
    "enum",
    "json",
    "re",
    "struct",
    "sys",
    "typing",
}


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_imports_point_down(path):
    names = imports(path)
    tops = {name.split(".")[0] for name in names}
    assert "appliance" not in tops
    assert ("pkcs11" in tops) == (path.stem == "token")
    if path.stem in PURE:
        ours = {name for name in names if name.split(".")[0] == "appliance_pkcs11"}
        assert names - ours <= NO_IO
        assert ours <= {f"appliance_pkcs11.{module}" for module in PURE}


def test_the_front_can_use_the_link_without_loading_the_library():

    script = (
        "import sys; from appliance_pkcs11 import cryptoki, link, profile; sys.exit('pkcs11' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == 0


def test_the_project_folder_is_no_package():
    assert not (Path(__file__).resolve().parents[2] / "pkcs11" / "__init__.py").exists()
