// SPDX-License-Identifier: MIT

//go:build race

package tendays_test

// raced says that the race detector is built in, which slows all down and has
// nothing to find in what runs on one goroutine.
const raced = true
