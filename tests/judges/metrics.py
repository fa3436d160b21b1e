"""What the worker exports, read from its source: names, kinds and labels; and what a PromQL expression names of it."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The process collector of the prometheus crate.
PROCESS = {f"process_{name}": set() for name in (
    "cpu_seconds_total", "open_fds", "max_fds", "virtual_memory_bytes", "resident_memory_bytes", "start_time_seconds", "threads")}
# Labels that Prometheus adds.
SCRAPED = {"instance", "job", "le"}
MADE = re.compile(
    r'(?:\.|= )(counter|gauge|float_gauge|histogram)(s?)\(\s*"(\w+)",\s*"[^"]*",?\s*(?:&\[([^\]]*)\])?', re.S)


def exported():
    """Series name -> its own labels."""
    text = "\n".join(p.read_text() for p in [ROOT / "src/metrics.rs", *(ROOT / "src/metrics").glob("*.rs")] if p.name != "tests.rs")
    found = dict(PROCESS) | {"consign_build_info": {"version"}}
    # `one` is the label list of a destination's metrics.
    for kind, several, name, labels in MADE.findall(re.sub(r"\bone,?\s*\)", '&["destination"])', text)):
        own = set(re.findall(r'"(\w+)"', labels)) if several else set()
        if kind == "histogram":
            found |= {f"{name}_{end}": own for end in ("bucket", "sum", "count")}
        else:
            found[name] = own
    # A rule that finds nothing would let everything pass.
    assert len(found) > 50, f"only {len(found)} series were found in src/metrics"
    return found


def problems(expression, known):
    """What an expression names that nobody exports."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    for name in set(re.findall(r"(?<![:\w])(?:consign|process)_\w+", bare)) - known.keys():
        yield f"{name} is not exported"
    for name, matchers in re.findall(r"(?<![:\w])(\w+)\{([^}]*)\}", bare):
        for label in re.findall(r"(\w+)\s*(?:=|!)", matchers):
            if label not in known.get(name, set()) | SCRAPED:
                yield f"{name} has no label {label}"
    every = set().union(*known.values()) | SCRAPED | {"class"}
    for group in re.findall(r"(?:by|on|ignoring)\s*\(([^)]*)\)", bare):
        for label in filter(None, (part.strip() for part in group.split(","))):
            if label not in every:
                yield f"no series has a label {label}"
