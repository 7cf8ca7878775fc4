"""The retrain flow's comparison of the champion's journalled features with the same features computed today."""

from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact

from flows.runs import retried
from tasks.monitoring import skew
from tasks.params import Params
from tasks.promotion.registry import Registry
from tasks.serving.journal import open_journal


@retried("compare features")
def compare_features(p: Params, root: Path, registry: Registry) -> skew.Skew | None:
    """Warn of each feature whose value, computed today, differs from the one that the champion predicted with. The
    retrain goes on: late data may change a feature, and the candidate is judged on its own holdout."""
    champion = registry.find_champion()
    if champion is None:
        return None
    book = open_journal(p.journal)
    try:
        difference = skew.compare(p, root, registry=registry, journal=book, champion=champion)
    except ValueError as error:
        get_run_logger().warning("version %s's features cannot be computed again: %s", champion.number, error)
        return None
    finally:
        book.close()
    say = get_run_logger().warning if difference.columns else get_run_logger().info
    say("%s", " ".join(skew.describe(difference)))
    if difference.columns:
        create_table_artifact(
            skew.to_rows(difference.columns),
            key="features-differ",
            description=f"from {difference.since} to {difference.until}",
        )
    return difference
