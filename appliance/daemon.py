"""``cloud-seald``: the composition root. It alone knows the concrete types and ties them together.

Life of the process: read the settings, open the registry, start the signer pools, listen; on SIGTERM or SIGINT stop
accepting, answer what was accepted, stop the workers, exit 0. SIGHUP tries a refused PIN again and reads anew who is
trusted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import uvloop
from aiohttp import web

from appliance import __version__
from appliance.accounts import Authenticator
from appliance.algorithms import PublicKey
from appliance.api.opening import ApiParts, HttpApi
from appliance.api.small import Small
from appliance.errors import (
    STATE_UNKNOWN_EXIT,
    ApplianceError,
    BadRequest,
    ConfigError,
    Draining,
    StateUnknown,
    Unavailable,
)
from appliance.eseal.chains import Trust
from appliance.eseal.verification import Examiner
from appliance.fronts import Following, Fronts, Leader, Place
from appliance.holdings import Holdings
from appliance.metrics import Metrics
from appliance.office import Office, OfficeParts, SealKeys, authority_application
from appliance.office.maker import read_certificates
from appliance.office.stamping import Stamper
from appliance.pipeline import Pipeline
from appliance.policy import HeldKey
from appliance.preflight import check, faults, gaps, pin_reader, read_trust
from appliance.protection import Protection
from appliance.registry import Registry, open_registry
from appliance.seal_lookups import SealLookups
from appliance.sealer import Sealer
from appliance.sealing import Limits, MinuteWindows, SealBook, UseCounter
from appliance.server import Outbox, WireServer, bind_listeners
from appliance.settings import SealSettings, Settings, SignerSettings, load_settings, split_address
from appliance.sharing import FollowerShare, LeaderShare
from appliance.signers import SignerPool
from appliance.verifying import Verifier
from appliance.wakefulness import BUSY_PER_S, SPIN_US, Wakefulness
from appliance.web import (
    Services,
    health_application,
    officer_application,
    officer_uids,
    start_site,
)

log = logging.getLogger("appliance")

GC_THRESHOLD: Final = 20_000
"""Allocations between two looks of the collector: a request leaves no cycles, and 700 is a look every few requests."""
DRAIN_TICK_S: Final = 0.01
SPARE_OPEN_FILES: Final = 512
"""For workers, listeners, the registry, officers, scrapes, and clients that are turned away."""
FOLLOWER_GRACE_S: Final = 5.0
"""Followers drain while the leader does, within the same time; what they may need on top to end their workers."""
USES_TICK_S: Final = 1.0
"""How often it is written what seals were used for; a crash loses as much from statistics."""
UNFINISHED_TICK_S: Final = 0.2
"""How often it is looked whether a token is back that has keys half made."""


class Daemon:
    """Everything that runs, in the order in which it depends on each other."""

    def __init__(
        self, settings: Settings, config: Path, place: Place, registry: Registry, leader: Leader | None = None
    ) -> None:
        profiles = check(settings)
        clock = time.monotonic
        self._settings = settings
        self._place = place
        self.registry = registry
        self.holdings = Holdings(self.registry, certifies=certifying(settings.seals))
        self.metrics = Metrics(profile.name for profile in profiles)
        self.verifier = Verifier(max_table_bytes=settings.verify.max_table_len, engine=settings.verify.engine)
        self._verify_threads = ThreadPoolExecutor(settings.verify.threads, thread_name_prefix="verify")
        self._hash_threads = ThreadPoolExecutor(
            settings.auth.max_concurrent_hashes, thread_name_prefix="argon2"
        )
        outbox = Outbox()
        self._wakefulness = Wakefulness(
            settings.signers.cpu_latency_us,
            self._count_slices,
            self.metrics.processors_awake.set,
            busy_per_s=BUSY_PER_S / place.count,
        )
        signers = signer_settings(settings.signers, place, can_ask=self._wakefulness.can_ask)
        self.pools = {
            profile.name: SignerPool(
                replace(profile, workers=place.share(profile.workers)),
                pin_reader(token.pin_file),
                signers,
                settings.window.max_queued_items,
                self.verifier,
                self.metrics,
                clock,
                self._find_key,
                outbox,
                place.processor_count,
            )
            for profile, token in zip(profiles, settings.tokens, strict=True)
        }
        self.pipeline = Pipeline(
            self.holdings,
            self.pools,
            self.verifier,
            self._verify_threads,
            settings.times,
            settings.window.max_queued_items,
            clock,
            place.index,
        )
        self.authenticator = Authenticator(
            self.holdings.accounts,
            settings.auth,
            self._hash_threads,
            clock,
            self.metrics.authentication_failures.inc,
        )
        followed = settings.front_processes if place.index == 0 else 1
        self.fronts = Fronts(followed, config, self._followers_may_start, self._answer_follower)
        self.holdings.announce = self._announce
        self.protection = Protection(
            registry.custody, settings.seals.password, self._hash_threads, clock, _now, self._announce
        )
        self._leader = leader
        self._share = self._open_share(leader)
        self.sealer = self._open_sealer()
        self.server = WireServer(
            settings, self.pipeline, self.authenticator, self.metrics, clock, outbox, self.sealer
        )
        self.office = self._open_office() if place.index == 0 else None
        self.api = self._open_api(self.office) if self.office is not None else None
        self._services = Services(
            self.holdings, self.pools, self.pipeline, self.authenticator, self.metrics, self.fronts
        )
        self.metrics.watch_seals(self.sealer.book)
        self.metrics.watch(self._read_gauges)
        self._stop = asyncio.Event()

    def _count_slices(self) -> int:
        return sum(pool.dispatcher.slices_given for pool in self.pools.values())

    def _open_office(self) -> Office:
        """The leading front's: it alone writes the registry."""
        return Office(
            OfficeParts(
                self.registry,
                self._settings.seals,
                self._settings.auth,
                self.protection,
                self.holdings.accounts,
                self.holdings.keys,
                SealKeys(self.holdings, self.pools, self.pipeline.sign_message),
                self.verifier,
                self._hash_threads,
                self._announce,
                time.monotonic,
                _now,
                on_login_failure=self.metrics.authentication_failures.inc,
                watch_overdue=self.metrics.filing_overdue.set,
                give_up=_give_up,
            )
        )

    def _open_api(self, office: Office) -> HttpApi:
        return HttpApi(
            ApiParts(
                self._settings,
                office,
                self.registry,
                self.protection,
                self.authenticator,
                lambda: self._examiner,
                Small(
                    self.sealer,
                    self.pipeline,
                    self.registry,
                    self._settings.seals.password.unlock_s,
                    secrets.token_bytes,
                    time.monotonic,
                    _now,
                ),
                self._state,
                self._lookups.standing,
                time.monotonic,
                _now,
            )
        )

    async def _state(self) -> str:
        return str((await self._services.status())["state"])

    def _open_share(self, leader: Leader | None) -> LeaderShare | FollowerShare:
        """What this front has in common with the others about sealing."""
        if leader is not None:
            return FollowerShare(self.protection, leader.ask, time.time)
        minutes = MinuteWindows(time.monotonic)
        return LeaderShare(self.registry, self.protection, minutes, self.fronts.tell_all, time.time, _give_up)

    def _open_sealer(self) -> Sealer:
        settings = self._settings.seals
        lookups = self._lookups = SealLookups(self.registry, settings.password)
        self._trust = read_trust(settings)
        self._examiner = Examiner(self._trust, self.verifier)
        self._stamper = Stamper(settings.timestamp, self._who_is_trusted, self.verifier, _now)
        return Sealer(
            self.pipeline,
            SealBook(lookups, settings.max_book_len),
            Limits(self._share, time.time),
            UseCounter(self._share.add_uses, time.time),
            self._share,
            lookups,
            time.time,
            examiner=lambda: self._examiner,
            stamp=None if settings.timestamp.url is None else self._stamper.stamp,
        )

    async def _who_is_trusted(self) -> Trust:
        return self._trust

    async def _announce(self, kind: str, name: str) -> None:
        """Something has changed: returns when every front goes by it."""
        self._forget(kind, name)
        await self.fronts.tell(kind, name)

    def _forget(self, kind: str, name: str) -> None:
        """What sealing remembers of it."""
        if kind == "seal":
            self.sealer.book.forget(name)
        elif kind == "key":
            self.sealer.book.forget_key(name)
        elif kind == "account":
            account = self.holdings.accounts.get(name)
            if account is None or account.disabled:
                self.protection.lock_account(name)

    async def _answer_follower(self, question: dict[str, Any]) -> dict[str, Any]:
        """What a following front asks of the leading one."""
        assert isinstance(self._share, LeaderShare)
        return await self._share.answer(question)

    def _find_key(self, name: str) -> HeldKey | None:
        key = self.holdings.keys.get(name) or self.holdings.known_seal_key(name) or self.sealer.key(name)
        return None if key is None or key.disabled else key

    def _read_gauges(self) -> Iterable[tuple[str, str, dict[str, float]]]:
        dispatchers = {name: pool.dispatcher for name, pool in self.pools.items()}
        yield (
            "cloudseal_queued_items",
            "Items that wait for a worker.",
            {name: one.queued_items for name, one in dispatchers.items()},
        )
        yield (
            "cloudseal_inflight_items",
            "Items with a worker.",
            {name: one.inflight_items for name, one in dispatchers.items()},
        )
        yield (
            "cloudseal_token_up",
            "1 where at least one worker can sign.",
            {name: float(pool.is_up) for name, pool in self.pools.items()},
        )
        yield (
            "cloudseal_retried_parts_total",
            "Runs of items given to another worker since the start.",
            {name: one.retried_parts for name, one in dispatchers.items()},
        )

    def _followers_may_start(self) -> bool:
        return all(pool.state not in ("starting", "pin_refused") for pool in self.pools.values())

    async def answer_leader(self, question: dict[str, Any]) -> dict[str, Any]:
        """What the leading front asks of a following one."""
        if isinstance(self._share, FollowerShare) and self._share.hear(question):
            return {}
        match question:
            case {"ask": "refresh", "kind": "seal", "name": str(name)}:
                self._forget("seal", name)
                return {}
            case {"ask": "refresh", "kind": "password", "name": str(name)}:
                recorded = await asyncio.to_thread(self.registry.custody.password, name)
                self.protection.void(name, recorded.generation if recorded is not None else 0)
                return {}
            case {"ask": "refresh", "kind": str(kind), "name": str(name)}:
                await self.holdings.refresh(kind, name)
                self._forget(kind, name)
                if kind == "key":
                    for pool in self.pools.values():
                        pool.forget_key(name)
                return {}
            case {"ask": "status"}:
                return self.pipeline.appliance_status()
            case {"ask": "metrics"}:
                return {"page": self.metrics.page().decode()}
            case {"ask": "retry"}:
                self.reload()
                return {}
        raise ValueError(f"the leading front asks {question!r}")

    def request_stop(self) -> None:
        """SIGTERM: drain and end."""
        self._stop.set()

    def reload(self) -> None:
        """SIGHUP: the operator has changed a PIN file, or a list of who is trusted or revoked."""
        for pool in self.pools.values():
            pool.retry()
        try:
            self._trust = read_trust(self._settings.seals)
            self._examiner = Examiner(self._trust, self.verifier)
        except ConfigError as error:
            log.error("who is trusted stays as it was: %s", error)
        self._retrying = asyncio.ensure_future(self.fronts.ask("retry"))

    async def run(self, following: Following | None) -> None:
        """Until stopped; what was accepted is answered before this returns."""
        runners: list[web.AppRunner] = []
        bound: list[Path] = []  # socket files of ours, and of nobody else, to be removed at the end
        try:
            async with asyncio.TaskGroup() as group:
                for name, pool in self.pools.items():
                    group.create_task(pool.run(), name=name)
                if following is None:
                    listeners = bind_listeners(self._settings.listen)
                    if self._settings.listen.unix_socket is not None:
                        bound.append(self._settings.listen.unix_socket)
                    endless = [group.create_task(self._finish_unfinished_keys())]
                    assert self.office is not None
                    endless.append(group.create_task(self.office.run(), name="office"))
                    await self._start_sites(runners, bound)
                    await self._start_authority(runners)
                    if self.api is not None and self.api.door is not None:
                        await self.api.door.open()
                        endless.append(group.create_task(self.api.door.watch(), name="api"))
                    group.create_task(self.fronts.run(listeners), name="fronts")
                else:
                    listeners = following.listeners
                    endless = [group.create_task(self._follow(following))]
                    assert self._leader is not None and isinstance(self._share, FollowerShare)
                    await self._leader.open()
                    endless.append(group.create_task(self._leader.run(), name="leader"))
                    await self._share.catch_up()
                await self.server.start(listeners)
                endless.append(group.create_task(self.server.watch()))
                endless.append(group.create_task(self._write_uses(), name="uses"))
                endless.append(group.create_task(self._wakefulness.run(), name="wakefulness"))
                log.info(
                    "cloud-seald %s is up (front %d), verifying with %s",
                    __version__,
                    self._place.index,
                    self.verifier.engine,
                )
                await self._stop.wait()
                self.fronts.begin_stop()
                await self._drain()
                await self._settle_seals()
                await self.fronts.wait_stopped(FOLLOWER_GRACE_S)
                for task in endless:
                    task.cancel()
                for pool in self.pools.values():
                    pool.stop()
        finally:
            if self.api is not None and self.api.door is not None:
                await self.api.door.close()
            for runner in runners:
                await runner.cleanup()
            for path in bound:
                path.unlink(missing_ok=True)
            if self.office is not None:
                await self.office.close()
            await self._stamper.close()
            self._verify_threads.shutdown()
            self._hash_threads.shutdown()
            self.registry.close()

    async def _follow(self, following: Following) -> None:
        """Answer the leader; when it has gone, stop."""
        await following.answer_leader(self.answer_leader)
        self.request_stop()

    async def _start_sites(self, runners: list[web.AppRunner], bound: list[Path]) -> None:
        settings, services, api = self._settings.web, self._services, self.api
        applications = []
        if settings.health is not None:
            applications.append((health_application(services), False))
        if settings.officer_socket is not None:
            assert api is not None
            officers_own = officer_application(services, officer_uids(settings), api.application(), api.base)
            applications.append((officers_own, True))
        for application, officers in applications:
            runner = web.AppRunner(application, access_log=None)
            runners.append(runner)
            try:
                await start_site(runner, settings, officers=officers)
                if officers and settings.officer_socket is not None:
                    bound.append(settings.officer_socket)
            except OSError as error:
                raise ConfigError(f"cannot listen: {error}", hint="see web: in the configuration") from error

    async def _start_authority(self, runners: list[web.AppRunner]) -> None:
        """The time-stamp authority of our own, for demonstrations and tests."""
        settings = self._settings.seals.authority
        if settings.listen is None:
            return
        application = authority_application(settings, self.holdings.keys, self.pipeline.sign_message, _now)
        runner = web.AppRunner(application, access_log=None)
        runners.append(runner)
        await runner.setup()
        host, port = split_address(settings.listen)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.listen}: {error}", hint="see seals.authority.listen"
            ) from error

    async def _finish_unfinished_keys(self) -> None:
        """Once its token is up: keys that a crash, of ours or of a worker, left half made."""
        while True:
            await self.holdings.unfinished.wait()
            self.holdings.unfinished.clear()
            waiting = {row[2] for row in await asyncio.to_thread(self.registry.unfinished_keys)}
            for name in waiting & self.pools.keys():
                pool = self.pools[name]
                try:
                    if pool.is_up:
                        await self.holdings.finish_unfinished(name, pool)
                        continue
                except ApplianceError as error:
                    log.warning("keys half made on token %s: %s", name, error)
                self.holdings.unfinished.set()  # its token is away: look again
            await asyncio.sleep(UNFINISHED_TICK_S)

    async def _write_uses(self) -> None:
        """What seals were used for goes to the registry each second."""
        while True:
            await asyncio.sleep(USES_TICK_S)
            try:
                await self.sealer.uses.flush()
            except Unavailable as error:
                log.warning("uses of seals are not written now, and kept: %s", error)

    async def _settle_seals(self) -> None:
        """After the last answer: counts are written, and what is left of reservations is given back."""
        try:
            async with asyncio.timeout(FOLLOWER_GRACE_S):
                await self.sealer.uses.flush()
                await self.sealer.limits.release()
        except (TimeoutError, Unavailable) as error:
            log.error("counts of the last second, and reservations of today, were not settled: %r", error)

    async def _drain(self) -> None:
        """Finish what was accepted, refuse what comes."""
        log.info("draining: %d requests accepted and not answered", self.pipeline.live_requests)
        self.pipeline.draining = True
        self.server.stop_listening()
        deadline_at = self.server.clock() + self._settings.times.drain_s
        try:
            async with asyncio.timeout(self._settings.times.drain_s):
                while self.pipeline.live_requests or self.sealer.live_requests:
                    await asyncio.sleep(DRAIN_TICK_S)
        except TimeoutError:
            log.error("%d requests were not answered in time to drain", self.pipeline.live_requests)
            for pool in self.pools.values():
                pool.fail_all(Draining("the appliance stopped before this was done", retry_after_ms=1_000))
        await self.server.close(deadline_at)


