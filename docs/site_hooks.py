"""What mkdocs does beyond its settings: order of pages, reference, equations, outer links."""

from __future__ import annotations

import ast
import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
SECTIONS = {
    "Tutorial": ["tutorial.md"],
    "How to": [
        "own-model.md", "own-data.md", "audit-in-ci.md", "scale.md", "app.md",
    ],
    "In depth": [],
    "Explanation": ["method.md", "what-holds.md", "limits.md", "lab-log.md"],
    "Reference": ["reference/index.md"],
}  # fmt: skip
"""Pages that stand in none go to "In depth"."""


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every module, and the files outside ``docs/`` that pages link to."""
    modules = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if said and path.name != "__main__.py":
            modules[name] = said.partition("\n\n")[0].replace("\n", " ")
            files.append(File.generated(config, f"reference/{name}.md", content=f"::: {name}\n"))
    rows = "".join(f"| [{name}]({name}.md) | {said} |\n" for name, said in modules.items())
    index = (
        "# Reference\n\nGenerated from the docstrings; the command line says of itself: "
        f"`tgalign --help`.\n\n| module | what is in it |\n|---|---|\n{rows}"
    )
    files.append(File.generated(config, "reference/index.md", content=index))
    for page in list(files.documentation_pages()):
        if not page.src_uri.startswith("reference/"):
            for link in _outer_links(page.content_string):
                name = _inside(link)
                if files.get_file_from_path(name) is None:
                    text = (ROOT / link.removeprefix("../")).read_text(encoding="utf-8")
                    files.append(File.generated(config, name, content=text))
    config.nav = _nav(files)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links out of ``docs/`` lead to the copies; the README's own links lead into ``docs/``."""
    if page.file.src_uri.startswith("repository/"):
        markdown = re.sub(r"\]\(docs/([^)#]+\.md)", r"](../\1", markdown)
        markdown = re.sub(r"\]\((?:docs/|)(img/[^)]+)", r"](../\1", markdown)
        return re.sub(r"\[([^]]+)\]\((?!https?:|\.\./|#)[^)]+\)", r"\1", markdown)
    for link in _outer_links(markdown):
        markdown = markdown.replace(f"]({link}", f"]({_inside(link)}")
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Turn equations into MathML, which browsers draw themselves."""
    pattern = r'<(span|div) class="arithmatex">\\[([](.*?)\\[)\]]</\1>'

    def drawn(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        drawing = str(convert(unescape(found[2]).strip(), display=display))
        return f'<div style="overflow-x: auto">{drawing}</div>' if found[1] == "div" else drawing

    return re.sub(pattern, drawn, html, flags=re.DOTALL)


def _outer_links(markdown: str) -> list[str]:
    found = re.findall(r"\]\((\.\./[^)#\s]+)", markdown)
    return [link for link in dict.fromkeys(found) if (ROOT / link.removeprefix("../")).is_file()]


def _inside(link: str) -> str:
    return "repository/" + link.removeprefix("../")


def _nav(files: Any) -> list[Any]:
    pages = [page.src_uri for page in files.documentation_pages()]
    placed = {"index.md", *(name for names in SECTIONS.values() for name in names)}
    rest = [name for name in pages if "/" not in name and name not in placed]
    sections = {name: [it for it in names if it in pages] for name, names in SECTIONS.items()}
    sections["In depth"] = sorted(rest)
    listed = [{"Home": "index.md"}, *({name: names} for name, names in sections.items() if names)]
    for entry in listed:
        if "Reference" in entry:
            modules = [
                it for it in pages if it.startswith("reference/") and it != "reference/index.md"
            ]
            entry["Reference"].append({"Modules": [{it[10:-3]: it} for it in sorted(modules)]})
    extra = [it for it in pages if it.startswith("repository/")]
    return [*listed, {"Files": extra}] if extra else listed
