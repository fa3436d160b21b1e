CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prefix TEXT NOT NULL, lane TEXT NOT NULL, routing_key TEXT NOT NULL, published_at TEXT NOT NULL,
    content_type TEXT, message_id TEXT, reply_to TEXT, correlation_id TEXT, type TEXT,
    headers TEXT NOT NULL CHECK (json_valid(headers)), body BLOB NOT NULL,
    owner TEXT, redelivered INTEGER NOT NULL DEFAULT 0, delivery_count INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX jobs_free ON jobs (prefix, lane, seq) WHERE owner IS NULL;
CREATE INDEX jobs_held ON jobs (owner) WHERE owner IS NOT NULL;

CREATE TABLE waiting (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prefix TEXT NOT NULL, lane TEXT NOT NULL, routing_key TEXT NOT NULL, published_at TEXT NOT NULL,
    content_type TEXT, message_id TEXT, reply_to TEXT, correlation_id TEXT, type TEXT,
    headers TEXT NOT NULL CHECK (json_valid(headers)), body BLOB NOT NULL,
    due_ms INTEGER NOT NULL, rung_ms INTEGER NOT NULL,
    due_at TEXT GENERATED ALWAYS AS (strftime('%Y-%m-%dT%H:%M:%SZ', due_ms / 1000, 'unixepoch')) VIRTUAL
) STRICT;
CREATE INDEX waiting_due ON waiting (prefix, due_ms);

CREATE TABLE dead_letters (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    died_at TEXT NOT NULL,
    prefix TEXT NOT NULL, lane TEXT NOT NULL, routing_key TEXT NOT NULL, published_at TEXT NOT NULL,
    content_type TEXT, message_id TEXT, reply_to TEXT, correlation_id TEXT, type TEXT,
    headers TEXT NOT NULL CHECK (json_valid(headers)), body BLOB NOT NULL,
    reason TEXT GENERATED ALWAYS AS (headers ->> '$."x-error-reason"') VIRTUAL,
    class TEXT GENERATED ALWAYS AS (headers ->> '$."x-error-class"') VIRTUAL,
    message TEXT GENERATED ALWAYS AS (headers ->> '$."x-error-message"') VIRTUAL,
    attempts INTEGER GENERATED ALWAYS AS (CAST(headers ->> '$."x-attempts"' AS INTEGER)) VIRTUAL,
    first_failure_at TEXT GENERATED ALWAYS AS (headers ->> '$."x-first-failure-at"') VIRTUAL,
    last_failure_at TEXT GENERATED ALWAYS AS (headers ->> '$."x-last-failure-at"') VIRTUAL
) STRICT;
CREATE INDEX dead_letters_by_job ON dead_letters (prefix, message_id);

CREATE TABLE outcomes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    recorded_at TEXT NOT NULL,
    prefix TEXT NOT NULL, id TEXT NOT NULL, routing_key TEXT NOT NULL,
    repeats INTEGER NOT NULL DEFAULT 0,
    reply_to TEXT, correlation_id TEXT,
    body TEXT NOT NULL,
    outcome TEXT GENERATED ALWAYS AS
        (CASE WHEN routing_key LIKE 'transfer.%' THEN substr(routing_key, 10, instr(substr(routing_key, 10), '.') - 1) END) VIRTUAL,
    job_id TEXT GENERATED ALWAYS AS (CASE WHEN json_valid(body) THEN body ->> '$.subject' END) VIRTUAL,
    destination TEXT GENERATED ALWAYS AS (CASE WHEN json_valid(body) THEN body ->> '$.data.destination' END) VIRTUAL,
    bytes INTEGER GENERATED ALWAYS AS (CASE WHEN json_valid(body) THEN body ->> '$.data.bytes' END) VIRTUAL,
    attempts INTEGER GENERATED ALWAYS AS (CASE WHEN json_valid(body) THEN body ->> '$.data.attempts' END) VIRTUAL,
    reason TEXT GENERATED ALWAYS AS (CASE WHEN json_valid(body) THEN body ->> '$.data.reason' END) VIRTUAL,
    message TEXT GENERATED ALWAYS AS (CASE WHEN json_valid(body) THEN body ->> '$.data.message' END) VIRTUAL,
    UNIQUE (prefix, id)
) STRICT;

CREATE TABLE owners (
    id TEXT PRIMARY KEY,
    worker TEXT NOT NULL, pid INTEGER NOT NULL, started_at TEXT NOT NULL,
    beats INTEGER NOT NULL DEFAULT 0
) STRICT;
