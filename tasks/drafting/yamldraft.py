"""A draft written into the text of params.yaml: whole sections and single settings, each with its reason above it.

The rest of the file, its comments and its order stay as they are.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.drafting.wishes import Guess
from tasks.params import yamltext

MARK = "# guessed: "
WIDTH = 118
PLAIN = re.compile(r"[A-Za-z0-9_(./'\"%-](?:[^#:\[\]{}\n]|:(?=\S)|(?<=\S)#)*(?<=\S)")


def apply_draft(text: str, sections: Mapping[str, Any], values: Mapping[str, Any], guesses: Iterable[Guess]) -> str:
    """The text with the draft in it. A setting that the file leaves out is added to its section."""
    reasons = {guess.setting: guess for guess in guesses}
    notes = {_place(guess.setting): guess.why for guess in guesses if guess.why}
    blocks = _cut(text)
    for name, content in sections.items():
        head = blocks[name][0] if name in blocks else f"{name}:"
        blocks[name] = [head, *_write_mapping(content, 1, notes), ""]
    for name, value in values.items():
        section, key = name.split(".", 1)
        blocks[section] = _set(blocks.get(section, [f"{section}:", ""]), key, value, reasons.get(name))
    return "\n".join(line for block in blocks.values() for line in block).rstrip("\n") + "\n"


def _cut(text: str) -> dict[str, list[str]]:
    """The lines of each section, in order; those before the first under an empty name."""
    blocks: dict[str, list[str]] = {"": []}
    lines, name = text.splitlines(), ""
    for line in lines:
        if match := re.match(r"([A-Za-z_]\w*):", line):
            name = match[1]
            blocks[name] = []
        blocks[name].append(line)
    return blocks


def _set(block: list[str], key: str, value: Any, guess: Guess | None) -> list[str]:
    place = next((i for i, line in enumerate(block) if re.match(rf"  {key}:", line)), None)
    note = [f"  {MARK}{guess.why}"] if guess and guess.why else []
    written = f"  {key}: {spell_value(value)}"
    if place is None:
        end = len(block) - next((i for i, line in enumerate(reversed(block)) if line.strip()), 0)
        return [*block[:end], *note, written, *block[end:]]
    before = block[: place - 1] if block[place - 1].startswith(f"  {MARK}") else block[:place]
    comment = re.search(r"\s#\s.*$", _without_quotes(block[place]))
    tail = block[place][comment.start() :].strip() if comment else ""
    after = place + 1
    while after < len(block) and re.match(r"   +[^ #]|  - ", block[after]):  # a list may stand as far out as its key
        after += 1
    line = f"{written:<27} {tail}".rstrip() if tail else written
    return [*before, *note, line, *block[after:]]


def _without_quotes(line: str) -> str:
    """The line with what stands in quotes blotted out, so that no # in it begins a comment."""
    return re.sub(r"\"[^\"]*\"|(?<![\w])'[^']*'", lambda match: "x" * len(match[0]), line)


def _place(setting: str) -> str:
    """The key that a guess is of, in a section that is replaced whole: nulls of sources.nulls, a column of its pii."""
    return setting.removeprefix("sources.").removesuffix(".pii").removesuffix(".format")


def _write_mapping(content: Mapping[str, Any], depth: int, notes: Mapping[str, str]) -> list[str]:
    lines = []
    for name, value in content.items():
        if depth > 1 and name in notes:
            lines.append(f"{'  ' * depth}{MARK}{notes[name]}")
        start = f"{'  ' * depth}{spell_key(name)}:"
        if isinstance(value, Mapping) and (depth < 3 or not all(_is_small(one) for one in value.values())):
            lines += [start, *_write_mapping(value, depth + 1, notes)]
            continue
        line = f"{start} {spell_value(value)}"
        lines += [line] if len(line) <= WIDTH or not isinstance(value, list) else _wrap(start, value, depth)
    return lines


def _is_small(value: Any) -> bool:
    return not isinstance(value, Mapping | list)


def _wrap(start: str, values: list[Any], depth: int) -> list[str]:
    lines, line = [], f"{start} ["
    for i, value in enumerate(values):
        piece = spell_value(value) + (", " if i + 1 < len(values) else "]")
        if len(line) + len(piece) > WIDTH:
            lines.append(line.rstrip())
            line = "  " * (depth + 1)
        line += piece
    return [*lines, line]


def spell_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][\w-]*", name) and yamltext.is_read_as_text(name) else json.dumps(name)


def spell_value(value: Any) -> str:
    """A value as YAML 1.2 and 1.1 both read it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{spell_key(name)}: {spell_item(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(spell_item(one) for one in value) + "]"
    if not isinstance(value, str):
        return str(value)
    plain = PLAIN.fullmatch(value) and value[0] not in "'\"%-" and yamltext.is_read_as_text(value)
    return value if plain and "," not in value[:0] else json.dumps(value, ensure_ascii=False)


def spell_item(value: Any) -> str:
    text = spell_value(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and "," in text and text[0] != '"' else text
