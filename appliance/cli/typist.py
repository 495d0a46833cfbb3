"""Types commands as a person would, and shows what it types: what the demonstration is made of.

For: ``demo`` and its parts: they do nothing that a person could not type, and show what they type.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.cli.show import Answer, Screen

Commands = Mapping[str, argparse.ArgumentParser]
"""The command line's commands by name: what a person may type."""


@dataclass(frozen=True, slots=True)
class Typist:
    """Types for one appliance, the one that ``config`` names."""

    commands: Commands
    config: Path
    screen: Screen

    def run(self, name: str, *words: str, quiet: bool = False) -> Any:
        """Run one command; its answer's document. ``quiet``: the command is shown, its answer is not."""
        self.screen.note(f"$ cloud-seal {' '.join((name, *map(_quoted, words)))}")
        args = self.commands[name].parse_args((*words, "--config", str(self.config)))
        answer: Answer = args.run(args, self.screen)
        if not quiet:
            self.screen.show(answer)
        return answer.document


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word or not word else word
