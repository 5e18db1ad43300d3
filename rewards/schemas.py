"""Is an answer JSON that a schema allows?"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from ._after_thought import after_thought, last_fenced
from ._arguments import check, column, is_positive, wrong_value
from .patterns import compiled, found_within
from .text import completion_text


NAME = "json_schema"

MAX_JSON = 100_000
"""Characters of an answer; a longer one is not read."""

_LOCAL = threading.local()
"""``deadline`` of the answer that a thread is at, by ``time.monotonic``."""


class JsonSchema:
    """1.0 where a completion's answer is JSON that a schema allows, 0.0 where it is not; range {0.0, 1.0}.

    The answer stands behind the last ``</think>``; it is the last block fenced by three backticks, else all that is said.
    JSON is read strictly, without NaN; more than 100,000 characters are not read. The validation of one answer is ended
    after ``timeout`` seconds, its regular expressions included, and such an answer scores 0.0. A reference leads nowhere
    outside the schema, and ``format`` is not looked at. None where a completion is not text or its schema is None.

    Args:
        schema: of JSON Schema, a mapping, for all rows; the draft is what its ``$schema`` says, else 2020-12. None reads the
            column ``schema``.
        timeout: seconds for one answer, above 0.

    Raises:
        ImportError: the package jsonschema is not installed.
        ValueError: an argument is none of these.
    """

    __name__ = NAME

    def __init__(self, schema: Mapping[str, Any] | None = None, *, timeout: float = 1.0) -> None:
        check(is_positive(timeout), self.__name__, "timeout", timeout, "a number of seconds above 0")
        self.timeout = timeout
        self._schema = None if schema is None else _read_schema(schema)
        _jsonschema()
        if self._schema is not None:
            _validator(self._schema)

    def __call__(
        self,
        prompts: list,
        completions: list,
        schema: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One score a row. ``log_metric`` receives ``json_schema/timeouts``, the answers whose validation was ended.

        Args:
            schema: dataset column: the schema as a JSON text, or a mapping.

        Raises:
            ValueError: no schema was given and there is no such column, or a row's is no schema.
        """
        texts = [completion_text(completion) for completion in completions]
        given = [self._schema] * len(texts) if self._schema is not None else schema
        schemas = column(self.__name__, "schema", given, texts)
        timeouts, scores = 0, []
        for text, own in zip(texts, schemas, strict=True):
            score = None
            if text is not None and own is not None:
                allowed = self._allows(_read_schema(own), text)
                timeouts += allowed is None
                score = float(bool(allowed))
            scores.append(score)
        if log_metric is not None:
            log_metric(f"{self.__name__}/timeouts", float(timeouts))
        return scores

    def _allows(self, schema: str, text: str) -> bool | None:
        """Whether the answer is what the schema allows; None where it takes too long to say."""
        validator, said = _validator(schema), after_thought(text)
        answer = None if said is None else last_fenced(said)
        if answer is None or len(answer) > MAX_JSON:
            return False
        _LOCAL.deadline = time.monotonic() + self.timeout
        try:
            return validator.is_valid(json.loads(answer, parse_constant=_refuse))
        except TimeoutError:
            return None
        except (ValueError, RecursionError, OverflowError):
            return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _read_schema(schema: Any) -> str:
    """A schema as JSON text, by which its validator is found again."""
    try:
        read = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(read, Mapping | bool):
            raise ValueError("a schema is an object")
        return json.dumps(read, sort_keys=True, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        cure = f"a JSON Schema, such as {{'type': 'object'}} ({error})"
        raise wrong_value(NAME, "schema", schema, cure) from None


def _jsonschema() -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise ImportError(
            f'json_schema needs the package jsonschema, which cannot be imported ({error}): `pip install "unigrpo[json-schema]"`'
        ) from error
    return jsonschema


@cache
def _bounded(kind: type) -> type:
    """A validator class whose keywords look at the clock, and whose regular expressions are bounded too."""

    def on_time(keyword: Callable) -> Callable:
        def checked(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator:
            _seconds_left()
            yield from keyword(validator, value, instance, schema) or ()

        return checked

    keywords = {**kind.VALIDATORS, "pattern": _pattern, "patternProperties": _pattern_properties}
    keywords = {name: on_time(keyword) for name, keyword in keywords.items()}
    return _jsonschema().validators.extend(kind, keywords)


def _seconds_left() -> float:
    left = _LOCAL.deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _holds(pattern: str, text: str) -> bool:
    found = found_within(compiled(NAME, pattern).search, text, _seconds_left())
    if found is None:
        raise TimeoutError
    return found


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator:
    if validator.is_type(instance, "string") and not _holds(pattern, instance):
        yield _jsonschema().ValidationError("it does not match its pattern")


def _pattern_properties(validator: Any, patterns: dict, instance: Any, schema: Any) -> Iterator:
    for pattern, inner in patterns.items() if validator.is_type(instance, "object") else ():
        for name, value in instance.items():
            if _holds(pattern, name):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


@cache
def _validator(schema: str) -> Any:
    """The validator of a schema.

    Raises:
        ValueError: it is no schema, refers to what lies outside it, or holds a pattern that is none.
    """
    import referencing.jsonschema

    jsonschema, read = _jsonschema(), json.loads(schema)
    kind = jsonschema.validators.validator_for(read, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(read)
        _check_inside(read, _resolver(kind, read))
    except (jsonschema.SchemaError, ValueError, RecursionError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise wrong_value(NAME, "schema", read, f"a JSON Schema ({reason[:200]})") from None
    # An empty registry fetches nothing.
    return _bounded(kind)(read, registry=referencing.Registry())


def _resolver(kind: type, schema: Any) -> Any:
    """What finds the references of a schema, inside it."""
    import referencing.jsonschema

    specification = referencing.jsonschema.specification_with(kind.META_SCHEMA["$schema"])
    resource = specification.create_resource(schema)
    return referencing.Registry().with_resource(resource.id() or "", resource).resolver(resource.id() or "")


def _check_inside(schema: Any, resolver: Any) -> None:
    """Raises ``ValueError`` for a pattern that is none, and for a reference that leads nowhere inside the schema."""
    import referencing.exceptions

    for item in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _check_inside(item, resolver)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("pattern"), str):
        compiled(NAME, schema["pattern"])
    for pattern in schema["patternProperties"] if isinstance(schema.get("patternProperties"), dict) else ():
        compiled(NAME, pattern)
    for key in ("$ref", "$dynamicRef"):
        if isinstance(schema.get(key), str):
            try:
                resolver.lookup(schema[key])
            except referencing.exceptions.Unresolvable:
                raise ValueError(f"{key}={schema[key]!r} leads nowhere inside the schema") from None
