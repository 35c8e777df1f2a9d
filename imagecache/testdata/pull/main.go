// SPDX-License-Identifier: MIT

// Command pull opens a cache of images and fetches one, or evicts one, for a test that
// kills it: pull DIR OBJECTS REFERENCE, and behind these a digest to evict first.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/objects"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	c, err := imagecache.Open(imagecache.Config{Dir: args[0], OpenStore: func(context.Context, objects.Options) (objects.Store, error) {
		return folder{dir: args[1]}, nil
	}})
	if err != nil {
		return err
	}
	if len(args) > 3 {
		if err := c.Evict(args[3], false); err != nil {
			return err
		}
	}
	img, err := c.Ensure(ctx, args[2], nil)
	if err != nil {
		return err
	}
	img.Release()
	return c.Close()
}
