-- Whose a job is: the name of the API key that it was submitted with; NULL: it came without one. Idempotency keys of owners
-- are stored as owner, line break, key, so that the column stays unique.
ALTER TABLE jobs ADD COLUMN owner TEXT;
CREATE INDEX jobs_by_owner ON jobs (owner, id);
CREATE INDEX jobs_by_owner_and_status ON jobs (owner, status, id);
