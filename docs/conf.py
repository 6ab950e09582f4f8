"""Sphinx: ``sphinx-build -W -c docs . build/docs``.

The source is the whole repository, so that a link from a page to a report, or from a report to a program, leads on here
as it does where the repository is looked at.
"""

from typing import Any

from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

import lightning_rank

project = "lightning-rank"
author = copyright = "The lightning-rank authors"
version = release = lightning_rank.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "benchmarks/results/**.md", "CHANGELOG.md", "CONTRIBUTING.md"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True
napoleon_use_rtype = False
copybutton_prompt_text = ">>> |... "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"lightning-rank {release}"
html_extra_path = ["root"]  # the front page is not at the top, since the source is the whole repository


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.connect("missing-reference", _by_last_name)


def _by_last_name(app: Sphinx, env: Any, node: Any, text: Any) -> Any:
    """What a docstring names without the package that it is documented in, if there is one of that name."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rpartition(".")[2]
    places = env.domains["py"].objects.items()
    found = [place for name, place in places if name.rpartition(".")[2] == last and not place.aliased]
    if len(found) != 1 or node["reftarget"].startswith("torch"):
        return None
    return make_refnode(app.builder, node["refdoc"], found[0].docname, found[0].node_id, text)
