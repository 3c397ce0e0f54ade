"""Which of a pointer's two bundles serves a user. Serving follows this rule, and a reader of its log can repeat it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Generic, TypeVar

M_co = TypeVar("M_co", covariant=True)


@dataclass(frozen=True)
class Canary(Generic[M_co]):
    """A model for a share of the users.

    Attributes:
        model: what serves them.
        name: of its bundle.
        share: from 0 to 1.
    """

    model: M_co
    name: str
    share: float

    def takes(self, user_id: str) -> bool:
        """Whether a user is in the share: always the same users for one canary, and others for the next."""
        digest = hashlib.blake2b(f"{self.name}:{user_id}".encode("utf-8", "replace"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * 2.0**64


@dataclass(frozen=True)
class Arms(Generic[M_co]):
    """The model that serves, and beside it perhaps a canary."""

    current: M_co
    canary: Canary[M_co] | None = None

    def of(self, user_id: str) -> M_co:
        """The model that serves this user."""
        return self.canary.model if self.canary is not None and self.canary.takes(user_id) else self.current
