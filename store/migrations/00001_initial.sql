-- +goose Up
-- Portable SQL: SQLite and PostgreSQL read the same text. Times are microseconds
-- since 1970 UTC, 0 = none; truth values are 0 and 1.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE deliveries (
    guid            TEXT PRIMARY KEY,
    event           TEXT NOT NULL,
    action          TEXT NOT NULL,
    installation_id BIGINT NOT NULL,
    repository      TEXT NOT NULL,
    received_at     BIGINT NOT NULL,
    status          TEXT NOT NULL,
    reason          TEXT NOT NULL,
    times           INTEGER NOT NULL,
    payload         BYTEA
);
CREATE INDEX deliveries_received ON deliveries (received_at, guid);
CREATE INDEX deliveries_status ON deliveries (status, received_at);

CREATE TABLE installations (
    id        BIGINT PRIMARY KEY,
    account   TEXT NOT NULL,
    suspended INTEGER NOT NULL,
    deleted   INTEGER NOT NULL
);

CREATE TABLE runs (
    id              BIGINT NOT NULL,
    attempt         INTEGER NOT NULL,
    repository      TEXT NOT NULL,
    event           TEXT NOT NULL,
    head_repository TEXT NOT NULL,
    fork            INTEGER NOT NULL,
    actor           TEXT NOT NULL,
    status          TEXT NOT NULL,
    conclusion      TEXT NOT NULL,
    heard_at        BIGINT NOT NULL,
    PRIMARY KEY (id, attempt)
);

CREATE TABLE jobs (
    id              BIGINT PRIMARY KEY,
    run_id          BIGINT NOT NULL,
    run_attempt     INTEGER NOT NULL,
    installation_id BIGINT NOT NULL,
    owner           TEXT NOT NULL,
    repo            TEXT NOT NULL,
    repository_key  TEXT NOT NULL,
    workflow        TEXT NOT NULL,
    name            TEXT NOT NULL,
    labels          TEXT NOT NULL,
    state           TEXT NOT NULL,
    conclusion      TEXT NOT NULL,
    runner_name     TEXT NOT NULL,
    url             TEXT NOT NULL,
    created_at      BIGINT NOT NULL,
    heard_at        BIGINT NOT NULL,
    queued_at       BIGINT NOT NULL,
    started_at      BIGINT NOT NULL,
    completed_at    BIGINT NOT NULL
);
CREATE INDEX jobs_state ON jobs (state, queued_at, id);
CREATE INDEX jobs_run ON jobs (run_id);

CREATE TABLE hosts (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    credential_hash TEXT NOT NULL UNIQUE,
    slots           INTEGER NOT NULL,
    backends        TEXT NOT NULL,
    images          TEXT NOT NULL,
    os              TEXT NOT NULL,
    arch            TEXT NOT NULL,
    agent_version   TEXT NOT NULL,
    degraded        TEXT NOT NULL,
    revision        BIGINT NOT NULL,
    instance        TEXT NOT NULL,
    sequence        BIGINT NOT NULL,
    machine         TEXT NOT NULL,
    seen_at         BIGINT NOT NULL,
    back_at         BIGINT NOT NULL,
    failures        INTEGER NOT NULL,
    failed_at       BIGINT NOT NULL,
    created_at      BIGINT NOT NULL
);

CREATE TABLE enrolments (
    token_hash TEXT PRIMARY KEY,
    host_name  TEXT NOT NULL,
    uses_left  INTEGER NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE runners (
    id           TEXT PRIMARY KEY,
    pool         TEXT NOT NULL,
    host         TEXT NOT NULL,
    reason       TEXT NOT NULL,
    wanted       TEXT NOT NULL,
    scope        TEXT NOT NULL,
    armed_at     BIGINT NOT NULL,
    retired_at   BIGINT NOT NULL,
    retired      TEXT NOT NULL,
    observed     TEXT NOT NULL,
    holds_slot   INTEGER NOT NULL,
    has_config   INTEGER NOT NULL,
    failure      TEXT NOT NULL,
    result       TEXT NOT NULL,
    progress     TEXT NOT NULL,
    registration TEXT NOT NULL,
    runner_name  TEXT NOT NULL,
    github_id    BIGINT NOT NULL,
    attempt      INTEGER NOT NULL,
    delete_after BIGINT NOT NULL,
    job          BIGINT NOT NULL,
    job_done     INTEGER NOT NULL,
    since        BIGINT NOT NULL,
    moved_at     BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    version      BIGINT NOT NULL,
    is_over      INTEGER NOT NULL
);
CREATE INDEX runners_live ON runners (is_over, host);
CREATE INDEX runners_job ON runners (job);
CREATE INDEX runners_created ON runners (created_at, id);

-- Every name ever asked of GitHub: committed before the call, kept for the
-- deliveries that name a runner, for the budget and for the sweep.
CREATE TABLE mints (
    name    TEXT PRIMARY KEY,
    runner  TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    owner   TEXT NOT NULL,
    scope   TEXT NOT NULL,
    at      BIGINT NOT NULL
);
CREATE INDEX mints_at ON mints (at);

CREATE TABLE moments (
    runner TEXT NOT NULL,
    seq    BIGINT NOT NULL,
    at     BIGINT NOT NULL,
    phase  TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (runner, seq)
);

CREATE TABLE pool_health (
    pool      TEXT PRIMARY KEY,
    failures  INTEGER NOT NULL,
    failed_at BIGINT NOT NULL,
    reason    TEXT NOT NULL
);
