"""The versions that the image is built with: those of this environment, of every dependency of the package.

    python -m serving.constraints > constraints.txt
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(requirements: list[str]) -> dict[str, str]:
    """Name → installed version of these requirements and of all that they need here."""
    versions: dict[str, str] = {}
    left, seen = [Requirement(text) for text in requirements], set()
    while left:
        wanted = left.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        installed = importlib.metadata.distribution(name)
        # A build for one kind of processor (`2.13.0+cpu`) is the same version on another one.
        versions[name] = installed.version.split("+")[0]
        for text in installed.requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                left.append(needed)
    return dict(sorted(versions.items()))


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    print("# python -m serving.constraints > constraints.txt")  # noqa: T201
    print("\n".join(f"{name}=={version}" for name, version in closure(project["dependencies"]).items()))  # noqa: T201
