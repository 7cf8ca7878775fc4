"""lineage: a feature back to the columns of the sources that its value is computed from.

    evergreen lineage tail_idle_hours

What only chooses the rows of a join, a filter or a window is not in the answer: that is no part of the value. This
module alone imports sqlglot.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from tasks import params
from tasks.data.featuresql import SQL
from tasks.params import TIMES, Params

DIALECT = "duckdb"
SPINE, ROW_ID = "spine", "row_id"


@dataclass(frozen=True)
class Lineage:
    """What a feature is made of.

    Attributes:
        columns: of the sources: tables and names.
        steps: the expressions of params.yaml on the way, by table and name.
    """

    columns: frozenset[tuple[str, str]]
    steps: dict[tuple[str, str], str]


class Tracer:
    """features.sql, parsed once for all of its features. Names are as DuckDB takes them, whatever their capital
    letters, and shown as they are written.

    Raises ValueError where sqlglot cannot read it.
    """

    def __init__(self, p: Params, sql: str) -> None:
        from sqlglot import MappingSchema, errors, exp, parse_one
        from sqlglot.optimizer import build_scope
        from sqlglot.optimizer.qualify import qualify

        self.p, self.columns = p, list_columns(p)
        try:
            schema, written = MappingSchema(self.columns, dialect=DIALECT), parse_one(sql, dialect=DIALECT)
            names = [*(name for table in self.columns.values() for name in table)]
            names += [identifier.name for identifier in written.find_all(exp.Identifier)]
            self._spelled = {name.lower(): name for name in names}  # sqlglot gives all names in small letters
            tree = qualify(written, schema=schema, dialect=DIALECT, validate_qualify_columns=False)
            self._scope: Any = build_scope(tree)
        except errors.SqlglotError as error:
            raise ValueError(f"features.sql cannot be traced: {str(error).splitlines()[0]}") from None

    @property
    def features(self) -> list[str]:
        names = [name for name in self._scope.expression.named_selects if name.lower() != ROW_ID]
        return [self._spelled.get(name, name) for name in names]

    def trace(self, feature: str) -> Lineage:
        """What a feature is made of. Raises ValueError for a feature that is none."""
        from sqlglot.lineage import lineage

        if feature not in self.features:
            close = get_close_matches(feature, self.features, n=1)
            hint = f"did you mean {close[0]}?" if close else f"they are {', '.join(self.features)}"
            raise ValueError(f"features.sql gives no feature {feature!r}: {hint}")
        tree: Any = lineage(feature.lower(), self._scope.expression, self.columns, scope=self._scope, dialect=DIALECT)
        columns: set[tuple[str, str]] = set()
        steps: dict[tuple[str, str], str] = {}
        for node in tree.walk():
            if not node.downstream and type(node.source).__name__ == "Table":
                table = self.p.spine.table if node.source.name == SPINE else self._spell_table(node.source.name)
                name = node.name.rpartition(".")[2].strip('"')
                if name != ROW_ID:
                    self._resolve(table, self._spell_column(table, name), columns, steps)
        return Lineage(frozenset(columns), steps)

    def _resolve(self, table: str, name: str, columns: set[tuple[str, str]], steps: dict[tuple[str, str], str]) -> None:
        """Add what a column of a clean table is made of: the column itself, or what its expression names."""
        from sqlglot import exp, parse_one

        written = list_expressions(self.p, table)
        if name not in written:
            columns.add((table, name))
        elif (table, name) not in steps:
            steps[table, name] = written[name]
            tree = parse_one(written[name], dialect=DIALECT)
            others = [other.name for other in tree.find_all(exp.Table) if other.name in self.columns]
            for column in tree.find_all(exp.Column):
                self._resolve(self._find_table(column.name, table, others), column.name, columns, steps)

    def _spell_table(self, name: str) -> str:
        return next((table for table in self.columns if table.lower() == name.lower()), name)

    def _spell_column(self, table: str, name: str) -> str:
        """A column as the contract writes it."""
        return next((column for column in self.columns[table] if column.lower() == name.lower()), name)

    def _find_table(self, name: str, table: str, others: list[str]) -> str:
        """Whose column a name in an expression of a table is: its own, or that of a table in a subquery."""
        own = name in list_expressions(self.p, table) or name in self.p.contract[table].columns
        return table if own else next((other for other in others if name in self.columns[other]), table)


def list_expressions(p: Params, table: str) -> dict[str, str]:
    """The columns that params.yaml makes of others, each with its SQL on one line."""
    source = p.sources[table]
    times = {name: getattr(source, name) for name in TIMES if getattr(source, name)}
    return {name: " ".join(text.split()) for name, text in {**source.derive, **times}.items()}


def list_columns(p: Params) -> dict[str, Any]:
    """The columns of the tables that features.sql sees, with their types."""
    tables: dict[str, dict[str, str]] = {
        name: {
            **{column: rule.type for column, rule in table.columns.items()},
            **(dict.fromkeys(TIMES, "TIMESTAMP") if p.sources[name].event_time else {}),
        }
        for name, table in p.contract.items()
    }
    known = {name: tables[p.spine.table].get(name, "VARCHAR") for name in p.spine.columns}
    return tables | {SPINE: {ROW_ID: "BIGINT", TIMES[0]: "TIMESTAMP"} | known}


def render_lineage(p: Params, feature: str, lineage: Lineage) -> Tree:
    """A feature, the sources that it comes from, and their columns, for the terminal."""
    tree = Tree(f"[bold]{feature}[/bold]")
    for table in sorted({table for table, _ in lineage.columns}):
        branch = tree.add(f"[bold]{table}[/bold]  {escape(p.sources[table].address)}")
        for line in _list_lines(p, table, lineage):
            branch.add(escape(line))
    return tree


def _list_lines(p: Params, table: str, lineage: Lineage) -> Iterator[str]:
    for name in sorted(name for other, name in lineage.columns if other == table):
        rule = p.contract[table].columns.get(name)
        yield name if rule is None else f"{name}  {rule.type}{', personal: a keyed hash' if rule.pii else ''}"
    for (other, name), text in lineage.steps.items():
        if other == table:
            yield f"{name} = {text}"


def main(*features: str) -> None:
    """From features back to the columns of the sources that their values are made of.

    Args:
        features: their names; without one, all.
    """
    p = params.load()
    tracer, console = Tracer(p, SQL.read_text(encoding="utf-8")), Console(highlight=False)
    for feature in features or tracer.features:
        console.print(render_lineage(p, feature, tracer.trace(feature)))
