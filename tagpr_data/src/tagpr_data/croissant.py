"""The Croissant 1.1 description of a corpus: files with hashes, record sets with fields, and where rows come from.

One record set per table and split, its fields those of the record, nested ones as sub-fields. Provenance follows the
specification's data-level pattern: annotation fields whose `equivalentProperty` is a PROV-O property say, row by row,
which columns hold the agent (teacher and revision), the activity (sampling, seed, attempt) and the origin (example,
items, prompt, parent rows). Texts are those of the record's field docstrings. Source: Croissant 1.1 specification.
"""

import json
from typing import Any, get_args, get_origin

from tagpr_data.card import CardFacts
from tagpr_data.corpus import RECORDS, Corpus, Kind
from tagpr_data.records import CorpusManifest, Record
from tagpr_data.stats import Statistics

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
    **{
        term: f"cr:{term}"
        for term in (
            "annotation", "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field",
            "fileProperty",
            "fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5",
            "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate",
            "separator", "source", "subField", "transform",
        )
    },
}  # fmt: skip

LINEAGE = {
    "generated_by": ("prov:wasAttributedTo", "prov:SoftwareAgent", ("teacher", "teacher_revision")),
    "activity": ("prov:wasGeneratedBy", "prov:Activity", ("sampling", "seed", "attempt", "finish_reason")),
    "derived_from": ("prov:wasDerivedFrom", "prov:Entity", ("example_id", "item_ids", "prompt_hash", "parents")),
}
"""Annotations on a completion: name → PROV-O property, type, and the columns that hold it."""

_TYPES = {str: "sc:Text", int: "sc:Integer", float: "sc:Float", bool: "sc:Boolean"}
_TABLES: dict[Kind, str] = {
    "traces": "Tagged reasoning traces: attempts of a teacher that were kept.",
    "rejected": "Attempts that were not kept, each with the reason.",
    "pairs": "Preference pairs: two completions of one question, the first better for this user.",
    "profiles": "Past items of the users that the preference pairs are about.",
}


def croissant(corpus: Corpus, numbers: Statistics, facts: CardFacts) -> str:
    """Give the Croissant description as JSON text."""
    kinds: list[Kind] = [kind for kind in RECORDS if any(table.entry.rows for table in corpus.of(kind))]
    description = _dataset(corpus.manifest, numbers, facts)
    description["distribution"] = [
        {
            "@type": "cr:FileObject",
            "@id": table.path,
            "name": table.path,
            "description": f"{table.entry.rows} rows of {table.kind}, split {table.split}.",
            "contentUrl": table.path,
            "contentSize": f"{(corpus.folder / table.path).stat().st_size} B",
            "encodingFormat": "application/x-parquet",
            "sha256": table.entry.sha256,
        }
        for kind in kinds
        for table in corpus.of(kind)
        if table.entry.rows
    ]
    description["recordSet"] = [_record_set(corpus, kind, split) for kind in kinds for split in _splits(corpus, kind)]
    return json.dumps(description, indent=2, ensure_ascii=False) + "\n"


