"""Class hierarchies: reading them, distances against hand counts and by plain search, scores by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domainclip.errors import ConfigurationError
from domainclip.evaluation.class_hierarchy import ClassHierarchy, class_hierarchy_scores

NESTED = {
    "animal": {"dog": ["husky", "malamute"], "cat": None},
    "vehicle": {"road": ["bus", {"car": ["taxi"]}], "boat": "canoe"},
}
TREE = ClassHierarchy.from_nested(NESTED)
NAMES = [name for name in TREE.parents if name]


def walked_distance(a: str, b: str) -> int:
    """Breadth-first search over the edges, knowing nothing of ancestors."""
    edges: dict[str, set[str]] = {name: set() for name in TREE.parents}
    for name, above in TREE.parents.items():
        if above is not None:
            edges[name].add(above)
            edges[above].add(name)
    queue, seen = deque([(a, 0)]), {a}
    while queue:
        name, steps = queue.popleft()
        if name == b:
            return steps
        for next_name in edges[name] - seen:
            seen.add(next_name)
            queue.append((next_name, steps + 1))
    raise AssertionError("not connected")


def ancestors(name: str) -> set[str]:
    """The name and all above it but the root."""
    found = set()
    step: str | None = name
    while step is not None and TREE.parents[step] is not None:
        found.add(step)
        step = TREE.parents[step]
    return found


def scored(*arguments: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Plain numbers and details."""
    result = class_hierarchy_scores(*arguments)
    return result.metrics, result.details["class_hierarchy"]


def test_distance_is_the_shortest_walk() -> None:
    for a, b in itertools.product(NAMES, NAMES):
        assert TREE.distance(a, b) == walked_distance(a, b)
        assert TREE.edges_to_common(a, b) + TREE.edges_to_common(b, a) == TREE.distance(a, b)


def test_wu_palmer_by_hand() -> None:
    assert TREE.wu_palmer("husky", "husky") == 1.0
    # Depths with the root at 1: husky 4, malamute 4, dog 3 (their common ancestor), taxi 5, root 1.
    assert TREE.wu_palmer("husky", "malamute") == pytest.approx(2 * 3 / (4 + 4))
    assert TREE.wu_palmer("husky", "taxi") == pytest.approx(2 * 1 / (4 + 5))
    assert TREE.wu_palmer("dog", "husky") == pytest.approx(2 * 3 / (3 + 4))


def test_a_single_name_at_the_top_is_the_root() -> None:
    tree = ClassHierarchy.from_nested({"thing": {"a": None, "b": ["c"]}})
    assert (tree.depth("thing"), tree.depth("a"), tree.depth("c")) == (0, 1, 2)
    with pytest.raises(ConfigurationError, match="'thing' is its root"):
        tree.require(["a", "thing"])


def test_hierarchical_precision_and_recall_are_kiritchenkos() -> None:
    rng = np.random.default_rng(0)
    targets, predictions = ([str(name) for name in rng.choice(NAMES, 200)] for _ in range(2))
    metrics, _ = scored(TREE, targets, predictions)
    shared = sum(len(ancestors(t) & ancestors(p)) for t, p in zip(targets, predictions, strict=True))
    precision = shared / sum(len(ancestors(p)) for p in predictions)
    recall = shared / sum(len(ancestors(t)) for t in targets)
    assert metrics["hierarchical_precision"] == pytest.approx(precision)
    assert metrics["hierarchical_recall"] == pytest.approx(recall)
    assert metrics["hierarchical_f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_misses_and_levels_by_hand() -> None:
    targets = ["husky", "husky", "cat", "taxi", "bus"]
    predictions = ["husky", "malamute", "husky", "bus", "canoe"]
    metrics, details = scored(TREE, targets, predictions)
    # Misses: husky→malamute 1 edge up, cat→husky 1, taxi→bus 2, bus→canoe 2.
    assert metrics["miss_edges"] == pytest.approx((1 + 1 + 2 + 2) / 4)
    assert metrics["level_1_accuracy"] == 1.0  # animal or vehicle is always right
    assert metrics["level_2_accuracy"] == pytest.approx(3 / 5)  # cat→dog and bus→boat are wrong
    assert metrics["level_3_accuracy"] == pytest.approx(1 / 4)  # husky, husky→malamute, taxi's car→bus, bus→canoe
    assert metrics["level_4_accuracy"] == 0.0  # the taxi alone is that deep
    assert details["n_misses"] == 4
    assert details["images_at_level"] == {"1": 5, "2": 5, "3": 4, "4": 1}


def test_perfect_answers_have_no_misses_to_measure() -> None:
    metrics, details = scored(TREE, ["husky", "bus"], ["husky", "bus"])
    assert metrics["hierarchical_f1"] == 1.0 and metrics["level_3_accuracy"] == 1.0
    assert math.isnan(metrics["miss_edges"]) and math.isnan(metrics["miss_wu_palmer"])
    assert details["n_misses"] == 0


def test_nothing_shared_is_zero() -> None:
    metrics, _ = scored(TREE, ["husky"], ["bus"])
    assert metrics["hierarchical_precision"] == metrics["hierarchical_f1"] == 0.0


def test_a_level_where_all_classes_agree_is_left_out() -> None:
    metrics, _ = scored(TREE, ["husky", "cat"], ["cat", "cat"], ["husky", "malamute", "cat"])
    assert "level_1_accuracy" not in metrics  # all are animals
    assert metrics["level_2_accuracy"] == 0.5


def test_a_blind_guess_is_what_the_details_say() -> None:
    rng = np.random.default_rng(1)
    classes = ["husky", "malamute", "cat", "bus", "taxi", "canoe"]
    targets = [classes[number] for number in rng.integers(6, size=4000)]
    predictions = [str(rng.choice([other for other in classes if other != true])) for true in targets]
    metrics, details = scored(TREE, targets, predictions, classes)
    assert metrics["miss_edges"] == pytest.approx(details["random_miss_edges"], abs=0.06)
    assert metrics["miss_wu_palmer"] == pytest.approx(details["random_miss_wu_palmer"], abs=0.01)


def test_a_class_that_the_tree_lacks_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"no place for 1 of the classes: 'huski' \(did you mean 'husky'"):
        class_hierarchy_scores(TREE, ["husky"], ["husky"], ["husky", "huski"])


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="got 2 and 1"):
        class_hierarchy_scores(TREE, ["husky", "cat"], ["husky"])


