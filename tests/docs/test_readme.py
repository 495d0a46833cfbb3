"""What the README says, the programs do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from appliance import daemon
from appliance.cli.main import build_parser, exit_codes
from appliance.errors import TABLE
from appliance.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

CONSOLE = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
INLINE = re.findall(r"`(cloud-seald? [^`]*)`", README)


def words_of(command: str) -> list[str]:
    words = shlex.split(command.split(" > ")[0])
    return words[1:]


@pytest.mark.parametrize("command", [one for one in CONSOLE if one.startswith("cloud-seal ")])
def test_each_command_shown_is_one(command: str) -> None:
    args = build_parser().parse_args(words_of(command))
    assert callable(args.run)


@pytest.mark.parametrize("command", [one for one in (*CONSOLE, *INLINE) if one.startswith("cloud-seald ")])
def test_each_start_of_the_daemon_shown_is_one(command: str) -> None:
    daemon._parser().parse_args(words_of(command))


def test_the_table_of_commands_is_complete() -> None:
    (groups,) = [one for one in build_parser()._actions if one.metavar == "COMMAND"]
    named = {tuple(one.split()[1:]) for one in INLINE if one.startswith("cloud-seal ")}
    assert {words[0] for words in named} == set(groups.choices or ())
    for words in named:
        # Only the existence of the command is asked for here; required arguments are not given.
        parser = build_parser()
        for word in words:
            (group,) = [one for one in parser._actions if one.choices and one.metavar == "COMMAND"]
            assert word in group.choices, words  # type: ignore[operator]
            parser = group.choices[word]  # type: ignore[index,call-overload]


def test_the_table_of_exit_codes_is_the_error_table() -> None:
    section = README.split("### Exit codes")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if re.match(r"\| \d", line)
    ]
    shown = {int(code): re.findall(r"`(\w+)`", labels) for code, labels, *_ in rows}
    known: dict[int, list[str]] = {code: [] for code in exit_codes()}
    for row in TABLE.values():
        known[row.exit_code].append(row.label)
    assert shown == known


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "appliance/PROTOCOL.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_paths_of_the_layout_exist() -> None:
    section = README.split("## Where is what")[1]
    paths = re.findall(r"^\| \[([^]]+)\]", section, re.MULTILINE)
    assert len(paths) >= 8
    for path in paths:
        assert (ROOT / path).is_dir(), path


def test_the_glossary_has_its_words() -> None:
    rows = re.findall(r"^\| .+ \| [\u4e00-\u9fff]+ \| .+ \|$", README.split("| 中文 |")[1], re.MULTILINE)
    assert len(rows) == 14


def test_the_shipped_configuration_is_the_default_one() -> None:
    """Paths apart: those of the file are relative to it, those of the code to nothing."""
    path = ROOT / "config" / "appliance.yaml"
    shipped = load_settings(path)
    assert repr(shipped).replace(f"{path.parent}/", "") == repr(Settings())


def test_the_shipped_configuration_lists_every_key() -> None:
    import dataclasses

    import yaml

    document = yaml.safe_load((ROOT / "config" / "appliance.yaml").read_text())

    def compare(kind: type, mapping: dict[str, object], where: str) -> None:
        names = [field.name for field in dataclasses.fields(kind)]
        assert list(mapping) == names, where
        for field in dataclasses.fields(kind):
            if field.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(
                field.default_factory
            ):
                nested = mapping[field.name]
                assert isinstance(nested, dict)
                compare(field.default_factory, nested, f"{where}.{field.name}")  # type: ignore[arg-type]

    compare(Settings, document, "top")


def test_the_changelog_has_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    assert "## [Unreleased]" in text
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
