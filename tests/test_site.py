import nbformat
import pytest

from tools import setup_cell, site


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    site.collect(folder)
    return folder


def test_contents_name_every_notebook_in_order(source):
    index = (source / "index.md").read_text(encoding="utf-8")
    places = [
        index.index(f"<notebooks/{path.stem}>") for path in setup_cell.notebooks() if path.parent.name == "notebooks"
    ]
    assert places == sorted(places)
    assert index.count("(optional)") == len(site.OPTIONAL)
    assert "REPOSITORY" not in (source / "conf.py").read_text(encoding="utf-8")


def test_links_lead_to_a_page_or_to_the_repository(source):
    pages = sorted(source.glob("*.md")) + sorted(source.glob("docs/*.md")) + sorted(source.glob("benchmarks/*.md"))
    links = [(page, link) for page in pages for link, _ in site.LINK.findall(page.read_text(encoding="utf-8"))]
    assert (source / "docs" / "included_network.md", "../benchmarks/train_included_network.py") not in links
    assert any(link.endswith("/benchmarks/train_included_network.py") for _, link in links)
    for page, link in links:
        if "://" not in link:
            assert (page.parent / link).exists() or (page.parent / f"{link}.md").exists(), f"{page.name}: {link}"


def test_every_picture_of_a_notebook_has_a_description(source):
    for path in source.glob("notebooks/**/*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
                assert len(cell.metadata["mystnb"]["image"]["alt"]) > len("Figure. ") + 10, (path.name, cell.source)


def test_reference_has_a_page_for_each_module(source):
    pages = {path.stem for path in (source / "docs" / "api").glob("*.md")}
    assert {"io", "plots", "training", "index"} <= pages
    assert not pages & set(site.NOT_IN_REFERENCE)


def test_broken_links_are_named(tmp_path):
    (tmp_path / "a.html").write_text(
        '<article><a href="b.html#here">x</a> <a href="b.html#gone">x</a> <a href="c.html">x</a>'
        '<a href="https://example.org/">x</a> <img src="p.png"></article>'
    )
    (tmp_path / "b.html").write_text('<h1 id="here">B</h1>')
    assert site.broken_links(tmp_path) == [
        "a.html: a picture without alternative text",
        "a.html: b.html#gone has no such place",
        "a.html: c.html does not exist",
        "a.html: p.png does not exist",
    ]
