// SPDX-License-Identifier: MIT

package objects

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// The schemes of stores.
const (
	SchemeGCS  = "gs"
	SchemeFile = "file"
)

// Options say where the objects are and how to get in. Zero values are those named.
type Options struct {
	Scheme string
	// Location is BUCKET or BUCKET/PREFIX, or an absolute folder.
	Location string
	// KeyFile is the path of a service account's key. "" means Application Default
	// Credentials. Only a bucket needs it.
	KeyFile string
	// Endpoint is where the JSON API is, http://HOST:PORT for an emulator: nothing secret
	// is sent without TLS. "" is Google's, or what STORAGE_EMULATOR_HOST says.
	Endpoint string
	// Stall is for how long nothing may move before a connection is given up. 30 s.
	Stall time.Duration
	// Patience is how long a call goes on trying without any progress. 2 min.
	Patience time.Duration
	// Pause is the longest first pause before a call is tried again; each further one may
	// be twice as long, up to 16 s. 500 ms.
	Pause time.Duration

	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Open opens a store. A folder must exist; whether a bucket does shows when it is used.
func Open(ctx context.Context, o Options) (Store, error) {
	if o.Stall < 0 || o.Patience < 0 || o.Pause < 0 {
		return nil, errors.New("open objects: times must not be negative")
	}
	switch o.Scheme {
	case SchemeGCS:
		return openBucket(ctx, o)
	case SchemeFile:
		return openFolder(o.Location)
	}
	return nil, fmt.Errorf("open objects: %q is no scheme of a store: give gs or file", o.Scheme)
}

// check refuses names that could be something else in a folder.
func check(name string) error {
	bad := name == "" || len(name) > 512
	for part := range strings.SplitSeq(name, "/") {
		bad = bad || part == "" || part[0] == '.' || len(part) > 200
	}
	for i := range len(name) {
		bad = bad || name[i] <= ' ' || name[i] > '~' || name[i] == '\\'
	}
	if bad {
		return fmt.Errorf("%.80q cannot be an object's name: its parts have printable ASCII and begin with no dot", name)
	}
	return nil
}

var errAbsent = errors.New("the condition says that there is no such object")

// ofExisting refuses a condition that cannot hold for an object that is there.
func (c Condition) ofExisting() error {
	if c.Absent {
		return errAbsent
	}
	return nil
}
