"""Settings of Sphinx. `make docs` (docs/site/build.py) gathers the pages in one folder first, and builds them there."""

from rootstock import __version__

project = "Rootstock"
author = "The Rootstock authors"
project_copyright = "the Rootstock authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "rootstock.docs.site.mathml"]
source_suffix = {".md": "markdown"}

# Markdown. Anchors are those of GitHub, so that a link works in both places.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
# The titles of some tables of benchmarks begin at the third level.
suppress_warnings = ["myst.header"]

# The docstrings of the package write `name` for code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_type_aliases = {"Config": "Config", "Overrides": "Overrides"}
autodoc_preserve_defaults = True

# Equations become MathML, which browsers draw themselves: nothing is loaded from elsewhere.
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"Rootstock {release}"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
