CREATE TABLE control (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    announced_ms INTEGER NOT NULL,
    announced_at TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%SZ', announced_ms / 1000, 'unixepoch')) VIRTUAL,
    prefix TEXT NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE INDEX control_by_prefix ON control (prefix, seq);
