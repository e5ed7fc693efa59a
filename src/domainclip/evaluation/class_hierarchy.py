"""A tree of classes: calling a husky a malamute is a smaller mistake than calling it a bus.

The tree is a nested mapping, lists or nothing at the leaves::

    animal:
      dog: [husky, malamute]
      cat:
    vehicle: [bus]

A class may be any name in it but the root's. A single name at the top is the root; several stand under a root
without a name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domainclip.config.base import shown
from domainclip.config.located_yaml import LocatedYaml, read_yaml_text
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.protocols import Embedder, EvaluationResult
from domainclip.evaluation.registry import EVALUATORS, EvaluationContext
from domainclip.evaluation.shared import SharedEmbedder
from domainclip.evaluation.zero_shot import ZeroShotEvaluator
from domainclip.metrics.bootstrap import Sums, intervals_of, mean_of
from domainclip.metrics.metric import Metric
from domainclip.registry import nearest

UNNAMED_ROOT = ""


class ClassHierarchy:
    """Where each name hangs. ``parents``: name → the name above it, the root's being None.

    ``from_nested`` and ``from_file`` build one.

    Raises:
        ConfigurationError: In either of them a name stands twice (its place would be ambiguous) or is empty, or the
            tree has fewer than two names.
    """

    def __init__(self, parents: Mapping[str, str | None]) -> None:
        self.parents = dict(parents)
        self._paths: dict[str, tuple[str, ...]] = {}

    @classmethod
    def from_nested(cls, nested: Mapping[str, Any], source: str = "class_hierarchy") -> ClassHierarchy:
        """From mappings and lists as YAML and JSON give them.

        Args:
            nested: Names with what hangs under them.
            source: Where it comes from; it stands at the front of error messages.

        Returns:
            The hierarchy.

        Raises:
            ConfigurationError: This is no nested mapping, a name stands twice or is empty, or there are fewer than two
                names.
        """
        if not isinstance(nested, Mapping) or not nested:
            raise ConfigurationError(
                f"{source}: a class hierarchy is a nested mapping of names, this is {_shown(nested)}"
            )
        parents: dict[str, str | None] = {}
        top = UNNAMED_ROOT if len(nested) > 1 else None
        if top is not None:
            parents[top] = None
        try:
            _hang(parents, nested, top, source)
        except RecursionError:
            raise ConfigurationError(f"{source}: names lie too deep inside each other") from None
        if len(parents) < 2:
            raise ConfigurationError(f"{source}: the tree has one name, and it takes two to be near or far")
        return cls(parents)

    @classmethod
    def from_file(cls, path: Path | str) -> ClassHierarchy:
        """From a ``.yaml``, ``.yml`` or ``.json`` file.

        Args:
            path: The file.

        Returns:
            The hierarchy.

        Raises:
            ConfigurationError: The file cannot be read, or holds no hierarchy; the message names file and line.
        """
        path = Path(path)
        text = read_yaml_text(path, "Class hierarchy")
        if path.suffix.lower() == ".json":
            return cls.from_nested(_parse_json(text, path), str(path))
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise ConfigurationError(f"The class hierarchy {path} must be a .yaml or .json file")
        return cls.from_nested(LocatedYaml.parse(text, str(path)).values, str(path))

    def path(self, name: str) -> tuple[str, ...]:
        """Names from the root down to ``name``, both included: its length less one is the depth.

        Args:
            name: A name of the tree.

        Returns:
            The names.
        """
        if name not in self._paths:
            above = self.parents[name]
            self._paths[name] = (*(self.path(above) if above is not None else ()), name)
        return self._paths[name]

    def depth(self, name: str) -> int:
        """Edges from the root, which is at 0.

        Args:
            name: A name of the tree.

        Returns:
            The edges.
        """
        return len(self.path(name)) - 1

    def common_depth(self, a: str, b: str) -> int:
        """Depth of the lowest common ancestor of two names; a name is an ancestor of itself.

        Args:
            a: One name.
            b: Another.

        Returns:
            The depth.
        """
        shared = 0
        for one, other in zip(self.path(a), self.path(b), strict=False):
            if one != other:
                break
            shared += 1
        return shared - 1

    def edges_to_common(self, name: str, other: str) -> int:
        """Edges from ``name`` up to the lowest common ancestor with ``other``.

        Args:
            name: One name.
            other: Another.

        Returns:
            The edges.
        """
        return self.depth(name) - self.common_depth(name, other)

    def distance(self, a: str, b: str) -> int:
        """Edges on the way from one name to the other, through their lowest common ancestor.

        Args:
            a: One name.
            b: Another.

        Returns:
            The edges.
        """
        return self.depth(a) + self.depth(b) - 2 * self.common_depth(a, b)

    def wu_palmer(self, a: str, b: str) -> float:
        """2 · d(lca) / (d(a) + d(b)) with the root at d = 1, in 0…1; 1 for equal names (Wu and Palmer 1994, p. 136).

        Args:
            a: One name.
            b: Another.

        Returns:
            The similarity.
        """
        return 2 * (self.common_depth(a, b) + 1) / (self.depth(a) + self.depth(b) + 2)

    def require(self, classes: Iterable[str]) -> None:
        """Check that the tree has a place for classes.

        Args:
            classes: Names that the tree must have.

        Raises:
            ConfigurationError: The tree lacks one (the message has the nearest name), or one is its root.
        """
        unknown = [label for label in dict.fromkeys(classes) if self.parents.get(label) is None]
        if not unknown:
            return
        lines = []
        for label in unknown[:5]:
            guess = nearest(label, [name for name in self.parents if name])
            why = " is its root, which says nothing" if label in self.parents else ""
            lines.append(f"{label!r}" + (why or (f" (did you mean {guess!r}?)" if guess else "")))
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ConfigurationError(
            f"The class hierarchy has no place for {len(unknown)} of the classes: {', '.join(lines)}{more}. Add them "
            f"under "
            "the names they belong to, spelt as in the data"
        )


def class_hierarchy_scores(
    tree: ClassHierarchy,
    targets: Sequence[str],
    predictions: Sequence[str],
    classes: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
    resamples: int = 0,
) -> EvaluationResult:
    """How near the misses are, from true and predicted class names, one of each an image.

    - ``hierarchical_precision`` Σ|P ∩ T| / Σ|P|, ``hierarchical_recall`` Σ|P ∩ T| / Σ|T| and their harmonic mean
      ``hierarchical_f1``, each in 0…1; P and T are an image's predicted and true class with all their ancestors but
      the root (Kiritchenko et al. 2006, section 3);
    - ``miss_edges`` edges from the true class up to the lowest common ancestor with the predicted one (0 where a kind
      of the true class was predicted), and ``miss_wu_palmer`` their Wu-Palmer similarity in 0…1: means over the
      *misses*, NaN where there is none;
    - ``level_K_accuracy`` for each depth K that a true class reaches: the fraction of those images whose prediction has
      the same ancestor at depth K (or is it). Levels at which all of ``classes`` agree are left out: any model is
      right there. The deepest level is plain accuracy where all classes are leaves at that depth.

    The details say what a wrong answer drawn evenly from the other ``classes`` (default: those that occur) would give
    for the same images, how many images each level counts, and, from ``resamples`` in which images of one group stay
    together, the intervals (95 %).

    Args:
        tree: The hierarchy.
        targets: True class names, one for each image.
        predictions: Predicted ones, in the same order.
        classes: All classes; None for those that occur.
        groups: Each image's group; images of one stay together in a resample.
        resamples: How many are drawn; 0 for no intervals.

    Returns:
        Figures and details.

    Raises:
        ConfigurationError: The tree lacks a class, there are no images, or the lists differ in length.
    """
    if not targets or len(targets) != len(predictions):
        raise ConfigurationError(
            f"Class-hierarchy scores need a true and a predicted class for each image, got {len(targets)} and "
            f"{len(predictions)}"
        )
    classes = list(dict.fromkeys(classes if classes is not None else [*targets, *predictions]))
    tree.require([*classes, *targets, *predictions])
    pairs = list(zip(targets, predictions, strict=True))
    common = np.array([tree.common_depth(*pair) for pair in pairs], dtype=np.float64)
    predicted_depth = np.array([tree.depth(name) for name in predictions], dtype=np.float64)
    true = np.array([tree.depth(name) for name in targets], dtype=np.float64)
    missed = np.array([one != other for one, other in pairs])
    ratios = {
        "hierarchical_precision": (common, predicted_depth),
        "hierarchical_recall": (common, true),
        # 2PR / (P + R), with the common Σ|P ∩ T| taken out of both.
        "hierarchical_f1": (2 * common, predicted_depth + true),
        "miss_edges": mean_of(true - common, missed),
        "miss_wu_palmer": mean_of([tree.wu_palmer(*pair) for pair in pairs], missed),
    }
    counted: dict[str, int] = {}
    for level in range(1, int(true.max()) + 1):
        if len({_at(tree, label, level) for label in classes}) < 2:
            continue
        ratios[f"level_{level}_accuracy"] = mean_of(common >= level, true >= level)
        counted[str(level)] = int((true >= level).sum())
    blind = [
        (name, other)
        for (name, _), wrong in zip(pairs, missed, strict=True)
        if wrong
        for other in classes
        if other != name
    ]
    sums = Sums.ratios(ratios)
    details = {
        "n_misses": int(missed.sum()),
        "n_names": len(tree.parents),
        "images_at_level": counted,
        "random_miss_edges": _mean([tree.edges_to_common(*pair) for pair in blind]),
        "random_miss_wu_palmer": _mean([tree.wu_palmer(*pair) for pair in blind]),
        "resamples": resamples,
    }
    intervals = intervals_of(sums, groups, len(pairs), resamples)
    records = {name: Metric.of(name, value, intervals.get(name)) for (name, _), value in sums.values.items()}
    return EvaluationResult(records, {"class_hierarchy": details})


class ClassHierarchyEvaluator:
    """How near the misses of a classification are: ``class_hierarchy_scores`` of its answers.

    Args:
        tree: The hierarchy of classes.
        zero_shot: Who classifies.
        resamples: How many the intervals come from; 0 for none.

    Raises:
        ConfigurationError: The tree lacks a class: before a long evaluation, not after it.
    """

    name = "class_hierarchy"
    primary_metric = "hierarchical_f1"
    greater_is_better = True

    def __init__(self, tree: ClassHierarchy, zero_shot: ZeroShotEvaluator, resamples: int = 0) -> None:
        tree.require(zero_shot.labels)
        self.tree, self.zero_shot, self.resamples = tree, zero_shot, resamples

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        """The figures of this embedder; where it is shared, nothing is classified twice.

        Args:
            embed: The model.

        Returns:
            Its figures and their details.
        """
        found = SharedEmbedder.over(embed, [self.zero_shot]).result(self.zero_shot).details["classification"]
        answers = (found["targets"], found["predictions"], found["labels"])
        return class_hierarchy_scores(self.tree, *answers, found["groups"], self.resamples)


@EVALUATORS.register("class_hierarchy")
def _from_recipe(context: EvaluationContext) -> ClassHierarchyEvaluator | None:
    """The hierarchy that the recipe or the domain names, none where neither does."""
    given = context.resolved.evaluation.class_hierarchy
    if given is None:
        return None
    tree = ClassHierarchy.from_file(given) if isinstance(given, str) else ClassHierarchy.from_nested(given)
    if context.zero_shot is None:
        raise DataError("No class-hierarchy scores: nothing was classified")
    return ClassHierarchyEvaluator(tree, context.zero_shot, context.resamples)


def _at(tree: ClassHierarchy, name: str, level: int) -> str | None:
    path = tree.path(name)
    return path[level] if level < len(path) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _hang(parents: dict[str, str | None], below: Any, above: str | None, source: str) -> None:
    """Add every name of ``below`` under ``above``."""
    if below is None:
        return
    if isinstance(below, Mapping):
        for name, deeper in below.items():
            _hang(parents, deeper, _add(parents, name, above, source), source)
    elif isinstance(below, list):
        for item in below:
            if isinstance(item, Mapping):  # "- dog: [husky]"
                _hang(parents, item, above, source)
            else:
                _add(parents, item, above, source)
    else:
        _add(parents, below, above, source)


def _add(parents: dict[str, str | None], name: Any, above: str | None, source: str) -> str:
    # YAML reads no, 1 and 2024-01-01 as something other than the name that is meant.
    if not isinstance(name, str):
        raise ConfigurationError(f"{source}: {_shown(name)} is no name: write it in quotes")
    if not name.strip():
        raise ConfigurationError(f"{source}: a name under {above or 'the root'!r} is empty")
    if name in parents:
        raise ConfigurationError(
            f"{source}: {name!r} stands twice, under {parents[name] or 'the root'!r} and under "
            f"{above or 'the root'!r}: a class has one place in a tree"
        )
    parents[name] = above
    return name


def _shown(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"


def _parse_json(text: str, path: Path) -> Any:
    def distinct(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigurationError(f"{path}: {twice!r} stands twice: a class has one place in a tree")
        return found

    try:
        return json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path} line {error.lineno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: values lie too deep inside each other") from None
    except ConfigurationError:
        raise
    except ValueError:
        raise ConfigurationError(f"{path}: not valid JSON (a number of thousands of digits)") from None
