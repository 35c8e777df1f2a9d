// SPDX-License-Identifier: MIT

// Package webhook is ingest: it takes deliveries that GitHub pushes over HTTP or
// that were pulled from GitHub, verifies them, reads what they say of jobs, runs
// and installations, and has each stored with its delivery in one transaction
// before it is acknowledged. It decides nothing about runners and keeps no state
// of its own; after a change it only wakes whoever decides.
package webhook