def test_yaml_and_json_files_read_alike(tmp_path: Path) -> None:
    (tmp_path / "tree.json").write_text(json.dumps(NESTED), encoding="utf-8")
    (tmp_path / "tree.yaml").write_text(
        "animal:\n  dog: [husky, malamute]\n  cat:\nvehicle:\n  road:\n    - bus\n    - car: [taxi]\n  boat: canoe\n",
        encoding="utf-8",
    )
    assert ClassHierarchy.from_file(tmp_path / "tree.json").parents == TREE.parents
    assert ClassHierarchy.from_file(tmp_path / "tree.yaml").parents == TREE.parents


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tree.yaml", "a: [x]\nb: [x]\n", "'x' stands twice, under 'a' and under 'b'"),
        ("tree.yaml", "a: [x]\nb: [y]\na: [z]\n", r"line 3: 'a' stands twice \(first on line 1\)"),
        ("tree.json", '{"a": ["x"], "a": ["y"]}', "'a' stands twice"),
        ("tree.yaml", "a: [1]\n", r"1 \(int\) is no name: write it in quotes"),
        ("tree.yaml", "a: [' ']\n", "a name under 'a' is empty"),
        ("tree.yaml", "a: [x\n", "line 2: not valid YAML"),
        ("tree.json", '{"a": [}', "line 1: not valid JSON"),
        ("tree.yaml", "- a\n- b\n", "a class hierarchy is a nested mapping"),
        ("tree.yaml", "", "a class hierarchy is a nested mapping"),
        ("tree.yaml", "a:\n", "the tree has one name"),
        ("tree.txt", "a: [x]\n", r"must be a \.yaml or \.json file"),
    ],
)
def test_a_wrong_file_is_said_plainly(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        ClassHierarchy.from_file(tmp_path / name)


def test_a_missing_file_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.yaml does not exist"):
        ClassHierarchy.from_file(tmp_path / "none.yaml")


def test_images_of_one_group_are_resampled_together() -> None:
    rng = np.random.default_rng(2)
    targets, predictions = ([str(name) for name in rng.choice(NAMES, 60)] for _ in range(2))
    plain = class_hierarchy_scores(TREE, targets, predictions, resamples=500)
    four_times = [[name for name in names for _ in range(4)] for names in (targets, predictions)]
    groups = [f"patient {index // 4}" for index in range(240)]
    # Four images of each patient that say the same are no more evidence than one.
    grouped = class_hierarchy_scores(TREE, *four_times, groups=groups, resamples=500)
    ungrouped = class_hierarchy_scores(TREE, *four_times, resamples=500)
    for name, found in plain.records.items():
        assert found.low <= found.value <= found.high
        assert grouped.records[name].ends == pytest.approx(found.ends)
    narrow, wide = (found.records["hierarchical_f1"] for found in (ungrouped, grouped))
    assert narrow.high - narrow.low < 0.7 * (wide.high - wide.low)


def test_an_interval_is_that_of_resampling_by_hand() -> None:
    targets = [*["husky"] * 20, *["bus"] * 20]
    predictions = [*["husky"] * 12, *["cat"] * 8, *["bus"] * 15, *["canoe"] * 5]
    result = class_hierarchy_scores(TREE, targets, predictions, resamples=2000)
    rng = np.random.default_rng(3)
    found = []
    for _ in range(2000):
        drawn = [(targets[row], predictions[row]) for row in rng.integers(40, size=40)]
        misses = [TREE.edges_to_common(*pair) for pair in drawn if pair[0] != pair[1]]
        found.append(np.mean(misses))
    assert result.records["miss_edges"].ends == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.05)
