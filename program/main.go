// SPDX-License-Identifier: MIT

// Package program is what all programs do in the same way: the first signal asks for
// a graceful stop that has a bound, the second one ends the process at once; the log,
// the version and the exit status. What is finished during a stop is the program's
// own matter.
package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main calls run and ends the process with its exit status: 0, or 1 after printing
// the error, or the status that an Exit says. The first SIGINT or SIGTERM ends run's
// context with a Signal as the cause; from then on the next one has the effect that
// the system gives it, which no part of the program can hold up: the process is gone
// and its exit status says by which signal.
func Main(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		first := <-signals
		signal.Stop(signals)
		cancel(Signal{first})
		select {
		case second := <-signals: // it came before the first was dealt with
			raise(second)
		default:
		}
	}()
	err := run(ctx)
	if told, ok := errors.AsType[Signal](context.Cause(ctx)); ok && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("ended by %w before it was done", told)
	}
	status := 0
	if exit, ok := errors.AsType[Exit](err); ok {
		status = int(exit)
	} else if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		status = 1
	}
	os.Exit(status)
}

// raise sends a signal to this process.
func raise(s os.Signal) {
	if number, ok := s.(syscall.Signal); ok {
		syscall.Kill(os.Getpid(), number) //nolint:errcheck // there is no other way to end by it
	}
}

// Signal is the cause with which a context ends that a signal has ended.
type Signal struct{ os.Signal }

// Error names the signal.
func (s Signal) Error() string {
	if number, ok := s.Signal.(syscall.Signal); ok {
		return unix.SignalName(number)
	}
	return s.String()
}

// Exit is an error that ends the program with a status and no further words.
type Exit int

// Error says which.
func (e Exit) Error() string { return "exit status " + strconv.Itoa(int(e)) }
