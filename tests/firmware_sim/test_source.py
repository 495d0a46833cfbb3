"""The source itself: what is written once is mended once."""

import re
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "firmware-sim" / "src"
FUNCTION = re.compile(r"^[a-z][\w *]*?\b(\w+)\([^;{]*\) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)


def test_no_function_is_written_twice() -> None:
    bodies = defaultdict(list)
    for path in sorted(SOURCE.glob("*.[ch]")):
        for name, body in FUNCTION.findall(path.read_text()):
            bodies[" ".join(body.split())].append(f"{path.name}: {name}")
    assert len(bodies) > 200, "the functions are found"
    assert not [places for places in bodies.values() if len(places) > 1]
