"""The lane's tests once more, on a build with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "appliance" / "native"
SOURCES = sorted(NATIVE.glob("express_*.c"))
TESTS = ("test_lane.py", "test_waiting.py")
RUN = """
import importlib.util, sys
import appliance, pytest
spec = importlib.util.spec_from_file_location("appliance._express", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["appliance._express"] = appliance._express = module
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


@pytest.mark.gauntlet  # it compiles anew
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    module = tmp_path / "_express.so"
    flags = ["-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-omit-frame-pointer"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run(["gcc", *flags, *sanitizers, include, *SOURCES, "-o", module], check=True)
    runtimes = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(map(str.strip, runtimes)),  # before Python's own libraries
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # Python itself leaks by design
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, module, *(Path(__file__).with_name(name) for name in TESTS)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert " passed" in done.stdout
