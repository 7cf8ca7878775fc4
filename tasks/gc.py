"""gc: frees what no registered version, no open run and no current lock needs.

    python -m tasks.gc           what would be freed
    python -m tasks.gc --do      frees it

A version's lock lives in MLflow and counts like the checkout's own: whatever it names stays, so that every version can
be reproduced and rolled back to.
"""

import argparse
import tempfile
from pathlib import Path

from tasks import params, pipeline, registry
from tasks.pipeline import Freed


def gc(checkout: Path, *, dry: bool) -> list[Freed]:
    """What was freed, or with `dry` would be."""
    known = registry.open_registry(params.load(checkout / "params.yaml").registry)
    with tempfile.TemporaryDirectory() as scratch:
        locks = [_lock_of(known, version, Path(scratch)) for version in known.versions()]
        return pipeline.gc(checkout, keep_locks=locks, dry=dry)


def _lock_of(known: registry.Registry, version: registry.Version, into: Path) -> Path:
    folder = into / str(version.number)
    known.fetch(version, "dvc.lock", folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--do", action="store_true", help="free it; without this nothing is touched")
    do = parser.parse_args().do
    freed = gc(Path.cwd(), dry=not do)
    for each in sorted(freed, key=lambda each: -each.size)[:20]:
        print(f"{each.size / 1e6:10.1f} MB  {each.kind:<10} {each.path}")
    total = sum(each.size for each in freed) / 1e6
    print(f"{total:10.1f} MB in {len(freed)} places {'freed' if do else 'could be freed: make gc DO=1'}")


if __name__ == "__main__":
    main()
