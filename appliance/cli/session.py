"""An officer's session with the HTTP API, for the time of one command.

For: ``seal``, ``grant``, ``proposal``, ``organisation``, ``statistics`` and ``outbox``: log in, call, log out.
Not for: the machine's administrator, whom the kernel names (``target.Officer``), unless the operation is in the API.

Rules:

* The API is on the officers' socket, or elsewhere by ``--api https://host:port`` (plain HTTP on loopback only).
* The officer's password comes from a prompt or a file, never from the command line or the environment.
* A command that fails logs out all the same.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from appliance.cli.files import write_durably
from appliance.cli.show import Answer, Screen, Table, fields
from appliance.cli.target import (
    OFFICER_TIMEOUT_S,
    UnixConnection,
    ask_password,
    exchange,
    officer_socket_of,
    read_answer,
    read_password,
)
from appliance.errors import ApplianceError, BadRequest, NotFound, ProtocolError
from appliance.settings import is_loopback

Run = Callable[[argparse.Namespace, Screen], Answer]
BASE: Final = "/api/v1"
MAX_PAGES: Final = 1_000
"""So many pages ``list --all`` follows: half a million rows are for an export, not for a terminal."""
_SEAL_CODE: Final = re.compile(r"[0-9]{13,14}")


class Api:
    """Calls to ``/api/v1``. Without a session it reaches what takes none: the administrator's, on the socket."""

    def __init__(self, connect: Callable[[], http.client.HTTPConnection], place: str) -> None:
        self._connect = connect
        self._place = place
        self._authorization: str | None = None

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Api:
        """The API that the arguments lead to."""
        if args.api is None:
            path = officer_socket_of(args)
            return cls(lambda: UnixConnection(path), str(path))
        parts = urlsplit(args.api)
        host = parts.hostname or ""
        if parts.scheme == "http" and is_loopback(host):
            return cls(
                lambda: http.client.HTTPConnection(host, parts.port, timeout=OFFICER_TIMEOUT_S), args.api
            )
        if parts.scheme != "https" or not host:
            raise BadRequest(
                f"--api {args.api}: expected https://host:port",
                hint="plain http:// is taken on loopback only",
            )
        try:
            context = ssl.create_default_context(cafile=args.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise BadRequest(f"--ca-file: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return cls(
            lambda: http.client.HTTPSConnection(host, parts.port, timeout=OFFICER_TIMEOUT_S, context=context),
            args.api,
        )

    def log_in(self, name: str, password: str) -> None:
        """Open a session; what is called from here on is called in it."""
        opened = self.call("POST", "sessions", body={"officer": name, "password": password})
        self._authorization = f"Bearer {opened['token']}"

    def log_out(self) -> None:
        """End it."""
        self.call("DELETE", "session")
        self._authorization = None

    def be_account(self, name: str, password: str) -> None:
        """Call as a business system's account from here on."""
        self._authorization = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()

    def call(
        self,
        method: str,
        *names: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str | int | None] | None = None,
    ) -> Any:
        """What the API answers to ``/api/v1/<names…>``; its errors are raised as what they are."""
        status, raw, _ = self._ask(method, names, body, query)
        return read_answer(status, raw)

    def read(self, *names: str, query: Mapping[str, str | int | None] | None = None) -> bytes:
        """The same for what is no JSON: a picture, a PDF, CSV."""
        status, raw, media_type = self._ask("GET", names, None, query)
        if status != 200:
            read_answer(status, raw)
            raise ProtocolError(f"{self._place}: answered {status} with {media_type}")
        return raw

    def _ask(
        self,
        method: str,
        names: Sequence[str],
        body: Mapping[str, Any] | None,
        query: Mapping[str, str | int | None] | None,
    ) -> tuple[int, bytes, str]:
        target = "/".join((BASE, *(quote(name, safe="") for name in names)))
        given = {name: value for name, value in (query or {}).items() if value is not None}
        if given:
            target = f"{target}?{urlencode(given)}"
        headers = {} if body is None else {"Content-Type": "application/json"}
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        payload = None if body is None else json.dumps(body).encode()
        return exchange(self._connect(), self._place, method, target, payload, headers)

    def listed(
        self, *names: str, query: Mapping[str, str | int | None], every: bool
    ) -> tuple[list[Any], bool]:
        """The items of a page, or of all pages; and whether there are more."""
        items: list[Any] = []
        after: str | None = None
        for _ in range(MAX_PAGES):
            page = self.call("GET", *names, query={**query, "after": after})
            items += page["items"]
            after = page.get("next")
            if after is None or not every:
                break
        return items, after is not None

    def seal_id(self, text: str) -> str:
        """The id of a seal that is named by its id or by its code (印章编码)."""
        if _SEAL_CODE.fullmatch(text) is None:
            return text
        found = self.call("GET", "seals", query={"sealCode": text})["items"]
        if not found:
            raise NotFound(f"no seal has the code {text}", hint="cloud-seal seal list")
        return str(found[0]["sealId"])


