"""The documents that come with meshd: beside the code in a checkout, inside the package in a wheel."""

from __future__ import annotations

from pathlib import Path

QUICKSTART = "quickstart"
_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / "policies", _PACKAGE.parent / "policies")


def packaged(name: str = QUICKSTART) -> Path:
    """Return a packaged document's path, by its name without `.yaml`. Raises FileNotFoundError naming the others."""
    for folder in _FOLDERS:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    raise FileNotFoundError(f"no packaged policy {name!r}; there are: {', '.join(names()) or 'none'}")


def names() -> tuple[str, ...]:
    """Return the names of the packaged documents."""
    return tuple(sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.yaml")}))
