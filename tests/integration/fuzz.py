"""Damaged and hostile input: ``python -m tests.integration.fuzz --n 1000`` tries what nobody should hand to the app.

Each case changes one thing of a small data set and calls the app: some only ask what a call would do (``--dry-run``),
most go on to the responses and some to the fODF, in forked processes with all libraries loaded, so that a case takes seconds.
What must never happen is a finding: a traceback, an internal error, more than a minute, more than 2 GB, a file outside of
the output or a changed input, and damage that was taken without a word.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import shd_bids
from shd_bids import simulation
from shd_bids.cli.main import main
from shd_bids.fod.weights import save_weights
from shd_bids.interfaces import base
from shd_bids.interfaces.report import FigureInterface
from shd_bids.nn.backends.cpu.build import library
from shd_bids.response.mrtrix import format_response
from shd_bids.response.response import Response
from shd_bids.simulation.microstructure import draw_subject, subject_responses
from shd_bids.simulation.signal import tissue_signal
from shd_bids.simulation.tissue import random_tissue
from tests.integration.mutations.base import ANY, REFUSED, Mutation, Tree
from tests.integration.mutations.files import links, responses, tables, weights
from tests.integration.mutations.forms import header_forms, mask_forms, table_forms
from tests.integration.mutations.images import header, image_bytes, masks, volumes
from tests.integration.mutations.mixups import mixups
from tests.integration.mutations.words import arguments, configurations, filters, names, sidecars
from tests.phantoms import write_head
from tests.tiny import tiny_weights

MUTATIONS: dict[str, Mutation] = {
    "image bytes": image_bytes,
    "image header": header,
    "header forms": header_forms,
    "volumes": volumes,
    "mix-ups": mixups,
    "tables": tables,
    "table forms": table_forms,
    "masks": masks,
    "mask forms": mask_forms,
    "responses": responses,
    "weights": weights,
    "sidecars": sidecars,
    "filters": filters,
    "configuration": configurations,
    "names": names,
    "links": links,
    "arguments": arguments,
}

MOST_SECONDS, MOST_GB = 60.0, 2.0
WAITING = 5  # times as long may a call take on a busy machine, if it does not compute itself
GB = 1024**3
INTERNAL_ERROR = 70
WHOLE_EVERY = 12  # of so many cases of one kind, one goes on to the fODF and its figures
PLANNED_EVERY = 4  # of so many, one is asked first what it would do
INDEX = "layout_index.sqlite"  # of pybids, where --bids-database-dir says
RESOURCES = ("--skip-bids-validation", "--nprocs", "1", "--mem", "2GB", "--device", "cpu", "--input-type", "raw")
NOT_WORDS = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?|/\S+")


@dataclass(frozen=True)
class Outcome:
    """What one call did: exit code, lines on standard error, seconds of the processor, and GB of memory at most."""

    code: int
    lines: tuple[str, ...]
    seconds: float
    gb: float

    @property
    def doubts(self) -> frozenset[str]:
        """Return the warnings and errors without their numbers and paths, which differ from call to call."""
        told = [line for line in self.lines if "WARNING" in line or "ERROR" in line or "error:" in line]
        return frozenset(NOT_WORDS.sub("#", line) for line in told)


@dataclass(frozen=True)
class Case:
    """One case: its number, what was changed, what came of it, and what must not have happened but did."""

    number: int
    kind: str
    what: str
    code: int
    seconds: float
    gb: float
    findings: tuple[str, ...]


def make_template(root: Path) -> Tree:
    """Write the data set that is changed: tissue in 12^3 voxels and 36 volumes, a mask, responses, small weights."""
    tree = Tree(root)
    rng = np.random.default_rng(3)
    table = simulation.make_gradients(rng, {1000.0: 12, 2500.0: 20}, n_b0=4)
    tissue = random_tissue(rng, 12, narrowest=0.2)
    subject = draw_subject(rng, int(tissue.bundle.max()) + 1)
    signal = 500 * simulation.add_noise(tissue_signal(tissue, subject, table), 1 / 40, rng)
    write_head(tree.raw, signal, table)
    tree.table("json").write_text(json.dumps({"EchoTime": 0.08, "RepetitionTime": 3.0}))
    tree.given.mkdir()
    mask = np.zeros(signal.shape[:3], dtype=np.uint8)
    mask[1:-1, 1:-1, 1:-1] = 1
    nib.save(nib.Nifti1Image(mask, nib.load(tree.dwi).affine), tree.mask)
    for path, true in zip(tree.responses, subject_responses(subject, table).tissues, strict=True):
        path.write_text(format_response(Response(true.tissue, true.bvalues, 500 * true.coefficients)))
    save_weights(tree.weights, tiny_weights())
    (tree.given / "linear.yml").write_text("plugin: Linear\n")
    return tree


def run_cases(numbers: Iterable[int], *, seed: int, folder: Path) -> Iterator[Case]:
    """Yield the outcome of cases; the same seed and number give the same case.

    Parameters
    ----------
    numbers : iterable of int
    seed : int
    folder : Path
        Work folder; only cases with findings stay.
    """
    _preload()
    template = make_template(folder / "template")
    usual = _usual(template, folder)
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        kind = list(MUTATIONS)[number % len(MUTATIONS)]
        root = folder / f"case_{number:05d}"
        shutil.copytree(template.root, root / "set", symlinks=True)
        case = _try(Tree(root / "set"), number, kind, rng, usual)
        if not case.findings:
            _remove(root)
        yield case


def _usual(template: Tree, folder: Path) -> frozenset[str]:
    """Return what is doubtful about the data set as it is, which must be accepted."""
    root = folder / "unchanged"
    shutil.copytree(template.root, root / "set")
    tree = Tree(root / "set")
    outcomes = [_call(tree, _words(tree, (), level=level), draws=True) for level in ("response", "fod")]
    if any(outcome.code for outcome in outcomes):
        raise RuntimeError(f"the data set that is changed is not accepted: {outcomes}")
    _remove(root)
    return frozenset().union(*(outcome.doubts for outcome in outcomes))


def _try(tree: Tree, number: int, kind: str, rng: np.random.Generator, usual: frozenset[str]) -> Case:
    change = MUTATIONS[kind](tree, rng)
    before = state_of(tree.root, without=("out", "work", "cwd"))
    is_whole = number // len(MUTATIONS) % WHOLE_EVERY == 0
    words = _words(tree, change.options, level="fod" if is_whole or kind == "weights" else "response")
    outcomes = [_call(tree, [*words, "--dry-run"])] if number % PLANNED_EVERY == 0 else []
    if not outcomes or not outcomes[0].code:
        outcomes.append(_call(tree, words, draws=is_whole))
    last = outcomes[-1]
    findings = [finding for outcome in outcomes for finding in findings_of(outcome)]
    if state_of(tree.root, without=("out", "work", "cwd")) != before:
        findings.append("input changed, or a file beside it")
    if left := sorted(path.name for path in (tree.root / "cwd").rglob("*") if path.is_file() and path.name != INDEX):
        findings.append(f"files outside of the output: {', '.join(left[:5])}")
    is_told = any(outcome.code or outcome.doubts - usual for outcome in outcomes)
    if (change.expect == REFUSED and not last.code) or (change.expect != ANY and not is_told):
        findings.append(f"accepted, expected to be {change.expect}")
    seconds, gb = (max(getattr(outcome, name) for outcome in outcomes) for name in ("seconds", "gb"))
    case = Case(number, kind, change.what, last.code, seconds, gb, tuple(dict.fromkeys(findings)))
    if findings:
        log = "\n".join(["words: " + ascii(words), *(line for outcome in outcomes for line in outcome.lines)])
        (tree.root.parent / "log.txt").write_text(f"{case}\n{log}\n", "utf-8", "surrogateescape")
    return case


def _words(tree: Tree, options: Sequence[str], *, level: str) -> list[str]:
    """Return the words of the call; options of the case come last and win."""
    own = ["--mask", str(tree.mask), "--weights", str(tree.weights), "--use-plugin", str(tree.given / "linear.yml")]
    places = [str(tree.raw), str(tree.root / "out"), "participant", "--work-dir", str(tree.root / "work")]
    return [*places, "--level", level, *RESOURCES, *own, *options]


def findings_of(outcome: Outcome) -> Iterator[str]:
    text = "\n".join(outcome.lines)
    if "Traceback (most recent call last)" in text:
        yield "traceback"
    if outcome.code == INTERNAL_ERROR or "internal error" in text:
        yield "internal error"
    if "could not be drawn" in text:
        yield "figure not drawn"
    if re.search(r"ERROR.*\b[A-Z]\w*(Error|Exception): ", text):
        yield "name of an exception as message"
    if outcome.seconds > MOST_SECONDS:
        yield f"more than {MOST_SECONDS:.0f} s"
    if outcome.gb > MOST_GB:
        yield f"{outcome.gb:.1f} GB"
    if outcome.code < 0 and outcome.seconds <= MOST_SECONDS and outcome.gb <= MOST_GB:
        yield f"ended by signal {-outcome.code}"
    if outcome.code and not outcome.lines:
        yield "no message"


def _call(tree: Tree, words: Sequence[str], *, draws: bool = False) -> Outcome:
    """Call the app in a forked process that is killed when it takes too long or too much.

    Figures, which take most of the time of a small data set, are drawn only if asked for.
    """
    scratch = tree.root / "cwd"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    said = tree.root.parent / "stderr.txt"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_app(words, scratch, said, draws=draws)
    most, status, seconds = 0.0, 0, 0.0
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        most = max(most, _resident_gb(child))
        seconds = max(_processor_seconds(child), (time.monotonic() - started) / WAITING)
        if most > MOST_GB or seconds > MOST_SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    lines = tuple(said.read_text("utf-8", errors="replace").splitlines())
    return Outcome(os.waitstatus_to_exitcode(status), lines, seconds, most)


def _be_the_app(words: Sequence[str], scratch: Path, said: Path, *, draws: bool) -> None:
    """Do the call in this process, which ends with it."""
    code = 1
    try:
        for number, path in ((0, Path(os.devnull)), (1, scratch.parent.parent / "stdout.txt"), (2, said)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(scratch)
        os.environ |= {"HOME": str(scratch / "home"), "TMPDIR": str(scratch / "tmp")}
        for name in ("home", "tmp"):
            (scratch / name).mkdir()
        tempfile.tempdir = None
        base.call_isolated = call_here
        if not draws:
            FigureInterface._run_interface = lambda self, runtime: runtime
        code = main(list(words))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def call_here(function: Callable[..., dict[str, Any]], arguments: dict[str, Any], *, n_threads: int) -> dict[str, Any]:
    """Call a stage in this process, in place of `call_isolated`."""
    result = function(**arguments)
    result["facts"] |= {"peak_memory_mb": 0, "cpu_seconds": 0.0}
    return result


def _preload() -> None:
    """Import, and do once, what every case would import and do again."""
    for module in pkgutil.walk_packages(shd_bids.__path__, "shd_bids."):
        path = importlib.util.find_spec(module.name).origin
        is_compiled = not path.endswith(".py")  # a library of functions, which is no module
        if not (is_compiled or module.name.endswith("__main__") or ".cuda" in module.name):
            importlib.import_module(module.name)
    import bids.layout  # noqa: F401
    import dipy.segment.mask  # noqa: F401
    import matplotlib.pyplot as plt

    plt.figure().text(0, 0, "x").figure.canvas.draw()
    plt.close("all")
    library()  # the compiled kernel


def _processor_seconds(process: int) -> float:
    """Return the processor time that a process has taken."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_gb(process: int) -> float:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / GB
    except (OSError, IndexError):
        return 0.0


