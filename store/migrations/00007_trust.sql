-- +goose Up
-- What verdicts rest on, and what a guest's job-started hook told of its one job.

ALTER TABLE jobs ADD COLUMN visibility TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN visibility TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN triggering_actor TEXT NOT NULL DEFAULT '';
ALTER TABLE runners ADD COLUMN job_repository TEXT NOT NULL DEFAULT '';
ALTER TABLE runners ADD COLUMN job_run BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runners ADD COLUMN job_refused TEXT NOT NULL DEFAULT '';
