"""What the pages promise is there: every command that they show can be run, every file and link exists."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from dvc.cli import parse_args as parse_dvc

from flows.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
OTHERS = {".", "apt-get", "curl", "docker", "git", "pip", "prefect", "rm", "export", "cd", "mc", "helm", "kubectl"}
FIRST = {*OTHERS, "make", "python", "evergreen", "dvc", ".venv/bin/python", ".venv/bin/evergreen"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read_commands(page: Path) -> Iterator[list[str]]:
    """The words of each command in the page's blocks and in its inline code, comments aside."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in lines:
        first = line.strip().split(" ", 1)[0]
        if first in FIRST - OTHERS and " " in line.strip():
            yield shlex.split(line, comments=True)


def check_command(words: list[str]) -> None:
    """Raises an AssertionError where a command of this project cannot be what it looks like."""
    program, *arguments = words
    if program == "make":
        names = [word for word in arguments if "=" not in word]
        assert set(names) <= TARGETS, f"make has no target {names}"
    elif program.endswith("python"):
        assert arguments[0] == "-m", words
        assert find_spec(arguments[1]), f"there is no module {arguments[1]}"
    elif program == "dvc":
        parse_dvc(arguments)
    else:
        app.parse_args(arguments, print_error=False, exit_on_error=False)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_a_page_shows_can_be_run(page: Path) -> None:
    for words in read_commands(page):
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_short_and_every_package_has_a_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    packages = [path.parent for path in (ROOT / "tasks").glob("*/__init__.py")]
    assert [
        str(path) for path in (*packages, ROOT / "flows", ROOT / "infra") if not (path / "README.md").exists()
    ] == []


@pytest.mark.parametrize("line", ["make demos", "python -m flows.nothing", "evergreen retrain --as-off 2013-11-01"])
def test_a_command_that_is_not_there_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"no target|no module|as-off"):
        check_command(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_by_its_path_exists(page: Path) -> None:
    paths = re.findall(r"`((?:flows|tasks|infra|tests)/[\w/.-]+\.(?:py|sql|md|json))`", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []
