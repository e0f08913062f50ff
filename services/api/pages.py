"""Lists come in pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Path, Query
from pydantic import BaseModel

from services.api.cursors import Cursors
from services.exact_values import Identifier

PAGE_MAX = 200
Row = TypeVar("Row")

Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="How many at most.")]
PageCursor = Annotated[str | None, Query(max_length=2000, description="next_cursor of the page before.")]

PathId = Annotated[Identifier, Path()]
OfCustomer = Annotated[Identifier | None, Query(description="Only those of this customer.")]


class Page(BaseModel, Generic[Row]):
    """A part of a list."""

    data: list[Row]
    next_cursor: str | None
    """Ask with it for what follows; null on the last page."""

    @classmethod
    def of(
        cls, cursors: Cursors, scope: Sequence[str], rows: Sequence[Row], limit: int, key: Callable[[Row], str]
    ) -> Page[Row]:
        """The first `limit` of `rows`, of which one more was asked for."""
        shown = list(rows[:limit])
        following = cursors.seal(scope, key(shown[-1])) if len(rows) > limit else None
        return cls(data=shown, next_cursor=following)
