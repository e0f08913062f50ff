"""A scenario file:

    a title that states the rule

    a paragraph or two that say why

    catalogue: FILE          or its sections, indented below
    2026-02-01  subscribe  acme pro
    ...
    ----------------------------------------------------------------
    the invoices that must come of it

Times are local to the tenant's zone. A comment begins with `#`. The catalogue has the form of `tallybook catalog`; its
tenant, meters, plans and coupons count: who buys is told by the timeline, and so is the time.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from billing.catalog import PublishPriceBook
from billing.errors import Rejected
from billing.pricing import PriceOverride
from billing.tenant import RegisterTenant
from services.catalog_file import BadCatalog, CatalogFile, override, read, to_utc
from services.scenario.statements import Statement, Unclear, parse
from services.scenario.verbs import Amend, Anchor, Give, Override, Publish, Subscribe, Use, Verb
from services.shapes import Fault

RULE = "-" * 88
_RULE_MIN = 8
_SELLER = "Example Ltd"


class BadScenario(Exception):
    """The file is no scenario; each fault has its file and line (1 is the first)."""

    def __init__(self, found: Sequence[tuple[Path, int, Fault]]) -> None:
        super().__init__("; ".join(f"{path}:{line}: {fault.field}: {fault.detail}" for path, line, fault in found))
        self.found = list(found)


@dataclass(slots=True)
class Scenario:
    """What a file tells."""

    path: Path
    title: str
    tenant: RegisterTenant
    """With its test clock at the first line of the timeline."""
    price_book: PublishPriceBook
    timeline: list[Statement]
    """With every time in UTC."""
    newer: dict[int, PublishPriceBook]
    """Line of a `publish` -> what it publishes."""
    own_prices: dict[int, PriceOverride]
    """Line of an `override` -> what the customer pays from then on."""
    catalogue_line: int
    """Where the catalogue stands."""
    script: str
    """The file up to the line of dashes."""
    golden: str
    """What must come of it; empty if the file does not say yet."""


def load(path: Path) -> Scenario:
    """The scenario in a file.

    Raises:
        BadScenario: with every fault that was found.
        OSError: the file cannot be read.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise BadScenario([(path, 1, Fault("not_utf8", "the file is not UTF-8 text", ""))]) from e
    return _Reader(path, content).read()


@dataclass(slots=True)
class _Section:
    """A line that begins something, and the indented lines below it."""

    line: int
    text: str
    block: list[str]

    @property
    def content(self) -> bytes:
        """The block without its indentation, at the file's own line numbers."""
        return ("\n" * self.line + textwrap.dedent("\n".join(self.block)) + "\n").encode()

    @property
    def has_block(self) -> bool:
        return any(line.strip() for line in self.block)


