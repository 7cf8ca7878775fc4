"""tune: Optuna searches XGBoost's parameters on expanding folds → models/tuned.json, reports/trials.json.

    python -m tasks.training.tune

Trials run side by side, on matrices that each side bins once. One that falls behind the median of its elders is pruned,
in whichever fold that shows. The search may have fewer rows than there are (tune.rows); then its best trials are fitted
once more on all of them, and the best of these wins.
"""

from dataclasses import asdict
from pathlib import Path

import optuna

from tasks import log
from tasks.data import feasibility, featurerows, featuresql
from tasks.data.manifest import FeaturesManifest
from tasks.params import Params
from tasks.runtime import files, stage
from tasks.training import fitting, space, trial_log, trials
from tasks.training.folds import Folds
from tasks.training.search import Search
from tasks.training.trials import Tuned


def tune(p: Params, folder: Path = Path(), *, home: Path | None = None) -> None:
    """Write <models>/tuned.json, <reports>/trials.json and score.json. Raises ValueError where folds have no room.

    Args:
        home: keeps the log from which a killed search goes on; EVERGREEN_HOME where not given.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space.check_space(p)
    source, reports = folder / p.paths.features, folder / p.paths.reports
    as_of = FeaturesManifest.read(source).as_of
    rows = featurerows.read_rows(source)
    featuresql.check_slices(p.evaluate.slices, rows.table.column_names)  # evaluate needs them, when all is spent
    folds = Folds(p, rows, as_of)
    study = optuna.create_study(study_name="tune", pruner=optuna.pruners.NopPruner(), sampler=space.make_sampler(p, 0))
    with trial_log.open_log(p, source, as_of, home=home) as path:
        search = Search(p, folds, study, path)
        ended_by = search.run()
        finals = search.rank_finalists()
    best = finals[0]
    tuned = Tuned(
        params=study.trials[best.number].params,
        rounds=best.rounds,
        score=best.score,
        metric=fitting.METRIC[p.label.task],
        trial=best.number,
        trials=len(study.trials),
        pruned=sum(trial.state.name == "PRUNED" for trial in study.trials),
        ended_by=ended_by,
    )
    tuned.write(folder / p.paths.models / "tuned.json")
    files.publish_json(reports / "score.json", {"score": tuned.score})
    by_number = {final.number: {"score": final.score, "rounds": final.rounds} for final in finals}
    listed = [trial_log.to_row(trial) for trial in study.trials]
    trials.write_trials(reports / "trials.json", [{**row, "final": by_number.get(row["number"])} for row in listed])
    log.info("%(trials)s trials, %(pruned)s of them pruned; best %(metric)s %(score).5f", asdict(tuned))
    if ended_by == "budget":
        log.warning("tune.budget ended the search after %s of %s trials", tuned.trials, p.tune.trials)


if __name__ == "__main__":
    stage.main("tune", feasibility.refuse_before(tune))
