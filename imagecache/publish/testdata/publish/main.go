// SPDX-License-Identifier: MIT

// Command publish pushes an image into a folder or collects its garbage, for a test that
// kills it: publish FOLDER, and behind that the template to push, if any, as image:v1.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/publish"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	store, err := objects.Open(ctx, objects.Options{Scheme: objects.SchemeFile, Location: args[0]})
	if err != nil {
		return err
	}
	l := publish.Location{Store: store}
	if len(args) == 1 {
		l.Store = later{store}
		_, err = l.GC(ctx, publish.GCOptions{Grace: publish.Lease, KeepUntagged: publish.Lease})
		return err
	}
	t, err := layout.Open(args[1])
	if err != nil {
		return err
	}
	_, err = l.Push(ctx, t, publish.PushOptions{Name: "image", Tag: "v1"})
	return err
}

// later is a store two days later. A collection learns the time from what it writes.
type later struct{ objects.Store }

func (l later) Put(ctx context.Context, name string, content []byte, c objects.Condition) (objects.Attributes, error) {
	a, err := l.Store.Put(ctx, name, content, c)
	a.Touched = a.Touched.Add(48 * time.Hour)
	return a, err
}
