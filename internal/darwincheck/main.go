// SPDX-License-Identifier: MIT

// Command darwincheck type-checks Go packages as they are built on a Mac (darwin/arm64
// with cgo) on any machine, without a macOS SDK or a C compiler. Go code is checked as
// the compiler would check it, against the real modules; what stands behind import "C"
// is not, nothing is linked, and no Objective-C is compiled. So it says that the code
// fits the library, and never that it works on a Mac.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes: the packages are right, they are not, or nobody can tell.
const (
	exitRight = iota
	exitWrong
	exitFailed
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("darwincheck", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: darwincheck [flags] [packages]   (default ./...)")
		flags.PrintDefaults()
	}
	dir := flags.String("C", ".", "folder of the module")
	overlay := flags.String("overlay", "", "JSON file with replaced files, as for go build -overlay")
	if err := flags.Parse(args); err != nil {
		return exitFailed
	}
	patterns := flags.Args()
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	found, err := check(ctx, *dir, *overlay, patterns)
	if err != nil {
		fmt.Fprintln(stderr, "darwincheck:", err)
		return exitFailed
	}
	for _, m := range found.mistakes {
		fmt.Fprintln(stdout, m)
	}
	fmt.Fprintf(stderr, "darwincheck: %d packages with their tests, against %d others, for darwin/arm64 with cgo: %d mistakes\n",
		found.ours, found.others, len(found.mistakes))
	if len(found.mistakes) > 0 {
		return exitWrong
	}
	return exitRight
}
