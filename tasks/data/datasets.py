"""datasets: what each stage reads and makes, as OpenLineage names it: sources by their address, tables by the model.

Tables have their schema, and features and clean tables the columns that each column is made of. What a workspace holds
is gone with it, so its tables have names of their own: `<model>.clean.<table>` in the namespace of the jobs.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from tasks.data import lineage
from tasks.data.featuresql import SQL
from tasks.params import Params, Source
from tasks.params.source import DATABASE, KAFKA, WEB, scheme_of
from tasks.runtime import graph
from tasks.runtime.openlineage import Dataset, Facets, make_facet

POSTGRES_PORT = 5432


@dataclass(frozen=True)
class Tables:
    """The datasets of a workspace's stages.

    Attributes:
        nodes: the stages of its dvc.yaml.
        namespace: of the jobs.
        sql: features.sql.
    """

    p: Params
    nodes: tuple[graph.Node, ...]
    namespace: str
    sql: str
    checkout: Path

    def describe(self, stage: str) -> tuple[Sequence[Dataset], Sequence[Dataset]]:
        """What a stage reads and what it makes."""
        node = next(one for one in self.nodes if one.name == stage)
        made = {out for one in self.nodes for out in one.outs}
        read = [dep for dep in node.deps if dep in made]
        inputs = [replace(dataset, facets={}) for dep in read for dataset in self._expand(dep, columns=False)]
        if str(self.p.paths.raw) in node.outs:
            inputs += self.list_sources()
        return inputs, [dataset for out in node.outs for dataset in self._expand(out, columns=True)]

    def list_sources(self) -> list[Dataset]:
        return [
            replace(name_source(source, table, self.checkout), facets=self._make_schema(table, raw=True))
            for table, source in self.p.sources.items()
        ]

    def _expand(self, out: str, *, columns: bool) -> Iterator[Dataset]:
        """An output as datasets: a folder of tables by table, another path as it is. With `columns` the features are
        traced, which takes a second or two."""
        paths = self.p.paths
        if out in map(str, (paths.raw, paths.clean, paths.quarantine)):
            kind = Path(out).name
            for table in self.p.sources:
                facets = dict(self._make_schema(table, raw=out == str(paths.raw)))
                if out == str(paths.clean):
                    facets |= self._map_columns(table)
                yield self._name(f"{kind}.{table}", facets)
        elif out == str(paths.features):
            yield self._name("features", self._feature_facets if columns else {})
        else:
            yield self._name(out)

    def _name(self, name: str, facets: Facets | None = None) -> Dataset:
        return Dataset(self.namespace, f"{self.p.registry.model}.{name}", facets or {})

    def _make_schema(self, table: str, *, raw: bool) -> Facets:
        """A table's columns, with the contract's types; raw columns are as the source has them."""
        derived = self.p.sources[table].derive
        fields = [
            {"name": name} if raw else {"name": name, "type": column.type}
            for name, column in self.p.contract[table].columns.items()
            if not (raw and name in derived)
        ]
        return {"schema": make_facet("SchemaDatasetFacet", "1-2-0", fields=fields)}

    def _map_columns(self, table: str) -> Facets:
        """A clean column is the raw one of its name; a derived one was made by ingest, of what its SQL names."""
        fields = {
            name: {"inputFields": [self._spell_column("raw", table, name)]}
            for name in self.p.contract[table].columns
            if name not in self.p.sources[table].derive
        }
        return {"columnLineage": make_facet("ColumnLineageDatasetFacet", "1-2-0", fields=fields)}

    def _spell_column(self, kind: str, table: str, column: str) -> dict[str, str]:
        return {"namespace": self.namespace, "name": f"{self.p.registry.model}.{kind}.{table}", "field": column}

    @functools.cached_property
    def _feature_facets(self) -> Facets:
        tracer = lineage.Tracer(self.p, self.sql)
        fields = {
            feature: {
                "inputFields": [self._spell_column("clean", *one) for one in sorted(tracer.trace(feature).columns)]
            }
            for feature in tracer.features
        }
        return {
            "schema": make_facet("SchemaDatasetFacet", "1-2-0", fields=[{"name": name} for name in tracer.features]),
            "columnLineage": make_facet("ColumnLineageDatasetFacet", "1-2-0", fields=fields),
        }


def open_tables(p: Params, root: Path, namespace: str, checkout: Path) -> Tables:
    """The datasets of the stages of a workspace."""
    nodes = tuple(graph.read_nodes(root))
    return Tables(p, nodes, namespace, (root / SQL).read_text(encoding="utf-8"), checkout)


def name_source(source: Source, table: str, checkout: Path) -> Dataset:
    """A source as OpenLineage names its kind: a file by its path, a database by host, schema and table, and so on."""
    address, scheme = source.shown, scheme_of(source.address)
    parts = urlsplit(address)
    if scheme == DATABASE:
        query = str(source.query)
        name = query if query.replace(".", "").replace("_", "").isalnum() else table
        name = name if "." in name else f"public.{name}"
        host = f"{parts.hostname}:{parts.port or POSTGRES_PORT}"
        return Dataset(f"postgres://{host}", f"{parts.path.strip('/')}.{name}")
    if scheme == KAFKA:
        return Dataset(f"kafka://{parts.netloc.split(',')[0]}", parts.path.strip("/"))
    if scheme in (*WEB, "s3", "package"):
        return Dataset(f"{scheme}://{parts.netloc}", parts.path.strip("/"))
    return Dataset("file", str(checkout / address.removeprefix("file://")))
