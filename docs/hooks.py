"""What mkdocs does not do by itself: links from the pages into the repository, and drawings inside pages.

A page links to a file outside of docs/ as it would on a code host: ``[kernel](../csrc/cuda/inner_opt.cuh)``. Here every
such file becomes a page of the site, source files with their lines numbered, so that the site needs no code host. A
drawing, ``![text](images/x.svg)``, is put into the page itself, where it takes the page's colours.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")
DRAWING = re.compile(r"!\[([^\]]*)\]\((images/\w+\.svg)\)")
LANGUAGES = {".py": "python", ".cpp": "cpp", ".h": "cpp", ".inl": "cpp", ".cu": "cuda", ".cuh": "cuda"}
LANGUAGES |= {".json": "json", ".ipynb": "json", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}


def page_of(target: Path) -> str:
    """Where a file of the repository is in the site's sources."""
    path = f"repository/{target.relative_to(ROOT)}"
    return path if target.suffix in (".png", ".md") else f"{path}.md"


def content_of(target: Path) -> str:
    """The page that shows it."""
    title = f"# {target.relative_to(ROOT)}\n\n"
    if target.is_dir():
        return title + "".join(f"- {path.name}\n" for path in sorted(target.rglob("*")) if path.is_file())
    text = target.read_text()
    if target.suffix == ".md":
        return text
    # Four backquotes, since a docstring may hold three.
    return f'{title}````{{.{LANGUAGES.get(target.suffix, "text")} linenums="1"}}\n{text.rstrip()}\n````\n'


def linked_from(text: str, folder: Path) -> set[Path]:
    """The files of the repository that a Markdown text in ``folder`` links to."""
    found = (Path(os.path.normpath(folder / match[1])) for match in re.finditer(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", text))
    return {path for path in found if path.exists() and ROOT in path.parents and ROOT / "docs" not in path.parents}


def on_files(files: Files, config: Any) -> Files:
    waiting = {ROOT / "CHANGELOG.md"}  # which the navigation names
    for path in (ROOT / "docs").glob("*.md"):
        waiting |= linked_from(path.read_text(), path.parent)
    done: set[Path] = set()
    while waiting - done:
        target = min(waiting - done)
        done.add(target)
        if target.suffix == ".png":
            files.append(File.generated(config, page_of(target), abs_src_path=str(target)))
            continue
        file = File.generated(config, page_of(target), content=content_of(target))
        # Reached by links, not listed.
        file.inclusion = file.inclusion.NOT_IN_NAV
        files.append(file)
        if target.suffix == ".md":
            waiting |= linked_from(target.read_text(), target.parent)
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    here = PurePosixPath(page.file.src_uri)
    origin = ROOT / here.relative_to("repository") if here.parts[0] == "repository" else ROOT / "docs" / here

    def link(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(origin.parent / match[1]))
        if not target.exists() or ROOT not in target.parents:
            return match[0]
        inside = ROOT / "docs" in target.parents
        to = str(target.relative_to(ROOT / "docs")) if inside else page_of(target)
        return f"]({os.path.relpath(to, here.parent)}{match[2] or ''})"

    def drawing(match: re.Match[str]) -> str:
        svg = (ROOT / "docs" / match[2]).read_text().strip()
        return f'<figure class="drawing" role="img" aria-label="{match[1]}">\n{svg}\n</figure>'

    if origin.suffix != ".md" or not origin.exists():
        return markdown  # source code
    pattern = re.compile(r"\]\(([^)#\s:]+)(#[^)]*)?\)") if here.parts[0] == "repository" else LINK
    return DRAWING.sub(drawing, pattern.sub(link, markdown))
