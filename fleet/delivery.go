// SPDX-License-Identifier: MIT

package fleet

import "time"

// Delivery is one authentic webhook delivery, pushed by GitHub or pulled from it.
type Delivery struct {
	GUID           string // X-GitHub-Delivery; a redelivery has the same
	Event, Action  string
	InstallationID int64
	Repository     string // owner/name, "" where the event has none
	Payload        []byte // as signed
	ReceivedAt     time.Time
	Status         DeliveryStatus
	Reason         string // why it was ignored or has failed
}

// DeliveryStatus says what became of a delivery.
type DeliveryStatus string

// The fates of a delivery.
const (
	DeliveryProcessed DeliveryStatus = "processed"
	DeliveryIgnored   DeliveryStatus = "ignored" // authentic, and nothing to us
	DeliveryFailed    DeliveryStatus = "failed"  // authentic, but not to be understood; processed again when it comes again
)

// Ingest is a delivery with what was read out of it: at most one of the pointers
// is set. Or it is what GitHub answered when it was asked, about jobs or about a run, or a
// message of a scale set's queue: then there is no delivery. All of it is stored in one
// transaction.
type Ingest struct {
	Delivery     Delivery
	Job          *JobNews
	Run          *Run
	Installation *Installation

	Answers []JobNews
	Message *SetMessage
}

// Ingested says what storing an Ingest did.
type Ingested struct {
	Duplicate bool // the GUID was known and not failed, or the message stored: nothing was done
	Changed   bool // a job, run or installation is not as it was
}

// Installation is a place where the GitHub App is installed.
type Installation struct {
	ID        int64
	Account   string // login of the organization or user
	Suspended bool
	Deleted   bool
}

// Attempt is one attempt of GitHub's to deliver, as its list of the App's deliveries shows
// it. Attempts of one delivery share its GUID.
type Attempt struct {
	ID            int64
	GUID          string
	Event, Action string
	At            time.Time // by GitHub's clock
	OK            bool      // the receiver answered 2xx
	Code          int       // that it answered, or GitHub's for what failed
	Words         string    // of GitHub's for it: OK, or what failed
	Redelivery    bool      // it was asked for
}

// Pulled is a delivery that was read from GitHub instead of being pushed by it.
type Pulled struct {
	GUID, Event string
	TargetType  string // as in the headers that it had, or would have had
	TargetID    int64
	ContentType string // "" means application/json
	Payload     []byte // nil: GitHub does not give it
}
