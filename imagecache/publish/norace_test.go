// SPDX-License-Identifier: MIT

//go:build !race

package publish_test

// raced says whether the race detector watches.
const raced = false
