// SPDX-License-Identifier: MIT

package fleet

import "time"

// Page bounds a listing: at most Limit rows (0 means 100, at most 1,000) after
// the row that the cursor of an earlier answer names.
type Page struct {
	Limit  int
	Cursor string // opaque; "" begins
}

// JobQuery selects jobs, newest first. Empty fields select all.
type JobQuery struct {
	Page
	States     []JobState
	Repository string // owner/name, any case
	RunID      int64
}

// RunnerQuery selects runners, newest first. Runners of the past are left out
// unless All is set.
type RunnerQuery struct {
	Page
	Pool string
	Host HostID
	Job  JobID // that GitHub gave it; 0: any or none
	All  bool
}

// HostQuery selects hosts, by name.
type HostQuery struct{ Page }

// DeliveryQuery selects deliveries, newest first.
type DeliveryQuery struct {
	Page
	Status DeliveryStatus
}

// DeliverySummary is a delivery without its payload.
type DeliverySummary struct {
	GUID, Event, Action string
	Repository          string
	InstallationID      int64
	ReceivedAt          time.Time
	Status              DeliveryStatus
	Reason              string
	Times               int // how often it arrived
}
