"""The documents that come with meshd: beside the code in a checkout, inside the package in a wheel."""

from __future__ import annotations

from pathlib import Path

QUICKSTART = "quickstart"
_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED, _CHECKOUT = _PACKAGE / "policies", _PACKAGE.parent / "policies"
# Never both: beside an installed package there may be another project's folder of that name.
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def packaged(name: str = QUICKSTART) -> Path:
    """Return a packaged document's path, by its name without `.yaml`. Raises FileNotFoundError naming the others."""
    path = FOLDER / f"{name}.yaml"
    if path.is_file():
        return path
    raise FileNotFoundError(f"no packaged policy {name!r}; there are: {', '.join(names()) or 'none'}")


def names() -> tuple[str, ...]:
    """Return the names of the packaged documents."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
