"""Serving the page: from a terminal until it is interrupted, or from a notebook beside other work."""

from __future__ import annotations

import asyncio
import html
import logging
import socket
import threading
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffin.actions.clean import Suspects
from diffin.attribution import Attribution
from diffin.errors import DiffinError
from diffin.explore.dependencies import require
from diffin.explore.desk import Desk
from diffin.explore.guard import Guard
from diffin.explore.marks import Marks
from diffin.explore.server import application
from diffin.problem import Problem
from diffin.scoring.scores import Scores
from diffin.trajectory import Trajectory

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
DECISIONS = "decisions.json"
_START, _STOP = 30.0, 5.0


class Explorer:
    """A page that is being served. Made by :func:`explore`; closes at the end of a ``with`` block.

    Attributes:
        url: its address, with the token without which the page does not open. Whoever has it can see the samples.
    """

    def __init__(self, desk: Desk, port: int) -> None:
        uvicorn = require("uvicorn")
        app = application(desk)
        self._desk = desk
        self._socket = _listening(port)
        port = self._socket.getsockname()[1]
        guard = Guard(app, port)
        self._guard, self._page = guard, f"http://{LOOPBACK}:{port}/?token="
        self.url = self._page + guard.token
        # No log of requests: the first has the token in its address.
        settings = uvicorn.Config(
            guard, log_level="warning", access_log=False, lifespan="off", server_header=False, date_header=False,
            proxy_headers=False, http="h11", ws="none", timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._serve, name="diffin-explore-server", daemon=True)
        self._started, self._closed = threading.Event(), False
        self._thread.start()
        if not self._started.wait(_START):
            raise DiffinError(f"the server has not started within {_START:.0f} s")

    @property
    def marks(self) -> Marks:
        """What has been decided so far."""
        return self._desk.marks

    def show(self) -> bool:
        """Open the page in a browser, if there is one. The address that it is given opens the page this once."""
        return webbrowser.open(self._page + self._guard.once())

    def wait(self) -> None:
        """Until the page is closed by :meth:`close`, or interrupted."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop serving. Decisions are saved as they are made; those that are not yet are saved now."""
        if self._closed:
            return
        self._closed = True
        self._server.should_exit = True
        self._thread.join(_STOP)
        self._socket.close()
        self._desk.close()

    def __enter__(self) -> Explorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Explorer({'closed' if self._closed else self.url})"

    def _repr_html_(self) -> str:
        if self._closed:
            return "<p>closed</p>"
        return f'<p><a href="{html.escape(self.url)}" target="_blank" rel="noreferrer noopener">Explore</a></p>'

    def _serve(self) -> None:
        async def serve() -> None:
            task = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
            while not (self._server.started or task.done()):
                await asyncio.sleep(0.005)
            self._started.set()
            await task

        asyncio.run(serve())


def explore(
    scores: Scores | str | Path,
    problem: Problem | None = None,
    *,
    run: Trajectory | str | Path | None = None,
    state: Mapping[str, Tensor] | None = None,
    suspects: Suspects | str | Path | None = None,
    attribution: Attribution | str | Path | None = None,
    columns: pa.Table | str | Path | None = None,
    decisions: str | Path | None = None,
    title: str = "Explore",
    port: int = 0,
    browser: bool = True,
    block: bool = True,
) -> Explorer:
    """Look through scores on a page of this machine: filter, sort, see samples and their courses, decide about them.

    The page can be opened from this machine only, by whoever has its address. It loads nothing from elsewhere, and nothing is
    written but the decisions, at once.

    Args:
        scores: what to look through, or their folder.
        problem: what was scored; its training data give pictures, texts or rows, its task the labels. Without it there are
            numbers only.
        run: the recorded training, whose final model predicts; or its folder.
        state: parameters and buffers of the final model instead, by name.
        suspects: what :func:`diffin.clean` found, or its folder: probabilities, suggestions and signals.
        attribution: what :func:`diffin.attribute` found, or its folder: the proponents and opponents of each query.
        columns: a table or Parquet file with a row for every sample, or a column ``index`` (or ``key``): words and truth
            values are filtered by, numbers sorted by.
        decisions: the file that decisions are kept in, as ``diffin clean --decisions`` reads it. What is there is gone on
            with. By default ``decisions.json`` in the folder of the scores; of scores in memory, none is written.
        title: the headline.
        port: to listen on; 0 for any that is free.
        browser: open the page.
        block: return when interrupted (Ctrl-C). Otherwise at once; then :meth:`Explorer.close` ends it.

    Raises:
        MissingDependencyError: the ``explore`` extra is not installed.
        ScoringError: a folder does not hold what it should.
        DatasetError: suspects, attribution, columns or decisions are about other samples.
        TrajectoryError: the final state does not fit the model.
        DiffinError: ``run`` or ``state`` without ``problem``, or the port is taken.
    """
    for package in ("starlette", "uvicorn", "PIL.Image"):
        require(package)
    if problem is None and (run is not None or state is not None):
        raise DiffinError("run and state say what the model predicts of the samples; pass the problem as well")
    if not 0 <= port <= 65535:
        raise DiffinError(f"port={port}; pass a number up to 65535, or 0 for any that is free")
    scores = scores if isinstance(scores, Scores) else Scores.open(scores)
    if state is None and run is not None:
        final = (run if isinstance(run, Trajectory) else Trajectory.open(run)).final
        state = None if final is None else final.state
    place = scores.path / DECISIONS if decisions is None and scores.path is not None else decisions
    desk = Desk(
        scores,
        problem,
        state,
        suspects if suspects is None or isinstance(suspects, Suspects) else Suspects.open(suspects),
        attribution if attribution is None or isinstance(attribution, Attribution) else Attribution.open(attribution),
        columns,
        None if place is None else Path(place),
        title,
    )
    try:
        explorer = Explorer(desk, port)
    except BaseException:
        desk.close()
        raise
    if browser:
        explorer.show()
    if block:
        try:
            explorer.wait()
        except KeyboardInterrupt:
            logger.info("interrupted")
        finally:
            explorer.close()
    return explorer


def _listening(port: int) -> Any:
    """A socket of the loopback interface."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
    except OSError as error:
        listening.close()
        raise DiffinError(
            f"port={port} cannot be listened on ({error}); pass another, or 0 for any that is free"
        ) from None
    return listening
