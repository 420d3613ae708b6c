"""Pages that open from disk: jinja2 templates with styles and scripts inside, which a policy of hashes alone admits."""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MODULE_LINES = re.compile(r"^import [^;]*;\n|^export (?=const|function|class|async)", re.MULTILINE)


def render_page(template: str, *, styles: Sequence[str], scripts: Sequence[str] = (), **content: Any) -> str:
    """Return a page that asks nothing from the network and runs no script or style but its own.

    Parameters
    ----------
    template : str
        File in ``templates`` that extends ``base.html``.
    styles, scripts : sequence of str
        Files in ``assets``, joined in this order; scripts are modules that import only one another.
    **content
        Values of the template; text is escaped, `markupsafe.Markup` is not.

    Returns
    -------
    str
        HTML.
    """
    style = "".join(asset(name) for name in styles)
    script = join_modules([asset(name) for name in scripts])
    page = _environment().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy(style, script), **content)


def asset(name: str) -> str:
    """Return a style or script of the package."""
    return files("shd_bids.report").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def join_modules(modules: Sequence[str]) -> str:
    """Return JavaScript modules as one, in order of dependence: their imports of one another and the word export fall away."""
    return "".join(MODULE_LINES.sub("", text) for text in modules)


def policy(style: str, script: str) -> str:
    """Return a content-security policy that admits pictures inside the page, one style and one script."""
    admitted = f"script-src {_hash(script)}; " if script else ""
    return f"default-src 'none'; img-src data:; style-src {_hash(style)}; {admitted}base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("shd_bids.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
