"""The documentation: what it quotes is in the code, its examples run, and it builds with every internal link whole."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from shd_bids.bids.names import OUTPUTS
from shd_bids.cli.parser import SECTIONS, build_parser
from shd_bids.cli.slurm import build_parser as slurm_parser
from shd_bids.training.train import build_parser as training_parser

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = ("usage.md", "outputs.md")
OUTSIDE = ("https:", "http:", "mailto:")
OF_OTHERS = {"--nv", "--gpus", "--user", "--build-arg", "--nproc-per-node", "--containall", "--json", "--bids-dir"}


def code_texts() -> str:
    """All texts of the package's code, with … for what is filled in, one a line."""
    found = []
    for path in sorted({*(ROOT / "shd_bids").rglob("*.py"), *(ROOT / "workflows").rglob("*.py")}):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def quoted_messages() -> Iterator[tuple[str, list[str]]]:
    """The parts of each message that the page on trouble quotes."""
    for line in (DOCS / "troubleshooting.md").read_text("utf-8").splitlines():
        cell = line.split("|")[1].strip() if line.startswith("|") else ""
        if cell.startswith(("`", "…")):
            yield cell, re.findall(r"`([^`]+)`", cell)


def test_messages_are_those_of_the_program():
    texts = code_texts()
    messages = dict(quoted_messages())
    assert len(messages) > 40
    parts = [part.strip() for found in messages.values() for part in found]
    assert not [part for part in parts if part not in texts]


def test_message_of_no_program_is_noticed():
    assert "its process was eaten" not in code_texts()


def test_options_in_the_text_exist():
    parsers = (build_parser(), training_parser(), slurm_parser())
    known = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    for page in sorted(DOCS.glob("*.md")):
        for line in page.read_text("utf-8").splitlines():
            for code in re.findall(r"`([^`]*)`", line) + ([line] if line.startswith("shd_bids ") else []):
                if re.match(r"(shd_bids|--)", code) and "apptainer" not in code:
                    used = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", code))
                    assert used <= known | OF_OTHERS, f"{page.name}: {code}"


def test_all_options_and_outputs_are_shown():
    shown = {page: set(re.findall(r"{generated} \w+ (.+)", (DOCS / page).read_text("utf-8"))) for page in PAGES}
    assert shown["usage.md"] == set(SECTIONS)
    assert shown["outputs.md"] == {row["stage"] for row in OUTPUTS.values()}


@pytest.mark.slow
def test_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text("utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 5
    exec(compile("\n".join(blocks), "docs/python.md", "exec"), {})


class Links(HTMLParser):
    """Anchors of a page, the links in it, and what a browser would fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Collect what a tag names and points to."""
        named = {name: value or "" for name, value in attributes}
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        elif tag == "link" and named.get("rel") not in ("canonical",) and "href" in named:
            self.fetched.append(named["href"])
        elif "src" in named:
            self.fetched.append(named["src"])


def links_of(page: Path) -> Links:
    found = Links()
    found.feed(page.read_text("utf-8"))
    return found


def broken_links(site: Path) -> list[str]:
    """Links and files that a built site lacks, and what it would fetch from elsewhere."""
    pages = {page: links_of(page) for page in site.rglob("*.html")}
    broken = []
    for page, found in pages.items():
        for address in found.links + found.fetched:
            parts = urlsplit(address)
            if address.startswith(OUTSIDE) or parts.netloc:
                broken += [f"{page.name}: fetches {address}"] if address in found.fetched else []
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file() or (
                parts.fragment and target in pages and parts.fragment not in pages[target].anchors
            ):
                broken.append(f"{page.name}: {address}")
    return broken


@pytest.mark.slow
def test_site_builds_without_a_warning_and_its_links_are_whole(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    build = [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(list(tmp_path.glob("*.html"))) >= 14
    assert broken_links(tmp_path) == []


def test_broken_links_are_noticed(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">x</a><a href="c.html">x</a><script src="https://x.org/y.js">'
    )
    (tmp_path / "b.html").write_text('<p id="here">')
    assert len(broken_links(tmp_path)) == 3
