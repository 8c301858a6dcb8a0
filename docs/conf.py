"""How the pages are built: `make docs`."""

from diptych import __version__

project, version, release = "diptych", __version__, __version__
author, copyright = "The diptych authors", "The diptych authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_site", "*.py"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"  # loads nothing from other sites
html_title = "diptych"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e8f", "color-brand-content": "#0b6e8f"},
    "dark_css_variables": {"color-brand-primary": "#58c4de", "color-brand-content": "#58c4de"},
}
html_copy_source = html_show_sourcelink = False
