"""The routes: a handful of questions, and the files of the page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

from diffin.errors import DiffinError
from diffin.explore.dependencies import require

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from diffin.explore.desk import Desk

T = TypeVar("T")

PAGE = "explore.html"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_AT_ONCE = 12
_MOST_SEEN = 240
_LOOK_AGAIN = 0.05


def application(desk: Desk) -> Any:
    """The server of one desk, an ASGI application; what guards it is in :mod:`diffin.explore.guard`.

    Raises:
        MissingDependencyError: the ``explore`` extra is not installed.
    """
    applications, routing = require("starlette.applications"), require("starlette.routing")
    answers = _Answers(desk)
    contents = page_files()

    async def page(request: Request) -> Response:
        return _file(contents, PAGE)

    async def own_file(request: Request) -> Response:
        return _file(contents, request.path_params["name"])

    routes = [
        ("/", page, "GET"),
        ("/static/{name}", own_file, "GET"),
        ("/api/about", answers.about, "GET"),
        ("/api/progress", answers.progress, "GET"),
        ("/api/rows", answers.rows, "GET"),
        ("/api/place", answers.place, "GET"),
        ("/api/seen", answers.seen, "GET"),
        ("/api/queries", answers.queries, "GET"),
        ("/api/sample/{row:int}", answers.sample, "GET"),
        ("/api/decisions", answers.decisions, "GET"),
        ("/api/view", answers.view, "POST"),
        ("/api/mark", answers.mark, "POST"),
        ("/api/undo", answers.undo, "POST"),
    ]
    return applications.Starlette(
        routes=[routing.Route(path, _checked(answer), methods=[method]) for path, answer, method in routes]
    )


def page_files() -> dict[str, bytes]:
    """The files of the page, by name: its own, and the style of the reports that it shares."""
    own = {file.name: file.read_bytes() for file in (files("diffin.explore") / "static").iterdir() if file.is_file()}
    return {**own, "page.css": (files("diffin.report") / "template" / "page.css").read_bytes()}


class _Answers:
    """A question each."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def about(self, request: Request) -> Any:
        return await asyncio.to_thread(self._desk.about)

    async def progress(self, request: Request) -> Any:
        return self._desk.progress()

    async def view(self, request: Request) -> Any:
        return await asyncio.to_thread(self._desk.view, await request.json())

    async def rows(self, request: Request) -> Any:
        number, start, stop = (int(request.query_params[name]) for name in ("view", "start", "stop"))
        return {"rows": self._desk.rows(number, start, stop)}

    async def place(self, request: Request) -> Any:
        return {"place": self._desk.place(int(request.query_params["view"]), int(request.query_params["row"]))}

    async def sample(self, request: Request) -> Any:
        return await asyncio.to_thread(self._desk.says.sample, request.path_params["row"])

    async def seen(self, request: Request) -> Any:
        rows = [row for row in _numbers(request) if 0 <= row < self._desk.table.size]
        found = self._desk.seen(rows)
        return found | await self._read(request, [row for row in rows if str(row) not in found], self._desk.see)

    async def queries(self, request: Request) -> Any:
        return await self._read(request, _numbers(request), self._desk.see_queries)

    async def mark(self, request: Request) -> Any:
        content = await request.json()
        return await self._saved(lambda: self._desk.mark(content))

    async def undo(self, request: Request) -> Any:
        return await self._saved(self._desk.undo)

    async def decisions(self, request: Request) -> Any:
        return await asyncio.to_thread(self._desk.marks.to_json)

    async def _saved(self, change: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Decisions, and whether they are on disk when the page hears of it."""
        done = change()
        try:
            await asyncio.to_thread(self._desk.marks.save)
        except DiffinError as error:
            return {**done, "trouble": str(error)}
        return done

    async def _read(
        self, request: Request, numbers: Sequence[int], see: Callable[[Sequence[int]], dict[str, Any]]
    ) -> dict[str, Any]:
        """A few at a time, so that what nobody waits for any more, because it was scrolled past, is not read."""
        found: dict[str, Any] = {}
        for start in range(0, len(numbers), _AT_ONCE):
            part = numbers[start : start + _AT_ONCE]
            job = self._desk.worker.submit(partial(see, part))
            waiting = asyncio.wrap_future(job)
            while not (await asyncio.wait({waiting}, timeout=_LOOK_AGAIN))[0]:
                if await request.is_disconnected():
                    job.cancel()
                    return found
            found |= waiting.result()
        return found


def _numbers(request: Request) -> list[int]:
    return [int(part) for part in request.query_params["of"].split(",") if part][:_MOST_SEEN]


def _checked(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """As JSON; what cannot be answered is a sentence."""

    async def checked(request: Request) -> Response:
        responses = require("starlette.responses")
        try:
            found = await answer(request)
        except DiffinError as error:
            found = responses.JSONResponse({"error": str(error)}, status_code=400)
        except (KeyError, TypeError, ValueError) as error:
            found = responses.JSONResponse({"error": f"this cannot be asked: {error!r}"}, status_code=400)
        response: Response = found if isinstance(found, responses.Response) else responses.JSONResponse(found)
        return response

    return checked


def _file(contents: dict[str, bytes], name: str) -> Response:
    responses = require("starlette.responses")
    suffix = name[name.rfind(".") :]
    if name not in contents or suffix not in _TYPES:
        missing: Response = responses.PlainTextResponse("not found", status_code=404)
        return missing
    response: Response = responses.Response(contents[name], media_type=_TYPES[suffix])
    return response
