"""The page that `--help` shows, made from the configuration files: their choices, keys, defaults and comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from voltana.app.kept import split_own_folders
from voltana.files import parse_yaml

if TYPE_CHECKING:
    import yaml

WIDTH = 110
_MOST_INDENT = 24


class _Entry(NamedTuple):
    """A line of the page: what to type, and what it is."""

    word: str
    comment: str
    for_choices: bool = False
    """Whether it means something only to a command that has choices."""


_FLAGS = (
    _Entry("-m", "run every combination of values given as a,b,c", True),
    _Entry(
        "--cfg job [-p GROUP]",
        "print the whole configuration of this command line, or what the choice in GROUP sets, and run nothing",
        True,
    ),
    _Entry("--config-dir DIR", "choices of your own: DIR/GROUP/NAME.yaml", True),
    _Entry("--version, --hydra-help", "the version; all flags"),
)


def help_page(program: str, config_name: str, config_path: str, words: Sequence[str]) -> str:
    """The page of a command.

    Args:
        program: the name of the script.
        config_name, config_path: of its primary configuration, as of `voltana.app.cli.hydra_command`.
        words: the command line: `--config-dir` in it adds choices.
    """
    shipped = (
        resources.files(config_path.removeprefix("pkg://")) if config_path.startswith("pkg:") else Path(config_path)
    )
    folders = [shipped, *split_own_folders([word for word in words if word not in ("-h", "--help")])[0]]
    text = (shipped / f"{config_name}.yaml").read_text(encoding="utf-8")
    loaded = parse_yaml(text)
    chosen = dict(_choices(loaded.get("defaults", [])))
    groups = {group: _options(folders, group) for group in chosen}
    parts = [part for group in chosen for part in _parts(folders, group)]
    keys = [entry for entry in _keys(text) if re.split(r"[=.:]", entry.word)[0] not in ("defaults", "hydra", *groups)]
    usage = f"{program} [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]" if groups else f"{program} [KEY=VALUE ...]"
    examples = str(loaded.get("hydra", {}).get("help", {}).get("header", "")).rstrip()
    sections = [
        textwrap.fill(_opening(text), WIDTH),
        f"Usage: {usage}",
        *([f"Examples:\n{textwrap.indent(examples, '  ')}"] if examples else []),
        *(["Choices (* is what you get without saying):\n" + _choice_lines(groups, chosen, parts)] if groups else []),
        *(["Keys, with their defaults:\n" + _lines(keys)] if keys else []),
        "Flags:\n" + _lines(_FLAGS if groups else [flag for flag in _FLAGS if not flag.for_choices]),
    ]
    return "\n\n".join(sections)


def _choices(defaults: Sequence[Any]) -> Iterator[tuple[str, str | None]]:
    """The groups of a defaults list and what is chosen in each."""
    for entry in defaults:
        for group, option in entry.items() if isinstance(entry, Mapping) else ():
            if not group.startswith("override "):
                yield str(group), None if option is None else str(option)


def _options(folders: Sequence[Traversable], group: str) -> dict[str, str]:
    """The choices of a group, those in folders within it as FOLDER/NAME, and the text of each."""
    return {
        name: file.read_bytes().decode(errors="replace")
        for folder in folders
        if (folder / group).is_dir()
        for name, file in _files(folder / group)
    }


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    inner = sorted(folder.iterdir(), key=lambda each: each.name)
    for file in inner:
        if file.name.endswith(".yaml"):
            yield prefix + file.name.removesuffix(".yaml"), file
    for file in inner:
        if file.is_dir():
            yield from _files(file, f"{prefix}{file.name}/")


def _parts(folders: Sequence[Traversable], group: str) -> Iterator[tuple[str, str]]:
    """Groups that choices of a group are put together from, as `router@policy.decode_router`, and their own choices."""
    found = {
        (inner, f"{inner}@{group}.{place}")
        for text in _options(folders, group).values()
        for inner, place in re.findall(r"^  - /(\w+)@(\w+):", text, flags=re.MULTILINE)
    }
    for inner in sorted({inner for inner, _ in found}):
        words = sorted(word for each, word in found if each == inner)
        yield ", ".join(words), ", ".join(_options(folders, inner))


def _choice_lines(groups: Mapping[str, Mapping[str, str]], chosen: Mapping[str, str | None], parts: list[Any]) -> str:
    flat = {
        group: {name: text for name, text in options.items() if "/" not in name} for group, options in groups.items()
    }
    left = max(map(len, groups))
    lines = []
    for group, options in flat.items():
        widest = max(map(len, options), default=0)
        for index, (name, text) in enumerate(options.items()):
            start = f"  {group if not index else '':{left}}  {name:{widest}} {'*' if name == chosen[group] else ' '}  "
            lines.append(
                start + textwrap.shorten(_first_sentence(_opening(text)), WIDTH - len(start), placeholder=" ...")
            )
        lines += [line for told in _nested(groups[group]) for line in _wrapped(" " * (left + 4), told)]
    lines += [line for word, options in parts for line in _part_lines(word, options, " " * (left + 4))]
    return "\n".join(line.rstrip() for line in lines)


def _part_lines(word: str, options: str, indent: str) -> list[str]:
    """Where a choice goes and what there is, in one line if that holds it."""
    both = f"  {word}: {options}"
    return [both] if len(both) <= WIDTH else [f"  {word}:", *_wrapped(indent, options)]


def _nested(options: Iterable[str]) -> list[str]:
    """The choices in folders within a group, a line each."""
    folders: dict[str, list[str]] = {}
    for name in options:
        folder, inner, last = name.rpartition("/")
        if inner:
            folders.setdefault(folder, []).append(last)
    return [f"{folder}/: {', '.join(names)}" for folder, names in folders.items()]


def _wrapped(indent: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _lines(entries: Sequence[_Entry]) -> str:
    """Words on the left, comments on the right, under a long word on the next line."""
    left = min(_MOST_INDENT, max(len(entry.word) for entry in entries))
    indent = " " * (left + 4)
    lines = []
    for word, comment, _ in entries:
        told = _wrapped(indent, comment)
        if len(word) <= left:
            lines.append(f"  {word:{left}}  {told[0].strip() if told else ''}".rstrip())
            lines += told[1:]
        else:
            lines += [f"  {word}", *told]
    return "\n".join(lines)


def _opening(text: str) -> str:
    """The comment that a file begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.;]) (?=[A-Z\"])", text)[0].rstrip(".;")


def _keys(text: str) -> Iterator[_Entry]:
    """Every key of a configuration file with its value and the comments above and beside it."""
    import yaml

    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    yield from _keys_of(root, text.splitlines(), "") if isinstance(root, yaml.MappingNode) else ()


def _keys_of(node: yaml.MappingNode, lines: Sequence[str], prefix: str) -> Iterator[_Entry]:
    import yaml

    for key, value in node.value:
        name = f"{prefix}{key.value}"
        above = _comment_above(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            comment = f"{above} {_comment_after(lines[key.end_mark.line][key.end_mark.column :])}".strip()
            yield from [_Entry(f"{name}:", comment)] if comment else []
            yield from _keys_of(value, lines, f"{name}.")
        else:
            end = lines[value.end_mark.line] if value.end_mark.line < len(lines) else ""
            shown = _written(lines, value)
            comment = f"{above} {_comment_after(end[value.end_mark.column :])}".strip()
            yield _Entry(
                f"{name}={shown}".replace("=???", "=..."), f"{comment} (required)" if shown == "???" else comment
            )


def _written(lines: Sequence[str], value: yaml.Node) -> str:
    """A value as it is written, on one line."""
    start, end = value.start_mark, value.end_mark
    return lines[start.line][start.column : end.column] if start.line == end.line else "..."


def _comment_above(lines: Sequence[str], at: int) -> str:
    found: list[str] = []
    while at and (comment := re.fullmatch(r"\s*#\s?(.*)", lines[at - 1])):
        found.insert(0, comment[1])
        at -= 1
    return " ".join(found) if at else ""  # what a file begins with is about all of it


def _comment_after(rest: str) -> str:
    comment = re.search(r"(?:^|\s)#\s?(.*)", rest)
    return comment[1] if comment else ""
