"""The names of all failpoints, from the source, so that no test forgets one."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "fcn_ray"


def failpoint_names() -> list[str]:
    """The argument of every call of `fail_at`, in the order of the files."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fail_at":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{path.name}: a failpoint must be found by its name"
                names.append(str(argument.value))
    return names
