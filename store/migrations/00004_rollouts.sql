-- +goose Up
-- Which image each pool's runners are made from, what each runner was made from, and what
-- each host is to have in its cache.

CREATE TABLE rollouts (
    pool           TEXT PRIMARY KEY,
    reference      TEXT NOT NULL,
    tagged         TEXT NOT NULL,
    current_image  TEXT NOT NULL,
    next_image     TEXT NOT NULL,
    previous_image TEXT NOT NULL,
    held_image     TEXT NOT NULL,
    note           TEXT NOT NULL,
    started_at     BIGINT NOT NULL,
    tried_at       BIGINT NOT NULL,
    promoted_at    BIGINT NOT NULL,
    failures       INTEGER NOT NULL,
    failed_at      BIGINT NOT NULL,
    failure        TEXT NOT NULL,
    error          TEXT NOT NULL,
    error_at       BIGINT NOT NULL,
    version        BIGINT NOT NULL
);

ALTER TABLE runners ADD COLUMN image TEXT NOT NULL DEFAULT '';
ALTER TABLE hosts ADD COLUMN prefetch TEXT NOT NULL DEFAULT '[]';
