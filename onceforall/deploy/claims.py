"""One claim of a manifest, and the ways to compare what it says with what was found."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from onceforall.deploy.manifest import Number, value_of
from onceforall.errors import BrokenClaim
from onceforall.files import as_json, differing

SAME_NUMBER = 1e-5  # relative: a number that is computed again, perhaps on another processor


@dataclass(frozen=True)
class Claim:
    """One claim of a manifest: about what, what it says, what was found here, or why that cannot be repeated."""

    about: str
    stated: str
    found: str
    repeated: bool = True


def holds(about: str, stated: str, found: str, right: bool) -> Claim:
    """The claim, which was found to be right. Raises BrokenClaim where it was not."""
    if not right:
        raise BrokenClaim(f"{about}: the manifest says {stated}, found here: {found}")
    return Claim(about, stated, found)


def equal(about: str, stated: object, found: object) -> Claim:
    """That two things are the same. Raises BrokenClaim."""
    return holds(about, str(stated), str(found), stated == found)


def same_json(about: str, stated: Any, found: Any) -> Claim:
    """That two JSON values are the same. Raises BrokenClaim, which names the place."""
    if stated != (found := as_json(found)):
        different = differing(stated, found) or "an entry is missing"
        raise BrokenClaim(f"{about}: the manifest and what was found here differ: {different}")
    return Claim(about, told(stated), "the same")


def computed(about: str, stated: Number | None, found: float, digits: int) -> Claim:
    """That a number is what it is when it is computed again. Raises BrokenClaim."""
    unit = stated.unit.replace("percent", "%") if stated else ""
    said, here = (f"{value:.{digits}f} {unit}".rstrip() for value in (value_of(stated), found))
    right = math.isclose(value_of(stated), found, rel_tol=SAME_NUMBER, abs_tol=1e-9)
    return holds(about, said, here if said != here or right else f"{found!r} {unit}", right)


def skipped(about: str, stated: object, why: str) -> Claim:
    """A claim that is not repeated."""
    return Claim(about, stated if isinstance(stated, str) else told(stated), why, repeated=False)


def told(value: Any) -> str:
    """A JSON value in at most 60 letters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text:.57}..."