def state_of(root: Path, *, without: Sequence[str]) -> dict[str, str]:
    """Return every path below a folder with a digest of what it is."""
    state = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        if folder == os.fsencode(root):
            folders[:] = [name for name in folders if os.fsdecode(name) not in without]
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            is_file = os.path.isfile(path) and not os.path.islink(path)
            content = Path(os.fsdecode(path)).read_bytes() if is_file else str(os.lstat(path).st_mode).encode()
            state[os.fsdecode(path)] = hashlib.sha256(content).hexdigest()
    return state


def _remove(root: Path) -> None:
    shutil.rmtree(os.fsencode(root), ignore_errors=True)


def summary(cases: Sequence[Case]) -> str:
    """Return a table of the cases by kind, and one line for each finding."""
    lines = [f"{'kind':<14} {'cases':>5} {'refused':>7} {'done':>5} {'findings':>8} {'longest':>8} {'memory':>7}"]
    for kind in [*MUTATIONS, "all"]:
        some = [case for case in cases if kind in (case.kind, "all")]
        if not some:
            continue
        codes = Counter(bool(case.code) for case in some)
        found = sum(bool(case.findings) for case in some)
        longest, most = max(case.seconds for case in some), max(case.gb for case in some)
        lines.append(
            f"{kind:<14} {len(some):>5} {codes[True]:>7} {codes[False]:>5} {found:>8} {longest:>6.1f} s {most:>4.1f} GB"
        )
    lines += [
        f"{case.number}: {case.kind}, {case.what}: {'; '.join(case.findings)} (exit {case.code})"
        for case in cases
        if case.findings
    ]
    return "\n".join(lines)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="number of cases")
    parser.add_argument("--cases", type=int, nargs="+", help="numbers of the cases to do instead of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the cases with findings; a new one by default")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fuzz_"))
    cases = []
    for case in run_cases(arguments.cases or range(arguments.n), seed=arguments.seed, folder=folder):
        cases.append(case)
        if case.findings:
            print(ascii(f"{case.number}: {case.kind}, {case.what}: {'; '.join(case.findings)}"), flush=True)
    print(summary(cases).encode("ascii", "backslashreplace").decode())
    print(f"cases with findings: {folder}")
    return int(any(case.findings for case in cases))


if __name__ == "__main__":
    sys.exit(_main())
