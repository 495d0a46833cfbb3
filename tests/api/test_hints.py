"""Every refusal that an officer or an account can meet says which rule it is and what to do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import appliance

REFUSALS = {"BadRequest", "Conflict", "Denied", "NotAuthenticated", "NotFound"}
PACKAGE = Path(appliance.__file__).parent
FOR_US = {"check_answer"}
"""Refuses our own answers, in tests."""
MODULES = [
    *(PACKAGE / "api").glob("*.py"),
    *(PACKAGE / "office").glob("*.py"),
    *(PACKAGE / f"{name}.py" for name in ("accounts", "certificates", "holdings", "imprints", "lifecycle")),
    *(PACKAGE / f"{name}.py" for name in ("protection", "sealer", "sealing")),
]


@pytest.mark.parametrize("module", [one for one in MODULES if one.exists()], ids=lambda path: path.stem)
def test_no_refusal_without_a_hint(module: Path) -> None:
    tree = ast.parse(module.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name in FOR_US:
            function.body.clear()
    found = [
        f"{module.name}:{call.lineno}: {ast.unparse(call)[:100]}"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in REFUSALS
        and len(call.args) < 2
        and not any(one.arg == "hint" for one in call.keywords)
    ]
    assert not found, "\n".join(found)
