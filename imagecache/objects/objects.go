// SPDX-License-Identifier: MIT

// Package objects is a place that holds objects by name, as a bucket does: Google Cloud
// Storage, or a folder. It knows of generations and preconditions, and nothing of images.
package objects

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// What a store answers. Test with errors.Is.
var (
	ErrNotFound     = errors.New("no such object")
	ErrPrecondition = errors.New("the object has changed meanwhile")
	ErrForbidden    = errors.New("access is denied")
	// ErrCorrupt is of a reader at its end: what it gave is not what was put there.
	ErrCorrupt = errors.New("the content is damaged")
)

// Attributes are what a store knows of an object.
type Attributes struct {
	Name string
	Size int64
	// Generation is that of the content, Metageneration that of the metadata of this
	// content. Both only grow.
	Generation, Metageneration int64
	// Touched is when the object was written or touched last, by the store's clock.
	Touched time.Time
}

// Condition must hold for a change to happen; ErrPrecondition if it does not. The zero
// Condition always holds.
type Condition struct {
	Absent                     bool  // no such object
	Generation, Metageneration int64 // of the object; 0 is any
}

// Store is safe for use by several goroutines. Names have slashes, and every method
// retries what is worth it, within the context.
type Store interface {
	// Get opens the content of an object. What was read and Size may disagree:
	// the caller checks. The reader goes on over connections that break.
	Get(ctx context.Context, name string) (io.ReadCloser, Attributes, error)
	Stat(ctx context.Context, name string) (Attributes, error)
	// List yields the objects whose names begin with the prefix, in order.
	List(ctx context.Context, prefix string) iter.Seq2[Attributes, error]
	// Put writes an object in one piece: it is there whole or not at all. An answer that
	// was lost does not turn into ErrPrecondition where the object is the caller's own.
	Put(ctx context.Context, name string, content []byte, c Condition) (Attributes, error)
	// Touch raises the metageneration and Touched of an object that is to be kept.
	Touch(ctx context.Context, name string, c Condition) (Attributes, error)
	Delete(ctx context.Context, name string, c Condition) error
	// String is the address without secrets, for people: gs://bucket/prefix.
	String() string
	Close() error
}
