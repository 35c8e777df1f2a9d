// SPDX-License-Identifier: MIT

// Package metrics shows the controller to Prometheus: what the books say at the
// moment of a scrape, and counts of what was done since the start. It reads what
// others know and decides nothing. Every label has few values: pools, owners and
// installations of the configuration, and words of the domain; never a job, a
// runner or a repository.
package metrics
