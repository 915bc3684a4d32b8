"""What the options of a search mean, said as plainly as can be: parse every line, look at it."""

from datetime import datetime

LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


def texts_in(item):
    """The texts and whole numbers of a JSON value."""
    if isinstance(item, dict):
        return [found for inner in item.values() for found in texts_in(inner)]
    if isinstance(item, list):
        return [found for inner in item for found in texts_in(inner)]
    return [str(item)] if isinstance(item, str) or type(item) is int else []


def is_wanted(record, asked):
    """Whether a parsed line is what the arguments of LogQuery.search ask for; since and until are datetimes."""
    states = dict.fromkeys(record["active_flags"], "on") | record.get("flags", {})
    for name, wanted in asked.items():
        if name == "level":
            got = LEVELS.index(record["level"])
            holds = got == LEVELS.index(wanted[1:]) if wanted[0] == "=" else got >= LEVELS.index(wanted)
        elif name == "correlation_id":
            holds = record.get("correlation_id") == wanted or record.get("trace_id") == wanted.lower()
        elif name == "trace_id":
            holds = record.get("trace_id") == wanted.strip().lower()
        elif name == "flag":
            flag, equals, variant = wanted.partition("=")
            holds = states.get(flag) == variant if equals else flag in record["active_flags"]
        elif name == "text":
            error = record.get("error", {})
            parts = [record.get("message"), error.get("message"), error.get("stack_trace")]
            holds = any(wanted.lower() in part.lower() for part in texts_in([*parts, record["context"]]))
        elif name == "since":
            holds = datetime.fromisoformat(record["timestamp"]) >= wanted
        elif name == "until":
            holds = datetime.fromisoformat(record["timestamp"]) <= wanted
        elif name == "where":  # `field=value` of a text
            path, value = wanted.split("=", 1)
            found = record
            for key in path.split("."):
                found = found.get(key) if isinstance(found, dict) else None
            holds = found == value.strip('"')
        else:
            holds = record.get(name) == wanted
        if not holds:
            return False
    return True


def each_once(records):
    """Without the repeats of a uid."""
    seen, once = set(), []
    for record in records:
        uid = record.get("_meta", {}).get("uid")
        if uid is None or uid not in seen:
            once.append(record)
        seen.add(uid)
    return once
