-- What each owner was given (dispatch::jobs::shares); jobs without an owner are kept under the empty name.
CREATE TABLE owners (
    name        TEXT    NOT NULL PRIMARY KEY,
    tag         REAL    NOT NULL,               -- pixel-steps by weight
    pixel_steps INTEGER NOT NULL                -- of jobs that workers took and did not hand back
) STRICT;

-- Claims look at each owner's line alone, from the index alone.
CREATE INDEX jobs_waiting_by_owner ON jobs
    (owner, model, rank_ms, id, width, height, steps, deadline_ms, created_at_ms, row_count, pixel_steps, identity, status)
    WHERE status = 'queued';
