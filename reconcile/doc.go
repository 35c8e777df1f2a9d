// SPDX-License-Identifier: MIT

// Package reconcile asks GitHub what its webhooks did not tell: which jobs are queued,
// run or are over, where their code comes from, and which registrations exist. What it
// finds about jobs and runs enters the way that deliveries do; registrations of this site without a VM it deletes, slowly
// and never on one look. It decides nothing about runners: of one whose registration
// is gone it notes just that.
package reconcile
