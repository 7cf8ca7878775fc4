"""The module that each stage of dvc.yaml runs."""

from pathlib import Path

import yaml

STAGES = yaml.safe_load((Path(__file__).parents[1] / "dvc.yaml").read_text())["stages"]
PROGRAMS = {name: stage["cmd"].removeprefix("python -m ") for name, stage in STAGES.items()}
