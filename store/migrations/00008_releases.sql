-- +goose Up
-- Which runner the guests run, which ones GitHub has released, and which of them the pools' images hold.

ALTER TABLE runners ADD COLUMN runner_version TEXT NOT NULL DEFAULT '';

-- dated is 1 where GitHub told when it came out, and 0 where that is when it was first seen.
CREATE TABLE runner_releases (
    version     TEXT PRIMARY KEY,
    released_at BIGINT NOT NULL,
    dated       INTEGER NOT NULL
);

CREATE TABLE pool_runners (
    pool       TEXT NOT NULL,
    image      TEXT NOT NULL,
    version    TEXT NOT NULL,
    seen_at    BIGINT NOT NULL,
    refused_at BIGINT NOT NULL,
    PRIMARY KEY (pool, image)
);
