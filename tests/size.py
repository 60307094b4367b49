"""How large the product is, and whether within the limits: `make size`; `--check`, of `make lint`, tells the rest.

Studies and what is made of audio and weights do not count.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOPS = ("toolchain", "calibration", "export", "runtimes", "benchmarks")
APART = {"studies", "peers"}
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 20, 400, 60  # in a folder, in a file, in a function
MOST_LINES_IN_ALL = 45_373
# What may pass a limit, by the name that the check gives it, and why. An entry that is not needed is an error.
EXCEPTIONS: dict[str, str] = {}


def product_files(root: Path = ROOT) -> list[Path]:
    """Every Python file that is installed."""
    found = [path for top in TOPS for path in (root / top).rglob("*.py")]
    return sorted(path for path in found if not APART & set(path.relative_to(root).parts))


def lines(path: Path) -> int:
    """Lines of the file, blank ones and docstrings too."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(root: Path = ROOT) -> list[tuple[int, str]]:
    """Every function, the longest first: lines, and file and name."""
    found = []
    for path in product_files(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append((length, f"{path.relative_to(root)}: {node.name}"))
    return sorted(found, reverse=True)


def folders(root: Path = ROOT) -> list[tuple[str, int]]:
    """Every folder and its files, the fullest first."""
    return Counter(str(path.parent.relative_to(root)) for path in product_files(root)).most_common()


def offenders(root: Path = ROOT, exceptions: dict[str, str] = EXCEPTIONS, in_all: int = MOST_LINES_IN_ALL) -> list[str]:
    """What passes a limit, a line each."""
    files = {str(path.relative_to(root)): lines(path) for path in product_files(root)}
    over = {name: f"{count} files, over {MOST_FILES}" for name, count in folders(root) if count > MOST_FILES}
    over |= {name: f"{size} lines, over {MOST_LINES}" for name, size in files.items() if size > MOST_LINES}
    over |= {
        name: f"{size} lines, over {MOST_FUNCTION_LINES}"
        for size, name in functions(root)
        if size > MOST_FUNCTION_LINES
    }
    found = [f"{name}: {why}" for name, why in over.items() if name not in exceptions]
    found += [f"{name}: within the limits; take it out of the exceptions" for name in exceptions if name not in over]
    total = sum(files.values())
    return [*found, f"{total:,} lines in all, over {in_all:,}"] if total > in_all else found


def main(arguments: list[str]) -> int:
    """Print the sizes, with --check what passes a limit alone; 1 where anything does."""
    if arguments != ["--check"]:
        files = product_files()
        print(f"{sum(map(lines, files)):,} lines of product code in {len(files)} files")
        for top in TOPS:
            own = [path for path in files if path.relative_to(ROOT).parts[0] == top]
            print(f"  {top}: {sum(map(lines, own)):,} in {len(own)}")
        folder, count = folders()[0]
        print(f"fullest folder: {folder}, {count} files; the largest files:")
        for size, path in sorted(((lines(path), path.relative_to(ROOT)) for path in files), reverse=True)[:5]:
            print(f"  {size} {path}")
        print("the longest functions:")
        for length, name in functions()[:5]:
            print(f"  {length} {name}")
    found = offenders()
    for text in found:
        print(text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
