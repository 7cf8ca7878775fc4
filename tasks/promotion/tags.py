"""tags: the names under which this project keeps what it knows of a run or a version in MLflow.

The ledger's entries show their other fields under the fields' names.
"""

PREFIX = "evergreen."
AGAINST = f"{PREFIX}against"  # the version that a candidate was judged against, or `baselines`
AS_OF = f"{PREFIX}as_of"
COMMIT = f"{PREFIX}commit"
COST = f"{PREFIX}cost"  # money: CPU hours times policy.cpu_price
CPU = f"{PREFIX}cpu_s"  # CPU seconds that making and judging took
DATA_FROM, DATA_TO, DATA_ROWS = f"{PREFIX}data.from", f"{PREFIX}data.to", f"{PREFIX}data.rows"  # event times, a count
DECISION = f"{PREFIX}decision"  # that registered a version, or that an entry of the ledger belongs to
DIRTY = f"{PREFIX}dirty"  # "true" for a run of code with edits that are not committed
ENTRY = f"{PREFIX}entry."  # and a number: the pieces of an entry of the ledger
ENVIRONMENT = f"{PREFIX}environment"  # the hash of requirements.lock
FLOW_RUN = f"{PREFIX}flow_run"  # the id of the Prefect run
GATE_METRIC = f"{PREFIX}gate_metric"
KIND = f"{PREFIX}kind"  # of the retrain: search or refresh
MODEL = f"{PREFIX}model"  # of a run: the id of MLflow's logged model
PII_KEY_ID = f"{PREFIX}pii_key_id"
RECIPE = f"{PREFIX}recipe"  # the id of what turned the data into a model; see recipe.identify_recipe
REPLAY = f"{PREFIX}replay"  # of a replay's run: its policies
RECORD = f"{PREFIX}record"  # the hash of what a run records
VERDICT, VERDICT_FIGURES = f"{PREFIX}verdict", f"{PREFIX}verdict.figures"

# MLflow's own
ARTIFACTS = "mlflow.loggedArtifacts"
CONTEXT = "mlflow.data.context"
MODEL_VERSIONS = "mlflow.modelVersions"
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"
