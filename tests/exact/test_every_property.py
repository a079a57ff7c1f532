"""Every property T1 to T39 and T41 of docs/algorithms.md has a test that carries its number.

T40 is an experiment (classic control), not a test.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PROPERTIES = [*range(1, 40), 41]


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Names of all test functions under tests/, read without importing any."""
    trees = [ast.parse(path.read_text()) for path in TESTS.rglob("test_*.py")]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, functions)}


@pytest.mark.parametrize("number", PROPERTIES)
def test_the_property_has_a_test(number, names):
    prefix = f"test_t{number:02d}_"
    assert any(name.startswith(prefix) for name in names), f"no test function is named {prefix}..."
