// SPDX-License-Identifier: MIT

// Command bench prints the figures of a whole site: how soon a delivery is answered,
// assigned and listened for, what a large fleet costs, whether a long run leaves
// anything behind, what a VM's clone, boot, restore and end take, and what it takes to move
// images. Everything it measures runs in processes of its own, the programs as they are
// shipped; it plays GitHub's deliveries and the jobs itself. It judges nothing
// but its own table, and no test depends on a time that it prints.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == listenerWord {
		return listener(os.Args[2:])
	}
	if len(os.Args) > 1 && os.Args[1] == imagesWord {
		if err := imagesProgram(os.Args[2:], os.Stdout, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, "bench images:", err)
			return 1
		}
		return 0
	}
	if err := bench(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// options of a run.
type options struct {
	programs string  // folder of the programs
	payload  string  // a delivery as GitHub sends it
	image    string  // folder of the image that VMs are made of
	dir      string  // where databases and logs go
	profiles string  // where profiles of the controller go; "" makes none
	scale    float64 // part of each count, for a quick look
	keep     bool
	hour     bool // every tick of the controller is one hour
}

// of returns a count at the run's scale.
func (o options) of(n int) int { return max(2, int(float64(n)*o.scale)) }

// few is of what takes seconds each.
func (o options) few(n int) int { return max(1, int(float64(n)*o.scale)) }

// figure is one measurement, or several that share a site.
type figure struct {
	name, what string
	measure    func(context.Context, *bencher) error
}

func figures() []figure {
	return []figure{
		{"webhook", "deliveries stored and answered", measureWebhook},
		{"assign", "webhook to assignment, 200 hosts", measureAssign},
		{"mint200", "200 registrations at once, 150 ms each, without and with GitHub's limits", measureMints},
		{"listener", "webhook to listener and back, process backend", measureListener},
		{"lost", "lost webhook to job running, process backend", measureLost},
		{"thousand", "1,000 jobs at once on 500 hosts, and the same fleet idle", measureThousand},
		{"growth", "cost of one more job as the fleet grows", measureGrowth},
		{"long", "10,000 jobs in a row", measureLong},
		{"clone", "clone of an image of 10 GiB, and the bare system call", measureClone},
		{"boot", "boot and stop of a VM, and the same by hand", measureBoot},
		{"restore", "a VM that continues from a saved state, and one that boots", measureRestore},
		{"images", "an image of 8 GiB to a bucket and from there, and its update", measureImages},
		{"ready", "an image in the cache to a bundle that could boot, update after update", measureReady},
		{"cycle", "a job of `true` in a VM, from its webhook to nothing left", measureCycle},
	}
}

func bench(ctx context.Context, args []string, out, complaints io.Writer) error {
	var o options
	only := ""
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(complaints)
	flags.StringVar(&o.programs, "programs", "../bin", "folder of minifleet, minifleet-agent, minifleet-vmm and minifleet-guest")
	flags.StringVar(&o.payload, "payload", "../webhook/testdata/job_queued.json", "a workflow_job delivery, which all that are sent are made from")
	flags.StringVar(&o.image, "image", "bin/images/testlinux", "the image that VMs are made of; see make test-image")
	flags.StringVar(&o.dir, "dir", os.TempDir(), "where the databases go: the file system that is measured")
	flags.StringVar(&o.profiles, "profiles", "", "write a CPU profile of the controller for each load there")
	flags.Float64Var(&o.scale, "scale", 1, "part of each count to run, for a quick look")
	flags.BoolVar(&o.keep, "keep", false, "keep databases and logs")
	flags.BoolVar(&o.hour, "hour", false, "set every tick of the controller to one hour: what is met then needs none")
	flags.StringVar(&only, "only", "", "figures to measure, comma-separated; all if empty")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case flags.NArg() > 0 || o.scale <= 0 || o.scale > 1:
		return errors.New("want flags only, and a scale above 0 and up to 1")
	}
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	b, err := newBencher(o, out)
	if err != nil {
		return err
	}
	defer b.close()
	b.header()
	began := time.Now()
	for _, f := range chosen {
		fmt.Fprintf(out, "\n%s: %s\n", f.name, f.what)
		if err := f.measure(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	b.summary(time.Since(began))
	return nil
}

func choose(only string) ([]figure, error) {
	all := figures()
	if only == "" {
		return all, nil
	}
	var chosen []figure
	for word := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(all, func(f figure) bool { return f.name == strings.TrimSpace(word) })
		if i < 0 {
			names := ""
			for _, f := range all {
				names += " " + f.name
			}
			return nil, fmt.Errorf("no figure is called %q: there are%s", word, names)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}
