"""Configuration of the site. `tools/site.py` copies this file and the pages into one folder and runs Sphinx there."""

from nuclei_utils import __version__

project = "Find the nuclei"
author = "the authors of nuclei-course"
project_copyright = f"2026, {author}, MIT licence"
release = __version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]

nb_execution_mode = "off"  # the notebooks are shown as they were committed
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "image/gif", 1)]
nb_render_markdown_format = "myst"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes are listed in the description of their class alone
default_role = "code"  # docstrings write `name` for code

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "repository_url": "REPOSITORY",  # `tools/site.py` fills in both
    "repository_branch": "BRANCH",
    "navbar_persistent": [],  # the side bar has a search already
    "use_repository_button": True,
    "use_download_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "back_to_top_button": True,
}
