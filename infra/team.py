"""team: the servers of the team profile on this machine, and the environment that leads everything to them.

    make up PROFILE=team

State lies where the state of a team lies: Prefect's and MLflow's tables and the locks in PostgreSQL; the journal, what
stages made and MLflow's files in S3. What holds here holds for any number of machines that get the same variables.
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra import postgres, s3, servers
from tasks.promotion import database

BUCKET = "evergreen"
OURS = ("EVERGREEN_STORE", "EVERGREEN_LOCKS", "AWS_ENDPOINT_URL")  # what a person's environment may not say otherwise
FILE = "team.env"


@dataclass(frozen=True)
class Team:
    """PostgreSQL and S3 of one machine."""

    home: Path
    postgres: postgres.Server
    s3: s3.Server

    def environment(self) -> dict[str, str]:
        """What a machine of the team needs besides the addresses of Prefect and MLflow."""
        shared = {"EVERGREEN_STORE": f"s3://{BUCKET}/state", "EVERGREEN_LOCKS": self.postgres.url("evergreen")}
        return {**self.s3.environment(), **shared}

    def parts(self, env: Mapping[str, str]) -> tuple[servers.Part, servers.Part]:
        """Raises RuntimeError where this machine cannot have one of them."""
        return self.postgres.part(env, unpacked=self.home / "programs"), self.s3.part(env)

    def prepare(self) -> None:
        """Create the databases and the bucket, once both servers answer."""
        self.postgres.create_databases()
        self.s3.create_bucket(BUCKET)

    def prefect(self, port: int, env: Mapping[str, str]) -> servers.Part:
        address = self.postgres.url("prefect", driver="asyncpg")
        return servers.prefect(port, {**env, "PREFECT_API_DATABASE_CONNECTION_URL": address})

    def mlflow(self, port: int, env: Mapping[str, str]) -> servers.Part:
        """MLflow on PostgreSQL. It passes files to and from S3, so that its clients need no keys for that."""
        address = self.postgres.url("mlflow", driver="psycopg")
        places = {"MLFLOW_BACKEND_STORE_URI": address, "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow"}
        return servers.serve_mlflow(port, {**env, **places}, "--serve-artifacts")

    def write_environment(self, env: Mapping[str, str]) -> Path:
        """Write the variables of a machine of this team, for a shell to read. It holds passwords."""
        names = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "EVERGREEN_HOME", *sorted(self.environment()))
        path = self.home / FILE
        new = path.with_name(f".{FILE}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.writelines(f"export {name}={shlex.quote(env[name])}\n" for name in names)
        new.replace(path)
        return path


def open_team(home: Path, *, postgres_port: int, s3_port: int) -> Team:
    """The servers of a home, which are not started yet.

    Raises:
        ValueError: The home is a laptop's, or the environment leads elsewhere.
    """
    if (home / database.DATABASE).exists():
        raise ValueError(
            f"{home} holds a laptop's registry ({database.DATABASE}), whose models a team's would lack: set "
            "EVERGREEN_HOME to another folder, or leave PROFILE out"
        )
    if other := [name for name in OURS if os.environ.get(name)]:
        raise ValueError(
            f"the environment sets {', '.join(other)}, but PROFILE=team starts servers of its own: unset that. Where "
            "the team has servers already, start only a worker on this machine (infra/README.md)"
        )
    return Team(home, postgres.Server(home / "postgres", postgres_port), s3.Server(home / "s3", s3_port))


def check_laptop(home: Path) -> None:
    """Raises ValueError for a home whose registry and journal are a team's: a laptop would begin new ones."""
    if (home / "postgres" / "data").exists():
        raise ValueError(
            f"{home} holds the servers of PROFILE=team: give that again, or set EVERGREEN_HOME to another folder"
        )
