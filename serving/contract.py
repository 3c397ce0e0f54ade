"""The contract between the parts of a models directory: what does not fit the others is not served (design 3.8)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from recfuse.bundle import BundleError
from recfuse.bundle.pointer import Pointer
from recfuse.serving import agreement
from recfuse.serving.config import Supplements
from recfuse.serving.parts import Items, Policy, Predictor, Users, read_items, read_policy, read_predictor, read_users

Fact = Policy | Predictor | Items
Paths = Mapping[str, Path | None]
MAIN = ("fusion", "scenes", "catalogue")
_CANARIES = {"fusion": "fusion_canary", "scenes": "scenes_canary"}
_READ: dict[str, Callable[[Path], Fact]] = {
    "fusion": read_policy, "scenes": read_predictor, "catalogue": read_items, "fusion_canary": read_policy,
    "scenes_canary": read_predictor}


@dataclass(frozen=True)
class Choice:
    """What is to serve.

    Attributes:
        paths: name of a part → its path, None where there is none.
        errors: what is wanted and not among them → why.
    """

    paths: Paths
    errors: Mapping[str, str]


@dataclass(frozen=True)
class _Misfit:
    """A sentence, and the parts that it is about."""

    parts: tuple[str, ...]
    sentence: str


class Contract:
    """Chooses of the parts that a pointer names those that fit each other.

    A set that fits is taken whole. Of another one the largest part that fits what served before is taken, so that one
    bad part holds up those alone that need it. Canaries come after it, each where it fits.

    Args:
        supplements: what requests and the config add.
    """

    def __init__(self, supplements: Supplements) -> None:
        self._supplements = supplements
        # What serves goes on, and is compared, where its files are gone.
        self._known: dict[Path, Fact] = {}
        self._lock = threading.Lock()

    def choose(self, wanted: Paths, served: Paths | None) -> Choice:
        """What of the wanted parts is to serve.

        Args:
            wanted: by the names of the pointer.
            served: the choice before; None at the start, when there is nothing to fall back on.

        Raises:
            BundleError: there is nothing that served before, and the parts do not fit, or one cannot be read.
        """
        with self._lock:
            return self._choose(wanted, served)

    def _choose(self, wanted: Paths, served: Paths | None) -> Choice:
        facts = _Facts(wanted.get("users"), known=self._known)
        # Users who suit what serves no better are no reason: the store stops nobody.
        facts.borne = None if served is None else {name for _, name, _ in self._of_users(facts, served)}
        misfits = self._misfits(facts, wanted)
        if served is None and misfits:
            raise BundleError("; ".join(dict.fromkeys(misfit.sentence for misfit in misfits)))
        taken = {name: wanted.get(name) for name in MAIN}
        errors: dict[str, str] = {}
        if served is not None and misfits:
            taken = self._largest(facts, wanted, served)
            errors = {name: _why(name, misfits) for name in MAIN if taken[name] != wanted.get(name)}
        choice = self._with_canaries(facts, wanted, taken, errors)
        self._known = facts.of_paths(choice.paths)
        return choice

    def require(self, wanted: Paths, exported: Users | None) -> None:
        """Refuses parts of which one does not fit; `exported` users are compared in place of the store's, each of them.

        Raises:
            BundleError: says which part lacks what, or cannot be read.
        """
        misfits = self._misfits(_Facts(wanted.get("users"), exported), wanted)
        if misfits:
            raise BundleError("; ".join(dict.fromkeys(misfit.sentence for misfit in misfits)))

    def _largest(self, facts: _Facts, wanted: Paths, served: Paths) -> dict[str, Path | None]:
        changed = [name for name in MAIN if wanted.get(name) != served.get(name)]
        for count in range(len(changed) - 1, 0, -1):
            for names in itertools.combinations(changed, count):
                taken = {name: (wanted if name in names else served).get(name) for name in MAIN}
                if not self._misfits(facts, taken):
                    return taken
        return {name: served.get(name) for name in MAIN}

    def _with_canaries(self, facts: _Facts, wanted: Paths, taken: dict[str, Path | None],
                       errors: dict[str, str]) -> Choice:
        """The two canaries share users, so that the second must fit the first as well."""
        paths: dict[str, Path | None] = dict(taken)
        for main, canary in _CANARIES.items():
            paths[canary] = wanted.get(canary)
            misfits = [] if paths[canary] is None else [
                *self._of_canary(facts, canary, paths),
                *self._misfits(facts, {**paths, main: paths[canary]}, main),
                *(self._misfits(facts, {**paths, main: paths[canary], "fusion": paths["fusion_canary"]}, main)
                  if main == "scenes" and paths["fusion_canary"] is not None else ())]
            if misfits:
                paths[canary] = None
                errors[canary] = "; ".join(dict.fromkeys(misfit.sentence for misfit in misfits))
        return Choice(paths, errors)

    def _of_canary(self, facts: _Facts, canary: str, paths: Paths) -> Iterator[_Misfit]:
        of_canary = facts.of(canary, paths)
        if isinstance(of_canary, str):
            yield _Misfit((canary,), of_canary)
        elif isinstance(of_canary, Policy) and isinstance(policy := facts.of("fusion", paths), Policy):
            yield from (_Misfit((canary,), words) for words in agreement.of_canary(policy, of_canary))
        elif isinstance(of_canary, Predictor) and isinstance(scorer := facts.of("scenes", paths), Predictor):
            yield from (_Misfit((canary,), words) for words in agreement.of_scorer_canary(scorer, of_canary))

    def _misfits(self, facts: _Facts, paths: Paths, about: str | None = None) -> list[_Misfit]:
        """Everything of the main parts that does not fit; with `about` that part's alone."""
        parts = {name: facts.of(name, paths) for name in MAIN}
        found = [_Misfit((name,), part) for name, part in parts.items() if isinstance(part, str)]
        policy, scorer, items = parts["fusion"], parts["scenes"], parts["catalogue"]
        if isinstance(policy, Policy):
            found += _about(("fusion",), agreement.of_policy(policy, self._supplements))
        if isinstance(policy, Policy) and isinstance(scorer, Predictor):
            found += _about(("fusion", "scenes"), agreement.of_policy_and_scorer(policy, scorer, self._supplements))
        if isinstance(scorer, Predictor) and isinstance(items, Items):
            found += _about(("scenes", "catalogue"), agreement.of_scorer_and_items(scorer, items, self._supplements))
        found += [_Misfit((part,), words) for part, name, words in self._of_users(facts, paths)
                  if facts.borne is not None and name not in facts.borne]
        return [misfit for misfit in found if about is None or about in misfit.parts]


    def _of_users(self, facts: _Facts, paths: Paths) -> Iterator[tuple[str, str, str]]:
        """Part, feature, and what of the users it does not take."""
        if facts.users is None:
            return
        policy, scorer = facts.of("fusion", paths), facts.of("scenes", paths)
        if isinstance(policy, Policy):
            for name, words in agreement.of_policy_and_users(policy, facts.users, facts.exported):
                yield "fusion", name, words
        if isinstance(scorer, Predictor):
            for name, words in agreement.of_scorer_and_users(scorer, facts.users, facts.exported):
                yield "scenes", name, words


