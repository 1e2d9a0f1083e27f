"""Sphinx's settings; `generated.py` writes the parts of the pages that the code says."""

import importlib.metadata
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# What the pages say is of no machine: an environment variable is a default of an option.
os.environ.pop("TUNEWRIGHT_STORAGE", None)

import generated  # its folder is on the path from here on

project = "tunewright"
author = "The tunewright authors"
release = importlib.metadata.version("tunewright")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxarg.ext"]

# The repository is the source, so that a page's links to what lies beside docs/ work here, too.
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "CONTRIBUTING.md",
    "results/**README.md",
    "tests/benchmarks/README.md",
]
exclude_patterns = [".*", "build", "results/*/steps", "runs"]

html_theme = "furo"
html_title = "tunewright"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["static"]
html_css_files = ["own.css"]
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# Addresses of the playbook are those of GitHub; nothing is fetched.
myst_url_schemes = ("http", "https")

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
default_role = "code"  # docstrings write `name`, as Markdown does


def setup(app):
    app.connect("source-read", generated.fill)
    app.connect("autodoc-process-docstring", generated.as_rst)
    app.connect("autodoc-process-signature", generated.signature_of)
    app.connect("builder-inited", generated.write_plotly)
