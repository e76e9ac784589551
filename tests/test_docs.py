"""The documentation is true: its commands run, its policy works, its numbers, links and tables are the code's."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from voltana.record import RunRecord, find_records

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
DATA = Path(os.environ.get("VOLTANA_DATA", ROOT / ".." / "shared" / "data"))

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_POLICY = "Add a policy in 20 lines"
SMALL_PROFILE = (
    "profile.clocks_mhz=[1005,1410]",
    "profile.prefill.samples=4",
    "profile.decode.samples=5",
    "profile.decode.max_batch=32",
)
SMALLER = {
    "voltana-sim": ("duration_s=1", *SMALL_PROFILE),
    "voltana-live": ("duration_s=1", "trace=fixed", *SMALL_PROFILE),
    "voltana-profile": SMALL_PROFILE,
    "voltana-tune": ("duration_s=1", "seeds=2", "trials=3", *SMALL_PROFILE),
    "voltana-capacity": ("duration_s=1", "seeds=1", "precision=1", *SMALL_PROFILE),
    "voltana-check": ("check.requests=20", *SMALL_PROFILE),
}
MIXTURE = """{"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32,
"head_dim": 128, "num_hidden_layers": 4, "num_key_value_heads": 4, "vocab_size": 32000, "num_experts": 8,
"num_experts_per_tok": 2, "moe_intermediate_size": 768}"""
PUBLISHED = """model,dataset,rps,series,ttft_attainment_pct,itl_attainment_pct,energy_kJ
llama31_8b,sharegpt,10,voltanallm,99,99,9
"""


class Block(NamedTuple):
    """A code block; the language of an indented one is empty."""

    language: str
    text: str


def sections(document: Path) -> dict[str, str]:
    """The text below each second-level heading."""
    parts = re.split(r"^## (.+)$", document.read_text(), flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


def blocks(text: str) -> Iterator[Block]:
    for fenced in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        yield Block(fenced[1], fenced[2])
    unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for indented in re.finditer(r"(?:^    .*\n?)+", unfenced, flags=re.MULTILINE):
        yield Block("", indented[0])


def commands(text: str) -> list[str]:
    """The lines to type: everything in a block of `sh`, elsewhere what starts with the name of a command."""
    found = []
    for block in blocks(text):
        lines = [line.strip() for line in block.text.replace("\\\n", " ").splitlines()]
        found += [
            line
            for line in lines
            if line.startswith("voltana-") or (block.language == "sh" and line and not line.startswith(("#", "source")))
        ]
    return found


class Terminal:
    """A folder to work in, and the environment that lasts from line to line."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        path = os.pathsep.join((str(SCRIPTS), os.environ["PATH"]))
        self._environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(cache)}

    def type(self, line: str) -> str:
        """Run a line; return what it printed."""
        if line.startswith("export "):
            self._environment |= dict([line.removeprefix("export ").split("=", 1)])
            return ""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(name="terminal")
def _terminal(tmp_path: Path, cache: Path) -> Terminal:
    return Terminal(tmp_path, cache)


