"""Python files as text, for the tests that hold what they may contain."""

import ast


def imported(node: ast.AST) -> list[str]:
    """The dotted modules that an import statement takes from outside the pack; empty for any other node and for relative imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
