-- When a job that still waits or runs gives up (`start_within`, `expires_in`); NULL: never, or it has ended.
ALTER TABLE jobs ADD COLUMN deadline_ms INTEGER;
CREATE INDEX jobs_deadlines ON jobs (deadline_ms) WHERE deadline_ms IS NOT NULL;