class _Reader:
    def __init__(self, path: Path, content: str) -> None:
        self.path = path
        lines = content.splitlines()
        end = next((n for n, line in enumerate(lines) if _is_rule(line)), len(lines))
        self.script_lines, golden = lines[:end], lines[end + 1 :]
        self.script = "\n".join(self.script_lines).rstrip() + "\n"
        self.golden = "\n".join(golden).strip("\n") + "\n" if any(line.strip() for line in golden) else ""
        self.found: list[tuple[Path, int, Fault]] = []

    def read(self) -> Scenario:
        title = next((line.strip() for line in self.script_lines if line.strip()), "")
        start = next((n for n, line in enumerate(self.script_lines) if _begins_catalogue(line)), None)
        if _begins_catalogue(title):
            title = ""
        if start is None or not title:
            said = "a scenario begins with a title, then `catalogue: FILE` or `catalogue:` with its sections below"
            raise BadScenario([(self.path, 1, Fault("missing_field", said, "catalogue" if title else "title"))])
        catalogue, *sections = self._sections(start)
        file = self._catalogue(catalogue, catalogue.text.partition(":")[2].strip(), "catalogue")
        timeline = [made for section in sections if (made := self._statement(section)) is not None]
        newer = {each.line: self._newer(each) for each in timeline if isinstance(each.verb, Publish)}
        own = {each.line: self._own_prices(each, each.verb) for each in timeline if isinstance(each.verb, Override)}
        if not timeline and not self.found:
            self._fault(len(self.script_lines), Fault("missing_field", "no line begins with a date", "timeline"))
        if self.found or file is None or file.price_book is None:
            raise BadScenario(self.found)
        seller = file.tenant or RegisterTenant(name=_SELLER, currency=file.price_book.plans[0].currency, zone="UTC")
        self._to_utc(timeline, seller.zone)
        if self.found:
            raise BadScenario(self.found)
        return Scenario(
            path=self.path,
            title=title,
            tenant=replace(seller, test_clock=timeline[0].at),
            price_book=file.price_book,
            timeline=timeline,
            newer={line: book for line, book in newer.items() if book is not None},
            own_prices={line: prices for line, prices in own.items() if prices is not None},
            catalogue_line=catalogue.line,
            script=self.script,
            golden=self.golden,
        )

    def _sections(self, start: int) -> list[_Section]:
        made: list[_Section] = []
        for number, line in enumerate(self.script_lines[start:], start + 1):
            if not made or (line.strip() and not line[0].isspace() and not line.startswith("#")):
                made.append(_Section(number, line, []))
            elif made:
                made[-1].block.append(line)
        return made

    def _statement(self, section: _Section) -> Statement | None:
        try:
            made = parse(section.line, section.text)
        except Unclear as e:
            self._fault(section.line, e.fault)
            return None
        has_sections = isinstance(made.verb, Override) or (isinstance(made.verb, Publish) and not made.verb.file)
        for number, line in enumerate(section.block, section.line + 1):
            if line.strip() and not line.strip().startswith("#") and not has_sections:
                self._fault(number, Fault("unexpected", "a line of the timeline begins at the margin, with a date", ""))
                return None
        made.block = section.content if has_sections else b""
        return made

    def _newer(self, statement: Statement) -> PublishPriceBook | None:
        assert isinstance(statement.verb, Publish)
        section = _Section(statement.line, "", [])
        file = self._catalogue(section, statement.verb.file, "publish", statement.block)
        return file.price_book if file else None

    def _own_prices(self, statement: Statement, verb: Override) -> PriceOverride | None:
        try:
            return override(verb.plan, statement.block)
        except BadCatalog as e:
            for line, fault in e.found:
                self._fault(line, replace(fault, field=f"override.{fault.field}".rstrip(".")))
            return None

    def _catalogue(self, section: _Section, name: str, field: str, block: bytes = b"") -> CatalogFile | None:
        path, content = self.path, block or section.content
        if name:
            path = self.path.parent / name
            if section.has_block:
                self._fault(section.line + 1, Fault("unexpected", f"the catalogue is in {name} already", field))
            try:
                content = path.read_bytes()
            except OSError as e:
                self._fault(section.line, Fault("unreadable", f"{name}: {e.strerror}", field))
                return None
        try:
            file = read(content)
        except BadCatalog as e:
            self.found += [(path, line, fault) for line, fault in e.found]
            return None
        if file.price_book is None or not file.price_book.plans:
            self._fault(section.line, Fault("missing_field", "a catalogue needs at least one plan", f"{field}.plans"))
            return None
        if path == self.path and (file.customers or file.subscriptions):
            said = "customers and subscriptions are told by the timeline: `subscribe CUSTOMER PLAN`"
            self._fault(section.line, Fault("unexpected", said, f"{field}.subscriptions"))
        return file

    def _to_utc(self, timeline: list[Statement], zone: str) -> None:
        """Turn every time of the timeline into an instant, in order."""
        before: datetime | None = None
        for each in timeline:
            try:
                each.at = to_utc(each.at, zone)
                each.verb = _verb_in_utc(each, zone)
            except Rejected as e:
                self._fault(each.line, Fault(e.code, e.detail, "time"))
                continue
            if before is not None and each.at < before:
                self._fault(each.line, Fault("clock_backwards", "the line before it is later; time moves on", "time"))
            before = each.at

    def _fault(self, line: int, fault: Fault) -> None:
        self.found.append((self.path, line, fault))


def _verb_in_utc(statement: Statement, zone: str) -> Verb:
    verb = statement.verb
    if isinstance(verb, Use):
        return replace(verb, at=to_utc(verb.at, zone) if verb.at else statement.at)
    if isinstance(verb, Amend) and verb.event.at:
        return Amend(replace(verb.event, at=to_utc(verb.event.at, zone)))
    if isinstance(verb, Anchor) and verb.to:
        return replace(verb, to=to_utc(verb.to, zone))
    if isinstance(verb, Subscribe):
        starts_at = to_utc(verb.starts_at, zone) if verb.starts_at else None
        return replace(verb, starts_at=starts_at, ends_at=to_utc(verb.ends_at, zone) if verb.ends_at else None)
    if isinstance(verb, Give) and verb.expires_at:
        return replace(verb, expires_at=to_utc(verb.expires_at, zone))
    return verb


def _is_rule(line: str) -> bool:
    return len(line.rstrip()) >= _RULE_MIN and not line.rstrip().strip("-")


def _begins_catalogue(line: str) -> bool:
    return line.startswith(("catalogue:", "catalog:"))
