"""What the children of tests/faults/forks.py need, imported in the process that they are forked off.

No connection is opened and no thread is begun here: neither outlives a fork.
"""

import os

import alembic.command
import alembic.config
import duckdb
import dvc.repo
import dvc.stage.run
import mlflow.models
import mlflow.pyfunc
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import pyarrow.parquet
import pytest
import xgboost

import tasks.data.clean
import tasks.data.features
import tasks.data.ingest
import tasks.promotion.registry
import tasks.runtime.pipeline

__all__ = ["PID", "alembic", "duckdb", "dvc", "mlflow", "pyarrow", "pytest", "tasks", "xgboost"]
PID = os.getpid()