def signer_settings(settings: SignerSettings, place: Place, *, can_ask: bool) -> SignerSettings:
    """Those of one front, where the kernel can be asked to keep processors awake, or not.

    Who does not want that, to save power, does not want processors kept busy instead.
    """
    spin_us = settings.spin_us
    if spin_us is None:
        spin_us = 0 if can_ask or settings.cpu_latency_us is None else SPIN_US
    return replace(settings, spin_us=spin_us, processors=place.processors(settings.processors))


def certifying(settings: SealSettings) -> Callable[[HeldKey], bool]:
    """Whether a key is the seal maker's, our time-stamp authority's, or a CA's that is trusted here."""
    names = {settings.maker_key, settings.authority.key}
    trusted: set[PublicKey] = set()
    for path in settings.trust_files:
        for der in read_certificates(path):
            with suppress(BadRequest):  # of another algorithm: no key of ours
                trusted.add(PublicKey.from_certificate(der))
    return lambda key: key.name in names or key.public in trusted


def _now() -> datetime:
    return datetime.now(UTC)


def _give_up(error: StateUnknown) -> None:
    """Nobody may act on what we believe the registry holds; systemd starts us anew, and that is the repair."""
    log.critical("%s: the process ends, and the next start reads what is there", error)
    os._exit(STATE_UNKNOWN_EXIT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cloud-seald", description="The cloud-seal signing daemon.")
    parser.add_argument("--config", type=Path, default=Path("/etc/cloud-seal/appliance.yaml"))
    parser.add_argument(
        "--check", action="store_true", help="read the configuration, say what is wrong, and end"
    )
    parser.add_argument("--allow-root", action="store_true", help="run as root; for demonstrations and tests")
    parser.add_argument("--follow", help=argparse.SUPPRESS)  # how the leading front starts the others
    parser.add_argument("--version", action="version", version=f"cloud-seald {__version__}")
    return parser


def _allow_open_files(settings: Settings) -> None:
    """As many as the settings promise connections; the usual soft limit of 1,024 is for programs that use select."""
    wanted = settings.listen.max_connections + SPARE_OPEN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < wanted:
        log.warning(
            "only %d files may be open, too few for listen.max_connections: %d",
            limit,
            settings.listen.max_connections,
        )


async def _serve(settings: Settings, config: Path, following: Following | None) -> None:
    _allow_open_files(settings)
    place = Place(0 if following is None else following.index, settings.front_processes)
    # The leader's alone: two daemons on one registry would each keep in memory what the other has changed.
    registry = open_registry(settings, hold=following is None)
    leader = None if following is None else Leader(following.upward)
    daemon = Daemon(settings, config, place, registry, leader)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.request_stop)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    gc.freeze()  # what start-up made lives as long as the process: the collector need not look at it again
    gc.set_threshold(GC_THRESHOLD)
    await daemon.run(following)