class _Facts:
    """What parts say of themselves, each read once; in place of one that cannot be read a sentence says why.

    Attributes:
        users: to compare with, None for nobody.
        exported: whether they are those of an export, each of whom must fit.
        borne: features of users that need not fit; None for all.
    """

    def __init__(self, users: Path | None, exported: Users | None = None, known: Mapping[Path, Fact] | None = None
                 ) -> None:
        self._facts: dict[Path, Fact | str] = dict(known or {})
        self.borne: set[str] | None = set()
        self.exported = exported is not None
        self.users = exported if exported is not None else None if users is None else read_users(users)

    def of(self, name: str, paths: Paths) -> Fact | str | None:
        """Of the part of this name; None where there is none."""
        path = paths.get(name)
        if path is None:
            return None
        if path not in self._facts:
            try:
                self._facts[path] = _READ[name](path)
            except Exception as error:  # Whatever is wrong with it, the others go on.
                self._facts[path] = f"{type(error).__name__}: {error}"
        return self._facts[path]

    def of_paths(self, paths: Paths) -> dict[Path, Fact]:
        """Those of these parts that could be read."""
        chosen = set(paths.values())
        return {path: fact for path, fact in self._facts.items() if path in chosen and not isinstance(fact, str)}


def paths_of(pointer: Pointer, models: str | Path) -> dict[str, Path | None]:
    """Where what a pointer names lies; a canary without a share is none."""
    names = [*MAIN, "users", *(_CANARIES.values() if pointer.canary_share > 0 else ())]
    return {name: pointer.path(models, name) for name in names}


def _about(parts: tuple[str, ...], sentences: Iterator[str]) -> list[_Misfit]:
    return [_Misfit(parts, sentence) for sentence in sentences]


def _why(name: str, misfits: list[_Misfit]) -> str:
    """What is wrong with a part, or else with those that came with it."""
    own = [misfit.sentence for misfit in misfits if name in misfit.parts]
    return "; ".join(dict.fromkeys(own or [misfit.sentence for misfit in misfits]))
