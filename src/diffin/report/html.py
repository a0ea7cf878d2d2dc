"""One self-contained HTML file out of a template: no other file, no network, and no script but those that belong to it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffin.files import write_atomically
from diffin.report.dependencies import require
from diffin.report.numbers import count, share


def write_html(path: Path, template: str, content: Mapping[str, Any], payload: Any, *, own: str | None = None) -> Path:
    """Render a template and write it.

    Args:
        path: the file; replaced when complete.
        template: its name in the folder ``template``.
        content: what it asks for, beside the style, the scripts and their hashes.
        payload: JSON-able, for the scripts.
        own: the stem of a style sheet, read after the common one, and of a script, in the place of that which draws figures;
            such a page does not carry the plotting library.

    Raises:
        MissingDependencyError: the ``report`` extra is not installed.
    """
    jinja2 = require("jinja2")
    folder = files("diffin.report") / "template"
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
    )
    environment.filters["count"], environment.filters["share"] = count, share
    # The HTML parser reads a line break as "\n", and the hash that admits a script is taken of what it reads.
    texts = [require("plotly.offline").get_plotlyjs()] if own is None else []
    texts.append((folder / f"{own or 'page'}.js").read_text(encoding="utf-8"))
    scripts = [text.replace("\r\n", "\n") for text in texts]
    styles = ["page"] if own is None else ["page", own]
    markup = require("markupsafe").Markup
    html = environment.get_template(template).render(
        **content,
        payload=markup(_json_in_html(payload)),
        style=markup("".join((folder / f"{name}.css").read_text(encoding="utf-8") for name in styles)),
        scripts=[markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as part:
        part.write_bytes(html.encode("utf-8", errors="replace"))
    return path


def _json_in_html(value: Any) -> str:
    """JSON that no HTML parser can take for markup: it holds no ``<``, ``>`` or ``&``."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
