"""The book's Sphinx extension: numbered displays, the JupyterLab button, names for what screen readers meet."""

import re
from pathlib import Path

from docutils import nodes
from sphinx.transforms import SphinxTransform

LAB = "http://localhost:8888/lab/tree/{name}.ipynb"


class NumberedDisplays(SphinxTransform):
    """Hand `$$ … \\tag{n} $$` to MathJax as it stands.

    Sphinx wraps every display that holds a line break in `split`, where `\\tag` is an error.
    """

    default_priority = 400

    def apply(self) -> None:
        for node in self.document.findall(nodes.math_block):
            text = node.astext().strip()
            if r"\tag" in text and not text.startswith(r"\["):
                node.children = [nodes.Text(rf"\[{text}\]")]
                node["no-wrap"] = node["nowrap"] = True


def add_lab_button(app, pagename, templatename, context, doctree) -> None:
    """Beside Binder and Colab: the chapter in the JupyterLab that `make lab` starts on this machine."""
    if not pagename.startswith("notebooks/"):
        return
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            group["buttons"].append(
                {
                    "type": "link",
                    "text": "JupyterLab",
                    "tooltip": "Open in JupyterLab on this machine (run `make lab` first)",
                    "icon": "fas fa-flask",
                    "url": LAB.format(name=pagename.removeprefix("notebooks/")),
                }
            )


def finish_html(app, pagename, templatename, context, doctree) -> None:
    """Regions that scroll sideways must be reachable with the keyboard; a fold is named by the words it shows."""
    if body := context.get("body"):
        body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
        context["body"] = re.sub(
            r'<div class="highlight"><pre>',
            '<div class="highlight"><pre tabindex="0">',
            body,
        )
        context["body"] = re.sub(
            r"<table(?![^>]*tabindex)", '<table tabindex="0"', context["body"]
        )


def drop_thebe(app, pagename, templatename, context, doctree) -> None:
    """Jupyter Book brings Thebe along even where it is switched off, and declares its constant twice: an error."""
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context[kind]
            if "thebe" not in f"{file} {getattr(file, 'attributes', '')}".lower()
        ]


def drop_icon_script(app, exception) -> None:
    """The theme brings its icons twice: as a font, which suffices, and as 1.5 MB of script."""
    if exception is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            text = page.read_text()
            rest = re.sub(r"<script[^>]*/fontawesome\.js[^>]*></script>\s*", "", text)
            if rest != text:
                page.write_text(rest)


def setup(app):
    app.add_transform(NumberedDisplays)
    app.connect("html-page-context", add_lab_button, priority=900)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", finish_html, priority=901)
    app.connect("build-finished", drop_icon_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
