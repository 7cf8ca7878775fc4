"""The version of each file that one module writes and another reads.

Each such file has one schema, beside the code that writes it, and a `Format` that stands in the file. A change that
an older reader would misread raises the version. No release is out yet, so a file of another version is refused, with
the way out. From the first release on, the reader migrates older versions, and a test holds a sample of each.
"""

from dataclasses import dataclass

KEY = "evergreen.format"  # where Parquet's metadata, a model's attributes and MLflow's tags hold the mark


@dataclass(frozen=True)
class Format:
    """A kind of file and the version that this code writes and reads."""

    name: str
    version: int

    @property
    def mark(self) -> str:
        """What stands in the file, such as `journal/1`."""
        return f"{self.name}/{self.version}"

    def check(self, mark: str | None, where: object) -> None:
        """Refuses a file of another kind or version.

        Args:
            mark: what stands in the file; None where nothing does.
            where: the file, as the message names it.

        Raises:
            ValueError: the mark is not this format's; the message says what to do.
        """
        if mark != self.mark:
            raise ValueError(
                f"{where} is in format {mark or 'unknown'}, but this evergreen reads {self.mark}. Use the evergreen "
                "that wrote it, or begin a new home: set EVERGREEN_HOME to an empty folder and train again."
            )
