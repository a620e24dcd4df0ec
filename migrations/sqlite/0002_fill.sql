-- A worker fills a running batch with jobs of its size, whatever their steps, the oldest first.
CREATE INDEX jobs_waiting_by_size ON jobs (model, width, height, rank_ms, id) WHERE status = 'queued';

-- How many rows wait is asked for as often as how much work is ahead: answered from the index alone.
DROP INDEX jobs_ahead;
CREATE INDEX jobs_ahead ON jobs (status, pixel_steps, row_count) WHERE status IN ('queued', 'running');