@contextmanager
def session(args: argparse.Namespace) -> Iterator[Api]:
    """The API, with the officer logged in whom the arguments name."""
    name = args.officer or os.environ.get("CLOUD_SEAL_OFFICER")
    if not name:
        raise BadRequest("who are you?", hint="--officer NAME or $CLOUD_SEAL_OFFICER")
    if args.officer_password_file is not None:
        password = read_password(args.officer_password_file)
    else:
        password = ask_password(f"Password of {name}", "--officer-password-file")
    api = Api.from_args(args)
    api.log_in(name, password)
    try:
        yield api
    finally:
        with suppress(ApplianceError):  # the session ends by itself too; what the command did is what counts
            api.log_out()


def add_api_options(command: argparse.ArgumentParser) -> Any:
    """Where the API is."""
    group = command.add_argument_group("connection")
    group.add_argument(
        "--officer-socket", metavar="PATH", type=Path, help="default: web.officer_socket of the configuration"
    )
    group.add_argument("--api", metavar="URL", help="instead of the socket: https://host:port")
    group.add_argument("--ca-file", metavar="PEM", type=Path, help="CAs that may vouch for that host")
    return group


def add_session_options(command: argparse.ArgumentParser) -> None:
    """Who the officer is, and where the API is."""
    group = add_api_options(command)
    group.add_argument("--officer", metavar="NAME", help="who you are; default: $CLOUD_SEAL_OFFICER")
    proof = group.add_mutually_exclusive_group()
    proof.add_argument("--officer-password-file", metavar="FILE", type=Path, help="your password, first line")
    proof.add_argument(
        "--ask-officer-password", action="store_true", help="ask for your password (the default)"
    )


def add_password_options(command: argparse.ArgumentParser, what: str) -> None:
    """A new password, out of a file or asked for."""
    proof = command.add_mutually_exclusive_group()
    proof.add_argument("--password-file", metavar="FILE", type=Path, help=f"{what}, first line")
    proof.add_argument("--ask-password", action="store_true", help=f"ask for {what}, twice (the default)")


def adder(
    group: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]
) -> Callable[..., argparse.ArgumentParser]:
    """Adds commands to a group: name, what it runs, a summary, positional arguments, and who it is for."""
    commands = group.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str,
        run: Run,
        summary: str,
        *positionals: str,
        options: Callable[[argparse.ArgumentParser], object] = add_session_options,
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(
            name, parents=parents, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        command.set_defaults(run=run)
        for positional in positionals:
            command.add_argument(positional.lower(), metavar=positional)
        options(command)
        return command

    return add


def add_list_options(command: argparse.ArgumentParser) -> None:
    """How much of a list is shown."""
    command.add_argument("--limit", type=int, default=100, metavar="N", help="rows; default: %(default)s")
    command.add_argument("--all", action="store_true", help="all of them, page by page")


def list_answer(
    name: str, items: Sequence[Mapping[str, Any]], more: bool, columns: Mapping[str, str]
) -> Answer:
    """A table of items; ``columns`` maps headings to fields."""
    rows = [[text_of(item.get(field)) for field in columns.values()] for item in items]
    parts: list[str | Table] = [Table(tuple(columns), rows)]
    if more:
        parts.append("… and more: --limit N, or --all")
    return Answer({name: list(items), "more": more}, parts)


def record_answer(title: str, record: Mapping[str, Any]) -> Answer:
    """Names and values of one thing; what it has not is left out."""
    rows = [[name, text_of(value)] for name, value in record.items() if value not in (None, "", [], {})]
    return Answer(record, [fields(title, rows)])


def text_of(value: Any) -> str:
    """As a person reads it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(text_of, value)) or "none"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def file_answer(raw: bytes, out: Path, what: str) -> Answer:
    """What was read, in a file."""
    write_durably(out, raw)
    return Answer({"path": str(out), "length": len(raw)}, [f"{what} written to {out}"])
