"""What the site shows beside the pages of docs/: notebooks, experiments and the changelog, by the
links between them, which are the repository's, so that pages read as well where the code lies."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
#: of the repository -> of the site
PLACES = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}


def to_site(path: str) -> str:
    """Where a file of the repository lies in the site."""
    return PLACES.get(path, re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/")))


def to_repository(path: str) -> str:
    back = {site: repository for repository, site in PLACES.items()}
    return back.get(path, path if path.startswith("experiments/") else f"docs/{path}")


def target(link: str, page: str) -> str:
    """The repository's file that a link on a page of the repository leads to; a folder's README."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path


def notebook(path: str) -> str:
    """A notebook as a page: its text, its code and what that printed and drew."""
    parts = []
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if output.get("name") == "stdout":
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif "image/png" in output.get("data", {}):
                image = "".join(output["data"]["image/png"]).replace("\n", "")
                parts.append(f'<img alt="what the cell draws" src="data:image/png;base64,{image}">')
    return "\n\n".join(parts)


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside of docs/, and what that links to; notebooks become pages."""
    waiting = [to_repository(file.src_uri) for file in files.documentation_pages()]
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        page = to_site(file.src_uri)
        files.append(File.generated(config, page, content=notebook(str(file.abs_src_path))))
    waiting += PLACES
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            whole = str(ROOT / path)
            files.append(File.generated(config, to_site(path), abs_src_path=whole))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            links = {target(link, path) for _, link, _ in LINK.findall(text)}
            links = {link for link in links if (ROOT / link).is_file()} - seen - PLACES.keys()
            waiting += sorted(link for link in links if not link.startswith("docs/"))
            seen |= links
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **kwargs: Any) -> str:
    """Links from file to file of the repository become those from page to page."""
    here = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        place = to_site(target(link[2], to_repository(here)))
        return link[1] + posixpath.relpath(place, posixpath.dirname(here) or ".") + link[3]

    return LINK.sub(moved, markdown)
