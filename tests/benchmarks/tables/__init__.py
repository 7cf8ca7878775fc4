"""Real tables beside the flights: each is a folder here, with the params.yaml and features.sql that a user would write.

    uv pip install --group bench                                       the package that the tables are read from
    .venv/bin/python -m tests.benchmarks.tables hotels ../hotels       a checkout of this project, with that table in it
    cd ../hotels && .venv/bin/python -m flows.cli replay               any command of the project runs there

hotels: regression, 15,402 stays of a resort hotel. stops: binary, 51,920 stops by the police of Minneapolis.
The folder's params.yaml holds only what differs from the project's own.
"""
