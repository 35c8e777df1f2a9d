-- +goose Up
-- What GitHub's own lists need to be compared with what deliveries told.

ALTER TABLE jobs ADD COLUMN told_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN asked_at BIGINT NOT NULL DEFAULT 0;
UPDATE jobs SET told_at = heard_at;

CREATE INDEX jobs_repository ON jobs (repository_key, told_at, owner, repo);
CREATE INDEX runners_moved ON runners (moved_at);
CREATE INDEX mints_runner ON mints (runner);
