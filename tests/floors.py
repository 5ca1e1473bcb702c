"""Fails where a lowest version in pyproject.toml is not the one installed, so is not tested.

`nox -s lowest` runs this: something else may ask for a higher version than our own floor.
"""

from __future__ import annotations

import sys
from importlib import metadata

from packaging.requirements import Requirement

OURS = ("", "langchain", "llama-index", "openvino", "documents", "watch", "parquet", "server")


def untested() -> list[str]:
    found = []
    for text in metadata.requires("tars-rag") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in OURS):
            continue
        floors = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
        installed = metadata.version(requirement.name)
        if not floors or not f"{installed}.".startswith(f"{floors[0]}."):
            found.append(
                f"{requirement.name}: {installed} is tested, {floors or 'any'} is promised"
            )
    return found


if __name__ == "__main__":
    sys.exit("\n".join(untested()) or 0)
