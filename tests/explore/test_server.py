"""The server as somebody else would ask it, and as its page does."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from explored import QUERIES, SAMPLES, TOP, Client, Explored

from diffin.actions.clean import read_decisions
from diffin.explore import Explorer

Serve = Callable[..., Explorer]

CLOSED = ["/api/about", "/static/main.js", "/api/decisions", "/?token=wrong", "/?token=", "/?again=1"]
ABSENT = ["sample/100000", "rows?view=1", "rows?view=x&start=0&stop=1", "seen", "seen?of=x"]


# Who may ask.


def test_only_the_loopback_interface_is_listened_on(explorer: Explorer) -> None:
    address = explorer._socket.getsockname()
    assert address[0] == "127.0.0.1"
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(OSError):
            socket.create_connection((own, address[1]), timeout=2)


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("cookie", ["", "diffin=1", "{name}=wrong", "{name}=", 'broken;;="'])
def test_nobody_gets_in_without_the_token_or_the_cookie(client: Client, path: str, cookie: str) -> None:
    name = client.cookie.partition("=")[0]
    status, _, body = client.raw("GET", path, headers={"Cookie": cookie.format(name=name)})
    assert status == 403
    assert b"token" in body
    assert b"digit" not in body


def test_the_token_opens_the_page_and_nothing_else(client: Client) -> None:
    status, _, _ = client.raw("GET", f"/api/about?{client.token}", headers={"Cookie": ""})
    assert status == 403
    assert client.raw("POST", f"/api/undo?{client.token}", {}, headers={"Cookie": ""})[0] == 403


def test_an_address_that_others_can_see_opens_the_page_once(explorer: Explorer, client: Client) -> None:
    path = f"/?token={explorer._guard.once()}"
    assert client.raw("POST", path, {}, headers={"Cookie": ""})[0] == 403
    status, headers, _ = client.raw("GET", path, headers={"Cookie": ""})
    assert status == 200
    assert client.raw("GET", "/api/about", headers={"Cookie": headers["set-cookie"].partition(";")[0]})[0] == 200
    assert client.raw("GET", path, headers={"Cookie": ""})[0] == 403


def test_the_cookie_is_strict_and_no_script_reads_it(client: Client) -> None:
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(client.set_cookie.split("; "))
    assert client.token.partition("=")[2] not in client.set_cookie


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "0.0.0.0", "[::1]"])
def test_another_name_for_this_machine_is_refused(client: Client, host: str) -> None:
    for path in ("/", f"/?{client.token}", "/api/about"):
        assert client.raw("GET", path, headers={"Host": host})[0] in (400, 421)


def test_localhost_and_a_forwarded_port_are_this_machine(client: Client) -> None:
    for host in ("localhost:9", "127.0.0.1:12345", "localhost"):
        assert client.raw("GET", "/api/about", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": ""},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_another_page_cannot_decide(client: Client, explorer: Explorer, headers: dict[str, str]) -> None:
    asked = {"rows": [1], "verdict": "drop"}
    assert client.raw("POST", "/api/mark", asked, headers=headers)[0] == 403
    assert explorer.marks.counts["drop"] == 0


def test_another_page_cannot_embed_what_is_served(client: Client) -> None:
    assert client.raw("GET", "/api/about", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert client.raw("GET", "/static/main.js", headers={"Sec-Fetch-Site": "same-site"})[0] == 403


@pytest.mark.parametrize("path", ["/", "/api/about", "/static/main.js", "/absent", "/static/absent.js"])
def test_every_answer_has_a_policy_that_lets_in_nothing_foreign(client: Client, path: str) -> None:
    _, headers, _ = client.raw("GET", path)
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src data:")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["..%2f..%2fmarks.py", "%2e%2e/guard.py", "__init__.py", "explore.html%00", ""])
def test_no_other_file_can_be_had(client: Client, name: str) -> None:
    assert client.raw("GET", f"/static/{name}")[0] == 404


def test_pages_load_nothing_from_elsewhere() -> None:
    from diffin.explore.server import page_files

    for name, content in page_files().items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, name
        assert "https:" not in text, name
        assert "innerHTML" not in text, name


# What is answered.


def test_samples_come_in_the_order_of_their_influence(client: Client, explored: Explored) -> None:
    view = client.view()
    assert view["count"] == SAMPLES
    assert [row["i"] for row in view["rows"]] == explored.scores.most_harmful(120).tolist()
    rest = client.get(f"/api/rows?view={view['view']}&start=120&stop={SAMPLES}")["rows"]
    assert [row["i"] for row in rest] == explored.scores.most_harmful(SAMPLES)[120:].tolist()
    assert client.get(f"/api/place?view={view['view']}&row={rest[5]['i']}") == {"place": 125}


def test_a_row_says_what_is_known(client: Client, explored: Explored) -> None:
    _wait(client)
    scores, suspects = explored.scores, explored.suspects
    labels = explored.problem.train.tensors[1]
    for row in client.view(sort="loss")["rows"][:20]:
        index = row["i"]
        assert row["influence"] == pytest.approx(scores.influence[index], rel=1e-6)
        assert row["loss"] == pytest.approx(scores.loss[index], rel=1e-6)
        assert row["label"] == f"digit {int(labels[index])}"
        assert row["given"] == int(labels[index])
        assert row["probability"] == pytest.approx(suspects.probability[index], rel=1e-6)
        assert row["suggested"] == f"digit {suspects.suggested[index]}"
        assert row["rather"] == suspects.suggested[index]


def test_one_sample_has_its_course_its_signals_and_its_queries(client: Client, explored: Explored) -> None:
    scores, suspects, found = explored.scores, explored.suspects, explored.attribution
    matrix = np.concatenate([part for _, part in found.matrix()]).astype(np.float64)
    for index in (0, 17, SAMPLES - 1):
        sample = client.get(f"/api/sample/{index}")
        np.testing.assert_allclose(sample["terms"], scores.terms[index], rtol=1e-6)
        assert sum(sample["terms"]) == pytest.approx(sample["influence"], rel=1e-5)
        assert sample["rank"] == 1 + int((scores.influence > scores.influence[index]).sum())
        for name, values in suspects.signals.items():
            assert sample["numbers"][f"signal:{name}"][2] == pytest.approx(values[index], rel=1e-6)
        order = np.argsort(matrix[index])
        helped = [place for place in order if matrix[index, place] < 0][:8]
        harmed = [place for place in order[::-1] if matrix[index, place] > 0][:8]
        assert [place for place, _, _ in sample["queries"]["helped"]] == helped
        assert [place for place, _, _ in sample["queries"]["harmed"]] == harmed


def test_a_query_has_its_proponents_and_opponents_and_looks_like_itself(client: Client, explored: Explored) -> None:
    found = explored.attribution
    looks = client.get(f"/api/queries?of={','.join(map(str, range(QUERIES)))}")
    for place in range(QUERIES):
        facts = looks[str(place)]["facts"]
        assert looks[str(place)]["kind"] == "picture"
        assert facts["label"] == f"digit {int(explored.problem.query.tensors[1][place])}"
        assert [index for index, _ in facts["proponents"]] == found.proponents[place].tolist()
        assert [index for index, _ in facts["opponents"]] == found.opponents[place].tolist()
        assert len(facts["opponents"]) == TOP


def test_samples_are_seen_with_what_is_said_of_them(client: Client) -> None:
    looks = client.get("/api/seen?of=3,7,7,900,-1")
    assert sorted(looks) == ["3", "7"]
    assert looks["3"]["kind"] == "picture"
    assert looks["3"]["crisp"]
    assert looks["3"]["facts"]["predicted"].startswith("digit")


def test_label_and_prediction_are_compared(client: Client, explored: Explored) -> None:
    _wait(client)
    agree, disagree = (client.view(agreement=wanted)["count"] for wanted in (True, False))
    assert agree + disagree == SAMPLES
    assert 0 < disagree < SAMPLES / 2


def test_decisions_are_on_disk_when_the_page_hears_of_it(
    client: Client, explorer: Explorer, explored: Explored
) -> None:
    answer = client.post("/api/mark", {"rows": [5], "verdict": "drop"})
    assert answer == {"changed": 1, "counts": {"keep": 0, "drop": 1, "relabel": 0}, "undoable": 1}
    assert _decided(explorer, explored) == [(5, "drop", None)]
    client.post("/api/mark", {"rows": [9], "verdict": "relabel", "label": (int(explored.suspects.given[9]) + 1) % 10})
    view = client.view(ranges={"index": [0, 3]}, sort="index")
    assert client.post("/api/mark", {"view": view["view"], "verdict": "keep"})["changed"] == 4
    assert len(_decided(explorer, explored)) == 6
    assert client.post("/api/undo", {})["changed"] == 4
    assert len(_decided(explorer, explored)) == 2
    assert client.view(marks=[2])["count"] == 1
    assert client.get("/api/decisions") == json.loads(_file(explorer).read_text())


def test_decisions_of_another_time_are_gone_on_with(explored: Explored, serve: Serve, tmp_path: Path) -> None:
    with serve(explored.scores, explored.problem) as first:
        Client(first).post("/api/mark", {"rows": [5], "verdict": "drop"})
    again = Client(serve(explored.scores, explored.problem))
    assert again.get("/api/about")["counts"]["drop"] == 1
    assert again.get("/api/sample/5")["mark"] == "drop"


def test_a_file_changed_by_something_else_is_reported(explored: Explored, serve: Serve) -> None:
    explorer = serve(explored.scores)
    client = Client(explorer)
    client.post("/api/mark", {"rows": [5], "verdict": "drop"})
    _file(explorer).write_text("{}")
    assert "changed by something else" in client.post("/api/mark", {"rows": [6], "verdict": "drop"})["trouble"]
    assert _file(explorer).read_text() == "{}"
    _file(explorer).unlink()
    assert "trouble" in client.post("/api/mark", {"rows": [7], "verdict": "drop"})
    explorer.close()
    assert not _file(explorer).exists()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/api/view", {}),
        ("/api/view", []),
        ("/api/mark", {"rows": [SAMPLES], "verdict": "drop"}),
        ("/api/mark", {"rows": ["x"], "verdict": "drop"}),
        ("/api/mark", {"rows": [1], "verdict": "burn"}),
        ("/api/mark", {"rows": [1], "verdict": "relabel", "label": 10}),
        ("/api/mark", {"view": 999, "verdict": "drop"}),
        ("/api/mark", {}),
    ],
    ids=str,
)
def test_nonsense_is_a_sentence_and_changes_nothing(
    client: Client, explorer: Explorer, path: str, content: Any
) -> None:
    assert client.post(path, content, status=400)["error"]
    assert explorer.marks.undoable == 0


@pytest.mark.parametrize("path", ABSENT)
def test_what_is_not_there_is_a_sentence(client: Client, path: str) -> None:
    status, _, body = client.raw("GET", f"/api/{path}")
    assert status == 400
    assert json.loads(body)["error"]


def test_numbers_alone_can_be_explored(explored: Explored, serve: Serve) -> None:
    client = Client(serve(explored.scores))
    about = client.get("/api/about")
    assert about["shows"] is False
    assert about["classes"] == []
    assert about["done"] == about["total"] == 0
    assert client.view(sort="magnitude")["count"] == SAMPLES
    assert client.get("/api/seen?of=1,2") == {}
    assert client.get("/api/sample/0")["queries"] is None
    assert client.post("/api/mark", {"rows": [1], "verdict": "relabel", "label": 1}, status=400)
    assert client.post("/api/mark", {"rows": [1], "verdict": "drop"})["changed"] == 1


def _wait(client: Client) -> None:
    for _ in range(400):
        progress = client.get("/api/progress")
        if progress["done"] >= progress["total"]:
            return
        time.sleep(0.02)
    raise AssertionError(progress)


def _file(explorer: Explorer) -> Path:
    assert explorer.marks.path is not None
    return explorer.marks.path


def _decided(explorer: Explorer, explored: Explored) -> list[tuple[int, str, int | None]]:
    found = read_decisions(_file(explorer), labels=explored.suspects.given.tolist(), classes=10)
    return [(decision.index, decision.verdict, decision.label) for decision in found]


def test_the_address_is_of_a_random_token(explored: Explored, serve: Serve) -> None:
    one, other = (urlsplit(serve(explored.scores, decisions=None).url) for _ in range(2))
    assert one.query != other.query
    assert len(one.query) > 40
    assert one.port != other.port


class Slow(torch.utils.data.Dataset[Any]):
    """Pictures that take their time, and which were read."""

    def __init__(self, explored: Explored) -> None:
        self.data, self.reads = explored.problem.train, []

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, row: int) -> Any:
        self.reads.append(row)
        time.sleep(0.02)
        return self.data[row]


def test_what_was_scrolled_past_is_not_read(explored: Explored, serve: Serve) -> None:
    data = Slow(explored)
    client = Client(serve(explored.scores, replace(explored.problem, train=data)))
    # Far from where all samples are read in the background, from the first on.
    first, last = 150, SAMPLES - 1
    host, port = client.host.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        asked = f"GET /api/seen?of={','.join(map(str, range(first, last)))} HTTP/1.1"
        connection.sendall("\r\n".join([asked, f"Host: {client.host}", f"Cookie: {client.cookie}", "", ""]).encode())
        while not any(row >= first for row in data.reads):
            time.sleep(0.01)
    assert list(client.get(f"/api/seen?of={last}")) == [str(last)]
    assert max(row for row in data.reads if row < last) < (first + last) / 2
