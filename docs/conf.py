"""The site of `make docs`: Sphinx with MyST, for these pages as they stand and an API reference from the docstrings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import icd_kernels

project = "icd_kernels"
author = "the icd_kernels authors"
version = release = icd_kernels.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_rtype = False
default_role = "code"
html_theme = "furo"
html_title = f"icd_kernels {version}"
html_static_path: list[str] = []
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_selector = "div.highlight-python pre, div.highlight-sh pre"


def _write_math(self: Any, node: nodes.Node) -> None:
    """MathML, which browsers draw by themselves: no script, nothing to fetch."""
    is_block = isinstance(node, nodes.math_block)
    self.body.append(convert(node.astext(), display="block" if is_block else "inline"))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_node(nodes.math, override=True, html=(_write_math, None))
    app.add_node(nodes.math_block, override=True, html=(_write_math, None))
