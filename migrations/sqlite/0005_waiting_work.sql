-- How much work stands before a job is asked for at every look at it: answered from the index alone.
DROP INDEX jobs_waiting;
CREATE INDEX jobs_waiting ON jobs (rank_ms, id, model, width, height, row_count, steps) WHERE status = 'queued';
