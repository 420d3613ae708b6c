"""Configuration of the documentation, which is built without the network: ``make docs``."""

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests" / "benchmarks")]

import generated  # noqa: E402  (beside this file; it needs the folders above)

import shd_bids  # noqa: E402

project = "shd_bids"
copyright = "the authors of shd_bids, Apache-2.0"
version = release = shd_bids.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "code"
nitpicky = False  # docstrings name types in words
numpydoc_show_class_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings tell them, with shapes

html_theme = "furo"
html_title = f"shd_bids {version}"
html_copy_source = False
html_show_sphinx = False


class Generated(SphinxDirective):
    """Insert a table of :mod:`generated`: its name, then the words it takes."""

    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return what the Markdown of the table says."""
        name, *words = self.arguments
        found = nodes.Element()
        lines = StringList(generated.TABLES[name](*words), source=f"generated.{name}")
        self.state.nested_parse(lines, self.content_offset, found)
        return found.children


def _math(translator: Any, node: nodes.Element, *, is_block: bool) -> None:
    """Write mathematics as MathML, which browsers draw without a script."""
    translator.body.append(tex2mathml(node.astext(), as_block=is_block))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Add what this documentation has of its own."""
    app.add_directive("generated", Generated)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda self, node: _math(self, node, is_block=False), None),
        block_renderers=(lambda self, node: _math(self, node, is_block=True), None),
    )


html_math_renderer = "mathml"