def _dataset(manifest: CorpusManifest, numbers: Statistics, facts: CardFacts) -> dict[str, Any]:
    tasks = ", ".join(task.name for task in manifest.tasks)
    users = numbers.users[0]["users"]
    teachers = [
        {"@type": "prov:SoftwareAgent", "@id": f"urn:tagpr:teacher:{name}@{revision}", "prov:label": name}
        for name, revision in manifest.teachers.items()
    ]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "@id": f"urn:sha256:{manifest.content_hash}",
        "conformsTo": CONFORMS_TO,
        "name": manifest.name,
        "description": (
            f"{manifest.kept} tagged reasoning traces about {users} users on {tasks}, with every rejected candidate "
            f"and its reason. Tag set {manifest.tagset}."
        ),
        "version": facts.version,
        "license": facts.licence_url or manifest.licence,
        "url": facts.url or f"urn:sha256:{manifest.content_hash}",
        **({"datePublished": facts.date} if facts.date else {}),
        **({"citeAs": facts.citation} if facts.citation else {}),
        **({"inLanguage": list(facts.language)} if facts.language else {}),
        **({"creator": [{"@type": "sc:Person", "name": name} for name in facts.creators]} if facts.creators else {}),
        "keywords": ["personalization", "reasoning", "tagged reasoning", manifest.tagset],
        "isLiveDataset": False,
        "prov:wasDerivedFrom": {
            "@id": f"urn:sha256:{manifest.dataset_hash}",
            "@type": "prov:Entity",
            "prov:label": manifest.dataset,
        },
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": "tagpr-data build",
            "prov:wasAssociatedWith": teachers,
            "sc:instrument": json.dumps(manifest.parameters, sort_keys=True, ensure_ascii=False),
        },
    }


def _splits(corpus: Corpus, kind: Kind) -> list[str]:
    return [table.split for table in corpus.of(kind) if table.entry.rows]


def _record_set(corpus: Corpus, kind: Kind, split: str) -> dict[str, Any]:
    table = next(table for table in corpus.of(kind) if table.split == split)
    own = f"{kind}-{split}"
    model = RECORDS[kind]
    fields = [
        _field(own, table.path, name, info.annotation, info.description) for name, info in model.model_fields.items()
    ]
    for field in fields:
        if field["name"] == "text" and kind in ("traces", "rejected"):
            field["annotation"] = [_annotation(own, table.path, name, model) for name in LINEAGE]
    key = ["profile_id", "position"] if kind == "profiles" else ["id"]
    return {
        "@type": "cr:RecordSet",
        "@id": own,
        "name": own,
        "description": f"{_TABLES[kind]} Split {split}.",
        "key": [{"@id": f"{own}/{name}"} for name in key],
        "field": fields,
    }


def _field(parent: str, path: str, name: str, annotation: Any, text: str | None) -> dict[str, Any]:
    inner, is_array = _element(annotation)
    own = f"{parent}/{name}"
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": own,
        "name": name,
        "description": " ".join((text or name).split()),
    }
    if is_array:
        field |= {"isArray": True, "arrayShape": "-1"}
    source = {"fileObject": {"@id": path}, "extract": {"column": name}}
    if isinstance(inner, type) and issubclass(inner, Record):
        field["source"] = source
        field["subField"] = [
            _sub_field(own, source, sub, info.annotation, info.description) for sub, info in inner.model_fields.items()
        ]
        return field
    return field | {"dataType": _TYPES[inner], "source": source}


def _sub_field(parent: str, source: dict[str, Any], name: str, annotation: Any, text: str | None) -> dict[str, Any]:
    inner, is_array = _element(annotation)
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{parent}/{name}",
        "name": name,
        "description": " ".join((text or name).split()),
        "dataType": _TYPES[inner],
        "source": {**source, "transform": {"jsonPath": name}},
    }
    return field | ({"isArray": True, "arrayShape": "-1"} if is_array else {})


def _annotation(parent: str, path: str, name: str, model: type[Record]) -> dict[str, Any]:
    property_, type_, columns = LINEAGE[name]
    own = f"{parent}/text/{name}"
    return {
        "@type": "cr:Field",
        "@id": own,
        "name": name,
        "description": f"Lineage of the completion ({property_}): {', '.join(columns)}.",
        "dataType": type_,
        "equivalentProperty": property_,
        "subField": [
            _field(own, path, column, model.model_fields[column].annotation, model.model_fields[column].description)
            for column in columns
        ],
    }


def _element(annotation: Any) -> tuple[Any, bool]:
    """Give the type of one value, and whether the field holds many of them."""
    from tagpr_data.tables import plain_type

    inner = plain_type(annotation)
    if get_origin(inner) is tuple:
        return plain_type(get_args(inner)[0]), True
    return inner, False
