"""Parts of a notebook, for tests that do not execute the whole."""

import ast

import nbformat
from IPython.core.inputtransformer2 import TransformerManager


def imports(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A cell with all that the notebook's code cells import, conditions aside."""
    statements = [
        ast.unparse(node)
        for cell in book.cells
        if cell.cell_type == "code"
        for node in ast.parse(TransformerManager().transform_cell(cell.source)).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return nbformat.v4.new_code_cell("\n".join(statements))