def _report(error: ApplianceError) -> int:
    print(f"cloud-seald: {error.detail}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    return error.exit_code


def _flat(group: ExceptionGroup[Exception]) -> list[Exception]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_flat(error) if isinstance(error, ExceptionGroup) else [error])
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes are those of ``errors.TABLE``; 0 after a drain."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(options.config)
        if options.check:
            wrong = [*faults(settings), *gaps(settings)]
            if not wrong:
                print(f"{options.config}: good")
            return max((_report(error) for error in wrong), default=0)
        following = Following.parse(options.follow) if options.follow is not None else None
        if os.geteuid() == 0 and not options.allow_root and following is None:
            raise ConfigError(
                "cloud-seald does not run as root", hint="use a user of its own, or --allow-root"
            )
        logging.basicConfig(
            level=settings.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
        )
        # What it tells at INFO is every character of a name that is printed.
        logging.getLogger("fontTools").setLevel(logging.WARNING)
        uvloop.run(_serve(settings, options.config.resolve(), following))
    except ApplianceError as error:
        return _report(error)
    except ExceptionGroup as group:  # what a task group makes of an error at start-up
        ours, others = group.split(ApplianceError)
        if others is not None or ours is None:
            raise
        errors = [error for error in _flat(ours) if isinstance(error, ApplianceError)]
        return max(_report(error) for error in errors)
    return 0


if __name__ == "__main__":
    sys.exit(main())
