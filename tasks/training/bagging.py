"""Bagging (Breiman 1996): boosters of one recipe with a seed each, merged into one whose margin is the mean of theirs.

The losses are convex in the margin. So the mean's loss is at most the mean of the members' losses, and less where they
differ: train.bag needs no search, only time. The merged booster has all their trees, each leaf divided by their number.
It is an XGBoost model like any other: whatever reads a model reads it.
"""

import json
from collections.abc import Sequence
from typing import Any

from tasks.training import model

SEED_STEP = 7919  # between the seeds of one bag; the twins' seeds are 1 apart


def find_seeds(seed: int, bag: int) -> list[int]:
    """The seeds of a bag's boosters, the first being `seed`."""
    return [seed + SEED_STEP * number for number in range(bag)]


def merge_boosters(boosters: Sequence[Any]) -> Any:
    """One booster with the mean margin of these, which were trained on the same rows. One alone stays as it is."""
    if len(boosters) == 1:
        return boosters[0]
    parts = [json.loads(bytes(booster.save_raw("json"))) for booster in boosters]
    merged = parts[0]
    forest = _get_forest(merged)
    rounds, trees, tree_info = [0], list[dict[str, Any]](), list[int]()
    for part in map(_get_forest, parts):
        ends = part["iteration_indptr"]
        rounds += [len(trees) + end for end in ends[1:]]
        tree_info += part["tree_info"]
        for tree in part["trees"]:
            trees.append(_shrink_tree(tree, len(parts)) | {"id": len(trees)})
    forest |= {"trees": trees, "tree_info": tree_info, "iteration_indptr": rounds}
    forest["gbtree_model_param"]["num_trees"] = str(len(trees))
    return model.import_xgboost().Booster(model_file=bytearray(json.dumps(merged).encode()))


def _get_forest(booster: dict[str, Any]) -> dict[str, Any]:
    forest: dict[str, Any] = booster["learner"]["gradient_booster"]["model"]
    return forest


def _shrink_tree(tree: dict[str, Any], by: int) -> dict[str, Any]:
    """A tree whose leaves, which XGBoost keeps among the split conditions, are divided by a number."""
    values = zip(tree["split_conditions"], tree["left_children"], strict=True)
    return tree | {
        "split_conditions": [value / by if child == -1 else value for value, child in values],
        "base_weights": [weight / by for weight in tree["base_weights"]],
    }
