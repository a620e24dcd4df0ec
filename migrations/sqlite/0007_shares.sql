-- Where owners have weights, a job has its owner's turn in the queue (dispatch::jobs::shares), and what that put off the next one by.
ALTER TABLE jobs ADD COLUMN turn_ms REAL;
ALTER TABLE jobs ADD COLUMN turn_cost_ms REAL;

-- The clock of turns: one row, where there is any.
CREATE TABLE shares (
    id                INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    now_ms            REAL    NOT NULL,
    ms_per_pixel_step REAL    NOT NULL
) STRICT;

-- When each owner's next turn is, by priority, and what was drawn for it; jobs without an owner are kept under the empty name.
CREATE TABLE owners (
    name                TEXT    NOT NULL PRIMARY KEY,
    next_interactive_ms REAL    NOT NULL,
    next_normal_ms      REAL    NOT NULL,
    next_bulk_ms        REAL    NOT NULL,
    pixel_steps         INTEGER NOT NULL
) STRICT;
