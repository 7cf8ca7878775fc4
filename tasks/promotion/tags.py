"""tags: the names under which this project keeps what it knows of a run or a version in MLflow.

MLflow's own names that are used stand here too. What has no constant is lineage that only a person reads.
"""

PREFIX = "evergreen."
AS_OF = f"{PREFIX}as_of"
CHAMPION = f"{PREFIX}champion"
COMMIT = f"{PREFIX}commit"
DATA_TO = f"{PREFIX}data.to"  # the event time of the newest row that the model was made of
DECISION = f"{PREFIX}decision"
DIRTY = f"{PREFIX}dirty"  # "true" for a run of code with edits that are not committed
ENTRY = f"{PREFIX}entry."  # and a number: the pieces of an entry of the ledger
ENVIRONMENT = f"{PREFIX}environment"  # the hash of requirements.lock
MARK = f"{PREFIX}mark"
MODEL = f"{PREFIX}model"  # of a run: the id of MLflow's logged model
OUTCOME = f"{PREFIX}outcome"
PII_KEY_ID = f"{PREFIX}pii_key_id"
RECORD = f"{PREFIX}record"  # the hash of what a run records
RUN = f"{PREFIX}run"
VERDICT = f"{PREFIX}verdict"
VERDICT_FIGURES = f"{PREFIX}verdict.figures"
VERSION = f"{PREFIX}version"

ARTIFACTS = "mlflow.loggedArtifacts"
CONTEXT = "mlflow.data.context"
MODEL_VERSIONS = "mlflow.modelVersions"
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"