@pytest.fixture(scope="session", name="made_before")
def _made_before(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The runs of a sweep."""
    terminal = Terminal(tmp_path_factory.mktemp("before"), cache)
    terminal.type(smaller("voltana-sim -m policy=static_max,static_1005 rps=10,20 hydra.sweep.dir=runs"))
    return terminal.folder / "runs"


def smaller(line: str) -> str:
    """A command as documented, optional parts given, at a size for a test."""
    program, *arguments = shlex.split(line, comments=True)
    if program not in {*SMALLER, "voltana-fit", "voltana-compare", "voltana-plot", "voltana-report"}:
        return line
    optional = [re.fullmatch(r"\[(\w+=.+)\]", argument) for argument in arguments]
    given = [match[1] if match else argument for match, argument in zip(optional, arguments, strict=True)]
    # A run of one second has nothing to show later on.
    given = ["window=[0,1]" if argument.startswith("window=") else argument for argument in given]
    return shlex.join([program, *given, *SMALLER.get(program, ())])


def furnish(terminal: Terminal, line: str, made_before: Path) -> None:
    """Put in place what a command reads and a reader has: runs made before, a published curve, a trace, a model."""
    named = dict(argument.split("=", 1) for argument in shlex.split(line) if "=" in argument)
    for name in re.findall(r"[^\[\],]+", named.get("runs", "")):
        if not (terminal.folder / name).is_dir():
            shutil.copytree(
                made_before / "0" if named.get("figure") == "timeline" else made_before, terminal.folder / name
            )
    if "published" in named:
        published = terminal.folder / named["published"]
        published.parent.mkdir(parents=True, exist_ok=True)
        published.write_text(PUBLISHED)
    if "model.path" in named:
        (terminal.folder / named["model.path"]).write_text(MIXTURE)
    trace = named.get("trace.path")
    if trace and not (terminal.folder / trace).is_file() and (DATA / "traces" / trace).is_file():
        (terminal.folder / trace).symlink_to((DATA / "traces" / trace).resolve())


def needs_others(line: str) -> bool:
    """Whether a command wants a launcher or a sweeper of others, which `make test-launchers` runs, or a hub's model."""
    return re.search(r"hydra/(launcher|sweeper)=|model\.path=\w+/", line) is not None


def needs_data(line: str, folder: Path) -> bool:
    """Whether a command reads a public trace that is not at hand."""
    names = re.findall(r"trace\.path=(\S+)", line)
    return not all((folder / name).is_file() or (DATA / "traces" / name).is_file() for name in names)


TYPED = [
    pytest.param(text, id=f"{document.name}: {heading}".rstrip(": "))
    for document in DOCUMENTS
    for heading, text in sections(document).items()
    if heading != OWN_POLICY and any("voltana-" in line for line in commands(text))
]


@pytest.mark.slow
@pytest.mark.parametrize("text", TYPED)
def test_commands_run(text: str, terminal: Terminal, made_before: Path) -> None:
    for line in commands(text):
        if needs_others(line) or needs_data(line, terminal.folder):
            continue
        ready = smaller(line)
        furnish(terminal, ready, made_before)
        terminal.type(ready)


@pytest.mark.slow
def test_a_policy_of_ones_own(terminal: Terminal) -> None:
    text = sections(ROOT / "README.md")[OWN_POLICY]
    for block in blocks(text):
        if block.language in ("python", "yaml"):
            name, _, content = block.text.removeprefix("# ").partition("\n")
            (terminal.folder / name).parent.mkdir(exist_ok=True)
            (terminal.folder / name).write_text(content)
            if block.language == "python":
                assert len(content.partition("class ")[2].splitlines()) <= 20
    printed = [terminal.type(smaller(line)) for line in commands(text)]
    assert "by_batch" in printed[-1]

    records = {record.config["policy"]["name"]: record for record in find_records([terminal.folder / "runs"])}
    assert clocks(records["static_max"]) == {1410}
    shown = yaml.safe_load((terminal.folder / "policy" / "by_batch.yaml").read_text())
    assert shown["decode_controller"]["low_mhz"] in clocks(records["by_batch"])


def clocks(record: RunRecord) -> set[int]:
    """The clocks of the decode instances."""
    rows = record.instances()
    return set(rows[rows.phase == "decode"].clock_mhz)


@pytest.mark.slow
def test_the_first_result_is_what_the_demo_prints(terminal: Terminal) -> None:
    """At one of the rates shown. Where it fails: run `make demo`, bring README.md and docs/img/demo.png up to date.

    Feedback makes a run sensitive to rounding, so another machine may differ a little.
    """
    demo = re.search(r"voltana-sim (-m .*?)\n\t\$", (ROOT / "Makefile").read_text(), flags=re.DOTALL)
    assert demo
    sweep = demo[1].replace("\\\n", " ").replace("static_1005,", "")  # in less time
    sweep = sweep.replace("$(RATES)", "75").replace("$(DURATION)", "120").replace("$(DEMO)", "demo")
    terminal.type(f"voltana-sim {sweep}")
    printed = rows(terminal.type("voltana-compare runs=demo/runs columns=short"))
    block = re.search(r"^75 .*?\n\n", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert block and printed.keys() == {"static_max", "voltana"}
    for policy, numbers in printed.items():
        assert rows(block[0])[policy] == pytest.approx(numbers, rel=0.1, abs=1.5), policy


@pytest.mark.slow
def test_the_headline_results_are_what_the_experiment_gives(terminal: Terminal) -> None:
    """At one of the rates. Where it fails: run the experiments, bring docs/results.md and its pictures up to date."""
    terminal.type("voltana-sim -m experiment=next policy=static_max,voltana,voltana_next rps=75")
    with (terminal.folder / "outputs" / "experiment" / "next" / "table.csv").open(encoding="utf-8") as table:
        made = {row["policy"]: row for row in csv.DictReader(table)}
    documented = sections(ROOT / "docs" / "results.md")["Every rival on the same track"]
    for policy in ("voltana", "voltana_next"):
        stated = re.search(rf"^\| `{policy}` \|.*$", documented, flags=re.MULTILINE)
        assert stated
        said = stated[0].split("|")
        for column, place in (("saving_pct", 4), ("joint_attainment_pct", 5)):
            assert float(made[policy][column]) == pytest.approx(float(said[place].split()[0]), abs=1.0), policy


def rows(table: str) -> dict[str, list[float]]:
    """The numbers of each policy."""
    found = re.finditer(r"^ *(?:\d+ +)?([a-z_]\w*)((?: +[\d.-]+)+) *$", table, flags=re.MULTILINE)
    return {row[1]: [float(number) for number in row[2].split()] for row in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", document.read_text())
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    folders = "analysis|conf|docs|live|sim|tests|traces|voltana"
    named = re.findall(rf"`((?:{folders})/[\w./]*)`", document.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_pictures_are_small() -> None:
    assert all(path.stat().st_size < 300_000 for path in (ROOT / "docs" / "img").iterdir())


def test_every_configuration_group_is_documented() -> None:
    table = sections(ROOT / "docs" / "design.md")["Configuration"].partition("| group | options |")[2]
    cells = [line.split("|")[1:3] for line in table.splitlines()[2:] if line.startswith("| `")]
    documented = {group.strip(" `"): set(re.findall(r"`(\w+)`", options)) for group, options in cells}
    folders = [folder for folder in (ROOT / "conf").iterdir() if any(folder.glob("*.yaml"))]
    assert documented == {folder.name: {path.stem for path in folder.glob("*.yaml")} for folder in folders}


def test_every_policy_and_part_is_documented() -> None:
    """With the parts of a bundle as its file names them."""
    document = sections(ROOT / "docs" / "policies.md")
    tables = {
        "policy": "Bundles",
        "frequency": "Frequency controllers",
        "router": "Routers",
        "scheduler": "Schedulers",
        "planner": "Planners",
    }
    for group, title in tables.items():
        rows = {
            line.split("`")[1]: re.findall(r"`(\w+)`", line)
            for line in document[title].splitlines()
            if line[:3] == "| `"
        }
        rows.pop(group, None)
        assert rows.keys() == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}, group
        if group == "policy":
            for name, cells in rows.items():
                assert cells[1:5] == list(parts(name).values())


def parts(bundle: str) -> dict[str, str]:
    """The parts of a bundle by their place, those of the bundle that it derives from included."""
    found: dict[str, str] = {}
    for entry in yaml.safe_load((ROOT / "conf" / "policy" / f"{bundle}.yaml").read_text())["defaults"]:
        if isinstance(entry, dict):
            found |= {place.removeprefix("override "): part for place, part in entry.items()}
        elif entry.startswith("/policy/"):
            found |= parts(entry.removeprefix("/policy/").removesuffix("@_here_"))
    return found
