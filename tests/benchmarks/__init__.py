"""What `make bench` runs: each row is a ratio of two things, measured side by side in one run.

    .venv/bin/python -m tests.benchmarks                    all of them → reports/bench.json
    .venv/bin/python -m tests.benchmarks --list
    .venv/bin/python -m tests.benchmarks tuning features:   the rows whose names hold one of these

Ratios, because they mean the same on a fast machine and a slow one; A B A B with medians, because what else a machine
does comes and goes. Everything runs in temporary checkouts with homes of their own, so nothing here sees or touches the
user's. No test: pytest does not collect it.
"""
