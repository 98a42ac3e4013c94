"""Lower bounds of dependencies exclude versions with published advisories; so does what is installed here.

Owns the comparison. The advisories stand in `advisories.toml`.

    python -m tests.architecture.test_dependencies     prints the comparison for this environment; `make audit`
"""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@dataclass(frozen=True, slots=True)
class Advisory:
    id: str
    package: str
    fixed: tuple[Version, ...]  # ascending: the first good version of each line of releases
    fault: str

    def affects(self, version: Version) -> bool:
        """Whether `version` is older than the fix of its own line of releases, or than every fix."""
        own_line = [fix for fix in self.fixed if fix.major == version.major]
        return version < (own_line[0] if own_line else self.fixed[-1])


def advisories() -> list[Advisory]:
    entries = tomllib.loads((HERE / "advisories.toml").read_text(encoding="utf-8"))["advisory"]
    return [Advisory(one["id"], one["package"], tuple(map(Version, one["fixed"])), one["fault"]) for one in entries]


def lower_bounds() -> dict[str, Version]:
    """Of the package's own dependencies, by canonical name."""
    bounds = {}
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        lowest = [Version(part.version) for part in requirement.specifier if part.operator in {">=", "~=", "=="}]
        bounds[canonicalize_name(requirement.name)] = lowest[0]
    return bounds


@pytest.mark.parametrize("advisory", advisories(), ids=lambda one: one.id)
def test_no_version_with_this_advisory_is_allowed_or_installed(advisory: Advisory) -> None:
    bound = lower_bounds().get(canonicalize_name(advisory.package))

    assert bound is None or not advisory.affects(bound), f"{advisory.package}>={bound} allows {advisory.id}: {advisory.fault}"
    assert not advisory.affects(Version(metadata.version(advisory.package))), f"{advisory.id} is installed: {advisory.fault}"


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_every_dependency_has_a_lower_bound(line: str) -> None:
    assert any(part.operator in {">=", "~=", "=="} for part in Requirement(line).specifier)


def test_an_old_version_is_recognised_on_each_line_of_releases() -> None:
    advisory = Advisory("example", "protobuf", (Version("5.29.6"), Version("6.33.5")), "")

    affected = [version for version in ("4.1", "5.29.5", "5.29.6", "6.33.4", "6.33.5", "7.1") if advisory.affects(Version(version))]

    assert affected == ["4.1", "5.29.5", "6.33.4"]


def audit() -> int:
    """Print each advisory beside what is installed; the number of those that are affected."""
    count = 0
    for advisory in advisories():
        version = Version(metadata.version(advisory.package))
        count += advisory.affects(version)
        print(f"{'AFFECTED' if advisory.affects(version) else 'ok':9}{advisory.package} {version}: {advisory.id}, {advisory.fault}")
    return count


if __name__ == "__main__":
    sys.exit(audit())
