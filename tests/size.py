"""How large the product is: `make size`. Studies and what is made of audio and weights do not count."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOPS = ("toolchain", "calibration", "export", "runtimes", "benchmarks")
APART = {"studies", "peers"}


def product_files() -> list[Path]:
    """Every Python file that is installed."""
    found = [path for top in TOPS for path in (ROOT / top).rglob("*.py")]
    return sorted(path for path in found if not APART & set(path.parts))


def lines(path: Path) -> int:
    """Lines of the file, blank ones and docstrings too."""
    return len(path.read_text(encoding="utf-8").splitlines())


def longest_functions(count: int = 5) -> list[tuple[int, str]]:
    """The longest functions: lines, and file and name."""
    found = []
    for path in product_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append((length, f"{path.relative_to(ROOT)}: {node.name}"))
    return sorted(found, reverse=True)[:count]


def main() -> None:
    """Print the sizes."""
    files = product_files()
    print(f"{sum(map(lines, files)):,} lines of product code in {len(files)} files")
    for top in TOPS:
        own = [path for path in files if path.relative_to(ROOT).parts[0] == top]
        print(f"  {top}: {sum(map(lines, own)):,} in {len(own)}")
    folder, count = Counter(path.parent for path in files).most_common(1)[0]
    print(f"fullest folder: {folder.relative_to(ROOT)}, {count} files")
    largest = sorted(((lines(path), path.relative_to(ROOT)) for path in files), reverse=True)
    print(f"files over 400 lines: {sum(size > 400 for size, _ in largest)}; the largest:")
    for size, path in largest[:5]:
        print(f"  {size} {path}")
    print("the longest functions:")
    for length, name in longest_functions():
        print(f"  {length} {name}")


if __name__ == "__main__":
    main()
