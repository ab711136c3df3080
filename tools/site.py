"""Build the site from the committed notebooks, the guides and the docstrings: `make site`.

The command executes no notebook and needs no network. It copies the pages into `build/site/source`, in the folders of
the repository, so that their links stay right. It runs Sphinx there; a warning is an error. Then it checks every link
and every picture of the pages, which are in `build/site/html`.
"""

import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup

import nuclei_utils
from tools import setup_cell

ROOT = setup_cell.ROOT
BUILD = ROOT / "build" / "site"
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "LICENSE",
    "benchmarks/README.md",
    "benchmarks/submission.csv",
    "benchmarks/results/*.json",
    "docs/*.md",
    "docs/*.gif",
    "nuclei_utils/assets/pictures/*.jpg",
]
OPTIONAL = ("05", "06", "10")
"""Numbers of the notebooks outside the essential path."""
NOT_IN_REFERENCE = ("cli", "dsb2018")
"""Modules that are used by their commands, not by their functions."""
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)
MARKUP = re.compile(r"[*`_]|<[^>]*>|\[|\]\([^)]*\)")


def collect(source: Path) -> None:
    """Copy the pages of the site into an empty folder.

    Parameters
    ----------
    source : pathlib.Path
        Folder for Sphinx. Its content is replaced.
    """
    shutil.rmtree(source, ignore_errors=True)
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    notebooks = setup_cell.notebooks()
    for path in pages:
        _copy(path, source / path.relative_to(ROOT), {*pages, *notebooks})
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        describe_pictures(notebook)
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)
    shutil.copytree(ROOT / "docs" / "_static", source / "_static")
    settings = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    settings = settings.replace("REPOSITORY", setup_cell.address()).replace("BRANCH", setup_cell.tag())
    (source / "conf.py").write_text(settings, encoding="utf-8")
    write_contents(source)
    write_reference(source / "docs" / "api")


def _copy(path, copy, pages):
    copy.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".md":
        shutil.copy(path, copy)
        return

    def absolute(link):
        """Point a link at the repository if the site has no page for the folder or file."""
        target = (path.parent / link[1]).resolve()
        if target.exists() and target not in pages:
            kind = "tree" if target.is_dir() else "blob"
            path_and_anchor = f"{target.relative_to(ROOT).as_posix()}{link[2] or ''}"
            return f"]({setup_cell.address()}/{kind}/{setup_cell.tag()}/{path_and_anchor})"
        return link[0]

    copy.write_text(LINK.sub(absolute, path.read_text(encoding="utf-8")), encoding="utf-8")


def write_contents(source: Path) -> None:
    """Write the front page with the table of contents."""
    lines = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        (title,) = re.findall(r"^# (.+)$", nbformat.read(path, as_version=4).cells[0].source, re.MULTILINE)[:1]
        title += " (optional)" if path.name.startswith(OPTIONAL) else ""
        lines.append(f"{title} <notebooks/{path.stem}>")
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    (source / "docs" / "index.md").unlink()
    (source / "index.md").write_text(text.replace("NOTEBOOKS", "\n".join(lines)), encoding="utf-8")


def write_reference(folder: Path) -> None:
    """Write one page for each module of the package, and an index."""
    folder.mkdir(parents=True)
    rows, names = [], [name for name in nuclei_utils.__all__ if name not in NOT_IN_REFERENCE]
    for name in names:
        first_line = (getattr(nuclei_utils, name).__doc__ or "").split("\n")[0]
        rows.append(f"| [{name}]({name}.md) | {first_line} |")
        page = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: nuclei_utils.{name}\n   :members:\n"
        if hasattr(getattr(nuclei_utils, name), "__path__"):  # a package: its functions are in its modules
            page += "   :imported-members:\n"
        page += "```\n"
        (folder / f"{name}.md").write_text(page, encoding="utf-8")
    text = "# The package nuclei_utils\n\n`from nuclei_utils import io` loads a module.\n\n"
    text += "| module | subject |\n|---|---|\n"
    text += "\n".join(rows) + "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"
    (folder / "index.md").write_text(text, encoding="utf-8")


def describe_pictures(notebook) -> None:
    """Give each picture of a notebook an alternative text, fold the setup cell, and show goals without their code.

    The text is the sentence that the course writes after an output: it says what the output shows. A picture with a
    description of its own (`notebook.show_goal`) keeps it.
    """
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.setdefault("tags", [])
        if "setup" in tags:
            tags.append("hide-input")
        if cell.source.startswith("notebook.show_goal("):
            tags.append("remove-input")
        for output in cell.outputs:
            kinds = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
            if not kinds:
                continue
            alt = output.metadata.get(kinds[0], {}).get("alt")
            if not alt:  # the text after the cell, or else the texts before it, the nearest first
                texts = [
                    near
                    for near in (*notebook.cells[i + 1 : i + 2], *notebook.cells[:i][::-1])
                    if near.cell_type == "markdown"
                ]
                alt = "Figure. " + next(filter(None, (first_sentence(near.source) for near in texts)), "")
            cell.metadata["mystnb"] = {"image": {"alt": alt.strip()}}


def first_sentence(text: str) -> str:
    """Return the first sentence of a Markdown text without its markup."""
    paragraphs = [
        block for block in text.split("\n\n") if block.strip() and not block.lstrip().startswith(("#", "|", "<"))
    ]
    if not paragraphs:
        return ""
    plain = " ".join(MARKUP.sub("", paragraphs[0]).split())
    found = SENTENCE.match(plain)
    return found[1] if found else plain


def broken_links(html: Path) -> list[str]:
    """Return the links and pictures of a site that lead nowhere, and the pictures without alternative text.

    Parameters
    ----------
    html : pathlib.Path
        Folder of the built site.

    Returns
    -------
    list of str
        One line for each fault: page, and what is wrong.
    """
    paths = [path for path in html.rglob("*.html") if "_static" not in path.parts]  # the theme's templates are there
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in paths}
    anchors = {path: {tag["id"] for tag in page.select("[id]")} for path, page in pages.items()}
    faults = []
    for path, page in pages.items():
        name = path.relative_to(html)
        faults += [
            f"{name}: a picture without alternative text"
            for image in page.select("article img")
            if not image.get("alt")
        ]
        for tag in page.select("a[href], img[src], link[href], script[src]"):
            link = urlsplit(tag.get("href") or tag.get("src"))
            if link.scheme or link.netloc or not (link.path or link.fragment):
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            if not target.is_file():
                faults.append(f"{name}: {link.geturl()} does not exist")
            elif link.fragment and target in anchors and unquote(link.fragment) not in anchors[target]:
                faults.append(f"{name}: {link.geturl()} has no such place")
    return sorted(set(faults))


def main() -> int:
    """Build and check the site; return the exit status."""
    from sphinx.cmd.build import main as sphinx  # only this command needs Sphinx

    source, html = BUILD / "source", BUILD / "html"
    collect(source)
    shutil.rmtree(html, ignore_errors=True)
    status = sphinx(
        ["-b", "html", "-W", "--keep-going", "-q", "-j", "auto", "-d", str(BUILD / "doctrees"), str(source), str(html)]
    )
    faults = broken_links(html) if html.is_dir() else []
    for fault in faults:
        print(fault, file=sys.stderr)
    if status or faults:
        print("the site has faults, named above", file=sys.stderr)
        return 1
    (html / ".nojekyll").touch()  # GitHub Pages would leave out folders such as _static
    print(f"the site is in {html.relative_to(ROOT)}/; open {html.relative_to(ROOT)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
