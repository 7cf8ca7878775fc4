"""scheme: what the kinds of addresses have in common."""

from pathlib import Path
from typing import Protocol

from tasks.params import Source


class DeliveryError(ValueError):
    """A source did not deliver. Another place may, which its `fallback` names."""


class PassingError(DeliveryError):
    """A source did not deliver this time: another try may succeed.

    Args:
        after: seconds that the source asks for before the next try.
    """

    def __init__(self, message: str, *, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


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
            DeliveryError: the files are not there, or did not come whole within `timeout`.
            ValueError: a setting is missing or wrong, which no other address mends.
        """
