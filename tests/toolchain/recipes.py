"""Recipe files for commands."""

from __future__ import annotations

from pathlib import Path


def recipe_flags(folder: Path, text: str) -> list[str]:
    """Flags that name a recipe in `folder` of this text; none where there is no text."""
    if not text:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(text)
    return ["--recipe", str(folder / "recipe.toml")]
