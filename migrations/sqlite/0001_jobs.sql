-- One row a job. Times are milliseconds since 1970-01-01T00:00:00Z; JSON columns hold what serde writes of the domain type.
CREATE TABLE jobs (
    id                      BLOB    NOT NULL PRIMARY KEY,  -- UUIDv7, 16 bytes: sorts by creation time
    status                  TEXT    NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    -- What is asked: the request as JSON, and beside it the parts that decide who is next.
    request                 TEXT    NOT NULL,
    model                   TEXT    NOT NULL,
    width                   INTEGER NOT NULL,
    height                  INTEGER NOT NULL,
    steps                   INTEGER NOT NULL,
    row_count               INTEGER NOT NULL,              -- rows of a forward: pictures, twice when guided
    pixel_steps             INTEGER NOT NULL,              -- pictures x steps x width x height
    rank_ms                 INTEGER NOT NULL,              -- created_at_ms moved by the priority
    created_at_ms           INTEGER NOT NULL,
    started_at_ms           INTEGER,
    ended_at_ms             INTEGER,
    expires_at_ms           INTEGER,
    attempts                INTEGER NOT NULL DEFAULT 0,
    cancel_requested        INTEGER NOT NULL DEFAULT 0,
    -- Set exactly while running.
    lease_worker            TEXT,
    lease_token             INTEGER,                       -- 64 random bits, read as signed
    lease_expires_at_ms     INTEGER,
    -- What came of it.
    images                  TEXT    NOT NULL DEFAULT '[]',
    timings                 TEXT,
    warnings                TEXT    NOT NULL DEFAULT '[]',
    error                   TEXT,
    idempotency_key         TEXT    UNIQUE,
    idempotency_fingerprint TEXT,
    CHECK ((status = 'running') = (lease_token IS NOT NULL))
) STRICT;

CREATE INDEX jobs_waiting ON jobs (rank_ms, id) WHERE status = 'queued';
CREATE INDEX jobs_waiting_by_model ON jobs (model, rank_ms, id) WHERE status = 'queued';
CREATE INDEX jobs_waiting_by_group ON jobs (model, width, height, steps, rank_ms, id) WHERE status = 'queued';
CREATE INDEX jobs_leased ON jobs (lease_expires_at_ms) WHERE status = 'running';
CREATE INDEX jobs_ended ON jobs (expires_at_ms) WHERE expires_at_ms IS NOT NULL;
CREATE INDEX jobs_by_status ON jobs (status, id);
CREATE INDEX jobs_ahead ON jobs (status, pixel_steps) WHERE status IN ('queued', 'running');
