-- Requests whose pictures would be the same to the byte share an identity; NULL: the job has its own drawn. The oldest of those
-- that wait is drawn, and the others are given its pictures.
ALTER TABLE jobs ADD COLUMN identity TEXT;
ALTER TABLE jobs ADD COLUMN reused_from BLOB;  -- the job that the pictures were drawn for, where that is another
CREATE INDEX jobs_by_identity ON jobs (identity, status, rank_ms, id) WHERE identity IS NOT NULL;
