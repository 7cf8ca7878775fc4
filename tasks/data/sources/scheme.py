"""scheme: what the kinds of addresses have in common."""

from pathlib import Path
from typing import Protocol

from tasks.params import Source


class Scheme(Protocol):
    """One kind of address, such as `package://`."""

    def fetch(self, address: str, source: Source, /) -> list[Path]:
        """Bring the files of an address to this machine.

        Args:
            address: the source's own, or its second one; with `scheme://`, where it has that.
            source: the table's settings in params.yaml.

        Returns:
            Local files, packed or not, in the order of their delivery.

        Raises:
            ValueError: the files are not there.
        """
